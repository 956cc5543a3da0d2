/* Sums over rows and over everything: sum_rows, spread_rows, dot, identity_distance, segment_sum, segment_spread. */
#include "cuda/column_sums.h"

#define DOT_ELEMENTS 4096 /* of a block */

namespace {

template <typename T> struct element {
    const T *x;
    int64_t width;
    CU_FN float operator()(int64_t t, int64_t j) const
    {
        return to_f32(x[t * width + j]);
    }
};

template <typename T> __global__ void spread_rows_kernel(T *y, const float *v, int64_t rows, int64_t width)
{
    int64_t j = gd_cuda_thread();
    if (j < width) {
        T value = from_f32<T>(v[j]);
        for (int64_t t = blockIdx.y; t < rows; t += gridDim.y)
            y[t * width + j] = value;
    }
}

template <typename T> __global__ void dot_kernel(double *sums, const T *a, const T *b, int64_t count)
{
    int64_t first = (int64_t)blockIdx.x * DOT_ELEMENTS, end = first + DOT_ELEMENTS < count ? first + DOT_ELEMENTS : count;
    double sum = 0;
    for (int64_t i = first + threadIdx.x; i < end; i += blockDim.x)
        sum += (double)to_f32(a[i]) * (double)to_f32(b[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

__global__ void dot_total_kernel(float *y, const double *sums, int64_t count)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x)
        sum += sums[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        *y = (float)sum;
}

__global__ void identity_distance_kernel(float *y, float *direction, const float *x, int64_t size)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < size * size; i += blockDim.x) {
        float apart = x[i] - (i % (size + 1) == 0 ? 1.0f : 0.0f);
        sum += (double)apart * (double)apart;
    }
    double distance = sqrt(block_sum(sum));
    for (int64_t i = threadIdx.x; i < size * size; i += blockDim.x) {
        float apart = x[i] - (i % (size + 1) == 0 ? 1.0f : 0.0f);
        direction[i] = distance > 0 ? (float)((double)apart / distance) : 0.0f;
    }
    if (threadIdx.x == 0)
        *y = (float)distance;
}

/* Rows [begin, end) of a list of offsets or prefixes, kept within the batch whatever it holds. */
CU_FN void rows_of(int64_t *begin, int64_t *end, const int32_t *bounds, int64_t rows)
{
    *begin = bounds[0] > 0 ? bounds[0] : 0;
    *end = bounds[1] < rows ? bounds[1] : rows;
}

/* A block for each segment: its prefix, if it has one, then its own rows. */
__global__ void segment_sum_kernel(float *y, const float *x, const float *weights, const int32_t *cu, const int32_t *prefix, int64_t rows)
{
    double sum = 0;
    for (int part = prefix != NULL ? 0 : 1; part < 2; part++) {
        int64_t begin, end;
        rows_of(&begin, &end, part == 0 ? prefix + 2 * blockIdx.x : cu + blockIdx.x, rows);
        for (int64_t t = begin + threadIdx.x; t < end; t += blockDim.x)
            sum += (double)weights[t] * (double)x[t];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        y[blockIdx.x] = (float)sum;
}

__global__ void segment_spread_kernel(float *y, const float *v, const float *weights, const int32_t *cu, const int32_t *prefix, int64_t rows,
                                      int64_t segments)
{
    for (int64_t t = gd_cuda_thread(); t < rows; t += gd_cuda_threads()) {
        float sum = 0, weight = weights[t];
        for (int64_t s = 0; s < segments; s++) {
            if (prefix != NULL && t >= prefix[2 * s] && t < prefix[2 * s + 1])
                sum += weight * v[s];
            if (t >= cu[s] && t < cu[s + 1])
                sum += weight * v[s];
        }
        y[t] = sum;
    }
}

size_t sum_rows_scratch(const struct gd_call *call)
{
    return gd_column_sums_bytes(call->in[0]->shape[0], call->in[0]->shape[1]);
}

bool run_sum_rows(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0];
    int64_t rows = x->shape[0], width = x->shape[1];
    if (width == 0)
        return true;
    GD_BY_ACT(x->dtype, T, gd_column_sums(element<T>{(const T *)x->data, width}, (float *)args->out[0].data, rows, width, args->scratch));
    return gd_cuda_launched(args, "sum_rows", err);
}

bool run_spread_rows(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *y = &args->out[0];
    int64_t rows = y->shape[0], width = y->shape[1];
    if (rows == 0 || width == 0)
        return true;
    GD_BY_ACT(y->dtype, T,
              CU_LAUNCH((spread_rows_kernel<T>), dim3(gd_cuda_blocks(width, GD_CUDA_THREADS), (unsigned)(rows < 1024 ? rows : 1024)),
                        GD_CUDA_THREADS, 0, gd_cuda_stream(), (T *)y->data, (const float *)args->in[0].data, rows, width));
    return gd_cuda_launched(args, "spread_rows", err);
}

int64_t dot_blocks(int64_t count)
{
    return count == 0 ? 1 : (count + DOT_ELEMENTS - 1) / DOT_ELEMENTS;
}

size_t dot_scratch(const struct gd_call *call)
{
    int64_t count = 1;
    for (int i = 0; i < call->in[0]->rank; i++)
        count *= call->in[0]->shape[i];
    return (size_t)dot_blocks(count) * sizeof(double);
}

bool run_dot(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *a = &args->in[0];
    int64_t count = gd_tensor_count(a), blocks = dot_blocks(count);
    double *sums = (double *)args->scratch;
    GD_BY_ACT(a->dtype, T,
              CU_LAUNCH((dot_kernel<T>), (unsigned)blocks, GD_CUDA_THREADS, 0, gd_cuda_stream(), sums, (const T *)a->data,
                        (const T *)args->in[1].data, count));
    CU_LAUNCH(dot_total_kernel, 1, 1024, 0, gd_cuda_stream(), (float *)args->out[0].data, (const double *)sums, blocks);
    return gd_cuda_launched(args, "dot", err);
}

bool run_identity_distance(const struct gd_kernel_args *args, struct gd_error *err)
{
    CU_LAUNCH(identity_distance_kernel, 1, 1024, 0, gd_cuda_stream(), (float *)args->out[0].data, (float *)args->out[1].data,
              (const float *)args->in[0].data, args->in[0].shape[0]);
    return gd_cuda_launched(args, "identity_distance", err);
}

bool run_segment_sum(const struct gd_kernel_args *args, struct gd_error *err)
{
    CU_LAUNCH(segment_sum_kernel, (unsigned)args->out[0].shape[0], GD_CUDA_THREADS, 0, gd_cuda_stream(), (float *)args->out[0].data,
              (const float *)args->in[0].data, (const float *)args->in[1].data, (const int32_t *)args->in[2].data,
              (const int32_t *)args->in[3].data, args->in[0].shape[0]);
    return gd_cuda_launched(args, "segment_sum", err);
}

bool run_segment_spread(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->out[0].shape[0];
    if (rows == 0)
        return true;
    CU_LAUNCH(segment_spread_kernel, gd_cuda_blocks(rows, GD_CUDA_THREADS), GD_CUDA_THREADS, 0, gd_cuda_stream(),
              (float *)args->out[0].data, (const float *)args->in[0].data, (const float *)args->in[1].data,
              (const int32_t *)args->in[2].data, (const int32_t *)args->in[3].data, rows, args->in[0].shape[0]);
    return gd_cuda_launched(args, "segment_spread", err);
}

} // namespace

GD_CUDA_OP(sum_rows, run_sum_rows, sum_rows_scratch)
GD_CUDA_OP(spread_rows, run_spread_rows, NULL)
GD_CUDA_OP(dot, run_dot, dot_scratch)
GD_CUDA_OP(identity_distance, run_identity_distance, NULL)
GD_CUDA_OP(segment_sum, run_segment_sum, NULL)
GD_CUDA_OP(segment_spread, run_segment_spread, NULL)
