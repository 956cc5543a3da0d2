/*
 * safetensors.c - the reader: an 8-byte length, a JSON header, the data; every rule of the reference reader.
 *
 * The data of the tensors must lie side by side from the first byte to the last of the file, so that no byte is read
 * twice and none can hide.
 */
#include "engine/model/safetensors.h"
#include "engine/base/alloc.h"
#include "engine/base/arena.h"
#include "engine/base/fsio.h"
#include "engine/model/text.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#define HEADER_BYTES_MAX 100000000u
#define NAME_BYTES_MAX 512

/* All dtypes of the format, with bits per element; dtype GD_DTYPE_COUNT: known, but not computed with here. */
static const struct dtype_row {
    const char *name;
    int bits;
    enum gd_dtype dtype;
} dtype_rows[] = {
    {"F32", 32, GD_F32},
    {"F16", 16, GD_F16},
    {"BF16", 16, GD_BF16},
    {"I32", 32, GD_I32},
    {"F64", 64, GD_DTYPE_COUNT},
    {"I64", 64, GD_DTYPE_COUNT},
    {"U64", 64, GD_DTYPE_COUNT},
    {"C64", 64, GD_DTYPE_COUNT},
    {"U32", 32, GD_DTYPE_COUNT},
    {"I16", 16, GD_DTYPE_COUNT},
    {"U16", 16, GD_DTYPE_COUNT},
    {"I8", 8, GD_DTYPE_COUNT},
    {"U8", 8, GD_DTYPE_COUNT},
    {"BOOL", 8, GD_DTYPE_COUNT},
    {"F8_E5M2", 8, GD_DTYPE_COUNT},
    {"F8_E4M3", 8, GD_DTYPE_COUNT},
    {"F8_E5M2FNUZ", 8, GD_DTYPE_COUNT},
    {"F8_E4M3FNUZ", 8, GD_DTYPE_COUNT},
    {"F8_E8M0", 8, GD_DTYPE_COUNT},
    {"F6_E2M3", 6, GD_DTYPE_COUNT},
    {"F6_E3M2", 6, GD_DTYPE_COUNT},
    {"F4", 4, GD_DTYPE_COUNT},
};

struct item {
    const char *name;
    const struct dtype_row *dtype;
    struct gd_tensor tensor;
    uint64_t begin, end; /* in the data section */
};

struct gd_safetensors {
    struct gd_map map;
    struct gd_arena arena;
    cJSON *metadata;
    struct item *items; /* in the order of their data */
    int *by_name;
    int count;
};

static const struct dtype_row *find_dtype(const char *name)
{
    for (size_t i = 0; i < GD_COUNT(dtype_rows); i++)
        if (strcmp(dtype_rows[i].name, name) == 0)
            return &dtype_rows[i];
    return NULL;
}

/* A whole, non-negative number that a double holds exactly. */
static bool natural(const cJSON *value, uint64_t *out)
{
    if (!cJSON_IsNumber(value))
        return false;
    double number = value->valuedouble;
    if (!(number >= 0) || number > 9007199254740992.0 || number != floor(number))
        return false;
    *out = (uint64_t)number;
    return true;
}

static bool read_shape(struct item *item, const cJSON *shape, struct gd_error *err)
{
    int rank = cJSON_GetArraySize(shape), axis = 0;
    uint64_t elements = 1;
    item->tensor.rank = rank;
    for (const cJSON *entry = shape->child; entry != NULL; entry = entry->next, axis++) {
        uint64_t size;
        if (!natural(entry, &size))
            return gd_fail(err, GD_BAD_MODEL, "shape[%d] is not a whole number >= 0", axis);
        if (__builtin_mul_overflow(elements, size, &elements))
            return gd_fail(err, GD_BAD_MODEL, "the product of its shape overflows");
        if (axis < GD_RANK_MAX)
            item->tensor.shape[axis] = (int64_t)size;
    }
    if (rank == 0) { /* a scalar */
        item->tensor.rank = 1;
        item->tensor.shape[0] = 1;
    }
    uint64_t bits;
    if (__builtin_mul_overflow(elements, (uint64_t)item->dtype->bits, &bits))
        return gd_fail(err, GD_BAD_MODEL, "the product of its shape and dtype %s overflows", item->dtype->name);
    if (bits % 8 != 0)
        return gd_fail(err, GD_BAD_MODEL, "%" PRIu64 " elements of %s are no whole number of bytes", elements,
                       item->dtype->name);
    if (bits / 8 != item->end - item->begin)
        return gd_fail(err, GD_BAD_MODEL,
                       "its shape and dtype %s need %" PRIu64 " bytes, data_offsets [%" PRIu64 ", %" PRIu64
                       "] hold %" PRIu64,
                       item->dtype->name, bits / 8, item->begin, item->end, item->end - item->begin);
    if (rank > GD_RANK_MAX || item->dtype->dtype == GD_DTYPE_COUNT)
        item->tensor.rank = -1;
    return true;
}

static bool read_item(struct item *item, const cJSON *entry, struct gd_error *err)
{
    static const char *const known[] = {"dtype", "shape", "data_offsets", NULL};
    if (!cJSON_IsObject(entry))
        return gd_fail(err, GD_BAD_MODEL, "its entry is not an object");
    const char *dtype = NULL;
    const cJSON *shape = NULL, *offsets = NULL;
    if (!gd_json_only_known(entry, "", known, err) ||
        !gd_json_get_string(entry, "", "dtype", true, 1, 32, &dtype, err) ||
        !gd_json_get_array(entry, "", "shape", true, &shape, err) ||
        !gd_json_get_array(entry, "", "data_offsets", true, &offsets, err))
        return gd_bad_model(err);
    item->dtype = find_dtype(dtype);
    if (item->dtype == NULL)
        return gd_fail(err, GD_UNSUPPORTED, "unknown dtype \"%s\"", gd_show_text(dtype).text);
    item->tensor.dtype = item->dtype->dtype == GD_DTYPE_COUNT ? GD_HANDLE : item->dtype->dtype;
    if (cJSON_GetArraySize(offsets) != 2 || !natural(offsets->child, &item->begin) ||
        !natural(offsets->child->next, &item->end))
        return gd_fail(err, GD_BAD_MODEL, "data_offsets are not two whole numbers >= 0");
    if (item->begin > item->end)
        return gd_fail(err, GD_BAD_MODEL, "data_offsets [%" PRIu64 ", %" PRIu64 "] run backwards", item->begin,
                       item->end);
    return read_shape(item, shape, err);
}

static int compare_place(const void *left, const void *right)
{
    const struct item *a = left, *b = right;
    if (a->begin != b->begin)
        return a->begin < b->begin ? -1 : 1;
    return a->end < b->end ? -1 : a->end > b->end;
}

static int compare_name(const void *left, const void *right, void *context)
{
    const struct item *items = context;
    return strcmp(items[*(const int *)left].name, items[*(const int *)right].name);
}

static bool read_metadata(struct gd_safetensors *file, cJSON *root, struct gd_error *err)
{
    file->metadata = cJSON_DetachItemFromObjectCaseSensitive(root, "__metadata__");
    if (file->metadata == NULL)
        return true;
    if (!cJSON_IsObject(file->metadata))
        return gd_fail(err, GD_BAD_MODEL, "__metadata__ is not an object");
    for (const cJSON *entry = file->metadata->child; entry != NULL; entry = entry->next)
        if (!cJSON_IsString(entry))
            return gd_fail(err, GD_BAD_MODEL, "__metadata__.%s is not a string", gd_show_text(entry->string).text);
    return true;
}

/* Side by side, from the first byte of the data to the last. */
static bool check_places(struct gd_safetensors *file, size_t data_begin, size_t data_bytes, struct gd_error *err)
{
    uint64_t at = 0;
    qsort(file->items, (size_t)file->count, sizeof file->items[0], compare_place);
    for (int i = 0; i < file->count; i++) {
        struct item *item = &file->items[i];
        if (item->begin < at)
            return gd_fail(err, GD_BAD_MODEL,
                           "tensor %s begins at offset %" PRIu64 " of the data, tensor %s ends at %" PRIu64,
                           gd_show_text(item->name).text, item->begin, gd_show_text(item[-1].name).text, at);
        if (item->begin > at)
            return gd_fail(err, GD_BAD_MODEL,
                           "a hole of %" PRIu64 " bytes at offset %" PRIu64 " of the data, before tensor %s",
                           item->begin - at, at, gd_show_text(item->name).text);
        if (item->end > data_bytes)
            return gd_fail(err, GD_BAD_MODEL,
                           "tensor %s ends at offset %" PRIu64 " of the data, the file has %zu bytes of it",
                           gd_show_text(item->name).text, item->end, data_bytes);
        item->tensor.data = (void *)(file->map.data + data_begin + item->begin);
        at = item->end;
    }
    if (at != data_bytes)
        return gd_fail(err, GD_BAD_MODEL, "%zu bytes of data, the tensors end at offset %" PRIu64, data_bytes, at);
    return true;
}

static bool read_header(struct gd_safetensors *file, cJSON *root, size_t data_begin, struct gd_error *err)
{
    if (!cJSON_IsObject(root))
        return gd_fail(err, GD_BAD_MODEL, "the header is not a JSON object");
    if (!read_metadata(file, root, err))
        return false;
    int count = cJSON_GetArraySize(root);
    file->items = gd_arena_alloc_array(&file->arena, (size_t)count + 1, sizeof file->items[0]);
    for (const cJSON *entry = root->child; entry != NULL; entry = entry->next) {
        struct item *item = &file->items[file->count++];
        size_t length = strlen(entry->string);
        if (length > NAME_BYTES_MAX)
            return gd_fail(err, GD_BAD_MODEL, "a tensor's name has %zu bytes, limit %d: %s", length, NAME_BYTES_MAX,
                           gd_show(entry->string, length).text);
        item->name = gd_arena_strndup(&file->arena, entry->string, length);
        if (!read_item(item, entry, err)) {
            gd_error_context(err, "tensor %s", gd_show_text(item->name).text);
            return false;
        }
    }
    if (!check_places(file, data_begin, file->map.size_bytes - data_begin, err))
        return false;
    file->by_name = gd_arena_alloc_array(&file->arena, (size_t)count + 1, sizeof file->by_name[0]);
    for (int i = 0; i < count; i++)
        file->by_name[i] = i;
    qsort_r(file->by_name, (size_t)count, sizeof file->by_name[0], compare_name, file->items);
    return true;
}

static bool parse(struct gd_safetensors *file, struct gd_error *err)
{
    const unsigned char *bytes = file->map.data;
    size_t size = file->map.size_bytes;
    uint64_t header = 0;
    if (size < 8)
        return gd_fail(err, GD_BAD_MODEL, "%zu bytes are too few for a safetensors file", size);
    for (int i = 7; i >= 0; i--)
        header = header << 8 | bytes[i];
    if (header > HEADER_BYTES_MAX)
        return gd_fail(err, GD_BAD_MODEL, "a header of %" PRIu64 " bytes, limit %u", header, HEADER_BYTES_MAX);
    if (header > size - 8)
        return gd_fail(err, GD_BAD_MODEL, "a header of %" PRIu64 " bytes does not fit in a file of %zu", header, size);
    if (header == 0 || bytes[8] != '{')
        return gd_fail(err, GD_BAD_MODEL, "the header does not begin with '{' at offset 8");
    cJSON *root = gd_json_parse_within((const char *)bytes + 8, (size_t)header, HEADER_BYTES_MAX, GD_JSON_FEW_VALUES, err);
    if (root == NULL) {
        gd_error_context(err, "header at offset 8");
        return gd_bad_model(err);
    }
    bool ok = read_header(file, root, 8 + (size_t)header, err);
    cJSON_Delete(root);
    return ok;
}

bool gd_safetensors_open(struct gd_safetensors **out, const char *path, struct gd_error *err)
{
    *out = NULL;
    struct gd_safetensors *file = gd_alloc(sizeof *file);
    if (!gd_map_open(&file->map, path, err)) {
        gd_free(file);
        return gd_bad_model(err);
    }
    if (!parse(file, err)) {
        gd_error_context(err, "%s", path);
        gd_safetensors_close(file);
        return false;
    }
    *out = file;
    return true;
}

void gd_safetensors_forget(const struct gd_safetensors *file)
{
    gd_map_forget(&file->map, 0, file->map.size_bytes);
}

const struct gd_map *gd_safetensors_map(const struct gd_safetensors *file)
{
    return &file->map;
}

void gd_safetensors_close(struct gd_safetensors *file)
{
    if (file == NULL)
        return;
    cJSON_Delete(file->metadata);
    gd_map_release(&file->map);
    gd_arena_release(&file->arena);
    gd_free(file);
}

int gd_safetensors_count(const struct gd_safetensors *file)
{
    return file->count;
}

const char *gd_safetensors_name(const struct gd_safetensors *file, int index)
{
    return file->items[index].name;
}

struct gd_tensor gd_safetensors_at(const struct gd_safetensors *file, int index)
{
    return file->items[index].tensor;
}

const char *gd_safetensors_dtype_name(const struct gd_safetensors *file, int index)
{
    return file->items[index].dtype->name;
}

bool gd_safetensors_find(const struct gd_safetensors *file, const char *name, struct gd_tensor *out)
{
    int low = 0, high = file->count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        int order = strcmp(name, file->items[file->by_name[middle]].name);
        if (order == 0) {
            *out = file->items[file->by_name[middle]].tensor;
            return true;
        }
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return false;
}

const char *gd_safetensors_metadata(const struct gd_safetensors *file, const char *key)
{
    return file->metadata != NULL ? cJSON_GetStringValue(gd_json_find(file->metadata, key)) : NULL;
}
