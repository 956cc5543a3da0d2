/* Ops of single elements: add, mul, scale, mul_scalar, cast, add_row, mul_row, dropout, shift. */
#include "cuda/map.h"

namespace {

struct sum {
    CU_FN float operator()(float a, float b) const
    {
        return a + b;
    }
};

struct product {
    CU_FN float operator()(float a, float b) const
    {
        return a * b;
    }
};

struct scaled {
    float factor;
    CU_FN float operator()(float a, float) const
    {
        return factor * a;
    }
};

struct scaled_by {
    const float *factor;
    CU_FN float operator()(float a, float) const
    {
        return __ldg(factor) * a;
    }
};

/* Four at a time where the addresses allow it: one side of a conversion has 16 bytes then. */
template <typename TO, typename FROM, int N> __global__ void cast_kernel(TO *y, const FROM *x, int64_t count)
{
    int64_t packs = count / N;
    for (int64_t i = gd_cuda_thread(); i < packs; i += gd_cuda_threads()) {
        float v[N];
        gd_load_pack<N>(v, x + i * N);
        gd_store_pack<N>(y + i * N, v);
    }
    for (int64_t i = packs * N + gd_cuda_thread(); i < count; i += gd_cuda_threads())
        y[i] = from_f32<TO>(to_f32(x[i]));
}

/* A thread has its columns' part of the row vector in registers and goes down the rows. */
template <typename T, int N, typename F>
__global__ void by_row_kernel(F f, T *y, const T *x, const float *b, int64_t rows, int64_t width)
{
    int64_t column = gd_cuda_thread() * N;
    if (column < width) {
        float vb[N];
        gd_load_floats<N>(vb, b + column);
        for (int64_t t = blockIdx.y; t < rows; t += gridDim.y) {
            float v[N];
            gd_load_pack<N>(v, x + t * width + column);
#pragma unroll
            for (int k = 0; k < N; k++)
                v[k] = f(v[k], vb[k]);
            gd_store_pack<N>(y + t * width + column, v);
        }
    }
}

__global__ void shift_kernel(int32_t *y, const int32_t *x, int32_t by, int64_t count)
{
    for (int64_t i = gd_cuda_thread(); i < count; i += gd_cuda_threads())
        y[i] = x[i] + by;
}

/* The four words of a counter are four elements. */
template <typename T> __global__ void dropout_kernel(T *y, const T *x, const uint32_t *key, uint64_t first, uint32_t threshold, float scale,
                                                     int64_t count)
{
    uint64_t seed = (uint64_t)key[1] << 32 | key[0], stream = gd_philox_stream(GD_RANDOM_DROPOUT, key[2], key[3]);
    for (int64_t i = gd_cuda_thread(); i * 4 < count; i += gd_cuda_threads()) {
        struct gd_philox bits = gd_philox4(seed, stream, first + (uint64_t)i);
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (i * 4 + k < count)
                y[i * 4 + k] = from_f32<T>(bits.v[k] >= threshold ? to_f32(x[i * 4 + k]) * scale : 0.0f);
    }
}

bool run_add(const struct gd_kernel_args *args, struct gd_error *err)
{
    return gd_map_run(sum(), args, &args->in[1], "add", err);
}

bool run_mul(const struct gd_kernel_args *args, struct gd_error *err)
{
    return gd_map_run(product(), args, &args->in[1], "mul", err);
}

bool run_scale(const struct gd_kernel_args *args, struct gd_error *err)
{
    return gd_map_run(scaled{(float)args->params->f[0]}, args, NULL, "scale", err);
}

bool run_mul_scalar(const struct gd_kernel_args *args, struct gd_error *err)
{
    return gd_map_run(scaled_by{(const float *)args->in[1].data}, args, NULL, "mul_scalar", err);
}

bool run_cast(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *y = &args->out[0];
    int64_t count = gd_tensor_count(x);
    if (count == 0)
        return true;
    if (x->dtype == y->dtype)
        return gd_cuda_copy(y->data, x->data, gd_dtype_bytes(x->dtype, count), "cast", err);
    bool packed = gd_cuda_packed(0, x->data, y->data);
    unsigned blocks = gd_cuda_blocks(packed ? (count + 3) / 4 : count, GD_CUDA_THREADS);
    if (y->dtype == GD_BF16 && packed)
        CU_LAUNCH((cast_kernel<bf16, float, 4>), blocks, GD_CUDA_THREADS, 0, gd_cuda_stream(), (bf16 *)y->data, (const float *)x->data, count);
    else if (y->dtype == GD_BF16)
        CU_LAUNCH((cast_kernel<bf16, float, 1>), blocks, GD_CUDA_THREADS, 0, gd_cuda_stream(), (bf16 *)y->data, (const float *)x->data, count);
    else if (packed)
        CU_LAUNCH((cast_kernel<float, bf16, 4>), blocks, GD_CUDA_THREADS, 0, gd_cuda_stream(), (float *)y->data, (const bf16 *)x->data, count);
    else
        CU_LAUNCH((cast_kernel<float, bf16, 1>), blocks, GD_CUDA_THREADS, 0, gd_cuda_stream(), (float *)y->data, (const bf16 *)x->data, count);
    return gd_cuda_launched(args, "cast", err);
}

template <typename F> bool run_by_row(F f, const struct gd_kernel_args *args, const char *op, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *y = &args->out[0];
    const float *b = args->weight[1] != NULL ? gd_weight_vector(args->weight[1]) : (const float *)args->in[1].data;
    int64_t rows = y->shape[0], width = y->shape[1];
    if (rows == 0 || width == 0)
        return true;
    bool packed = gd_cuda_packed(gd_dtype_bytes(y->dtype, width), x->data, y->data);
    unsigned down = (unsigned)(rows < 1024 ? rows : 1024);
    GD_BY_ACT(y->dtype, T,
              GD_BY_PACK(packed, T, N,
                         CU_LAUNCH((by_row_kernel<T, N, F>), dim3(gd_cuda_blocks(width / N, GD_CUDA_THREADS), down), GD_CUDA_THREADS, 0,
                                   gd_cuda_stream(), f, (T *)y->data, (const T *)x->data, b, rows, width)));
    return gd_cuda_launched(args, op, err);
}

bool run_add_row(const struct gd_kernel_args *args, struct gd_error *err)
{
    return run_by_row(sum(), args, "add_row", err);
}

/* The bias as the result's dtype has it, for a product that adds it (pair.h). */
size_t add_row_scratch(const struct gd_call *call)
{
    return gd_dtype_bytes(call->out[0]->dtype, call->out[0]->shape[1]);
}

bool run_mul_row(const struct gd_kernel_args *args, struct gd_error *err)
{
    return run_by_row(product(), args, "mul_row", err);
}

bool run_shift(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = args->in[0].shape[0];
    if (count == 0)
        return true;
    CU_LAUNCH(shift_kernel, gd_cuda_blocks(count, GD_CUDA_THREADS), GD_CUDA_THREADS, 0, gd_cuda_stream(), (int32_t *)args->out[0].data,
              (const int32_t *)args->in[0].data, (int32_t)args->params->i[0], count);
    return gd_cuda_launched(args, "shift", err);
}

/* The numbers are those of engine/tensor/ops/dropout.c: element i is word i % 4 of counter (site << 40) + i / 4. */
bool run_dropout(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = gd_tensor_count(&args->out[0]);
    double p = args->params->f[0];
    if (count == 0)
        return true;
    GD_BY_ACT(args->out[0].dtype, T,
              CU_LAUNCH((dropout_kernel<T>), gd_cuda_blocks((count + 3) / 4, GD_CUDA_THREADS), GD_CUDA_THREADS, 0, gd_cuda_stream(),
                        (T *)args->out[0].data, (const T *)args->in[0].data, (const uint32_t *)args->in[1].data,
                        (uint64_t)args->params->i[0] << 40, (uint32_t)(p * 4294967296.0), (float)(1 / (1 - p)), count));
    return gd_cuda_launched(args, "dropout", err);
}

} // namespace

GD_CUDA_OP(add, run_add, NULL)
GD_CUDA_OP(mul, run_mul, NULL)
GD_CUDA_OP(scale, run_scale, NULL)
GD_CUDA_OP(mul_scalar, run_mul_scalar, NULL)
GD_CUDA_OP(cast, run_cast, NULL)
GD_CUDA_OP(add_row, run_add_row, add_row_scratch)
GD_CUDA_OP(mul_row, run_mul_row, NULL)
GD_CUDA_OP(shift, run_shift, NULL)
GD_CUDA_OP(dropout, run_dropout, NULL)
