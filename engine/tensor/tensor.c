#include "engine/tensor/tensor.h"
#include "engine/tensor/dequant.h"
#include "engine/tensor/kernel.h"
#include <assert.h>

struct dtype_info {
    const char *name;
    int64_t block;
    size_t block_bytes;
};

#define GD_DTYPE_INFO(name, wire, block, bytes) {wire, block, bytes},
static const struct dtype_info dtypes[GD_DTYPE_COUNT] = {GD_DTYPE_LIST(GD_DTYPE_INFO)};
#undef GD_DTYPE_INFO

const char *gd_dtype_name(enum gd_dtype dtype)
{
    assert(dtype < GD_DTYPE_COUNT);
    return dtypes[dtype].name;
}

int64_t gd_dtype_block(enum gd_dtype dtype)
{
    assert(dtype < GD_DTYPE_COUNT);
    return dtypes[dtype].block;
}

size_t gd_dtype_block_bytes(enum gd_dtype dtype)
{
    assert(dtype < GD_DTYPE_COUNT);
    return dtypes[dtype].block_bytes;
}

size_t gd_dtype_bytes(enum gd_dtype dtype, int64_t count)
{
    assert(dtype < GD_DTYPE_COUNT);
    assert(count >= 0);
    assert(count % dtypes[dtype].block == 0);
    return (size_t)(count / dtypes[dtype].block) * dtypes[dtype].block_bytes;
}

int64_t gd_tensor_count(const struct gd_tensor *tensor)
{
    int64_t count = 1;
    for (int i = 0; i < tensor->rank; i++)
        count *= tensor->shape[i];
    return count;
}

/* Shifting the bits into place leaves the exponent 112 too small: an exact product puts that right, subnormals
 * included, and infinity and NaN get their exponent back. Without branches, so that loops over it vectorise. */
static inline float half_value(uint16_t bits)
{
    uint32_t u = (uint32_t)(bits & 0x7FFFu) << 13;
    float f;
    memcpy(&f, &u, 4);
    f *= 0x1p112f;
    memcpy(&u, &f, 4);
    u |= ((bits & 0x7C00u) == 0x7C00u ? 0x7F800000u : 0u) | (uint32_t)(bits & 0x8000u) << 16;
    memcpy(&f, &u, 4);
    return f;
}

float gd_f16_to_f32(uint16_t bits)
{
    return half_value(bits);
}

/* Round to nearest, ties to even; overflow gives infinity; NaN stays NaN. */
uint16_t gd_f32_to_f16(float value)
{
    uint32_t u;
    memcpy(&u, &value, 4);
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
    u &= 0x7FFFFFFFu;
    if (u > 0x7F800000u)
        return (uint16_t)(sign | 0x7E00u | ((u >> 13) & 0x3FFu));
    if (u >= 0x477FF000u) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7C00u);
    if (u < 0x38800000u) { /* below the smallest normal: adding 0.5 puts the rounded mantissa into the low bits */
        float f;
        memcpy(&f, &u, 4);
        f += 0.5f;
        memcpy(&u, &f, 4);
        return (uint16_t)(sign | (u - 0x3F000000u));
    }
    u += 0xFFFu + ((u >> 13) & 1u);
    return (uint16_t)(sign | ((u - 0x38000000u) >> 13));
}

/* Tensors in a file may lie at any address: their elements are read bytewise (vector loads do not mind). */
static inline uint16_t two_bytes_at(const void *data, int64_t i)
{
    uint16_t bits;
    memcpy(&bits, (const char *)data + 2 * i, 2);
    return bits;
}

GD_KERNEL static void bf16_to_f32(float *restrict out, const void *restrict in, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = gd_bf16_to_f32(two_bytes_at(in, i));
}

GD_KERNEL static void f16_to_f32(float *restrict out, const void *restrict in, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = half_value(two_bytes_at(in, i));
}

GD_KERNEL static void f32_to_bf16(uint16_t *restrict out, const float *restrict in, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        out[i] = gd_f32_to_bf16(in[i]);
}

void gd_row_to_f32(float *out, const void *in, enum gd_dtype dtype, int64_t count)
{
    assert(dtype == GD_F32 || dtype == GD_BF16);
    if (dtype == GD_F32)
        memcpy(out, in, (size_t)count * sizeof(float));
    else
        bf16_to_f32(out, in, count);
}

void gd_row_from_f32(void *out, enum gd_dtype dtype, const float *in, int64_t count)
{
    assert(dtype == GD_F32 || dtype == GD_BF16);
    if (dtype == GD_F32)
        memcpy(out, in, (size_t)count * sizeof(float));
    else
        f32_to_bf16(out, in, count);
}

void gd_convert_to_f32(float *out, const void *in, enum gd_dtype dtype, int64_t count)
{
    assert(count % gd_dtype_block(dtype) == 0);
    switch (dtype) {
    case GD_F32:
    case GD_BF16:
        gd_row_to_f32(out, in, dtype, count);
        return;
    case GD_F16:
        f16_to_f32(out, in, count);
        return;
    case GD_I32:
        for (int64_t i = 0; i < count; i++) {
            int32_t integer;
            memcpy(&integer, (const char *)in + 4 * i, 4);
            out[i] = (float)integer;
        }
        return;
    default:
        gd_dequantise(out, in, dtype, count / gd_dtype_block(dtype));
    }
}

void gd_convert_from_f32(void *out, enum gd_dtype dtype, const float *in, int64_t count)
{
    if (dtype == GD_F16) {
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)out)[i] = gd_f32_to_f16(in[i]);
        return;
    }
    gd_row_from_f32(out, dtype, in, count);
}
