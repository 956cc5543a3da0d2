/*
 * gguf.h - reads GGUF files, versions 2 and 3: mapped, every count and offset checked before it is used.
 *
 * Why      Public readers of this format broke on every field of it; a hostile file must end in an error by name.
 * Memory   A reader owns the mapping, copies of strings and arrays that were asked for, and its tables.
 * Threads  One reader, one thread; tensors are read-only views.
 * Errors   GD_BAD_MODEL naming file, key or tensor, and offset; GD_UNSUPPORTED naming version or tensor type.
 * Limits   counts by what fits in the file; names GD_GGUF_NAME_BYTES_MAX; dimensions GD_RANK_MAX.
 * Life     open -> get ... / tensor ... -> close.
 */
#ifndef GD_MODEL_GGUF_H
#define GD_MODEL_GGUF_H

#include "engine/base/error.h"
#include "engine/tensor/tensor.h"

#define GD_GGUF_NAME_BYTES_MAX 255

struct gd_gguf;

GD_MUST_CHECK bool gd_gguf_open(struct gd_gguf **out, const char *path, struct gd_error *err);
void gd_gguf_close(struct gd_gguf *file);
void gd_gguf_forget(const struct gd_gguf *file); /* pages are read again when they are needed */
const struct gd_map *gd_gguf_map(const struct gd_gguf *file);
size_t gd_gguf_bytes(const struct gd_gguf *file);

/* Tensors in the order of the file; shapes row-major ([out, in]). */
int gd_gguf_count(const struct gd_gguf *file);
const char *gd_gguf_name(const struct gd_gguf *file, int index);
struct gd_tensor gd_gguf_at(const struct gd_gguf *file, int index);
bool gd_gguf_find(const struct gd_gguf *file, const char *name, struct gd_tensor *out);

/* Metadata. Absent: true and *out unchanged, unless `required`. Another type than asked, or out of [min, max]:
 * GD_BAD_MODEL naming the key, its type and value. What is returned lives as long as the file. */
bool gd_gguf_has(const struct gd_gguf *file, const char *key);
GD_MUST_CHECK bool gd_gguf_get_int(const struct gd_gguf *file, const char *key, bool required, int64_t min,
                                   int64_t max, int64_t *out, struct gd_error *err);
/* One integer, or an array of them that are all equal (values that may differ by layer, but do not). */
GD_MUST_CHECK bool gd_gguf_get_uniform_int(const struct gd_gguf *file, const char *key, bool required, int64_t min,
                                           int64_t max, int64_t *out, struct gd_error *err);
GD_MUST_CHECK bool gd_gguf_get_number(const struct gd_gguf *file, const char *key, bool required, double min,
                                      double max, double *out, struct gd_error *err);
GD_MUST_CHECK bool gd_gguf_get_bool(const struct gd_gguf *file, const char *key, bool required, bool *out,
                                    struct gd_error *err);
/* Valid UTF-8 without NUL. */
GD_MUST_CHECK bool gd_gguf_get_string(struct gd_gguf *file, const char *key, bool required, const char **out,
                                      struct gd_error *err);
/* NUL-free byte strings (tokens may be parts of characters). */
GD_MUST_CHECK bool gd_gguf_get_strings(struct gd_gguf *file, const char *key, bool required, int64_t count_max,
                                       const char *const **out, int *count, struct gd_error *err);
GD_MUST_CHECK bool gd_gguf_get_i32s(struct gd_gguf *file, const char *key, bool required, int64_t count_max,
                                    const int32_t **out, int *count, struct gd_error *err);
/* An array of int8 or uint8, borrowed. */
GD_MUST_CHECK bool gd_gguf_get_bytes(const struct gd_gguf *file, const char *key, bool required, int64_t count_max,
                                     const void **out, int *count, struct gd_error *err);
GD_MUST_CHECK bool gd_gguf_get_f32s(struct gd_gguf *file, const char *key, bool required, int64_t count_max,
                                    const float **out, int *count, struct gd_error *err);

#endif
