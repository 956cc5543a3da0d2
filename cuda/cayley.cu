/*
 * Rotations from skew-symmetric matrices and their gradients (engine/tensor/ops/cayley.h): a block for each square, in doubles, with
 * the arithmetic of the CPU's. Squares take turns, so that what they need of scratch is bounded.
 */
#include "cuda/kernel.h"

#define THREADS 256
#define AT_ONCE 64           /* squares that are made at the same time */

CU_FN int degree_of(int terms)
{
    return terms == 2 ? 1 : terms == 3 ? 3 : terms - 1;
}

CU_FN double coefficient(int terms, int k)
{
    return k == 0 || (k == degree_of(terms) && terms > 2) ? 1.0 : 2.0;
}

/* c (+)= op(a) op(b); the block's threads share the elements. Barriers stand before and after. */
CU_FN void square_product(const double *a, bool transpose_a, const double *b, bool transpose_b, int n, bool add, double *c)
{
    __syncthreads();
    for (int i = threadIdx.x; i < n * n; i += THREADS) {
        int row = i / n, column = i % n;
        double sum = add ? c[i] : 0;
        for (int k = 0; k < n; k++)
            sum += (transpose_a ? a[k * n + row] : a[row * n + k]) * (transpose_b ? b[column * n + k] : b[k * n + column]);
        c[i] = sum;
    }
    __syncthreads();
}

/* Where element (i, j) of the upper triangle lies, rows packed one after the other. */
CU_FN int packed_at(int n, int i, int j)
{
    return i * n - i * (i + 1) / 2 + j - i - 1;
}

CU_FN void unpack_skew(const float *packed, int n, double *q)
{
    for (int i = threadIdx.x; i < n * n; i += THREADS) {
        int row = i / n, column = i % n;
        q[i] = row == column ? 0.0 : row < column ? (double)packed[packed_at(n, row, column)] : -(double)packed[packed_at(n, column, row)];
    }
    __syncthreads();
}

/* Horner's rule; s_0 to r. kept: the others, s_1 first, or NULL. */
CU_FN void series(const double *q, int n, int terms, double *r, double *work, double *kept)
{
    int degree = degree_of(terms), count = n * n;
    for (int i = threadIdx.x; i < count; i += THREADS)
        r[i] = i % (n + 1) == 0 ? coefficient(terms, degree) : 0;
    for (int k = degree - 1; k >= 0; k--) {
        __syncthreads();
        for (int i = threadIdx.x; kept != nullptr && i < count; i += THREADS)
            kept[k * count + i] = r[i];
        square_product(q, false, r, false, n, false, work);
        for (int i = threadIdx.x; i < count; i += THREADS)
            r[i] = work[i] + (i % (n + 1) == 0 ? coefficient(terms, k) : 0);
    }
    __syncthreads();
}

/* (I + Q)^-1 by Gauss and Jordan, to r. Columns of `work` that are done are not read again, so they stay as they are. */
CU_FN void inverse(const double *q, int n, double *r, double *work)
{
    for (int i = threadIdx.x; i < n * n; i += THREADS) {
        r[i] = i % (n + 1) == 0;
        work[i] = q[i] + (i % (n + 1) == 0 ? 1.0 : 0.0);
    }
    for (int k = 0; k < n; k++) {
        __syncthreads();
        double pivot = 1 / work[k * n + k];
        for (int j = threadIdx.x; j < n; j += THREADS) {
            r[k * n + j] *= pivot;
            if (j > k)
                work[k * n + j] *= pivot;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < n * n; i += THREADS) {
            int row = i / n, column = i % n;
            if (row == k)
                continue;
            double factor = work[row * n + k];
            r[i] -= factor * r[k * n + column];
            if (column > k)
                work[i] -= factor * work[k * n + column];
        }
    }
    __syncthreads();
}

__global__ void rotations(float *out, const float *x, double *scratch, int n, int terms, int64_t squares, int64_t packed)
{
    int count = n * n;
    double *q = scratch + (int64_t)blockIdx.x * 3 * count, *r = q + count, *work = r + count;
    for (int64_t s = blockIdx.x; s < squares; s += gridDim.x) {
        unpack_skew(x + s * packed, n, q);
        if (terms == 0)
            inverse(q, n, r, work);
        else
            series(q, n, terms, r, work, nullptr);
        for (int i = threadIdx.x; i < count; i += THREADS)
            out[s * count + i] = (float)(terms == 0 ? 2 * r[i] - (i % (n + 1) == 0 ? 1.0 : 0.0) : r[i]);
        __syncthreads();
    }
}

static int64_t at_once(int64_t squares)
{
    return squares < AT_ONCE ? squares : AT_ONCE;
}

static size_t cayley_scratch_bytes(const struct gd_call *call)
{
    int64_t n = call->params.i[0];
    return (size_t)(at_once(call->in[0]->shape[0]) * 3 * n * n) * sizeof(double);
}

static bool cayley_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t squares = args->in[0].shape[0];
    if (squares == 0)
        return true;
    CU_LAUNCH(rotations, (unsigned)at_once(squares), THREADS, 0, gd_cuda_stream(), (float *)args->out[0].data,
              (const float *)args->in[0].data, (double *)args->scratch, (int)args->params->i[0], (int)args->params->i[1], squares,
              args->in[0].shape[1]);
    return gd_cuda_launched(args, "cayley", err);
}

GD_CUDA_OP(cayley, cayley_run, cayley_scratch_bytes)

/* Squares: Q, G, dQ, two of work, and what the series kept. */
static int64_t squares_of(int64_t terms)
{
    int degree = terms == 2 ? 1 : terms == 3 ? 3 : (int)terms - 1;
    return 5 + (terms == 0 ? 0 : degree);
}

/* For the exact map, M = (I + Q)^-1: dQ = -2 M^T G M^T. */
CU_FN void exact_grad(const double *q, const double *g, int n, double *dq, double *work)
{
    double *m = work, *other = work + n * n;
    inverse(q, n, m, other);
    square_product(m, true, g, false, n, false, other);
    square_product(other, false, m, true, n, false, dq);
    for (int i = threadIdx.x; i < n * n; i += THREADS)
        dq[i] *= -2;
}

/* g_0 = G, dQ = sum_k g_k s_(k+1)^T, g_(k+1) = Q^T g_k; g is used up. */
CU_FN void series_grad(const double *q, double *g, int n, int terms, double *dq, double *work)
{
    int count = n * n;
    double *next = work, *kept = work + 2 * count;
    series(q, n, terms, work + count, next, kept);
    for (int i = threadIdx.x; i < count; i += THREADS)
        dq[i] = 0;
    for (int k = 0; k < degree_of(terms); k++) {
        square_product(g, false, kept + k * count, true, n, true, dq);
        square_product(q, true, g, false, n, false, next);
        for (int i = threadIdx.x; i < count; i += THREADS)
            g[i] = next[i];
    }
}

__global__ void rotation_grads(float *dx, const float *x, const float *dy, double *scratch, int n, int terms, int64_t squares,
                               int64_t packed, int64_t scratch_squares)
{
    int count = n * n;
    double *q = scratch + (int64_t)blockIdx.x * scratch_squares * count, *g = q + count, *dq = g + count;
    for (int64_t s = blockIdx.x; s < squares; s += gridDim.x) {
        for (int i = threadIdx.x; i < count; i += THREADS)
            g[i] = (double)dy[s * count + i];
        unpack_skew(x + s * packed, n, q);
        if (terms == 0)
            exact_grad(q, g, n, dq, dq + count);
        else
            series_grad(q, g, n, terms, dq, dq + count);
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += THREADS) {
            int row = i / n, column = i % n;
            if (row < column)
                dx[s * packed + packed_at(n, row, column)] = (float)(dq[i] - dq[column * n + row]);
        }
        __syncthreads();
    }
}

static size_t grad_scratch_bytes(const struct gd_call *call)
{
    int64_t n = call->params.i[0];
    return (size_t)(at_once(call->in[0]->shape[0]) * squares_of(call->params.i[1]) * n * n) * sizeof(double);
}

static bool grad_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t squares = args->in[0].shape[0];
    if (squares == 0)
        return true;
    CU_LAUNCH(rotation_grads, (unsigned)at_once(squares), THREADS, 0, gd_cuda_stream(), (float *)args->out[0].data,
              (const float *)args->in[0].data, (const float *)args->in[1].data, (double *)args->scratch, (int)args->params->i[0],
              (int)args->params->i[1], squares, args->in[0].shape[1], squares_of(args->params->i[1]));
    return gd_cuda_launched(args, "cayley_grad", err);
}

GD_CUDA_OP(cayley_grad, grad_run, grad_scratch_bytes)
