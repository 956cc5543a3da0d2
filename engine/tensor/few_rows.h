/*
 * few_rows.h - products of a few rows with a weight that stays in its blocks: decoding.
 *
 * Why      A decode step reads every weight once for a handful of rows: its speed is that of memory, so fewer bytes are more
 *          tokens. Codes are multiplied as integers (VPDPBUSD), and nothing is unpacked.
 * Memory   Owns the codes in another order: sixteen outputs side by side. 4-bit codes stay at 4 bits, others take 8.
 * Threads  gd_few_rows_run from the engine thread; outputs are split over a crew. A row's result does not depend on the others.
 * Errors   GD_NO_MEMORY
 * Limits   GD_FEW_ROWS rows; GGUF's block formats; processors with AVX512-VNNI (gd_few_rows_bytes is 0 elsewhere)
 * Life     create -> run ... -> destroy
 *
 * For a row x and a part p of its elements (32 of them; 16 in Q6_K), with codes q, step d and base m of each output:
 *     x = s_p X, X an integer of 15 bits in two digits, X = 256 h + l
 *     y = sum_p  d s_p (256 sum q h + sum q l)  +  m s_p sum X        (m = -offset d where the format has no base)
 * so that of x the rounding to 2^-15 of its part's largest element is lost, less than bf16 loses.
 */
#ifndef GD_TENSOR_FEW_ROWS_H
#define GD_TENSOR_FEW_ROWS_H

#include "engine/tensor/weight.h"

#define GD_FEW_ROWS 8

struct gd_few_rows;
/* What create will keep; 0: this weight has no such form here. */
size_t gd_few_rows_bytes(const struct gd_weight *weight);
GD_MUST_CHECK bool gd_few_rows_create(struct gd_few_rows **out, const struct gd_weight *weight, struct gd_error *err);
void gd_few_rows_destroy(struct gd_few_rows *few);
/* y[rows, out] (+)= x[rows, in] W^T, both F32 or BF16; rows up to GD_FEW_ROWS. */
void gd_few_rows_run(const struct gd_few_rows *few, const void *x, enum gd_dtype x_dtype, void *y, enum gd_dtype y_dtype,
                     int64_t rows, bool accumulate);

#endif
