/*
 * bench.h - what the tests of single CUDA functions share: arrays on the device, and random numbers.
 *
 * Why      Kernels are called as the backend calls them, each operand in an allocation of its own size.
 * Memory   device arrays are freed by bench_release.
 * Threads  one
 * Errors   fail the test
 * Limits   BENCH_ARRAYS_MAX arrays in a test
 * Life     bench_open as group setup; bench_release at the end of each test
 */
#ifndef GD_TESTS_UNIT_CUDA_BENCH_H
#define GD_TESTS_UNIT_CUDA_BENCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/base/philox.h"
#include "engine/tensor/device.h"
#include "engine/tensor/op.h"

#define BENCH_ARRAYS_MAX 64

int bench_open(void **state);
int bench_release(void **state);

/* A copy on the device. */
void *bench_put(const void *host, size_t bytes);
void *bench_room(size_t bytes);              /* not written */
void bench_get(void *host, const void *device, size_t bytes);

float bench_normal(uint64_t stream, uint64_t i);
/* Memory of the host: random numbers in a dtype (F32 or BF16). */
void *bench_random(enum gd_dtype dtype, int64_t count, uint64_t stream);
/* Memory of the host: blocks of a quantised dtype, random bits with steps of a fair size. */
uint8_t *bench_blocks(enum gd_dtype dtype, int64_t count);
double bench_at(enum gd_dtype dtype, const void *data, int64_t i);

#endif
