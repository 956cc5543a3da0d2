/*
 * pair.h - calls that run as one launch with the one before them (backend.h).
 *
 * Why      A sum of the residual stream is read again at once by the norm behind it, a norm of heads by the rotation behind it, a
 *          product by the bias that is added: one kernel keeps what lies between in registers or shared memory.
 * Memory   none
 * Threads  engine thread
 * Errors   those of the two ops
 * Limits   none
 * Life     constants
 */
#ifndef GD_CUDA_PAIR_H
#define GD_CUDA_PAIR_H

#include "engine/tensor/backend.h"

/* NULL: no such pair. */
gd_pair_fn gd_cuda_pair(const struct gd_call *first, const struct gd_call *second);

/* norm_pair.cu; of the norms of heads and their rotations a warp takes on a head of at most this size. */
#define GD_CUDA_PAIR_HEAD_MAX 1024
bool gd_cuda_add_rms_norm(const struct gd_kernel_args *add, const struct gd_kernel_args *norm, struct gd_error *err);
bool gd_cuda_add_layer_norm(const struct gd_kernel_args *add, const struct gd_kernel_args *norm, struct gd_error *err);
bool gd_cuda_rms_norm_rope(const struct gd_kernel_args *norm, const struct gd_kernel_args *rope, struct gd_error *err);
bool gd_cuda_rope_rms_norm_grad(const struct gd_kernel_args *rope, const struct gd_kernel_args *norm, struct gd_error *err);

/* linear.cu: the library adds the bias, rounded as the result is, before it rounds. */
bool gd_cuda_linear_add_row(const struct gd_kernel_args *linear, const struct gd_kernel_args *add_row, struct gd_error *err);

#endif
