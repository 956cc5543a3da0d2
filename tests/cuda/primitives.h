/*
 * primitives.h - the tests of cuda/device.h's primitives, a group of their own.
 *
 * Why      The same file is compiled for the emulator and for a GPU.
 * Memory   none
 * Threads  One.
 * Errors   the number of tests that failed
 * Limits   none
 * Life     none
 */
#ifndef GD_TESTS_CUDA_PRIMITIVES_H
#define GD_TESTS_CUDA_PRIMITIVES_H

#ifdef GD_CUDA_EMULATED
#include "tests/cuda/sync_runtime.h"
#else
#include <cuda_runtime.h>
cudaError_t sync_status(void); /* of all launches so far */
#endif

int primitives_test(void);

#endif
