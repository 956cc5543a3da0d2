/*
 * lanes.h - how the attention and low-rank kernels are compiled once for each vector width.
 *
 * Why      Their inner loops are small matrix products whose accumulators must stay in registers: that needs an
 *          explicit vector type and a tile shape for each instruction set, which automatic clones cannot give.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   none
 * Limits   none
 * Life     none
 *
 * A template (lanes_math.h, attention_forward.h, ...) is written for LANES floats a vector and included three times:
 *
 *     #define LANES 16
 *     #include "engine/tensor/ops/attention_forward.h"
 *     #undef LANES
 *     ... 8, 4
 *
 * Functions in it are declared `LANES_FN void ISA(name)(...)`; gd_lanes() tells which of them to call. The order of
 * every sum is the same in all of them and does not depend on which lane a result sits in.
 */
#ifndef GD_TENSOR_OPS_LANES_H
#define GD_TENSOR_OPS_LANES_H

#include "engine/tensor/kernel.h"

#define GD_LANES_CAT2(a, b) a##_##b
#define GD_LANES_CAT(a, b) GD_LANES_CAT2(a, b)
#define GD_LANES_PASTE2(a, b) a##b
#define GD_LANES_PASTE(a, b) GD_LANES_PASTE2(a, b)

#if defined(__x86_64__)
#define GD_LANES_TARGET_16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,bmi,bmi2,f16c,lzcnt")))
#define GD_LANES_TARGET_8 __attribute__((target("avx2,fma,bmi,bmi2,f16c,lzcnt")))
#else
#define GD_LANES_TARGET_16
#define GD_LANES_TARGET_8
#endif
#define GD_LANES_TARGET_4

#define ISA(name) GD_LANES_CAT(name, LANES)
#define LANES_FN GD_LANES_PASTE(GD_LANES_TARGET_, LANES) static inline
#define LANES_INLINE GD_LANES_PASTE(GD_LANES_TARGET_, LANES) static inline __attribute__((always_inline))

/* The product's tiles unroll to hundreds of accesses; checking each takes a sanitizing compiler minutes. */
#define LANES_UNCHECKED __attribute__((no_sanitize("address"), no_sanitize("undefined")))
#define LANES_TILE LANES_UNCHECKED LANES_INLINE
#define LANES_PRODUCT LANES_UNCHECKED LANES_FN

/* LANES floats and the integers of the same size; loads and stores that need no alignment. */
#define VEC ISA(gd_vec)
#define IVEC ISA(gd_ivec)
#define VLOAD(p) (*(const ISA(gd_vec_unaligned) *)(p))
#define ILOAD(p) (*(const ISA(gd_ivec_unaligned) *)(p))
#define VSTORE(p, v) (*(ISA(gd_vec_unaligned) *)(p) = (v))

/* Functions that pass vectors are inlined into callers of the same instruction set: no call crosses an ABI. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

/* A task of attention handles at most this many rows and keys at once. Divisible by every vector width. */
#define GD_TILE 64

/* 16, 8 or 4: the widest vectors of this processor. */
static inline int gd_lanes(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return 8;
#endif
    return 4;
}

static inline int64_t gd_round_up(int64_t value, int64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* order[] = indices by falling cost, equal costs in their order. bins: [cost_max + 2] of scratch. */
static inline void gd_order_by_cost(int32_t *order, const int32_t *cost, int count, int32_t *bins, int cost_max)
{
    memset(bins, 0, (size_t)(cost_max + 2) * sizeof(*bins));
    for (int i = 0; i < count; i++)
        bins[cost_max - cost[i] + 1]++;
    for (int c = 0; c <= cost_max; c++)
        bins[c + 1] += bins[c];
    for (int i = 0; i < count; i++)
        order[bins[cost_max - cost[i]]++] = i;
}

#endif
