/*
 * sparse_linear and sparse_grad: matrices of a few entries. For the product the entries are sorted by output first: counted, the
 * counts summed up, each put into its output's list in any order, and every list then brought into the order of the entries,
 * which is the order of the sums.
 */
#include "cuda/map.h"

#define ADDEND 4
#define TOKENS 4        /* that a thread of the product takes at once: they share entry and value */
#define SCANNERS 1024

namespace {

/* An entry that lies outside of the matrix belongs to no list. */
CU_FN bool inside(const int32_t *rows, const int32_t *columns, int64_t i, int64_t out, int64_t in)
{
    return rows[i] >= 0 && rows[i] < out && columns[i] >= 0 && columns[i] < in;
}

__global__ void count_kernel(int32_t *counts, const int32_t *rows, const int32_t *columns, int64_t count, int64_t out, int64_t in)
{
    for (int64_t i = gd_cuda_thread(); i < count; i += gd_cuda_threads())
        if (inside(rows, columns, i, out, in))
            atomicAdd(&counts[rows[i]], 1);
}

/* counts -> where each list begins, [out + 1], and where it ends so far, [out]. One block; a thread sums its own part first. */
__global__ void begin_kernel(int32_t *first, int32_t *end, const int32_t *counts, int64_t out)
{
    CU_SHARED(int32_t, sums, [SCANNERS]);
    int64_t each = (out + SCANNERS - 1) / SCANNERS, begin = (int64_t)threadIdx.x * each, stop = begin + each < out ? begin + each : out;
    int32_t sum = 0;
    for (int64_t o = begin; o < stop; o++)
        sum += counts[o];
    sums[threadIdx.x] = sum;
    __syncthreads();
    int32_t at = 0;
    for (int i = 0; i < SCANNERS; i++)
        at += i < (int)threadIdx.x ? sums[i] : 0;
    for (int64_t o = begin; o < stop; o++) {
        first[o] = at;
        end[o] = at;
        at += counts[o];
    }
    if (threadIdx.x == SCANNERS - 1)
        first[out] = at;
}

__global__ void list_kernel(int32_t *list, int32_t *end, const int32_t *rows, const int32_t *columns, int64_t count, int64_t out, int64_t in)
{
    for (int64_t i = gd_cuda_thread(); i < count; i += gd_cuda_threads())
        if (inside(rows, columns, i, out, in))
            list[atomicAdd(&end[rows[i]], 1)] = (int32_t)i;
}

/* A warp for each list: an entry's place is how many of the list are less. */
__global__ void order_kernel(int32_t *ordered, const int32_t *list, const int32_t *first, int64_t out)
{
    int64_t o = gd_cuda_thread() / CU_WARP;
    if (o < out)
        for (int32_t i = first[o] + (int32_t)(threadIdx.x % CU_WARP); i < first[o + 1]; i += CU_WARP) {
            int32_t before = first[o];
            for (int32_t k = first[o]; k < first[o + 1]; k++)
                before += list[k] < list[i];
            ordered[before] = list[i];
        }
}

template <typename T>
__global__ void product_kernel(T *y, const T *x, const T *c, const float *values, const int32_t *columns, const int32_t *first,
                               const int32_t *ordered, int64_t tokens, int64_t in, int64_t out)
{
    int64_t o = gd_cuda_thread();
    if (o < out)
        for (int64_t t = (int64_t)blockIdx.y * TOKENS; t < tokens; t += (int64_t)gridDim.y * TOKENS) {
            float sums[TOKENS];
#pragma unroll
            for (int u = 0; u < TOKENS; u++)
                sums[u] = c != NULL && t + u < tokens ? to_f32(c[(t + u) * out + o]) : 0.0f;
            for (int32_t k = first[o]; k < first[o + 1]; k++) {
                int32_t i = ordered[k];
                float value = values[i];
                const T *from = x + t * in + columns[i];
#pragma unroll
                for (int u = 0; u < TOKENS; u++)
                    if (t + u < tokens)
                        sums[u] += value * to_f32(from[u * in]);
            }
#pragma unroll
            for (int u = 0; u < TOKENS; u++)
                if (t + u < tokens)
                    y[(t + u) * out + o] = from_f32<T>(sums[u]);
        }
}

/* A thread for each entry; the rows of its block are in the cache together. */
template <typename T>
__global__ void sparse_grad_kernel(float *d_values, const T *dy, const T *x, const int32_t *rows, const int32_t *columns, int64_t count,
                                   int64_t tokens, int64_t height, int64_t width)
{
    int64_t i = gd_cuda_thread();
    if (i < count) {
        float sum = 0;
        if (inside(rows, columns, i, height, width))
            for (int64_t t = 0; t < tokens; t++)
                sum += to_f32(dy[t * height + rows[i]]) * to_f32(x[t * width + columns[i]]);
        d_values[i] = sum;
    }
}

/* Scratch in order: counts [out], beginnings [out + 1], ends [out], lists [n], ordered lists [n]. */
size_t sparse_linear_scratch(const struct gd_call *call)
{
    return (size_t)(3 * call->params.i[0] + 1 + 2 * call->in[1]->shape[0]) * sizeof(int32_t);
}

bool run_sparse_linear(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *c = &args->in[ADDEND], *y = &args->out[0];
    int64_t tokens = x->shape[0], in = x->shape[1], out = y->shape[1], count = args->in[1].shape[0];
    const int32_t *rows = (const int32_t *)args->in[2].data, *columns = (const int32_t *)args->in[3].data;
    int32_t *counts = (int32_t *)args->scratch, *first = counts + out, *end = first + out + 1, *list = end + out, *ordered = list + count;
    if (tokens == 0)
        return true;
    if (!gd_cuda_check(cudaMemsetAsync(counts, 0, (size_t)out * sizeof(int32_t), gd_cuda_stream()), "cudaMemsetAsync", "sparse_linear", err))
        return false;
    unsigned blocks = gd_cuda_blocks(count, GD_CUDA_THREADS), outs = (unsigned)((out + GD_CUDA_THREADS - 1) / GD_CUDA_THREADS);
    int64_t down = (tokens + TOKENS - 1) / TOKENS;
    CU_LAUNCH(count_kernel, blocks, GD_CUDA_THREADS, 0, gd_cuda_stream(), counts, rows, columns, count, out, in);
    CU_LAUNCH(begin_kernel, 1, SCANNERS, 0, gd_cuda_stream(), first, end, (const int32_t *)counts, out);
    CU_LAUNCH(list_kernel, blocks, GD_CUDA_THREADS, 0, gd_cuda_stream(), list, end, rows, columns, count, out, in);
    CU_LAUNCH(order_kernel, (unsigned)((out * CU_WARP + GD_CUDA_THREADS - 1) / GD_CUDA_THREADS), GD_CUDA_THREADS, 0, gd_cuda_stream(), ordered,
              (const int32_t *)list, (const int32_t *)first, out);
    GD_BY_ACT(x->dtype, T,
              CU_LAUNCH((product_kernel<T>), dim3(outs, (unsigned)(down < 4096 ? down : 4096)), GD_CUDA_THREADS, 0, gd_cuda_stream(),
                        (T *)y->data, (const T *)x->data, (const T *)(c->rank != 0 ? c->data : NULL), (const float *)args->in[1].data,
                        columns, (const int32_t *)first, (const int32_t *)ordered, tokens, in, out));
    return gd_cuda_launched(args, "sparse_linear", err);
}

bool run_sparse_grad(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *dy = &args->in[0], *x = &args->in[1];
    int64_t count = args->out[0].shape[0];
    if (count == 0)
        return true;
    GD_BY_ACT(dy->dtype, T,
              CU_LAUNCH((sparse_grad_kernel<T>), (unsigned)((count + GD_CUDA_THREADS - 1) / GD_CUDA_THREADS), GD_CUDA_THREADS, 0,
                        gd_cuda_stream(), (float *)args->out[0].data, (const T *)dy->data, (const T *)x->data,
                        (const int32_t *)args->in[2].data, (const int32_t *)args->in[3].data, count, dy->shape[0], dy->shape[1],
                        x->shape[1]));
    return gd_cuda_launched(args, "sparse_grad", err);
}

} // namespace

GD_CUDA_OP(sparse_linear, run_sparse_linear, sparse_linear_scratch)
GD_CUDA_OP(sparse_grad, run_sparse_grad, NULL)
