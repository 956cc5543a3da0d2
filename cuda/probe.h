/*
 * probe.h - which NVIDIA devices this machine shows.
 *
 * Why      `graftd version` and a refused --device cuda:N say what is there.
 * Memory   none
 * Threads  Any.
 * Errors   A missing driver is not an error: no device, and why.
 * Limits   none
 * Life     none
 */
#ifndef GD_CUDA_PROBE_H
#define GD_CUDA_PROBE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One line: "1 device: NVIDIA H100 80GB HBM3 (sm_90, 79 GiB)", or "no device (CUDA driver version is insufficient ...)". */
void gd_cuda_describe(char *out, size_t size);

#ifdef __cplusplus
}
#endif

#endif
