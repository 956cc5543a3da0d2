/*
 * rope: a block for each row makes the cosines and sines of its position once, as the CPU does (ops/rope.c): the angle is
 * rounded to f32, from there on double, with the period taken off in two parts, so that positions of any size keep their
 * digits. Then all heads are rotated by them.
 */
#include "cuda/map.h"

namespace {

struct turn {
    const float *inv_freq;      /* the table of most rows; the one of long sequences is `second` floats behind */
    int64_t second;
    double factor, sign;
};

CU_FN void angle_of(float *cosine, float *sine, float angle, double factor, double sign)
{
    const double magic = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to an integer in the low bits */
    double shifted = (double)angle * 0.63661977236758134308 + magic, n = shifted - magic;
    double r = (double)angle - n * 1.57079632679489655800 - n * 6.12323399573676603587e-17, z = r * r;
    double s = r * (1 + z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880)))));
    double c = 1 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 - z * (1.0 / 3628800)))));
    unsigned long long quadrant = (unsigned long long)__double_as_longlong(shifted);
    double x = quadrant & 1 ? s : c, y = quadrant & 1 ? c : s;
    *cosine = (float)(factor * ((quadrant + 1) & 2 ? -x : x));
    *sine = (float)(factor * sign * (quadrant & 2 ? -y : y));
}

template <typename T, int N>
__global__ void rope_kernel(T *y, const T *x, const int32_t *positions, struct turn turn, int64_t width, int64_t head_dim, int64_t half)
{
    CU_DYN_SHARED(float, cosine);
    float *sine = cosine + half;
    int32_t position = positions[blockIdx.x];
    const float *inv_freq = turn.inv_freq + (position & GD_POSITION_LONG ? turn.second : 0);
    for (int64_t d = threadIdx.x; d < half; d += blockDim.x)
        angle_of(&cosine[d], &sine[d], (float)(position & ~GD_POSITION_LONG) * inv_freq[d], turn.factor, turn.sign);
    __syncthreads();
    const T *from = x + blockIdx.x * width;
    T *to = y + blockIdx.x * width;
    int64_t pairs = half / N, passing = (head_dim - 2 * half) / N, units = pairs + passing;
    for (int64_t i = threadIdx.x; i < width / head_dim * units; i += blockDim.x) {
        int64_t head = i / units * head_dim, unit = i % units;
        float low[N], high[N];
        if (unit < pairs) {
            int64_t d = unit * N;
            gd_load_pack<N>(low, from + head + d);
            gd_load_pack<N>(high, from + head + half + d);
#pragma unroll
            for (int k = 0; k < N; k++) {
                float at = low[k], c = cosine[d + k], s = sine[d + k];
                low[k] = at * c - high[k] * s;
                high[k] = high[k] * c + at * s;
            }
            gd_store_pack<N>(to + head + d, low);
            gd_store_pack<N>(to + head + half + d, high);
        } else {
            int64_t d = head + 2 * half + (unit - pairs) * N;
            gd_load_pack<N>(low, from + d);
            gd_store_pack<N>(to + d, low);
        }
    }
}

bool run_rope(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *y = &args->out[0];
    int64_t rows = y->shape[0], width = y->shape[1], head_dim = args->params->i[0], half = args->params->i[2], table = args->params->i[3];
    if (rows == 0 || width == 0)
        return true;
    struct turn turn = {(const float *)args->in[2].data + table * half, args->in[2].shape[0] / half > table + 1 ? half : 0,
                        args->params->f[0], (double)args->params->i[1]};
    size_t half_bytes = gd_dtype_bytes(x->dtype, half);
    bool packed = gd_cuda_packed(half_bytes, x->data, y->data) && gd_dtype_bytes(x->dtype, head_dim) % 16 == 0;
    GD_BY_ACT(y->dtype, T,
              GD_BY_PACK(packed, T, N,
                         CU_LAUNCH((rope_kernel<T, N>), (unsigned)rows, GD_CUDA_THREADS, 2 * (size_t)half * sizeof(float),
                                   gd_cuda_stream(), (T *)y->data, (const T *)x->data, (const int32_t *)args->in[1].data, turn, width,
                                   head_dim, half)));
    return gd_cuda_launched(args, "rope", err);
}

} // namespace

GD_CUDA_OP(rope, run_rope, NULL)
