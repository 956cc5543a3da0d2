/* Binding of arguments, the global functions and the tests. */
#include "engine/text/template_tree.h"
#include "engine/text/template_unicode.h"
#include <math.h>
#include <string.h>
#include <time.h>

#define PARAMETERS_MAX 8

const struct tpl_function *tpl_find_in(const struct tpl_function *table, size_t count, const char *name, size_t length)
{
    for (size_t i = 0; i < count; i++) {
        if (strlen(table[i].name) == length && memcmp(table[i].name, name, length) == 0)
            return &table[i];
    }
    return NULL;
}

struct parameter {
    const char *name;
    size_t length;
    bool required;
};

static int split_parameters(const char *text, struct parameter parameters[PARAMETERS_MAX])
{
    int count = 0;
    bool required = true;
    while (*text != '\0') {
        if (*text == '|')
            required = false;
        if (*text == ' ' || *text == '|') {
            text++;
            continue;
        }
        size_t length = strcspn(text, " |");
        parameters[count++] = (struct parameter){.name = text, .length = length, .required = required};
        text += length;
    }
    return count;
}

struct tpl_value tpl_apply(struct tpl_render *r, const struct tpl_function *function, const struct tpl_call *call)
{
    struct parameter parameters[PARAMETERS_MAX];
    struct tpl_value values[PARAMETERS_MAX];
    if (function->parameters == NULL)
        return function->run(r, call);
    bool keywords = function->parameters[0] != '/';
    int count = split_parameters(function->parameters + !keywords, parameters);
    if (call->count > count)
        tpl_fail(r, "%s() takes at most %d argument(s), %d given", function->name, count, call->count);
    memset(values, 0, sizeof values);
    for (int i = 0; i < call->count; i++)
        values[i] = call->values[i];
    for (int i = 0; i < call->keyword_count; i++) {
        const struct tpl_text *keyword = call->keywords[i];
        int at = keywords ? 0 : count;
        while (at < count && (parameters[at].length != keyword->length ||
                              memcmp(parameters[at].name, keyword->data, keyword->length) != 0))
            at++;
        if (at == count || values[at].kind != TPL_MISSING)
            tpl_fail(r, "%s() got an unexpected keyword argument '%.*s'", function->name, (int)keyword->length,
                     keyword->data);
        values[at] = call->keyword_values[i];
    }
    for (int i = 0; i < count; i++) {
        if (values[i].kind == TPL_MISSING && parameters[i].required)
            tpl_fail(r, "%s() missing required argument '%.*s'", function->name, (int)parameters[i].length,
                     parameters[i].name);
    }
    struct tpl_call bound = {.self = call->self, .count = count, .values = values};
    return function->run(r, &bound);
}

static int64_t integer_argument(struct tpl_render *r, struct tpl_value value)
{
    int64_t integer;
    if (value.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, value);
    if (!tpl_as_int(value, &integer))
        tpl_fail(r, "'%s' object cannot be interpreted as an integer", tpl_type_name(value));
    return integer;
}

static struct tpl_value global_range(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_range *range = tpl_alloc(r, sizeof *range);
    if (call->count < 1 || call->count > 3 || call->keyword_count > 0)
        tpl_fail(r, "range() takes one to three integers");
    int64_t at[3] = {0, 0, 1};
    for (int i = 0; i < call->count; i++)
        at[call->count == 1 ? 1 : i] = integer_argument(r, call->values[i]);
    if (at[2] == 0)
        tpl_fail(r, "range() arg 3 must not be zero");
    __int128 distance = at[2] > 0 ? (__int128)at[1] - at[0] : (__int128)at[0] - at[1];
    __int128 step = at[2] > 0 ? at[2] : -(__int128)at[2], count = distance <= 0 ? 0 : (distance + step - 1) / step;
    if (count > TPL_RANGE_MAX)
        tpl_fail(r, "range too big: more than %d items", TPL_RANGE_MAX);
    *range = (struct tpl_range){.start = at[0], .stop = at[1], .step = at[2], .count = (int64_t)count};
    return (struct tpl_value){.kind = TPL_RANGE, .range = range};
}

/* dict(mapping or pairs, key=value ...) */
static struct tpl_dict *make_dict(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_dict *dict = tpl_dict_new(r);
    if (call->count > 1)
        tpl_fail(r, "dict() takes at most one positional argument");
    if (call->count == 1 && call->values[0].kind == TPL_DICT) {
        const struct tpl_dict *from = call->values[0].dict;
        tpl_charge(r, (size_t)from->count);
        for (int i = 0; i < from->count; i++)
            tpl_dict_push(r, dict, from->keys[i], from->values[i]);
    } else if (call->count == 1) {
        struct tpl_list *pairs = tpl_items(r, call->values[0]);
        for (int i = 0; i < pairs->count; i++) {
            struct tpl_list *pair = tpl_items(r, pairs->items[i]);
            if (pair->count != 2)
                tpl_fail(r, "dict() needs pairs, item %d has %d values", i, pair->count);
            tpl_dict_set(r, dict, pair->items[0], pair->items[1]);
        }
    }
    for (int i = 0; i < call->keyword_count; i++)
        tpl_dict_set(r, dict, tpl_text_value(call->keywords[i]), call->keyword_values[i]);
    return dict;
}

static struct tpl_value global_dict(struct tpl_render *r, const struct tpl_call *call)
{
    return (struct tpl_value){.kind = TPL_DICT, .dict = make_dict(r, call)};
}

static struct tpl_value global_namespace(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_dict *dict = make_dict(r, call);
    for (int i = 0; i < dict->count; i++) {
        if (dict->keys[i].kind == TPL_TEXT && dict->keys[i].text->length > 0 && dict->keys[i].text->data[0] == '_')
            tpl_fail(r, "a namespace attribute cannot begin with '_'");
    }
    return (struct tpl_value){.kind = TPL_NAMESPACE, .dict = dict};
}

static struct tpl_value global_raise_exception(struct tpl_render *r, const struct tpl_call *call)
{
    tpl_raise(r, tpl_str(r, call->values[0]));
}

static struct tpl_value global_strftime_now(struct tpl_render *r, const struct tpl_call *call)
{
    const struct tpl_text *format = tpl_str(r, call->values[0]);
    char pattern[256], out[1024];
    struct tm local;
    time_t now = r->now != 0 ? (time_t)r->now : time(NULL);
    if (format->length >= sizeof pattern || localtime_r(&now, &local) == NULL)
        tpl_fail(r, "strftime_now: a format of %zu bytes, at most %zu are allowed", format->length, sizeof pattern - 1);
    memcpy(pattern, format->data, format->length);
    pattern[format->length] = '\0';
    size_t length = strftime(out, sizeof out, pattern, &local);
    char *copy = tpl_alloc(r, length + 1);
    memcpy(copy, out, length);
    return tpl_text_of(r, copy, length, tpl_label_at(format, 0));
}

static struct tpl_value global_joiner(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_joiner *joiner = tpl_alloc(r, sizeof *joiner);
    joiner->separator = call->values[0].kind == TPL_MISSING ? tpl_literal(r, ", ").text : tpl_str(r, call->values[0]);
    return (struct tpl_value){.kind = TPL_JOINER, .joiner = joiner};
}

static struct tpl_value global_cycler(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_cycler *cycler = tpl_alloc(r, sizeof *cycler);
    if (call->count == 0 || call->keyword_count > 0)
        tpl_fail(r, "cycler() needs at least one item");
    cycler->items = tpl_list_new(r, call->count);
    for (int i = 0; i < call->count; i++)
        tpl_list_push(r, cycler->items, call->values[i]);
    return (struct tpl_value){.kind = TPL_CYCLER, .cycler = cycler};
}

const struct tpl_function *tpl_find_global(const char *name)
{
    static const struct tpl_function globals[] = {
        {"cycler", NULL, global_cycler},
        {"dict", NULL, global_dict},
        {"joiner", "|sep", global_joiner},
        {"namespace", NULL, global_namespace},
        {"raise_exception", "message", global_raise_exception},
        {"range", NULL, global_range},
        {"strftime_now", "format", global_strftime_now},
    };
    return tpl_find_in(globals, GD_COUNT(globals), name, strlen(name));
}

static struct tpl_value test_defined(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(call->self.kind != TPL_UNDEFINED);
}

static struct tpl_value test_undefined(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(call->self.kind == TPL_UNDEFINED);
}

static struct tpl_value test_none(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(call->self.kind == TPL_NONE);
}

static struct tpl_value test_boolean(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(call->self.kind == TPL_BOOL);
}

static struct tpl_value test_true(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(call->self.kind == TPL_BOOL && call->self.boolean);
}

static struct tpl_value test_false(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(call->self.kind == TPL_BOOL && !call->self.boolean);
}

static struct tpl_value test_integer(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(call->self.kind == TPL_INT);
}

static struct tpl_value test_float(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(call->self.kind == TPL_FLOAT);
}

static struct tpl_value test_number(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(tpl_is_number(call->self));
}

static struct tpl_value test_string(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(call->self.kind == TPL_TEXT);
}

static struct tpl_value test_mapping(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(call->self.kind == TPL_DICT);
}

static struct tpl_value test_sequence(struct tpl_render *r, const struct tpl_call *call)
{
    enum tpl_kind kind = call->self.kind;
    return tpl_bool(kind == TPL_TEXT || kind == TPL_LIST || kind == TPL_TUPLE || kind == TPL_DICT ||
                    kind == TPL_RANGE || kind == TPL_UNDEFINED);
}

static struct tpl_value test_iterable(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(tpl_iterable(call->self));
}

static struct tpl_value test_callable(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(tpl_callable(call->self));
}

static struct tpl_value test_escaped(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(call->self.kind == TPL_TEXT && call->self.text->markup);
}

/* `is` of Python: the singletons, else the same value of the same kind. */
static struct tpl_value test_sameas(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_value a = call->self, b = call->values[0];
    if (a.kind != b.kind)
        return tpl_bool(false);
    if (a.kind == TPL_LIST || a.kind == TPL_TUPLE || a.kind == TPL_DICT || a.kind == TPL_NAMESPACE)
        return tpl_bool(a.list == b.list);
    return tpl_bool(tpl_equal(r, a, b));
}

static struct tpl_value test_odd(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(tpl_equal(r, tpl_binary(r, TPL_MODULO, call->self, tpl_int(2)), tpl_int(1)));
}

static struct tpl_value test_even(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(tpl_equal(r, tpl_binary(r, TPL_MODULO, call->self, tpl_int(2)), tpl_int(0)));
}

static struct tpl_value test_divisibleby(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(tpl_equal(r, tpl_binary(r, TPL_MODULO, call->self, call->values[0]), tpl_int(0)));
}

/* All cased characters of that case, and at least one. */
static bool all_cased(struct tpl_render *r, const struct tpl_text *text, bool upper)
{
    bool found = false;
    tpl_charge(r, text->length / 16);
    for (size_t at = 0; at < text->length;) {
        int32_t c;
        at += tpl_decode(text->data + at, text->length - at, &c);
        if (tpl_is_title(c) || (upper ? tpl_is_lower(c) : tpl_is_upper(c)))
            return false;
        found |= upper ? tpl_is_upper(c) : tpl_is_lower(c);
    }
    return found;
}

static struct tpl_value test_lower(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(all_cased(r, tpl_str(r, call->self), false));
}

static struct tpl_value test_upper(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(all_cased(r, tpl_str(r, call->self), true));
}

static struct tpl_value test_in(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_bool(tpl_contains(r, call->values[0], call->self));
}

static struct tpl_value test_filter(struct tpl_render *r, const struct tpl_call *call)
{
    const struct tpl_text *name = tpl_str(r, call->self);
    return tpl_bool(tpl_find_filter(name->data, name->length) != NULL);
}

static struct tpl_value test_test(struct tpl_render *r, const struct tpl_call *call)
{
    const struct tpl_text *name = tpl_str(r, call->self);
    return tpl_bool(tpl_find_test(name->data, name->length) != NULL);
}

#define COMPARISON(name, operator_)                                                                   \
    static struct tpl_value test_##name(struct tpl_render *r, const struct tpl_call *call)            \
    {                                                                                                 \
        return tpl_bool(tpl_compare_values(r, operator_, call->self, call->values[0]));               \
    }
COMPARISON(eq, TPL_EQ)
COMPARISON(ne, TPL_NE)
COMPARISON(lt, TPL_LT)
COMPARISON(le, TPL_LE)
COMPARISON(gt, TPL_GT)
COMPARISON(ge, TPL_GE)
#undef COMPARISON

const struct tpl_function *tpl_find_test(const char *name, size_t length)
{
    static const struct tpl_function tests[] = {
        {"!=", "other", test_ne},          {"<", "other", test_lt},         {"<=", "other", test_le},
        {"==", "other", test_eq},          {">", "other", test_gt},         {">=", "other", test_ge},
        {"boolean", "", test_boolean},     {"callable", "", test_callable}, {"defined", "", test_defined},
        {"divisibleby", "num", test_divisibleby},                           {"eq", "other", test_eq},
        {"equalto", "other", test_eq},     {"escaped", "", test_escaped},   {"even", "", test_even},
        {"false", "", test_false},         {"filter", "", test_filter},     {"float", "", test_float},
        {"ge", "other", test_ge},          {"greaterthan", "other", test_gt},
        {"gt", "other", test_gt},          {"in", "seq", test_in},          {"integer", "", test_integer},
        {"iterable", "", test_iterable},   {"le", "other", test_le},        {"lessthan", "other", test_lt},
        {"lower", "", test_lower},         {"lt", "other", test_lt},        {"mapping", "", test_mapping},
        {"ne", "other", test_ne},          {"none", "", test_none},         {"number", "", test_number},
        {"odd", "", test_odd},             {"sameas", "other", test_sameas},
        {"sequence", "", test_sequence},   {"string", "", test_string},     {"test", "", test_test},
        {"true", "", test_true},           {"undefined", "", test_undefined},
        {"upper", "", test_upper},
    };
    return tpl_find_in(tests, GD_COUNT(tests), name, length);
}
