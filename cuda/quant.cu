/*
 * Unpacking of blocks, and products of few rows that read blocks once.
 *
 * few_rows: four warps make two outputs for all rows; each takes every fourth stretch of 256 elements of the weights' rows, and
 * their sums are added in order. So a row's result depends on nothing but that row.
 */
#include "cuda/blocks.h"
#include "cuda/kernel.h"
#include "cuda/quant.h"
#include <stdio.h>

#define THREADS 256
#define WARPS 4
#define OUTPUTS 2
#define STRETCH (8 * CU_WARP)

struct view { /* of blocks: bytes of a row, the first row, the first chunk of eight, and how many chunks and rows are wanted */
    const uint8_t *blocks;
    int64_t row_bytes, row, chunk, chunks, rows;
};

template <class T> CU_FN void store8(T *to, const float *w)
{
    constexpr int each = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < 8; i += each) {
        cu_vector<T, each> part;
#pragma unroll
        for (int j = 0; j < each; j++)
            part.v[j] = from_f32<T>(w[i + j]);
        *(cu_vector<T, each> *)(to + i) = part;
    }
}

template <class T> CU_FN void load8(float *x, const T *from)
{
    constexpr int each = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < 8; i += each) {
        cu_vector<T, each> part = *(const cu_vector<T, each> *)(from + i);
#pragma unroll
        for (int j = 0; j < each; j++)
            x[i + j] = to_f32(part.v[j]);
    }
}

template <int D, class T> __global__ void unpack(T *out, struct view v)
{
    constexpr int in_block = gd_blocks<D>::width / 8;
    CU_SHARED(float, quantiles, [16]);
    gd_unpack_begin<D>(quantiles);
    int64_t count = v.rows * v.chunks;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t row = v.row + i / v.chunks, chunk = v.chunk + i % v.chunks;
        float w[8];
        gd_unpack8<D>(w, v.blocks + row * v.row_bytes + chunk / in_block * gd_blocks<D>::bytes, (int)(chunk % in_block), quantiles);
        store8(out + 8 * i, w);
    }
}

template <class T> __global__ void unpack_f16(T *out, const uint16_t *in, int64_t width, int64_t r0, int64_t c0, int64_t columns, int64_t count)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        out[i] = from_f32<T>(f16_to_f32(in[(r0 + i / columns) * width + c0 + i % columns]));
}

template <class T> static bool unpack_as(const void *blocks, enum gd_dtype dtype, int64_t width, int64_t r0, int64_t r1, int64_t c0,
                                         int64_t c1, T *out)
{
    struct view v = {(const uint8_t *)blocks, (int64_t)gd_dtype_bytes(dtype, width), r0, c0 / 8, (c1 - c0) / 8, r1 - r0};
    unsigned grid = gd_cuda_blocks(v.rows * v.chunks, THREADS);
    bool known = dtype == GD_F16;
    if (known)
        CU_LAUNCH((unpack_f16<T>), gd_cuda_blocks((r1 - r0) * (c1 - c0), THREADS), THREADS, 0, gd_cuda_stream(), out,
                  (const uint16_t *)blocks, width, r0, c0, c1 - c0, (r1 - r0) * (c1 - c0));
    GD_BY_BLOCKS(dtype, D, CU_LAUNCH((unpack<D, T>), grid, THREADS, 0, gd_cuda_stream(), out, v); known = true);
    return known;
}

bool gd_cuda_unpack(const void *blocks, enum gd_dtype dtype, int64_t width, int64_t r0, int64_t r1, int64_t c0, int64_t c1, void *out,
                    enum gd_dtype out_dtype, struct gd_error *err)
{
    int64_t block = gd_dtype_block(dtype);
    char what[160];
    if (r1 <= r0 || c1 <= c0)
        return true;
    snprintf(what, sizeof(what), "rows %lld to %lld, columns %lld to %lld of %s", (long long)r0, (long long)r1, (long long)c0,
             (long long)c1, gd_dtype_name(dtype));
    bool whole = width % block == 0 && c0 % block == 0 && c1 % block == 0 && r0 >= 0 && c0 >= 0 && c1 <= width &&
                 (uintptr_t)out % 16 == 0;
    bool known = whole && (out_dtype == GD_BF16 ? unpack_as(blocks, dtype, width, r0, r1, c0, c1, (bf16 *)out)
                                                : unpack_as(blocks, dtype, width, r0, r1, c0, c1, (float *)out));
    if (!known)
        return gd_fail(err, GD_INTERNAL, "unpack: %s are no blocks that fit", what);
    return gd_cuda_check(cudaGetLastError(), "unpack", what, err);
}

/* ---- few rows ---- */

struct few {
    const uint8_t *blocks;
    int64_t out, in, row_bytes, rows;
    bool accumulate;
};

/* sums[o][r] of the weights' chunk and x's. */
template <int D, class X, int ROWS> CU_FN void take_chunk(float (*sums)[ROWS], const struct few &f, const X *x, int64_t first,
                                                          int64_t chunk, const float *quantiles)
{
    constexpr int in_block = gd_blocks<D>::width / 8;
    float w[OUTPUTS][8];
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
        int64_t row = first + o < f.out ? first + o : f.out - 1;
        gd_unpack8<D>(w[o], f.blocks + row * f.row_bytes + chunk / in_block * gd_blocks<D>::bytes, (int)(chunk % in_block), quantiles);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float values[8];
        if (r >= f.rows)
            break;
        load8(values, x + r * f.in + 8 * chunk);
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                sums[o][r] += w[o][i] * values[i];
    }
}

template <int D, class X, class Y, int ROWS> __global__ void few_rows(Y *y, const X *x, struct few f)
{
    CU_SHARED(float, quantiles, [16]);
    CU_SHARED(float, partial, [WARPS][OUTPUTS][ROWS]);
    int lane = threadIdx.x % CU_WARP, warp = threadIdx.x / CU_WARP;
    int64_t first = (int64_t)blockIdx.x * OUTPUTS, chunks = f.in / 8;
    float sums[OUTPUTS][ROWS] = {};
    gd_unpack_begin<D>(quantiles);
    for (int64_t chunk = warp * CU_WARP + lane; chunk < chunks; chunk += WARPS * CU_WARP)
        take_chunk<D, X, ROWS>(sums, f, x, first, chunk, quantiles);
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float sum = warp_sum(sums[o][r]);
            if (lane == 0)
                partial[warp][o][r] = sum;
        }
    __syncthreads();
    int o = threadIdx.x / ROWS, r = threadIdx.x % ROWS;
    if (o >= OUTPUTS || r >= f.rows || first + o >= f.out)
        return;
    float sum = partial[0][o][r];
    for (int w = 1; w < WARPS; w++)
        sum += partial[w][o][r];
    Y *to = y + r * f.out + first + o;
    *to = from_f32<Y>(f.accumulate ? to_f32(*to) + sum : sum);
}

template <class X, class Y, int ROWS> static bool few_rows_as(enum gd_dtype dtype, Y *y, const X *x, struct few f)
{
    unsigned grid = (unsigned)((f.out + OUTPUTS - 1) / OUTPUTS);
    bool known = false;
    GD_BY_BLOCKS(dtype, D, CU_LAUNCH((few_rows<D, X, Y, ROWS>), grid, WARPS * CU_WARP, 0, gd_cuda_stream(), y, x, f); known = true);
    return known;
}

template <class X, class Y> static bool few_rows_of(enum gd_dtype dtype, Y *y, const X *x, struct few f)
{
    return f.rows == 1   ? few_rows_as<X, Y, 1>(dtype, y, x, f)
           : f.rows <= 4 ? few_rows_as<X, Y, 4>(dtype, y, x, f)
                         : few_rows_as<X, Y, GD_CUDA_FEW_ROWS>(dtype, y, x, f);
}

bool gd_cuda_few_rows(const void *blocks, enum gd_dtype dtype, int64_t out, int64_t in, const void *x, enum gd_dtype x_dtype, void *y,
                      enum gd_dtype y_dtype, int64_t rows, bool accumulate, struct gd_error *err)
{
    struct few f = {(const uint8_t *)blocks, out, in, (int64_t)gd_dtype_bytes(dtype, in), rows, accumulate};
    char what[160];
    if (rows == 0 || out == 0)
        return true;
    snprintf(what, sizeof(what), "%lld rows by %s [%lld, %lld]", (long long)rows, gd_dtype_name(dtype), (long long)out, (long long)in);
    bool fits = rows <= GD_CUDA_FEW_ROWS && in > 0 && in % gd_dtype_block(dtype) == 0 && (uintptr_t)x % 16 == 0 && out <= INT32_MAX;
    bool known = fits && (x_dtype == GD_F32                           ? few_rows_of(dtype, (float *)y, (const float *)x, f)
                          : y_dtype == GD_F32 ? few_rows_of(dtype, (float *)y, (const bf16 *)x, f)
                                              : few_rows_of(dtype, (bf16 *)y, (const bf16 *)x, f));
    if (!known || (x_dtype == GD_F32 && y_dtype != GD_F32))
        return gd_fail(err, GD_INTERNAL, "few_rows: %s do not fit", what);
    return gd_cuda_check(cudaGetLastError(), "few_rows", what, err);
}
