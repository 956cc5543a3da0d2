/*
 * stream.h - the stream that launches go to, and what CUDA says of them.
 *
 * Why      Ops launch without knowing whether they train or serve, run now or are recorded.
 * Memory   none
 * Threads  engine thread
 * Errors   Name the call, the op and the sizes of its operands; out of memory is GD_NO_MEMORY; a device that is lost or has an
 *          uncorrectable memory error is GD_DEVICE_LOST, and every later call says so too.
 * Limits   none
 * Life     between gd_cuda_open and the end of the process
 */
#ifndef GD_CUDA_STREAM_H
#define GD_CUDA_STREAM_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif
#include "engine/tensor/op.h"

cudaStream_t gd_cuda_stream(void);

/* Whether what was just launched for `args` is under way. */
bool gd_cuda_launched(const struct gd_kernel_args *args, const char *op, struct gd_error *err);
/* status == cudaSuccess, or an error: "cudaMalloc of 123 bytes for WHAT: out of memory". */
bool gd_cuda_check(cudaError_t status, const char *call, const char *what, struct gd_error *err);

/* Inside the device, behind what was launched; nothing where there is nothing to do. */
bool gd_cuda_copy(void *to, const void *from, size_t bytes, const char *what, struct gd_error *err);

/* Why the device is lost, or NULL. */
const char *gd_cuda_lost(void);

#ifdef __cplusplus
}
#endif

#endif
