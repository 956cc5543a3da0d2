/* Low-rank shrink of segments of rows, y[t][r] = sum over k of x[t][k] a[segment of t][r][k]: tiles of k are fetched by
 * asynchronous copies into two buffers. */
#include "tests/cuda/planted/planted.h"

#define ROWS 4    /* of a block */
#define RANK 16
#define TILE 32
#define THREADS (ROWS * RANK)

__global__ void __launch_bounds__(THREADS) shrink(float *y, const float *x, const float *a, const int *segments, int segment_count,
                                                  int count, int width, int pitch, int bug)
{
    CU_SHARED(float, xs, [2][ROWS][TILE]);
    CU_SHARED(float, as, [2][ROWS][RANK][TILE]);
    CU_SHARED(float, odd, [ROWS * (TILE + 1) + 16]);
    int thread = (int)threadIdx.x, row = thread / RANK, rank = thread % RANK, t = (int)blockIdx.x * ROWS + row;
    int segment = 0;
    while (segment + 1 < segment_count && (BUG(1) ? t > segments[segment + 1] : t >= segments[segment + 1]))
        segment++;
    int tiles = (width + TILE - 1) / TILE;
    auto fetch = [&](int tile) {
        int buffer = BUG(5) ? 0 : tile % 2;
        for (int part = rank; part < TILE / 4; part += RANK) {
            int k = tile * TILE + part * 4, left = (width - k) * 4;
            int bytes = t < count ? BUG(2) ? 16 : min(max(left, 0), 16) : 0;
            const float *from = bytes > 0 || BUG(2) ? x + (size_t)t * pitch + k : x;
            cp_async16(BUG(3) ? &odd[row * (TILE + 1) + part * 4] : &xs[buffer][row][part * 4], from, bytes);
        }
        for (int part = 0; part < TILE / 4; part++) {
            int k = tile * TILE + part * 4, bytes = min(max((width - k) * 4, 0), 16);
            cp_async16(&as[buffer][row][rank][part * 4], bytes > 0 ? a + (size_t)(segment * RANK + rank) * pitch + k : a, bytes);
        }
        if (!BUG(4))
            cp_async_commit();
    };
    float sum = 0.0f;
    fetch(0);
    for (int tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) {
            fetch(tile + 1);
            cp_async_wait<1>();
        } else if (BUG(6)) {
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        if (!BUG(7))
            __syncthreads();
        int buffer = BUG(8) ? (tile + 1) % 2 : tile % 2;
        for (int k = 0; k < TILE; k++)
            sum += xs[buffer][row][k] * as[buffer][row][rank][k];
        if (!BUG(9))
            __syncthreads();
    }
    if (BUG(10))
        fetch(0);
    if (t < count)
        y[t * RANK + rank] = BUG(11) ? y[t * RANK + rank] + sum : sum;
}

static void run_shrink(planted_run &run)
{
    int bug = run.bug;
    static const int shapes[][2] = {{1, 4}, {5, 31}, {9, 97}, {13, 161}};
    for (auto &shape : shapes) {
        int count = shape[0], width = shape[1], pitch = (width + 3) / 4 * 4, segments = 3;
        device_array<float> x("x", count * pitch - (pitch - width), [](int i) { return random_value(4, i); });
        device_array<float> a("a", segments * RANK * pitch, [](int i) { return random_value(5, i); });
        device_array<int> starts("segments", segments + 1, [=](int i) { return i == 0 ? 0 : i == 3 ? count : count * i / 4; });
        device_array<float> y("y", count * RANK);
        CU_LAUNCH(shrink, (count + ROWS - 1) / ROWS, THREADS, 0, NULL, y.data, x.data, a.data, starts.data, segments, count, width,
                  pitch, bug);
        for (int i = 0; i < count * RANK; i++) {
            int t = i / RANK, segment = 0;
            while (segment + 1 < segments && t >= starts.data[segment + 1])
                segment++;
            double want = 0.0;
            for (int k = 0; k < width; k++)
                want += (double)x.data[t * pitch + k] * a.data[(segment * RANK + i % RANK) * pitch + k];
            run.compare("y", i, y.data[i], want, (width + 4) * 0x1p-22);
        }
        run.keep(y);
    }
}

static const planted_bug bugs[] = {
    {1, "a segment's first row taken for the last one's", "wrong", "wrong", "wrong"},
    {2, "copies beyond the row's end", "wrong|out of bounds|not a 16-byte", "out of bounds|not a 16-byte", "out of bounds|not a 16-byte"},
    {3, "rows of shared memory that are not 16-byte aligned", "the target is not a 16-byte-aligned address",
     "the target is not a 16-byte-aligned address", "the target is not a 16-byte-aligned address"},
    {4, "copies never committed", "never waited for", "never waited for", "never written|never waited for|race"},
    {5, "one buffer for two tiles", "wrong", "wrong", "race|never written"},
    {6, "waits for one group too few", "never waited for|wrong", "never waited for|wrong", "never written|race"},
    {7, "no barrier between the wait and the reads", "wrong|race", "wrong", "race|never written"},
    {8, "reads the other buffer", "wrong", "wrong", "race|never written"},
    {9, "no barrier before the refill", "wrong", "wrong", "race|never written"},
    {10, "a copy under way when the kernel ends", "never waited for", "never waited for", "never waited for"},
    {11, "adds to what was never written", "wrong", "wrong", "reads what was never written"},
};
const planted_case planted_shrink = {"shrink", run_shrink, bugs, sizeof(bugs) / sizeof(bugs[0])};
