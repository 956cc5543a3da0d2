/* What multiplicative adapters are made of: block_rotate, block_outer, hadamard_linear. */
#include "cuda/kernel.h"

#define THREADS 256
#define ROWS 4               /* that share what was read of a square */

/* ---- block_rotate: y[t][n] = x[t][n] op(r)[n] ---- */

struct rotation {
    int64_t rows, width;
    int size, step;          /* of a square; between squares, 0: one for all */
    bool transpose;
};

/* A thread for a column of ROWS rows. */
template <class T> __global__ void rotate(T *y, const T *x, const float *r, struct rotation n)
{
    int64_t groups = (n.rows + ROWS - 1) / ROWS;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < groups * n.width; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t column = i % n.width, t = i / n.width * ROWS, first = column - column % n.size;
        const float *square = r + column / n.size * n.step + (n.transpose ? column % n.size * n.size : column % n.size);
        int64_t along = n.transpose ? 1 : n.size;
        float sums[ROWS] = {};
        for (int k = 0; k < n.size; k++) {
            float factor = square[k * along];
#pragma unroll
            for (int j = 0; j < ROWS; j++)
                if (t + j < n.rows)
                    sums[j] += to_f32(x[(t + j) * n.width + first + k]) * factor;
        }
#pragma unroll
        for (int j = 0; j < ROWS; j++)
            if (t + j < n.rows)
                y[(t + j) * n.width + column] = from_f32<T>(sums[j]);
    }
}

static bool rotate_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *r = &args->in[1];
    int64_t size = r->shape[1];
    struct rotation n = {x->shape[0], x->shape[1], (int)size, r->shape[0] == size ? 0 : (int)(size * size), args->params->i[0] != 0};
    if (n.rows * n.width == 0)
        return true;
    GD_BY_ACT(x->dtype, T,
              CU_LAUNCH((rotate<T>), gd_cuda_blocks((n.rows + ROWS - 1) / ROWS * n.width, THREADS), THREADS, 0, gd_cuda_stream(),
                        (T *)args->out[0].data, (const T *)x->data, (const float *)r->data, n));
    return gd_cuda_launched(args, "block_rotate", err);
}

GD_CUDA_OP(block_rotate, rotate_run, NULL)

/* ---- block_outer: a product for each square, or one of all rows' parts ---- */

static bool outer_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *a = &args->in[0], *b = &args->in[1], *y = &args->out[0];
    int64_t size = args->params->i[0], parts = a->shape[1] / size;
    bool shared = args->params->i[1] != 0;
    struct gd_cuda_gemm gemm = {};
    size_t bytes = gd_dtype_bytes(GD_F32, gd_tensor_count(y));
    if (a->shape[0] == 0)
        return bytes == 0 || gd_cuda_check(cudaMemsetAsync(y->data, 0, bytes, gd_cuda_stream()), "cudaMemsetAsync", "block_outer", err);
    gemm.m = gemm.n = size;
    gemm.k = shared ? a->shape[0] * parts : a->shape[0];
    gemm.transpose_a = true;
    gemm.in = a->dtype;
    gemm.out = GD_F32;
    gemm.alpha = 1.0f;
    if (!shared) {
        gemm.lda = gemm.ldb = a->shape[1];
        gemm.batch = parts;
        gemm.stride_a = gemm.stride_b = size;
        gemm.stride_c = size * size;
    }
    return gd_cuda_gemm(&gemm, a->data, b->data, y->data, err);
}

GD_CUDA_OP(block_outer, outer_run, NULL)

/* ---- hadamard_linear: y = x D^T, D = f (a1 b1) * (a2 b2) ---- */

static size_t part_bytes(int64_t count)
{
    return ((size_t)count * sizeof(float) + 255) / 256 * 256;
}

static size_t hadamard_scratch_bytes(const struct gd_call *call)
{
    int64_t count = call->in[1]->shape[0] * call->in[2]->shape[1];
    return 2 * part_bytes(count) + (call->in[0]->dtype == GD_BF16 ? (size_t)count * sizeof(bf16) : 0);
}

template <class T> __global__ void multiply(T *out, const float *a, const float *b, float factor, int64_t count)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        out[i] = from_f32<T>(a[i] * (factor * b[i]));
}

static bool thin_product(const struct gd_tensor *a, const struct gd_tensor *b, float *out, struct gd_error *err)
{
    struct gd_cuda_gemm gemm = {};
    gemm.m = a->shape[0];
    gemm.n = b->shape[1];
    gemm.k = a->shape[1];
    gemm.in = gemm.out = GD_F32;
    gemm.alpha = 1.0f;
    return gd_cuda_gemm(&gemm, a->data, b->data, out, err);
}

static bool hadamard_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *in = args->in;
    int64_t count = in[1].shape[0] * in[2].shape[1];
    float *d = (float *)args->scratch, *other = (float *)((char *)args->scratch + part_bytes(count));
    void *matrix = in[0].dtype == GD_BF16 ? (char *)args->scratch + 2 * part_bytes(count) : (char *)args->scratch;
    struct gd_cuda_gemm gemm = {};
    if (in[0].shape[0] == 0)
        return true;
    if (!thin_product(&in[1], &in[2], d, err) || !thin_product(&in[3], &in[4], other, err))
        return false;
    GD_BY_ACT(in[0].dtype, T,
              CU_LAUNCH((multiply<T>), gd_cuda_blocks(count, THREADS), THREADS, 0, gd_cuda_stream(), (T *)matrix, d, other,
                        (float)args->params->f[0], count));
    gemm.m = in[0].shape[0];
    gemm.n = in[1].shape[0];
    gemm.k = in[0].shape[1];
    gemm.transpose_b = true;
    gemm.in = gemm.out = in[0].dtype;
    gemm.alpha = 1.0f;
    return gd_cuda_launched(args, "hadamard_linear", err) && gd_cuda_gemm(&gemm, in[0].data, matrix, args->out[0].data, err);
}

GD_CUDA_OP(hadamard_linear, hadamard_run, hadamard_scratch_bytes)
