/*
 * weight.h - a frozen tensor: mapped from the model file, laid out once for each use.
 *
 * Why      Frozen weights are most of the memory and most of the reads. The file stays mapped; a
 *          layout that the matrix product likes is made once per use and shared by all plans.
 * Memory   Borrows `source` (the mapping outlives the weight); owns the laid-out copies.
 * Threads  gd_weight_prepare from the engine thread only; prepared data is read by kernels.
 * Errors   GD_BAD_MODEL, GD_UNSUPPORTED for impossible shapes and dtypes; GD_NO_MEMORY; the weight is named.
 * Limits   rank 1 (norms, biases) or 2 ([out, in]).
 * Life     gd_weight_create -> prepare ... -> gd_weight_destroy after all plans that use it.
 */
#ifndef GD_TENSOR_WEIGHT_H
#define GD_TENSOR_WEIGHT_H

#include "engine/base/error.h"
#include "engine/base/fsio.h"
#include "engine/tensor/tensor.h"

enum gd_weight_use {
    GD_WEIGHT_LINEAR,      /* y = x W^T, packed for forward */
    GD_WEIGHT_FEW_ROWS,    /* the same for few rows of x, by its blocks where it has some and bf16 is computed (few_rows.h); else
                            * as LINEAR */
    GD_WEIGHT_LINEAR_BACK, /* dx = dy W, packed for backward */
    GD_WEIGHT_ROWS,        /* rows read one by one (embedding): served from the source where kernels can reach it */
    GD_WEIGHT_VECTOR,      /* whole tensor as f32 (norms, biases) */
    GD_WEIGHT_USE_COUNT
};

struct gd_weight; /* opaque; the backend's private part is inside */

/* `source`: borrowed view of file memory, any dtype. `row_order` (borrowed, or NULL): row i of the
 * weight is row row_order[i] of the source (GGUF's permuted q/k). `add` is added to every element
 * on conversion (GGUF's Gemma norms: -1; else 0). `name`: Hugging Face name, copied. */
GD_MUST_CHECK bool gd_weight_create(struct gd_weight **out, const char *name, const struct gd_tensor *source,
                                    const int32_t *row_order, float add, struct gd_error *err);
void gd_weight_destroy(struct gd_weight *weight);

/* Matrix products unpack the weight from its blocks each time from now on, instead of keeping copies laid out. dtype: the
 * source's own, or NF4 (then the weight keeps a quantised copy, and is that copy for everybody). Before any prepare.
 * GD_UNSUPPORTED where rows are not whole blocks. */
GD_MUST_CHECK bool gd_weight_quantise(struct gd_weight *weight, enum gd_dtype dtype, struct gd_error *err);
bool gd_weight_quantised(const struct gd_weight *weight);
/* For dry plans only: it counts as quantised, and nothing is made of it. */
void gd_weight_pretend_quantised(struct gd_weight *weight, bool on);

/* Which content this is, among all files: the digest of its model. Copied; with it layouts are kept on disk (pack_cache.h). */
void gd_weight_identify(struct gd_weight *weight, const char digest[65]);
const char *gd_weight_identity(const struct gd_weight *weight); /* "": unknown */

/* Its source lies in this mapping (borrowed) and not in memory: pages that a layout was made from are given back. */
void gd_weight_mapped(struct gd_weight *weight, const struct gd_map *map);
bool gd_weight_is_mapped(const struct gd_weight *weight);

const char *gd_weight_name(const struct gd_weight *weight);
const struct gd_tensor *gd_weight_source(const struct gd_weight *weight);
int gd_weight_rank(const struct gd_weight *weight);
int64_t gd_weight_dim(const struct gd_weight *weight, int axis);

/* Makes the layout for `use` in `compute` (F32 or BF16); does nothing if it is there. */
GD_MUST_CHECK bool gd_weight_prepare(struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute,
                                     struct gd_error *err);
/* For backends: what they made of it, or NULL. */
struct gd_layout;
const struct gd_layout *gd_weight_layout(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute);
/* Bytes of laid-out copies now, and what prepare(use) would add (0 if it is there): for the planner. */
size_t gd_weight_prepared_bytes(const struct gd_weight *weight);
size_t gd_weight_prepare_cost(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute);

/* What layouts cost, by use: passes over the same weights share those of a use, so together they need of each use what the one
 * that needs most of it does. */
struct gd_layout_cost {
    size_t bytes[GD_WEIGHT_USE_COUNT];
};
/* What prepare(use) would add, under the use whose layout serves. */
void gd_layout_cost_add(struct gd_layout_cost *cost, const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute);
void gd_layout_cost_join(struct gd_layout_cost *cost, const struct gd_layout_cost *other);
size_t gd_layout_cost_sum(const struct gd_layout_cost *cost);

/* Row `row` as f32 into out[dim(1)] (out[dim(0)] with row = 0 for rank 1). */
void gd_weight_row_f32(const struct gd_weight *weight, int64_t row, float *out);
/* The whole weight as f32 [out, in] into memory of the caller (merge, PiSSA, tests). */
void gd_weight_to_f32(const struct gd_weight *weight, float *out);
/* Prepared GD_WEIGHT_VECTOR data. */
const float *gd_weight_vector(const struct gd_weight *weight);

/* The product itself, on prepared data (kernels of the linear ops; decode calls it through them).
 * x: [rows, in] and y: [rows, out] in `dtype` (F32 or BF16 = the prepared compute type); y may be
 * F32 when x is BF16. accumulate: y += instead of y =. `back`: x is [rows, out], y is [rows, in]. */
GD_MUST_CHECK bool gd_weight_multiply(const struct gd_weight *weight, bool back, const void *x, enum gd_dtype x_dtype,
                                      void *y, enum gd_dtype y_dtype, int64_t rows, bool accumulate,
                                      struct gd_error *err);

#endif
