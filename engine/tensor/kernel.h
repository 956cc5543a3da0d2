/*
 * kernel.h - what CPU kernels are written with: threads by ranges, vector clones, dtype loads and stores.
 *
 * Why      Every kernel splits its rows the same way and is compiled for AVX-512, AVX2 and plain x86-64 at once.
 * Memory   none
 * Threads  GD_PARALLEL opens a team; each thread works on its own fixed range, so results do not depend on timing.
 *          Sums never cross a range: split so that one thread owns each result.
 * Errors   none
 * Limits   none
 * Life     none
 *
 * The shape of a kernel:
 *
 *     GD_KERNEL static void rows_f32(float *y, const float *x, int64_t n, int64_t begin, int64_t end) { ... }
 *
 *     GD_PARALLEL(rows * n)
 *     {
 *         struct gd_range r = gd_thread_range(rows, 1);
 *         rows_f32(y, x, n, r.begin, r.end);
 *     }
 *
 * The work stands in a GD_KERNEL function of its own, because the compiler outlines the body of a parallel region and
 * clones do not reach outlined functions. Write reductions with `#pragma omp simd reduction(+ : sum)`.
 */
#ifndef GD_TENSOR_KERNEL_H
#define GD_TENSOR_KERNEL_H

#include "engine/tensor/op.h"
#include <omp.h>

/* Psabi levels rather than processor names: the resolver tests features, so AMD gets the AVX-512 clone too. */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__x86_64__)
#define GD_KERNEL __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GD_KERNEL __attribute__((noinline))
#endif
/* For bodies that a GD_KERNEL function instantiates with constant arguments. */
#define GD_INLINE static inline __attribute__((always_inline))

/* Below this many elements of work a team costs more than it gains. */
#define GD_PARALLEL_MIN 16384
#define GD_PRAGMA(text) _Pragma(#text)
#define GD_PARALLEL(work) GD_PRAGMA(omp parallel if ((work) >= GD_PARALLEL_MIN))

struct gd_range {
    int64_t begin, end;
};

/* This thread's part of [0, count): equal parts, boundaries at multiples of `align`. */
static inline struct gd_range gd_thread_range(int64_t count, int64_t align)
{
    int64_t blocks = (count + align - 1) / align;
    int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    int64_t begin = blocks * thread / threads * align, end = blocks * (thread + 1) / threads * align;
    return (struct gd_range){begin < count ? begin : count, end < count ? end : count};
}

/* Element i of an F32 or BF16 array; `bf16` is a constant at the call, so that the loop vectorises. */
GD_INLINE float gd_load(const void *data, bool bf16, int64_t i)
{
    return bf16 ? gd_bf16_to_f32(((const uint16_t *)data)[i]) : ((const float *)data)[i];
}

GD_INLINE void gd_store(void *data, bool bf16, int64_t i, float value)
{
    if (bf16)
        ((uint16_t *)data)[i] = gd_f32_to_bf16(value);
    else
        ((float *)data)[i] = value;
}

/* Where element i of an F32, BF16 or I32 array lies. */
static inline void *gd_at(const struct gd_tensor *tensor, int64_t i)
{
    return (char *)tensor->data + (size_t)i * (tensor->dtype == GD_BF16 ? 2 : 4);
}

/* Whole rows, vectorised, on the calling thread (F32 or BF16; F32 is copied). */
void gd_row_to_f32(float *out, const void *in, enum gd_dtype dtype, int64_t count);
void gd_row_from_f32(void *out, enum gd_dtype dtype, const float *in, int64_t count);

#endif
