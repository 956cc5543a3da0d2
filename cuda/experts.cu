/*
 * Mixtures of experts (engine/tensor/ops/experts.h). An order that names rows or experts that are not there is the CPU's to report:
 * here such entries are left out, and logits that are no numbers choose the lowest experts with weights that are no numbers.
 */
#include "cuda/kernel.h"
extern "C" {
#include "engine/tensor/kv.h"
}
#include <math.h>

#define THREADS 256
#define PIECE 1024 /* entries that are counted and placed together */

/* ---- which rows are in use ---- */

/* A list of segments on the device, or what was staged of a gd_kv_batch: both end with the number. */
static const int32_t *used_of(const struct gd_kernel_args *args, int input)
{
    const struct gd_tensor *used = &args->in[input];
    return used->dtype == GD_HANDLE ? (const int32_t *)args->staged : (const int32_t *)used->data + used->shape[0] - 1;
}

static const struct gd_kv_batch *batch_of(const struct gd_kernel_args *args)
{
    for (int j = 0; j < GD_CALL_INPUTS_MAX; j++)
        if (args->in[j].rank > 0 && args->in[j].dtype == GD_HANDLE)
            return (const struct gd_kv_batch *)args->in[j].data;
    return NULL;
}

static size_t used_bytes(const struct gd_kernel_args *args)
{
    return batch_of(args) != NULL ? sizeof(int32_t) : 0;
}

static bool stage_used(const struct gd_kernel_args *args, void *out, struct gd_error *err)
{
    const struct gd_kv_batch *batch = batch_of(args);
    (void)err;
    if (batch != NULL)
        *(int32_t *)out = batch->cu_seqlens[batch->sequence_count];
    return true;
}

/* *used, within what there is. */
CU_FN int64_t rows_in_use(const int32_t *used, int64_t rows)
{
    return *used < 0 ? 0 : *used < rows ? *used : rows;
}

/* ---- expert_route: a warp for each row ---- */

/* Whether (a, e) comes before (b, f): larger logits first, then lower experts; an expert of -1 comes last. */
CU_FN bool comes_before(float a, int e, float b, int f)
{
    return e >= 0 && (f < 0 || a > b || (a == b && e < f));
}

/* The first expert that comes after (value, expert); -1: none does. */
template <class T> CU_FN int next_expert(const T *z, int experts, float value, int expert, float *found)
{
    int best = -1;
    float most = 0;
    for (int e = threadIdx.x % CU_WARP; e < experts; e += CU_WARP) {
        float here = to_f32(z[e]);
        if ((expert < 0 || here < value || (here == value && e > expert)) && comes_before(here, here == here ? e : -1, most, best)) {
            best = e;
            most = here;
        }
    }
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
        float other = __shfl_xor_sync(~0u, most, lane);
        int of = __shfl_xor_sync(~0u, best, lane);
        if (comes_before(other, of, most, best)) {
            most = other;
            best = of;
        }
    }
    *found = most;
    return best;
}

template <class T> __global__ void route(float *w, int32_t *choice, float *p, const T *z, int64_t rows, int experts, int k)
{
    int lane = threadIdx.x % CU_WARP;
    for (int64_t t = (int64_t)blockIdx.x * (blockDim.x / CU_WARP) + threadIdx.x / CU_WARP; t < rows;
         t += (int64_t)gridDim.x * (blockDim.x / CU_WARP)) {
        const T *row = z + t * experts;
        float first = 0, value = 0, sum = 0, all = 0;
        int expert = -1;
        for (int j = 0; j < k; j++) {
            float found;
            expert = next_expert(row, experts, value, j > 0 ? expert : -1, &found);
            value = expert < 0 ? NAN : found;
            expert = expert < 0 ? j : expert;
            first = j == 0 ? value : first;
            float weight = expf(value - first);
            sum += weight;
            if (lane == 0) {
                choice[t * k + j] = expert;
                w[t * k + j] = weight;
            }
        }
        __syncwarp();
        for (int j = lane; j < k; j += CU_WARP)
            w[t * k + j] /= sum;
        for (int e = lane; e < experts; e += CU_WARP)
            all += expf(to_f32(row[e]) - first);
        all = warp_sum(all);
        for (int e = lane; e < experts; e += CU_WARP)
            p[t * experts + e] = expf(to_f32(row[e]) - first) / all;
    }
}

static bool route_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *z = &args->in[0];
    int64_t rows = z->shape[0];
    if (rows == 0)
        return true;
    GD_BY_ACT(z->dtype, T,
              CU_LAUNCH((route<T>), gd_cuda_blocks(rows, THREADS / CU_WARP), THREADS, 0, gd_cuda_stream(), (float *)args->out[0].data,
                        (int32_t *)args->out[1].data, (float *)args->out[2].data, (const T *)z->data, rows, (int)z->shape[1],
                        (int)args->params->i[0]));
    return gd_cuda_launched(args, "expert_route", err);
}

GD_CUDA_OP(expert_route, route_run, NULL)

struct routed {
    const float *w, *p, *dw, *dp;
    const int32_t *choice;
    int64_t rows;
    int experts, k;
};

template <class T> __global__ void route_grad(T *dz, struct routed r)
{
    int lane = threadIdx.x % CU_WARP;
    for (int64_t t = (int64_t)blockIdx.x * (blockDim.x / CU_WARP) + threadIdx.x / CU_WARP; t < r.rows;
         t += (int64_t)gridDim.x * (blockDim.x / CU_WARP)) {
        const float *p = r.p + t * r.experts, *w = r.w + t * r.k;
        float mean_p = 0, mean_w = 0;
        for (int e = lane; r.dp != nullptr && e < r.experts; e += CU_WARP)
            mean_p += p[e] * r.dp[t * r.experts + e];
        for (int j = 0; r.dw != nullptr && j < r.k; j++)
            mean_w += w[j] * r.dw[t * r.k + j];
        mean_p = warp_sum(mean_p);
        for (int e = lane; e < r.experts; e += CU_WARP) {
            float value = r.dp != nullptr ? p[e] * (r.dp[t * r.experts + e] - mean_p) : 0.0f;
            for (int j = 0; r.dw != nullptr && j < r.k; j++)
                value += r.choice[t * r.k + j] == e ? w[j] * (r.dw[t * r.k + j] - mean_w) : 0.0f;
            dz[t * r.experts + e] = from_f32<T>(value);
        }
    }
}

static bool route_grad_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *in = args->in;
    struct routed r = {(const float *)in[0].data, (const float *)in[2].data, in[3].rank > 0 ? (const float *)in[3].data : NULL,
                       in[4].rank > 0 ? (const float *)in[4].data : NULL, (const int32_t *)in[1].data, in[2].shape[0],
                       (int)in[2].shape[1], (int)in[0].shape[1]};
    if (r.rows == 0)
        return true;
    GD_BY_ACT(args->out[0].dtype, T,
              CU_LAUNCH((route_grad<T>), gd_cuda_blocks(r.rows, THREADS / CU_WARP), THREADS, 0, gd_cuda_stream(),
                        (T *)args->out[0].data, r));
    return gd_cuda_launched(args, "expert_route_grad", err);
}

GD_CUDA_OP(expert_route_grad, route_grad_run, NULL)

/* ---- expert_dispatch: count by pieces, place pieces and experts, then each entry ---- */

struct dispatched {
    const int32_t *choice, *used;
    int32_t *offsets, *order, *counts; /* counts: [pieces, experts], then how many rows each expert has */
    int64_t rows, room;                /* of choice, of order */
    int slots, experts, pieces;
};

/* The expert of entry i, or -1. */
CU_FN int expert_of(const struct dispatched &d, int64_t i, int64_t end)
{
    int expert = i < end ? d.choice[i] : -1;
    return expert < d.experts ? expert : -1;
}

/* order is -1 where nobody comes. */
__global__ void dispatch_count(struct dispatched d)
{
    CU_SHARED(int32_t, experts, [PIECE]);
    int64_t end = rows_in_use(d.used, d.rows) * d.slots;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < d.room; i += (int64_t)gridDim.x * blockDim.x)
        d.order[i] = -1;
    for (int piece = blockIdx.x; piece < d.pieces; piece += gridDim.x) {
        for (int i = threadIdx.x; i < PIECE; i += blockDim.x)
            experts[i] = expert_of(d, (int64_t)piece * PIECE + i, end);
        __syncthreads();
        for (int e = threadIdx.x; e < d.experts; e += blockDim.x) {
            int count = 0;
            for (int i = 0; i < PIECE; i++)
                count += experts[i] == e;
            d.counts[(int64_t)piece * d.experts + e] = count;
        }
        __syncthreads();
    }
}

/* gd_padded_rows of experts.h */
CU_FN int padded_rows(int rows)
{
    int step = 1;
    while (16 * (int64_t)step < rows)
        step *= 2;
    return (rows + step - 1) / step * step;
}

/* One block. counts become how many of an expert's entries lie in earlier pieces. */
__global__ void dispatch_place(struct dispatched d)
{
    int32_t *rows = d.counts + (int64_t)d.pieces * d.experts;
    for (int e = threadIdx.x; e < d.experts; e += blockDim.x) {
        int before = 0;
        for (int piece = 0; piece < d.pieces; piece++) {
            int32_t *count = d.counts + (int64_t)piece * d.experts + e;
            int here = *count;
            *count = before;
            before += here;
        }
        rows[e] = before;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int at = 0;
        for (int e = 0; e < d.experts; e++) {
            d.offsets[e] = at;
            at += padded_rows(rows[e]);
        }
        d.offsets[d.experts] = at;
    }
}

__global__ void dispatch_order(struct dispatched d)
{
    CU_SHARED(int32_t, experts, [PIECE]);
    int64_t end = rows_in_use(d.used, d.rows) * d.slots;
    for (int piece = blockIdx.x; piece < d.pieces; piece += gridDim.x) {
        for (int i = threadIdx.x; i < PIECE; i += blockDim.x)
            experts[i] = expert_of(d, (int64_t)piece * PIECE + i, end);
        __syncthreads();
        for (int i = threadIdx.x; i < PIECE; i += blockDim.x) {
            int expert = experts[i], before = 0;
            if (expert < 0)
                continue;
            for (int other = 0; other < i; other++)
                before += experts[other] == expert;
            int64_t at = (int64_t)d.offsets[expert] + d.counts[(int64_t)piece * d.experts + expert] + before;
            if (at < d.room)
                d.order[at] = (int32_t)((int64_t)piece * PIECE + i);
        }
        __syncthreads();
    }
}

static int64_t pieces_of(int64_t entries)
{
    return (entries + PIECE - 1) / PIECE;
}

static size_t dispatch_scratch_bytes(const struct gd_call *call)
{
    const int64_t *choice = call->in[0]->shape;
    return (size_t)(pieces_of(choice[0] * choice[1]) + 1) * (size_t)call->params.i[0] * sizeof(int32_t);
}

static bool dispatch_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *choice = &args->in[0];
    struct dispatched d = {(const int32_t *)choice->data, used_of(args, 1), (int32_t *)args->out[0].data, (int32_t *)args->out[1].data,
                           (int32_t *)args->scratch, choice->shape[0], args->out[1].shape[0], (int)choice->shape[1],
                           (int)args->params->i[0], (int)pieces_of(choice->shape[0] * choice->shape[1])};
    unsigned blocks = gd_cuda_blocks(d.pieces, 1);
    CU_LAUNCH(dispatch_count, blocks, THREADS, 0, gd_cuda_stream(), d);
    CU_LAUNCH(dispatch_place, 1, THREADS, 0, gd_cuda_stream(), d);
    CU_LAUNCH(dispatch_order, blocks, THREADS, 0, gd_cuda_stream(), d);
    return gd_cuda_launched(args, "expert_dispatch", err);
}

GD_CUDA_STAGED_OP(expert_dispatch, dispatch_run, dispatch_scratch_bytes, used_bytes, stage_used)

/* ---- rows of an expert: a block for each ---- */

struct grouped {
    const int32_t *offsets, *order;
    const float *w;
    int index, slots;
    int64_t count, rows, width;    /* rows of the expert, of the batch */
};

/* Which entry row i of the expert came from, or -1. */
CU_FN int entry_at(const struct grouped &g, int64_t i)
{
    int entry = g.order[g.offsets[g.index] + i];
    return entry < g.rows * g.slots ? entry : -1;
}

template <class T> __global__ void rows_out(T *y, const T *x, struct grouped g)
{
    for (int64_t i = blockIdx.x; i < g.count; i += gridDim.x) {
        int entry = entry_at(g, i);
        int64_t from = entry >= 0 ? entry / g.slots * g.width : 0;
        float weight = entry < 0 ? 0.0f : g.w != nullptr ? g.w[entry] : 1.0f;
        for (int64_t c = threadIdx.x; c < g.width; c += blockDim.x)
            y[i * g.width + c] = from_f32<T>(entry < 0 ? 0.0f : weight * to_f32(x[from + c]));
    }
}

/* A token has at most one row with each expert: nobody else writes what a block adds to. */
template <class T> __global__ void rows_back(T *y, const T *x, struct grouped g)
{
    for (int64_t i = blockIdx.x; i < g.count; i += gridDim.x) {
        int entry = entry_at(g, i);
        int64_t to = entry >= 0 ? entry / g.slots * g.width : 0;
        float weight = entry >= 0 && g.w != nullptr ? g.w[entry] : 1.0f;
        for (int64_t c = threadIdx.x; entry >= 0 && c < g.width; c += blockDim.x)
            y[to + c] = from_f32<T>(to_f32(y[to + c]) + weight * to_f32(x[i * g.width + c]));
    }
}

template <class T> __global__ void rows_dot(float *y, const T *x, const T *dy, struct grouped g)
{
    for (int64_t i = blockIdx.x; i < g.count; i += gridDim.x) {
        int entry = entry_at(g, i);
        float sum = 0;
        for (int64_t c = threadIdx.x; entry >= 0 && c < g.width; c += blockDim.x)
            sum += to_f32(x[i * g.width + c]) * to_f32(dy[entry / g.slots * g.width + c]);
        sum = block_sum(sum);
        if (threadIdx.x == 0 && entry >= 0)
            y[entry] = sum;
    }
}

static struct grouped grouped_of(const struct gd_kernel_args *args, const struct gd_tensor *of_expert, int64_t rows)
{
    struct grouped g = {(const int32_t *)args->in[1].data, (const int32_t *)args->in[2].data, NULL, (int)args->params->i[0],
                        (int)args->params->i[1], of_expert->shape[0], rows, of_expert->shape[1]};
    return g;
}

/* y = c, or zeros. */
static bool begin_sum(const struct gd_tensor *y, const struct gd_tensor *c, struct gd_error *err)
{
    size_t bytes = gd_dtype_bytes(y->dtype, gd_tensor_count(y));
    if (c->rank != 0)
        return gd_cuda_copy(y->data, c->data, bytes, "sums of experts", err);
    return bytes == 0 || gd_cuda_check(cudaMemsetAsync(y->data, 0, bytes, gd_cuda_stream()), "cudaMemsetAsync", "sums of experts", err);
}

static bool rows_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct grouped g = grouped_of(args, &args->out[0], args->in[0].shape[0]);
    g.w = args->in[3].rank > 0 ? (const float *)args->in[3].data : NULL;
    if (g.count == 0)
        return true;
    GD_BY_ACT(args->out[0].dtype, T,
              CU_LAUNCH((rows_out<T>), gd_cuda_blocks(g.count, 1), THREADS, 0, gd_cuda_stream(), (T *)args->out[0].data,
                        (const T *)args->in[0].data, g));
    return gd_cuda_launched(args, "expert_rows", err);
}

GD_CUDA_OP(expert_rows, rows_run, NULL)

static bool sum_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct grouped g = grouped_of(args, &args->in[0], args->out[0].shape[0]);
    g.w = args->in[3].rank > 0 ? (const float *)args->in[3].data : NULL;
    if (!begin_sum(&args->out[0], &args->in[4], err))
        return false;
    if (g.count == 0)
        return true;
    GD_BY_ACT(args->out[0].dtype, T,
              CU_LAUNCH((rows_back<T>), gd_cuda_blocks(g.count, 1), THREADS, 0, gd_cuda_stream(), (T *)args->out[0].data,
                        (const T *)args->in[0].data, g));
    return gd_cuda_launched(args, "expert_sum", err);
}

GD_CUDA_OP(expert_sum, sum_run, NULL)

static bool dot_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct grouped g = grouped_of(args, &args->in[0], args->in[3].shape[0]);
    if (!begin_sum(&args->out[0], &args->in[4], err))
        return false;
    if (g.count == 0)
        return true;
    GD_BY_ACT(args->in[0].dtype, T,
              CU_LAUNCH((rows_dot<T>), gd_cuda_blocks(g.count, 1), THREADS, 0, gd_cuda_stream(), (float *)args->out[0].data,
                        (const T *)args->in[0].data, (const T *)args->in[3].data, g));
    return gd_cuda_launched(args, "expert_dot", err);
}

GD_CUDA_OP(expert_dot, dot_run, NULL)

/* ---- the load of experts: a block for each ---- */

__global__ void load_of(float *y, const float *p, const int32_t *choice, const int32_t *used_rows, int64_t rows, int experts, int slots)
{
    int64_t used = rows_in_use(used_rows, rows);
    for (int e = blockIdx.x; e < experts; e += gridDim.x) {
        int chosen = 0;
        double sum = 0;
        for (int64_t i = threadIdx.x; i < used * slots; i += blockDim.x)
            chosen += choice[i] == e;
        for (int64_t t = threadIdx.x; t < used; t += blockDim.x)
            sum += (double)p[t * experts + e];
        chosen = block_sum(chosen);
        sum = block_sum(sum);
        if (threadIdx.x == 0) {
            y[e] = (float)chosen;
            y[experts + e] = (float)sum;
        }
    }
}

static bool load_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *p = &args->in[0];
    if (p->shape[1] == 0)
        return true;
    CU_LAUNCH(load_of, gd_cuda_blocks(p->shape[1], 1), THREADS, 0, gd_cuda_stream(), (float *)args->out[0].data, (const float *)p->data,
              (const int32_t *)args->in[1].data, used_of(args, 2), p->shape[0], (int)p->shape[1], (int)args->in[1].shape[1]);
    return gd_cuda_launched(args, "expert_load", err);
}

GD_CUDA_STAGED_OP(expert_load, load_run, NULL, used_bytes, stage_used)

__global__ void load_grad(float *dp, const float *dy, const int32_t *used_rows, int64_t rows, int experts)
{
    int64_t used = rows_in_use(used_rows, rows);
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < rows * experts; i += (int64_t)gridDim.x * blockDim.x)
        dp[i] = i / experts < used ? dy[experts + i % experts] : 0.0f;
}

static bool load_grad_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->out[0].shape[0], experts = args->out[0].shape[1];
    if (rows * experts == 0)
        return true;
    CU_LAUNCH(load_grad, gd_cuda_blocks(rows * experts, THREADS), THREADS, 0, gd_cuda_stream(), (float *)args->out[0].data,
              (const float *)args->in[0].data, used_of(args, 1), rows, (int)experts);
    return gd_cuda_launched(args, "expert_load_grad", err);
}

GD_CUDA_STAGED_OP(expert_load_grad, load_grad_run, NULL, used_bytes, stage_used)

/* One thread: there are few experts, and their order counts. */
__global__ void balance(float *out, float *gradient, const float *x, int experts, double chosen)
{
    if (threadIdx.x != 0)
        return;
    double all = 0, loss = 0;
    for (int e = 0; e < experts; e++)
        all += (double)x[e] / chosen;
    double factor = all > 0 ? (double)experts / (all * all) : 0;
    for (int e = 0; e < experts; e++) {
        loss += factor * (double)x[e] * (double)x[experts + e];
        gradient[e] = 0;
        gradient[experts + e] = (float)(factor * (double)x[e]);
    }
    *out = (float)loss;
}

static bool balance_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    CU_LAUNCH(balance, 1, CU_WARP, 0, gd_cuda_stream(), (float *)args->out[0].data, (float *)args->out[1].data,
              (const float *)args->in[0].data, (int)args->in[0].shape[1], (double)args->params->i[0]);
    return gd_cuda_launched(args, "expert_balance", err);
}

GD_CUDA_OP(expert_balance, balance_run, NULL)
