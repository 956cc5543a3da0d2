/*
 * pair.h - calls that run as one launch with the one before them (backend.h).
 *
 * Why      A sum of the residual stream is read again at once by the norm behind it, a norm of heads by the rotation behind it:
 *          one kernel keeps what lies between in registers or shared memory.
 * Memory   none
 * Threads  engine thread
 * Errors   none
 * Limits   none
 * Life     constants
 */
#ifndef GD_CUDA_PAIR_H
#define GD_CUDA_PAIR_H

#include "engine/tensor/backend.h"

/* add and rms_norm or layer_norm; rms_norm of heads and rope, and backward rope and rms_norm_grad. NULL: no such pair. */
gd_pair_fn gd_cuda_pair(const struct gd_call *first, const struct gd_call *second);

#endif
