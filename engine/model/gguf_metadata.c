/* gguf_metadata.c - typed access to the metadata of a GGUF file; nothing is read as what it is not. */
#include "engine/base/json.h"
#include "engine/model/gguf_file.h"
#include "engine/model/text.h"
#include <inttypes.h>
#include <math.h>

const struct gd_gguf_value *gd_gguf_value(const struct gd_gguf *file, const char *key)
{
    int low = 0, high = file->value_count;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(key, file->values[middle].key);
        if (order == 0)
            return &file->values[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

bool gd_gguf_has(const struct gd_gguf *file, const char *key)
{
    return gd_gguf_value(file, key) != NULL;
}

/* The value or NULL; *ok tells whether NULL is an error. */
static const struct gd_gguf_value *find(const struct gd_gguf *file, const char *key, bool required, bool *ok,
                                        struct gd_error *err)
{
    const struct gd_gguf_value *value = gd_gguf_value(file, key);
    *ok = value != NULL || !required || gd_fail_param(err, GD_BAD_MODEL, key, "key %s is missing", key);
    return value;
}

static bool wrong_type(const struct gd_gguf *file, const struct gd_gguf_value *value, const char *wanted,
                       struct gd_error *err)
{
    bool array = value->kind == GD_GGUF_ARRAY;
    return gd_fail_param(err, GD_BAD_MODEL, value->key, "key %s is %s%s, not %s", value->key,
                         array ? "an array of " : "", gd_gguf_kind_name(array ? value->item_kind : value->kind),
                         wanted);
}

static uint64_t load(const unsigned char *bytes, size_t count)
{
    uint64_t value = 0;
    while (count-- > 0)
        value = value << 8 | bytes[count];
    return value;
}

/* False for kinds that are no integers and for values beyond int64. */
static bool integer(uint32_t kind, const unsigned char *bytes, int64_t *out)
{
    size_t size = gd_gguf_kind_bytes(kind);
    uint64_t bits = load(bytes, size);
    switch (kind) {
    case GD_GGUF_U8:
    case GD_GGUF_U16:
    case GD_GGUF_U32:
        *out = (int64_t)bits;
        return true;
    case GD_GGUF_U64:
        *out = (int64_t)bits;
        return bits <= INT64_MAX;
    case GD_GGUF_I8:
        *out = (int8_t)bits;
        return true;
    case GD_GGUF_I16:
        *out = (int16_t)bits;
        return true;
    case GD_GGUF_I32:
        *out = (int32_t)bits;
        return true;
    case GD_GGUF_I64:
        *out = (int64_t)bits;
        return true;
    default:
        return false;
    }
}

static bool check_int(const struct gd_gguf *file, const char *key, int64_t value, int64_t min, int64_t max,
                      struct gd_error *err)
{
    if (value >= min && value <= max)
        return true;
    return gd_fail_param(err, GD_BAD_MODEL, key, "key %s is %" PRId64 ", allowed are %" PRId64 " to %" PRId64, key,
                         value, min, max);
}

bool gd_gguf_get_int(const struct gd_gguf *file, const char *key, bool required, int64_t min, int64_t max, int64_t *out,
                     struct gd_error *err)
{
    bool ok;
    int64_t number = 0;
    const struct gd_gguf_value *value = find(file, key, required, &ok, err);
    if (value == NULL)
        return ok;
    if (!integer(value->kind, value->bytes, &number))
        return wrong_type(file, value, "an integer", err);
    if (!check_int(file, key, number, min, max, err))
        return false;
    *out = number;
    return true;
}

bool gd_gguf_get_uniform_int(const struct gd_gguf *file, const char *key, bool required, int64_t min, int64_t max,
                             int64_t *out, struct gd_error *err)
{
    bool ok;
    const struct gd_gguf_value *value = find(file, key, required, &ok, err);
    if (value == NULL || value->kind != GD_GGUF_ARRAY)
        return ok && gd_gguf_get_int(file, key, required, min, max, out, err);
    int64_t first = 0, number = 0;
    size_t each = gd_gguf_kind_bytes(value->item_kind);
    for (uint64_t i = 0; i < value->count; i++) {
        if (!integer(value->item_kind, each > 0 ? value->bytes + i * each : value->bytes, &number))
            return wrong_type(file, value, "an integer or an array of integers", err);
        if (i == 0)
            first = number;
        if (number != first)
            return gd_fail_param(err, GD_UNSUPPORTED, key,
                                 "key %s differs by layer (%" PRId64 " and %" PRId64 "), which is not supported", key,
                                 first, number);
    }
    if (value->count == 0)
        return gd_fail_param(err, GD_BAD_MODEL, key, "key %s is an empty array", key);
    if (!check_int(file, key, first, min, max, err))
        return false;
    *out = first;
    return true;
}

bool gd_gguf_get_number(const struct gd_gguf *file, const char *key, bool required, double min, double max, double *out,
                        struct gd_error *err)
{
    bool ok;
    int64_t whole = 0;
    double number = 0;
    float single;
    const struct gd_gguf_value *value = find(file, key, required, &ok, err);
    if (value == NULL)
        return ok;
    if (value->kind == GD_GGUF_F32) {
        memcpy(&single, value->bytes, sizeof single);
        number = single;
    } else if (value->kind == GD_GGUF_F64)
        memcpy(&number, value->bytes, sizeof number);
    else if (integer(value->kind, value->bytes, &whole))
        number = (double)whole;
    else
        return wrong_type(file, value, "a number", err);
    if (!(number >= min && number <= max)) /* NaN too */
        return gd_fail_param(err, GD_BAD_MODEL, key, "key %s is %g, allowed are %g to %g", key, number, min, max);
    *out = number;
    return true;
}

bool gd_gguf_get_bool(const struct gd_gguf *file, const char *key, bool required, bool *out, struct gd_error *err)
{
    bool ok;
    const struct gd_gguf_value *value = find(file, key, required, &ok, err);
    if (value == NULL)
        return ok;
    if (value->kind != GD_GGUF_BOOL)
        return wrong_type(file, value, "a bool", err);
    if (value->bytes[0] > 1)
        return gd_fail_param(err, GD_BAD_MODEL, key, "key %s is a bool of value %u", key, value->bytes[0]);
    *out = value->bytes[0] == 1;
    return true;
}

/* `bytes`: length and characters, known to be inside the file. */
static const char *copy_string(struct gd_gguf *file, const unsigned char *bytes, size_t *length)
{
    *length = (size_t)load(bytes, 8);
    return gd_arena_strndup(&file->arena, (const char *)bytes + 8, *length);
}

bool gd_gguf_get_string(struct gd_gguf *file, const char *key, bool required, const char **out, struct gd_error *err)
{
    bool ok;
    const struct gd_gguf_value *value = find(file, key, required, &ok, err);
    if (value == NULL)
        return ok;
    if (value->kind != GD_GGUF_STRING)
        return wrong_type(file, value, "a string", err);
    size_t length;
    const char *text = copy_string(file, value->bytes, &length);
    if (memchr(value->bytes + 8, 0, length) != NULL || !gd_utf8_valid((const char *)value->bytes + 8, length))
        return gd_fail_param(err, GD_BAD_MODEL, key, "key %s is not valid UTF-8 without NUL", key);
    *out = text;
    return true;
}

/* An array of `kind` of at most count_max items; NULL with *ok as find(). */
static const struct gd_gguf_value *find_array(const struct gd_gguf *file, const char *key, bool required, uint32_t kind,
                                              const char *wanted, int64_t count_max, bool *ok, struct gd_error *err)
{
    const struct gd_gguf_value *value = find(file, key, required, ok, err);
    if (value == NULL)
        return NULL;
    *ok = true;
    if (value->kind != GD_GGUF_ARRAY || value->item_kind != kind)
        *ok = wrong_type(file, value, wanted, err);
    else if (value->count > (uint64_t)count_max)
        *ok = gd_fail_param(err, GD_BAD_MODEL, key, "key %s has %" PRIu64 " items, limit %" PRId64, key, value->count,
                            count_max);
    return *ok ? value : NULL;
}

bool gd_gguf_get_strings(struct gd_gguf *file, const char *key, bool required, int64_t count_max,
                         const char *const **out, int *count, struct gd_error *err)
{
    bool ok;
    const struct gd_gguf_value *value =
        find_array(file, key, required, GD_GGUF_STRING, "an array of strings", count_max, &ok, err);
    if (value == NULL)
        return ok;
    const char **strings = gd_arena_alloc_array(&file->arena, (size_t)value->count + 1, sizeof strings[0]);
    const unsigned char *bytes = value->bytes;
    for (uint64_t i = 0; i < value->count; i++) {
        size_t length;
        strings[i] = copy_string(file, bytes, &length);
        if (memchr(bytes + 8, 0, length) != NULL)
            return gd_fail_param(err, GD_BAD_MODEL, key, "key %s[%" PRIu64 "] holds a NUL", key, i);
        bytes += 8 + length;
    }
    *out = strings;
    *count = (int)value->count;
    return true;
}

/* Items of four bytes, copied to where they are aligned. */
static bool get_words(struct gd_gguf *file, const char *key, bool required, uint32_t kind, const char *wanted,
                      int64_t count_max, const void **out, int *count, struct gd_error *err)
{
    bool ok;
    const struct gd_gguf_value *value = find_array(file, key, required, kind, wanted, count_max, &ok, err);
    if (value == NULL)
        return ok;
    void *words = gd_arena_alloc_array(&file->arena, (size_t)value->count + 1, 4);
    memcpy(words, value->bytes, (size_t)value->count * 4);
    *out = words;
    *count = (int)value->count;
    return true;
}

bool gd_gguf_get_i32s(struct gd_gguf *file, const char *key, bool required, int64_t count_max, const int32_t **out,
                      int *count, struct gd_error *err)
{
    const void *words = *out;
    bool ok = get_words(file, key, required, GD_GGUF_I32, "an array of int32", count_max, &words, count, err);
    *out = words;
    return ok;
}

bool gd_gguf_get_f32s(struct gd_gguf *file, const char *key, bool required, int64_t count_max, const float **out,
                      int *count, struct gd_error *err)
{
    const void *words = *out;
    bool ok = get_words(file, key, required, GD_GGUF_F32, "an array of float32", count_max, &words, count, err);
    *out = words;
    return ok;
}

bool gd_gguf_get_bytes(const struct gd_gguf *file, const char *key, bool required, int64_t count_max, const void **out,
                       int *count, struct gd_error *err)
{
    const struct gd_gguf_value *value = gd_gguf_value(file, key);
    bool ok, narrow = value != NULL && value->kind == GD_GGUF_ARRAY && value->item_kind == GD_GGUF_I8;
    value = find_array(file, key, required, narrow ? GD_GGUF_I8 : GD_GGUF_U8, "an array of bytes", count_max, &ok, err);
    if (value == NULL)
        return ok;
    *out = value->bytes;
    *count = (int)value->count;
    return true;
}
