#include "engine/model/gguf_write.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/gguf_file.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define ALIGNMENT_DEFAULT 32

static void put_bytes(struct gd_buf *out, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        gd_buf_append_char(out, (char)(value >> (8 * i)));
}

static void put_text(struct gd_buf *out, const char *text)
{
    put_bytes(out, strlen(text), 8);
    gd_buf_append_text(out, text);
}

void gd_gguf_writer_init(struct gd_gguf_writer *writer)
{
    *writer = (struct gd_gguf_writer){.alignment = ALIGNMENT_DEFAULT};
    gd_buf_init(&writer->values, GD_GGUF_HEADER_BYTES_MAX);
}

void gd_gguf_writer_release(struct gd_gguf_writer *writer)
{
    gd_buf_release(&writer->values);
}

static void put_key(struct gd_gguf_writer *writer, const char *key, enum gd_gguf_kind kind)
{
    put_text(&writer->values, key);
    put_bytes(&writer->values, kind, 4);
    writer->value_count++;
}

void gd_gguf_put_string(struct gd_gguf_writer *writer, const char *key, const char *value)
{
    put_key(writer, key, GD_GGUF_STRING);
    put_text(&writer->values, value);
}

void gd_gguf_put_u32(struct gd_gguf_writer *writer, const char *key, uint32_t value)
{
    put_key(writer, key, GD_GGUF_U32);
    put_bytes(&writer->values, value, 4);
}

void gd_gguf_put_f32(struct gd_gguf_writer *writer, const char *key, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    put_key(writer, key, GD_GGUF_F32);
    put_bytes(&writer->values, bits, 4);
}

static uint64_t read_u64(const unsigned char *bytes)
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | bytes[i];
    return value;
}

static size_t string_bytes(const unsigned char *bytes)
{
    return 8 + (size_t)read_u64(bytes);
}

static void put_copy(struct gd_gguf_writer *writer, const struct gd_gguf_value *value)
{
    size_t length = gd_gguf_kind_bytes(value->kind);
    put_key(writer, value->key, value->kind);
    if (value->kind == GD_GGUF_STRING)
        length = string_bytes(value->bytes);
    if (value->kind == GD_GGUF_ARRAY) {
        put_bytes(&writer->values, value->item_kind, 4);
        put_bytes(&writer->values, value->count, 8);
        length = (size_t)value->count * gd_gguf_kind_bytes(value->item_kind);
        for (uint64_t i = 0; value->item_kind == GD_GGUF_STRING && i < value->count; i++)
            length += string_bytes(value->bytes + length);
    }
    gd_buf_append(&writer->values, value->bytes, length);
}

void gd_gguf_put_all(struct gd_gguf_writer *writer, const struct gd_gguf *file, const char *except)
{
    struct gd_error unset = {0};
    for (int i = 0; i < file->value_count; i++)
        if (except == NULL || strcmp(file->values[i].key, except) != 0)
            put_copy(writer, &file->values[i]);
    if (!gd_gguf_get_int(file, "general.alignment", false, 8, INT32_MAX, &writer->alignment, &unset))
        writer->alignment = ALIGNMENT_DEFAULT; /* the reader has checked it: not reached */
}

static bool type_of(enum gd_dtype dtype, uint32_t *type, struct gd_error *err)
{
    static const int types[GD_DTYPE_COUNT] = {
        [GD_F32] = 1,  [GD_F16] = 2,   [GD_Q4_0] = 3,  [GD_Q4_1] = 4,  [GD_Q5_0] = 7,   [GD_Q5_1] = 8,
        [GD_Q8_0] = 9, [GD_Q4_K] = 13, [GD_Q5_K] = 14, [GD_Q6_K] = 15, [GD_BF16] = 31,
    }; /* plus one, so that 0 is none */
    *type = (uint32_t)(types[dtype] - 1);
    return types[dtype] != 0 || gd_fail(err, GD_UNSUPPORTED, "GGUF has no dtype %s here", gd_dtype_name(dtype));
}

static bool put_table(struct gd_buf *header, const struct gd_safetensors_entry *entries, int count, int64_t alignment,
                      struct gd_error *err)
{
    uint64_t offset = 0;
    for (int i = 0; i < count; i++) {
        const struct gd_tensor *tensor = &entries[i].tensor;
        uint32_t type;
        if (!type_of(tensor->dtype, &type, err))
            return false;
        put_text(header, entries[i].name);
        put_bytes(header, (uint64_t)tensor->rank, 4);
        for (int axis = tensor->rank - 1; axis >= 0; axis--)
            put_bytes(header, (uint64_t)tensor->shape[axis], 8);
        put_bytes(header, type, 4);
        put_bytes(header, offset, 8);
        offset += gd_dtype_bytes(tensor->dtype, gd_tensor_count(tensor));
        offset = (offset + (uint64_t)alignment - 1) / (uint64_t)alignment * (uint64_t)alignment;
    }
    return true;
}

static bool write_data(int fd, const char *path, const struct gd_safetensors_entry *entries, int count, int64_t alignment,
                       gd_tensor_provider provide, void *context, struct gd_error *err)
{
    char *zeros = gd_alloc((size_t)alignment);
    bool ok = true;
    for (int i = 0; ok && i < count; i++) {
        size_t bytes = gd_dtype_bytes(entries[i].tensor.dtype, gd_tensor_count(&entries[i].tensor));
        const void *data = NULL;
        ok = provide(context, i, &data, err) && gd_write_all(fd, data, bytes, path, err) &&
             gd_write_all(fd, zeros, ((size_t)alignment - bytes % (size_t)alignment) % (size_t)alignment, path, err);
    }
    gd_free(zeros);
    return ok;
}

bool gd_gguf_write(const struct gd_gguf_writer *writer, const char *path, const struct gd_safetensors_entry *entries,
                   int count, gd_tensor_provider provide, void *context, struct gd_error *err)
{
    struct gd_buf header;
    gd_buf_init(&header, 2u * GD_GGUF_HEADER_BYTES_MAX);
    gd_buf_append_text(&header, "GGUF");
    put_bytes(&header, 3, 4);
    put_bytes(&header, (uint64_t)count, 8);
    put_bytes(&header, writer->value_count, 8);
    gd_buf_append(&header, writer->values.data, writer->values.length);
    bool ok = put_table(&header, entries, count, writer->alignment, err);
    while (header.length % (size_t)writer->alignment != 0 && !header.overflow)
        gd_buf_append_char(&header, 0);
    if (ok && (header.overflow || writer->values.overflow))
        ok = gd_fail(err, GD_TOO_LARGE, "%s: the metadata are over %u bytes", path, GD_GGUF_HEADER_BYTES_MAX);
    int fd = ok ? open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600) : -1;
    if (ok && fd < 0)
        ok = gd_fail_errno(err, errno, "%s", path);
    ok = ok && gd_write_all(fd, header.data, header.length, path, err) &&
         write_data(fd, path, entries, count, writer->alignment, provide, context, err);
    if (ok && fsync(fd) != 0)
        ok = gd_fail_errno(err, errno, "fsync %s", path);
    if (fd >= 0 && close(fd) != 0 && ok)
        ok = gd_fail_errno(err, errno, "close %s", path);
    gd_buf_release(&header);
    return ok;
}
