/* Every asm of cuda/device_ptx.h once: tests/cuda/ptx/check holds the lines against expected.txt. */
#include "cuda/device.h"

extern "C" __global__ void wrappers(unsigned *out, const float *in, uint16_t *halves, int bytes)
{
    CU_SHARED(unsigned, tile, [512]);
    unsigned r[4], b[2][2] = {{1, 2}, {3, 4}};
    float d[2][4] = {};
    cp_async16(tile + threadIdx.x * 4, in + threadIdx.x * 4, bytes);
    cp_async_commit();
    cp_async_wait<1>();
    cp_async_wait<0>();
    __syncthreads();
    ldmatrix_x4(r, tile + threadIdx.x * 4);
    mma_bf16(d[0], r, b[0][0], b[0][1]);
    ldmatrix_x4_trans(r, tile + threadIdx.x * 4);
    mma_bf16_row<2>(d, r, b);
    out[threadIdx.x] = pack_bf16(d[0][0], d[0][1]) + to_bf16(d[0][2]).bits;
    halves[threadIdx.x] = f32_to_f16(fast_exp2(d[1][0]) + f16_to_f32(halves[threadIdx.x + 32]));
}
