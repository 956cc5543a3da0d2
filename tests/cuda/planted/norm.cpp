/* Residual and RMS norm: a block works on several rows, in turn. */
#include "tests/cuda/planted/planted.h"

#define THREADS 128

__global__ void __launch_bounds__(THREADS) norm(bf16 *y, float *sum, float *scales, const float *x, const float *residual,
                                                const float *weight, int rows, int width, int bug)
{
    CU_SHARED(float, partial, [THREADS / 32]);
    CU_SHARED(float, total, [1]);
    int thread = (int)threadIdx.x;
    for (int row = (int)blockIdx.x; row < rows; row += (int)gridDim.x) {
        const float *from = x + (size_t)row * width, *beside = residual + (size_t)row * width;
        float squares = 0.0f;
        if (BUG(1) && thread >= width)
            return;
        int last = BUG(2) ? width + 1 : BUG(3) ? width - 1 : width;
        for (int i = thread; i < last; i += THREADS) {
            float value = from[i] + beside[i];
            if (!BUG(4) || i % 7 != 3)
                sum[(size_t)row * width + i] = value;
            squares += value * value;
        }
        if (BUG(5)) {
            if (thread == 0)
                total[0] = 0.0f;
            __syncthreads();
            atomicAdd(&total[0], squares);
            __syncthreads();
            squares = total[0];
            __syncthreads();
        } else {
            if (BUG(6)) {
                for (int lane = 8; lane > 0; lane /= 2)
                    squares += __shfl_xor_sync(~0u, squares, lane);
            } else if (BUG(7)) {
                for (int lane = 16; lane > 0; lane /= 2)
                    squares += __shfl_xor_sync(0xFFFFu, squares, lane);
            } else {
                squares = warp_sum(squares);
            }
            if (thread % 32 == 0)
                partial[thread / 32] = squares;
            if (BUG(8)) {
                if (thread < 64)
                    __syncthreads();
            } else if (!BUG(9)) {
                __syncthreads();
            }
            squares = 0.0f;
            for (int warp = 0; warp < THREADS / 32; warp++)
                squares += partial[BUG(10) ? warp + 1 : warp];
            if (!BUG(11))
                __syncthreads();
        }
        float scale = rsqrtf((BUG(12) ? squares : squares / (float)width) + 1e-5f);
        if (thread == 0)
            scales[row] = scale;
        for (int i = thread; i < width; i += THREADS) {
            float value = sum[(size_t)row * width + (BUG(13) ? (i + 1) % width : i)] * scale * weight[i];
            y[(size_t)row * width + i] = BUG(14) ? bf16{(uint16_t)(__float_as_uint(value) >> 16)} : to_bf16(value);
        }
    }
}

static float host_weight[1024];

static void run_norm(planted_run &run)
{
    int bug = run.bug;
    static const int shapes[][2] = {{1, 1}, {3, 127}, {5, 130}, {7, 515}};
    for (auto &shape : shapes) {
        int rows = shape[0], width = shape[1], count = rows * width;
        device_array<float> x("x", count, [](int i) { return random_value(1, i); });
        device_array<float> residual("residual", count, [](int i) { return random_value(2, i); });
        device_array<float> weight("weight", width, [](int i) { return random_value(3, i); });
        device_array<float> sum("sum", count);
        device_array<float> scales("scales", rows);
        device_array<bf16> y("y", count);
        std::vector<float> heap(weight.data, weight.data + width);
        float stack[1024];
        memcpy(stack, weight.data, (size_t)width * sizeof(float));
        memcpy(host_weight, weight.data, (size_t)width * sizeof(float));
        const float *worn = BUG(15) ? heap.data() : BUG(16) ? stack : BUG(17) ? host_weight : weight.data;
        CU_LAUNCH(norm, (rows + 1) / 2, THREADS, 0, NULL, y.data, sum.data, scales.data, x.data, residual.data, worn,
                  rows, width, bug);
        for (int row = 0; row < rows; row++) {
            double squares = 0.0;
            for (int i = row * width; i < (row + 1) * width; i++)
                squares += ((double)x.data[i] + residual.data[i]) * ((double)x.data[i] + residual.data[i]);
            for (int i = 0; i < width; i++) {
                double value = (double)x.data[row * width + i] + residual.data[row * width + i];
                double want = value / sqrt(squares / width + 1e-5) * weight.data[i];
                run.compare("sum", i, sum.data[row * width + i], value, 1e-6);
                run.compare("y", i, to_f32(y.data[row * width + i]), want, fabs(want) * (0x1p-8 + 1e-5) + 1e-30);
            }
        }
        run.keep(sum);
        run.keep(scales);
        run.keep(y);
    }
}

static const planted_bug bugs[] = {
    {1, "threads without an element leave before the barrier", "the thread ends while", "the thread ends while", "the thread ends while"},
    {2, "reads one element too far", "wrong|signal", "heap-buffer-overflow", "out of bounds"},
    {3, "leaves out the last element", "wrong", "wrong", "reads what was never written"},
    {4, "does not write every element", "wrong", "wrong", "reads what was never written"},
    {5, "float atomics", "order", "order", "order"},
    {6, "a butterfly without its first step", "wrong", "wrong", "wrong"},
    {7, "a mask of half the warp", "not in the mask", "not in the mask", "not in the mask"},
    {8, "a barrier for half of the block", "different barriers|nothing can run", "different barriers|nothing can run",
     "race|different barriers|nothing can run"},
    {9, "no barrier between writing and reading partial sums", "wrong", "wrong", "never written"},
    {10, "partial sums read from the second on", "wrong", "out of bounds|use-after-poison", "out of bounds"},
    {11, "no barrier before partial sums are overwritten", "", "", "race"},
    {12, "no mean", "wrong", "wrong", "wrong"},
    {13, "reads the next element", "wrong", "wrong", "wrong"},
    {14, "truncates to bf16", "wrong", "wrong", "wrong"},
    {15, "a host pointer to the heap", "", "", "host pointer"},
    {16, "a host pointer to the stack", "", "", "host pointer"},
    {17, "a host pointer to static memory", "", "", "host pointer"},
};
const planted_case planted_norm = {"norm", run_norm, bugs, sizeof(bugs) / sizeof(bugs[0])};
