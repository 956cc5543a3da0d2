/*
 * tensor.h - dtypes, shapes, and plain views of memory.
 *
 * Why      Kernels see pointers and sizes and nothing else.
 * Memory   A gd_tensor borrows its data.
 * Threads  Any; pure functions.
 * Errors   none
 * Limits   GD_RANK_MAX dimensions, row-major, contiguous; sizes in elements unless a name says _bytes.
 * Life     none
 */
#ifndef GD_TENSOR_TENSOR_H
#define GD_TENSOR_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define GD_RANK_MAX 4

/*    name     wire     block  block bytes   (block-quantised layouts: GGUF) */
#define GD_DTYPE_LIST(X)          \
    X(F32,    "F32",   1,   4)    \
    X(BF16,   "BF16",  1,   2)    \
    X(F16,    "F16",   1,   2)    \
    X(I32,    "I32",   1,   4)    \
    X(HANDLE, "HANDLE", 1,  1)    \
    X(Q4_0,   "Q4_0",  32,  18)   \
    X(Q4_1,   "Q4_1",  32,  20)   \
    X(Q5_0,   "Q5_0",  32,  22)   \
    X(Q5_1,   "Q5_1",  32,  24)   \
    X(Q8_0,   "Q8_0",  32,  34)   \
    X(Q4_K,   "Q4_K",  256, 144)  \
    X(Q5_K,   "Q5_K",  256, 176)  \
    X(Q6_K,   "Q6_K",  256, 210)  \
    X(NF4,    "NF4",   64,  36)   /* not GGUF's: made in memory (dequant.h) */

#define GD_DTYPE_ENUM(name, wire, block, bytes) GD_##name,
enum gd_dtype { GD_DTYPE_LIST(GD_DTYPE_ENUM) GD_DTYPE_COUNT };
#undef GD_DTYPE_ENUM

struct gd_tensor {
    enum gd_dtype dtype;
    int rank;                      /* 0 = absent */
    int64_t shape[GD_RANK_MAX];    /* shape[rank-1] is contiguous */
    void *data;
};

const char *gd_dtype_name(enum gd_dtype dtype);
int64_t gd_dtype_block(enum gd_dtype dtype);        /* elements in a block: 1, 32 or 256 */
size_t gd_dtype_block_bytes(enum gd_dtype dtype);
/* Bytes of `count` contiguous elements; `count` must be a multiple of the block. */
size_t gd_dtype_bytes(enum gd_dtype dtype, int64_t count);
int64_t gd_tensor_count(const struct gd_tensor *tensor);   /* product of the shape */

/* Of a position: its sequence is longer than what the model was first trained for, and goes by a rope of its own (gd_rope). */
#define GD_POSITION_LONG (1 << 30)

static inline float gd_bf16_to_f32(uint16_t bits)
{
    uint32_t u = (uint32_t)bits << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint16_t gd_f32_to_bf16(float value) /* round to nearest even; NaN stays NaN */
{
    uint32_t u;
    memcpy(&u, &value, 4);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

float gd_f16_to_f32(uint16_t bits);
uint16_t gd_f32_to_f16(float value);

/* Any dtype (quantised too; count a multiple of the block) to f32, and f32 to F32/BF16/F16. */
void gd_convert_to_f32(float *out, const void *in, enum gd_dtype dtype, int64_t count);
void gd_convert_from_f32(void *out, enum gd_dtype dtype, const float *in, int64_t count);

#endif
