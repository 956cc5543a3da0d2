/*
 * low_rank and low_rank_grad: products of the library's; the factors are copied once into the dtype of products and to the depth
 * that u has, the last columns zero. A sum over rows (the factors' gradients) is one product.
 */
#include "cuda/kernel.h"

#define THREADS 256

struct sizes {
    int64_t rows, in, out, rank, depth;
    enum gd_dtype act;
};

/* a: [rank, in], b: [out, rank], u: [rows, depth] */
static struct sizes sizes_of(const int64_t *a, const int64_t *b, const int64_t *u, enum gd_dtype act)
{
    struct sizes n = {u[0], a[1], b[0], a[0], u[1], act};
    return n;
}

static size_t padded_bytes(enum gd_dtype dtype, int64_t count)
{
    return (gd_dtype_bytes(dtype, count) + 255) / 256 * 256;
}

static size_t factor_bytes(const struct sizes *n)
{
    return padded_bytes(n->act, n->depth * n->in) + padded_bytes(n->act, n->out * n->depth);
}

/* to [rows, columns] from [from_rows, from_columns], zero beyond. */
template <class T> __global__ void widen(T *to, const float *from, int64_t rows, int64_t columns, int64_t from_rows, int64_t from_columns)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < rows * columns; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t row = i / columns, column = i % columns;
        to[i] = from_f32<T>(row < from_rows && column < from_columns ? from[row * from_columns + column] : 0.0f);
    }
}

struct factors {
    void *a, *b; /* [depth, in], [out, depth] */
};

static struct factors prepare(const struct sizes *n, const float *a, const float *b, void *scratch)
{
    struct factors f = {scratch, (char *)scratch + padded_bytes(n->act, n->depth * n->in)};
    unsigned a_blocks = gd_cuda_blocks(n->depth * n->in, 4 * THREADS), b_blocks = gd_cuda_blocks(n->out * n->depth, 4 * THREADS);
    GD_BY_ACT(n->act, T,
              CU_LAUNCH((widen<T>), a_blocks, THREADS, 0, gd_cuda_stream(), (T *)f.a, a, n->depth, n->in, n->rank, n->in);
              CU_LAUNCH((widen<T>), b_blocks, THREADS, 0, gd_cuda_stream(), (T *)f.b, b, n->out, n->depth, n->out, n->rank));
    return f;
}

static struct gd_cuda_gemm product(int64_t m, int64_t n, int64_t k, enum gd_dtype in, enum gd_dtype out, float alpha)
{
    struct gd_cuda_gemm gemm = {};
    gemm.m = m;
    gemm.n = n;
    gemm.k = k;
    gemm.in = in;
    gemm.out = out;
    gemm.alpha = alpha;
    return gemm;
}

/* ---- y = c or x W^T, + s u B^T, u = x A^T ---- */

static size_t low_rank_scratch_bytes(const struct gd_call *call)
{
    struct sizes n = sizes_of(call->in[1]->shape, call->in[2]->shape, call->out[1]->shape, call->in[0]->dtype);
    return factor_bytes(&n);
}

static bool low_rank_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *c = &args->in[4], *y = &args->out[0], *u = &args->out[1];
    struct sizes n = sizes_of(args->in[1].shape, args->in[2].shape, u->shape, x->dtype);
    if (n.rows == 0)
        return true;
    struct factors f = prepare(&n, (const float *)args->in[1].data, (const float *)args->in[2].data, args->scratch);
    struct gd_cuda_gemm down = product(n.rows, n.depth, n.in, n.act, n.act, 1.0f);
    struct gd_cuda_gemm up = product(n.rows, n.out, n.depth, n.act, n.act, (float)args->params->f[0]);
    down.transpose_b = up.transpose_b = up.accumulate = true;
    if (!gd_cuda_launched(args, "low_rank", err) || (c->rank != 0 && !gd_cuda_copy(y->data, c->data, gd_dtype_bytes(y->dtype, gd_tensor_count(y)), "an addend of low_rank", err)))
        return false;
    return gd_cuda_gemm(&down, x->data, f.a, u->data, err) &&
           (args->weight[3] == NULL ||
            gd_weight_multiply(args->weight[3], false, x->data, n.act, y->data, n.act, n.rows, false, err)) &&
           gd_cuda_gemm(&up, u->data, f.b, y->data, err);
}

GD_CUDA_OP(low_rank, low_rank_run, low_rank_scratch_bytes)

/* ---- du = s dy B,  dx = c + du A + dy W,  dA = du^T x,  dB = s dy^T u ---- */

static size_t grad_scratch_bytes(const struct gd_call *call)
{
    struct sizes n = sizes_of(call->in[3]->shape, call->in[4]->shape, call->in[2]->shape, call->in[0]->dtype);
    return factor_bytes(&n) + padded_bytes(n.act, n.rows * n.depth);
}

static bool zero(const struct gd_tensor *out, struct gd_error *err)
{
    size_t bytes = gd_dtype_bytes(out->dtype, gd_tensor_count(out));
    return bytes == 0 || gd_cuda_check(cudaMemsetAsync(out->data, 0, bytes, gd_cuda_stream()), "cudaMemsetAsync", "a gradient without rows", err);
}

static bool grad_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *dy = &args->in[0], *x = &args->in[1], *u = &args->in[2], *c = &args->in[6], *dx = &args->out[0];
    const int64_t *wanted = args->params->i; /* dx, dA, dB */
    struct gd_weight *w = args->weight[5];
    struct sizes n = sizes_of(args->in[3].shape, args->in[4].shape, u->shape, x->dtype);
    float scale = (float)args->params->f[0];
    bool added = c->rank != 0;
    if (n.rows == 0)
        return (!wanted[1] || zero(&args->out[1], err)) && (!wanted[2] || zero(&args->out[2], err));
    struct factors f = prepare(&n, (const float *)args->in[3].data, (const float *)args->in[4].data, args->scratch);
    void *du = (char *)args->scratch + factor_bytes(&n);
    struct gd_cuda_gemm down = product(n.rows, n.depth, n.out, n.act, n.act, scale);
    struct gd_cuda_gemm back = product(n.rows, n.in, n.depth, n.act, n.act, 1.0f);
    struct gd_cuda_gemm da = product(n.rank, n.in, n.rows, n.act, GD_F32, 1.0f), db = product(n.out, n.rank, n.rows, n.act, GD_F32, scale);
    back.accumulate = added;
    da.transpose_a = db.transpose_a = true;
    da.lda = db.ldb = n.depth;
    if (!gd_cuda_launched(args, "low_rank_grad", err) || (wanted[0] && added && !gd_cuda_copy(dx->data, c->data, gd_dtype_bytes(dx->dtype, gd_tensor_count(dx)), "an addend of low_rank", err)))
        return false;
    return (!(wanted[0] || wanted[1]) || gd_cuda_gemm(&down, dy->data, f.b, du, err)) &&
           (!wanted[1] || gd_cuda_gemm(&da, du, x->data, args->out[1].data, err)) &&
           (!wanted[2] || gd_cuda_gemm(&db, dy->data, u->data, args->out[2].data, err)) &&
           (!wanted[0] || gd_cuda_gemm(&back, du, f.a, dx->data, err)) &&
           (!wanted[0] || w == NULL || gd_weight_multiply(w, true, dy->data, n.act, dx->data, n.act, n.rows, true, err));
}

GD_CUDA_OP(low_rank_grad, grad_run, grad_scratch_bytes)
