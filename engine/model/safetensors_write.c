/* safetensors_write.c - the writer: header padded to 8 bytes, tensors in the given order, fsynced. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/safetensors.h"
#include "engine/model/text.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

static int compare_names(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

static bool check_names(const struct gd_safetensors_entry *entries, int count, struct gd_error *err)
{
    const char **names = gd_alloc_array((size_t)count + 1, sizeof names[0]);
    for (int i = 0; i < count; i++)
        names[i] = entries[i].name;
    qsort(names, (size_t)count, sizeof names[0], compare_names);
    bool ok = true;
    for (int i = 0; ok && i < count; i++) {
        if (strcmp(names[i], "__metadata__") == 0)
            ok = gd_fail(err, GD_INVALID, "a tensor cannot be called __metadata__");
        else if (i > 0 && strcmp(names[i - 1], names[i]) == 0)
            ok = gd_fail(err, GD_INVALID, "tensor %s is given twice", gd_show_text(names[i]).text);
    }
    gd_free(names);
    return ok;
}

static bool write_header(struct gd_buf *header, const struct gd_safetensors_entry *entries, int count,
                         const cJSON *metadata, struct gd_error *err)
{
    size_t at = 0;
    gd_buf_append_char(header, '{');
    if (metadata != NULL) {
        char *text = gd_json_print(metadata);
        gd_buf_printf(header, "\"__metadata__\":%s", text);
        gd_free(text);
    }
    for (int i = 0; i < count; i++) {
        const struct gd_tensor *tensor = &entries[i].tensor;
        if (tensor->dtype != GD_F32 && tensor->dtype != GD_BF16 && tensor->dtype != GD_F16 && tensor->dtype != GD_I32)
            return gd_fail(err, GD_UNSUPPORTED, "tensor %s: safetensors has no dtype %s",
                           gd_show_text(entries[i].name).text, gd_dtype_name(tensor->dtype));
        size_t bytes = gd_dtype_bytes(tensor->dtype, gd_tensor_count(tensor));
        gd_buf_append_text(header, i > 0 || metadata != NULL ? "," : "");
        gd_json_append_string(header, entries[i].name, strlen(entries[i].name));
        gd_buf_printf(header, ":{\"dtype\":\"%s\",\"shape\":[", gd_dtype_name(tensor->dtype));
        for (int axis = 0; axis < tensor->rank; axis++)
            gd_buf_printf(header, "%s%" PRId64, axis > 0 ? "," : "", tensor->shape[axis]);
        gd_buf_printf(header, "],\"data_offsets\":[%zu,%zu]}", at, at + bytes);
        at += bytes;
    }
    gd_buf_append_char(header, '}');
    while (header->length % 8 != 0 && !header->overflow)
        gd_buf_append_char(header, ' ');
    if (header->overflow)
        return gd_fail(err, GD_TOO_LARGE, "the header of %d tensors is over %zu bytes", count, header->limit_bytes);
    return true;
}

static bool write_file(const char *path, const struct gd_buf *header, const struct gd_safetensors_entry *entries,
                       int count, gd_tensor_provider provide, void *context, struct gd_error *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return gd_fail_errno(err, errno, "%s", path);
    unsigned char length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)((uint64_t)header->length >> (8 * i));
    bool ok =
        gd_write_all(fd, length, sizeof length, path, err) && gd_write_all(fd, header->data, header->length, path, err);
    for (int i = 0; ok && i < count; i++) {
        const struct gd_tensor *tensor = &entries[i].tensor;
        const void *bytes = NULL;
        ok = provide(context, i, &bytes, err) &&
             gd_write_all(fd, bytes, gd_dtype_bytes(tensor->dtype, gd_tensor_count(tensor)), path, err);
    }
    if (ok && fsync(fd) != 0)
        ok = gd_fail_errno(err, errno, "fsync %s", path);
    if (close(fd) != 0 && ok)
        ok = gd_fail_errno(err, errno, "close %s", path);
    return ok;
}

bool gd_safetensors_stream(const char *path, const struct gd_safetensors_entry *entries, int count,
                           const cJSON *metadata, gd_tensor_provider provide, void *context, struct gd_error *err)
{
    struct gd_buf header;
    gd_buf_init(&header, 100000000);
    bool ok = check_names(entries, count, err) && write_header(&header, entries, count, metadata, err) &&
              write_file(path, &header, entries, count, provide, context, err);
    gd_buf_release(&header);
    return ok;
}

static bool own_data(void *context, int index, const void **bytes, struct gd_error *err)
{
    *bytes = ((const struct gd_safetensors_entry *)context)[index].tensor.data;
    return true;
}

bool gd_safetensors_write(const char *path, const struct gd_safetensors_entry *entries, int count,
                          const cJSON *metadata, struct gd_error *err)
{
    return gd_safetensors_stream(path, entries, count, metadata, own_data, (void *)(uintptr_t)entries, err);
}
