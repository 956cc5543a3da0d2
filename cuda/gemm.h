/*
 * gemm.h - dense products by cuBLASLt, row-major as the rest of the engine.
 *
 * Why      The library's kernels are the fastest there are for plain products; one place knows its column-major ways, its
 *          algorithms by shape, and its workspace.
 * Memory   Operands are the device's, 16-byte aligned; the workspace belongs to the stream.
 * Threads  engine thread; launches on gd_cuda_stream().
 * Errors   GD_INTERNAL with the library's status and the shape.
 * Limits   none
 * Life     between gd_cuda_open and the end of the process
 */
#ifndef GD_CUDA_GEMM_H
#define GD_CUDA_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#include "engine/base/error.h"
#include "engine/tensor/tensor.h"

/* C [m, n] = alpha op(A) op(B) (+ C), summed in f32. A is [m, k], or [k, m] where transposed; B is [k, n], or [n, k]. Leading
 * dimensions are row lengths in elements; 0: tight. Both operands have the dtype `in` (F32 without TF32, or BF16). `batch`
 * products (0: one) lie `stride_*` elements apart. */
struct gd_cuda_gemm {
    int64_t m, n, k;
    bool transpose_a, transpose_b;
    enum gd_dtype in, out;
    bool accumulate;
    float alpha;
    int64_t lda, ldb, ldc;
    int64_t batch, stride_a, stride_b, stride_c;
    const void *bias;    /* [n] of the dtype `out`, added to each row before it is rounded; NULL: none */
};

bool gd_cuda_gemm(const struct gd_cuda_gemm *gemm, const void *a, const void *b, void *c, struct gd_error *err);

#ifdef __cplusplus
}
#endif

#endif
