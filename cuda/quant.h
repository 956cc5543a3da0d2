/*
 * quant.h - block-quantised weights on the device.
 *
 * Why      Weights stay as the file has them; products unpack them on the way.
 * Memory   The caller's, on the device.
 * Threads  engine thread; launches on gd_cuda_stream().
 * Errors   Launch errors.
 * Limits   The block formats of gd_dtype (GGUF's and NF4).
 * Life     none
 */
#ifndef GD_CUDA_QUANT_H
#define GD_CUDA_QUANT_H

#ifdef __cplusplus
extern "C" {
#endif
#include "engine/base/error.h"
#include "engine/tensor/tensor.h"

/* Rows [r0, r1) of blocks [rows, width], columns [c0, c1) (whole blocks) -> row-major `out` dtype F32 or BF16, tight. */
bool gd_cuda_unpack(const void *blocks, enum gd_dtype dtype, int64_t width, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *out,
                    enum gd_dtype out_dtype, struct gd_error *err);

/* y [rows, out] (+)= x [rows, in] W^T for few rows, reading the blocks of W [out, in] once; x, y: F32 or BF16, sums in f32. */
bool gd_cuda_few_rows(const void *blocks, enum gd_dtype dtype, int64_t out, int64_t in, const void *x, enum gd_dtype x_dtype, void *y,
                      enum gd_dtype y_dtype, int64_t rows, bool accumulate, struct gd_error *err);
#define GD_CUDA_FEW_ROWS 16

#ifdef __cplusplus
}
#endif

#endif
