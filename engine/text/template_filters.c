/* The filters. */
#include "engine/text/template_text.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool given(const struct tpl_call *call, int index)
{
    return call->values[index].kind != TPL_MISSING;
}

static bool flag(const struct tpl_call *call, int index)
{
    return given(call, index) && tpl_truthy(call->values[index]);
}

static int64_t integer_or(struct tpl_render *r, const struct tpl_call *call, int index, int64_t otherwise)
{
    int64_t integer = otherwise;
    if (given(call, index) && call->values[index].kind != TPL_NONE && !tpl_as_int(call->values[index], &integer))
        tpl_fail(r, "'%s' object cannot be interpreted as an integer", tpl_type_name(call->values[index]));
    return integer;
}

static const struct tpl_text *self_str(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_str(r, call->self);
}

static struct tpl_value iterator(struct tpl_list *list)
{
    return tpl_list_value(TPL_ITERATOR, list);
}

/* Text */

static struct tpl_value filter_string(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(self_str(r, call));
}

static struct tpl_value filter_trim(struct tpl_render *r, const struct tpl_call *call)
{
    const struct tpl_text *characters = NULL;
    if (given(call, 0) && call->values[0].kind != TPL_NONE) {
        if (call->values[0].kind != TPL_TEXT)
            tpl_fail(r, "trim: strip arg must be None or str");
        characters = call->values[0].text;
    }
    return tpl_text_value(tpl_strip(r, self_str(r, call), characters, true, true));
}

static struct tpl_value filter_upper(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(tpl_change_case(r, self_str(r, call), TPL_UPPER));
}

static struct tpl_value filter_lower(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(tpl_change_case(r, self_str(r, call), TPL_LOWER));
}

static struct tpl_value filter_title(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(tpl_title_filter(r, self_str(r, call)));
}

static struct tpl_value filter_capitalize(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(tpl_capitalize(r, self_str(r, call)));
}

static struct tpl_value filter_replace(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(tpl_replace(r, self_str(r, call), tpl_str(r, call->values[0]), tpl_str(r, call->values[1]),
                                      integer_or(r, call, 2, -1)));
}

static struct tpl_value filter_center(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(tpl_pad(r, self_str(r, call), integer_or(r, call, 0, 80), tpl_literal(r, " ").text, true, true));
}

static struct tpl_value filter_escape(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_text_value(tpl_escape(r, self_str(r, call)));
}

static struct tpl_value filter_safe(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_text *marked = tpl_alloc(r, sizeof *marked);
    *marked = *self_str(r, call);
    marked->markup = true;
    return tpl_text_value(marked);
}

static struct tpl_value filter_format(struct tpl_render *r, const struct tpl_call *call)
{
    if (call->count > 0 && call->keyword_count > 0)
        tpl_fail(r, "format: can't handle positional and keyword arguments at the same time");
    return tpl_percent_format(r, self_str(r, call), call);
}

static struct tpl_value filter_indent(struct tpl_render *r, const struct tpl_call *call)
{
    if (call->self.kind != TPL_TEXT)
        tpl_fail(r, "indent: needs str, not %s", tpl_type_name(call->self));
    const struct tpl_text *text = call->self.text, *indention;
    bool first = flag(call, 1), blank = flag(call, 2);
    if (given(call, 0) && call->values[0].kind == TPL_TEXT) {
        indention = call->values[0].text;
    } else {
        const struct tpl_text *space = tpl_literal(r, " ").text;
        indention = tpl_pad(r, tpl_literal(r, "").text, integer_or(r, call, 0, 4), space, true, false);
    }
    struct tpl_builder b = {0}, ended = {0};
    tpl_build_text(r, &ended, text);
    tpl_build_literal(r, &ended, "\n"); /* so that a final newline counts as a line */
    struct tpl_list *lines = tpl_split_lines(r, tpl_built(r, &ended), false);
    for (int i = 0; i < lines->count; i++) {
        const struct tpl_text *line = lines->items[i].text;
        if (i > 0)
            tpl_build_literal(r, &b, "\n");
        if (i == 0 ? first : blank || line->length > 0)
            tpl_build_text(r, &b, indention);
        tpl_build_text(r, &b, line);
    }
    return tpl_built_value(r, &b);
}

static struct tpl_value filter_truncate(struct tpl_render *r, const struct tpl_call *call)
{
    const struct tpl_text *text = call->self.text;
    const struct tpl_text *end = given(call, 2) ? tpl_str(r, call->values[2]) : tpl_literal(r, "...").text;
    int64_t length = integer_or(r, call, 0, 255), leeway = integer_or(r, call, 3, 5);
    int64_t own = tpl_length(r, call->self), tail = tpl_length(r, tpl_text_value(end));
    if (length < tail || leeway < 0)
        tpl_fail(r, "truncate: expected a length of at least %lld and a leeway of at least 0", (long long)tail);
    if (own <= length + leeway)
        return call->self;
    if (call->self.kind != TPL_TEXT)
        tpl_fail(r, "truncate: a %s cannot be cut as text", tpl_type_name(call->self));
    const struct tpl_text *kept =
        tpl_slice(r, text, 0, tpl_codepoint_offset(text->data, text->length, (size_t)(length - tail)));
    if (!flag(call, 1)) {
        const char *space = memrchr(kept->data, ' ', kept->length);
        if (space != NULL)
            kept = tpl_slice(r, kept, 0, (size_t)(space - kept->data));
    }
    struct tpl_builder b = {0};
    tpl_build_text(r, &b, kept);
    tpl_build_text(r, &b, end);
    return tpl_built_value(r, &b);
}

static struct tpl_value filter_wordcount(struct tpl_render *r, const struct tpl_call *call)
{
    const struct tpl_text *text = self_str(r, call);
    int64_t count = 0;
    bool inside = false;
    tpl_charge(r, text->length / 16);
    for (size_t at = 0; at < text->length;) {
        int32_t c;
        at += tpl_decode(text->data + at, text->length - at, &c);
        bool word = c == '_' || tpl_is_alpha(c) || tpl_is_digit(c);
        count += word && !inside;
        inside = word;
    }
    return tpl_int(count);
}

static struct tpl_value filter_tojson(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_json_style style = {.ensure_ascii = flag(call, 0), .sort_keys = flag(call, 3)};
    if (given(call, 1) && call->values[1].kind != TPL_NONE) {
        style.indented = true;
        if (call->values[1].kind == TPL_TEXT)
            style.indent = call->values[1].text;
        else
            style.indent = tpl_pad(r, tpl_literal(r, "").text, integer_or(r, call, 1, 0), tpl_literal(r, " ").text, true,
                                   false);
    }
    style.item_separator = tpl_literal(r, style.indented ? "," : ", ").text;
    style.key_separator = tpl_literal(r, ": ").text;
    if (given(call, 2) && call->values[2].kind != TPL_NONE) {
        struct tpl_list *pair = tpl_items(r, call->values[2]);
        if (pair->count != 2 || pair->items[0].kind != TPL_TEXT || pair->items[1].kind != TPL_TEXT)
            tpl_fail(r, "tojson: separators must be two strings");
        style.item_separator = pair->items[0].text;
        style.key_separator = pair->items[1].text;
    }
    struct tpl_builder b = {0};
    tpl_build_json(r, &b, call->self, &style);
    return tpl_built_value(r, &b);
}

/* Numbers */

static struct tpl_value filter_abs(struct tpl_render *r, const struct tpl_call *call)
{
    int64_t integer;
    if (tpl_as_int(call->self, &integer))
        return integer < 0 ? tpl_binary(r, TPL_SUBTRACT, tpl_int(0), call->self) : tpl_int(integer);
    if (call->self.kind == TPL_FLOAT)
        return tpl_float(fabs(call->self.number));
    if (call->self.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, call->self);
    tpl_fail(r, "bad operand type for abs(): '%s'", tpl_type_name(call->self));
}

/* Python's int(text, base) and float(text) without the surrounding space and with underscores between digits. */
static bool read_digits(const struct tpl_text *text, char *out, size_t size)
{
    size_t begin = 0, end = text->length, used = 0;
    while (begin < end && tpl_is_space((unsigned char)text->data[begin]))
        begin++;
    while (end > begin && tpl_is_space((unsigned char)text->data[end - 1]))
        end--;
    for (size_t i = begin; i < end; i++) {
        char c = text->data[i];
        if (c == '_' && i > begin && i + 1 < end && text->data[i - 1] != '_' && text->data[i - 1] != '+' &&
            text->data[i - 1] != '-')
            continue;
        if (used + 1 >= size || c == '_')
            return false;
        out[used++] = c;
    }
    out[used] = '\0';
    return used > 0;
}

static bool text_to_double(const struct tpl_text *text, double *out)
{
    char digits[400], *end;
    if (!read_digits(text, digits, sizeof digits) || strpbrk(digits, "xX(") != NULL || tpl_is_space(digits[0]))
        return false;
    *out = strtod(digits, &end);
    return *end == '\0';
}

static bool text_to_int(const struct tpl_text *text, int base, int64_t *out)
{
    char digits[100], *end;
    if (!read_digits(text, digits, sizeof digits))
        return false;
    char *body = digits + (digits[0] == '+' || digits[0] == '-');
    if (base == 10 && (body[0] < '0' || body[0] > '9'))
        return false;
    if ((base == 2 || base == 8) && body[0] == '0' && (body[1] | 32) == (base == 2 ? 'b' : 'o'))
        memmove(body, body + 2, strlen(body + 2) + 1);
    errno = 0;
    *out = strtoll(digits, &end, base);
    return *end == '\0' && end != digits && errno == 0;
}

static struct tpl_value filter_int(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_value otherwise = given(call, 0) ? call->values[0] : tpl_int(0);
    int64_t integer, base = integer_or(r, call, 1, 10);
    double number;
    if (base < 2 || base > 36)
        tpl_fail(r, "int: base must be between 2 and 36");
    if (tpl_as_int(call->self, &integer))
        return tpl_int(integer);
    if (call->self.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, call->self);
    if (call->self.kind == TPL_TEXT) {
        if (text_to_int(call->self.text, (int)base, &integer))
            return tpl_int(integer);
        if (!text_to_double(call->self.text, &number))
            return otherwise;
    } else if (call->self.kind == TPL_FLOAT) {
        number = call->self.number;
    } else {
        return otherwise;
    }
    if (!isfinite(number))
        return otherwise;
    if (fabs(number) >= 9.2e18)
        tpl_fail(r, "int: %g does not fit in 64 bits", number);
    return tpl_int((int64_t)number);
}

static struct tpl_value filter_float(struct tpl_render *r, const struct tpl_call *call)
{
    double number;
    if (tpl_is_number(call->self))
        return tpl_float(tpl_as_double(call->self));
    if (call->self.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, call->self);
    if (call->self.kind == TPL_TEXT && text_to_double(call->self.text, &number))
        return tpl_float(number);
    return given(call, 0) ? call->values[0] : tpl_float(0);
}

/* Half to even on the decimal value of the double, as Python does it. */
static double round_common(double number, int64_t precision)
{
    char digits[400];
    if (!isfinite(number) || precision > 300)
        return number;
    if (precision >= 0) {
        snprintf(digits, sizeof digits, "%.*f", (int)precision, number);
        return strtod(digits, NULL);
    }
    double scale = pow(10, (double)-precision);
    return nearbyint(number / scale) * scale;
}

static struct tpl_value filter_round(struct tpl_render *r, const struct tpl_call *call)
{
    int64_t precision = integer_or(r, call, 0, 0);
    const struct tpl_text *method = given(call, 1) ? tpl_str(r, call->values[1]) : tpl_literal(r, "common").text;
    if (call->self.kind == TPL_UNDEFINED)
        tpl_fail_undefined(r, call->self);
    if (!tpl_is_number(call->self))
        tpl_fail(r, "round: type %s has no rounding", tpl_type_name(call->self));
    if (precision < -300 || precision > 300)
        tpl_fail(r, "round: precision must be between -300 and 300");
    double number = tpl_as_double(call->self);
    if (tpl_text_is(method, "common")) {
        if (call->self.kind == TPL_FLOAT)
            return tpl_float(round_common(number, precision));
        if (precision >= 0)
            return tpl_int(call->self.kind == TPL_INT ? call->self.integer : call->self.boolean);
        return tpl_int((int64_t)round_common(number, precision));
    }
    if (!tpl_text_is(method, "ceil") && !tpl_text_is(method, "floor"))
        tpl_fail(r, "round: method must be common, ceil or floor");
    double scale = pow(10, (double)precision), scaled = number * scale;
    return tpl_float((tpl_text_is(method, "ceil") ? ceil(scaled) : floor(scaled)) / scale);
}

/* Sequences */

static struct tpl_value filter_length(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_int(tpl_length(r, call->self));
}

static struct tpl_value filter_list(struct tpl_render *r, const struct tpl_call *call)
{
    return tpl_list_value(TPL_LIST, tpl_items(r, call->self));
}

static struct tpl_value filter_first(struct tpl_render *r, const struct tpl_call *call)
{
    if (call->self.kind == TPL_ITERATOR) {
        struct tpl_list *list = call->self.list;
        return list->cursor < list->count ? list->items[list->cursor++]
                                          : tpl_undefined_hint(r, "No first item, sequence was empty.");
    }
    struct tpl_list *items = tpl_items(r, call->self);
    return items->count > 0 ? items->items[0] : tpl_undefined_hint(r, "No first item, sequence was empty.");
}

static struct tpl_value filter_last(struct tpl_render *r, const struct tpl_call *call)
{
    if (call->self.kind == TPL_ITERATOR)
        tpl_fail(r, "'%s' object is not reversible", tpl_type_name(call->self));
    struct tpl_list *items = tpl_items(r, call->self);
    return items->count > 0 ? items->items[items->count - 1]
                            : tpl_undefined_hint(r, "No last item, sequence was empty.");
}

static struct tpl_value filter_reverse(struct tpl_render *r, const struct tpl_call *call)
{
    if (call->self.kind == TPL_TEXT)
        return tpl_text_value(tpl_reverse(r, call->self.text));
    struct tpl_list *items = tpl_items(r, call->self), *reversed = tpl_list_new(r, items->count);
    for (int i = items->count - 1; i >= 0; i--)
        tpl_list_push(r, reversed, items->items[i]);
    return iterator(reversed);
}

static struct tpl_value filter_items(struct tpl_render *r, const struct tpl_call *call)
{
    if (call->self.kind == TPL_UNDEFINED)
        return iterator(tpl_list_new(r, 0));
    if (call->self.kind != TPL_DICT)
        tpl_fail(r, "Can only get item pairs from a mapping.");
    const struct tpl_view view = {.dict = call->self.dict, .kind = TPL_VIEW_ITEMS};
    return iterator(tpl_items(r, (struct tpl_value){.kind = TPL_VIEW, .view = &view}));
}

static struct tpl_value filter_join(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_list *items = tpl_items(r, call->self), *named = items;
    if (given(call, 1) && call->values[1].kind != TPL_NONE) {
        named = tpl_list_new(r, items->count);
        for (int i = 0; i < items->count; i++)
            tpl_list_push(r, named, tpl_path(r, items->items[i], call->values[1]));
    }
    return tpl_text_value(tpl_join(r, named, given(call, 0) ? tpl_str(r, call->values[0]) : tpl_literal(r, "").text));
}

static struct tpl_value filter_default(struct tpl_render *r, const struct tpl_call *call)
{
    if (call->self.kind == TPL_UNDEFINED || (flag(call, 1) && !tpl_truthy(call->self)))
        return given(call, 0) ? call->values[0] : tpl_literal(r, "");
    return call->self;
}

static struct tpl_value filter_attr(struct tpl_render *r, const struct tpl_call *call)
{
    const struct tpl_text *name = tpl_str(r, call->values[0]);
    if (call->self.kind == TPL_DICT && tpl_method(r, call->self, name).kind == TPL_MISSING)
        return tpl_undefined_name(r, "dict object", name);
    return tpl_attribute(r, call->self, name);
}

static bool all_digits(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
    }
    return length > 0 && length < 18;
}

struct tpl_value tpl_path(struct tpl_render *r, struct tpl_value value, struct tpl_value path)
{
    if (path.kind == TPL_MISSING || path.kind == TPL_NONE)
        return value;
    if (path.kind != TPL_TEXT)
        return tpl_item(r, value, path);
    for (size_t at = 0; at <= path.text->length;) {
        const char *dot = memchr(path.text->data + at, '.', path.text->length - at);
        size_t end = dot == NULL ? path.text->length : (size_t)(dot - path.text->data);
        const struct tpl_text *part = tpl_slice(r, path.text, at, end);
        struct tpl_value key = tpl_text_value(part);
        if (all_digits(part->data, part->length)) {
            int64_t index = 0;
            for (size_t i = 0; i < part->length; i++)
                index = index * 10 + (part->data[i] - '0');
            key = tpl_int(index);
        }
        value = tpl_item(r, value, key);
        at = end + 1;
    }
    return value;
}

/* Sort keys ignore case unless told otherwise. */
static struct tpl_value folded(struct tpl_render *r, struct tpl_value value, bool case_sensitive)
{
    if (case_sensitive || value.kind != TPL_TEXT)
        return value;
    return tpl_text_value(tpl_change_case(r, value.text, TPL_LOWER));
}

static struct tpl_value filter_dictsort(struct tpl_render *r, const struct tpl_call *call)
{
    if (call->self.kind != TPL_DICT)
        tpl_fail(r, "dictsort: needs a mapping, not %s", tpl_type_name(call->self));
    const struct tpl_text *by = given(call, 1) ? tpl_str(r, call->values[1]) : tpl_literal(r, "key").text;
    bool by_value = tpl_text_is(by, "value");
    if (!by_value && !tpl_text_is(by, "key"))
        tpl_fail(r, "You can only sort by either \"key\" or \"value\"");
    const struct tpl_view view = {.dict = call->self.dict, .kind = TPL_VIEW_ITEMS};
    struct tpl_list *pairs = tpl_items(r, (struct tpl_value){.kind = TPL_VIEW, .view = &view});
    struct tpl_value *keys = tpl_alloc(r, ((size_t)pairs->count + 1) * sizeof *keys);
    for (int i = 0; i < pairs->count; i++)
        keys[i] = folded(r, pairs->items[i].list->items[by_value], flag(call, 0));
    tpl_sort(r, keys, pairs->items, pairs->count, flag(call, 2));
    return tpl_list_value(TPL_LIST, pairs);
}

static struct tpl_list *copy_list(struct tpl_render *r, struct tpl_value value)
{
    struct tpl_list *items = tpl_items(r, value), *copy = tpl_list_new(r, items->count);
    for (int i = 0; i < items->count; i++)
        tpl_list_push(r, copy, items->items[i]);
    return copy;
}

/* attribute "a,b" sorts by several. */
static struct tpl_value sort_key(struct tpl_render *r, struct tpl_value item, struct tpl_value attribute,
                                 bool case_sensitive)
{
    struct tpl_list *parts = tpl_list_new(r, 1);
    if (attribute.kind != TPL_TEXT)
        tpl_list_push(r, parts, folded(r, tpl_path(r, item, attribute), case_sensitive));
    for (size_t at = 0; attribute.kind == TPL_TEXT && at <= attribute.text->length;) {
        const char *comma = memchr(attribute.text->data + at, ',', attribute.text->length - at);
        size_t end = comma == NULL ? attribute.text->length : (size_t)(comma - attribute.text->data);
        struct tpl_value path = tpl_text_value(tpl_slice(r, attribute.text, at, end));
        tpl_list_push(r, parts, folded(r, tpl_path(r, item, path), case_sensitive));
        at = end + 1;
    }
    return tpl_list_value(TPL_LIST, parts);
}

static struct tpl_value filter_sort(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_list *list = copy_list(r, call->self);
    struct tpl_value *keys = tpl_alloc(r, ((size_t)list->count + 1) * sizeof *keys);
    for (int i = 0; i < list->count; i++)
        keys[i] = sort_key(r, list->items[i], call->values[2], flag(call, 1));
    tpl_sort(r, keys, list->items, list->count, flag(call, 0));
    return tpl_list_value(TPL_LIST, list);
}

static struct tpl_value filter_unique(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_list *items = tpl_items(r, call->self), *unique = tpl_list_new(r, 0);
    struct tpl_dict *seen = tpl_dict_new(r);
    for (int i = 0; i < items->count; i++) {
        struct tpl_value key = folded(r, tpl_path(r, items->items[i], call->values[1]), flag(call, 0));
        if (tpl_hashable(key) && tpl_dict_find(r, seen, key) != NULL)
            continue;
        tpl_dict_set(r, seen, key, tpl_none());
        tpl_list_push(r, unique, items->items[i]);
    }
    return iterator(unique);
}

static struct tpl_value extreme(struct tpl_render *r, const struct tpl_call *call, bool largest)
{
    struct tpl_list *items = tpl_items(r, call->self);
    if (items->count == 0)
        return tpl_undefined_hint(r, "No aggregated item, sequence was empty.");
    int best = 0;
    struct tpl_value best_key = folded(r, tpl_path(r, items->items[0], call->values[1]), flag(call, 0));
    for (int i = 1; i < items->count; i++) {
        struct tpl_value key = folded(r, tpl_path(r, items->items[i], call->values[1]), flag(call, 0));
        if (tpl_compare_values(r, largest ? TPL_GT : TPL_LT, key, best_key)) {
            best = i;
            best_key = key;
        }
    }
    return items->items[best];
}

static struct tpl_value filter_min(struct tpl_render *r, const struct tpl_call *call)
{
    return extreme(r, call, false);
}

static struct tpl_value filter_max(struct tpl_render *r, const struct tpl_call *call)
{
    return extreme(r, call, true);
}

static struct tpl_value filter_sum(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_list *items = tpl_items(r, call->self);
    struct tpl_value sum = given(call, 1) ? call->values[1] : tpl_int(0);
    if (sum.kind == TPL_TEXT)
        tpl_fail(r, "sum() can't sum strings [use ''.join(seq) instead]");
    for (int i = 0; i < items->count; i++) {
        tpl_charge(r, 1);
        sum = tpl_binary(r, TPL_ADD, sum, tpl_path(r, items->items[i], call->values[0]));
    }
    return sum;
}

static struct tpl_value filter_batch(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_list *items = tpl_items(r, call->self), *batches = tpl_list_new(r, 0), *batch = NULL;
    int64_t size = integer_or(r, call, 0, 0);
    if (size < 1 || size > TPL_RANGE_MAX)
        tpl_fail(r, "batch: the size must be between 1 and %d", TPL_RANGE_MAX);
    for (int i = 0; i < items->count; i++) {
        if (i % size == 0) {
            batch = tpl_list_new(r, 0);
            tpl_list_push(r, batches, tpl_list_value(TPL_LIST, batch));
        }
        tpl_list_push(r, batch, items->items[i]);
    }
    while (batch != NULL && given(call, 1) && call->values[1].kind != TPL_NONE && batch->count < size)
        tpl_list_push(r, batch, call->values[1]);
    return iterator(batches);
}

static struct tpl_value filter_groupby(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_list *list = copy_list(r, call->self), *groups = tpl_list_new(r, 0), *members = NULL;
    struct tpl_value *keys = tpl_alloc(r, ((size_t)list->count + 1) * sizeof *keys);
    for (int i = 0; i < list->count; i++) {
        keys[i] = tpl_path(r, list->items[i], call->values[0]);
        if (keys[i].kind == TPL_UNDEFINED && given(call, 1))
            keys[i] = call->values[1];
        keys[i] = folded(r, keys[i], flag(call, 2));
    }
    tpl_sort(r, keys, list->items, list->count, false);
    for (int i = 0; i < list->count; i++) {
        if (i == 0 || !tpl_equal(r, keys[i], keys[i - 1])) {
            struct tpl_value shown = tpl_path(r, list->items[i], call->values[0]);
            struct tpl_list *group = tpl_list_new(r, 2);
            if (shown.kind == TPL_UNDEFINED && given(call, 1))
                shown = call->values[1];
            members = tpl_list_new(r, 0);
            tpl_list_push(r, group, shown);
            tpl_list_push(r, group, tpl_list_value(TPL_LIST, members));
            tpl_list_push(r, groups, tpl_list_value(TPL_TUPLE, group));
        }
        tpl_list_push(r, members, list->items[i]);
    }
    return tpl_list_value(TPL_LIST, groups);
}

/* The call of a filter or test named by values[skip], with the arguments behind it. */
static const struct tpl_function *named_function(struct tpl_render *r, const struct tpl_call *call, int skip, bool filter,
                                                 struct tpl_call *inner)
{
    const struct tpl_text *name = tpl_str(r, call->values[skip]);
    const struct tpl_function *function = filter ? tpl_find_filter(name->data, name->length)
                                                 : tpl_find_test(name->data, name->length);
    if (function == NULL)
        tpl_fail(r, "no %s named '%.*s'", filter ? "filter" : "test", (int)(name->length < 80 ? name->length : 80),
                 name->data);
    *inner = *call;
    inner->values += skip + 1;
    inner->count -= skip + 1;
    return function;
}

static struct tpl_value map_attribute(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_value attribute = {.kind = TPL_MISSING}, otherwise = tpl_none();
    for (int i = 0; i < call->keyword_count; i++) {
        if (tpl_text_is(call->keywords[i], "attribute"))
            attribute = call->keyword_values[i];
        else if (tpl_text_is(call->keywords[i], "default"))
            otherwise = call->keyword_values[i];
        else
            tpl_fail(r, "map: unexpected keyword argument");
    }
    if (attribute.kind == TPL_MISSING)
        tpl_fail(r, "map requires a filter argument");
    struct tpl_list *items = tpl_items(r, call->self), *mapped = tpl_list_new(r, items->count);
    for (int i = 0; i < items->count; i++) {
        struct tpl_value value = tpl_path(r, items->items[i], attribute);
        tpl_list_push(r, mapped, value.kind == TPL_UNDEFINED && otherwise.kind != TPL_NONE ? otherwise : value);
    }
    return iterator(mapped);
}

static struct tpl_value filter_map(struct tpl_render *r, const struct tpl_call *call)
{
    struct tpl_call inner;
    if (!tpl_truthy(call->self))
        return iterator(tpl_list_new(r, 0));
    if (call->count == 0)
        return map_attribute(r, call);
    const struct tpl_function *function = named_function(r, call, 0, true, &inner);
    struct tpl_list *items = tpl_items(r, call->self), *mapped = tpl_list_new(r, items->count);
    for (int i = 0; i < items->count; i++) {
        tpl_charge(r, 1);
        inner.self = items->items[i];
        tpl_list_push(r, mapped, tpl_apply(r, function, &inner));
    }
    return iterator(mapped);
}

/* select, reject and their attr forms: items (or an attribute of theirs) that pass a test, or are true without one. */
static struct tpl_value choose(struct tpl_render *r, const struct tpl_call *call, bool attribute, bool keep)
{
    struct tpl_call inner;
    const struct tpl_function *test = NULL;
    if (!tpl_truthy(call->self))
        return iterator(tpl_list_new(r, 0));
    if (attribute && call->count == 0)
        tpl_fail(r, "Missing parameter for attribute name");
    if (call->count > attribute)
        test = named_function(r, call, attribute, false, &inner);
    struct tpl_list *items = tpl_items(r, call->self), *chosen = tpl_list_new(r, 0);
    for (int i = 0; i < items->count; i++) {
        struct tpl_value value = attribute ? tpl_path(r, items->items[i], call->values[0]) : items->items[i];
        tpl_charge(r, 1);
        if (test != NULL) {
            inner.self = value;
            value = tpl_apply(r, test, &inner);
        }
        if (tpl_truthy(value) == keep)
            tpl_list_push(r, chosen, items->items[i]);
    }
    return iterator(chosen);
}

static struct tpl_value filter_select(struct tpl_render *r, const struct tpl_call *call)
{
    return choose(r, call, false, true);
}

static struct tpl_value filter_reject(struct tpl_render *r, const struct tpl_call *call)
{
    return choose(r, call, false, false);
}

static struct tpl_value filter_selectattr(struct tpl_render *r, const struct tpl_call *call)
{
    return choose(r, call, true, true);
}

static struct tpl_value filter_rejectattr(struct tpl_render *r, const struct tpl_call *call)
{
    return choose(r, call, true, false);
}

const struct tpl_function *tpl_find_filter(const char *name, size_t length)
{
    static const struct tpl_function filters[] = {
        {"abs", "", filter_abs},
        {"attr", "name", filter_attr},
        {"batch", "linecount|fill_with", filter_batch},
        {"capitalize", "", filter_capitalize},
        {"center", "|width", filter_center},
        {"count", "", filter_length},
        {"d", "|default_value boolean", filter_default},
        {"default", "|default_value boolean", filter_default},
        {"dictsort", "|case_sensitive by reverse", filter_dictsort},
        {"e", "", filter_escape},
        {"escape", "", filter_escape},
        {"first", "", filter_first},
        {"float", "|default", filter_float},
        {"forceescape", "", filter_escape},
        {"format", NULL, filter_format},
        {"groupby", "attribute|default case_sensitive", filter_groupby},
        {"indent", "|width first blank", filter_indent},
        {"int", "|default base", filter_int},
        {"items", "", filter_items},
        {"join", "|d attribute", filter_join},
        {"last", "", filter_last},
        {"length", "", filter_length},
        {"list", "", filter_list},
        {"lower", "", filter_lower},
        {"map", NULL, filter_map},
        {"max", "|case_sensitive attribute", filter_max},
        {"min", "|case_sensitive attribute", filter_min},
        {"reject", NULL, filter_reject},
        {"rejectattr", NULL, filter_rejectattr},
        {"replace", "old new|count", filter_replace},
        {"reverse", "", filter_reverse},
        {"round", "|precision method", filter_round},
        {"safe", "", filter_safe},
        {"select", NULL, filter_select},
        {"selectattr", NULL, filter_selectattr},
        {"sort", "|reverse case_sensitive attribute", filter_sort},
        {"string", "", filter_string},
        {"sum", "|attribute start", filter_sum},
        {"title", "", filter_title},
        {"tojson", "|ensure_ascii indent separators sort_keys", filter_tojson},
        {"trim", "|chars", filter_trim},
        {"truncate", "|length killwords end leeway", filter_truncate},
        {"unique", "|case_sensitive attribute", filter_unique},
        {"upper", "", filter_upper},
        {"wordcount", "", filter_wordcount},
    };
    return tpl_find_in(filters, GD_COUNT(filters), name, length);
}
