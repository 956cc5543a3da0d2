/*
 * kernel.h - what a file of kernels includes: the primitives, the ops, and how to launch and report.
 *
 * Why      Kernels of all ops look alike, and the same file compiles for a card and for the emulator.
 * Memory   Operands are the device's; nothing is allocated.
 * Threads  engine thread; launches go to the stream at hand.
 * Errors   A launch that the device refuses is an error with the op and its sizes.
 * Limits   none
 * Life     none
 *
 * The shape of an op:
 *
 *     template <typename T> __global__ void scale_kernel(T *y, const T *x, float factor, int64_t count) { ... }
 *
 *     static bool run(const struct gd_kernel_args *args, struct gd_error *err)
 *     {
 *         int64_t count = gd_tensor_count(&args->out[0]);
 *         if (count == 0)
 *             return true;
 *         GD_BY_ACT(args->out[0].dtype, T,
 *                   CU_LAUNCH((scale_kernel<T>), gd_cuda_blocks(count, 256), 256, 0, gd_cuda_stream(), (T *)args->out[0].data, ...));
 *         return gd_cuda_launched(args, "scale", err);
 *     }
 *
 *     GD_CUDA_OP(scale, run, NULL)
 */
#ifndef GD_CUDA_KERNEL_H
#define GD_CUDA_KERNEL_H

#include "cuda/device.h"
#include <stddef.h>
#include <stdint.h>

extern "C" {
#include "engine/tensor/backend.h"
}
#include "cuda/gemm.h"
#include "cuda/stream.h"

/* The table's entry for one op; scratch_bytes of the CPU's kernel is not used here. */
#define GD_CUDA_OP(name, run, scratch_bytes)                                                          \
    extern "C" const struct gd_backend_op gd_cuda_##name;                                             \
    const struct gd_backend_op gd_cuda_##name = {run, scratch_bytes, NULL, NULL};
#define GD_CUDA_STAGED_OP(name, run, scratch_bytes, staged_bytes, stage)                              \
    extern "C" const struct gd_backend_op gd_cuda_##name;                                             \
    const struct gd_backend_op gd_cuda_##name = {run, scratch_bytes, staged_bytes, stage};

/* Does `...` with T as the type of activations of a dtype: float or bf16. */
#define GD_BY_ACT(dtype, T, ...)      \
    do {                              \
        if ((dtype) == GD_BF16) {     \
            using T = bf16;           \
            __VA_ARGS__;              \
        } else {                      \
            using T = float;          \
            __VA_ARGS__;              \
        }                             \
    } while (0)

/* Blocks for `count` elements, `each` a block; kernels with grid-stride loops may be given fewer. */
static inline unsigned gd_cuda_blocks(int64_t count, int64_t each)
{
    int64_t blocks = (count + each - 1) / each;
    return (unsigned)(blocks < 1 ? 1 : blocks > 1 << 20 ? 1 << 20 : blocks);
}

#endif
