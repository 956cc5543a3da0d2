/*
 * layout.h - frozen weights on the device: one copy for all uses.
 *
 * Why      A product with W and one with its transpose read the same copy; an embedding's rows and the head's product too,
 *          where they are the same weight.
 * Memory   One copy for each weight and form, counted; freed with the last layout.
 * Threads  engine thread
 * Errors   GD_NO_MEMORY; the weight is named by the caller.
 * Limits   none
 * Life     with the weight's layouts
 *
 * Plain weights are kept row-major [out, in] in the compute dtype. Quantised ones (gd_weight_quantised, and what is served from
 * a file of blocks, for few rows) keep the file's blocks, rows in the weight's order; products of many rows unpack tiles.
 */
#ifndef GD_CUDA_LAYOUT_H
#define GD_CUDA_LAYOUT_H

#ifdef __cplusplus
extern "C" {
#endif
#include "engine/tensor/weight.h"

/* Rows of a prepared GD_WEIGHT_ROWS layout: row-major [rows, width] of *dtype (F32, BF16, F16 or a quantised type), on the device. */
const void *gd_cuda_rows(const struct gd_weight *weight, enum gd_dtype *dtype);

/* A prepared weight, plain as products read it, on the device; NULL: it is not kept so in this dtype. */
const void *gd_cuda_plain(const struct gd_weight *weight, enum gd_dtype dtype);

#ifdef __cplusplus
}
#endif

#endif
