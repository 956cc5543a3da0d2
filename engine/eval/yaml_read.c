#include "engine/eval/yaml_read.h"

#include "engine/base/alloc.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

struct reader {
    yaml_document_t *document;
    int values;
    struct gd_error *err;
};

static bool fail_at(struct reader *reader, enum gd_code code, const yaml_node_t *node, const char *what)
{
    return gd_fail(reader->err, code, "YAML, line %zu, column %zu: %s", node->start_mark.line + 1, node->start_mark.column + 1,
                   what);
}

static bool is_one_of(const char *text, const char *words)
{
    size_t length = strlen(text);
    if (strchr(text, ' ') != NULL)
        return false;
    for (const char *at = words; length > 0 && (at = strstr(at, text)) != NULL; at += length)
        if ((at == words || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
            return true;
    return false;
}

/* `text` without underscores; NULL when it is too long to be a number of ours. */
static const char *digits_of(const char *text, char out[64])
{
    size_t used = 0;
    for (; *text != '\0'; text++) {
        if (*text == '_')
            continue;
        if (used == 63)
            return NULL;
        out[used++] = *text;
    }
    out[used] = '\0';
    return out;
}

static size_t span(const char *text, const char *of)
{
    return strspn(text, of);
}

/* [-+]?(0b[01_]+ | 0[0-7_]+ | 0 | [1-9][0-9_]* | 0x[0-9a-f_]+) */
static bool read_int(const char *text, double *value)
{
    char copy[64];
    const char *at = text + (*text == '-' || *text == '+');
    int base = 10;
    if (at[0] == '0' && (at[1] == 'b' || at[1] == 'x')) {
        base = at[1] == 'b' ? 2 : 16;
        at += 2;
        if (*at == '\0' || at[span(at, base == 2 ? "01_" : "0123456789abcdefABCDEF_")] != '\0')
            return false;
    } else if (at[0] == '0' && at[1] != '\0') {
        base = 8;
        if (at[span(at, "01234567_")] != '\0')
            return false;
    } else if (!isdigit((unsigned char)at[0]) || at[span(at, "0123456789_")] != '\0') {
        return false;
    }
    if (digits_of(at, copy) == NULL)
        return false;
    *value = base == 10 ? strtod(copy, NULL) : (double)strtoull(copy, NULL, base);
    *value = *text == '-' ? -*value : *value;
    return true;
}

/* [-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)? | \.[0-9][0-9_]*([eE][-+][0-9]+)? */
static bool read_float(const char *text, double *value)
{
    char copy[64];
    const char *at = text;
    if (*at == '.') {
        if (!isdigit((unsigned char)at[1]))
            return false;
    } else {
        at += *at == '-' || *at == '+';
        if (!isdigit((unsigned char)*at))
            return false;
        at += span(at, "0123456789_");
        if (*at != '.')
            return false;
    }
    at++;
    at += span(at, "0123456789_");
    if (*at == 'e' || *at == 'E') {
        at++;
        if ((*at != '-' && *at != '+') || !isdigit((unsigned char)at[1]))
            return false;
        at++;
        at += span(at, "0123456789");
    }
    if (*at != '\0' || digits_of(text, copy) == NULL)
        return false;
    *value = strtod(copy, NULL);
    return isfinite(*value);
}

/* 1:30 or 1:30.5, which YAML 1.1 takes for 90 */
static bool is_base_60(const char *text)
{
    const char *at = text + (*text == '-' || *text == '+');
    size_t digits = span(at, "0123456789_");
    if (digits == 0 || at[digits] != ':')
        return false;
    return at[span(at, "0123456789_:.")] == '\0' && strstr(at, "::") == NULL;
}

static cJSON *plain_scalar(struct reader *reader, const yaml_node_t *node, const char *text)
{
    double number;
    if (*text == '\0' || is_one_of(text, "~ null Null NULL"))
        return cJSON_CreateNull();
    if (is_one_of(text, "yes Yes YES true True TRUE on On ON"))
        return cJSON_CreateTrue();
    if (is_one_of(text, "no No NO false False FALSE off Off OFF"))
        return cJSON_CreateFalse();
    if (read_int(text, &number) || read_float(text, &number))
        return cJSON_CreateNumber(number);
    if (is_base_60(text) || is_one_of(text, ".inf .Inf .INF -.inf -.Inf -.INF +.inf +.Inf +.INF .nan .NaN .NAN")) {
        fail_at(reader, GD_UNSUPPORTED, node, "a number in base 60, infinite or none: put it in quotes if it is text");
        return NULL;
    }
    return cJSON_CreateString(text);
}

static const char *scalar_text(struct reader *reader, const yaml_node_t *node)
{
    const char *text = (const char *)node->data.scalar.value;
    if (strlen(text) == node->data.scalar.length)
        return text;
    fail_at(reader, GD_INVALID, node, "a NUL character");
    return NULL;
}

static bool check_tag(struct reader *reader, const yaml_node_t *node)
{
    static const char *const known[] = {YAML_STR_TAG, YAML_SEQ_TAG, YAML_MAP_TAG, YAML_NULL_TAG, YAML_BOOL_TAG, YAML_INT_TAG,
                                        YAML_FLOAT_TAG, "!"};
    const char *tag = node->tag != NULL ? (const char *)node->tag : "";
    for (size_t i = 0; i < GD_COUNT(known); i++)
        if (strcmp(tag, known[i]) == 0)
            return true;
    if (strcmp(tag, "!function") == 0)
        return fail_at(reader, GD_UNSUPPORTED, node,
                       "!function names Python code, and none is run: say it with templates, filters and metrics");
    char *what = gd_format("the tag %.64s is not supported", tag);
    fail_at(reader, GD_UNSUPPORTED, node, what);
    gd_free(what);
    return false;
}

static cJSON *read_node(struct reader *reader, int index, int depth);

/* <<: *anchor, whose keys come after the mapping's own */
static bool merge(struct reader *reader, cJSON *object, int index, int depth)
{
    const yaml_node_t *node = yaml_document_get_node(reader->document, index);
    if (node->type == YAML_SEQUENCE_NODE) {
        for (yaml_node_item_t *item = node->data.sequence.items.start; item < node->data.sequence.items.top; item++)
            if (!merge(reader, object, *item, depth + 1))
                return false;
        return true;
    }
    cJSON *more = read_node(reader, index, depth + 1);
    if (more == NULL)
        return false;
    bool ok = cJSON_IsObject(more) || fail_at(reader, GD_INVALID, node, "<< needs a mapping");
    while (ok && more->child != NULL) {
        cJSON *child = cJSON_DetachItemViaPointer(more, more->child);
        if (gd_json_find(object, child->string) == NULL)
            cJSON_AddItemToObject(object, child->string, child);
        else
            cJSON_Delete(child);
    }
    cJSON_Delete(more);
    return ok;
}

static bool read_pair(struct reader *reader, cJSON *object, const yaml_node_pair_t *pair, bool merging, int depth)
{
    const yaml_node_t *key = yaml_document_get_node(reader->document, pair->key);
    if (key->type != YAML_SCALAR_NODE)
        return fail_at(reader, GD_INVALID, key, "a key must be a text");
    const char *name = scalar_text(reader, key);
    if (name == NULL)
        return false;
    bool is_merge = strcmp(name, "<<") == 0 && key->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    if (is_merge != merging)
        return true;
    if (is_merge)
        return merge(reader, object, pair->value, depth);
    if (gd_json_find(object, name) != NULL) {
        char *what = gd_format("the key '%.64s' is there twice", name);
        fail_at(reader, GD_INVALID, key, what);
        gd_free(what);
        return false;
    }
    cJSON *value = read_node(reader, pair->value, depth + 1);
    return value != NULL && cJSON_AddItemToObject(object, name, value);
}

static cJSON *read_mapping(struct reader *reader, const yaml_node_t *node, int depth)
{
    cJSON *object = cJSON_CreateObject();
    bool ok = true;
    for (int merging = 0; merging < 2; merging++)
        for (yaml_node_pair_t *pair = node->data.mapping.pairs.start; ok && pair < node->data.mapping.pairs.top; pair++)
            ok = read_pair(reader, object, pair, merging == 1, depth);
    if (ok)
        return object;
    cJSON_Delete(object);
    return NULL;
}

static cJSON *read_sequence(struct reader *reader, const yaml_node_t *node, int depth)
{
    cJSON *array = cJSON_CreateArray();
    for (yaml_node_item_t *item = node->data.sequence.items.start; item < node->data.sequence.items.top; item++) {
        cJSON *value = read_node(reader, *item, depth + 1);
        if (value == NULL) {
            cJSON_Delete(array);
            return NULL;
        }
        cJSON_AddItemToArray(array, value);
    }
    return array;
}

static cJSON *read_node(struct reader *reader, int index, int depth)
{
    const yaml_node_t *node = yaml_document_get_node(reader->document, index);
    if (depth > GD_JSON_DEPTH_MAX || ++reader->values > GD_YAML_VALUES_MAX) {
        fail_at(reader, GD_INVALID, node, depth > GD_JSON_DEPTH_MAX ? "nested too deeply" : "too many values (aliases count)");
        return NULL;
    }
    if (!check_tag(reader, node))
        return NULL;
    if (node->type == YAML_MAPPING_NODE)
        return read_mapping(reader, node, depth);
    if (node->type == YAML_SEQUENCE_NODE)
        return read_sequence(reader, node, depth);
    const char *text = scalar_text(reader, node);
    if (text == NULL)
        return NULL;
    return node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE ? plain_scalar(reader, node, text) : cJSON_CreateString(text);
}

static cJSON *read_document(yaml_parser_t *parser, struct gd_error *err)
{
    yaml_document_t document, second;
    if (!yaml_parser_load(parser, &document)) {
        gd_fail(err, GD_INVALID, "YAML, line %zu, column %zu: %s%s%s", parser->problem_mark.line + 1,
                parser->problem_mark.column + 1, parser->context != NULL ? parser->context : "",
                parser->context != NULL ? ": " : "", parser->problem != NULL ? parser->problem : "it cannot be read");
        return NULL;
    }
    struct reader reader = {.document = &document, .err = err};
    cJSON *json = NULL;
    if (yaml_document_get_root_node(&document) == NULL)
        gd_fail(err, GD_INVALID, "YAML: there is nothing in it");
    else
        json = read_node(&reader, 1, 0);
    yaml_document_delete(&document);
    if (json == NULL)
        return NULL;
    bool read = yaml_parser_load(parser, &second), more = read && yaml_document_get_root_node(&second) != NULL;
    if (read)
        yaml_document_delete(&second);
    if (read && !more)
        return json;
    cJSON_Delete(json);
    gd_fail(err, GD_INVALID, more ? "YAML: one document is expected, there are more" : "YAML, line %zu: it cannot be read",
            parser->problem_mark.line + 1);
    return NULL;
}

cJSON *gd_yaml_parse(const char *text, size_t length, struct gd_error *err)
{
    yaml_parser_t parser;
    if (length > GD_YAML_BYTES_MAX) {
        gd_fail(err, GD_TOO_LARGE, "YAML of %zu bytes; at most %u are read", length, GD_YAML_BYTES_MAX);
        return NULL;
    }
    if (!gd_utf8_valid(text, length)) {
        gd_fail(err, GD_INVALID, "YAML: it is not UTF-8 text");
        return NULL;
    }
    if (!yaml_parser_initialize(&parser)) {
        gd_fail(err, GD_NO_MEMORY, "YAML: no memory");
        return NULL;
    }
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, length);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    cJSON *json = read_document(&parser, err);
    yaml_parser_delete(&parser);
    return json;
}
