/*
 * Layouts and arithmetic of GGUF's block formats. d and m are f16; q is unsigned unless said.
 * Blocks in a file have no alignment, so all fields are read bytewise.
 */
#include "engine/tensor/dequant.h"
#include "engine/tensor/kernel.h"
#include <assert.h>
#include <math.h>

GD_INLINE float half_at(const uint8_t *bytes)
{
    return gd_f16_to_f32((uint16_t)(bytes[0] | (uint16_t)bytes[1] << 8));
}

/* ---- codes: q, and for each part its step and base ---- */

/* Low nibbles are elements 0..15, high nibbles 16..31. */
GD_INLINE void nibbles(uint8_t *q, const uint8_t *in)
{
    typedef uint8_t bytes __attribute__((vector_size(16)));
    bytes packed, low, high;
    memcpy(&packed, in, 16);
    low = packed & 15;
    high = packed >> 4;
    memcpy(q, &low, 16);
    memcpy(q + 16, &high, 16);
}

/* The fifth bit of element j is bit j of the word `high`. */
GD_INLINE void fifth_bits(uint8_t *q, uint32_t high)
{
    for (int j = 0; j < 32; j++)
        q[j] = (uint8_t)(q[j] | ((high >> j) & 1u) << 4);
}

GD_INLINE uint32_t word_at(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

GD_INLINE void codes_Q4_0(struct gd_block_codes *codes, const uint8_t *in)
{
    codes->step[0] = half_at(in);
    nibbles(codes->q, in + 2);
}

GD_INLINE void codes_Q4_1(struct gd_block_codes *codes, const uint8_t *in)
{
    codes->step[0] = half_at(in);
    codes->base[0] = half_at(in + 2);
    nibbles(codes->q, in + 4);
}

GD_INLINE void codes_Q5_0(struct gd_block_codes *codes, const uint8_t *in)
{
    codes->step[0] = half_at(in);
    nibbles(codes->q, in + 6);
    fifth_bits(codes->q, word_at(in + 2));
}

GD_INLINE void codes_Q5_1(struct gd_block_codes *codes, const uint8_t *in)
{
    codes->step[0] = half_at(in);
    codes->base[0] = half_at(in + 2);
    nibbles(codes->q, in + 8);
    fifth_bits(codes->q, word_at(in + 4));
}

GD_INLINE void codes_Q8_0(struct gd_block_codes *codes, const uint8_t *in)
{
    codes->step[0] = half_at(in);
    for (int j = 0; j < 32; j++)
        codes->q[j] = (uint8_t)(in[2 + j] ^ 0x80); /* signed to its distance from -128 */
}

/* Part j of eight: a 6-bit scale and a 6-bit min, packed in 12 bytes; step d s, base -dmin m. */
GD_INLINE void scales_and_mins(struct gd_block_codes *codes, const uint8_t *in)
{
    float d = half_at(in), dmin = half_at(in + 2);
    const uint8_t *scales = in + 4;
    for (int j = 0; j < 8; j++) {
        int s = j < 4 ? scales[j] & 63 : (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4;
        int m = j < 4 ? scales[j + 4] & 63 : (scales[j + 4] >> 4) | (scales[j] >> 6) << 4;
        codes->step[j] = d * (float)s;
        codes->base[j] = -(dmin * (float)m);
    }
}

/* Each 32 bytes hold part 2p (low nibbles) and 2p + 1 (high nibbles). */
GD_INLINE void codes_Q4_K(struct gd_block_codes *codes, const uint8_t *in)
{
    scales_and_mins(codes, in);
    for (int pair = 0; pair < 4; pair++)
        for (int l = 0; l < 32; l++) {
            codes->q[64 * pair + l] = in[16 + 32 * pair + l] & 15;
            codes->q[64 * pair + 32 + l] = in[16 + 32 * pair + l] >> 4;
        }
}

/* As Q4_K with a fifth bit: bit j of high[l] belongs to element l of part j. */
GD_INLINE void codes_Q5_K(struct gd_block_codes *codes, const uint8_t *in)
{
    const uint8_t *high = in + 16, *low = in + 48;
    scales_and_mins(codes, in);
    for (int j = 0; j < 8; j++)
        for (int l = 0; l < 32; l++)
            codes->q[32 * j + l] = (uint8_t)(((low[32 * (j / 2) + l] >> (4 * (j & 1))) & 15) | ((high[l] >> j) & 1) << 4);
}

/* Two halves of 128; in each, four groups of 32 share 64 low and 32 high bytes. Parts of 16. */
GD_INLINE void codes_Q6_K(struct gd_block_codes *codes, const uint8_t *in)
{
    float d = half_at(in + 208);
    for (int j = 0; j < 16; j++)
        codes->step[j] = d * (float)(int8_t)in[192 + j];
    for (int half = 0; half < 2; half++)
        for (int group = 0; group < 4; group++) {
            const uint8_t *low = in + 64 * half + 32 * (group & 1), *high = in + 128 + 32 * half;
            for (int l = 0; l < 32; l++)
                codes->q[128 * half + 32 * group + l] =
                    (uint8_t)(((low[l] >> (4 * (group >> 1))) & 15) | ((high[l] >> (2 * group)) & 3) << 4);
        }
}

/*    dtype  block  part  bits  offset  based */
#define FORMATS(X)                    \
    X(Q4_0, 32, 32, 4, 8, false)          \
    X(Q4_1, 32, 32, 4, 0, true)           \
    X(Q5_0, 32, 32, 5, 16, false)         \
    X(Q5_1, 32, 32, 5, 0, true)           \
    X(Q8_0, 32, 32, 8, 128, false)        \
    X(Q4_K, 256, 32, 4, 0, true)           \
    X(Q5_K, 256, 32, 5, 0, true)           \
    X(Q6_K, 256, 16, 6, 32, false)

#define BATCH 8 /* blocks whose codes are written before they are read: at once, reads would wait for narrower writes */

/* A loop for each format, with what is constant in it. */
#define DECODER(name, width, part, bits, offset, based)                                                                 \
    GD_KERNEL static void decode_##name(float *out, const uint8_t *in, int64_t blocks, int64_t bytes)                   \
    {                                                                                                                   \
        struct gd_block_codes codes[BATCH];                                                                             \
        for (int64_t begin = 0; begin < blocks; begin += BATCH) {                                                       \
            int64_t count = blocks - begin < BATCH ? blocks - begin : BATCH;                                            \
            for (int64_t i = 0; i < count; i++)                                                                         \
                codes_##name(&codes[i], in + (begin + i) * bytes);                                                      \
            for (int64_t i = 0; i < count; i++)                                                                         \
                for (int p = 0; p < width / part; p++) {                                                                \
                    float step = codes[i].step[p], base = codes[i].base[p], *to = out + (begin + i) * width + p * part; \
                    for (int j = 0; j < part; j++) {                                                                    \
                        int q = codes[i].q[p * part + j];                                                               \
                        to[j] = based ? step * (float)q + base : step * (float)(q - offset);                            \
                    }                                                                                                   \
                }                                                                                                       \
        }                                                                                                               \
    }
FORMATS(DECODER)
#undef DECODER

#define FORMAT(name, width, part, bits, offset, based) [GD_##name] = {{part, bits, offset, based}, codes_##name, decode_##name},
static const struct format {
    struct gd_block_form form;
    void (*codes)(struct gd_block_codes *codes, const uint8_t *in);
    void (*decode)(float *out, const uint8_t *in, int64_t blocks, int64_t bytes);
} formats[GD_DTYPE_COUNT] = {FORMATS(FORMAT)};
#undef FORMAT

const struct gd_block_form *gd_block_form(enum gd_dtype dtype)
{
    return formats[dtype].codes != NULL ? &formats[dtype].form : NULL;
}

void gd_block_codes(struct gd_block_codes *codes, const void *block, enum gd_dtype dtype)
{
    formats[dtype].codes(codes, block);
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
    int64_t width = gd_dtype_block(dtype), bytes = (int64_t)gd_dtype_block_bytes(dtype);
    if (dtype != GD_NF4) {
        assert(formats[dtype].decode != NULL);
        formats[dtype].decode(out, in, blocks, bytes);
        return;
    }
    for (int64_t i = 0; i < blocks; i++)
        block_nf4(out + i * width, (const uint8_t *)in + i * bytes);
}
