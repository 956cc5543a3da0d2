#include "engine/base/json.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/json_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define NAME_BYTES_MAX 64 /* longer names are not compared for likeness */
#define EXACT_MAX 9007199254740991.0 /* 2^53 - 1: up to here a double tells neighbouring integers apart */

cJSON *gd_json_parse_within(const char *text, size_t length, size_t length_max, size_t values_max, struct gd_error *err)
{
    if (length > length_max) {
        gd_fail(err, GD_TOO_LARGE, "JSON of %zu bytes, the limit is %zu", length, length_max);
        return NULL;
    }
    if (!gd_json_scan(text, length, values_max, err))
        return NULL;
    cJSON *value = cJSON_ParseWithLengthOpts(text, length, NULL, 0);
    if (value == NULL) /* the text is known to be good */
        gd_fail(err, GD_NO_MEMORY, "no memory for the values of %zu bytes of JSON", length);
    return value;
}

cJSON *gd_json_parse(const char *text, size_t length, size_t length_max, struct gd_error *err)
{
    return gd_json_parse_within(text, length, length_max, GD_JSON_VALUES_MAX, err);
}

cJSON *gd_json_parse_file(const char *path, size_t length_max, struct gd_error *err)
{
    char *text;
    size_t length;
    if (!gd_file_read(path, length_max, &text, &length, err))
        return NULL;
    cJSON *value = gd_json_parse_within(text, length, length_max, GD_JSON_FEW_VALUES, err);
    if (value == NULL)
        gd_error_context(err, "%s", path);
    gd_free(text);
    return value;
}

/* Behind the string that begins at `at`. */
static const char *skip_string(const char *at)
{
    for (at++; *at != '"'; at++)
        at += *at == '\\';
    return at + 1;
}

/* Numbers stand in the text in the tree's order, and outside strings only they have digits. */
static void keep_numbers(cJSON *value, const char **at)
{
    for (cJSON *child = value->child; child != NULL; child = child->next)
        keep_numbers(child, at);
    if (!cJSON_IsNumber(value))
        return;
    while (strchr("-0123456789", **at) == NULL)
        *at = **at == '"' ? skip_string(*at) : *at + 1;
    size_t length = strspn(*at, "+-.0123456789eE");
    char *spelling = gd_strndup(*at, length);
    cJSON *raw = cJSON_CreateRaw(spelling);
    value->type = (value->type & ~0xFF) | cJSON_Raw;
    value->valuestring = raw->valuestring;
    raw->valuestring = NULL;
    cJSON_Delete(raw);
    gd_free(spelling);
    *at += length;
}

void gd_json_keep_numbers(cJSON *value, const char *text)
{
    keep_numbers(value, &text);
}

cJSON *gd_json_find(const cJSON *object, const char *key)
{
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}

void gd_json_add_text(cJSON *object, const char *key, const char *text)
{
    cJSON_AddItemToObject(object, key, text != NULL ? cJSON_CreateString(text) : cJSON_CreateNull());
}

void gd_json_add_nonzero(cJSON *object, const char *key, int64_t value)
{
    cJSON_AddItemToObject(object, key, value != 0 ? cJSON_CreateNumber((double)value) : cJSON_CreateNull());
}

void gd_json_copy(cJSON *object, const char *key, const cJSON *from, const char *member)
{
    const cJSON *value = gd_json_find(from, member);
    cJSON_AddItemToObject(object, key, value != NULL ? cJSON_Duplicate(value, true) : cJSON_CreateNull());
}

cJSON *gd_json_stored(const char *text)
{
    struct gd_error err = {0};
    cJSON *json = text != NULL ? gd_json_parse(text, strlen(text), SIZE_MAX, &err) : NULL;
    return json != NULL ? json : cJSON_CreateNull();
}

/* "path.key", or "key" at the top. */
static const char *full_name(char out[GD_ERROR_MESSAGE_BYTES], const char *path, const char *key)
{
    (void)snprintf(out, GD_ERROR_MESSAGE_BYTES, "%s%s%s", path, path[0] != '\0' ? "." : "", key);
    return out;
}

/* What was found, for a message: kind and the start of the value. */
static void describe(const cJSON *value, char *out, size_t capacity)
{
    if (cJSON_IsString(value))
        (void)snprintf(out, capacity, "the string \"%.40s\"", value->valuestring);
    else if (cJSON_IsNumber(value))
        (void)snprintf(out, capacity, "%.17g", value->valuedouble);
    else if (cJSON_IsBool(value))
        (void)snprintf(out, capacity, "%s", cJSON_IsTrue(value) ? "true" : "false");
    else
        (void)snprintf(out, capacity, "%s",
                       cJSON_IsObject(value) ? "an object" : cJSON_IsArray(value) ? "an array" : "null");
}

static bool fail_value(struct gd_error *err, const char *path, const char *key, const cJSON *value, const char *expected)
{
    char name[GD_ERROR_MESSAGE_BYTES], found[128];
    describe(value, found, sizeof(found));
    return gd_fail_param(err, GD_INVALID, full_name(name, path, key), "'%.200s' must be %s, got %s", name, expected,
                         found);
}

enum found { ABSENT, PRESENT, FAILED };

static enum found look_up(const cJSON *object, const char *path, const char *key, bool required, cJSON **out,
                          struct gd_error *err)
{
    char name[GD_ERROR_MESSAGE_BYTES];
    if (object != NULL && !cJSON_IsNull(object) && !cJSON_IsObject(object)) {
        gd_fail_param(err, GD_INVALID, path, "'%.200s' must be an object to hold '%.200s'", path, key);
        return FAILED;
    }
    *out = gd_json_find(object, key);
    if (*out != NULL && !cJSON_IsNull(*out))
        return PRESENT;
    if (!required)
        return ABSENT;
    gd_fail_param(err, GD_MISSING, full_name(name, path, key), "'%.200s' is required", name);
    return FAILED;
}

bool gd_json_get_int(const cJSON *object, const char *path, const char *key, bool required, int64_t min, int64_t max,
                     int64_t *out, struct gd_error *err)
{
    cJSON *value;
    enum found found = look_up(object, path, key, required, &value, err);
    if (found != PRESENT)
        return found == ABSENT;
    char expected[96];
    bool integral = cJSON_IsNumber(value) && fabs(value->valuedouble) <= EXACT_MAX &&
                    value->valuedouble == trunc(value->valuedouble);
    if (integral && (int64_t)value->valuedouble >= min && (int64_t)value->valuedouble <= max) {
        *out = (int64_t)value->valuedouble;
        return true;
    }
    int64_t exact = (int64_t)EXACT_MAX;
    (void)snprintf(expected, sizeof(expected), "an integer from %lld to %lld", (long long)(min < -exact ? -exact : min),
                   (long long)(max > exact ? exact : max));
    return fail_value(err, path, key, value, expected);
}

bool gd_json_get_number(const cJSON *object, const char *path, const char *key, bool required, double min, double max,
                        double *out, struct gd_error *err)
{
    cJSON *value;
    enum found found = look_up(object, path, key, required, &value, err);
    if (found != PRESENT)
        return found == ABSENT;
    if (cJSON_IsNumber(value) && value->valuedouble >= min && value->valuedouble <= max) {
        *out = value->valuedouble;
        return true;
    }
    char expected[96];
    (void)snprintf(expected, sizeof(expected), "a number from %g to %g", min, max);
    return fail_value(err, path, key, value, expected);
}

bool gd_json_get_bool(const cJSON *object, const char *path, const char *key, bool required, bool *out,
                      struct gd_error *err)
{
    cJSON *value;
    enum found found = look_up(object, path, key, required, &value, err);
    if (found != PRESENT)
        return found == ABSENT;
    if (!cJSON_IsBool(value))
        return fail_value(err, path, key, value, "true or false");
    *out = cJSON_IsTrue(value) != 0;
    return true;
}

bool gd_json_get_string(const cJSON *object, const char *path, const char *key, bool required, size_t length_min,
                        size_t length_max, const char **out, struct gd_error *err)
{
    cJSON *value;
    enum found found = look_up(object, path, key, required, &value, err);
    if (found != PRESENT)
        return found == ABSENT;
    if (!cJSON_IsString(value))
        return fail_value(err, path, key, value, "a string");
    size_t length = strlen(value->valuestring);
    if (length < length_min || length > length_max) {
        char name[GD_ERROR_MESSAGE_BYTES];
        return gd_fail_param(err, GD_INVALID, full_name(name, path, key),
                             "'%.200s' must have %zu to %zu bytes, got %zu", name, length_min, length_max, length);
    }
    *out = value->valuestring;
    return true;
}

bool gd_json_get_object(const cJSON *object, const char *path, const char *key, bool required, const cJSON **out,
                        struct gd_error *err)
{
    cJSON *value;
    enum found found = look_up(object, path, key, required, &value, err);
    if (found != PRESENT)
        return found == ABSENT;
    if (!cJSON_IsObject(value))
        return fail_value(err, path, key, value, "an object");
    *out = value;
    return true;
}

bool gd_json_get_array(const cJSON *object, const char *path, const char *key, bool required, const cJSON **out,
                       struct gd_error *err)
{
    cJSON *value;
    enum found found = look_up(object, path, key, required, &value, err);
    if (found != PRESENT)
        return found == ABSENT;
    if (!cJSON_IsArray(value))
        return fail_value(err, path, key, value, "an array");
    *out = value;
    return true;
}

static bool is_known(const char *name, const char *const *known)
{
    for (size_t i = 0; known[i] != NULL; i++)
        if (strcmp(known[i], name) == 0)
            return true;
    return false;
}

static bool fail_unknown(struct gd_error *err, const char *path, const char *key, const char *const *known)
{
    char name[GD_ERROR_MESSAGE_BYTES];
    full_name(name, path, key);
    size_t count = 0;
    while (known[count] != NULL)
        count++;
    const char *nearest = gd_nearest_name(key, known, count);
    if (nearest != NULL)
        return gd_fail_param(err, GD_UNKNOWN_FIELD, name, "unknown parameter '%.200s'; did you mean '%s'?", name, nearest);
    struct gd_buf list = {0};
    for (size_t i = 0; i < count; i++)
        gd_buf_printf(&list, "%s%s", i > 0 ? ", " : "", known[i]);
    gd_fail_param(err, GD_UNKNOWN_FIELD, name, "unknown parameter '%.200s'; known here: %s", name,
                  list.length > 0 ? list.data : "none");
    gd_buf_release(&list);
    return false;
}

bool gd_json_only_known(const cJSON *object, const char *path, const char *const *known, struct gd_error *err)
{
    if (object == NULL || cJSON_IsNull(object))
        return true;
    if (!cJSON_IsObject(object)) {
        char found[128];
        describe(object, found, sizeof(found));
        return gd_fail_param(err, GD_INVALID, path, "'%.200s' must be an object, got %s",
                             path[0] != '\0' ? path : "the body", found);
    }
    const cJSON *member;
    cJSON_ArrayForEach(member, object)
        if (!is_known(member->string, known))
            return fail_unknown(err, path, member->string, known);
    return true;
}

/* Levenshtein distance, one row at a time. */
static size_t edit_distance(const char *a, size_t a_length, const char *b, size_t b_length)
{
    size_t row[NAME_BYTES_MAX + 1];
    for (size_t j = 0; j <= b_length; j++)
        row[j] = j;
    for (size_t i = 1; i <= a_length; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_length; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            best = row[j] + 1 < best ? row[j] + 1 : best;
            row[j] = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
        }
    }
    return row[b_length];
}

const char *gd_nearest_name(const char *name, const char *const *names, size_t count)
{
    const char *nearest = NULL;
    size_t length = strnlen(name, NAME_BYTES_MAX + 1);
    size_t best = length / 3 + 2; /* near: at most a third of the letters and one more */
    for (size_t i = 0; i < count && length <= NAME_BYTES_MAX; i++) {
        size_t other = strnlen(names[i], NAME_BYTES_MAX + 1);
        if (other > NAME_BYTES_MAX)
            continue;
        size_t distance = edit_distance(name, length, names[i], other);
        if (distance < best && distance < other) {
            best = distance;
            nearest = names[i];
        }
    }
    return nearest;
}
