/*
 * blocks.h - eight elements of a block of a quantised format, in a thread's registers.
 *
 * Why      Products, gathers and norms all read weights as the file has them; the arithmetic is that of dequant.c.
 * Memory   none
 * Threads  each for itself
 * Errors   none
 * Limits   The first block lies at a multiple of 4; so do all of NF4, and all others at even addresses. Eight elements share a
 *          step and a base.
 * Life     none
 */
#ifndef GD_CUDA_BLOCKS_H
#define GD_CUDA_BLOCKS_H

#include "cuda/device.h"

extern "C" {
#include "engine/tensor/tensor.h"
}

template <int DTYPE> struct gd_blocks;
#define GD_BLOCKS_ENTRY(name, wire, block, block_bytes)            \
    template <> struct gd_blocks<GD_##name> {                      \
        static constexpr int width = block, bytes = block_bytes;   \
    };
GD_DTYPE_LIST(GD_BLOCKS_ENTRY)
#undef GD_BLOCKS_ENTRY

/* Does `...` with D as a quantised dtype; nothing where it is none. */
#define GD_BY_BLOCKS(dtype, D, ...)                                                        \
    do {                                                                                   \
        switch (dtype) {                                                                   \
        case GD_Q4_0: { constexpr int D = GD_Q4_0; __VA_ARGS__; break; }                   \
        case GD_Q4_1: { constexpr int D = GD_Q4_1; __VA_ARGS__; break; }                   \
        case GD_Q5_0: { constexpr int D = GD_Q5_0; __VA_ARGS__; break; }                   \
        case GD_Q5_1: { constexpr int D = GD_Q5_1; __VA_ARGS__; break; }                   \
        case GD_Q8_0: { constexpr int D = GD_Q8_0; __VA_ARGS__; break; }                   \
        case GD_Q4_K: { constexpr int D = GD_Q4_K; __VA_ARGS__; break; }                   \
        case GD_Q5_K: { constexpr int D = GD_Q5_K; __VA_ARGS__; break; }                   \
        case GD_Q6_K: { constexpr int D = GD_Q6_K; __VA_ARGS__; break; }                   \
        case GD_NF4: { constexpr int D = GD_NF4; __VA_ARGS__; break; }                     \
        default: break;                                                                    \
        }                                                                                  \
    } while (0)

CU_FN uint32_t gd_half_word(const uint8_t *at)
{
    return *(const uint16_t *)at;
}

CU_FN uint32_t gd_word(const uint8_t *at)
{
    return gd_half_word(at) | gd_half_word(at + 2) << 16;
}

CU_FN float gd_half(const uint8_t *at)
{
    return f16_to_f32(*(const uint16_t *)at);
}

/* The quantile of an NF4 code (dequant.c). */
CU_FN float gd_nf4(int code)
{
    switch (code) {
    case 0: return -1.0f;
    case 1: return -0.6961928009986877f;
    case 2: return -0.5250730514526367f;
    case 3: return -0.39491748809814453f;
    case 4: return -0.28444138169288635f;
    case 5: return -0.18477343022823334f;
    case 6: return -0.09105003625154495f;
    case 7: return 0.0f;
    case 8: return 0.07958029955625534f;
    case 9: return 0.16093020141124725f;
    case 10: return 0.24611230194568634f;
    case 11: return 0.33791524171829224f;
    case 12: return 0.44070982933044434f;
    case 13: return 0.5626170039176941f;
    case 14: return 0.7229568362236023f;
    default: return 1.0f;
    }
}

/* `quantiles` becomes what gd_unpack8 reads of NF4: all threads of a block of at least 16 call it, a barrier included. */
template <int D> CU_FN void gd_unpack_begin(float *quantiles)
{
    if (D != GD_NF4)
        return;
    if (threadIdx.x < 16)
        quantiles[threadIdx.x] = gd_nf4((int)threadIdx.x);
    __syncthreads();
}

/* Step and base of part j of a Q4_K or Q5_K block. */
CU_FN void gd_part_of_k(float *step, float *base, const uint8_t *block, int j)
{
    const uint8_t *scales = block + 4;
    int s = j < 4 ? scales[j] & 63 : (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4;
    int m = j < 4 ? scales[j + 4] & 63 : (scales[j + 4] >> 4) | (scales[j] >> 6) << 4;
    *step = gd_half(block) * (float)s;
    *base = -(gd_half(block + 2) * (float)m);
}

/* Elements 8 chunk .. 8 chunk + 7 of a block. */
template <int D> CU_FN void gd_unpack8(float *w, const uint8_t *block, int chunk, const float *quantiles)
{
    constexpr bool part_of_32 = D == GD_Q4_0 || D == GD_Q4_1 || D == GD_Q5_0 || D == GD_Q5_1;
    float step, base;
    if constexpr (part_of_32) {
        constexpr bool based = D == GD_Q4_1 || D == GD_Q5_1, fifth = D == GD_Q5_0 || D == GD_Q5_1;
        const uint8_t *at = block + 2 + (based ? 2 : 0), *codes = at + (fifth ? 4 : 0) + 8 * (chunk & 1);
        uint32_t fifths = fifth ? gd_word(at) >> (8 * chunk) : 0;
        step = gd_half(block);
        base = based ? gd_half(block + 2) : 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i += 4) {
            uint32_t four = (gd_word(codes + i) >> (4 * (chunk >> 1))) & 0x0F0F0F0Fu;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int q = (int)((four >> (8 * j)) & 15u) | (int)((fifths >> (i + j)) & 1u) << 4;
                w[i + j] = based ? step * (float)q + base : step * (float)(q - (fifth ? 16 : 8));
            }
        }
    } else if constexpr (D == GD_Q8_0) {
        step = gd_half(block);
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            uint32_t two = gd_half_word(block + 2 + 8 * chunk + i);
            w[i] = step * (float)(int8_t)(two & 255u);
            w[i + 1] = step * (float)(int8_t)(two >> 8);
        }
    } else if constexpr (D == GD_Q4_K || D == GD_Q5_K) {
        int part = chunk >> 2, first = 8 * (chunk & 3);
        gd_part_of_k(&step, &base, block, part);
        const uint8_t *codes = block + (D == GD_Q4_K ? 16 : 48) + 32 * (part >> 1) + first;
#pragma unroll
        for (int i = 0; i < 8; i += 4) {
            uint32_t four = (gd_word(codes + i) >> (4 * (part & 1))) & 0x0F0F0F0Fu;
            if (D == GD_Q5_K)
                four |= ((gd_word(block + 16 + first + i) >> part) & 0x01010101u) << 4;
#pragma unroll
            for (int j = 0; j < 4; j++)
                w[i + j] = step * (float)((four >> (8 * j)) & 31u) + base;
        }
    } else if constexpr (D == GD_Q6_K) {
        int half = chunk >> 4, group = (chunk >> 2) & 3, first = 8 * (chunk & 3);
        const uint8_t *codes = block + 64 * half + 32 * (group & 1) + first, *more = block + 128 + 32 * half + first;
        step = gd_half(block + 208) * (float)(int8_t)block[192 + (chunk >> 1)];
#pragma unroll
        for (int i = 0; i < 8; i += 4) {
            uint32_t four = (gd_word(codes + i) >> (4 * (group >> 1))) & 0x0F0F0F0Fu;
            four |= ((gd_word(more + i) >> (2 * group)) & 0x03030303u) << 4;
#pragma unroll
            for (int j = 0; j < 4; j++)
                w[i + j] = step * (float)((int)((four >> (8 * j)) & 63u) - 32);
        }
    } else if constexpr (D == GD_NF4) {
        uint32_t codes = gd_word(block + 4 + 4 * chunk);
        float absmax = *(const float *)block;
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            w[i] = absmax * quantiles[(codes >> (4 * i + 4)) & 15u];
            w[i + 1] = absmax * quantiles[(codes >> (4 * i)) & 15u];
        }
    }
}

#endif
