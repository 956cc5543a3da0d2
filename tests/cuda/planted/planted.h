/*
 * planted.h - bugs planted into sound kernels, and how each must be found.
 *
 * Why      A detector is trusted as far as it has been seen to detect. A bug found on a GPU later is planted here too.
 * Memory   A case frees what it makes.
 * Threads  One; every bug runs in a child process.
 * Errors   What a child prints, or says is wrong, or dies of.
 * Limits   none
 * Life     case(run) for each order of threads; the runner compares
 *
 * To plant a bug: choose the case whose kernel has its shape, write `BUG(n) ? wrong : right` there, add n to the case's
 * table with what must be found in each build ("" where nothing is: it needs another build).
 */
#ifndef GD_TESTS_CUDA_PLANTED_H
#define GD_TESTS_CUDA_PLANTED_H

#include "tests/cuda/device_array.h"
#include "tests/cuda/sync_runtime.h"

#include <vector>

#define BUG(n) (bug == (n))

struct planted_run {
    int bug;                            /* 0: sound */
    std::vector<unsigned char> bits;    /* of all outputs */
    char wrong[200];

    template <class T> void keep(const device_array<T> &out)
    {
        const unsigned char *bytes = (const unsigned char *)out.data;
        bits.insert(bits.end(), bytes, bytes + (size_t)out.count * sizeof(T));
    }
    /* `want` in double, `bound` absolute. */
    void compare(const char *name, int i, double got, double want, double bound);
};

struct planted_bug {
    int bug;
    const char *what;
    const char *fast, *asan, *check;    /* part of the message; "wrong": the numbers, "order": bits depend on the order */
};

struct planted_case {
    const char *name;
    void (*run)(planted_run &run);
    const planted_bug *bugs;
    int bug_count;
};

extern const planted_case planted_norm, planted_shrink, planted_gemm, planted_flash, planted_quant, planted_count, planted_exchange;

#endif
