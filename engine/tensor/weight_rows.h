/*
 * weight_rows.h - rows of a weight's source as f32, for those who make layouts.
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

void gd_weight_rows_f32(const struct gd_weight *weight, int64_t begin, int64_t end, float *out);

#endif
