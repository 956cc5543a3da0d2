/*
 * device.h - what the processor is and how many threads the arithmetic uses.
 *
 * Why      Precision and kernels are chosen once, by documented rules, and reported.
 * Memory   Blocks are yours until free, release or gd_twin_free.
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

struct gd_sample_batch;
struct gd_sampled;
struct gd_wear_part;
struct gd_wear_shape;

struct gd_adamw {
    int64_t step;                /* counts from 1 */
    double learning_rate, beta1, beta2, eps, weight_decay;
    double grad_scale;           /* gradients are multiplied by it first (clipping) */
};

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

/* Why the device cannot be used any more, after an error GD_DEVICE_LOST; NULL: it can. Only a new process may have it again. */
const char *gd_device_lost(void);

/* Memory for kernels alone: arenas, the key/value cache. The host reaches what lies there by gd_device_read and _write. */
GD_MUST_CHECK bool gd_device_alloc(void **out, size_t size_bytes, const char *what, struct gd_error *err);
void gd_device_free(void *memory, size_t size_bytes);
/* The same, grown to the largest need so far: what several plans run in by turns. Zeroed at first; growing forgets what was there, and a
 * failure leaves it empty. */
struct gd_device_block {
    void *memory;
    size_t size_bytes;
};
GD_MUST_CHECK bool gd_device_reserve(struct gd_device_block *block, size_t size_bytes, const char *what, struct gd_error *err);
void gd_device_release(struct gd_device_block *block);
GD_MUST_CHECK bool gd_device_read(void *to, const void *device, size_t size_bytes, struct gd_error *err);
GD_MUST_CHECK bool gd_device_write(void *device, const void *from, size_t size_bytes, struct gd_error *err);

/* Blocks of the host that kernels use too, from begin to end: parameters, moments, gradients. Where the device has memory of its own
 * each has a twin there, found by any address inside: push after the host wrote, pull before it reads. On the CPU nothing moves. */
GD_MUST_CHECK bool gd_twin_alloc(void **out, size_t size_bytes, const char *what, struct gd_error *err); /* zeros on both sides */
void gd_twin_free(void *memory, size_t size_bytes);
GD_MUST_CHECK bool gd_twin_push(const void *host, size_t size_bytes, struct gd_error *err);
GD_MUST_CHECK bool gd_twin_pull(void *host, size_t size_bytes, struct gd_error *err);
/* Where kernels find it: of a twin, the device's; on the CPU, itself; NULL for other memory of the host. */
void *gd_device_address(const void *memory);

/* What a graft's parts point at, as kernels need it: before a batch wears it, and again after it changed (wear.h). */
GD_MUST_CHECK bool gd_wear_adopt(const struct gd_wear_part *sites, const struct gd_wear_shape *shapes, int count, struct gd_error *err);
void gd_wear_drop(const struct gd_wear_part *sites);

/* Whether tokens are drawn where the logits lie (sample.h). */
bool gd_device_samples(void);
GD_MUST_CHECK bool gd_device_sample(const struct gd_sample_batch *batch, struct gd_sampled *out, struct gd_error *err);

/* Vector work outside graphs, on twins; fixed order of summation, the same for every number of threads. */
GD_MUST_CHECK bool gd_vector_zero(float *x, int64_t count, struct gd_error *err);
GD_MUST_CHECK bool gd_vector_add(float *y, const float *x, int64_t count, struct gd_error *err);         /* y += x */
GD_MUST_CHECK bool gd_vector_add_squares(float *y, const float *x, int64_t count, struct gd_error *err); /* y += x x */
GD_MUST_CHECK bool gd_vector_sum_squares(double *out, const float *x, int64_t count, struct gd_error *err);
GD_MUST_CHECK bool gd_vector_all_finite(bool *out, const float *x, int64_t count, struct gd_error *err);
/* Loshchilov & Hutter 2019, as PyTorch's AdamW: p -= lr wd p; m, v with decay beta1, beta2; p -= lr mhat / (sqrt(vhat) + eps). */
GD_MUST_CHECK bool gd_vector_adamw(float *param, float *m, float *v, const float *grad, int64_t count, const struct gd_adamw *adamw,
                                   struct gd_error *err);
/* Of memory of the host. */
bool gd_all_finite(const float *x, int64_t count);

#endif
