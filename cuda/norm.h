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

/* What is normalised: each vector is asked for once to be summed, and then again. */
template <typename T> struct gd_stored_rows {
    const T *x;
    template <int N> CU_FN void first(float (&out)[N], int64_t at) const
    {
        gd_load_pack<N>(out, x + at);
    }
    template <int N> CU_FN void again(float (&out)[N], int64_t at) const
    {
        gd_load_pack<N>(out, x + at);
    }
};

template <typename T, int N, bool SHORT_ROWS, typename W, typename S>
__global__ void gd_rms_norm_kernel(T *y, float *inverse_rms, S source, W weights, float eps, float offset, int64_t count, int64_t width,
                                int64_t heads)
{
    int64_t t = gd_norm_vector<SHORT_ROWS>(), first = gd_norm_lane<SHORT_ROWS>() * N, step = gd_norm_stride<SHORT_ROWS, N>();
    if (t < count) { /* the same for all that sum together */
        const float *w = weights.weight(t / heads);
        float sum = 0;
        for (int64_t j = first; j < width; j += step) {
            float v[N];
            source.template first<N>(v, t * width + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                sum += v[k] * v[k];
        }
        float inverse = 1.0f / sqrtf(gd_norm_sum<SHORT_ROWS>(sum) / (float)width + eps);
        if (first == 0)
            inverse_rms[t] = inverse;
        for (int64_t j = first; j < width; j += step) {
            float v[N], by[N];
            source.template again<N>(v, t * width + j);
            gd_load_floats<N>(by, w + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                v[k] = v[k] * inverse * (by[k] + offset);
            gd_store_pack<N>(y + t * width + j, v);
        }
    }
}

template <typename T, int N, bool SHORT_ROWS, typename W, typename S>
__global__ void gd_layer_norm_kernel(T *y, float *means, float *inverses, S source, W weights, float eps, int64_t count, int64_t width)
{
    int64_t t = gd_norm_vector<SHORT_ROWS>(), first = gd_norm_lane<SHORT_ROWS>() * N, step = gd_norm_stride<SHORT_ROWS, N>();
    if (t < count) {
        const float *w = weights.weight(t), *b = weights.bias(t);
        float sum = 0, squares = 0;
        for (int64_t j = first; j < width; j += step) {
            float v[N];
            source.template first<N>(v, t * width + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                sum += v[k];
        }
        float mean = gd_norm_sum<SHORT_ROWS>(sum) / (float)width;
        for (int64_t j = first; j < width; j += step) { /* apart from the mean: squares of large numbers would drown it */
            float v[N];
            source.template again<N>(v, t * width + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                squares += (v[k] - mean) * (v[k] - mean);
        }
        float inverse = 1.0f / sqrtf(gd_norm_sum<SHORT_ROWS>(squares) / (float)width + eps);
        if (first == 0) {
            means[t] = mean;
            inverses[t] = inverse;
        }
        for (int64_t j = first; j < width; j += step) {
            float v[N], by[N], plus[N];
            source.template again<N>(v, t * width + j);
            gd_load_floats<N>(by, w + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                plus[k] = 0;
            if (b != NULL)
                gd_load_floats<N>(plus, b + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                v[k] = (v[k] - mean) * inverse * by[k] + plus[k];
            gd_store_pack<N>(y + t * width + j, v);
        }
    }
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
