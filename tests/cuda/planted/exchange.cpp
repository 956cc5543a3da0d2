/* Values that lanes and threads hand to each other: a rotation within warps and a transposition through shared memory. */
#include "tests/cuda/planted/planted.h"

#define THREADS 64

__global__ void __launch_bounds__(THREADS) exchange(float *rotated, float *turned, const float *in, int bug)
{
    CU_SHARED(float, tile, [THREADS / 32][32]);
    CU_SHARED(float *, addresses, [THREADS]);
    CU_DYN_SHARED(float, all);
    int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32, i = (int)blockIdx.x * THREADS + thread;
    float value = in[i], got;
    if (BUG(1)) {
        got = __shfl_sync(~0u, value, lane + 2);
    } else if (BUG(2)) {
        got = lane % 2 ? __shfl_sync(~0u, value, lane + 1) : value;
    } else if (BUG(3)) {
        got = __shfl_down_sync(~0u, value, 1);
    } else if (BUG(4)) {
        got = __shfl_sync(0xFFFFu << lane / 16 * 16, value, lane + 1);
    } else if (BUG(5)) {
        tile[warp][lane] = value;
        got = tile[warp][(lane + 1) % 32];
    } else if (BUG(6)) {
        tile[warp][lane] = value;
        __any_sync(~0u, 1);
        got = tile[warp][(lane + 1) % 32];
    } else if (BUG(7)) {
        tile[warp][lane] = value;
        __syncwarp(0xFFFFu << lane / 16 * 16);
        got = tile[warp][(lane + 1) % 32];
    } else if (BUG(8)) {
        float local = value;
        addresses[thread] = &local;
        __syncthreads();
        got = *addresses[warp * 32 + (lane + 1) % 32];
        __syncthreads();
    } else {
        tile[warp][lane] = value;
        __syncwarp();
        got = tile[warp][(lane + 1) % 32];
    }
    rotated[i] = got;
    if (BUG(13))
        rotated[(int)blockIdx.x * THREADS + (thread + 1) % THREADS] = got;
    /* 8 columns of 8 */
    if (BUG(9) && thread % 8 == 3) {
        turned[i] = 0.0f;
    } else if (BUG(10)) {
        all[thread + 1] = value;
        __syncthreads();
        turned[i] = all[thread % 8 * 8 + thread / 8 + 1];
    } else {
        all[thread] = value;
        if (BUG(11))
            __syncwarp();
        else
            __syncthreads();
        turned[i] = all[thread % 8 * 8 + thread / 8];
    }
    if (BUG(12)) {
        all[thread] = value * 2.0f;
        __syncwarp();
    }
    if (BUG(14))
        rotated[((int)blockIdx.x + 1) % (int)gridDim.x * THREADS + thread] = rotated[i];
}

static void run_exchange(planted_run &run)
{
    int bug = run.bug, blocks = 3, count = blocks * THREADS;
    device_array<float> in("in", count, [](int i) { return random_value(13, i); }), rotated("rotated", count), turned("turned", count);
    if (BUG(15))
        CU_LAUNCH(exchange, 3, 2048, THREADS * sizeof(float), NULL, rotated.data, turned.data, in.data, bug);
    else if (BUG(16))
        CU_LAUNCH(exchange, 3, THREADS, 60000, NULL, rotated.data, turned.data, in.data, bug);
    else
        CU_LAUNCH(exchange, 3, THREADS, THREADS * sizeof(float), NULL, rotated.data, turned.data, in.data, bug);
    for (int i = 0; i < count; i++) {
        run.compare("rotated", i, rotated.data[i], in.data[i / 32 * 32 + (i + 1) % 32], 0.0);
        run.compare("turned", i, turned.data[i], in.data[i / 64 * 64 + i % 8 * 8 + i % 64 / 8], 0.0);
    }
    run.keep(rotated);
    run.keep(turned);
}

static const planted_bug bugs[] = {
    {1, "the wrong lane", "wrong", "wrong", "wrong"},
    {2, "a shuffle that half of the lanes call", "nothing can run|ends|different", "nothing can run|ends|different",
     "nothing can run|ends|different"},
    {3, "a shift where a rotation is wanted", "wrong", "wrong", "wrong"},
    {4, "a source outside of the mask", "not in the mask", "not in the mask", "not in the mask"},
    {5, "no __syncwarp between lanes", "wrong", "wrong", "race|never written"},
    {6, "a vote taken for a __syncwarp", "", "", "race"},
    {7, "a __syncwarp of half the warp", "wrong", "wrong", "race|never written"},
    {8, "another thread's local memory", "", "", "another thread's local memory"},
    {9, "some threads pass by the barrier", "ends while others wait|have ended", "ends while others wait|have ended",
     "ends while others wait|have ended"},
    {10, "shared memory one element too short", "", "use-after-poison", "out of bounds"},
    {11, "__syncwarp where the block must wait", "wrong", "wrong", "race|never written"},
    {12, "overwritten before all have read", "wrong", "wrong", "race"},
    {13, "two threads write one element", "wrong", "wrong", "race"},
    {14, "a block writes what another wrote", "wrong", "wrong", "race"},
    {15, "a block of 2048 threads", "a block of no threads or of more than 1024", "more than 1024", "more than 1024"},
    {16, "more shared memory than was asked for", "more dynamic shared memory", "more dynamic shared memory",
     "more dynamic shared memory"},
};
const planted_case planted_exchange = {"exchange", run_exchange, bugs, sizeof(bugs) / sizeof(bugs[0])};
