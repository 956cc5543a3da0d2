/*
 * sample.h - sampling on the device (engine/tensor/sample.h).
 *
 * Why      see there
 * Memory   scratch: gd_cuda_sample_bytes, on the device, 64-byte aligned
 * Threads  engine thread; launches on gd_cuda_stream() and waits for it
 * Errors   see there
 * Limits   see there
 * Life     none
 */
#ifndef GD_CUDA_SAMPLE_H
#define GD_CUDA_SAMPLE_H

#include "engine/tensor/sample.h"

size_t gd_cuda_sample_bytes(int64_t rows, int64_t vocab, int64_t edits);
bool gd_cuda_sample(const struct gd_sample_batch *batch, void *scratch, struct gd_sampled *out, struct gd_error *err);

#endif
