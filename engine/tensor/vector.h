/*
 * vector.h - the CPU's vectors (device.h says what they make).
 *
 * Why      Optimiser and sums of gradients work on whatever memory the device has; this is the processor's part.
 * Memory   The caller's.
 * Threads  engine thread (OpenMP inside; the same bits for every number of threads)
 * Errors   none happen
 * Limits   none
 * Life     none
 */
#ifndef GD_TENSOR_VECTOR_H
#define GD_TENSOR_VECTOR_H

#include "engine/tensor/device.h"

bool gd_cpu_vector_add(float *y, const float *x, int64_t count, struct gd_error *err);
bool gd_cpu_vector_add_squares(float *y, const float *x, int64_t count, struct gd_error *err);
bool gd_cpu_vector_sum_squares(double *out, const float *x, int64_t count, struct gd_error *err);
bool gd_cpu_vector_all_finite(bool *out, const float *x, int64_t count, struct gd_error *err);
bool gd_cpu_vector_adamw(float *param, float *m, float *v, const float *grad, int64_t count, const struct gd_adamw *adamw,
                         struct gd_error *err);

#endif
