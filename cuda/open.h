/*
 * open.h - makes a CUDA device the one that this process computes on.
 *
 * Why      The one door between the engine and cuda/: device.c asks here, and where a build has no CUDA the symbol is absent.
 * Memory   The table is a constant; what opening takes is kept for the process.
 * Threads  engine thread, once
 * Errors   GD_UNSUPPORTED naming the device and the way out: no driver, no such device, too old, no cuBLASLt.
 * Limits   none
 * Life     process
 */
#ifndef GD_CUDA_OPEN_H
#define GD_CUDA_OPEN_H

#ifdef __cplusplus
extern "C" {
#endif
#include "engine/tensor/backend.h"

/* Fills name ("cuda:0"), isa ("sm_90, NVIDIA H100 80GB HBM3"; an emulated build says "emulated") and compute of `info`. */
bool gd_cuda_open(int index, const struct gd_backend **backend, struct gd_device_info *info, struct gd_error *err)
    __attribute__((weak));

#ifdef __cplusplus
}
#endif

#endif
