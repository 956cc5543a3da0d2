/* Methods of str, dict, list and the loop. What they answer is Python's; what would change a value is refused. */
#include "engine/text/template_text.h"
#include "engine/text/template_tree.h"
#include "engine/text/template_unicode.h"
#include <string.h>

static const struct tpl_text *self_text(const struct tpl_call *call)
{
    return call->self.text;
}

static bool given(const struct tpl_call *call, int index)
{
    return call->values[index].kind != TPL_MISSING && call->values[index].kind != TPL_NONE;
}

static const struct tpl_text *text_argument(struct tpl_render *r, const struct tpl_call *call, int index)
{
    struct tpl_value value = call->values[index];
    if (value.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, value);
    if (value.kind != TPL_TEXT)
        tpl_fail(r, "a str method needs str, not %s", tpl_type_name(value));
    return value.text;
}

static int64_t integer_or(struct tpl_render *r, const struct tpl_call *call, int index, int64_t otherwise)
{
    int64_t integer = otherwise;
    if (given(call, index) && !tpl_as_int(call->values[index], &integer))
        tpl_fail(r, "'%s' object cannot be interpreted as an integer", tpl_type_name(call->values[index]));
    return integer;
}

static struct tpl_value strip(struct tpl_render *r, const struct tpl_call *call, bool left, bool right)
{
    return tpl_text_value(tpl_strip(r, self_text(call), given(call, 0) ? text_argument(r, call, 0) : NULL, left, right));
}

static struct tpl_value str_strip(struct tpl_render *r, const struct tpl_call *call)
{
    return strip(r, call, true, true);
}

static struct tpl_value str_lstrip(struct tpl_render *r, const struct tpl_call *call)
{
    return strip(r, call, true, false);
}

static struct tpl_value str_rstrip(struct tpl_render *r, const struct tpl_call *call)
{
    return strip(r, call, false, true);
}

static struct tpl_value str_split(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_split(r, self_text(call), given(call, 0) ? text_argument(r, call, 0) : NULL, integer_or(r, call, 1, -1),
                     false);
}

static struct tpl_value str_rsplit(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_split(r, self_text(call), given(call, 0) ? text_argument(r, call, 0) : NULL, integer_or(r, call, 1, -1),
                     true);
}

static struct tpl_value str_splitlines(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_list_value(TPL_LIST, tpl_split_lines(r, self_text(call), given(call, 0) && tpl_truthy(call->values[0])));
}

static bool affix(const struct tpl_text *text, const struct tpl_text *part, bool front)
{
    return part->length <= text->length &&
           memcmp(front ? text->data : text->data + text->length - part->length, part->data, part->length) == 0;
}

static struct tpl_value has_affix(struct tpl_render *r, const struct tpl_call *call, bool front)
{
    struct tpl_value wanted = call->values[0];
    if (wanted.kind != TPL_TUPLE)
        return tpl_bool(affix(self_text(call), text_argument(r, call, 0), front));
    for (int i = 0; i < wanted.list->count; i++) {
        if (wanted.list->items[i].kind != TPL_TEXT)
            tpl_fail(r, "a tuple for startswith or endswith holds str only");
        if (affix(self_text(call), wanted.list->items[i].text, front))
            return tpl_bool(true);
    }
    return tpl_bool(false);
}

static struct tpl_value str_startswith(struct tpl_render *r, const struct tpl_call *call)
{
    return has_affix(r, call, true);
}

static struct tpl_value str_endswith(struct tpl_render *r, const struct tpl_call *call)
{
    return has_affix(r, call, false);
}

static struct tpl_value str_removeprefix(struct tpl_render *r, const struct tpl_call *call)
{
    const struct tpl_text *text = self_text(call), *part = text_argument(r, call, 0);
    return tpl_text_value(affix(text, part, true) ? tpl_slice(r, text, part->length, text->length) : text);
}

static struct tpl_value str_removesuffix(struct tpl_render *r, const struct tpl_call *call)
{
    const struct tpl_text *text = self_text(call), *part = text_argument(r, call, 0);
    return tpl_text_value(affix(text, part, false) ? tpl_slice(r, text, 0, text->length - part->length) : text);
}

static struct tpl_value str_replace(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(tpl_replace(r, self_text(call), text_argument(r, call, 0), text_argument(r, call, 1),
                                      integer_or(r, call, 2, -1)));
}

static struct tpl_value str_upper(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(tpl_change_case(r, self_text(call), TPL_UPPER));
}

static struct tpl_value str_lower(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(tpl_change_case(r, self_text(call), TPL_LOWER));
}

static struct tpl_value str_title(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(tpl_title_words(r, self_text(call)));
}

static struct tpl_value str_capitalize(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(tpl_capitalize(r, self_text(call)));
}

static struct tpl_value str_join(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_list *items = tpl_items(r, call->values[0]);
    for (int i = 0; i < items->count; i++) {
        if (items->items[i].kind != TPL_TEXT)
            tpl_fail(r, "sequence item %d: expected str instance, %s found", i, tpl_type_name(items->items[i]));
    }
    return tpl_text_value(tpl_join(r, items, self_text(call)));
}

/* Offset in characters of the first or last `part`, or -1. */
static int64_t position(struct tpl_render *r, const struct tpl_text *text, const struct tpl_text *part, bool last)
{
    tpl_charge(r, text->length / 32);
    const char *found = NULL;
    for (const char *at = text->data, *end = text->data + text->length; at <= end;) {
        const char *next = memmem(at, (size_t)(end - at), part->data, part->length);
        if (next == NULL)
            break;
        found = next;
        if (!last)
            break;
        at = next + 1;
    }
    if (found == NULL)
        return -1;
    return (int64_t)tpl_count_codepoints(text->data, (size_t)(found - text->data));
}

static struct tpl_value str_find(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_int(position(r, self_text(call), text_argument(r, call, 0), false));
}

static struct tpl_value str_rfind(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_int(position(r, self_text(call), text_argument(r, call, 0), true));
}

static struct tpl_value str_index(struct tpl_render *r, const struct tpl_call *call)
{
    int64_t at = position(r, self_text(call), text_argument(r, call, 0), false);
    if (at < 0)
        tpl_fail(r, "substring not found");
    return tpl_int(at);
}

static struct tpl_value str_count(struct tpl_render *r, const struct tpl_call *call)
{
    const struct tpl_text *text = self_text(call), *part = text_argument(r, call, 0);
    tpl_charge(r, text->length / 32);
    if (part->length == 0)
        return tpl_int((int64_t)tpl_count_codepoints(text->data, text->length) + 1);
    int64_t count = 0;
    const char *at = text->data, *end = text->data + text->length;
    while ((at = memmem(at, (size_t)(end - at), part->data, part->length)) != NULL) {
        at += part->length;
        count++;
    }
    return tpl_int(count);
}

enum question { SPACE, ALPHA, DIGIT, ALNUM, UPPER, LOWER };

static struct tpl_value ask(struct tpl_render *r, const struct tpl_text *text, enum question question)
{
    bool cased = false;
    tpl_charge(r, text->length / 16);
    for (size_t at = 0; at < text->length;) {
        int32_t c;
        at += tpl_decode(text->data + at, text->length - at, &c);
        bool yes = question == SPACE   ? tpl_is_space(c)
                 : question == ALPHA   ? tpl_is_alpha(c)
                 : question == DIGIT   ? tpl_is_digit(c)
                 : question == ALNUM   ? tpl_is_alpha(c) || tpl_is_digit(c)
                 : question == UPPER   ? !tpl_is_lower(c) && !tpl_is_title(c)
                                       : !tpl_is_upper(c) && !tpl_is_title(c);
        if (!yes)
            return tpl_bool(false);
        cased |= question == UPPER ? tpl_is_upper(c) : tpl_is_lower(c);
    }
    return tpl_bool(question == UPPER || question == LOWER ? cased : text->length > 0);
}

#define QUESTION(name, question)                                                            \
    static struct tpl_value str_##name(struct tpl_render *r, const struct tpl_call *call)   \
    {                                                                                       \
        return ask(r, self_text(call), question);                                           \
    }
QUESTION(isspace, SPACE)
QUESTION(isalpha, ALPHA)
QUESTION(isdigit, DIGIT)
QUESTION(isalnum, ALNUM)
QUESTION(isupper, UPPER)
QUESTION(islower, LOWER)
#undef QUESTION

static struct tpl_value str_format(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_brace_format(r, self_text(call), call);
}

static struct tpl_value pad(struct tpl_render *r, const struct tpl_call *call, bool left, bool right)
{
    const struct tpl_text *fill = given(call, 1) ? text_argument(r, call, 1) : tpl_literal(r, " ").text;
    if (tpl_count_codepoints(fill->data, fill->length) != 1)
        tpl_fail(r, "the fill character must be exactly one character long");
    return tpl_text_value(tpl_pad(r, self_text(call), integer_or(r, call, 0, 0), fill, left, right));
}

static struct tpl_value str_ljust(struct tpl_render *r, const struct tpl_call *call)
{
    return pad(r, call, false, true);
}

static struct tpl_value str_rjust(struct tpl_render *r, const struct tpl_call *call)
{
    return pad(r, call, true, false);
}

static struct tpl_value str_center(struct tpl_render *r, const struct tpl_call *call)
{
    return pad(r, call, true, true);
}

static struct tpl_value str_zfill(struct tpl_render *r, const struct tpl_call *call)
{
    const struct tpl_text *text = self_text(call);
    int64_t width = integer_or(r, call, 0, 0);
    bool sign = text->length > 0 && (text->data[0] == '+' || text->data[0] == '-');
    struct tpl_builder b = {0};
    tpl_build_slice(r, &b, text, 0, sign);
    const struct tpl_text *digits = tpl_slice(r, text, sign, text->length);
    tpl_build_text(r, &b, tpl_pad(r, digits, width - sign, tpl_literal(r, "0").text, true, false));
    return tpl_built_value(r, &b);
}

/* (before, separator, after) */
static struct tpl_value partition(struct tpl_render *r, const struct tpl_call *call, bool last)
{
    const struct tpl_text *text = self_text(call), *part = text_argument(r, call, 0), *empty = tpl_literal(r, "").text;
    struct tpl_list *three = tpl_list_new(r, 3);
    if (part->length == 0)
        tpl_fail(r, "empty separator");
    int64_t at = position(r, text, part, last);
    if (at < 0) {
        tpl_list_push(r, three, tpl_text_value(last ? empty : text));
        tpl_list_push(r, three, tpl_text_value(empty));
        tpl_list_push(r, three, tpl_text_value(last ? text : empty));
        return tpl_list_value(TPL_TUPLE, three);
    }
    size_t begin = tpl_codepoint_offset(text->data, text->length, (size_t)at);
    tpl_list_push(r, three, tpl_text_value(tpl_slice(r, text, 0, begin)));
    tpl_list_push(r, three, tpl_text_value(part));
    tpl_list_push(r, three, tpl_text_value(tpl_slice(r, text, begin + part->length, text->length)));
    return tpl_list_value(TPL_TUPLE, three);
}

static struct tpl_value str_partition(struct tpl_render *r, const struct tpl_call *call)
{
    return partition(r, call, false);
}

static struct tpl_value str_rpartition(struct tpl_render *r, const struct tpl_call *call)
{
    return partition(r, call, true);
}

static struct tpl_value view(struct tpl_render *r, const struct tpl_call *call, enum tpl_view_kind kind)
{
    struct tpl_view *made = tpl_alloc(r, sizeof *made);
    *made = (struct tpl_view){.dict = call->self.dict, .kind = kind};
    return (struct tpl_value){.kind = TPL_VIEW, .view = made};
}

static struct tpl_value dict_keys(struct tpl_render *r, const struct tpl_call *call)
{
    return view(r, call, TPL_VIEW_KEYS);
}

static struct tpl_value dict_values(struct tpl_render *r, const struct tpl_call *call)
{
    return view(r, call, TPL_VIEW_VALUES);
}

static struct tpl_value dict_items(struct tpl_render *r, const struct tpl_call *call)
{
    return view(r, call, TPL_VIEW_ITEMS);
}

static struct tpl_value dict_get(struct tpl_render *r, const struct tpl_call *call)
{
    if (!tpl_hashable(call->values[0]))
        tpl_fail(r, "unhashable type: '%s'", tpl_type_name(call->values[0]));
    struct tpl_value *found = tpl_dict_find(r, call->self.dict, call->values[0]);
    if (found != NULL)
        return *found;
    return call->values[1].kind == TPL_MISSING ? tpl_none() : call->values[1];
}

static struct tpl_value dict_copy(struct tpl_render *r, const struct tpl_call *call)
{
    return call->self; /* nothing can change either of them */
}

static struct tpl_value list_index(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_list *list = tpl_items(r, call->self);
    for (int i = 0; i < list->count; i++) {
        if (tpl_equal(r, list->items[i], call->values[0]))
            return tpl_int(i);
    }
    tpl_fail(r, "the value is not in the list");
}

static struct tpl_value list_count(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_list *list = tpl_items(r, call->self);
    int64_t count = 0;
    for (int i = 0; i < list->count; i++)
        count += tpl_equal(r, list->items[i], call->values[0]);
    return tpl_int(count);
}

static struct tpl_value refused(struct tpl_render *r, const struct tpl_call *call)
{
    tpl_fail(r, "a chat template cannot change a %s (append, update, pop and the like are refused)",
             tpl_type_name(call->self));
}

static struct tpl_value loop_cycle(struct tpl_render *r, const struct tpl_call *call)
{
    if (call->count == 0 || call->keyword_count > 0)
        tpl_fail(r, "no items for cycling given");
    return call->values[call->self.loop->index0 % call->count];
}

static struct tpl_value loop_changed(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_list *seen = tpl_list_new(r, call->count);
    for (int i = 0; i < call->count; i++)
        tpl_list_push(r, seen, call->values[i]);
    struct tpl_value now = tpl_list_value(TPL_TUPLE, seen);
    if (call->self.loop->changed.kind == TPL_TUPLE && tpl_equal(r, call->self.loop->changed, now))
        return tpl_bool(false);
    call->self.loop->changed = now;
    return tpl_bool(true);
}

static struct tpl_value cycler_next(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_cycler *cycler = call->self.cycler;
    struct tpl_value current = cycler->items->items[cycler->at];
    cycler->at = (cycler->at + 1) % cycler->items->count;
    return current;
}

static struct tpl_value cycler_reset(struct tpl_render *r, const struct tpl_call *call)
{
    call->self.cycler->at = 0;
    return tpl_none();
}

static const struct tpl_function str_methods[] = {
    {"capitalize", "", str_capitalize},
    {"center", "/width|fillchar", str_center},
    {"count", "/sub", str_count},
    {"endswith", "/suffix", str_endswith},
    {"find", "/sub", str_find},
    {"format", NULL, str_format},
    {"index", "/sub", str_index},
    {"isalnum", "", str_isalnum},
    {"isalpha", "", str_isalpha},
    {"isdigit", "", str_isdigit},
    {"islower", "", str_islower},
    {"isspace", "", str_isspace},
    {"isupper", "", str_isupper},
    {"join", "/iterable", str_join},
    {"ljust", "/width|fillchar", str_ljust},
    {"lower", "", str_lower},
    {"lstrip", "/|chars", str_lstrip},
    {"partition", "/sep", str_partition},
    {"removeprefix", "/prefix", str_removeprefix},
    {"removesuffix", "/suffix", str_removesuffix},
    {"replace", "/old new|count", str_replace},
    {"rfind", "/sub", str_rfind},
    {"rjust", "/width|fillchar", str_rjust},
    {"rpartition", "/sep", str_rpartition},
    {"rsplit", "|sep maxsplit", str_rsplit},
    {"rstrip", "/|chars", str_rstrip},
    {"split", "|sep maxsplit", str_split},
    {"splitlines", "|keepends", str_splitlines},
    {"startswith", "/prefix", str_startswith},
    {"strip", "/|chars", str_strip},
    {"title", "", str_title},
    {"upper", "", str_upper},
    {"zfill", "/width", str_zfill},
};
static const struct tpl_function dict_methods[] = {
    {"clear", NULL, refused},      {"copy", "", dict_copy},     {"get", "/key|default", dict_get},
    {"items", "", dict_items},     {"keys", "", dict_keys},     {"pop", NULL, refused},
    {"popitem", NULL, refused},    {"setdefault", NULL, refused}, {"update", NULL, refused},
    {"values", "", dict_values},
};
static const struct tpl_function list_methods[] = {
    {"append", NULL, refused},  {"clear", NULL, refused}, {"copy", "", dict_copy},       {"count", "/value", list_count},
    {"extend", NULL, refused},  {"index", "/value", list_index}, {"insert", NULL, refused}, {"pop", NULL, refused},
    {"remove", NULL, refused},  {"reverse", NULL, refused}, {"sort", NULL, refused},
};
static const struct tpl_function tuple_methods[] = {
    {"count", "/value", list_count}, {"index", "/value", list_index},
};
static const struct tpl_function loop_methods[] = {
    {"changed", NULL, loop_changed}, {"cycle", NULL, loop_cycle},
};
static const struct tpl_function cycler_methods[] = {
    {"next", "", cycler_next}, {"reset", "", cycler_reset},
};

struct tpl_value tpl_method(struct tpl_render *r, struct tpl_value value, const struct tpl_text *name)
{
#define TABLE(kind, table) [kind] = {table, GD_COUNT(table)}
    static const struct {
        const struct tpl_function *functions;
        size_t count;
    } tables[TPL_CYCLER + 1] = {
        TABLE(TPL_TEXT, str_methods),    TABLE(TPL_DICT, dict_methods), TABLE(TPL_LIST, list_methods),
        TABLE(TPL_TUPLE, tuple_methods), TABLE(TPL_RANGE, tuple_methods), TABLE(TPL_LOOP, loop_methods),
        TABLE(TPL_CYCLER, cycler_methods),
    };
#undef TABLE
    const struct tpl_function *function =
        tpl_find_in(tables[value.kind].functions, tables[value.kind].count, name->data, name->length);
    if (function == NULL)
        return (struct tpl_value){.kind = TPL_MISSING};
    struct tpl_bound *bound = tpl_alloc(r, sizeof *bound);
    *bound = (struct tpl_bound){.function = function, .self = value};
    return (struct tpl_value){.kind = TPL_METHOD, .bound = bound};
}
