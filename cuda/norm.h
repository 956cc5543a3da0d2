/*
 * norm.h - what kernels of norms share: whose weights a row has, and who works on a vector.
 *
 * Why      norm.cu has the norms, norm_pair.cu the norms with what stands beside them: the same sums in the same order.
 * Memory   Vectors are read twice (the second time from the cache), so that no length has a limit.
 * Threads  a warp for each short vector, a block for each long one
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_CUDA_NORM_H
#define GD_CUDA_NORM_H

#include "cuda/map.h"
extern "C" {
#include "cuda/wear.h"
}

#define GD_NORM_SHORT 1024 /* elements that a warp takes on */
#define GD_NORM_WARPS 8    /* of a block for long ones */
#define GD_NORM_SHORTS 4   /* short vectors of a block */

/* One weight and bias for all rows. */
struct gd_plain_norm {
    const float *w, *b;
    CU_FN const float *weight(int64_t) const
    {
        return w;
    }
    CU_FN const float *bias(int64_t) const
    {
        return b;
    }
};

/* What each row's graft has at the site, else the base's. */
struct gd_worn_norm {
    const struct gd_cuda_wear *wear;
    int site;
    const float *w, *b;
    CU_FN const float *weight(int64_t row) const
    {
        const struct gd_wear_part *part = gd_worn(wear, row, site);
        return part != NULL && part->norm != NULL ? part->norm : w;
    }
    CU_FN const float *bias(int64_t row) const
    {
        const struct gd_wear_part *part = gd_worn(wear, row, site);
        return part != NULL && part->norm_bias != NULL ? part->norm_bias : b;
    }
};

/* Which vector this thread works on, and which part of it; SHORT_ROWS is known at compile time. */
template <bool SHORT_ROWS> CU_FN int64_t gd_norm_vector()
{
    return SHORT_ROWS ? (int64_t)blockIdx.x * GD_NORM_SHORTS + threadIdx.x / CU_WARP : (int64_t)blockIdx.x;
}

template <bool SHORT_ROWS> CU_FN int64_t gd_norm_lane()
{
    return SHORT_ROWS ? threadIdx.x % CU_WARP : threadIdx.x;
}

template <bool SHORT_ROWS> CU_FN float gd_norm_sum(float value)
{
    if constexpr (SHORT_ROWS)
        return warp_sum(value);
    else
        return block_sum(value);
}

/* Elements from one of a thread to its next. */
template <bool SHORT_ROWS, int N> CU_FN int64_t gd_norm_stride()
{
    return (SHORT_ROWS ? CU_WARP : GD_NORM_WARPS * CU_WARP) * N;
}

static inline unsigned gd_norm_blocks(int64_t count, bool is_short)
{
    return (unsigned)(is_short ? (count + GD_NORM_SHORTS - 1) / GD_NORM_SHORTS : count);
}

static inline unsigned gd_norm_threads(bool is_short)
{
    return (is_short ? GD_NORM_SHORTS : GD_NORM_WARPS) * CU_WARP;
}

/* A norm's weight or bias on the device: of a frozen weight or a value. */
static inline const float *gd_norm_operand(const struct gd_kernel_args *args, int input)
{
    return args->weight[input] != NULL ? gd_weight_vector(args->weight[input]) : (const float *)args->in[input].data;
}

/* Launches kernel<T, N, is_short, ...>(...) for a dtype and vectors of `width`. */
#define GD_NORM_LAUNCH(dtype, packed, count, width, kernel, more, ...)                                                    \
    GD_BY_ACT(dtype, T,                                                                                                   \
              GD_BY_PACK(packed, T, N,                                                                                    \
                         if ((width) <= GD_NORM_SHORT)                                                                    \
                             CU_LAUNCH((kernel<T, N, true more>), gd_norm_blocks(count, true), gd_norm_threads(true), 0,  \
                                       gd_cuda_stream(), __VA_ARGS__);                                                    \
                         else                                                                                             \
                             CU_LAUNCH((kernel<T, N, false more>), gd_norm_blocks(count, false), gd_norm_threads(false), 0, \
                                       gd_cuda_stream(), __VA_ARGS__)))
#define GD_COMMA ,

#endif
