/* Counts of ids per block and over all, and the position of each id among its equals. */
#include "tests/cuda/planted/planted.h"

#define BINS 16
#define THREADS 64

__global__ void __launch_bounds__(THREADS) count_ids(int *totals, int *blocks, const int *ids, int count, int bug)
{
    CU_SHARED(int, bins, [BINS]);
    int thread = (int)threadIdx.x;
    if (thread < BINS && !BUG(1))
        bins[thread] = 0;
    if (!BUG(2))
        __syncthreads();
    for (int i = (int)blockIdx.x * THREADS + thread; i < count; i += (int)gridDim.x * THREADS) {
        int id = BUG(3) ? ids[i] + 1 : ids[i];
        if (BUG(4))
            bins[id]++;
        else
            atomicAdd(&bins[id], 1);
    }
    if (!BUG(5))
        __syncthreads();
    if (thread < BINS) {
        if (BUG(6))
            totals[thread] += bins[thread];
        else
            atomicAdd(&totals[thread], bins[thread]);
        blocks[(int)blockIdx.x * BINS + thread] = bins[thread];
    }
}

/* One block: where each bin starts. */
__global__ void starts_of(int *starts, const int *totals, int bug)
{
    CU_SHARED(int, sums, [2][BINS]);
    int bin = (int)threadIdx.x;
    if (bin < BINS)
        sums[0][bin] = totals[bin];
    __syncthreads();
    int from = 0;
    for (int by = 1; by < BINS; by *= 2) {
        int to = BUG(7) ? from : 1 - from;
        if (bin < BINS)
            sums[to][bin] = sums[from][bin] + (bin >= by ? sums[from][bin - by] : 0);
        if (!BUG(8))
            __syncthreads();
        from = to;
    }
    if (bin < BINS)
        starts[bin] = BUG(9) ? sums[from][bin] : sums[from][bin] - totals[bin];
}

/* The last block to come adds what the others left: no order between blocks says that it may. */
__global__ void last_block(int *result, int *partial, int *arrived, int bug)
{
    CU_SHARED(int, ticket, [1]);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = (int)blockIdx.x + 1;
        __threadfence();
        ticket[0] = atomicAdd(arrived, 1);
    }
    __syncthreads();
    if (ticket[0] == (int)gridDim.x - 1 && threadIdx.x == 0) {
        int sum = 0;
        for (int i = 0; i < (int)gridDim.x; i++)
            sum += partial[i];
        *result = sum;
    }
}

/* The list of ids that occur, in an order that atomics choose. */
__global__ void list_of(int *list, int *length, const int *totals)
{
    if (threadIdx.x < BINS && totals[threadIdx.x] > 0)
        list[atomicAdd(length, 1)] = (int)threadIdx.x;
}

static void run_count(planted_run &run)
{
    int bug = run.bug;
    static const int counts[] = {1, 63, 1000};
    for (int count : counts) {
        device_array<int> ids("ids", count, [](int i) { return (int)(gd_philox4(3, 4, (uint64_t)i).v[0] % BINS); });
        device_array<int> totals("totals", BINS), blocks("blocks", 3 * BINS), starts("starts", BINS);
        if (!BUG(10)) {
            memset(totals.data, 0, BINS * sizeof(int));
            emu_device_write(totals.data, BINS * sizeof(int), "memset");
        }
        CU_LAUNCH(count_ids, 3, THREADS, 0, NULL, totals.data, blocks.data, ids.data, count, bug);
        CU_LAUNCH(starts_of, 1, 32, 0, NULL, starts.data, totals.data, bug);
        int want[BINS] = {}, start = 0;
        for (int i = 0; i < count; i++)
            want[ids.data[i]]++;
        for (int i = 0; i < BINS; i++) {
            run.compare("totals", i, totals.data[i], want[i], 0.0);
            run.compare("starts", i, starts.data[i], start, 0.0);
            start += want[i];
        }
        run.keep(totals);
        run.keep(blocks);
        run.keep(starts);
        if (BUG(11)) {
            device_array<int> list("list", BINS, [](int) { return -1; }), length("length", 1, [](int) { return 0; });
            CU_LAUNCH(list_of, 1, 32, 0, NULL, list.data, length.data, totals.data);
            run.keep(list);
        }
        if (BUG(12)) {
            device_array<int> result("result", 1), partial("partial", 3), arrived("arrived", 1, [](int) { return 0; });
            CU_LAUNCH(last_block, 3, 32, 0, NULL, result.data, partial.data, arrived.data, bug);
            run.keep(result);
        }
    }
}

static const planted_bug bugs[] = {
    {1, "bins not set to zero", "wrong", "wrong", "reads what was never written"},
    {2, "no barrier behind the zeros", "wrong", "wrong", "race|never written"},
    {3, "ids from 1 on", "out of bounds|wrong", "out of bounds|wrong", "out of bounds|wrong"},
    {4, "increments in shared memory that are not atomic", "", "", "race"},
    {5, "no barrier before the bins are read", "wrong", "wrong", "race"},
    {6, "sums in device memory that are not atomic", "", "", "race"},
    {7, "a scan in place", "wrong", "wrong", "race"},
    {8, "no barrier between steps of a scan", "wrong", "wrong", "race|never written"},
    {9, "an inclusive scan", "wrong", "wrong", "wrong"},
    {10, "no memset of what is added to", "wrong", "wrong", "reads what was never written"},
    {11, "a list in the order of atomics", "order", "order", "order"},
    {12, "the last block sums up", "", "", "race"},
};
const planted_case planted_count = {"count", run_count, bugs, sizeof(bugs) / sizeof(bugs[0])};
