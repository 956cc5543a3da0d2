/*
 * reading.h - tests on whatever device GD_TEST_DEVICE names (the CPU unless it does): memory of it, and results from it.
 *
 * Why      The same tests hold for every backend.
 * Memory   The plan's, until its next run.
 * Threads  The test's.
 * Errors   end the test program
 * Limits   none
 * Life     none
 */
#ifndef GD_TESTS_TENSOR_READING_H
#define GD_TESTS_TENSOR_READING_H

#include "engine/base/alloc.h"
#include "engine/tensor/device.h"
#include "engine/tensor/plan.h"
#include <stdio.h>
#include <stdlib.h>

static inline const char *test_device(void)
{
    const char *device = getenv("GD_TEST_DEVICE");
    return device != NULL && device[0] != '\0' ? device : "cpu";
}

static inline void test_ok(bool ok, const struct gd_error *err)
{
    if (!ok) {
        fprintf(stderr, "%s\n", err->message);
        abort();
    }
}

/* What a group of tests sets up. */
static inline int test_open_device(void **state)
{
    struct gd_error err = {0};
    test_ok(gd_device_init(test_device(), 2, &err), &err);
    return 0;
}

/* NaN in every dtype: nothing old can help. */
static inline void test_poison(void *memory, size_t size_bytes)
{
    struct gd_error err = {0};
    char *bytes = gd_alloc(size_bytes + 1);
    memset(bytes, 0xFF, size_bytes);
    test_ok(gd_device_write(memory, bytes, size_bytes, &err), &err);
    gd_free(bytes);
}

static inline void *test_poisoned(size_t size_bytes)
{
    struct gd_error err = {0};
    void *memory = NULL;
    test_ok(gd_device_alloc(&memory, size_bytes, "a test", &err), &err);
    test_poison(memory, size_bytes);
    return memory;
}

static inline const void *test_read(struct gd_plan *plan, const struct gd_value *value)
{
    struct gd_error err = {0};
    const void *data = gd_plan_read(plan, value, &err);
    test_ok(data != NULL, &err);
    return data;
}

#endif
