/* rope: a block for each row makes the cosines and sines of its position once. Then all heads are rotated by them. */
#include "cuda/rope.h"

namespace {

template <typename T, int N>
__global__ void rope_kernel(T *y, const T *x, const int32_t *positions, struct gd_turn turn, int64_t width, int64_t head_dim, int64_t half)
{
    CU_DYN_SHARED(float, cosine);
    float *sine = cosine + half;
    gd_turn_angles(cosine, sine, positions, turn, half);
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
    int64_t rows = y->shape[0], width = y->shape[1], head_dim = args->params->i[0], half = args->params->i[2];
    if (rows == 0 || width == 0)
        return true;
    size_t half_bytes = gd_dtype_bytes(x->dtype, half);
    bool packed = gd_cuda_packed(half_bytes, x->data, y->data) && gd_dtype_bytes(x->dtype, head_dim) % 16 == 0;
    GD_BY_ACT(y->dtype, T,
              GD_BY_PACK(packed, T, N,
                         CU_LAUNCH((rope_kernel<T, N>), (unsigned)rows, GD_CUDA_THREADS, 2 * (size_t)half * sizeof(float),
                                   gd_cuda_stream(), (T *)y->data, (const T *)x->data, (const int32_t *)args->in[1].data, gd_turn_of(args), width,
                                   head_dim, half)));
    return gd_cuda_launched(args, "rope", err);
}

} // namespace

GD_CUDA_OP(rope, run_rope, NULL)
