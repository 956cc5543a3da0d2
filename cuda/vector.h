/*
 * vector.h - flat f32 vectors on the device: the optimiser, sums of gradients, norms.
 *
 * Why      Parameters, gradients and moments are flat blocks; device.h says what these functions make.
 * Memory   Vectors are the device's; two pages of sums are taken once and kept.
 * Threads  engine thread; launches on gd_cuda_stream(). What returns a number waits for it.
 * Errors   Name the function and the count; GD_NO_MEMORY at the first sum.
 * Limits   none
 * Life     between gd_cuda_open and the end of the process
 */
#ifndef GD_CUDA_VECTOR_H
#define GD_CUDA_VECTOR_H

#include "engine/tensor/device.h"

bool gd_cuda_vector_add(float *y, const float *x, int64_t count, struct gd_error *err);
bool gd_cuda_vector_add_squares(float *y, const float *x, int64_t count, struct gd_error *err);
bool gd_cuda_vector_sum_squares(double *out, const float *x, int64_t count, struct gd_error *err);
bool gd_cuda_vector_all_finite(bool *out, const float *x, int64_t count, struct gd_error *err);
bool gd_cuda_vector_adamw(float *param, float *m, float *v, const float *grad, int64_t count, const struct gd_adamw *adamw,
                          struct gd_error *err);

#endif
