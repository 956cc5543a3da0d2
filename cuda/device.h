/*
 * device.h - what a kernel is written with: plain CUDA plus these primitives.
 *
 * Why      A .cu file that uses nothing else compiles with nvcc for a GPU and with g++ for the emulator of tests/cuda.
 * Memory   CU_SHARED and CU_DYN_SHARED are 16-byte aligned and undefined when a block starts.
 * Threads  Blocks are one-dimensional multiples of 32; every collective is called by all 32 lanes (every mask is ~0u),
 *          block_* and __syncthreads by all threads of the block, from one place.
 * Errors   none; launch functions check sizes and alignment before.
 * Limits   sm_80 and later. No float atomics, no asm, no cuda_fp16.h or cuda_bf16.h, no static, no STL.
 * Life     none
 *
 *   CU_LAUNCH(k, grid, block, shared_bytes, stream, args...)   (k<16>) in parentheses where it has template arguments
 *   CU_SHARED(float, tile, [64][72]);                          a static array; CU_SHARED(int, last, [1]) for one number
 *   CU_DYN_SHARED(bf16, tile);                                 pointer to the launch's shared_bytes
 *   bf16, to_f32(x), to_bf16(f), from_f32<T>(f), pack_bf16(low, high), f16_to_f32(bits), f32_to_f16(f), fast_exp2(f)
 *   ldmatrix_x4(r, row), ldmatrix_x4_trans(r, row)             unsigned r[4]; row is this lane's address (16-byte aligned)
 *   mma_bf16(d, a, b0, b1)                                     float d[4] += unsigned a[4] (16x16) times b (16x8)
 *   mma_bf16_row<NT>(d, a, b)                                  float d[NT][4], unsigned b[NT][2]
 *   cp_async16(shared, global, source_bytes = 16), cp_async_commit(), cp_async_wait<N>()
 *                                                              bytes beyond source_bytes become zero; a barrier follows the wait
 *   warp_sum(x), warp_max(x), quad_sum(x), quad_max(x)         float, double and integers of 4 or 8 bytes; the same bits in all lanes
 *   block_sum(x), block_max(x)                                 the same for the block, in order of the warps; two barriers
 *   gd_philox4, gd_uniform_from_bits, ... (engine/base/philox.h) give the CPU's numbers
 *
 * Fragments of mma m16n8k16; lane l: g = l / 4, t = l % 4; two bf16 in a register, lower column (k) in the low half:
 *   a0 A(g, 2t..)  a1 A(g+8, 2t..)  a2 A(g, 2t+8..)  a3 A(g+8, 2t+8..)   b0 B(k=2t.., n=g)  b1 B(k=2t+8.., n=g)
 *   d0 d1 D(g, 2t), D(g, 2t+1)   d2 d3 D(g+8, 2t), D(g+8, 2t+1)
 * ldmatrix addresses:
 *   A from a[m][k]            &a[m0 + l%16][k0 + l/16*8]             a0..a3
 *   A from at[k][m]    .trans &at[k0 + l%8 + l/16*8][m0 + l/8%2*8]   a0..a3
 *   B from b[n][k]            &b[n0 + l%8 + l/16*8][k0 + l/8%2*8]    b0 b1 of n0.., b0 b1 of n0+8..
 *   B from b[k][n]     .trans &b[k0 + l%16][n0 + l/16*8]             the same
 * Pitches of 40 (32 wide) and 72 (64 wide) elements have no bank conflicts.
 */
#ifndef GD_CUDA_DEVICE_H
#define GD_CUDA_DEVICE_H

#if defined(__CUDACC__)
#include "cuda/device_ptx.h"
#elif defined(GD_CUDA_EMULATED)
#include "tests/cuda/emu.h"
#else
#error "device.h is for nvcc, or for the emulator with GD_CUDA_EMULATED"
#endif

#include "engine/base/philox.h"

#define CU_WARP 32

CU_FN float to_f32(float value)
{
    return value;
}

template <class T> CU_FN T from_f32(float value);
template <> CU_FN float from_f32<float>(float value)
{
    return value;
}
template <> CU_FN bf16 from_f32<bf16>(float value)
{
    return to_bf16(value);
}

/* Four or eight values moved as one; the address must be a multiple of the size. */
template <class T, int COUNT> struct __align__(sizeof(T) * COUNT) cu_vector {
    T v[COUNT];
};

/* What the warps have, each in all of its lanes, joined in their order. */
template <class T, class F> CU_FN T block_joined(T value, F join)
{
    CU_SHARED(T, partial, [32]);
    if (threadIdx.x % CU_WARP == 0)
        partial[threadIdx.x / CU_WARP] = value;
    __syncthreads();
    T all = partial[0];
    for (unsigned warp = 1; warp < blockDim.x / CU_WARP; warp++)
        all = join(all, partial[warp]);
    __syncthreads(); /* the next call writes */
    return all;
}

template <class T> struct cu_sum {
    CU_FN T operator()(T a, T b) const
    {
        return a + b;
    }
};

template <class T> struct cu_larger {
    CU_FN T operator()(T a, T b) const
    {
        return b > a ? b : a;
    }
};

template <class T> CU_FN T block_sum(T value)
{
    return block_joined(warp_sum(value), cu_sum<T>());
}

template <class T> CU_FN T block_max(T value)
{
    return block_joined(warp_max(value), cu_larger<T>());
}

#endif
