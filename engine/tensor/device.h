/*
 * device.h - what the processor is and how many threads the arithmetic uses.
 *
 * Why      Precision and kernels are chosen once, by documented rules, and reported.
 * Memory   none
 * Threads  gd_device_init once, from the engine thread, before anything else of engine/tensor.
 * Errors   GD_UNSUPPORTED naming the device and the way out.
 * Limits   none
 * Life     process
 */
#ifndef GD_TENSOR_DEVICE_H
#define GD_TENSOR_DEVICE_H

#include "engine/base/error.h"
#include "engine/tensor/tensor.h"

#define GD_THREADS_MAX 1024

struct gd_device_info {
    char name[64];          /* "cpu" */
    char isa[64];           /* "avx512_bf16", "amx_bf16", "avx512", "avx2", "generic" */
    int threads;
    enum gd_dtype compute;  /* dtype of matrix products and activations unless a job says otherwise */
};

/* device: "auto", "cpu" ("cuda:N" is refused by a build without CUDA, saying so). threads 0: all cores of
 * the affinity mask. compute is BF16 where the processor multiplies it at least as fast as f32: amx_bf16, or
 * avx512_bf16 on AMD (Zen 4 and later); Intel without AMX runs VDPBF16PS at half the f32 rate, so F32 there.
 * GRAFTD_COMPUTE=f32|bf16 overrides. */
GD_MUST_CHECK bool gd_device_init(const char *device, int threads, struct gd_error *err);
const struct gd_device_info *gd_device(void);
/* Whether matrix products in `dtype` (F32 or BF16) run here at all: BF16 needs AVX-512. */
bool gd_device_multiplies(enum gd_dtype dtype);

/* Idle OpenMP threads of libgomp spin for milliseconds by default: with one other busy process on two cores a training
 * step took two to six times as long. Sets OMP_WAIT_POLICY=passive in this process's environment unless the user chose
 * a policy; true if it did. The OpenMP library reads its environment when it is loaded: call this before spawning
 * workers, and in a process that computes itself re-execute when it returns true. */
bool gd_device_quiet_environment(void);

/* Vector work outside graphs; fixed order of summation for a thread count. */
void gd_vector_zero(float *x, int64_t count);
void gd_vector_add(float *y, const float *x, int64_t count);                 /* y += x */
void gd_vector_add_squares(float *y, const float *x, int64_t count);         /* y += x x */
void gd_vector_scale(float *x, float factor, int64_t count);
double gd_vector_sum_squares(const float *x, int64_t count);
bool gd_vector_all_finite(const float *x, int64_t count);

#endif
