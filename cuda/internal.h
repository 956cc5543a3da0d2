/*
 * internal.h - what the files of the CUDA backend that are C share.
 *
 * Why      Streams, memory and recordings are used by all of them and by nobody else.
 * Memory   see each
 * Threads  engine thread
 * Errors   stream.h
 * Limits   one device for a process
 * Life     gd_cuda_open -> the end of the process
 */
#ifndef GD_CUDA_INTERNAL_H
#define GD_CUDA_INTERNAL_H

#include "cuda/stream.h"
#include "engine/tensor/backend.h"

/* ---- streams (stream.c) ---- */

/* What runs while another run waits (gd_backend_run.between) has a lane of its own, with the higher priority. */
enum gd_cuda_lane { GD_CUDA_LANE_MAIN, GD_CUDA_LANE_NESTED, GD_CUDA_LANES };

GD_MUST_CHECK bool gd_cuda_streams_open(struct gd_error *err);
enum gd_cuda_lane gd_cuda_lane(void);
void gd_cuda_set_lane(enum gd_cuda_lane lane);
cudaStream_t gd_cuda_copy_stream(void);
cudaEvent_t gd_cuda_lane_event(void);          /* of the lane at hand: what is waited for */
bool gd_cuda_capturing(void);                  /* launches are being recorded: nothing may be allocated or waited for */
void gd_cuda_set_capturing(bool on);
/* GRAFTD_CUDA_SYNC=1: each launch is waited for, so that a fault is reported at the op that made it, and nothing is recorded. */
bool gd_cuda_one_by_one(void);

/* ---- memory (pool.c) ---- */

struct gd_cuda_memory {
    size_t taken;            /* from the driver */
    size_t used, used_peak;  /* by blocks that are handed out */
};

/* Chunks of this size; 0: each block is an allocation of its own. */
void gd_cuda_pool_set_chunk(size_t bytes);
GD_MUST_CHECK bool gd_cuda_alloc(void **out, size_t bytes, const char *what, struct gd_error *err);
void gd_cuda_free(void *memory);               /* NULL: nothing */
bool gd_cuda_owns(const void *memory);         /* it lies in the device's */
struct gd_cuda_memory gd_cuda_memory(void);

/* Of the open device: what it has, what is free now as the driver says, what this process took and uses of it. */
struct gd_cuda_figures {
    size_t total, free, taken, used, used_peak;
};
GD_MUST_CHECK bool gd_cuda_figures(struct gd_cuda_figures *out, struct gd_error *err);

/* ---- what a run keeps on the host (run.c) ---- */

/* Page-locked memory for the launches at hand, as long as they may be repeated. */
GD_MUST_CHECK bool gd_cuda_host_memory(void **out, size_t bytes, struct gd_error *err);
bool gd_cuda_run(const struct gd_backend_run *run, struct gd_error *err);
void gd_cuda_forget(struct gd_recording *recording);

/* ---- weights (layout.c) ---- */

size_t gd_cuda_layout_bytes(const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute);
bool gd_cuda_layout_create(struct gd_layout **out, const struct gd_weight *weight, enum gd_weight_use use, enum gd_dtype compute,
                           struct gd_error *err);
void gd_cuda_layout_destroy(struct gd_layout *layout);
const void *gd_cuda_layout_data(const struct gd_layout *layout);
bool gd_cuda_multiply(const struct gd_layout *layout, const void *x, enum gd_dtype x_dtype, void *y, enum gd_dtype y_dtype,
                      int64_t rows, bool accumulate, struct gd_error *err);

/* ---- products (gemm.c) ---- */

/* card: the device's name. */
GD_MUST_CHECK bool gd_cuda_gemm_open(const char *card, struct gd_error *err);

#endif
