/*
 * Layouts and arithmetic of GGUF's block formats. d and m are f16; q is unsigned unless said.
 * Blocks in a file have no alignment, so all fields are read bytewise.
 */
#include "engine/tensor/dequant.h"
#include <assert.h>
#include <math.h>

static float half_at(const uint8_t *bytes)
{
    return gd_f16_to_f32((uint16_t)(bytes[0] | (uint16_t)bytes[1] << 8));
}

/* x = d (q - 8); low nibbles are elements 0..15, high nibbles 16..31. */
static void block_q4_0(float *out, const uint8_t *in)
{
    float d = half_at(in);
    const uint8_t *qs = in + 2;
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)((qs[j] & 15) - 8);
        out[j + 16] = d * (float)((qs[j] >> 4) - 8);
    }
}

/* x = d q + m */
static void block_q4_1(float *out, const uint8_t *in)
{
    float d = half_at(in), m = half_at(in + 2);
    const uint8_t *qs = in + 4;
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)(qs[j] & 15) + m;
        out[j + 16] = d * (float)(qs[j] >> 4) + m;
    }
}

/* The fifth bit of element j is bit j of the word `qh`. */
static uint32_t word_at(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* x = d (q - 16) */
static void block_q5_0(float *out, const uint8_t *in)
{
    float d = half_at(in);
    uint32_t qh = word_at(in + 2);
    const uint8_t *qs = in + 6;
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)((int)((qs[j] & 15u) | ((qh >> j) & 1u) << 4) - 16);
        out[j + 16] = d * (float)((int)((qs[j] >> 4) | ((qh >> (j + 16)) & 1u) << 4) - 16);
    }
}

/* x = d q + m */
static void block_q5_1(float *out, const uint8_t *in)
{
    float d = half_at(in), m = half_at(in + 2);
    uint32_t qh = word_at(in + 4);
    const uint8_t *qs = in + 8;
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)((qs[j] & 15u) | ((qh >> j) & 1u) << 4) + m;
        out[j + 16] = d * (float)((qs[j] >> 4) | ((qh >> (j + 16)) & 1u) << 4) + m;
    }
}

/* x = d q, q signed */
static void block_q8_0(float *out, const uint8_t *in)
{
    float d = half_at(in);
    const int8_t *qs = (const int8_t *)(in + 2);
    for (int j = 0; j < 32; j++)
        out[j] = d * (float)qs[j];
}

/* Sub-block j of eight: a 6-bit scale and a 6-bit min, packed in 12 bytes. */
static void scale_and_min(const uint8_t *scales, int j, float *scale, float *min)
{
    if (j < 4) {
        *scale = (float)(scales[j] & 63);
        *min = (float)(scales[j + 4] & 63);
    } else {
        *scale = (float)((scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4);
        *min = (float)((scales[j + 4] >> 4) | (scales[j] >> 6) << 4);
    }
}

/* x = (d s_j) q - (dmin m_j). Each 32 bytes of qs hold sub-block 2p (low nibbles) and 2p+1 (high nibbles). */
static void block_q4_k(float *out, const uint8_t *in)
{
    float d = half_at(in), dmin = half_at(in + 2);
    const uint8_t *scales = in + 4, *qs = in + 16;
    for (int j = 0; j < 8; j++) {
        float s, m;
        scale_and_min(scales, j, &s, &m);
        float step = d * s, base = dmin * m;
        const uint8_t *q = qs + 32 * (j / 2);
        int shift = 4 * (j & 1);
        for (int l = 0; l < 32; l++)
            out[32 * j + l] = step * (float)((q[l] >> shift) & 15) - base;
    }
}

/* As Q4_K with a fifth bit: bit j of qh[l] belongs to element l of sub-block j. */
static void block_q5_k(float *out, const uint8_t *in)
{
    float d = half_at(in), dmin = half_at(in + 2);
    const uint8_t *scales = in + 4, *qh = in + 16, *qs = in + 48;
    for (int j = 0; j < 8; j++) {
        float s, m;
        scale_and_min(scales, j, &s, &m);
        float step = d * s, base = dmin * m;
        const uint8_t *q = qs + 32 * (j / 2);
        int shift = 4 * (j & 1);
        for (int l = 0; l < 32; l++)
            out[32 * j + l] = step * (float)(((q[l] >> shift) & 15) | ((qh[l] >> j) & 1) << 4) - base;
    }
}

/* Two halves of 128; in each, four groups of 32 share 64 low and 32 high bytes. x = d sc (q - 32). */
static void block_q6_k(float *out, const uint8_t *in)
{
    const int8_t *scales = (const int8_t *)(in + 192);
    float d = half_at(in + 208);
    for (int half = 0; half < 2; half++) {
        const uint8_t *ql = in + 64 * half, *qh = in + 128 + 32 * half;
        const int8_t *sc = scales + 8 * half;
        for (int group = 0; group < 4; group++)
            for (int l = 0; l < 32; l++) {
                int low = (ql[l + 32 * (group & 1)] >> (4 * (group >> 1))) & 15;
                int high = (qh[l] >> (2 * group)) & 3;
                out[128 * half + 32 * group + l] =
                    d * (float)sc[2 * group + l / 16] * (float)((low | high << 4) - 32);
            }
    }
}

/* Quantiles of N(0,1), scaled to [-1, 1], with an exact zero. */
static const float nf4[16] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
                              -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
                              0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,
                              0.7229568362236023f, 1.0f};

static void block_nf4(float *out, const uint8_t *in)
{
    float absmax;
    memcpy(&absmax, in, 4);
    for (int j = 0; j < 32; j++) {
        out[2 * j] = absmax * nf4[in[4 + j] >> 4];
        out[2 * j + 1] = absmax * nf4[in[4 + j] & 15];
    }
}

static uint8_t nf4_code(float x)
{
    uint8_t code = 0;
    while (code < 15 && x > 0.5f * (nf4[code] + nf4[code + 1]))
        code++;
    return code;
}

void gd_quantise_nf4(void *out, const float *in, int64_t blocks)
{
    for (int64_t i = 0; i < blocks; i++) {
        const float *x = in + 64 * i;
        uint8_t *to = (uint8_t *)out + 36 * i;
        float absmax = 0;
        for (int j = 0; j < 64; j++)
            absmax = fabsf(x[j]) > absmax ? fabsf(x[j]) : absmax;
        memcpy(to, &absmax, 4);
        float by = absmax > 0 ? 1.0f / absmax : 0.0f;
        for (int j = 0; j < 32; j++)
            to[4 + j] = (uint8_t)(nf4_code(x[2 * j] * by) << 4 | nf4_code(x[2 * j + 1] * by));
    }
}

void gd_dequantise(float *out, const void *in, enum gd_dtype dtype, int64_t blocks)
{
    static void (*const decoders[GD_DTYPE_COUNT])(float *, const uint8_t *) = {
        [GD_Q4_0] = block_q4_0, [GD_Q4_1] = block_q4_1, [GD_Q5_0] = block_q5_0, [GD_Q5_1] = block_q5_1,
        [GD_Q8_0] = block_q8_0, [GD_Q4_K] = block_q4_k, [GD_Q5_K] = block_q5_k, [GD_Q6_K] = block_q6_k,
        [GD_NF4] = block_nf4,
    };
    assert(decoders[dtype] != NULL);
    int64_t width = gd_dtype_block(dtype);
    size_t bytes = gd_dtype_block_bytes(dtype);
    for (int64_t i = 0; i < blocks; i++)
        decoders[dtype](out + i * width, (const uint8_t *)in + (size_t)i * bytes);
}
