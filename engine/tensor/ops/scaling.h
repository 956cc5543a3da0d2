/*
 * scaling.h - y = factor * x, the kernel of scale and mul_scalar.
 *
 * Why      They differ only in where the factor comes from.
 * Memory   y and x may be the same.
 * Threads  splits by elements
 * Errors   none
 * Limits   F32 and BF16
 * Life     none
 */
#ifndef GD_TENSOR_OPS_SCALING_H
#define GD_TENSOR_OPS_SCALING_H

#include "engine/tensor/tensor.h"

void gd_scale_kernel(const struct gd_tensor *y, const struct gd_tensor *x, float factor);

#endif
