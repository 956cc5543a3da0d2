/*
 * gguf.c - the layout of a GGUF file: header, metadata table, tensor table, data section.
 *
 * Every read goes through `struct cursor`, which knows how many bytes are left; every count is compared with the
 * bytes that so many entries need at least, before memory is taken for them.
 */
#include "engine/model/gguf.h"
#include "engine/base/alloc.h"
#include "engine/model/gguf_file.h"
#include "engine/model/text.h"
#include <inttypes.h>
#include <stdlib.h>

#define VALUE_BYTES_MIN 14  /* key length, one byte of key, kind, one byte of value */
#define TENSOR_BYTES_MIN 33 /* name length, one byte of name, rank, one dimension, type, offset */
#define VALUES_MAX (1 << 16)  /* a thousand times what files have: what each costs here is several times its bytes */
#define TENSORS_MAX (1 << 17)
#define ALIGNMENT_DEFAULT 32
#define ALIGNMENT_MAX (1 << 20)

static const char *const kind_names[GD_GGUF_KIND_COUNT] = {
    "uint8", "int8",   "uint16", "int16",  "uint32", "int32",   "float32",
    "bool",  "string", "array",  "uint64", "int64",  "float64",
};
static const unsigned char kind_bytes[GD_GGUF_KIND_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

/* The tensor types of the format; dtype GD_DTYPE_COUNT: known by name only. */
static const struct type_row {
    uint32_t id;
    const char *name;
    enum gd_dtype dtype;
} type_rows[] = {
    {0, "F32", GD_F32},
    {1, "F16", GD_F16},
    {2, "Q4_0", GD_Q4_0},
    {3, "Q4_1", GD_Q4_1},
    {6, "Q5_0", GD_Q5_0},
    {7, "Q5_1", GD_Q5_1},
    {8, "Q8_0", GD_Q8_0},
    {9, "Q8_1", GD_DTYPE_COUNT},
    {10, "Q2_K", GD_DTYPE_COUNT},
    {11, "Q3_K", GD_DTYPE_COUNT},
    {12, "Q4_K", GD_Q4_K},
    {13, "Q5_K", GD_Q5_K},
    {14, "Q6_K", GD_Q6_K},
    {15, "Q8_K", GD_DTYPE_COUNT},
    {16, "IQ2_XXS", GD_DTYPE_COUNT},
    {17, "IQ2_XS", GD_DTYPE_COUNT},
    {18, "IQ3_XXS", GD_DTYPE_COUNT},
    {19, "IQ1_S", GD_DTYPE_COUNT},
    {20, "IQ4_NL", GD_DTYPE_COUNT},
    {21, "IQ3_S", GD_DTYPE_COUNT},
    {22, "IQ2_S", GD_DTYPE_COUNT},
    {23, "IQ4_XS", GD_DTYPE_COUNT},
    {24, "I8", GD_DTYPE_COUNT},
    {25, "I16", GD_DTYPE_COUNT},
    {26, "I32", GD_DTYPE_COUNT},
    {27, "I64", GD_DTYPE_COUNT},
    {28, "F64", GD_DTYPE_COUNT},
    {29, "IQ1_M", GD_DTYPE_COUNT},
    {30, "BF16", GD_BF16},
    {34, "TQ1_0", GD_DTYPE_COUNT},
    {35, "TQ2_0", GD_DTYPE_COUNT},
    {39, "MXFP4", GD_DTYPE_COUNT},
    {40, "NVFP4", GD_DTYPE_COUNT},
    {41, "Q1_0", GD_DTYPE_COUNT},
};

const char *gd_gguf_kind_name(uint32_t kind)
{
    return kind < GD_GGUF_KIND_COUNT ? kind_names[kind] : "unknown";
}

size_t gd_gguf_kind_bytes(uint32_t kind)
{
    return kind < GD_GGUF_KIND_COUNT ? kind_bytes[kind] : 0;
}

struct cursor {
    const unsigned char *data;
    size_t at, size;
};

static size_t bytes_left(const struct cursor *cursor)
{
    return cursor->size - cursor->at;
}

static bool take(struct cursor *cursor, size_t bytes, const unsigned char **out, const char *what, struct gd_error *err)
{
    if (bytes > bytes_left(cursor))
        return gd_fail(err, GD_BAD_MODEL, "the file ends at offset %zu, inside %s that begins at %zu", cursor->size,
                       what, cursor->at);
    *out = cursor->data + cursor->at;
    cursor->at += bytes;
    return true;
}

static bool take_u32(struct cursor *cursor, uint32_t *out, const char *what, struct gd_error *err)
{
    const unsigned char *bytes = NULL;
    if (!take(cursor, 4, &bytes, what, err))
        return false;
    *out = (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    return true;
}

static bool take_u64(struct cursor *cursor, uint64_t *out, const char *what, struct gd_error *err)
{
    uint32_t low, high;
    if (!take_u32(cursor, &low, what, err) || !take_u32(cursor, &high, what, err))
        return false;
    *out = (uint64_t)high << 32 | low;
    return true;
}

/* A key or a tensor's name: printable ASCII, as the format wants it. */
static bool take_name(struct gd_gguf *file, struct cursor *cursor, const char **out, const char *what,
                      struct gd_error *err)
{
    uint64_t length;
    size_t begin = cursor->at;
    const unsigned char *bytes = NULL;
    if (!take_u64(cursor, &length, what, err))
        return false;
    if (length == 0 || length > GD_GGUF_NAME_BYTES_MAX)
        return gd_fail(err, GD_BAD_MODEL, "%s at offset %zu has %" PRIu64 " bytes, 1 to %d are allowed", what, begin,
                       length, GD_GGUF_NAME_BYTES_MAX);
    if (!take(cursor, (size_t)length, &bytes, what, err))
        return false;
    for (size_t i = 0; i < length; i++)
        if (bytes[i] <= 0x20 || bytes[i] >= 0x7f)
            return gd_fail(err, GD_BAD_MODEL, "%s at offset %zu is not printable ASCII: %s", what, begin,
                           gd_show((const char *)bytes, (size_t)length).text);
    *out = gd_arena_strndup(&file->arena, (const char *)bytes, (size_t)length);
    return true;
}

static bool skip_string(struct cursor *cursor, struct gd_error *err)
{
    uint64_t length;
    const unsigned char *bytes = NULL;
    size_t begin = cursor->at;
    if (!take_u64(cursor, &length, "a string", err))
        return false;
    if (length > bytes_left(cursor))
        return gd_fail(err, GD_BAD_MODEL, "a string of %" PRIu64 " bytes at offset %zu, %zu are left", length, begin,
                       bytes_left(cursor));
    return take(cursor, (size_t)length, &bytes, "a string", err);
}

static bool read_array(struct cursor *cursor, struct gd_gguf_value *value, struct gd_error *err)
{
    size_t begin = cursor->at;
    if (!take_u32(cursor, &value->item_kind, "an array", err) || !take_u64(cursor, &value->count, "an array", err))
        return false;
    if (value->item_kind == GD_GGUF_ARRAY)
        return gd_fail(err, GD_BAD_MODEL, "an array of arrays at offset %zu", begin);
    if (value->item_kind >= GD_GGUF_KIND_COUNT)
        return gd_fail(err, GD_BAD_MODEL, "an array of unknown type 0x%x at offset %zu", value->item_kind, begin);
    size_t each = value->item_kind == GD_GGUF_STRING ? 8 : kind_bytes[value->item_kind];
    if (value->count > bytes_left(cursor) / each)
        return gd_fail(err, GD_BAD_MODEL, "an array of %" PRIu64 " %ss at offset %zu, %zu bytes are left", value->count,
                       kind_names[value->item_kind], begin, bytes_left(cursor));
    value->bytes = cursor->data + cursor->at;
    if (value->item_kind != GD_GGUF_STRING) {
        cursor->at += (size_t)value->count * each;
        return true;
    }
    for (uint64_t i = 0; i < value->count; i++)
        if (!skip_string(cursor, err))
            return false;
    return true;
}

static bool read_value(struct gd_gguf *file, struct cursor *cursor, struct gd_gguf_value *value, struct gd_error *err)
{
    size_t begin;
    bool ok = take_name(file, cursor, &value->key, "a key", err);
    if (!ok)
        return false;
    begin = cursor->at;
    if (!take_u32(cursor, &value->kind, "a value", err))
        return false;
    if (value->kind >= GD_GGUF_KIND_COUNT)
        ok = gd_fail(err, GD_BAD_MODEL, "unknown type 0x%x at offset %zu", value->kind, begin);
    else if (value->kind == GD_GGUF_ARRAY)
        ok = read_array(cursor, value, err);
    else if (value->kind == GD_GGUF_STRING) {
        value->bytes = cursor->data + cursor->at;
        ok = skip_string(cursor, err);
    } else
        ok = take(cursor, kind_bytes[value->kind], &value->bytes, "a value", err);
    if (!ok)
        gd_error_context(err, "key %s", value->key);
    return ok;
}

static int compare_keys(const void *left, const void *right)
{
    return strcmp(((const struct gd_gguf_value *)left)->key, ((const struct gd_gguf_value *)right)->key);
}

static bool read_values(struct gd_gguf *file, struct cursor *cursor, uint64_t count, struct gd_error *err)
{
    if (count > bytes_left(cursor) / VALUE_BYTES_MIN)
        return gd_fail(err, GD_BAD_MODEL, "%" PRIu64 " metadata entries do not fit in the %zu bytes that are left from offset %zu",
                       count, bytes_left(cursor), cursor->at);
    if (count > VALUES_MAX)
        return gd_fail(err, GD_BAD_MODEL, "%" PRIu64 " metadata entries from offset %zu, at most %d are read", count, cursor->at, VALUES_MAX);
    file->values = gd_alloc_array((size_t)count + 1, sizeof file->values[0]);
    for (; (uint64_t)file->value_count < count; file->value_count++)
        if (!read_value(file, cursor, &file->values[file->value_count], err))
            return false;
    qsort(file->values, (size_t)count, sizeof file->values[0], compare_keys);
    for (int i = 1; i < file->value_count; i++)
        if (strcmp(file->values[i - 1].key, file->values[i].key) == 0)
            return gd_fail(err, GD_BAD_MODEL, "key %s is there twice", file->values[i].key);
    return true;
}

static const struct type_row *find_type(uint32_t id)
{
    for (size_t i = 0; i < GD_COUNT(type_rows); i++)
        if (type_rows[i].id == id)
            return &type_rows[i];
    return NULL;
}

static bool read_type(struct cursor *cursor, enum gd_dtype *out, struct gd_error *err)
{
    uint32_t id;
    if (!take_u32(cursor, &id, "a tensor's type", err))
        return false;
    const struct type_row *row = find_type(id);
    if (row == NULL)
        return gd_fail(err, GD_UNSUPPORTED, "unknown tensor type %u", id);
    if (row->dtype == GD_DTYPE_COUNT)
        return gd_fail(
            err, GD_UNSUPPORTED,
            "tensor type %s is not supported (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K are)",
            row->name);
    *out = row->dtype;
    return true;
}

/* The file names the contiguous dimension first. */
static bool read_shape(struct cursor *cursor, uint64_t *elements, struct gd_tensor *tensor, struct gd_error *err)
{
    uint32_t rank;
    if (!take_u32(cursor, &rank, "a tensor's shape", err))
        return false;
    if (rank == 0 || rank > GD_RANK_MAX)
        return gd_fail(err, GD_BAD_MODEL, "%u dimensions, 1 to %d are allowed", rank, GD_RANK_MAX);
    tensor->rank = (int)rank;
    *elements = 1;
    for (uint32_t axis = 0; axis < rank; axis++) {
        uint64_t size;
        if (!take_u64(cursor, &size, "a tensor's shape", err))
            return false;
        if (size == 0 || size > INT64_MAX)
            return gd_fail(err, GD_BAD_MODEL, "dimension %u is %" PRIu64, axis, size);
        if (__builtin_mul_overflow(*elements, size, elements) || *elements > INT64_MAX)
            return gd_fail(err, GD_BAD_MODEL, "the product of its dimensions overflows");
        tensor->shape[rank - 1 - axis] = (int64_t)size;
    }
    return true;
}

static bool read_tensor(struct gd_gguf *file, struct cursor *cursor, struct gd_gguf_tensor *entry, struct gd_error *err)
{
    struct gd_tensor *tensor = &entry->tensor;
    uint64_t elements = 0;
    if (!take_name(file, cursor, &entry->name, "a tensor's name", err))
        return false;
    bool ok = read_shape(cursor, &elements, tensor, err) && read_type(cursor, &tensor->dtype, err) &&
              take_u64(cursor, &entry->offset, "a tensor's offset", err);
    if (ok) {
        uint64_t block = (uint64_t)gd_dtype_block(tensor->dtype), row = (uint64_t)tensor->shape[tensor->rank - 1];
        uint64_t bytes;
        if (row % block != 0)
            ok = gd_fail(err, GD_BAD_MODEL, "rows of %" PRIu64 " elements are no whole number of %s blocks of %" PRIu64,
                         row, gd_dtype_name(tensor->dtype), block);
        else if (__builtin_mul_overflow(elements / block, (uint64_t)gd_dtype_block_bytes(tensor->dtype), &bytes))
            ok = gd_fail(err, GD_BAD_MODEL, "its size in bytes overflows");
        else
            entry->size_bytes = (size_t)bytes;
    }
    if (!ok)
        gd_error_context(err, "tensor %s", entry->name);
    return ok;
}

static int compare_names(const void *left, const void *right, void *context)
{
    const struct gd_gguf_tensor *tensors = context;
    return strcmp(tensors[*(const int *)left].name, tensors[*(const int *)right].name);
}

static int compare_offsets(const void *left, const void *right, void *context)
{
    const struct gd_gguf_tensor *a = (const struct gd_gguf_tensor *)context + *(const int *)left;
    const struct gd_gguf_tensor *b = (const struct gd_gguf_tensor *)context + *(const int *)right;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static bool read_tensors(struct gd_gguf *file, struct cursor *cursor, uint64_t count, struct gd_error *err)
{
    if (count > bytes_left(cursor) / TENSOR_BYTES_MIN)
        return gd_fail(err, GD_BAD_MODEL, "%" PRIu64 " tensors do not fit in the %zu bytes that are left from offset %zu", count,
                       bytes_left(cursor), cursor->at);
    if (count > TENSORS_MAX)
        return gd_fail(err, GD_BAD_MODEL, "%" PRIu64 " tensors from offset %zu, at most %d are read", count, cursor->at, TENSORS_MAX);
    file->tensors = gd_alloc_array((size_t)count + 1, sizeof file->tensors[0]);
    file->by_name = gd_alloc_array((size_t)count + 1, sizeof file->by_name[0]);
    for (; (uint64_t)file->tensor_count < count; file->tensor_count++) {
        file->by_name[file->tensor_count] = file->tensor_count;
        if (!read_tensor(file, cursor, &file->tensors[file->tensor_count], err))
            return false;
    }
    qsort_r(file->by_name, (size_t)count, sizeof file->by_name[0], compare_names, file->tensors);
    for (int i = 1; i < file->tensor_count; i++)
        if (strcmp(file->tensors[file->by_name[i - 1]].name, file->tensors[file->by_name[i]].name) == 0)
            return gd_fail(err, GD_BAD_MODEL, "tensor %s is there twice", file->tensors[file->by_name[i]].name);
    return true;
}

/* Sets the data pointers: aligned, inside the file, no two tensors over each other. */
static bool place_tensors(struct gd_gguf *file, const struct cursor *cursor, int64_t alignment, struct gd_error *err)
{
    size_t step = (size_t)alignment;
    size_t padding = (step - cursor->at % step) % step;
    if (file->tensor_count > 0 && padding > bytes_left(cursor))
        return gd_fail(err, GD_BAD_MODEL, "the file ends at offset %zu, before its data section", cursor->size);
    size_t begin = cursor->at + padding, room = cursor->size > begin ? cursor->size - begin : 0;
    int *order = gd_alloc_array((size_t)file->tensor_count + 1, sizeof order[0]);
    for (int i = 0; i < file->tensor_count; i++)
        order[i] = i;
    qsort_r(order, (size_t)file->tensor_count, sizeof order[0], compare_offsets, file->tensors);
    bool ok = true;
    uint64_t end = 0;
    for (int i = 0; ok && i < file->tensor_count; i++) {
        struct gd_gguf_tensor *entry = &file->tensors[order[i]];
        if (entry->offset % step != 0)
            ok = gd_fail(err, GD_BAD_MODEL, "tensor %s: offset %" PRIu64 " is not a multiple of the alignment %zu",
                         entry->name, entry->offset, step);
        else if (entry->offset > room || entry->size_bytes > room - entry->offset)
            ok = gd_fail(err, GD_BAD_MODEL,
                         "tensor %s: %zu bytes at offset %" PRIu64 " of the data section, which has %zu bytes",
                         entry->name, entry->size_bytes, entry->offset, room);
        else if (entry->offset < end)
            ok = gd_fail(err, GD_BAD_MODEL, "tensor %s: offset %" PRIu64 " lies inside tensor %s", entry->name,
                         entry->offset, file->tensors[order[i - 1]].name);
        if (ok) {
            entry->tensor.data = (void *)(file->map.data + begin + entry->offset);
            end = entry->offset + entry->size_bytes;
        }
    }
    gd_free(order);
    return ok;
}

static bool read_version(struct cursor *cursor, struct gd_error *err)
{
    const unsigned char *magic = NULL;
    uint32_t version;
    if (cursor->size == 0)
        return gd_fail(err, GD_BAD_MODEL, "the file is empty");
    if (!take(cursor, 4, &magic, "the header", err))
        return false;
    if (memcmp(magic, "GGUF", 4) != 0)
        return gd_fail(err, GD_BAD_MODEL, "it begins with %s, not with GGUF", gd_show((const char *)magic, 4).text);
    if (!take_u32(cursor, &version, "the header", err))
        return false;
    if (version == 0x02000000 || version == 0x03000000)
        return gd_fail(err, GD_UNSUPPORTED, "it is a big-endian GGUF file; little-endian ones are read");
    if (version != 2 && version != 3)
        return gd_fail(err, GD_UNSUPPORTED, "GGUF version %u; 2 and 3 are read", version);
    return true;
}

static bool parse(struct gd_gguf *file, struct gd_error *err)
{
    struct cursor cursor = {file->map.data, 0, file->map.size_bytes};
    uint64_t tensor_count, value_count;
    if (!read_version(&cursor, err) || !take_u64(&cursor, &tensor_count, "the header", err) ||
        !take_u64(&cursor, &value_count, "the header", err) || !read_values(file, &cursor, value_count, err))
        return false;
    int64_t alignment = ALIGNMENT_DEFAULT;
    if (!gd_gguf_get_int(file, "general.alignment", false, 8, ALIGNMENT_MAX, &alignment, err))
        return false;
    if ((alignment & (alignment - 1)) != 0)
        return gd_fail(err, GD_BAD_MODEL, "general.alignment %" PRId64 " is not a power of two", alignment);
    return read_tensors(file, &cursor, tensor_count, err) && place_tensors(file, &cursor, alignment, err);
}

bool gd_gguf_open(struct gd_gguf **out, const char *path, struct gd_error *err)
{
    *out = NULL;
    struct gd_gguf *file = gd_alloc(sizeof *file);
    if (!gd_map_open(&file->map, path, err)) {
        gd_free(file);
        return gd_bad_model(err);
    }
    if (!parse(file, err)) {
        gd_error_context(err, "%s", path);
        gd_gguf_close(file);
        return false;
    }
    *out = file;
    return true;
}

void gd_gguf_forget(const struct gd_gguf *file)
{
    gd_map_forget(&file->map, 0, file->map.size_bytes);
}

const struct gd_map *gd_gguf_map(const struct gd_gguf *file)
{
    return &file->map;
}

void gd_gguf_close(struct gd_gguf *file)
{
    if (file == NULL)
        return;
    gd_map_release(&file->map);
    gd_arena_release(&file->arena);
    gd_free(file->values);
    gd_free(file->tensors);
    gd_free(file->by_name);
    gd_free(file);
}

size_t gd_gguf_bytes(const struct gd_gguf *file)
{
    return file->map.size_bytes;
}

int gd_gguf_count(const struct gd_gguf *file)
{
    return file->tensor_count;
}

const char *gd_gguf_name(const struct gd_gguf *file, int index)
{
    return file->tensors[index].name;
}

struct gd_tensor gd_gguf_at(const struct gd_gguf *file, int index)
{
    return file->tensors[index].tensor;
}

bool gd_gguf_find(const struct gd_gguf *file, const char *name, struct gd_tensor *out)
{
    int low = 0, high = file->tensor_count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        const struct gd_gguf_tensor *entry = &file->tensors[file->by_name[middle]];
        int order = strcmp(name, entry->name);
        if (order == 0) {
            *out = entry->tensor;
            return true;
        }
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return false;
}
