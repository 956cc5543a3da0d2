/* Dense products and what they are made of: matmul, linear, linear_back, row_norm_ratio. */
#include "cuda/layout.h"
#include "cuda/map.h"
#include "cuda/quant.h"
extern "C" {
#include "cuda/pair.h"
}

#define NORM_ROWS 4     /* rows of w that a block takes: they share each element of a */
#define UNPACKED_ROWS 256

namespace {

template <typename TO, typename FROM> __global__ void convert_kernel(TO *y, const FROM *x, int64_t count)
{
    for (int64_t i = gd_cuda_thread(); i < count; i += gd_cuda_threads())
        y[i] = from_f32<TO>(to_f32(x[i]));
}

/* to = from, between F32 and BF16. */
bool convert(const struct gd_kernel_args *args, void *to, enum gd_dtype to_dtype, const void *from, enum gd_dtype from_dtype, int64_t count,
             struct gd_error *err)
{
    if (to == from)
        return true;
    if (to_dtype == from_dtype)
        return gd_cuda_copy(to, from, gd_dtype_bytes(to_dtype, count), "matmul", err);
    unsigned blocks = gd_cuda_blocks(count, GD_CUDA_THREADS);
    if (to_dtype == GD_F32)
        CU_LAUNCH((convert_kernel<float, bf16>), blocks, GD_CUDA_THREADS, 0, gd_cuda_stream(), (float *)to, (const bf16 *)from, count);
    else
        CU_LAUNCH((convert_kernel<bf16, float>), blocks, GD_CUDA_THREADS, 0, gd_cuda_stream(), (bf16 *)to, (const float *)from, count);
    return gd_cuda_launched(args, "matmul", err);
}

/* Products are in bf16 as soon as one operand is. */
enum gd_dtype product_dtype(enum gd_dtype a, enum gd_dtype b)
{
    return a == GD_BF16 || b == GD_BF16 ? GD_BF16 : GD_F32;
}

/* Copies of operands in the product's dtype, and an f32 result on its way to bf16 where the product is f32. */
struct parts {
    size_t a, b, out;
};

size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

struct parts parts_of(enum gd_dtype a, int64_t a_count, enum gd_dtype b, int64_t b_count, enum gd_dtype out, int64_t out_count)
{
    enum gd_dtype in = product_dtype(a, b);
    return {a != in ? aligned(gd_dtype_bytes(in, a_count)) : 0, b != in ? aligned(gd_dtype_bytes(in, b_count)) : 0,
            in == GD_F32 && out == GD_BF16 ? aligned(gd_dtype_bytes(GD_F32, out_count)) : 0};
}

int64_t elements(const struct gd_value *matrix)
{
    return matrix->shape[0] * matrix->shape[1];
}

size_t matmul_scratch(const struct gd_call *call)
{
    struct parts parts = parts_of(call->in[0]->dtype, elements(call->in[0]), call->in[1]->dtype, elements(call->in[1]),
                                  call->out[0]->dtype, elements(call->out[0]));
    return parts.a + parts.b + parts.out;
}

bool run_matmul(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *a = &args->in[0], *b = &args->in[1], *c = &args->in[2], *out = &args->out[0];
    bool transpose_a = args->params->i[0] != 0, transpose_b = args->params->i[1] != 0;
    int64_t a_count = gd_tensor_count(a), b_count = gd_tensor_count(b), out_count = gd_tensor_count(out);
    struct parts parts = parts_of(a->dtype, a_count, b->dtype, b_count, out->dtype, out_count);
    char *scratch = (char *)args->scratch;
    struct gd_cuda_gemm gemm = {};
    gemm.m = out->shape[0];
    gemm.n = out->shape[1];
    gemm.k = a->shape[transpose_a ? 0 : 1];
    gemm.transpose_a = transpose_a;
    gemm.transpose_b = transpose_b;
    gemm.in = product_dtype(a->dtype, b->dtype);
    gemm.out = parts.out ? GD_F32 : out->dtype;
    gemm.accumulate = c->rank != 0;
    gemm.alpha = (float)args->params->f[0];
    const void *a_data = parts.a ? scratch : a->data, *b_data = parts.b ? scratch + parts.a : b->data;
    void *out_data = parts.out ? scratch + parts.a + parts.b : out->data;
    if (out_count == 0)
        return true;
    if (gemm.k == 0 && !gemm.accumulate)
        return gd_cuda_check(cudaMemsetAsync(out->data, 0, gd_dtype_bytes(out->dtype, out_count), gd_cuda_stream()), "cudaMemsetAsync",
                             "matmul", err);
    if (parts.a && !convert(args, scratch, gemm.in, a->data, a->dtype, a_count, err))
        return false;
    if (parts.b && !convert(args, scratch + parts.a, gemm.in, b->data, b->dtype, b_count, err))
        return false;
    if (gemm.accumulate && !convert(args, out_data, gemm.out, c->data, c->dtype, out_count, err))
        return false;
    if (gemm.k > 0 && !gd_cuda_gemm(&gemm, a_data, b_data, out_data, err))
        return false;
    return convert(args, out->data, out->dtype, out_data, gemm.out, out_count, err);
}

bool frozen_product(const struct gd_kernel_args *args, bool back, const char *op, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *c = &args->in[2], *y = &args->out[0];
    if (gd_tensor_count(y) == 0)
        return true;
    if (c->rank != 0 && !gd_cuda_copy(y->data, c->data, gd_dtype_bytes(y->dtype, gd_tensor_count(y)), op, err))
        return false;
    return gd_weight_multiply(args->weight[1], back, x->data, x->dtype, y->data, y->dtype, x->shape[0], c->rank != 0, err);
}

bool run_linear(const struct gd_kernel_args *args, struct gd_error *err)
{
    return frozen_product(args, false, "linear", err);
}

bool run_linear_back(const struct gd_kernel_args *args, struct gd_error *err)
{
    return frozen_product(args, true, "linear_back", err);
}

/* n[o] = ||w[o] + scale b[o] a|| of rows [first, first + count) of the outputs, where w begins at row `first`. */
template <typename T>
__global__ void row_norm_kernel(float *ratio, float *inverse, const T *w, const float *b, const float *a, const float *m, float scale,
                                int64_t first, int64_t count, int64_t in, int64_t rank)
{
    CU_DYN_SHARED(float, factors); /* [NORM_ROWS][rank] */
    int64_t row = (int64_t)blockIdx.x * NORM_ROWS;
    for (int64_t i = threadIdx.x; i < NORM_ROWS * rank; i += blockDim.x)
        factors[i] = row + i / rank < count ? b[(first + row) * rank + i] : 0.0f;
    __syncthreads();
    float sum[NORM_ROWS] = {};
    for (int64_t i = threadIdx.x; i < in; i += blockDim.x) {
        float product[NORM_ROWS] = {};
        for (int64_t r = 0; r < rank; r++) {
            float value = a[r * in + i];
#pragma unroll
            for (int k = 0; k < NORM_ROWS; k++)
                product[k] += factors[k * rank + r] * value;
        }
#pragma unroll
        for (int k = 0; k < NORM_ROWS; k++)
            if (row + k < count) {
                float value = to_f32(w[(row + k) * in + i]) + scale * product[k];
                sum[k] += value * value;
            }
    }
#pragma unroll
    for (int k = 0; k < NORM_ROWS; k++) {
        float n = sqrtf(block_sum(sum[k]));
        if (threadIdx.x == 0 && row + k < count) {
            ratio[first + row + k] = n > 0.0f ? m[first + row + k] / n : 0.0f;
            inverse[first + row + k] = n > 0.0f ? 1.0f / n : 0.0f;
        }
    }
}

/* Rows of a quantised w are unpacked to f32, some at a time. */
size_t row_norm_scratch(const struct gd_call *call)
{
    const struct gd_weight *w = call->in[0]->weight;
    bool blocks = gd_weight_quantised(w) || gd_dtype_block(gd_weight_source(w)->dtype) > 1;
    return blocks ? (size_t)UNPACKED_ROWS * (size_t)call->in[0]->shape[1] * sizeof(float) : 0;
}

template <typename T>
void launch_row_norms(const struct gd_kernel_args *args, const void *w, int64_t first, int64_t count)
{
    int64_t in = args->in[2].shape[1], rank = args->in[2].shape[0];
    CU_LAUNCH((row_norm_kernel<T>), (unsigned)((count + NORM_ROWS - 1) / NORM_ROWS), GD_CUDA_THREADS,
              NORM_ROWS * (size_t)rank * sizeof(float), gd_cuda_stream(), (float *)args->out[0].data, (float *)args->out[1].data,
              (const T *)w, (const float *)args->in[1].data, (const float *)args->in[2].data, (const float *)args->in[3].data,
              (float)args->params->f[0], first, count, in, rank);
}

bool run_row_norm_ratio(const struct gd_kernel_args *args, struct gd_error *err)
{
    enum gd_dtype dtype;
    const void *w = gd_cuda_rows(args->weight[0], &dtype);
    int64_t rows = args->out[0].shape[0], in = args->in[2].shape[1];
    if (rows == 0)
        return true;
    if (dtype == GD_F32)
        launch_row_norms<float>(args, w, 0, rows);
    else if (dtype == GD_BF16)
        launch_row_norms<bf16>(args, w, 0, rows);
    else if (dtype == GD_F16)
        launch_row_norms<gd_f16>(args, w, 0, rows);
    else
        for (int64_t first = 0; first < rows; first += UNPACKED_ROWS) {
            int64_t count = rows - first < UNPACKED_ROWS ? rows - first : UNPACKED_ROWS;
            if (!gd_cuda_unpack(w, dtype, in, first, first + count, 0, in, args->scratch, GD_F32, err))
                return false;
            launch_row_norms<float>(args, args->scratch, first, count);
        }
    return gd_cuda_launched(args, "row_norm_ratio", err);
}

} // namespace

extern "C" const struct gd_backend_op gd_cuda_linear, gd_cuda_add_row;

/* Where somebody reads the product without the bias, both are there. */
bool gd_cuda_linear_add_row(const struct gd_kernel_args *linear, const struct gd_kernel_args *add_row, struct gd_error *err)
{
    const struct gd_tensor *x = &linear->in[0], *y = &add_row->out[0];
    const float *b = add_row->weight[1] != NULL ? gd_weight_vector(add_row->weight[1]) : (const float *)add_row->in[1].data;
    const void *w = gd_cuda_plain(linear->weight[1], x->dtype);
    if (linear->out[0].data != NULL || w == NULL)
        return gd_cuda_linear.run(linear, err) && gd_cuda_add_row.run(add_row, err);
    if (gd_tensor_count(y) == 0)
        return true;
    int64_t width = y->shape[1];
    unsigned blocks = gd_cuda_blocks(width, GD_CUDA_THREADS);
    if (y->dtype == GD_BF16)
        CU_LAUNCH((convert_kernel<bf16, float>), blocks, GD_CUDA_THREADS, 0, gd_cuda_stream(), (bf16 *)add_row->scratch, b, width);
    else
        CU_LAUNCH((convert_kernel<float, float>), blocks, GD_CUDA_THREADS, 0, gd_cuda_stream(), (float *)add_row->scratch, b, width);
    struct gd_cuda_gemm gemm = {};
    gemm.m = y->shape[0];
    gemm.n = width;
    gemm.k = x->shape[1];
    gemm.transpose_b = true;
    gemm.in = x->dtype;
    gemm.out = y->dtype;
    gemm.alpha = 1.0f;
    gemm.bias = add_row->scratch;
    return gd_cuda_launched(add_row, "a bias", err) && gd_cuda_gemm(&gemm, x->data, w, y->data, err);
}

GD_CUDA_OP(matmul, run_matmul, matmul_scratch)
GD_CUDA_OP(linear, run_linear, NULL)
GD_CUDA_OP(linear_back, run_linear_back, NULL)
GD_CUDA_OP(row_norm_ratio, run_row_norm_ratio, row_norm_scratch)
