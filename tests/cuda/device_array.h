/*
 * device_array.h - an operand in device memory, of exactly its size.
 *
 * Why      In a pool an overflow into the neighbour is invisible.
 * Memory   Registered and freed with the object.
 * Threads  One.
 * Errors   none; out of memory ends the test
 * Limits   none
 * Life     none
 */
#ifndef GD_TESTS_CUDA_DEVICE_ARRAY_H
#define GD_TESTS_CUDA_DEVICE_ARRAY_H

#include "cuda/device.h"

#include <stdlib.h>
#include <string.h>

template <class T> struct device_array {
    T *data;
    int count;

    /* Never written. */
    device_array(const char *name, int count) : data(NULL), count(count)
    {
        void *memory = NULL;
#ifdef __CUDACC__
        if (cudaMallocManaged(&memory, (size_t)count * sizeof(T)) != cudaSuccess)
            abort();
        data = (T *)memory;
        memset(memory, 0xFF, (size_t)count * sizeof(T));
#else
        if (posix_memalign(&memory, 256, (size_t)count * sizeof(T)) != 0)
            abort();
        data = (T *)memory;
        emu_register_device(data, (size_t)count * sizeof(T), name);
#endif
    }
    template <class F> device_array(const char *name, int count, F value) : device_array(name, count)
    {
        for (int i = 0; i < count; i++)
            data[i] = value(i);
#ifndef __CUDACC__
        emu_device_write(data, (size_t)count * sizeof(T), "fill");
#endif
    }
    device_array(const device_array &) = delete;
    ~device_array()
    {
#ifdef __CUDACC__
        cudaFree(data);
#else
        emu_unregister_device(data);
        free(data);
#endif
    }
};

/* All 24 bits are random; `leaf` names the operand. (-1, 1) and never 0. */
inline float random_value(unsigned leaf, int i)
{
    struct gd_philox p = gd_philox4(20, leaf, (uint64_t)i);
    return (gd_uniform_from_bits(p.v[0]) + 0x1p-25f) * (p.v[1] & 1 ? 1.0f : -1.0f);
}

#endif
