#include "engine/eval/schema.h"

#include "engine/base/alloc.h"

#include <math.h>
#include <string.h>

#define NAMES_MAX 256

static const char *const types[] = {"array", "boolean", "integer", "null", "number", "object", "string"};
static const char *const keywords[] = {
    "$comment", "$id",         "$schema",  "additionalProperties", "anyOf",     "const",     "default",
    "description", "enum",     "examples", "exclusiveMaximum",     "exclusiveMinimum", "format", "items",
    "maxItems", "maxLength",   "maximum",  "minItems",             "minLength", "minimum",   "properties",
    "required", "title",       "type"};

/* ---- is it a schema ---- */

static bool is_one_of(const char *name, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

static bool check_type_name(const cJSON *type, const char *path, struct gd_error *err)
{
    if (cJSON_IsString(type) && is_one_of(type->valuestring, types, GD_COUNT(types)))
        return true;
    const char *near = cJSON_IsString(type) ? gd_nearest_name(type->valuestring, types, GD_COUNT(types)) : NULL;
    return gd_fail_param(err, GD_INVALID, path,
                         "%s must be one of array, boolean, integer, null, number, object, string%s%s%s", path,
                         near != NULL ? "; did you mean '" : "", near != NULL ? near : "", near != NULL ? "'?" : "");
}

static bool check_type(const cJSON *type, const char *path, struct gd_error *err)
{
    const cJSON *one;
    if (!cJSON_IsArray(type))
        return check_type_name(type, path, err);
    if (type->child == NULL)
        return gd_fail_param(err, GD_INVALID, path, "%s is an empty list", path);
    cJSON_ArrayForEach(one, type) if (!check_type_name(one, path, err)) return false;
    return true;
}

static bool check_each(const cJSON *list, const char *path, bool named, struct gd_error *err)
{
    const cJSON *one;
    int index = 0;
    bool ok = true;
    cJSON_ArrayForEach(one, list)
    {
        char *at = named ? gd_format("%s.%.64s", path, one->string) : gd_format("%s[%d]", path, index++);
        ok = ok && gd_schema_check(one, at, err);
        gd_free(at);
    }
    return ok;
}

static bool check_strings(const cJSON *list, const char *path, struct gd_error *err)
{
    const cJSON *one;
    bool ok = cJSON_IsArray(list);
    cJSON_ArrayForEach(one, list) ok = ok && cJSON_IsString(one);
    return ok || gd_fail_param(err, GD_INVALID, path, "%s must be a list of names", path);
}

static bool is_bound(const char *name)
{
    return strncmp(name, "max", 3) == 0 || strncmp(name, "min", 3) == 0 || strncmp(name, "exclusive", 9) == 0;
}

static bool check_bound(const cJSON *bound, const char *path, bool whole, struct gd_error *err)
{
    if (cJSON_IsNumber(bound) && (!whole || (bound->valuedouble >= 0 && bound->valuedouble == floor(bound->valuedouble))))
        return true;
    return gd_fail_param(err, GD_INVALID, path, "%s must be a %snumber", path, whole ? "whole, not negative " : "");
}

static bool check_keyword(const cJSON *keyword, const char *path, struct gd_error *err)
{
    const char *name = keyword->string;
    if (!is_one_of(name, keywords, GD_COUNT(keywords))) {
        const char *near = gd_nearest_name(name, keywords, GD_COUNT(keywords));
        return gd_fail_param(err, GD_UNSUPPORTED, path, "%s: the schema keyword '%.64s' is not supported%s%s%s", path, name,
                             near != NULL ? "; did you mean '" : "", near != NULL ? near : "", near != NULL ? "'?" : "");
    }
    if (strcmp(name, "type") == 0)
        return check_type(keyword, path, err);
    if (strcmp(name, "properties") == 0)
        return cJSON_IsObject(keyword) ? check_each(keyword, path, true, err)
                                       : gd_fail_param(err, GD_INVALID, path, "%s must be an object", path);
    if (strcmp(name, "anyOf") == 0)
        return cJSON_IsArray(keyword) && keyword->child != NULL
                   ? check_each(keyword, path, false, err)
                   : gd_fail_param(err, GD_INVALID, path, "%s must be a list of schemas", path);
    if (strcmp(name, "items") == 0)
        return gd_schema_check(keyword, path, err);
    if (strcmp(name, "additionalProperties") == 0)
        return cJSON_IsBool(keyword) || gd_schema_check(keyword, path, err);
    if (strcmp(name, "required") == 0)
        return check_strings(keyword, path, err);
    if (strcmp(name, "enum") == 0)
        return (cJSON_IsArray(keyword) && keyword->child != NULL) ||
               gd_fail_param(err, GD_INVALID, path, "%s must be a list of values", path);
    if (is_bound(name))
        return check_bound(keyword, path, strstr(name, "Length") != NULL || strstr(name, "Items") != NULL, err);
    return true;
}

bool gd_schema_check(const cJSON *schema, const char *path, struct gd_error *err)
{
    const cJSON *keyword;
    if (!cJSON_IsObject(schema))
        return gd_fail_param(err, GD_INVALID, path, "%s must be a JSON schema: an object", path);
    bool ok = true;
    cJSON_ArrayForEach(keyword, schema)
    {
        char *at = gd_format("%s.%.64s", path, keyword->string);
        ok = ok && check_keyword(keyword, at, err);
        gd_free(at);
    }
    return ok;
}

/* ---- does a value fit ---- */

static bool has_type(const cJSON *value, const char *type)
{
    switch (type[0]) {
    case 'a':
        return cJSON_IsArray(value);
    case 'b':
        return cJSON_IsBool(value);
    case 'i':
        return cJSON_IsNumber(value) && value->valuedouble == floor(value->valuedouble);
    case 'o':
        return cJSON_IsObject(value);
    case 's':
        return cJSON_IsString(value);
    default:
        return strcmp(type, "null") == 0 ? cJSON_IsNull(value) : cJSON_IsNumber(value);
    }
}

static bool fit_type(const cJSON *type, const cJSON *value, const char *path, struct gd_error *err)
{
    struct gd_buf names;
    gd_buf_init(&names, 256);
    const cJSON *one = cJSON_IsArray(type) ? type->child : type;
    bool fits = false;
    for (; one != NULL; one = cJSON_IsArray(type) ? one->next : NULL) {
        fits = fits || has_type(value, one->valuestring);
        gd_buf_printf(&names, "%s%s", names.length > 0 ? " or " : "", one->valuestring);
    }
    if (!fits)
        gd_fail_param(err, GD_INVALID, path, "%s must be of type %s", path, names.data);
    gd_buf_release(&names);
    return fits;
}

static bool fit_properties(const cJSON *schema, const cJSON *value, const char *path, struct gd_error *err)
{
    const cJSON *properties = gd_json_find(schema, "properties"), *more = gd_json_find(schema, "additionalProperties");
    const cJSON *member;
    bool ok = true;
    cJSON_ArrayForEach(member, value)
    {
        const cJSON *known = properties != NULL ? gd_json_find(properties, member->string) : NULL;
        char *at = gd_format("%s.%.64s", path, member->string);
        if (ok && known != NULL)
            ok = gd_schema_validate(known, member, at, err);
        else if (ok && cJSON_IsFalse(more))
            ok = gd_fail_param(err, GD_INVALID, at, "%s is not in the schema, which allows no other properties", at);
        else if (ok && cJSON_IsObject(more))
            ok = gd_schema_validate(more, member, at, err);
        gd_free(at);
    }
    return ok;
}

static bool fit_required(const cJSON *required, const cJSON *value, const char *path, struct gd_error *err)
{
    const cJSON *name;
    cJSON_ArrayForEach(name, required)
    {
        if (gd_json_find(value, name->valuestring) != NULL)
            continue;
        char *at = gd_format("%s.%.64s", path, name->valuestring);
        gd_fail_param(err, GD_INVALID, at, "%s is missing: the schema requires it", at);
        gd_free(at);
        return false;
    }
    return true;
}

static bool fit_items(const cJSON *items, const cJSON *value, const char *path, struct gd_error *err)
{
    const cJSON *one;
    int index = 0;
    bool ok = true;
    cJSON_ArrayForEach(one, value)
    {
        char *at = gd_format("%s[%d]", path, index++);
        ok = ok && gd_schema_validate(items, one, at, err);
        gd_free(at);
    }
    return ok;
}

static double characters(const char *text)
{
    size_t count = 0;
    for (; *text != '\0'; text++)
        count += ((unsigned char)*text & 0xC0u) != 0x80u;
    return (double)count;
}

/* The keyword bounds what `value` measures, if it is of that kind. */
static bool fit_bound(const cJSON *keyword, const cJSON *value, const char *path, struct gd_error *err)
{
    const char *name = keyword->string;
    bool length = strstr(name, "Length") != NULL, items = strstr(name, "Items") != NULL, exclusive = name[0] == 'e';
    bool lower = strstr(name, "min") != NULL || strstr(name, "Min") != NULL;
    if (length ? !cJSON_IsString(value) : items ? !cJSON_IsArray(value) : !cJSON_IsNumber(value))
        return true;
    double size = length ? characters(value->valuestring) : items ? cJSON_GetArraySize(value) : value->valuedouble;
    double bound = keyword->valuedouble;
    if (exclusive ? (lower ? size > bound : size < bound) : (lower ? size >= bound : size <= bound))
        return true;
    return gd_fail_param(err, GD_INVALID, path, "%s has %s%.17g, the schema's %s is %.17g", path,
                         length  ? "a length of "
                         : items ? "elements: "
                                 : "the value ",
                         size, name, bound);
}

static bool fit_enum(const cJSON *list, const cJSON *value, const char *path, struct gd_error *err)
{
    const cJSON *one;
    cJSON_ArrayForEach(one, list) if (cJSON_Compare(one, value, true)) return true;
    char *names = gd_json_print(list);
    gd_fail_param(err, GD_INVALID, path, "%s must be one of %.300s", path, names);
    gd_free(names);
    return false;
}

static bool fit_any(const cJSON *list, const cJSON *value, const char *path, struct gd_error *err)
{
    const cJSON *one;
    struct gd_error first = {0};
    cJSON_ArrayForEach(one, list)
    {
        struct gd_error ignored = {0};
        if (gd_schema_validate(one, value, path, &ignored))
            return true;
        if (first.code == GD_OK)
            first = ignored;
    }
    return gd_fail_param(err, GD_INVALID, path, "%s fits none of the schema's anyOf (of the first: %.300s)", path,
                         first.message);
}

bool gd_schema_validate(const cJSON *schema, const cJSON *value, const char *path, struct gd_error *err)
{
    const cJSON *type = gd_json_find(schema, "type"), *keyword;
    if (type != NULL && !fit_type(type, value, path, err))
        return false;
    if (cJSON_IsObject(value) && (!fit_required(gd_json_find(schema, "required"), value, path, err) ||
                                  !fit_properties(schema, value, path, err)))
        return false;
    cJSON_ArrayForEach(keyword, schema)
    {
        const char *name = keyword->string;
        bool ok = true;
        if (strcmp(name, "enum") == 0)
            ok = fit_enum(keyword, value, path, err);
        else if (strcmp(name, "const") == 0)
            ok = cJSON_Compare(keyword, value, true) ||
                 gd_fail_param(err, GD_INVALID, path, "%s is not the schema's const", path);
        else if (strcmp(name, "anyOf") == 0)
            ok = fit_any(keyword, value, path, err);
        else if (strcmp(name, "items") == 0 && cJSON_IsArray(value))
            ok = fit_items(keyword, value, path, err);
        else if (is_bound(name))
            ok = fit_bound(keyword, value, path, err);
        if (!ok)
            return false;
    }
    return true;
}

/* ---- may it be there ---- */

static bool may_be(const cJSON *schema, const char *type)
{
    const cJSON *given = gd_json_find(schema, "type"), *one;
    if (given == NULL)
        return true;
    if (!cJSON_IsArray(given))
        return strcmp(given->valuestring, type) == 0;
    cJSON_ArrayForEach(one, given) if (strcmp(one->valuestring, type) == 0) return true;
    return false;
}

static bool fail_unlisted(const cJSON *properties, const char *step, const char *what, const char *param,
                          struct gd_error *err)
{
    const char *names[NAMES_MAX];
    size_t count = 0;
    const cJSON *member;
    cJSON_ArrayForEach(member, properties) if (count < NAMES_MAX) names[count++] = member->string;
    const char *near = gd_nearest_name(step, names, count);
    return gd_fail_param(err, GD_INVALID, param, "%s: '%.64s' is not in item_schema%s%s%s", what, step,
                         near != NULL ? "; did you mean '" : "", near != NULL ? near : "", near != NULL ? "'?" : "");
}

static bool reaches_any(const cJSON *list, const char *const *steps, int count, const char *what, const char *param,
                        struct gd_error *err)
{
    const cJSON *one;
    struct gd_error first = {0};
    cJSON_ArrayForEach(one, list)
    {
        struct gd_error failed = {0};
        if (gd_schema_reaches(one, steps, count, what, param, &failed))
            return true;
        if (first.code == GD_OK)
            first = failed;
    }
    *err = first;
    return false;
}

bool gd_schema_reaches(const cJSON *schema, const char *const *steps, int count, const char *what, const char *param,
                       struct gd_error *err)
{
    const cJSON *any = gd_json_find(schema, "anyOf");
    if (count == 0)
        return true;
    const char *type = steps[0] != NULL ? "object" : "array";
    if (!may_be(schema, type))
        return gd_fail_param(err, GD_INVALID, param, "%s: %s%.64s%s is asked of what item_schema says is not an %s", what,
                             steps[0] != NULL ? "'" : "", steps[0] != NULL ? steps[0] : "an element",
                             steps[0] != NULL ? "'" : "", type);
    if (any != NULL && gd_json_find(schema, "properties") == NULL && gd_json_find(schema, "items") == NULL)
        return reaches_any(any, steps, count, what, param, err);
    if (steps[0] == NULL) {
        const cJSON *items = gd_json_find(schema, "items");
        return items == NULL || gd_schema_reaches(items, steps + 1, count - 1, what, param, err);
    }
    const cJSON *properties = gd_json_find(schema, "properties"), *more = gd_json_find(schema, "additionalProperties");
    const cJSON *known = properties != NULL ? gd_json_find(properties, steps[0]) : NULL;
    if (known != NULL)
        return gd_schema_reaches(known, steps + 1, count - 1, what, param, err);
    if (cJSON_IsObject(more))
        return gd_schema_reaches(more, steps + 1, count - 1, what, param, err);
    return cJSON_IsTrue(more) || (properties == NULL && !cJSON_IsFalse(more)) ||
           fail_unlisted(properties, steps[0], what, param, err);
}
