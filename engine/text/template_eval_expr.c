/* Expressions. */
#include "engine/text/template_tree.h"
#include "engine/text/template_unicode.h"
#include <math.h>
#include <string.h>

static _Noreturn void unsupported(struct tpl_render *r, const char *operator_name, struct tpl_value a,
                                  struct tpl_value b)
{
    if (a.kind == TPL_UNDEFINED || b.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, a.kind == TPL_UNDEFINED ? a : b);
    tpl_fail(r, "unsupported operand type(s) for %s: '%s' and '%s'", operator_name, tpl_type_name(a), tpl_type_name(b));
}

static struct tpl_value concat_text(struct tpl_render *r, const struct tpl_text *a, const struct tpl_text *b)
{
    struct tpl_builder joined = {0};
    tpl_build_text(r, &joined, a);
    tpl_build_text(r, &joined, b);
    return tpl_built_value(r, &joined);
}

/* str + str; when one side is markup, the other is escaped and the sum is markup. */
static struct tpl_value add_text(struct tpl_render *r, const struct tpl_text *a, const struct tpl_text *b)
{
    if (!a->markup && !b->markup)
        return concat_text(r, a, b);
    struct tpl_value sum = concat_text(r, tpl_escape(r, a), tpl_escape(r, b));
    struct tpl_text *marked = tpl_alloc(r, sizeof *marked);
    *marked = *sum.text;
    marked->markup = true;
    return tpl_text_value(marked);
}

static struct tpl_value add_lists(struct tpl_render *r, enum tpl_kind kind, const struct tpl_list *a,
                                  const struct tpl_list *b)
{
    struct tpl_list *sum = tpl_list_new(r, a->count + b->count);
    tpl_charge(r, (size_t)(a->count + b->count) / 16);
    for (int i = 0; i < a->count; i++)
        tpl_list_push(r, sum, a->items[i]);
    for (int i = 0; i < b->count; i++)
        tpl_list_push(r, sum, b->items[i]);
    return tpl_list_value(kind, sum);
}

static struct tpl_value repeat(struct tpl_render *r, struct tpl_value value, int64_t times)
{
    if (value.kind == TPL_TEXT) {
        struct tpl_builder text = {0};
        if (value.text->length == 0)
            return value;
        if (times > (int64_t)(TPL_TEXT_BYTES_MAX / value.text->length))
            tpl_fail(r, "a string repeated %lld times grows beyond %u MiB", (long long)times, TPL_TEXT_BYTES_MAX >> 20);
        for (int64_t i = 0; i < times; i++) {
            tpl_charge(r, 1);
            tpl_build_text(r, &text, value.text);
        }
        return tpl_built_value(r, &text);
    }
    struct tpl_list *list = tpl_list_new(r, 0);
    for (int64_t i = 0; i < times && value.list->count > 0; i++) {
        tpl_charge(r, (size_t)value.list->count);
        for (int j = 0; j < value.list->count; j++)
            tpl_list_push(r, list, value.list->items[j]);
    }
    return tpl_list_value(value.kind, list);
}

static _Noreturn void overflow(struct tpl_render *r)
{
    tpl_fail(r, "an integer grows beyond 64 bits");
}

static int64_t floor_divide(struct tpl_render *r, int64_t a, int64_t b)
{
    if (b == 0)
        tpl_fail(r, "integer division or modulo by zero");
    if (a == INT64_MIN && b == -1)
        overflow(r);
    int64_t quotient = a / b;
    return quotient - (a % b != 0 && (a < 0) != (b < 0));
}

static int64_t integer_power(struct tpl_render *r, int64_t base, int64_t exponent)
{
    int64_t result = 1;
    for (; exponent > 0; exponent >>= 1) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result))
            overflow(r);
        if (exponent > 1 && __builtin_mul_overflow(base, base, &base))
            overflow(r);
    }
    return result;
}

static struct tpl_value integer_arithmetic(struct tpl_render *r, enum tpl_operator operator_, int64_t a, int64_t b)
{
    int64_t result = 0;
    bool wrapped = false;
    switch (operator_) {
    case TPL_ADD:
        wrapped = __builtin_add_overflow(a, b, &result);
        break;
    case TPL_SUBTRACT:
        wrapped = __builtin_sub_overflow(a, b, &result);
        break;
    case TPL_MULTIPLY:
        wrapped = __builtin_mul_overflow(a, b, &result);
        break;
    case TPL_DIVIDE:
        if (b == 0)
            tpl_fail(r, "division by zero");
        return tpl_float((double)a / (double)b);
    case TPL_FLOOR_DIVIDE:
        result = floor_divide(r, a, b);
        break;
    case TPL_MODULO:
        result = b == -1 ? 0 : a - b * floor_divide(r, a, b);
        break;
    default:
        if (b < 0 && a == 0)
            tpl_fail(r, "0.0 cannot be raised to a negative power");
        if (b < 0)
            return tpl_float(pow((double)a, (double)b));
        result = integer_power(r, a, b);
    }
    if (wrapped)
        overflow(r);
    return tpl_int(result);
}

static struct tpl_value float_arithmetic(struct tpl_render *r, enum tpl_operator operator_, double a, double b)
{
    switch (operator_) {
    case TPL_ADD:
        return tpl_float(a + b);
    case TPL_SUBTRACT:
        return tpl_float(a - b);
    case TPL_MULTIPLY:
        return tpl_float(a * b);
    default:
        break;
    }
    if (operator_ == TPL_POWER) {
        double result = pow(a, b);
        if ((a == 0 && b < 0) || (isnan(result) && !isnan(a) && !isnan(b)) || (isinf(result) && !isinf(a) && !isinf(b)))
            tpl_fail(r, "the power has no value as a number");
        return tpl_float(result);
    }
    if (b == 0)
        tpl_fail(r, "float division by zero");
    if (operator_ == TPL_DIVIDE)
        return tpl_float(a / b);
    double modulo = fmod(a, b), quotient = (a - modulo) / b;
    if (modulo != 0 && (b < 0) != (modulo < 0)) {
        modulo += b;
        quotient -= 1;
    }
    if (modulo == 0)
        modulo = copysign(0, b);
    double whole = floor(quotient);
    if (quotient == 0)
        whole = copysign(0, a / b);
    else if (quotient - whole > 0.5)
        whole += 1;
    return tpl_float(operator_ == TPL_MODULO ? modulo : whole);
}

/* "%s" % value: a tuple gives all arguments, a mapping the named ones. */
static struct tpl_value percent(struct tpl_render *r, const struct tpl_text *format, struct tpl_value b)
{
    struct tpl_call call = {.self = b, .count = 1, .values = &b};
    if (b.kind == TPL_TUPLE) {
        call.count = b.list->count;
        call.values = b.list->items;
    } else if (b.kind == TPL_DICT) {
        const struct tpl_text **keywords = tpl_alloc(r, (size_t)b.dict->count * sizeof *keywords);
        for (int i = 0; i < b.dict->count; i++)
            keywords[i] = tpl_str(r, b.dict->keys[i]);
        call = (struct tpl_call){.self = b, .keyword_count = b.dict->count, .keywords = keywords,
                                 .keyword_values = b.dict->values, .count = 1, .values = &b};
    }
    return tpl_percent_format(r, format, &call);
}

struct tpl_value tpl_binary(struct tpl_render *r, enum tpl_operator operator_, struct tpl_value a, struct tpl_value b)
{
    static const char *const names[] = {[TPL_ADD] = "+", [TPL_SUBTRACT] = "-", [TPL_MULTIPLY] = "*",
                                        [TPL_DIVIDE] = "/", [TPL_FLOOR_DIVIDE] = "//", [TPL_MODULO] = "%",
                                        [TPL_POWER] = "**"};
    int64_t x, y;
    if (tpl_as_int(a, &x) && tpl_as_int(b, &y))
        return integer_arithmetic(r, operator_, x, y);
    if (tpl_is_number(a) && tpl_is_number(b))
        return float_arithmetic(r, operator_, tpl_as_double(a), tpl_as_double(b));
    if (operator_ == TPL_MODULO && a.kind == TPL_TEXT)
        return percent(r, a.text, b);
    if (operator_ == TPL_ADD && a.kind == TPL_TEXT && b.kind == TPL_TEXT)
        return add_text(r, a.text, b.text);
    if (operator_ == TPL_ADD && a.kind == b.kind && (a.kind == TPL_LIST || a.kind == TPL_TUPLE))
        return add_lists(r, a.kind, a.list, b.list);
    bool a_repeats = a.kind == TPL_TEXT || a.kind == TPL_LIST || a.kind == TPL_TUPLE;
    bool b_repeats = b.kind == TPL_TEXT || b.kind == TPL_LIST || b.kind == TPL_TUPLE;
    if (operator_ == TPL_MULTIPLY && a_repeats && tpl_as_int(b, &y))
        return repeat(r, a, y);
    if (operator_ == TPL_MULTIPLY && b_repeats && tpl_as_int(a, &x))
        return repeat(r, b, x);
    if (operator_ == TPL_ADD && a.kind == TPL_TEXT && b.kind != TPL_UNDEFINED)
        tpl_fail(r, "can only concatenate str (not \"%s\") to str", tpl_type_name(b));
    unsupported(r, names[operator_], a, b);
}

bool tpl_compare_values(struct tpl_render *r, enum tpl_operator operator_, struct tpl_value a, struct tpl_value b)
{
    int order;
    switch (operator_) {
    case TPL_EQ:
        return tpl_equal(r, a, b);
    case TPL_NE:
        return !tpl_equal(r, a, b);
    case TPL_IN:
        return tpl_contains(r, b, a);
    case TPL_NOT_IN:
        return !tpl_contains(r, b, a);
    case TPL_LT:
        return tpl_compare(r, a, b, "<") == -1;
    case TPL_LE:
        order = tpl_compare(r, a, b, "<=");
        return order == -1 || order == 0;
    case TPL_GT:
        return tpl_compare(r, a, b, ">") == 1;
    default:
        order = tpl_compare(r, a, b, ">=");
        return order == 1 || order == 0;
    }
}

static const char *owner_name(struct tpl_value value)
{
    static const char *const names[] = {
        [TPL_NONE] = "None", [TPL_BOOL] = "bool object", [TPL_INT] = "int object", [TPL_FLOAT] = "float object",
        [TPL_TEXT] = "str object", [TPL_LIST] = "list object", [TPL_TUPLE] = "tuple object",
        [TPL_DICT] = "dict object", [TPL_NAMESPACE] = "Namespace object", [TPL_LOOP] = "LoopContext object",
    };
    return value.kind < GD_COUNT(names) && names[value.kind] != NULL ? names[value.kind] : "object";
}

static struct tpl_value macro_attribute(struct tpl_render *r, const struct tpl_macro *macro, const struct tpl_text *name)
{
    const struct tpl_callable *callable = macro->callable;
    if (tpl_text_is(name, "name"))
        return macro->name == NULL ? tpl_none() : tpl_text_value(macro->name);
    if (tpl_text_is(name, "arguments")) {
        struct tpl_list *names = tpl_list_new(r, callable->count);
        for (int i = 0; i < callable->count; i++)
            tpl_list_push(r, names, tpl_text_value(callable->names[i]));
        return tpl_list_value(TPL_TUPLE, names);
    }
    if (tpl_text_is(name, "catch_kwargs"))
        return tpl_bool(callable->wants_kwargs);
    if (tpl_text_is(name, "catch_varargs"))
        return tpl_bool(callable->wants_varargs);
    if (tpl_text_is(name, "caller"))
        return tpl_bool(callable->wants_caller);
    return (struct tpl_value){.kind = TPL_MISSING};
}

/* What getattr() finds, or MISSING. */
static struct tpl_value own_attribute(struct tpl_render *r, struct tpl_value value, const struct tpl_text *name)
{
    if (value.kind == TPL_NAMESPACE) {
        struct tpl_value *found = tpl_dict_find(r, value.dict, tpl_text_value(name));
        return found == NULL ? (struct tpl_value){.kind = TPL_MISSING} : *found;
    }
    if (value.kind == TPL_LOOP) {
        struct tpl_value found = tpl_loop_attribute(r, value.loop, name);
        if (found.kind != TPL_MISSING)
            return found;
    }
    if (value.kind == TPL_MACRO)
        return macro_attribute(r, value.macro, name);
    if (value.kind == TPL_CYCLER && tpl_text_is(name, "current"))
        return value.cycler->items->items[value.cycler->at];
    return tpl_method(r, value, name);
}

struct tpl_value tpl_attribute(struct tpl_render *r, struct tpl_value value, const struct tpl_text *name)
{
    if (value.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, value);
    struct tpl_value found = own_attribute(r, value, name);
    if (found.kind != TPL_MISSING)
        return found;
    if (value.kind == TPL_DICT) {
        struct tpl_value *item = tpl_dict_find(r, value.dict, tpl_text_value(name));
        if (item != NULL)
            return *item;
    }
    return tpl_undefined_name(r, owner_name(value), name);
}

static struct tpl_value text_item(struct tpl_render *r, const struct tpl_text *text, int64_t index)
{
    tpl_charge(r, text->length / 64);
    int64_t count = (int64_t)tpl_count_codepoints(text->data, text->length);
    if (index < 0)
        index += count;
    if (index < 0 || index >= count)
        return (struct tpl_value){.kind = TPL_MISSING};
    size_t begin = tpl_codepoint_offset(text->data, text->length, (size_t)index);
    int32_t codepoint;
    size_t used = tpl_decode(text->data + begin, text->length - begin, &codepoint);
    return tpl_text_value(tpl_slice(r, text, begin, begin + used));
}

/* value[index] of a sequence, or MISSING beyond its ends. */
static struct tpl_value indexed(struct tpl_render *r, struct tpl_value value, int64_t index)
{
    if (value.kind == TPL_TEXT)
        return text_item(r, value.text, index);
    int64_t count = value.kind == TPL_RANGE ? value.range->count : value.list->count;
    if (index < 0)
        index += count;
    if (index < 0 || index >= count)
        return (struct tpl_value){.kind = TPL_MISSING};
    return value.kind == TPL_RANGE ? tpl_range_item(value.range, index) : value.list->items[index];
}

struct tpl_value tpl_item(struct tpl_render *r, struct tpl_value value, struct tpl_value key)
{
    int64_t index;
    if (value.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, value);
    if (value.kind == TPL_DICT && tpl_hashable(key)) {
        struct tpl_value *found = tpl_dict_find(r, value.dict, key);
        if (found != NULL)
            return *found;
    }
    bool sequence = value.kind == TPL_TEXT || value.kind == TPL_LIST || value.kind == TPL_TUPLE ||
                    value.kind == TPL_RANGE;
    if (sequence && tpl_as_int(key, &index)) {
        struct tpl_value found = indexed(r, value, index);
        if (found.kind != TPL_MISSING)
            return found;
    }
    if (key.kind == TPL_TEXT) {
        struct tpl_value found = own_attribute(r, value, key.text);
        if (found.kind != TPL_MISSING)
            return found;
    }
    return tpl_undefined_name(r, owner_name(value), tpl_str(r, key));
}

/* Python's slice.indices(): start and number of items. */
static void slice_range(struct tpl_render *r, const struct tpl_value bounds[3], int64_t length, struct tpl_range *out)
{
    int64_t at[3] = {0, 0, 1};
    for (int i = 0; i < 3; i++) {
        if (bounds[i].kind != TPL_NONE && !tpl_as_int(bounds[i], &at[i]))
            tpl_fail(r, "slice indices must be integers or None, not %s", tpl_type_name(bounds[i]));
    }
    if (at[2] == 0)
        tpl_fail(r, "slice step cannot be zero");
    if (at[2] < -length - 1)
        at[2] = -length - 1;
    if (at[2] > length + 1)
        at[2] = length + 1;
    bool backward = at[2] < 0;
    int64_t low = backward ? -1 : 0, high = backward ? length - 1 : length;
    for (int i = 0; i < 2; i++) {
        if (bounds[i].kind == TPL_NONE) {
            at[i] = (i == 0) == backward ? high : low;
            continue;
        }
        if (at[i] < 0)
            at[i] = at[i] < -length ? low : at[i] + length;
        at[i] = at[i] < low ? low : at[i] > high ? high : at[i];
    }
    int64_t distance = backward ? at[0] - at[1] : at[1] - at[0], step = backward ? -at[2] : at[2];
    *out = (struct tpl_range){.start = at[0], .stop = at[1], .step = at[2],
                              .count = distance <= 0 ? 0 : (distance + step - 1) / step};
}

static struct tpl_value slice_text(struct tpl_render *r, const struct tpl_text *text, const struct tpl_range *range)
{
    tpl_charge(r, text->length / 64);
    if (range->step == 1) {
        size_t begin = tpl_codepoint_offset(text->data, text->length, (size_t)range->start);
        size_t end = begin + tpl_codepoint_offset(text->data + begin, text->length - begin, (size_t)range->count);
        return tpl_text_value(tpl_slice(r, text, begin, end));
    }
    struct tpl_list *characters = tpl_items(r, tpl_text_value(text));
    struct tpl_builder b = {0};
    for (int64_t i = 0; i < range->count; i++)
        tpl_build_text(r, &b, characters->items[range->start + i * range->step].text);
    return tpl_built_value(r, &b);
}

struct tpl_value tpl_slice_value(struct tpl_render *r, struct tpl_value value, const struct tpl_value bounds[3])
{
    struct tpl_range range;
    if (value.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, value);
    bool sequence = value.kind == TPL_TEXT || value.kind == TPL_LIST || value.kind == TPL_TUPLE ||
                    value.kind == TPL_RANGE;
    if (!sequence)
        tpl_fail(r, "'%s' object cannot be sliced", tpl_type_name(value));
    slice_range(r, bounds, tpl_length(r, value), &range);
    if (value.kind == TPL_TEXT)
        return slice_text(r, value.text, &range);
    if (value.kind == TPL_RANGE) {
        struct tpl_range *sliced = tpl_alloc(r, sizeof *sliced);
        *sliced = (struct tpl_range){.start = tpl_range_item(value.range, range.start).integer,
                                     .stop = tpl_range_item(value.range, range.stop).integer,
                                     .step = value.range->step * range.step, .count = range.count};
        return (struct tpl_value){.kind = TPL_RANGE, .range = sliced};
    }
    struct tpl_list *list = tpl_list_new(r, (int)range.count);
    tpl_charge(r, (size_t)range.count / 16);
    for (int64_t i = 0; i < range.count; i++)
        tpl_list_push(r, list, value.list->items[range.start + i * range.step]);
    return tpl_list_value(value.kind, list);
}

static void spread_arguments(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_arguments *arguments,
                             struct tpl_call *call)
{
    struct tpl_list *extra = arguments->spread == NULL ? tpl_list_new(r, 0)
                                                       : tpl_items(r, tpl_eval(r, scope, arguments->spread));
    struct tpl_value named = {.kind = TPL_DICT, .dict = NULL};
    if (arguments->keyword_spread != NULL)
        named = tpl_eval(r, scope, arguments->keyword_spread);
    if (named.kind != TPL_DICT)
        tpl_fail(r, "argument after ** must be a mapping, not %s", tpl_type_name(named));
    int named_count = named.dict == NULL ? 0 : named.dict->count, count = call->count, keyword_count = call->keyword_count;
    struct tpl_value *values = tpl_alloc(r, (size_t)(count + extra->count + 1) * sizeof *values);
    const struct tpl_text **keywords = tpl_alloc(r, (size_t)(keyword_count + named_count + 1) * sizeof *keywords);
    struct tpl_value *keyword_values = tpl_alloc(r, (size_t)(keyword_count + named_count + 1) * sizeof *values);
    for (int i = 0; i < count + extra->count; i++)
        values[i] = i < count ? call->values[i] : extra->items[i - count];
    for (int i = 0; i < keyword_count + named_count; i++) {
        bool own = i < keyword_count;
        struct tpl_value key = own ? tpl_text_value(call->keywords[i]) : named.dict->keys[i - keyword_count];
        if (key.kind != TPL_TEXT)
            tpl_fail(r, "keywords must be strings");
        keywords[i] = key.text;
        keyword_values[i] = own ? call->keyword_values[i] : named.dict->values[i - keyword_count];
    }
    *call = (struct tpl_call){.count = count + extra->count, .values = values, .keywords = keywords,
                              .keyword_values = keyword_values, .keyword_count = keyword_count + named_count};
}

void tpl_eval_arguments(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_arguments *arguments,
                        struct tpl_call *call)
{
    *call = (struct tpl_call){.count = arguments->count, .keyword_count = arguments->keyword_count,
                              .keywords = arguments->keywords};
    int total = arguments->count + arguments->keyword_count;
    if (total > 0)
        call->values = tpl_alloc(r, (size_t)total * sizeof *call->values);
    call->keyword_values = call->values + arguments->count;
    for (int i = 0; i < arguments->count; i++)
        call->values[i] = tpl_eval(r, scope, arguments->values[i]);
    for (int i = 0; i < arguments->keyword_count; i++)
        call->keyword_values[i] = tpl_eval(r, scope, arguments->keyword_values[i]);
    if (arguments->spread != NULL || arguments->keyword_spread != NULL)
        spread_arguments(r, scope, arguments, call);
}

struct tpl_value tpl_call_value(struct tpl_render *r, struct tpl_value callee, const struct tpl_call *call)
{
    struct tpl_call bound = *call;
    switch (callee.kind) {
    case TPL_MACRO:
        return tpl_call_macro(r, callee.macro, call);
    case TPL_FUNCTION:
        return tpl_apply(r, callee.function, call);
    case TPL_METHOD:
        bound.self = callee.bound->self;
        return tpl_apply(r, callee.bound->function, &bound);
    case TPL_LOOP:
        return tpl_call_loop(r, callee.loop, call);
    case TPL_JOINER: {
        bool used = callee.joiner->used;
        callee.joiner->used = true;
        return used ? tpl_text_value(callee.joiner->separator) : tpl_literal(r, "");
    }
    case TPL_UNDEFINED:
        tpl_fail_undefined(r, callee);
    default:
        tpl_fail(r, "'%s' object is not callable", tpl_type_name(callee));
    }
}

static struct tpl_value apply_named(struct tpl_render *r, struct tpl_scope *scope, struct tpl_value value,
                                    const struct tpl_suffix *suffix)
{
    struct tpl_call call;
    if (suffix->function == NULL)
        tpl_fail(r, "no %s named '%.*s'", suffix->kind == TPL_FILTER ? "filter" : "test", (int)suffix->name->length,
                 suffix->name->data);
    tpl_eval_arguments(r, scope, &suffix->arguments, &call);
    call.self = value;
    r->line = suffix->line;
    struct tpl_value result = tpl_apply(r, suffix->function, &call);
    if (suffix->kind == TPL_TEST && suffix->negated)
        return tpl_bool(!tpl_truthy(result));
    return result;
}

static struct tpl_value eval_slice(struct tpl_render *r, struct tpl_scope *scope, struct tpl_value value,
                                   const struct tpl_suffix *suffix)
{
    struct tpl_value bounds[3];
    for (int i = 0; i < 3; i++)
        bounds[i] = suffix->index[i] == NULL ? tpl_none() : tpl_eval(r, scope, suffix->index[i]);
    return tpl_slice_value(r, value, bounds);
}

struct tpl_value tpl_eval_suffixes(struct tpl_render *r, struct tpl_scope *scope, struct tpl_value value,
                                   const struct tpl_suffix *suffixes, int count)
{
    for (int i = 0; i < count; i++) {
        const struct tpl_suffix *suffix = &suffixes[i];
        struct tpl_call call;
        tpl_charge(r, 1);
        r->line = suffix->line;
        switch (suffix->kind) {
        case TPL_ATTRIBUTE:
            value = tpl_attribute(r, value, suffix->name);
            break;
        case TPL_ITEM:
            value = tpl_item(r, value, tpl_eval(r, scope, suffix->index[0]));
            break;
        case TPL_SLICE:
            value = eval_slice(r, scope, value, suffix);
            break;
        case TPL_CALL:
            tpl_eval_arguments(r, scope, &suffix->arguments, &call);
            r->line = suffix->line;
            value = tpl_call_value(r, value, &call);
            break;
        default:
            value = apply_named(r, scope, value, suffix);
        }
    }
    return value;
}

static struct tpl_value eval_collection(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_expr *expr)
{
    if (expr->kind == TPL_EXPR_DICT) {
        struct tpl_dict *dict = tpl_dict_new(r);
        for (int i = 0; i < expr->count; i += 2) {
            struct tpl_value key = tpl_eval(r, scope, expr->items[i]);
            tpl_dict_set(r, dict, key, tpl_eval(r, scope, expr->items[i + 1]));
        }
        return (struct tpl_value){.kind = TPL_DICT, .dict = dict};
    }
    struct tpl_list *list = tpl_list_new(r, expr->count);
    for (int i = 0; i < expr->count; i++)
        tpl_list_push(r, list, tpl_eval(r, scope, expr->items[i]));
    return tpl_list_value(expr->kind == TPL_EXPR_LIST ? TPL_LIST : TPL_TUPLE, list);
}

static struct tpl_value eval_chain(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_expr *expr)
{
    struct tpl_value left = tpl_eval(r, scope, expr->items[0]);
    for (int i = 1; i < expr->count; i++) {
        struct tpl_value right = tpl_eval(r, scope, expr->items[i]);
        enum tpl_operator operator_ = expr->operators[i - 1];
        r->line = expr->items[i]->line;
        if (expr->kind == TPL_EXPR_ARITHMETIC) {
            left = tpl_binary(r, operator_, left, right);
            continue;
        }
        if (!tpl_compare_values(r, operator_, left, right))
            return tpl_bool(false);
        left = right;
    }
    return expr->kind == TPL_EXPR_ARITHMETIC ? left : tpl_bool(true);
}

/* and, or: the operand that decides. */
static struct tpl_value eval_logic(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_expr *expr)
{
    struct tpl_value value = tpl_none();
    for (int i = 0; i < expr->count; i++) {
        value = tpl_eval(r, scope, expr->items[i]);
        if (tpl_truthy(value) == (expr->kind == TPL_EXPR_OR))
            break;
    }
    return value;
}

static struct tpl_value eval_concat(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_expr *expr)
{
    struct tpl_builder text = {0};
    for (int i = 0; i < expr->count; i++)
        tpl_build_str(r, &text, tpl_eval(r, scope, expr->items[i]));
    return tpl_built_value(r, &text);
}

static struct tpl_value eval_sign(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_expr *expr)
{
    struct tpl_value value = tpl_eval(r, scope, expr->items[0]);
    bool minus = expr->kind == TPL_EXPR_NEGATE;
    int64_t integer;
    if (tpl_as_int(value, &integer)) {
        if (minus && integer == INT64_MIN)
            overflow(r);
        return tpl_int(minus ? -integer : integer);
    }
    if (value.kind == TPL_FLOAT)
        return tpl_float(minus ? -value.number : value.number);
    if (value.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, value);
    tpl_fail(r, "bad operand type for unary %c: '%s'", minus ? '-' : '+', tpl_type_name(value));
}

static struct tpl_value eval_condition(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_expr *expr)
{
    if (tpl_truthy(tpl_eval(r, scope, expr->items[0])))
        return tpl_eval(r, scope, expr->items[1]);
    if (expr->items[2] != NULL)
        return tpl_eval(r, scope, expr->items[2]);
    return tpl_undefined_hint(r, "the inline if-expression evaluated to false and no else section was defined");
}

static struct tpl_value eval_kind(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_expr *expr)
{
    switch (expr->kind) {
    case TPL_EXPR_LIST:
    case TPL_EXPR_TUPLE:
    case TPL_EXPR_DICT:
        return eval_collection(r, scope, expr);
    case TPL_EXPR_NOT:
        return tpl_bool(!tpl_truthy(tpl_eval(r, scope, expr->items[0])));
    case TPL_EXPR_NEGATE:
    case TPL_EXPR_PLUS:
        return eval_sign(r, scope, expr);
    case TPL_EXPR_AND:
    case TPL_EXPR_OR:
        return eval_logic(r, scope, expr);
    case TPL_EXPR_CONCAT:
        return eval_concat(r, scope, expr);
    case TPL_EXPR_ARITHMETIC:
    case TPL_EXPR_COMPARE:
        return eval_chain(r, scope, expr);
    case TPL_EXPR_CONDITION:
        return eval_condition(r, scope, expr);
    default:
        return tpl_eval_suffixes(r, scope, tpl_eval(r, scope, expr->items[0]), expr->suffixes, expr->count);
    }
}

struct tpl_value tpl_eval(struct tpl_render *r, struct tpl_scope *scope, const struct tpl_expr *expr)
{
    if (expr->kind == TPL_EXPR_CONST) {
        tpl_charge(r, 1);
        return expr->constant;
    }
    tpl_enter(r);
    r->line = expr->line;
    struct tpl_value value = expr->kind == TPL_EXPR_NAME ? tpl_lookup(r, scope, expr->symbol, expr->constant.text)
                                                         : eval_kind(r, scope, expr);
    tpl_leave(r);
    return value;
}
