/* Functions by element and softmax: activation, activation_grad, swiglu, swiglu_grad, softmax, softmax_grad. */
#include "cuda/activation.h"
#include "cuda/map.h"

#define ROWS_A_BLOCK 4 /* of softmax: a warp each */

namespace {

template <enum gd_activation KIND> struct activated {
    CU_FN float operator()(float x, float) const
    {
        return gd_cuda_activate(KIND, x);
    }
};

/* x, dy -> dy times the slope at x */
template <enum gd_activation KIND> struct sloped {
    CU_FN float operator()(float x, float dy) const
    {
        return dy * gd_cuda_activate_slope(KIND, x);
    }
};

struct swiglu {
    CU_FN float operator()(float gate, float up) const
    {
        return gate * gd_cuda_sigmoid(gate) * up;
    }
};

template <typename T, int N>
__global__ void swiglu_grad_kernel(T *d_gate, T *d_up, const T *gate, const T *up, const T *dy, int64_t count)
{
    int64_t packs = count / N;
    for (int64_t i = gd_cuda_thread(); i < packs; i += gd_cuda_threads()) {
        float g[N], u[N], d[N];
        gd_load_pack<N>(g, gate + i * N);
        gd_load_pack<N>(u, up + i * N);
        gd_load_pack<N>(d, dy + i * N);
#pragma unroll
        for (int k = 0; k < N; k++) {
            float s = gd_cuda_sigmoid(g[k]), of_up = d[k] * g[k] * s;
            g[k] = d[k] * u[k] * s * (1.0f + g[k] * (1.0f - s));
            u[k] = of_up;
        }
        gd_store_pack<N>(d_gate + i * N, g);
        gd_store_pack<N>(d_up + i * N, u);
    }
    for (int64_t i = packs * N + gd_cuda_thread(); i < count; i += gd_cuda_threads()) {
        float g = to_f32(gate[i]), u = to_f32(up[i]), d = to_f32(dy[i]), s = gd_cuda_sigmoid(g);
        d_gate[i] = from_f32<T>(d * u * s * (1.0f + g * (1.0f - s)));
        d_up[i] = from_f32<T>(d * g * s);
    }
}

__global__ void softmax_kernel(float *y, const float *x, int64_t rows, int64_t width)
{
    int64_t t = (int64_t)blockIdx.x * ROWS_A_BLOCK + threadIdx.x / CU_WARP;
    int lane = threadIdx.x % CU_WARP;
    if (t < rows) { /* the same for a warp */
        float most = -INFINITY, sum = 0;
        for (int64_t j = lane; j < width; j += CU_WARP)
            most = fmaxf(most, x[t * width + j]);
        most = warp_max(most);
        for (int64_t j = lane; j < width; j += CU_WARP)
            sum += expf(x[t * width + j] - most);
        sum = warp_sum(sum);
        for (int64_t j = lane; j < width; j += CU_WARP)
            y[t * width + j] = expf(x[t * width + j] - most) / sum;
    }
}

__global__ void softmax_grad_kernel(float *dx, const float *y, const float *dy, int64_t rows, int64_t width)
{
    int64_t t = (int64_t)blockIdx.x * ROWS_A_BLOCK + threadIdx.x / CU_WARP;
    int lane = threadIdx.x % CU_WARP;
    if (t < rows) {
        float sum = 0;
        for (int64_t j = lane; j < width; j += CU_WARP)
            sum += y[t * width + j] * dy[t * width + j];
        sum = warp_sum(sum);
        for (int64_t j = lane; j < width; j += CU_WARP)
            dx[t * width + j] = y[t * width + j] * (dy[t * width + j] - sum);
    }
}

template <template <enum gd_activation> class F>
bool run_kind(const struct gd_kernel_args *args, const struct gd_tensor *b, const char *op, struct gd_error *err)
{
    switch ((enum gd_activation)args->params->i[0]) {
    case GD_ACTIVATION_RELU:
        return gd_map_run(F<GD_ACTIVATION_RELU>(), args, b, op, err);
    case GD_ACTIVATION_GELU:
        return gd_map_run(F<GD_ACTIVATION_GELU>(), args, b, op, err);
    case GD_ACTIVATION_GELU_NEW:
        return gd_map_run(F<GD_ACTIVATION_GELU_NEW>(), args, b, op, err);
    case GD_ACTIVATION_SILU:
        return gd_map_run(F<GD_ACTIVATION_SILU>(), args, b, op, err);
    case GD_ACTIVATION_TANH:
        return gd_map_run(F<GD_ACTIVATION_TANH>(), args, b, op, err);
    case GD_ACTIVATION_SIGMOID:
        return gd_map_run(F<GD_ACTIVATION_SIGMOID>(), args, b, op, err);
    case GD_ACTIVATION_LINEAR:
    case GD_ACTIVATION_COUNT:
        break;
    }
    return gd_map_run(F<GD_ACTIVATION_LINEAR>(), args, b, op, err);
}

bool run_activation(const struct gd_kernel_args *args, struct gd_error *err)
{
    return run_kind<activated>(args, NULL, "activation", err);
}

bool run_activation_grad(const struct gd_kernel_args *args, struct gd_error *err)
{
    return run_kind<sloped>(args, &args->in[1], "activation_grad", err);
}

bool run_swiglu(const struct gd_kernel_args *args, struct gd_error *err)
{
    return gd_map_run(swiglu(), args, &args->in[1], "swiglu", err);
}

bool run_swiglu_grad(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *in = args->in, *out = args->out;
    int64_t count = gd_tensor_count(&out[0]);
    if (count == 0)
        return true;
    bool packed = gd_cuda_packed(0, in[0].data, in[1].data, in[2].data, out[0].data, out[1].data);
    GD_BY_ACT(out[0].dtype, T,
              GD_BY_PACK(packed, T, N,
                         CU_LAUNCH((swiglu_grad_kernel<T, N>), gd_cuda_blocks((count + N - 1) / N, GD_CUDA_THREADS), GD_CUDA_THREADS, 0,
                                   gd_cuda_stream(), (T *)out[0].data, (T *)out[1].data, (const T *)in[0].data, (const T *)in[1].data,
                                   (const T *)in[2].data, count)));
    return gd_cuda_launched(args, "swiglu_grad", err);
}

bool run_softmax(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->out[0].shape[0], width = args->out[0].shape[1];
    if (rows == 0 || width == 0)
        return true;
    CU_LAUNCH(softmax_kernel, (unsigned)((rows + ROWS_A_BLOCK - 1) / ROWS_A_BLOCK), ROWS_A_BLOCK * CU_WARP, 0, gd_cuda_stream(), (float *)args->out[0].data,
              (const float *)args->in[0].data, rows, width);
    return gd_cuda_launched(args, "softmax", err);
}

bool run_softmax_grad(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->out[0].shape[0], width = args->out[0].shape[1];
    if (rows == 0 || width == 0)
        return true;
    CU_LAUNCH(softmax_grad_kernel, (unsigned)((rows + ROWS_A_BLOCK - 1) / ROWS_A_BLOCK), ROWS_A_BLOCK * CU_WARP, 0, gd_cuda_stream(),
              (float *)args->out[0].data, (const float *)args->in[0].data, (const float *)args->in[1].data, rows, width);
    return gd_cuda_launched(args, "softmax_grad", err);
}

} // namespace

GD_CUDA_OP(activation, run_activation, NULL)
GD_CUDA_OP(activation_grad, run_activation_grad, NULL)
GD_CUDA_OP(swiglu, run_swiglu, NULL)
GD_CUDA_OP(swiglu_grad, run_swiglu_grad, NULL)
GD_CUDA_OP(softmax, run_softmax, NULL)
GD_CUDA_OP(softmax_grad, run_softmax_grad, NULL)
