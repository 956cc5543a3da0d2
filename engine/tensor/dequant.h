/*
 * dequant.h - blocks of GGUF's quantised formats to f32.
 *
 * Why      A frozen base may stay quantised in its file; every other layout is made from these values.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   none
 * Limits   The quantised dtypes of tensor.h.
 * Life     none
 */
#ifndef GD_TENSOR_DEQUANT_H
#define GD_TENSOR_DEQUANT_H

#include "engine/tensor/tensor.h"

/* out[blocks * gd_dtype_block(dtype)]; `in` needs no alignment. */
void gd_dequantise(float *out, const void *in, enum gd_dtype dtype, int64_t blocks);

#endif
