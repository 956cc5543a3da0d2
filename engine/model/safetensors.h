/*
 * safetensors.h - read (mapped, strictly checked) and write safetensors files.
 *
 * Why      Weights, adapters and checkpoints are kept in it; hostile files must end in an error, not in a crash.
 * Memory   A reader owns the mapping and its table; tensors are views into it.
 * Threads  One reader, one thread to open; views are read-only.
 * Errors   GD_BAD_MODEL naming file, tensor and offset.
 * Limits   header 100 MB; names 512 bytes.
 * Life     open -> find / at ... -> close.
 */
#ifndef GD_MODEL_SAFETENSORS_H
#define GD_MODEL_SAFETENSORS_H

#include "engine/base/json.h"
#include "engine/tensor/tensor.h"

struct gd_safetensors;

GD_MUST_CHECK bool gd_safetensors_open(struct gd_safetensors **out, const char *path, struct gd_error *err);
void gd_safetensors_close(struct gd_safetensors *file);
void gd_safetensors_forget(const struct gd_safetensors *file); /* pages are read again when they are needed */
const struct gd_map *gd_safetensors_map(const struct gd_safetensors *file);
int gd_safetensors_count(const struct gd_safetensors *file);
const char *gd_safetensors_name(const struct gd_safetensors *file, int index);
/* View of tensor i (F32, BF16, F16, I32; other dtypes give a tensor of rank -1: GD_UNSUPPORTED is the caller's). Rank-0
 * tensors are given as rank 1, shape [1]. */
struct gd_tensor gd_safetensors_at(const struct gd_safetensors *file, int index);
bool gd_safetensors_find(const struct gd_safetensors *file, const char *name, struct gd_tensor *out);
const char *gd_safetensors_dtype_name(const struct gd_safetensors *file, int index);
const char *gd_safetensors_metadata(const struct gd_safetensors *file, const char *key); /* or NULL */

struct gd_safetensors_entry {
    const char *name;
    struct gd_tensor tensor;
};
/* The bytes of entry `index`, valid until the next call: a model need not be in memory to be written. */
typedef bool (*gd_tensor_provider)(void *context, int index, const void **bytes, struct gd_error *err);
/* Writes and fsyncs `path`; the entries' own data are not read. */
GD_MUST_CHECK bool gd_safetensors_stream(const char *path, const struct gd_safetensors_entry *entries, int count,
                                         const cJSON *metadata, gd_tensor_provider provide, void *context,
                                         struct gd_error *err);
/* The same with the entries' data (inside a gd_dir_tx folder). metadata: string-to-string object or NULL. Tensors are written in
 * the given order; the header is padded to 8 bytes. */
GD_MUST_CHECK bool gd_safetensors_write(const char *path, const struct gd_safetensors_entry *entries, int count,
                                        const cJSON *metadata, struct gd_error *err);

#endif
