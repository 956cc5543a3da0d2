/*
 * device_ptx.h - the primitives of device.h on a GPU: all asm of the project.
 *
 * Why      Few wrappers can be checked line by line; everything else in cuda/ is plain C++ that also runs in the emulator.
 * Memory   none
 * Threads  Whole warps, convergent, unless a line says otherwise.
 * Errors   none
 * Limits   sm_80 and later.
 * Life     none
 */
#ifndef GD_CUDA_DEVICE_PTX_H
#define GD_CUDA_DEVICE_PTX_H

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#define CU_FN __device__ __forceinline__

#define CU_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define CU_SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__
#define CU_DYN_SHARED(type, name)                                          \
    extern __shared__ __align__(16) unsigned char gd_dynamic_shared[];     \
    type *name = reinterpret_cast<type *>(gd_dynamic_shared)

struct bf16 {
    uint16_t bits;
};

CU_FN float to_f32(bf16 value)
{
    return __uint_as_float((unsigned)value.bits << 16);
}

CU_FN bf16 to_bf16(float value)
{
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
    return out;
}

CU_FN unsigned pack_bf16(float low, float high)
{
    unsigned out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

CU_FN float f16_to_f32(uint16_t bits)
{
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
    return out;
}

CU_FN uint16_t f32_to_f16(float value)
{
    uint16_t out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(value));
    return out;
}

CU_FN float fast_exp2(float value)
{
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(value));
    return out;
}

CU_FN unsigned shared_address(const void *pointer)
{
    return (unsigned)__cvta_generic_to_shared(pointer);
}

CU_FN void ldmatrix_x4(unsigned *r, const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

CU_FN void ldmatrix_x4_trans(unsigned *r, const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

CU_FN void mma_bf16(float *d, const unsigned *a, unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <int NT> CU_FN void mma_bf16_row(float (*d)[4], const unsigned *a, const unsigned (*b)[2])
{
#pragma unroll
    for (int i = 0; i < NT; i++)
        mma_bf16(d[i], a, b[i][0], b[i][1]);
}

CU_FN void cp_async16(void *shared, const void *global, int source_bytes = 16)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
                 : "memory");
}

CU_FN void cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int GROUPS> CU_FN void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" : : "n"(GROUPS) : "memory");
}

/* Butterflies: every lane gets the same bits, and the emulator adds in this order too. */
template <class T> CU_FN T warp_sum(T value)
{
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2)
        value += __shfl_xor_sync(~0u, value, lane);
    return value;
}

template <class T> CU_FN T warp_max(T value)
{
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
        T other = __shfl_xor_sync(~0u, value, lane);
        value = value > other ? value : other;
    }
    return value;
}

template <class T> CU_FN T quad_sum(T value)
{
    value += __shfl_xor_sync(~0u, value, 2);
    value += __shfl_xor_sync(~0u, value, 1);
    return value;
}

template <class T> CU_FN T quad_max(T value)
{
    T other = __shfl_xor_sync(~0u, value, 2);
    value = value > other ? value : other;
    other = __shfl_xor_sync(~0u, value, 1);
    return value > other ? value : other;
}

#endif
