/* str(), repr() and json.dumps() of template values. */
#include "engine/text/template_tree.h"
#include "engine/text/template_unicode.h"
#include "engine/text/template_value.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Python's repr: the fewest digits that read back equal, exponent form below 1e-4 and from 1e16 on. */
void tpl_format_double(double number, char out[40])
{
    if (isnan(number) || isinf(number)) {
        strcpy(out, isnan(number) ? "nan" : number > 0 ? "inf" : "-inf");
        return;
    }
    char scientific[40];
    int digits = 1;
    for (; digits <= 17; digits++) {
        snprintf(scientific, sizeof scientific, "%.*e", digits - 1, number);
        if (strtod(scientific, NULL) == number)
            break;
    }
    int exponent = atoi(strchr(scientific, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        int decimals = digits - 1 - exponent;
        snprintf(out, 40, "%.*f", decimals < 1 ? 1 : decimals, number);
        return;
    }
    strcpy(out, scientific); /* C writes the exponent as Python does */
}

static void build_number(struct tpl_render *r, struct tpl_builder *b, struct tpl_value value)
{
    char digits[40];
    if (value.kind == TPL_FLOAT)
        tpl_format_double(value.number, digits);
    else
        snprintf(digits, sizeof digits, "%lld", (long long)value.integer);
    tpl_build_literal(r, b, digits);
}

/* The escapes belong to the text's author as well. */
static void repr_text(struct tpl_render *r, struct tpl_builder *b, const struct tpl_text *text)
{
    bool single = memchr(text->data, '\'', text->length) != NULL, twin = memchr(text->data, '"', text->length) != NULL;
    char quote = single && !twin ? '"' : '\'';
    tpl_build(r, b, &quote, 1, 0);
    tpl_charge(r, text->length / 16);
    for (size_t at = 0; at < text->length;) {
        int32_t c;
        size_t used = tpl_decode(text->data + at, text->length - at, &c);
        uint32_t label = tpl_label_at(text, at);
        char escape[16];
        if (c == quote || c == '\\')
            snprintf(escape, sizeof escape, "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t')
            snprintf(escape, sizeof escape, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (tpl_is_printable(c))
            escape[0] = '\0';
        else
            snprintf(escape, sizeof escape, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c);
        if (escape[0] != '\0')
            tpl_build(r, b, escape, strlen(escape), label);
        else
            tpl_build(r, b, text->data + at, used, label);
        at += used;
    }
    tpl_build(r, b, &quote, 1, 0);
}

static void repr_at(struct tpl_render *r, struct tpl_builder *b, struct tpl_value value, int depth);

static void repr_items(struct tpl_render *r, struct tpl_builder *b, const struct tpl_list *list, int depth)
{
    for (int i = 0; i < list->count; i++) {
        if (i > 0)
            tpl_build_literal(r, b, ", ");
        repr_at(r, b, list->items[i], depth + 1);
    }
}

static void repr_dict(struct tpl_render *r, struct tpl_builder *b, const struct tpl_dict *dict, int depth)
{
    tpl_build_literal(r, b, "{");
    for (int i = 0; i < dict->count; i++) {
        if (i > 0)
            tpl_build_literal(r, b, ", ");
        repr_at(r, b, dict->keys[i], depth + 1);
        tpl_build_literal(r, b, ": ");
        repr_at(r, b, dict->values[i], depth + 1);
    }
    tpl_build_literal(r, b, "}");
}

static void repr_range(struct tpl_render *r, struct tpl_builder *b, const struct tpl_range *range)
{
    char text[96];
    long long start = range->start, stop = range->stop, step = range->step;
    if (step == 1)
        snprintf(text, sizeof text, "range(%lld, %lld)", start, stop);
    else
        snprintf(text, sizeof text, "range(%lld, %lld, %lld)", start, stop, step);
    tpl_build_literal(r, b, text);
}

static void repr_loop(struct tpl_render *r, struct tpl_builder *b, struct tpl_loop *loop)
{
    char text[64];
    snprintf(text, sizeof text, "<LoopContext %d/%lld>", loop->index0 + 1, (long long)tpl_loop_length(r, loop));
    tpl_build_literal(r, b, text);
}

static void repr_view(struct tpl_render *r, struct tpl_builder *b, struct tpl_value value, int depth)
{
    static const char *const names[] = {[TPL_VIEW_KEYS] = "dict_keys([", [TPL_VIEW_VALUES] = "dict_values([",
                                        [TPL_VIEW_ITEMS] = "dict_items(["};
    tpl_build_literal(r, b, names[value.view->kind]);
    repr_items(r, b, tpl_items(r, value), depth);
    tpl_build_literal(r, b, "])");
}

static void repr_at(struct tpl_render *r, struct tpl_builder *b, struct tpl_value value, int depth)
{
    tpl_charge(r, 1);
    if (depth > TPL_VALUE_DEPTH_MAX)
        tpl_fail(r, "values are nested more than %d deep", TPL_VALUE_DEPTH_MAX);
    switch (value.kind) {
    case TPL_UNDEFINED:
        if (r->tmpl->plain)
            tpl_fail_undefined(r, value);
        tpl_build_literal(r, b, "Undefined");
        break;
    case TPL_NONE:
        tpl_build_literal(r, b, "None");
        break;
    case TPL_BOOL:
        tpl_build_literal(r, b, value.boolean ? "True" : "False");
        break;
    case TPL_INT:
    case TPL_FLOAT:
        build_number(r, b, value);
        break;
    case TPL_TEXT:
        if (value.text->markup)
            tpl_build_literal(r, b, "Markup(");
        repr_text(r, b, value.text);
        if (value.text->markup)
            tpl_build_literal(r, b, ")");
        break;
    case TPL_LIST:
        tpl_build_literal(r, b, "[");
        repr_items(r, b, value.list, depth);
        tpl_build_literal(r, b, "]");
        break;
    case TPL_TUPLE:
        tpl_build_literal(r, b, "(");
        repr_items(r, b, value.list, depth);
        tpl_build_literal(r, b, value.list->count == 1 ? ",)" : ")");
        break;
    case TPL_DICT:
        repr_dict(r, b, value.dict, depth);
        break;
    case TPL_NAMESPACE:
        tpl_build_literal(r, b, "<Namespace ");
        repr_dict(r, b, value.dict, depth);
        tpl_build_literal(r, b, ">");
        break;
    case TPL_RANGE:
        repr_range(r, b, value.range);
        break;
    case TPL_VIEW:
        repr_view(r, b, value, depth);
        break;
    case TPL_LOOP:
        repr_loop(r, b, value.loop);
        break;
    case TPL_MACRO:
        tpl_build_literal(r, b, value.macro->name == NULL ? "<Macro anonymous>" : "<Macro '");
        if (value.macro->name != NULL) {
            tpl_build_text(r, b, value.macro->name);
            tpl_build_literal(r, b, "'>");
        }
        break;
    default: /* Python prints an address here; no template can mean that */
        tpl_fail(r, "a %s cannot be printed", tpl_type_name(value));
    }
}

void tpl_build_repr(struct tpl_render *r, struct tpl_builder *b, struct tpl_value value)
{
    repr_at(r, b, value, 0);
}

void tpl_build_str(struct tpl_render *r, struct tpl_builder *b, struct tpl_value value)
{
    if (value.kind == TPL_TEXT)
        tpl_build_text(r, b, value.text);
    else if (value.kind != TPL_UNDEFINED || r->tmpl->plain)
        repr_at(r, b, value, 0);
}

const struct tpl_text *tpl_str(struct tpl_render *r, struct tpl_value value)
{
    if (value.kind == TPL_TEXT)
        return value.text;
    struct tpl_builder b = {0};
    tpl_build_str(r, &b, value);
    return tpl_built(r, &b);
}

struct json_writer {
    struct tpl_render *r;
    struct tpl_builder *b;
    const struct tpl_json_style *style;
};

static void json_escape(struct json_writer *w, int32_t c, const char *bytes, size_t used, uint32_t label)
{
    char escape[16] = "";
    static const char shorts[] = {['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
    if (c == '"' || c == '\\')
        snprintf(escape, sizeof escape, "\\%c", (char)c);
    else if (c >= 0 && c < (int32_t)sizeof shorts && shorts[c] != '\0')
        snprintf(escape, sizeof escape, "\\%c", shorts[c]);
    else if (c < 0x20 || (w->style->ensure_ascii && c > 0x7E && c < 0x10000))
        snprintf(escape, sizeof escape, "\\u%04x", (unsigned)c);
    else if (w->style->ensure_ascii && c >= 0x10000)
        snprintf(escape, sizeof escape, "\\u%04x\\u%04x", (unsigned)(0xD800 + ((c - 0x10000) >> 10)),
                 (unsigned)(0xDC00 + ((c - 0x10000) & 0x3FF)));
    if (escape[0] != '\0')
        tpl_build(w->r, w->b, escape, strlen(escape), label);
    else
        tpl_build(w->r, w->b, bytes, used, label);
}

static void json_text(struct json_writer *w, const struct tpl_text *text)
{
    tpl_build_literal(w->r, w->b, "\"");
    tpl_charge(w->r, text->length / 16);
    for (size_t at = 0; at < text->length;) {
        int32_t c;
        size_t used = tpl_decode(text->data + at, text->length - at, &c);
        json_escape(w, c, text->data + at, used, tpl_label_at(text, at));
        at += used;
    }
    tpl_build_literal(w->r, w->b, "\"");
}

static void json_number(struct json_writer *w, struct tpl_value value)
{
    if (value.kind == TPL_FLOAT && !isfinite(value.number))
        tpl_build_literal(w->r, w->b, isnan(value.number) ? "NaN" : value.number > 0 ? "Infinity" : "-Infinity");
    else
        build_number(w->r, w->b, value);
}

static void json_at(struct json_writer *w, struct tpl_value value, int depth);

static void json_line(struct json_writer *w, int depth)
{
    if (!w->style->indented)
        return;
    tpl_build_literal(w->r, w->b, "\n");
    for (int i = 0; i < depth; i++)
        tpl_build_text(w->r, w->b, w->style->indent);
}

static void json_list(struct json_writer *w, const struct tpl_list *list, int depth)
{
    tpl_build_literal(w->r, w->b, "[");
    for (int i = 0; i < list->count; i++) {
        if (i > 0)
            tpl_build_text(w->r, w->b, w->style->item_separator);
        json_line(w, depth + 1);
        json_at(w, list->items[i], depth + 1);
    }
    if (list->count > 0)
        json_line(w, depth);
    tpl_build_literal(w->r, w->b, "]");
}

static void json_key(struct json_writer *w, struct tpl_value key)
{
    if (key.kind == TPL_TEXT) {
        json_text(w, key.text);
        return;
    }
    if (key.kind != TPL_NONE && !tpl_is_number(key))
        tpl_fail(w->r, "tojson: keys must be str, int, float, bool or None, not %s", tpl_type_name(key));
    tpl_build_literal(w->r, w->b, "\"");
    json_at(w, key, 0);
    tpl_build_literal(w->r, w->b, "\"");
}

static void json_dict(struct json_writer *w, const struct tpl_dict *dict, int depth)
{
    struct tpl_value *keys = dict->keys, *values = dict->values;
    if (w->style->sort_keys && dict->count > 1) {
        size_t bytes = (size_t)dict->count * sizeof *keys;
        keys = memcpy(tpl_alloc(w->r, bytes), keys, bytes);
        values = memcpy(tpl_alloc(w->r, bytes), values, bytes);
        tpl_sort(w->r, keys, values, dict->count, false);
    }
    tpl_build_literal(w->r, w->b, "{");
    for (int i = 0; i < dict->count; i++) {
        if (i > 0)
            tpl_build_text(w->r, w->b, w->style->item_separator);
        json_line(w, depth + 1);
        json_key(w, keys[i]);
        tpl_build_text(w->r, w->b, w->style->key_separator);
        json_at(w, values[i], depth + 1);
    }
    if (dict->count > 0)
        json_line(w, depth);
    tpl_build_literal(w->r, w->b, "}");
}

static void json_at(struct json_writer *w, struct tpl_value value, int depth)
{
    tpl_charge(w->r, 1);
    if (depth > TPL_VALUE_DEPTH_MAX)
        tpl_fail(w->r, "values are nested more than %d deep", TPL_VALUE_DEPTH_MAX);
    switch (value.kind) {
    case TPL_NONE:
        tpl_build_literal(w->r, w->b, "null");
        break;
    case TPL_BOOL:
        tpl_build_literal(w->r, w->b, value.boolean ? "true" : "false");
        break;
    case TPL_INT:
    case TPL_FLOAT:
        json_number(w, value);
        break;
    case TPL_TEXT:
        json_text(w, value.text);
        break;
    case TPL_LIST:
    case TPL_TUPLE:
        json_list(w, value.list, depth);
        break;
    case TPL_DICT:
        json_dict(w, value.dict, depth);
        break;
    default:
        tpl_fail(w->r, "Object of type %s is not JSON serializable", tpl_type_name(value));
    }
}

void tpl_build_json(struct tpl_render *r, struct tpl_builder *b, struct tpl_value value,
                    const struct tpl_json_style *style)
{
    json_at(&(struct json_writer){.r = r, .b = b, .style = style}, value, 0);
}
