/*
 * Norms with what stands beside them, as one kernel each (pair.h): the sums of the norm are in the same order as in norm.cu, and
 * what lies between is rounded as if it had been stored, so that the bits are those of two kernels.
 */
#include "cuda/norm.h"
#include "cuda/rope.h"
extern "C" {
#include "cuda/pair.h"
}

namespace {

/* ---- u = a + b, y = norm(u): u may lie where a does; NULL: nobody else reads it ---- */

template <typename T> CU_FN float as_stored(float value)
{
    return to_f32(from_f32<T>(value));
}

template <typename T> struct added_rows {
    T *u;
    const T *a, *b;
    template <int N> CU_FN void sum(float (&out)[N], int64_t at) const
    {
        float vb[N];
        gd_load_pack<N>(out, a + at);
        gd_load_pack<N>(vb, b + at);
#pragma unroll
        for (int k = 0; k < N; k++)
            out[k] = as_stored<T>(out[k] + vb[k]);
    }
    template <int N> CU_FN void first(float (&out)[N], int64_t at) const
    {
        sum<N>(out, at);
        if (u != NULL)
            gd_store_pack<N>(u + at, out);
    }
    /* What was stored, for a may have lain there. */
    template <int N> CU_FN void again(float (&out)[N], int64_t at) const
    {
        if (u != NULL)
            gd_load_pack<N>(out, u + at);
        else
            sum<N>(out, at);
    }
};

struct added {
    const struct gd_tensor *a, *b, *u, *y;
    int64_t count, width;
    bool packed;
};

struct added added_of(const struct gd_kernel_args *add, const struct gd_kernel_args *norm)
{
    struct added out = {&add->in[0], &add->in[1], &add->out[0], &norm->out[0], norm->out[0].shape[0], norm->out[0].shape[1], false};
    out.packed = gd_cuda_packed(gd_dtype_bytes(out.y->dtype, out.width), out.a->data, out.b->data, out.u->data, out.y->data);
    return out;
}

template <typename W>
bool launch_add_rms_norm(W weights, const struct gd_kernel_args *add, const struct gd_kernel_args *norm, struct gd_error *err)
{
    struct added of = added_of(add, norm);
    if (of.count > 0 && of.width > 0)
        GD_NORM_LAUNCH(of.y->dtype, of.packed, of.count, of.width, gd_rms_norm_kernel, GD_COMMA W GD_COMMA added_rows<T>, (T *)of.y->data,
                       (float *)norm->out[1].data, (added_rows<T>{(T *)of.u->data, (const T *)of.a->data, (const T *)of.b->data}), weights,
                       (float)norm->params->f[0], (float)norm->params->f[1], of.count, of.width, 1);
    return gd_cuda_launched(norm, "add and rms_norm", err);
}

template <typename W>
bool launch_add_layer_norm(W weights, const struct gd_kernel_args *add, const struct gd_kernel_args *norm, struct gd_error *err)
{
    struct added of = added_of(add, norm);
    if (of.count > 0 && of.width > 0)
        GD_NORM_LAUNCH(of.y->dtype, of.packed, of.count, of.width, gd_layer_norm_kernel, GD_COMMA W GD_COMMA added_rows<T>, (T *)of.y->data,
                       (float *)norm->out[1].data, (float *)norm->out[2].data,
                       (added_rows<T>{(T *)of.u->data, (const T *)of.a->data, (const T *)of.b->data}), weights,
                       (float)norm->params->f[0], of.count, of.width);
    return gd_cuda_launched(norm, "add and layer_norm", err);
}

/* ---- norm of heads and rotation: a block for each row, a warp for each head, which lies in shared memory between the two ---- */

/* The heads of a row. */
struct heads {
    int64_t count, dim, half; /* 2 half dimensions are rotated */
};

/* 2 half floats of angles, then a head for each warp. */
size_t shared_bytes(struct heads heads)
{
    return (size_t)(2 * heads.half + GD_NORM_WARPS * heads.dim) * sizeof(float);
}

template <typename T> CU_FN void rotate(float *head, const float *cosine, const float *sine, int64_t half)
{
    for (int64_t d = threadIdx.x % CU_WARP; d < half; d += CU_WARP) {
        float low = head[d], high = head[d + half];
        head[d] = as_stored<T>(low * cosine[d] - high * sine[d]);
        head[d + half] = as_stored<T>(high * cosine[d] + low * sine[d]);
    }
}

template <typename T, int N> CU_FN void store_head(T *to, const float *head, int64_t dim)
{
    for (int64_t j = threadIdx.x % CU_WARP * N; j < dim; j += CU_WARP * N) {
        float v[N];
#pragma unroll
        for (int k = 0; k < N; k++)
            v[k] = head[j + k];
        gd_store_pack<N>(to + j, v);
    }
}

template <typename T, int N, typename W>
__global__ void rms_norm_rope_kernel(T *y, T *between, float *inverse_rms, const T *x, W weights, float eps, float offset,
                                     const int32_t *positions, struct gd_turn turn, struct heads heads)
{
    CU_DYN_SHARED(float, cosine);
    float *sine = cosine + heads.half, *head = sine + heads.half + threadIdx.x / CU_WARP * heads.dim;
    gd_turn_angles(cosine, sine, positions, turn, heads.half);
    const float *w = weights.weight(blockIdx.x);
    int64_t first = threadIdx.x % CU_WARP * N, step = CU_WARP * N;
    for (int64_t h = threadIdx.x / CU_WARP; h < heads.count; h += GD_NORM_WARPS) {
        int64_t t = blockIdx.x * heads.count + h;
        float sum = 0;
        for (int64_t j = first; j < heads.dim; j += step) {
            float v[N];
            gd_load_pack<N>(v, x + t * heads.dim + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                sum += v[k] * v[k];
        }
        float inverse = 1.0f / sqrtf(warp_sum(sum) / (float)heads.dim + eps);
        if (first == 0)
            inverse_rms[t] = inverse;
        for (int64_t j = first; j < heads.dim; j += step) {
            float v[N], by[N];
            gd_load_pack<N>(v, x + t * heads.dim + j);
            gd_load_floats<N>(by, w + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                head[j + k] = v[k] = as_stored<T>(v[k] * inverse * (by[k] + offset));
            if (between != NULL)
                gd_store_pack<N>(between + t * heads.dim + j, v);
        }
        __syncwarp();
        rotate<T>(head, cosine, sine, heads.half);
        __syncwarp();
        store_head<T, N>(y + t * heads.dim, head, heads.dim);
        __syncwarp(); /* the next head is written */
    }
}

/* dy, of what was rotated, is rotated back; `between` is that. */
template <typename T, int N>
__global__ void rope_rms_norm_grad_kernel(T *dx, T *between, const T *dy, const int32_t *positions, struct gd_turn turn, const T *x,
                                          const float *w, const float *inverse_rms, float offset, struct heads heads)
{
    CU_DYN_SHARED(float, cosine);
    float *sine = cosine + heads.half, *head = sine + heads.half + threadIdx.x / CU_WARP * heads.dim;
    gd_turn_angles(cosine, sine, positions, turn, heads.half);
    int64_t first = threadIdx.x % CU_WARP * N, step = CU_WARP * N;
    for (int64_t h = threadIdx.x / CU_WARP; h < heads.count; h += GD_NORM_WARPS) {
        int64_t t = blockIdx.x * heads.count + h;
        for (int64_t j = first; j < heads.dim; j += step) {
            float d[N];
            gd_load_pack<N>(d, dy + t * heads.dim + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                head[j + k] = d[k];
        }
        __syncwarp();
        rotate<T>(head, cosine, sine, heads.half);
        __syncwarp();
        if (between != NULL)
            store_head<T, N>(between + t * heads.dim, head, heads.dim);
        float r = inverse_rms[t], sum = 0;
        for (int64_t j = first; j < heads.dim; j += step) {
            float v[N], by[N];
            gd_load_pack<N>(v, x + t * heads.dim + j);
            gd_load_floats<N>(by, w + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                sum += (by[k] + offset) * head[j + k] * v[k];
        }
        float factor = warp_sum(sum) * r * r * r / (float)heads.dim;
        for (int64_t j = first; j < heads.dim; j += step) {
            float v[N], by[N];
            gd_load_pack<N>(v, x + t * heads.dim + j);
            gd_load_floats<N>(by, w + j);
#pragma unroll
            for (int k = 0; k < N; k++)
                v[k] = r * (by[k] + offset) * head[j + k] - factor * v[k];
            gd_store_pack<N>(dx + t * heads.dim + j, v);
        }
        __syncwarp();
    }
}

struct heads heads_of(const struct gd_kernel_args *rope)
{
    return heads{rope->out[0].shape[1] / rope->params->i[0], rope->params->i[0], rope->params->i[2]};
}

template <typename W>
bool launch_rms_norm_rope(W weights, const struct gd_kernel_args *norm, const struct gd_kernel_args *rope, struct gd_error *err)
{
    const struct gd_tensor *x = &norm->in[0], *between = &norm->out[0], *y = &rope->out[0];
    struct heads heads = heads_of(rope);
    bool packed = gd_cuda_packed(gd_dtype_bytes(x->dtype, heads.dim), x->data, between->data, y->data);
    if (y->shape[0] > 0 && y->shape[1] > 0)
        GD_BY_ACT(y->dtype, T,
                  GD_BY_PACK(packed, T, N,
                             CU_LAUNCH((rms_norm_rope_kernel<T, N, W>), (unsigned)y->shape[0], GD_NORM_WARPS * CU_WARP, shared_bytes(heads),
                                       gd_cuda_stream(), (T *)y->data, (T *)between->data, (float *)norm->out[1].data, (const T *)x->data,
                                       weights, (float)norm->params->f[0], (float)norm->params->f[1], (const int32_t *)rope->in[1].data,
                                       gd_turn_of(rope), heads)));
    return gd_cuda_launched(rope, "rms_norm and rope", err);
}

} // namespace

bool gd_cuda_add_rms_norm(const struct gd_kernel_args *add, const struct gd_kernel_args *norm, struct gd_error *err)
{
    const float *w = gd_norm_operand(norm, 1);
    if (norm->in[2].rank == 0)
        return launch_add_rms_norm(gd_plain_norm{w, NULL}, add, norm, err);
    return launch_add_rms_norm(gd_worn_norm{(const struct gd_cuda_wear *)norm->staged, (int)norm->params->i[0], w, NULL}, add, norm, err);
}

bool gd_cuda_add_layer_norm(const struct gd_kernel_args *add, const struct gd_kernel_args *norm, struct gd_error *err)
{
    const float *w = gd_norm_operand(norm, 1), *b = gd_norm_operand(norm, 2);
    if (norm->in[3].rank == 0)
        return launch_add_layer_norm(gd_plain_norm{w, b}, add, norm, err);
    return launch_add_layer_norm(gd_worn_norm{(const struct gd_cuda_wear *)norm->staged, (int)norm->params->i[0], w, b}, add, norm, err);
}

bool gd_cuda_rms_norm_rope(const struct gd_kernel_args *norm, const struct gd_kernel_args *rope, struct gd_error *err)
{
    const float *w = gd_norm_operand(norm, 1);
    if (norm->in[2].rank == 0)
        return launch_rms_norm_rope(gd_plain_norm{w, NULL}, norm, rope, err);
    return launch_rms_norm_rope(gd_worn_norm{(const struct gd_cuda_wear *)norm->staged, (int)norm->params->i[0], w, NULL}, norm, rope, err);
}

bool gd_cuda_rope_rms_norm_grad(const struct gd_kernel_args *rope, const struct gd_kernel_args *norm, struct gd_error *err)
{
    const struct gd_tensor *x = &norm->in[0], *dy = &rope->in[0], *between = &rope->out[0], *dx = &norm->out[0];
    struct heads heads = heads_of(rope);
    bool packed = gd_cuda_packed(gd_dtype_bytes(x->dtype, heads.dim), x->data, dy->data, between->data, dx->data);
    if (dx->shape[0] > 0 && dx->shape[1] > 0)
        GD_BY_ACT(dx->dtype, T,
                  GD_BY_PACK(packed, T, N,
                             CU_LAUNCH((rope_rms_norm_grad_kernel<T, N>), (unsigned)dx->shape[0], GD_NORM_WARPS * CU_WARP,
                                       shared_bytes(heads), gd_cuda_stream(), (T *)dx->data, (T *)between->data, (const T *)dy->data,
                                       (const int32_t *)rope->in[1].data, gd_turn_of(rope), (const T *)x->data, gd_norm_operand(norm, 1),
                                       (const float *)norm->in[2].data, (float)norm->params->f[0], heads)));
    return gd_cuda_launched(norm, "rope and rms_norm_grad", err);
}
