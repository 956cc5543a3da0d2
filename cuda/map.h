/*
 * map.h - functions of elements, and choosing how wide a thread's loads are.
 *
 * Why      Ops by element differ in one line; the rest is how to read and write 16 bytes at a time.
 * Memory   Outputs may lie where an input lies.
 * Threads  engine thread; launches on gd_cuda_stream()
 * Errors   none; who launches asks gd_cuda_launched
 * Limits   none
 * Life     none
 */
#ifndef GD_CUDA_MAP_H
#define GD_CUDA_MAP_H

#include "cuda/kernel.h"

#define GD_CUDA_THREADS 256

/* Whether rows of `row_bytes` bytes at these addresses can be moved 16 bytes at a time. */
template <class... P> static inline bool gd_cuda_packed(size_t row_bytes, const P *...pointers)
{
    return row_bytes % 16 == 0 && (((uintptr_t)pointers % 16 == 0) && ...);
}

/* Does `...` with N as the elements of type T that a thread moves at once. */
#define GD_BY_PACK(packed, T, N, ...)                  \
    do {                                               \
        if (packed) {                                  \
            constexpr int N = (int)(16 / sizeof(T));   \
            __VA_ARGS__;                               \
        } else {                                       \
            constexpr int N = 1;                       \
            __VA_ARGS__;                               \
        }                                              \
    } while (0)

/* Elements of frozen weights that are kept as their file has them. */
struct gd_f16 {
    uint16_t bits;
};

CU_FN float to_f32(gd_f16 value)
{
    return f16_to_f32(value.bits);
}

CU_FN int64_t gd_cuda_thread()
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

CU_FN int64_t gd_cuda_threads()
{
    return (int64_t)gridDim.x * blockDim.x;
}

/* N elements as f32, from an address that is a multiple of their size. */
template <int N, typename T> CU_FN void gd_load_pack(float (&out)[N], const T *from)
{
    cu_vector<T, N> pack = *reinterpret_cast<const cu_vector<T, N> *>(from);
#pragma unroll
    for (int i = 0; i < N; i++)
        out[i] = to_f32(pack.v[i]);
}

template <int N, typename T> CU_FN void gd_store_pack(T *to, const float (&values)[N])
{
    cu_vector<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; i++)
        pack.v[i] = from_f32<T>(values[i]);
    *reinterpret_cast<cu_vector<T, N> *>(to) = pack;
}

/* N floats from any address of a float: vectors of whatever alignment that rows are combined with. */
template <int N> CU_FN void gd_load_floats(float (&out)[N], const float *from)
{
    if constexpr (N % 4 == 0) {
        if (reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll
            for (int i = 0; i < N; i += 4) {
                cu_vector<float, 4> four = *reinterpret_cast<const cu_vector<float, 4> *>(from + i);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    out[i + k] = four.v[k];
            }
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        out[i] = from[i];
}

/* y[i] = f(a[i], b[i]); functions of one value leave the second alone. `packs` of the elements are moved 16 bytes at a time. */
template <typename T, typename F> __global__ void gd_map_kernel(F f, T *y, const T *a, const T *b, int64_t count, int64_t packs)
{
    constexpr int N = (int)(16 / sizeof(T));
    for (int64_t i = gd_cuda_thread(); i < packs; i += gd_cuda_threads()) {
        float va[N], vb[N];
        gd_load_pack<N>(va, a + i * N);
        gd_load_pack<N>(vb, b + i * N);
#pragma unroll
        for (int k = 0; k < N; k++)
            va[k] = f(va[k], vb[k]);
        gd_store_pack<N>(y + i * N, va);
    }
    for (int64_t i = packs * N + gd_cuda_thread(); i < count; i += gd_cuda_threads())
        y[i] = from_f32<T>(f(to_f32(a[i]), to_f32(b[i])));
}

template <typename T, typename F> static inline void gd_map(F f, T *y, const T *a, const T *b, int64_t count)
{
    constexpr int64_t N = 16 / sizeof(T);
    int64_t packs = gd_cuda_packed(0, y, a, b) ? count / N : 0, units = packs > 0 ? packs : count;
    CU_LAUNCH((gd_map_kernel<T, F>), gd_cuda_blocks(units, GD_CUDA_THREADS), GD_CUDA_THREADS, 0, gd_cuda_stream(), f, y, a, b, count,
              packs);
}

/* An op of one or two inputs (`b` NULL: the first stands for both, and is read from the cache). */
template <typename F>
static inline bool gd_map_run(F f, const struct gd_kernel_args *args, const struct gd_tensor *b, const char *op, struct gd_error *err)
{
    const struct gd_tensor *y = &args->out[0], *a = &args->in[0];
    int64_t count = gd_tensor_count(y);
    if (count == 0)
        return true;
    GD_BY_ACT(y->dtype, T, gd_map((f), (T *)y->data, (const T *)a->data, (const T *)(b != NULL ? b->data : a->data), count));
    return gd_cuda_launched(args, op, err);
}

#endif
