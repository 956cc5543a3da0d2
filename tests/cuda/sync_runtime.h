/*
 * sync_runtime.h - the runtime of the emulator's own tests: every launch runs at once.
 *
 * Why      Errors of a kernel are looked at right behind its launch.
 * Memory   none; tests register what they use.
 * Threads  One.
 * Errors   sync_status() returns the first since its last call, and forgets it.
 * Limits   none
 * Life     none
 */
#ifndef GD_TESTS_CUDA_SYNC_RUNTIME_H
#define GD_TESTS_CUDA_SYNC_RUNTIME_H

#include "tests/cuda/emu.h"

cudaError_t sync_status(void);

#endif
