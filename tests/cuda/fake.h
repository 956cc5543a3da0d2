/*
 * fake.h - what tests ask of the stand-in runtime.
 *
 * Why      Memory is metered here to the byte, and what was ordered to fail must be forgotten between cases.
 * Memory   none
 * Threads  one
 * Errors   none
 * Limits   none
 * Life     any time
 */
#ifndef GD_TESTS_CUDA_FAKE_H
#define GD_TESTS_CUDA_FAKE_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#include <functional>
extern "C" {
#endif

struct fake_meter {
    size_t device_bytes, device_peak, host_bytes;
    uint64_t allocations, launches, graphs, graph_launches;
};

struct fake_meter fake_runtime_meter(void);
/* Queues, errors and the count of calls as at the start; memory stays. EMU_SEED is read again. */
void fake_runtime_reset(void);
/* Which of those that were offered the last product took, from 0. */
uint32_t fake_blas_last_algorithm(void);

#ifdef __cplusplus
}

/* For fake_blas.cpp. */
bool fake_blas_put(cudaStream_t stream, const char *name, std::function<bool()> work);
bool fake_blas_fault(const char *call);
#endif

#endif
