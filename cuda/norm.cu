/*
 * rms_norm, layer_norm and their backward passes: a warp for each short vector, a block for each long one. A vector is read
 * twice (the second time from the cache), so that no length has a limit.
 */
#include "cuda/column_sums.h"
#include "cuda/norm.h"

namespace {

/* Where it is NULL: zeros. It may lie where the output does. */
template <int N, typename T> CU_FN void load_addend(float (&out)[N], const T *addend, int64_t at)
{
#pragma unroll
    for (int k = 0; k < N; k++)
        out[k] = 0;
    if (addend != NULL)
        gd_load_pack<N>(out, addend + at);
}

template <typename T, int N, bool SHORT_ROWS>
__global__ void rms_norm_grad_kernel(T *dx, const T *x, const float *w, const float *inverse_rms, const T *dy, const T *addend, float offset,
                                     int64_t count, int64_t width)
{
    int64_t t = gd_norm_vector<SHORT_ROWS>(), first = gd_norm_lane<SHORT_ROWS>() * N, step = gd_norm_stride<SHORT_ROWS, N>();
    if (t < count) {
        float r = inverse_rms[t], sum = 0;
        for (int64_t j = first; j < width; j += step) {
            float v[N], d[N], by[N];
            gd_load_pack<N>(v, x + t * width + j);
            gd_load_pack<N>(d, dy + t * width + j);
            gd_load_floats<N>(by, w + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                sum += (by[k] + offset) * d[k] * v[k];
        }
        float factor = gd_norm_sum<SHORT_ROWS>(sum) * r * r * r / (float)width;
        for (int64_t j = first; j < width; j += step) {
            float v[N], d[N], by[N], plus[N];
            gd_load_pack<N>(v, x + t * width + j);
            gd_load_pack<N>(d, dy + t * width + j);
            gd_load_floats<N>(by, w + j);
            load_addend<N>(plus, addend, t * width + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                v[k] = plus[k] + (r * (by[k] + offset) * d[k] - factor * v[k]);
            gd_store_pack<N>(dx + t * width + j, v);
        }
    }
}

template <typename T, int N, bool SHORT_ROWS>
__global__ void layer_norm_grad_kernel(T *dx, const T *x, const float *w, const float *means, const float *inverses, const T *dy,
                                       const T *addend, int64_t count, int64_t width)
{
    int64_t t = gd_norm_vector<SHORT_ROWS>(), first = gd_norm_lane<SHORT_ROWS>() * N, step = gd_norm_stride<SHORT_ROWS, N>();
    if (t < count) {
        float r = inverses[t], mean = means[t], sum = 0, product = 0;
        for (int64_t j = first; j < width; j += step) {
            float v[N], d[N], by[N];
            gd_load_pack<N>(v, x + t * width + j);
            gd_load_pack<N>(d, dy + t * width + j);
            gd_load_floats<N>(by, w + j);
#pragma unroll
            for (int k = 0; k < N; k++) {
                sum += by[k] * d[k];
                product += by[k] * d[k] * (v[k] - mean);
            }
        }
        float shift = gd_norm_sum<SHORT_ROWS>(sum) / (float)width, factor = gd_norm_sum<SHORT_ROWS>(product) * r * r / (float)width;
        for (int64_t j = first; j < width; j += step) {
            float v[N], d[N], by[N], plus[N];
            gd_load_pack<N>(v, x + t * width + j);
            gd_load_pack<N>(d, dy + t * width + j);
            gd_load_floats<N>(by, w + j);
            load_addend<N>(plus, addend, t * width + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                v[k] = plus[k] + r * (by[k] * d[k] - shift - factor * (v[k] - mean));
            gd_store_pack<N>(dx + t * width + j, v);
        }
    }
}

/* dy[t][j] (x[t][j] - mean[t]) inverse[t]; no means: 0. */
template <typename T> struct of_weight {
    const T *dy, *x;
    const float *means, *inverses;
    int64_t width;
    CU_FN float operator()(int64_t t, int64_t j) const
    {
        float mean = means != NULL ? means[t] : 0.0f;
        return to_f32(dy[t * width + j]) * (to_f32(x[t * width + j]) - mean) * inverses[t];
    }
};

template <typename T> struct of_bias {
    const T *dy;
    int64_t width;
    CU_FN float operator()(int64_t t, int64_t j) const
    {
        return to_f32(dy[t * width + j]);
    }
};

template <typename W> void run_rms_norm_with(W weights, const struct gd_kernel_args *args)
{
    const struct gd_tensor *x = &args->in[0], *y = &args->out[0];
    int64_t width = args->in[1].shape[0], heads = x->shape[1] / width, count = x->shape[0] * heads;
    float eps = (float)args->params->f[0], offset = (float)args->params->f[1];
    bool packed = gd_cuda_packed(gd_dtype_bytes(x->dtype, width), x->data, y->data);
    GD_NORM_LAUNCH(x->dtype, packed, count, width, gd_rms_norm_kernel, GD_COMMA W GD_COMMA gd_stored_rows<T>, (T *)y->data,
                   (float *)args->out[1].data, gd_stored_rows<T>{(const T *)x->data}, weights, eps, offset, count, width, heads);
}

bool run_rms_norm(const struct gd_kernel_args *args, struct gd_error *err)
{
    const float *w = gd_norm_operand(args, 1);
    if (gd_tensor_count(&args->in[0]) == 0)
        return true;
    if (args->in[2].rank != 0)
        run_rms_norm_with(gd_worn_norm{(const struct gd_cuda_wear *)args->staged, (int)args->params->i[0], w, NULL}, args);
    else
        run_rms_norm_with(gd_plain_norm{w, NULL}, args);
    return gd_cuda_launched(args, "rms_norm", err);
}

size_t rms_norm_grad_scratch(const struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *w = call->in[1];
    return call->params.i[0] ? gd_column_sums_bytes(x->shape[0] * (x->shape[1] / w->shape[0]), w->shape[0]) : 0;
}

bool run_rms_norm_grad(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *dy = &args->in[3], *dx = &args->out[0];
    int64_t width = args->in[1].shape[0], count = x->shape[0] * (x->shape[1] / width);
    const float *w = gd_norm_operand(args, 1), *inverse = (const float *)args->in[2].data;
    const void *addend = args->in[4].data;
    bool packed = gd_cuda_packed(gd_dtype_bytes(x->dtype, width), x->data, dy->data, dx->data, addend);
    if (args->params->i[0])
        GD_BY_ACT(x->dtype, T, gd_column_sums(of_weight<T>{(const T *)dy->data, (const T *)x->data, NULL, inverse, width},
                                              (float *)args->out[1].data, count, width, args->scratch));
    if (count > 0)
        GD_NORM_LAUNCH(x->dtype, packed, count, width, rms_norm_grad_kernel, , (T *)dx->data, (const T *)x->data, w, inverse,
                   (const T *)dy->data, (const T *)addend, (float)args->params->f[0], count, width);
    return gd_cuda_launched(args, "rms_norm_grad", err);
}

template <typename W> void run_layer_norm_with(W weights, const struct gd_kernel_args *args)
{
    const struct gd_tensor *x = &args->in[0], *y = &args->out[0];
    int64_t count = x->shape[0], width = x->shape[1];
    bool packed = gd_cuda_packed(gd_dtype_bytes(x->dtype, width), x->data, y->data);
    GD_NORM_LAUNCH(x->dtype, packed, count, width, gd_layer_norm_kernel, GD_COMMA W GD_COMMA gd_stored_rows<T>, (T *)y->data,
                   (float *)args->out[1].data, (float *)args->out[2].data, gd_stored_rows<T>{(const T *)x->data}, weights, (float)args->params->f[0], count, width);
}

bool run_layer_norm(const struct gd_kernel_args *args, struct gd_error *err)
{
    const float *w = gd_norm_operand(args, 1), *b = gd_norm_operand(args, 2);
    if (args->in[0].shape[0] == 0)
        return true;
    if (args->in[3].rank != 0)
        run_layer_norm_with(gd_worn_norm{(const struct gd_cuda_wear *)args->staged, (int)args->params->i[0], w, b}, args);
    else
        run_layer_norm_with(gd_plain_norm{w, b}, args);
    return gd_cuda_launched(args, "layer_norm", err);
}

size_t layer_norm_grad_scratch(const struct gd_call *call)
{
    return call->params.i[0] || call->params.i[1] ? gd_column_sums_bytes(call->in[0]->shape[0], call->in[0]->shape[1]) : 0;
}

bool run_layer_norm_grad(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *dy = &args->in[4], *dx = &args->out[0];
    int64_t count = x->shape[0], width = x->shape[1];
    const float *w = gd_norm_operand(args, 1), *means = (const float *)args->in[2].data, *inverses = (const float *)args->in[3].data;
    const void *addend = args->in[5].data;
    bool packed = gd_cuda_packed(gd_dtype_bytes(x->dtype, width), x->data, dy->data, dx->data, addend);
    if (args->params->i[0])
        GD_BY_ACT(x->dtype, T, gd_column_sums(of_weight<T>{(const T *)dy->data, (const T *)x->data, means, inverses, width},
                                              (float *)args->out[1].data, count, width, args->scratch));
    if (args->params->i[1])
        GD_BY_ACT(x->dtype, T, gd_column_sums(of_bias<T>{(const T *)dy->data, width}, (float *)args->out[2].data, count, width,
                                              args->scratch));
    if (count > 0)
        GD_NORM_LAUNCH(x->dtype, packed, count, width, layer_norm_grad_kernel, , (T *)dx->data, (const T *)x->data, w, means, inverses,
                   (const T *)dy->data, (const T *)addend, count, width);
    return gd_cuda_launched(args, "layer_norm_grad", err);
}

} // namespace

GD_CUDA_STAGED_OP(rms_norm, run_rms_norm, NULL, gd_cuda_wear_staged_bytes, gd_cuda_wear_stage)
GD_CUDA_OP(rms_norm_grad, run_rms_norm_grad, rms_norm_grad_scratch)
GD_CUDA_STAGED_OP(layer_norm, run_layer_norm, NULL, gd_cuda_wear_staged_bytes, gd_cuda_wear_stage)
GD_CUDA_OP(layer_norm_grad, run_layer_norm_grad, layer_norm_grad_scratch)
