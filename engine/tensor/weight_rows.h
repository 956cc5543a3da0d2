/*
 * weight_rows.h - a weight's source, for those who make layouts.
 *
 * Why      A layout is made in blocks of rows, so that no second whole copy in f32 is needed.
 * Memory   `out` is the caller's: (end - begin) * dim(rank-1) floats.
 * Threads  Any; uses OpenMP.
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_TENSOR_WEIGHT_ROWS_H
#define GD_TENSOR_WEIGHT_ROWS_H

#include "engine/tensor/weight.h"

/* The source itself where it already is the weight in `dtype`, aligned to its elements; else NULL. */
const void *gd_weight_plain(const struct gd_weight *weight, enum gd_dtype dtype);

/* The blocks of a row as the source has them; NULL where the weight is more than its source. */
const void *gd_weight_row_blocks(const struct gd_weight *weight, int64_t row);

/* Elements [begin, end) of a row, both multiples of the dtype's block. */
void gd_weight_row_part_f32(const struct gd_weight *weight, int64_t row, int64_t begin, int64_t end, float *out);
void gd_weight_rows_f32(const struct gd_weight *weight, int64_t begin, int64_t end, float *out);

#endif
