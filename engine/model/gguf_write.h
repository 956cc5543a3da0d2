/*
 * gguf_write.h - writes GGUF files, version 3, tensor by tensor.
 *
 * Why      What came from a GGUF file goes back into one, with its tokenizer and template as they were; and adapters
 *          travel to other programs in it.
 * Memory   The writer owns its metadata; tensors' names are borrowed until gd_gguf_write returns.
 * Threads  One writer, one thread.
 * Errors   GD_TOO_LARGE, GD_UNSUPPORTED (dtype), GD_IO, GD_DISK_FULL with the path.
 * Limits   GD_GGUF_HEADER_BYTES_MAX of metadata and tensor table
 * Life     init -> put ... -> gd_gguf_write -> release.
 */
#ifndef GD_MODEL_GGUF_WRITE_H
#define GD_MODEL_GGUF_WRITE_H

#include "engine/base/buf.h"
#include "engine/model/gguf.h"
#include "engine/model/safetensors.h"

#define GD_GGUF_HEADER_BYTES_MAX (1u << 30)

struct gd_gguf_writer {
    struct gd_buf values;
    uint64_t value_count;
    int64_t alignment;
};

void gd_gguf_writer_init(struct gd_gguf_writer *writer);
void gd_gguf_writer_release(struct gd_gguf_writer *writer);
void gd_gguf_put_string(struct gd_gguf_writer *writer, const char *key, const char *value);
void gd_gguf_put_u32(struct gd_gguf_writer *writer, const char *key, uint32_t value);
void gd_gguf_put_f32(struct gd_gguf_writer *writer, const char *key, float value);
/* Every entry of a file, byte for byte, but `except` (NULL: all). Takes its alignment over. */
void gd_gguf_put_all(struct gd_gguf_writer *writer, const struct gd_gguf *file, const char *except);

/* Writes and fsyncs a new file at `path`. Shapes are row-major; the entries' own data are not read. */
GD_MUST_CHECK bool gd_gguf_write(const struct gd_gguf_writer *writer, const char *path,
                                 const struct gd_safetensors_entry *entries, int count, gd_tensor_provider provide,
                                 void *context, struct gd_error *err);

#endif
