#include "cuda/kernel.h"
extern "C" {
#include "cuda/vector.h"
}
#include <math.h>
#include <stdio.h>

#define THREADS 256
#define PIECE 65536 /* elements that are summed by themselves, as on the CPU */
#define SUMS 1024   /* blocks that leave a sum each */

__global__ void vector_add(float *y, const float *x, int64_t count)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        y[i] += x[i];
}

__global__ void vector_add_squares(float *y, const float *x, int64_t count)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        y[i] += x[i] * x[i];
}

/* sums[b]: pieces b, b + blocks, ... in this order. */
__global__ void vector_squares(double *sums, const float *x, int64_t count)
{
    double total = 0;
    for (int64_t base = (int64_t)blockIdx.x * PIECE; base < count; base += (int64_t)gridDim.x * PIECE) {
        int64_t end = base + PIECE < count ? base + PIECE : count;
        double sum = 0;
        for (int64_t i = base + threadIdx.x; i < end; i += blockDim.x)
            sum += (double)x[i] * (double)x[i];
        total += block_sum(sum);
    }
    if (threadIdx.x == 0)
        sums[blockIdx.x] = total;
}

/* How many are infinite or no numbers: x - x is 0 for all others. */
__global__ void vector_not_finite(double *sums, const float *x, int64_t count)
{
    int bad = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        bad |= !(x[i] - x[i] == 0.0f);
    bad = block_sum(bad);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = bad;
}

struct adamw {
    float b1, b2, scale, epsilon, keep, rate, correction;
};

__global__ void vector_adamw(float *param, float *m, float *v, const float *grad, struct adamw a, int64_t count)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
        float g = grad[i] * a.scale;
        float mi = a.b1 * m[i] + (1.0f - a.b1) * g;
        float vi = a.b2 * v[i] + (1.0f - a.b2) * g * g;
        m[i] = mi;
        v[i] = vi;
        param[i] = param[i] * a.keep - a.rate * mi / (sqrtf(vi) * a.correction + a.epsilon);
    }
}

/* ---- launching ---- */

static bool launched(const char *name, int64_t count, struct gd_error *err)
{
    char what[64];
    snprintf(what, sizeof(what), "%lld elements", (long long)count);
    return gd_cuda_check(cudaGetLastError(), name, what, err);
}

/* Blocks of a vector that is read once: enough to fill a device, each with several turns. */
static unsigned blocks_of(int64_t count)
{
    unsigned blocks = gd_cuda_blocks(count, THREADS);
    return blocks < 4096 ? blocks : 4096;
}

bool gd_cuda_vector_add(float *y, const float *x, int64_t count, struct gd_error *err)
{
    if (count == 0)
        return true;
    CU_LAUNCH(vector_add, blocks_of(count), THREADS, 0, gd_cuda_stream(), y, x, count);
    return launched("vector_add", count, err);
}

bool gd_cuda_vector_add_squares(float *y, const float *x, int64_t count, struct gd_error *err)
{
    if (count == 0)
        return true;
    CU_LAUNCH(vector_add_squares, blocks_of(count), THREADS, 0, gd_cuda_stream(), y, x, count);
    return launched("vector_add_squares", count, err);
}

/* Where the blocks' sums go. */
static bool room(double **sums, struct gd_error *err)
{
    static void *memory;
    if (memory == NULL && !gd_backend()->alloc(&memory, SUMS * sizeof(double), "sums of vectors", err))
        return false;
    *sums = (double *)memory;
    return true;
}

/* What the blocks left, in their order. */
static bool add_up(double *out, const double *sums, unsigned blocks, struct gd_error *err)
{
    double host[SUMS];
    if (!gd_backend()->copy(host, sums, blocks * sizeof(double), GD_COPY_FROM_DEVICE, err))
        return false;
    *out = 0;
    for (unsigned i = 0; i < blocks; i++)
        *out += host[i];
    return true;
}

bool gd_cuda_vector_sum_squares(double *out, const float *x, int64_t count, struct gd_error *err)
{
    double *sums;
    unsigned blocks = gd_cuda_blocks(count, PIECE);
    blocks = blocks < SUMS ? blocks : SUMS;
    *out = 0;
    if (count == 0)
        return true;
    if (!room(&sums, err))
        return false;
    CU_LAUNCH(vector_squares, blocks, THREADS, 0, gd_cuda_stream(), sums, x, count);
    return launched("vector_sum_squares", count, err) && add_up(out, sums, blocks, err);
}

bool gd_cuda_vector_all_finite(bool *out, const float *x, int64_t count, struct gd_error *err)
{
    double *sums, bad = 0;
    unsigned blocks = gd_cuda_blocks(count, 4 * THREADS);
    blocks = blocks < SUMS ? blocks : SUMS;
    *out = true;
    if (count == 0)
        return true;
    if (!room(&sums, err))
        return false;
    CU_LAUNCH(vector_not_finite, blocks, THREADS, 0, gd_cuda_stream(), sums, x, count);
    if (!launched("vector_all_finite", count, err) || !add_up(&bad, sums, blocks, err))
        return false;
    *out = bad == 0;
    return true;
}

bool gd_cuda_vector_adamw(float *param, float *m, float *v, const float *grad, int64_t count, const struct gd_adamw *adamw,
                          struct gd_error *err)
{
    struct adamw a;
    a.b1 = (float)adamw->beta1;
    a.b2 = (float)adamw->beta2;
    a.scale = (float)adamw->grad_scale;
    a.epsilon = (float)adamw->eps;
    a.keep = (float)(1.0 - adamw->learning_rate * adamw->weight_decay);
    a.rate = (float)(adamw->learning_rate / (1.0 - pow(adamw->beta1, (double)adamw->step)));
    a.correction = (float)(1.0 / sqrt(1.0 - pow(adamw->beta2, (double)adamw->step)));
    if (count == 0)
        return true;
    CU_LAUNCH(vector_adamw, blocks_of(count), THREADS, 0, gd_cuda_stream(), param, m, v, grad, a, count);
    return launched("vector_adamw", count, err);
}
