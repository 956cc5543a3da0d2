#include "engine/text/template_value.h"
#include "engine/text/template_tree.h"
#include "engine/text/template_unicode.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

_Noreturn void tpl_fail(struct tpl_render *r, const char *format, ...)
{
    char message[GD_ERROR_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    (void)gd_fail(r->err, GD_INVALID, "%s, line %d: %s", r->tmpl->plain ? "template" : "chat template", r->line, message);
    longjmp(r->failed, 1);
}

_Noreturn void tpl_raise(struct tpl_render *r, const struct tpl_text *message)
{
    char copy[GD_ERROR_MESSAGE_BYTES - 64];
    size_t length = message->length < sizeof copy - 1 ? message->length : sizeof copy - 1;
    for (size_t i = 0; i < length; i++)
        copy[i] = (unsigned char)message->data[i] < 0x20 ? ' ' : message->data[i];
    copy[length] = '\0';
    (void)gd_fail_param(r->err, GD_INVALID, "messages", "the chat template refuses this conversation: %s (its line %d)",
                        copy, r->line);
    longjmp(r->failed, 1);
}

void tpl_charge(struct tpl_render *r, size_t steps)
{
    if (steps > TPL_STEPS_MAX || (r->steps += (int64_t)steps) > TPL_STEPS_MAX)
        tpl_fail(r, "the template needs more than %d steps for this conversation", TPL_STEPS_MAX);
}

void *tpl_alloc(struct tpl_render *r, size_t size_bytes)
{
    if (size_bytes > TPL_MEMORY_BYTES_MAX || r->allocated_bytes + size_bytes > TPL_MEMORY_BYTES_MAX)
        tpl_fail(r, "the template needs more than %u MiB of memory for this conversation", TPL_MEMORY_BYTES_MAX >> 20);
    r->allocated_bytes += size_bytes + 16;
    return gd_arena_alloc(&r->arena, size_bytes);
}

void tpl_enter(struct tpl_render *r)
{
    tpl_charge(r, 1);
    if (++r->depth > TPL_EVAL_DEPTH_MAX)
        tpl_fail(r, "statements, expressions and calls are nested more than %d deep", TPL_EVAL_DEPTH_MAX);
}

void tpl_leave(struct tpl_render *r)
{
    r->depth--;
}

struct tpl_value tpl_none(void)
{
    return (struct tpl_value){.kind = TPL_NONE};
}

struct tpl_value tpl_bool(bool boolean)
{
    return (struct tpl_value){.kind = TPL_BOOL, .boolean = boolean};
}

struct tpl_value tpl_int(int64_t integer)
{
    return (struct tpl_value){.kind = TPL_INT, .integer = integer};
}

struct tpl_value tpl_float(double number)
{
    return (struct tpl_value){.kind = TPL_FLOAT, .number = number};
}

struct tpl_value tpl_text_value(const struct tpl_text *text)
{
    return (struct tpl_value){.kind = TPL_TEXT, .text = text};
}

struct tpl_value tpl_undefined_hint(struct tpl_render *r, const char *hint)
{
    struct tpl_undefined *undefined = tpl_alloc(r, sizeof *undefined);
    undefined->hint = hint;
    return (struct tpl_value){.kind = TPL_UNDEFINED, .undefined = undefined};
}

struct tpl_value tpl_undefined_name(struct tpl_render *r, const char *owner, const struct tpl_text *name)
{
    struct tpl_undefined *undefined = tpl_alloc(r, sizeof *undefined);
    undefined->owner = owner;
    undefined->name = name;
    return (struct tpl_value){.kind = TPL_UNDEFINED, .undefined = undefined};
}

static const struct tpl_text *text_new(struct tpl_render *r, const char *data, size_t length, uint32_t label)
{
    struct tpl_text *text = tpl_alloc(r, sizeof *text);
    text->data = data;
    text->length = length;
    text->label = label;
    return text;
}

struct tpl_value tpl_text_of(struct tpl_render *r, const char *data, size_t length, uint32_t label)
{
    return tpl_text_value(text_new(r, data, length, label));
}

struct tpl_value tpl_literal(struct tpl_render *r, const char *text)
{
    return tpl_text_of(r, text, strlen(text), 0);
}

struct tpl_list *tpl_list_new(struct tpl_render *r, int capacity)
{
    struct tpl_list *list = tpl_alloc(r, sizeof *list);
    if (capacity > 0)
        list->items = tpl_alloc(r, (size_t)capacity * sizeof *list->items);
    list->capacity = capacity;
    return list;
}

void tpl_list_push(struct tpl_render *r, struct tpl_list *list, struct tpl_value value)
{
    if (list->count == list->capacity) {
        int capacity = list->capacity < 4 ? 4 : list->capacity * 2;
        struct tpl_value *items = tpl_alloc(r, (size_t)capacity * sizeof *items);
        if (list->count > 0)
            memcpy(items, list->items, (size_t)list->count * sizeof *items);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = value;
}

struct tpl_value tpl_list_value(enum tpl_kind kind, struct tpl_list *list)
{
    return (struct tpl_value){.kind = kind, .list = list};
}

struct tpl_dict *tpl_dict_new(struct tpl_render *r)
{
    return tpl_alloc(r, sizeof(struct tpl_dict));
}

struct tpl_value *tpl_dict_find(struct tpl_render *r, const struct tpl_dict *dict, struct tpl_value key)
{
    if (key.kind == TPL_TEXT)
        return tpl_dict_find_text(r, dict, key.text->data, key.text->length);
    tpl_charge(r, (size_t)dict->count / 4);
    for (int i = 0; i < dict->count; i++) {
        if (tpl_equal(r, dict->keys[i], key))
            return &dict->values[i];
    }
    return NULL;
}

struct tpl_value *tpl_dict_find_text(struct tpl_render *r, const struct tpl_dict *dict, const char *key, size_t length)
{
    tpl_charge(r, (size_t)dict->count / 8);
    for (int i = 0; i < dict->count; i++) {
        struct tpl_value candidate = dict->keys[i];
        if (candidate.kind == TPL_TEXT && candidate.text->length == length &&
            memcmp(candidate.text->data, key, length) == 0)
            return &dict->values[i];
    }
    return NULL;
}

void tpl_dict_push(struct tpl_render *r, struct tpl_dict *dict, struct tpl_value key, struct tpl_value value)
{
    if (dict->count == dict->capacity) {
        int capacity = dict->capacity < 4 ? 4 : dict->capacity * 2;
        struct tpl_value *keys = tpl_alloc(r, 2 * (size_t)capacity * sizeof *keys);
        if (dict->count > 0) {
            memcpy(keys, dict->keys, (size_t)dict->count * sizeof *keys);
            memcpy(keys + capacity, dict->values, (size_t)dict->count * sizeof *keys);
        }
        dict->keys = keys;
        dict->values = keys + capacity;
        dict->capacity = capacity;
    }
    dict->keys[dict->count] = key;
    dict->values[dict->count++] = value;
}

void tpl_dict_set(struct tpl_render *r, struct tpl_dict *dict, struct tpl_value key, struct tpl_value value)
{
    if (!tpl_hashable(key))
        tpl_fail(r, "unhashable type: '%s' as a dict key", tpl_type_name(key));
    struct tpl_value *slot = tpl_dict_find(r, dict, key);
    if (slot != NULL)
        *slot = value;
    else
        tpl_dict_push(r, dict, key, value);
}

static void reserve(struct tpl_render *r, struct tpl_builder *b, size_t length)
{
    if (length > TPL_TEXT_BYTES_MAX || b->length + length > TPL_TEXT_BYTES_MAX)
        tpl_fail(r, "the output or a string grows beyond %u MiB", TPL_TEXT_BYTES_MAX >> 20);
    if (b->length + length <= b->capacity)
        return;
    size_t capacity = b->capacity < 64 ? 64 : b->capacity * 2;
    while (capacity < b->length + length)
        capacity *= 2;
    char *data = tpl_alloc(r, capacity);
    if (b->length > 0)
        memcpy(data, b->data, b->length);
    b->data = data;
    b->capacity = capacity;
}

static void push_run(struct tpl_render *r, struct tpl_builder *b, uint32_t end, uint32_t label)
{
    if (b->run_count > 0 && b->runs[b->run_count - 1].label == label) {
        b->runs[b->run_count - 1].end = end;
        return;
    }
    if (b->run_count == b->run_capacity) {
        int capacity = b->run_capacity < 4 ? 4 : b->run_capacity * 2;
        struct tpl_run *runs = tpl_alloc(r, (size_t)capacity * sizeof *runs);
        if (b->run_count > 0)
            memcpy(runs, b->runs, (size_t)b->run_count * sizeof *runs);
        b->runs = runs;
        b->run_capacity = capacity;
    }
    b->runs[b->run_count++] = (struct tpl_run){.end = end, .label = label};
}

void tpl_build(struct tpl_render *r, struct tpl_builder *b, const char *data, size_t length, uint32_t label)
{
    if (length == 0)
        return;
    reserve(r, b, length);
    tpl_charge(r, length / 64);
    memcpy(b->data + b->length, data, length);
    b->length += length;
    push_run(r, b, (uint32_t)b->length, label);
}

void tpl_build_literal(struct tpl_render *r, struct tpl_builder *b, const char *text)
{
    tpl_build(r, b, text, strlen(text), 0);
}

/* The first run that ends after `offset`. */
static int run_at(const struct tpl_text *text, size_t offset)
{
    int low = 0, high = text->run_count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (text->runs[middle].end <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint32_t tpl_label_at(const struct tpl_text *text, size_t offset)
{
    if (text->run_count == 0)
        return text->label;
    int run = run_at(text, offset);
    return run < text->run_count ? text->runs[run].label : 0;
}

void tpl_build_slice(struct tpl_render *r, struct tpl_builder *b, const struct tpl_text *text, size_t begin, size_t end)
{
    if (text->run_count == 0) {
        tpl_build(r, b, text->data + begin, end - begin, text->label);
        return;
    }
    for (int run = run_at(text, begin); begin < end; run++) {
        size_t stop = text->runs[run].end < end ? text->runs[run].end : end;
        tpl_build(r, b, text->data + begin, stop - begin, text->runs[run].label);
        begin = stop;
    }
}

void tpl_build_text(struct tpl_render *r, struct tpl_builder *b, const struct tpl_text *text)
{
    tpl_build_slice(r, b, text, 0, text->length);
}

const struct tpl_text *tpl_built(struct tpl_render *r, const struct tpl_builder *b)
{
    struct tpl_text *text = tpl_alloc(r, sizeof *text);
    text->data = b->data == NULL ? "" : b->data;
    text->length = b->length;
    if (b->run_count == 1) {
        text->label = b->runs[0].label;
    } else {
        text->runs = b->runs;
        text->run_count = b->run_count;
    }
    return text;
}

struct tpl_value tpl_built_value(struct tpl_render *r, const struct tpl_builder *b)
{
    return tpl_text_value(tpl_built(r, b));
}

const struct tpl_text *tpl_slice(struct tpl_render *r, const struct tpl_text *text, size_t begin, size_t end)
{
    if (begin == 0 && end == text->length)
        return text;
    if (begin >= end)
        return text_new(r, "", 0, 0);
    int first = text->run_count > 0 ? run_at(text, begin) : 0;
    if (text->run_count == 0 || text->runs[first].end >= end)
        return text_new(r, text->data + begin, end - begin,
                        text->run_count == 0 ? text->label : text->runs[first].label);
    int last = run_at(text, end - 1);
    struct tpl_run *runs = tpl_alloc(r, (size_t)(last - first + 1) * sizeof *runs);
    for (int i = first; i <= last; i++) {
        size_t stop = text->runs[i].end < end ? text->runs[i].end : end;
        runs[i - first] = (struct tpl_run){.end = (uint32_t)(stop - begin), .label = text->runs[i].label};
    }
    struct tpl_text *slice = tpl_alloc(r, sizeof *slice);
    *slice = (struct tpl_text){.data = text->data + begin, .length = end - begin, .runs = runs,
                               .run_count = last - first + 1, .markup = text->markup};
    return slice;
}

bool tpl_text_is(const struct tpl_text *text, const char *literal)
{
    return strlen(literal) == text->length && memcmp(text->data, literal, text->length) == 0;
}

const char *tpl_type_name(struct tpl_value value)
{
    static const char *const names[] = {
        [TPL_MISSING] = "nothing", [TPL_UNDEFINED] = "Undefined", [TPL_NONE] = "NoneType", [TPL_BOOL] = "bool",
        [TPL_INT] = "int", [TPL_FLOAT] = "float", [TPL_TEXT] = "str", [TPL_LIST] = "list", [TPL_TUPLE] = "tuple",
        [TPL_DICT] = "dict", [TPL_RANGE] = "range", [TPL_VIEW] = "dict view", [TPL_ITERATOR] = "generator",
        [TPL_NAMESPACE] = "Namespace", [TPL_MACRO] = "Macro", [TPL_FUNCTION] = "function", [TPL_METHOD] = "method",
        [TPL_LOOP] = "LoopContext", [TPL_JOINER] = "Joiner", [TPL_CYCLER] = "Cycler",
    };
    return names[value.kind];
}

bool tpl_truthy(struct tpl_value value)
{
    switch (value.kind) {
    case TPL_MISSING:
    case TPL_UNDEFINED:
    case TPL_NONE:
        return false;
    case TPL_BOOL:
        return value.boolean;
    case TPL_INT:
        return value.integer != 0;
    case TPL_FLOAT:
        return value.number != 0;
    case TPL_TEXT:
        return value.text->length > 0;
    case TPL_LIST:
    case TPL_TUPLE:
        return value.list->count > 0;
    case TPL_DICT:
        return value.dict->count > 0;
    case TPL_RANGE:
        return value.range->count > 0;
    case TPL_VIEW:
        return value.view->dict->count > 0;
    default:
        return true;
    }
}

bool tpl_is_number(struct tpl_value value)
{
    return value.kind == TPL_BOOL || value.kind == TPL_INT || value.kind == TPL_FLOAT;
}

bool tpl_as_int(struct tpl_value value, int64_t *out)
{
    if (value.kind == TPL_INT)
        *out = value.integer;
    else if (value.kind == TPL_BOOL)
        *out = value.boolean;
    else
        return false;
    return true;
}

double tpl_as_double(struct tpl_value value)
{
    return value.kind == TPL_FLOAT ? value.number : value.kind == TPL_INT ? (double)value.integer : value.boolean;
}

bool tpl_hashable(struct tpl_value value)
{
    if (value.kind == TPL_TUPLE) {
        for (int i = 0; i < value.list->count; i++) {
            if (value.list->items[i].kind == TPL_TUPLE || !tpl_hashable(value.list->items[i]))
                return false;
        }
        return true;
    }
    return value.kind != TPL_LIST && value.kind != TPL_DICT;
}

bool tpl_callable(struct tpl_value value)
{
    return value.kind == TPL_MACRO || value.kind == TPL_FUNCTION || value.kind == TPL_METHOD ||
           value.kind == TPL_LOOP || value.kind == TPL_JOINER || value.kind == TPL_UNDEFINED;
}

_Noreturn void tpl_fail_undefined(struct tpl_render *r, struct tpl_value undefined)
{
    const struct tpl_undefined *u = undefined.undefined;
    if (u->hint != NULL)
        tpl_fail(r, "%s", u->hint);
    int length = (int)(u->name->length < 200 ? u->name->length : 200);
    if (u->owner == NULL)
        tpl_fail(r, "'%.*s' is undefined", length, u->name->data);
    tpl_fail(r, "'%s' has no attribute '%.*s'", u->owner, length, u->name->data);
}

static int compare_numbers(struct tpl_value a, struct tpl_value b, bool *unordered)
{
    int64_t x, y;
    *unordered = false;
    if (tpl_as_int(a, &x) && tpl_as_int(b, &y))
        return x < y ? -1 : x > y;
    double p = tpl_as_double(a), q = tpl_as_double(b);
    *unordered = isnan(p) || isnan(q);
    return p < q ? -1 : p > q;
}

static int compare_text(const struct tpl_text *a, const struct tpl_text *b)
{
    size_t common = a->length < b->length ? a->length : b->length;
    int order = memcmp(a->data, b->data, common);
    return order != 0 ? order : a->length < b->length ? -1 : a->length > b->length;
}

static bool equal_at(struct tpl_render *r, struct tpl_value a, struct tpl_value b, int depth);

static bool equal_lists(struct tpl_render *r, const struct tpl_list *a, const struct tpl_list *b, int depth)
{
    if (a->count != b->count)
        return false;
    for (int i = 0; i < a->count; i++) {
        if (!equal_at(r, a->items[i], b->items[i], depth + 1))
            return false;
    }
    return true;
}

static bool equal_dicts(struct tpl_render *r, const struct tpl_dict *a, const struct tpl_dict *b, int depth)
{
    if (a->count != b->count)
        return false;
    for (int i = 0; i < a->count; i++) {
        struct tpl_value *other = tpl_dict_find(r, b, a->keys[i]);
        if (other == NULL || !equal_at(r, a->values[i], *other, depth + 1))
            return false;
    }
    return true;
}

static bool equal_at(struct tpl_render *r, struct tpl_value a, struct tpl_value b, int depth)
{
    tpl_charge(r, 1);
    if (depth > TPL_VALUE_DEPTH_MAX)
        tpl_fail(r, "values are nested more than %d deep", TPL_VALUE_DEPTH_MAX);
    if (tpl_is_number(a) && tpl_is_number(b)) {
        bool unordered;
        return compare_numbers(a, b, &unordered) == 0 && !unordered;
    }
    if (a.kind != b.kind)
        return false;
    switch (a.kind) {
    case TPL_TEXT:
        tpl_charge(r, a.text->length / 256);
        return a.text->length == b.text->length && memcmp(a.text->data, b.text->data, a.text->length) == 0;
    case TPL_LIST:
    case TPL_TUPLE:
        return equal_lists(r, a.list, b.list, depth);
    case TPL_DICT:
        return equal_dicts(r, a.dict, b.dict, depth);
    case TPL_RANGE:
        return a.range->count == b.range->count &&
               (a.range->count == 0 || (a.range->start == b.range->start &&
                                        (a.range->count == 1 || a.range->step == b.range->step)));
    case TPL_NONE:
    case TPL_UNDEFINED:
        return true;
    case TPL_METHOD:
        return false;
    default:
        return a.list == b.list; /* the same object */
    }
}

bool tpl_equal(struct tpl_render *r, struct tpl_value a, struct tpl_value b)
{
    return equal_at(r, a, b, 0);
}

static int compare_at(struct tpl_render *r, struct tpl_value a, struct tpl_value b, const char *operator_name,
                      bool *unordered, int depth)
{
    tpl_charge(r, 1);
    *unordered = false;
    if (a.kind == TPL_UNDEFINED || b.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, a.kind == TPL_UNDEFINED ? a : b);
    if (depth > TPL_VALUE_DEPTH_MAX)
        tpl_fail(r, "values are nested more than %d deep", TPL_VALUE_DEPTH_MAX);
    if (tpl_is_number(a) && tpl_is_number(b))
        return compare_numbers(a, b, unordered);
    if (a.kind == TPL_TEXT && b.kind == TPL_TEXT)
        return compare_text(a.text, b.text);
    if (a.kind != b.kind || (a.kind != TPL_LIST && a.kind != TPL_TUPLE))
        tpl_fail(r, "'%s' not supported between instances of '%s' and '%s'", operator_name, tpl_type_name(a),
                 tpl_type_name(b));
    for (int i = 0; i < a.list->count && i < b.list->count; i++) {
        if (!tpl_equal(r, a.list->items[i], b.list->items[i]))
            return compare_at(r, a.list->items[i], b.list->items[i], operator_name, unordered, depth + 1);
    }
    return a.list->count < b.list->count ? -1 : a.list->count > b.list->count;
}

/* NaN is in no order with anything: the callers' operators all answer false then (2 is neither < 0, == 0 nor > 0). */
int tpl_compare(struct tpl_render *r, struct tpl_value a, struct tpl_value b, const char *operator_name)
{
    bool unordered;
    int order = compare_at(r, a, b, operator_name, &unordered, 0);
    return unordered ? 2 : order < 0 ? -1 : order > 0;
}

bool tpl_contains(struct tpl_render *r, struct tpl_value container, struct tpl_value item)
{
    if (container.kind == TPL_TEXT) {
        if (item.kind != TPL_TEXT)
            tpl_fail(r, "'in <string>' requires string as left operand, not %s", tpl_type_name(item));
        tpl_charge(r, container.text->length / 32);
        return memmem(container.text->data, container.text->length, item.text->data, item.text->length) != NULL;
    }
    if (container.kind == TPL_DICT || (container.kind == TPL_VIEW && container.view->kind == TPL_VIEW_KEYS)) {
        if (!tpl_hashable(item))
            tpl_fail(r, "unhashable type: '%s'", tpl_type_name(item));
        return tpl_dict_find(r, container.kind == TPL_DICT ? container.dict : container.view->dict, item) != NULL;
    }
    if (container.kind == TPL_RANGE) {
        int64_t integer;
        const struct tpl_range *range = container.range;
        if (item.kind == TPL_FLOAT && item.number == floor(item.number) && fabs(item.number) < 1e15)
            integer = (int64_t)item.number;
        else if (!tpl_as_int(item, &integer))
            return false;
        int64_t offset = integer - range->start;
        return range->count > 0 && offset % range->step == 0 && offset / range->step >= 0 &&
               offset / range->step < range->count;
    }
    if (!tpl_iterable(container))
        tpl_fail(r, "argument of type '%s' is not iterable", tpl_type_name(container));
    struct tpl_list *items = tpl_items(r, container);
    for (int i = 0; i < items->count; i++) {
        if (tpl_equal(r, items->items[i], item))
            return true;
    }
    return false;
}

bool tpl_has_length(struct tpl_value value)
{
    return value.kind == TPL_UNDEFINED || value.kind == TPL_TEXT || value.kind == TPL_LIST ||
           value.kind == TPL_TUPLE || value.kind == TPL_DICT || value.kind == TPL_RANGE || value.kind == TPL_VIEW ||
           value.kind == TPL_LOOP;
}

bool tpl_iterable(struct tpl_value value)
{
    return tpl_has_length(value) || value.kind == TPL_ITERATOR;
}

int64_t tpl_length(struct tpl_render *r, struct tpl_value value)
{
    switch (value.kind) {
    case TPL_UNDEFINED:
        return 0;
    case TPL_TEXT:
        tpl_charge(r, value.text->length / 128);
        return (int64_t)tpl_count_codepoints(value.text->data, value.text->length);
    case TPL_LIST:
    case TPL_TUPLE:
        return value.list->count;
    case TPL_DICT:
        return value.dict->count;
    case TPL_RANGE:
        return value.range->count;
    case TPL_VIEW:
        return value.view->dict->count;
    case TPL_LOOP:
        return tpl_loop_length(r, value.loop);
    default:
        tpl_fail(r, "object of type '%s' has no len()", tpl_type_name(value));
    }
}

struct tpl_value tpl_range_item(const struct tpl_range *range, int64_t index)
{
    return tpl_int(range->start + index * range->step);
}

static struct tpl_list *text_items(struct tpl_render *r, const struct tpl_text *text)
{
    struct tpl_list *list = tpl_list_new(r, 0);
    for (size_t at = 0; at < text->length;) {
        int32_t codepoint;
        size_t used = tpl_decode(text->data + at, text->length - at, &codepoint);
        tpl_charge(r, 1);
        tpl_list_push(r, list, tpl_text_value(tpl_slice(r, text, at, at + used)));
        at += used;
    }
    return list;
}

static struct tpl_list *view_items(struct tpl_render *r, const struct tpl_view *view)
{
    struct tpl_list *list = tpl_list_new(r, view->dict->count);
    for (int i = 0; i < view->dict->count; i++) {
        struct tpl_value item = view->kind == TPL_VIEW_VALUES ? view->dict->values[i] : view->dict->keys[i];
        if (view->kind == TPL_VIEW_ITEMS) {
            struct tpl_list *pair = tpl_list_new(r, 2);
            tpl_list_push(r, pair, view->dict->keys[i]);
            tpl_list_push(r, pair, view->dict->values[i]);
            item = tpl_list_value(TPL_TUPLE, pair);
        }
        tpl_list_push(r, list, item);
    }
    return list;
}

struct tpl_list *tpl_items(struct tpl_render *r, struct tpl_value value)
{
    struct tpl_list *list;
    switch (value.kind) {
    case TPL_UNDEFINED:
        return tpl_list_new(r, 0);
    case TPL_LIST:
    case TPL_TUPLE:
        tpl_charge(r, (size_t)value.list->count / 16);
        return value.list;
    case TPL_ITERATOR:
        list = tpl_list_new(r, 0);
        list->items = value.list->items + value.list->cursor;
        list->count = list->capacity = value.list->count - value.list->cursor;
        value.list->cursor = value.list->count;
        return list;
    case TPL_TEXT:
        return text_items(r, value.text);
    case TPL_DICT:
        tpl_charge(r, (size_t)value.dict->count / 16);
        return view_items(r, &(struct tpl_view){.dict = value.dict, .kind = TPL_VIEW_KEYS});
    case TPL_VIEW:
        tpl_charge(r, (size_t)value.view->dict->count / 4);
        return view_items(r, value.view);
    case TPL_RANGE:
        tpl_charge(r, (size_t)value.range->count / 4);
        list = tpl_list_new(r, (int)value.range->count);
        for (int64_t i = 0; i < value.range->count; i++)
            tpl_list_push(r, list, tpl_range_item(value.range, i));
        return list;
    default:
        tpl_fail(r, "'%s' object is not iterable", tpl_type_name(value));
    }
}

static void merge(struct tpl_render *r, int *order, int *scratch, const struct tpl_value *keys, int count, bool reverse)
{
    if (count < 2)
        return;
    int half = count / 2;
    merge(r, order, scratch, keys, half, reverse);
    merge(r, order + half, scratch, keys, count - half, reverse);
    int left = 0, right = half, n = 0;
    while (left < half && right < count) {
        int compared = tpl_compare(r, keys[order[right]], keys[order[left]], "<");
        bool take_right = reverse ? compared == 1 : compared == -1;
        scratch[n++] = take_right ? order[right++] : order[left++];
    }
    while (left < half)
        scratch[n++] = order[left++];
    while (right < count)
        scratch[n++] = order[right++];
    memcpy(order, scratch, (size_t)count * sizeof *order);
}

void tpl_sort(struct tpl_render *r, struct tpl_value *keys, struct tpl_value *values, int count, bool reverse)
{
    if (count < 2)
        return;
    int *order = tpl_alloc(r, 2 * (size_t)count * sizeof *order);
    struct tpl_value *old = tpl_alloc(r, 2 * (size_t)count * sizeof *old);
    for (int i = 0; i < count; i++)
        order[i] = i;
    merge(r, order, order + count, keys, count, reverse);
    memcpy(old, keys, (size_t)count * sizeof *old);
    memcpy(old + count, values, (size_t)count * sizeof *old);
    for (int i = 0; i < count; i++) {
        keys[i] = old[order[i]];
        values[i] = old[count + order[i]];
    }
}
