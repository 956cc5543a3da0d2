/*
 * attention.h - what the kernels of attention share: which keys a row sees, the bias between them, tiles of rows.
 *
 * Why      Forward, backward and serving cut the batch, mask and cap scores in one way (the CPU's attention_blocks.h).
 * Memory   Tiles of a block's dynamic shared memory, all of them within GD_ATTENTION_SHARED_MAX.
 * Threads  Functions on tiles are called by all threads of a block.
 * Errors   none
 * Limits   Rows and keys fit 32 bits.
 * Life     none
 *
 * Tiles of a segment are found without a list: with tiles of n rows, segment s has the places from cu[s] / n + s on, which are
 * enough for it and lie before those of s + 1. So a grid of T / n + S + 1 places serves every cut of the batch; places behind a
 * segment's end have no rows. Rows behind the last segment count as one more segment.
 *
 * A row i sees a key j where lo <= i - j + shift <= hi: shift is 0 among the rows of a segment; for its prefix it moves that
 * right before the segment.
 */
#ifndef GD_CUDA_ATTENTION_H
#define GD_CUDA_ATTENTION_H

#include "cuda/kernel.h"
#include <math.h>

extern "C" {
#include "engine/tensor/kv.h"
}

#define GD_ATTENTION_FAR 2147483647
#define GD_ATTENTION_LOG2_E 1.44269504088896340736f
#define GD_ATTENTION_LN_2 0.69314718055994530942f
#define GD_ATTENTION_NOTHING (-1e30f) /* maximum of no scores: finite, so that it makes no NaN */

#define GD_ATTENTION_ROWS 64          /* of a block on the tensor cores: four warps of 16 */
#define GD_ATTENTION_MMA_MAX 256      /* head sizes up to this have kernels on the tensor cores */
#define GD_ATTENTION_SHARED_MAX (99 * 1024) /* what a block may have on sm_86, sm_89 and sm_120, the least of all that run it */

struct attention_shape {
    int rows, key_rows, segments;
    int heads, kv_heads, group, head_dim;
    int lo, hi;                  /* distances that are seen */
    int cross;
    float scale, softcap;        /* softcap 0: none */
    int bias_distance;           /* 0: no position bias */
    int vectors;                 /* rows of every head begin at a multiple of 16 bytes */
};

struct attention_offsets {
    const int *cu, *prefix, *key_cu; /* the last two or NULL */
};

/* Numbers to add to scores, by distance: [heads][2 bias_distance + 1], times log2(e); the buckets of the distances follow. */
struct attention_bias {
    const float *table;
    const int *bucket;
};

struct attention_tile {
    int segment, begin, end;     /* rows; begin == end: none */
};

struct attention_part {
    int begin, end, shift;       /* keys; begin >= end: none */
};

/* The largest s <= segments with cu[s] * factor / rows_a_tile + s <= place. All segments together have whole tiles for `used` places, so
 * that s is at least place - used; where no rows follow that one, it is the one, as most are in a batch of few segments. */
CU_FN attention_tile attention_find_tile(const int *cu, int segments, int rows, int rows_a_tile, int factor, int place)
{
    int used = (int)((long long)cu[segments] * factor / rows_a_tile), s = place > used ? place - used : 0, above = segments + 1;
    if (s >= segments)
        s = segments;
    else if (s > 0 && cu[s] == cu[segments])
        above = s + 1;
    while (above - s > 1) {
        int middle = s + (above - s) / 2;
        if ((int)((long long)cu[middle] * factor / rows_a_tile) + middle <= place)
            s = middle;
        else
            above = middle;
    }
    long long first = (long long)cu[s] * factor, end = (long long)(s < segments ? cu[s + 1] : rows) * factor;
    long long begin = first + (long long)(place - (int)(first / rows_a_tile) - s) * rows_a_tile;
    attention_tile tile = {s, (int)(begin < end ? begin : end), (int)(begin + rows_a_tile < end ? begin + rows_a_tile : end)};
    return tile;
}

/* part 0: the prefix of segment s, or its keys in cross attention; 1: its own rows. */
CU_FN attention_part attention_part_of(const attention_shape &n, const attention_offsets &at, int s, int part)
{
    attention_part keys = {0, 0, 0};
    if (n.cross) {
        if (part == 0) {
            keys.begin = at.key_cu[s];
            keys.end = at.key_cu[s + 1];
        }
    } else if (part == 1) {
        keys.begin = at.cu[s];
        keys.end = at.cu[s + 1];
    } else if (at.prefix != NULL) {
        keys.begin = at.prefix[2 * s];
        keys.end = at.prefix[2 * s + 1];
        keys.shift = keys.end - at.cu[s];
    }
    return keys;
}

/* The keys of a part that some row of [begin, end) sees. */
CU_FN attention_part attention_seen_keys(const attention_shape &n, attention_part keys, int begin, int end)
{
    long long first = (long long)begin + keys.shift - n.hi, last = (long long)end - 1 + keys.shift - n.lo;
    keys.begin = first > keys.begin ? (int)(first < keys.end ? first : keys.end) : keys.begin;
    keys.end = last + 1 < keys.end ? (int)(last + 1 > keys.begin ? last + 1 : keys.begin) : keys.end;
    return keys;
}

/* Both parts of a tile of rows. */
CU_FN void attention_keys_of(const attention_shape &n, const attention_offsets &at, const attention_tile &tile, attention_part *parts)
{
#pragma unroll
    for (int part = 0; part < 2; part++)
        parts[part] = attention_seen_keys(n, attention_part_of(n, at, tile.segment, part), tile.begin, tile.end);
}

/* The rows of [begin, end) that see some key of [key, key_end). */
CU_FN attention_part attention_seeing_rows(const attention_shape &n, int begin, int end, int shift, int key, int key_end)
{
    long long first = (long long)key - shift + n.lo, last = (long long)key_end - 1 - shift + n.hi;
    attention_part rows = {begin, end, shift};
    rows.begin = first > begin ? (int)(first < end ? first : end) : begin;
    rows.end = last + 1 < end ? (int)(last + 1 > rows.begin ? last + 1 : rows.begin) : end;
    return rows;
}

CU_FN bool attention_sees(const attention_shape &n, int distance)
{
    return distance >= n.lo && distance <= n.hi;
}

/* Whether all rows from `row` to `last_row` see all keys from `key` to `last_key`. */
CU_FN bool attention_sees_all(const attention_shape &n, int row, int last_row, int key, int last_key, int shift)
{
    return row - last_key + shift >= n.lo && last_row - key + shift <= n.hi;
}

CU_FN int attention_bias_place(const attention_shape &n, int distance)
{
    int far = n.bias_distance;
    return distance < -far ? 0 : distance > far ? 2 * far : distance + far;
}

CU_FN float attention_bias_of(const attention_shape &n, const attention_bias &bias, int head, int distance)
{
    return bias.table[(long long)head * (2 * n.bias_distance + 1) + attention_bias_place(n, distance)];
}

/* The exponent in base 2 of a product q.k, without the bias. */
CU_FN float attention_exponent(const attention_shape &n, float product)
{
    if (n.softcap > 0)
        return n.softcap * GD_ATTENTION_LOG2_E * tanhf(product * n.scale / n.softcap);
    return product * (n.scale * GD_ATTENTION_LOG2_E);
}

/* The same, and the slope of the score. */
CU_FN float attention_exponent_slope(const attention_shape &n, float product, float *slope)
{
    if (n.softcap > 0) {
        float t = tanhf(product * n.scale / n.softcap);
        *slope = n.scale * (1 - t * t);
        return n.softcap * GD_ATTENTION_LOG2_E * t;
    }
    *slope = n.scale;
    return product * (n.scale * GD_ATTENTION_LOG2_E);
}

/* ---- tiles of bf16 rows in shared memory, PADDED + 8 elements apart: no bank conflicts ---- */

/* How kernels on the tensor cores are made up for heads of up to PADDED: the rows or keys that come by, tile by tile. */
template <int PADDED> struct attention_tiles {
    static constexpr int forward_keys = PADDED <= 128 ? 64 : 32; /* the sums of wide heads leave room for fewer scores */
    static constexpr int backward_keys = PADDED <= 64 ? 64 : PADDED <= 128 ? 32 : 16;
    static constexpr int backward_rows = PADDED <= 128 ? 32 : 16;
    static constexpr int page = GD_KV_PAGE_TOKENS;
    static constexpr int halves = PADDED > 128 ? 2 : 1; /* of the columns of two sums: each has its own four warps */
    static constexpr int columns = PADDED / halves;
};

/* `count` rows of head_dim elements, `row` apart, into a tile of ROWS; the rest is zero. Committed and waited for by the caller. */
template <int PADDED, int ROWS> CU_FN void attention_load_tile(bf16 *tile, const bf16 *from, long long row, int count, int head_dim, int vectors)
{
    const int pitch = PADDED + 8;
    if (vectors) {
        for (int i = (int)threadIdx.x; i < ROWS * (PADDED / 8); i += (int)blockDim.x) {
            int r = i / (PADDED / 8), c = i % (PADDED / 8) * 8;
            bool there = r < count && c < head_dim;
            cp_async16(tile + r * pitch + c, there ? from + r * row + c : from, there ? 16 : 0);
        }
    } else {
        for (int i = (int)threadIdx.x; i < ROWS * PADDED; i += (int)blockDim.x) {
            int r = i / PADDED, c = i % PADDED;
            bf16 zero = {0};
            tile[r * pitch + c] = r < count && c < head_dim ? from[r * row + c] : zero;
        }
    }
}

/* Widest group of columns' tiles that divides PADDED / 8. */
template <int PADDED> struct attention_wide {
    static constexpr int tiles = PADDED % 64 == 0 ? 8 : PADDED % 32 == 0 ? 4 : 2;
};

/* s += a b^T of the columns [k, k + 16). */
template <int PADDED, int NT> CU_FN void attention_product_step(float (*s)[4], const bf16 *a, const bf16 *b, int k)
{
    const int pitch = PADDED + 8, lane = (int)threadIdx.x % 32;
    const bf16 *from_a = a + lane % 16 * pitch + lane / 16 * 8, *from_b = b + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8;
    unsigned left[4], right[NT][2];
    ldmatrix_x4(left, from_a + k);
#pragma unroll
    for (int i = 0; i < NT; i += 2)
        ldmatrix_x4(&right[i][0], from_b + i * 8 * pitch + k);
    mma_bf16_row<NT>(s, left, right);
}

template <int NT> CU_FN void attention_zero(float (*s)[4])
{
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[i][e] = 0;
}

/* s[16 rows of a][8 NT rows of b] = a b^T, both of PADDED columns. a: where the warp's rows begin. */
template <int PADDED, int NT> CU_FN void attention_products(float (*s)[4], const bf16 *a, const bf16 *b)
{
    attention_zero<NT>(s);
#pragma unroll
    for (int k = 0; k < PADDED; k += 16)
        attention_product_step<PADDED, NT>(s, a, b, k);
}

/* s = a b^T and t = c d^T. Tiles of 16 rows take turns: one product alone waits for its own sums. */
template <int PADDED, int NT>
CU_FN void attention_two_products(float (*s)[4], const bf16 *a, const bf16 *b, float (*t)[4], const bf16 *c, const bf16 *d)
{
    if (NT > 2) {
        attention_products<PADDED, NT>(s, a, b);
        attention_products<PADDED, NT>(t, c, d);
        return;
    }
    attention_zero<NT>(s);
    attention_zero<NT>(t);
#pragma unroll
    for (int k = 0; k < PADDED; k += 16) {
        attention_product_step<PADDED, NT>(s, a, b, k);
        attention_product_step<PADDED, NT>(t, c, d, k);
    }
}

/* sum[16][COLUMNS] += p b, p: [16][8 NT] as products left it, b: [8 NT] rows of a tile of pitch PADDED + 8, from its first column. */
template <int PADDED, int COLUMNS, int NT> CU_FN void attention_add_products(float (*sum)[4], float (*p)[4], const bf16 *b)
{
    const int pitch = PADDED + 8, lane = (int)threadIdx.x % 32, wide = attention_wide<COLUMNS>::tiles;
    const bf16 *from = b + lane % 16 * pitch + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < NT; k += 2) {
        unsigned left[4] = {pack_bf16(p[k][0], p[k][1]), pack_bf16(p[k][2], p[k][3]), pack_bf16(p[k + 1][0], p[k + 1][1]),
                            pack_bf16(p[k + 1][2], p[k + 1][3])};
#pragma unroll
        for (int c = 0; c < COLUMNS / 8; c += wide) {
            unsigned right[wide][2];
#pragma unroll
            for (int i = 0; i < wide; i += 2)
                ldmatrix_x4_trans(&right[i][0], from + k * 8 * pitch + (c + i) * 8);
            mma_bf16_row<wide>(sum + c, left, right);
        }
    }
}

template <int NT> CU_FN void attention_scale(float (*s)[4], const attention_shape &n)
{
    float scale = n.scale * GD_ATTENTION_LOG2_E;
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[i][e] *= scale;
}

/*
 * Products of 16 rows to scores in base 2. `apart`: from either half's row to key 0, `head`: its head. Which form this takes is the
 * op's, not the tile's: in serving a row's bits must not depend on who else sees the tile.
 */
template <int NT>
CU_FN void attention_scores(float (*s)[4], const attention_shape &n, const attention_bias &bias, const int *head, const int *apart, int key)
{
    int column = key + (int)threadIdx.x % 4 * 2;
    if (n.softcap == 0 && n.bias_distance == 0) {
        attention_scale<NT>(s, n);
    } else {
#pragma unroll
        for (int i = 0; i < NT; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[i][e] = attention_exponent(n, s[i][e]);
                if (n.bias_distance > 0)
                    s[i][e] += attention_bias_of(n, bias, head[e / 2], apart[e / 2] - (column + i * 8 + e % 2));
            }
    }
}

/* Scores of keys that a row does not see become -inf. */
template <int NT> CU_FN void attention_mask(float (*s)[4], const attention_shape &n, const int *apart, int key, int end)
{
    int column = key + (int)threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int j = column + i * 8 + e % 2;
            s[i][e] = j < end && attention_sees(n, apart[e / 2] - j) ? s[i][e] : -INFINITY;
        }
}

/* Scores of 16 rows to their weights, in place: maximum and sum of the rows are brought up to date, and DT tiles of their output. */
template <int NT, int DT> CU_FN void attention_soften(float (*s)[4], float (*sum)[4], float *most, float *total)
{
    float top[2] = {most[0], most[1]}, fade[2];
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            top[e / 2] = fmaxf(top[e / 2], s[i][e]);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        top[half] = quad_max(top[half]);
        fade[half] = fast_exp2(most[half] - top[half]);
        most[half] = top[half];
        total[half] *= fade[half];
    }
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[i][e] = fast_exp2(s[i][e] - most[e / 2]);
            total[e / 2] += s[i][e];
        }
#pragma unroll
    for (int i = 0; i < DT; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            sum[i][e] *= fade[e / 2];
}

/* Two columns of a row of head_dim elements. */
CU_FN void attention_store_pair(bf16 *row, int column, int head_dim, float a, float b)
{
    if (head_dim % 2 == 0) {
        if (column < head_dim)
            *reinterpret_cast<unsigned *>(row + column) = pack_bf16(a, b);
        return;
    }
    if (column < head_dim)
        row[column] = to_bf16(a);
    if (column + 1 < head_dim)
        row[column + 1] = to_bf16(b);
}

/* ---- on the host ---- */

static inline attention_shape attention_shape_of(const struct gd_op_params *params, long long rows, long long key_rows, long long segments, bool cross)
{
    attention_shape n = {};
    int window = (int)params->i[3];
    bool both = params->i[5] != 0;
    n.rows = (int)rows;
    n.key_rows = (int)key_rows;
    n.segments = (int)segments;
    n.heads = (int)params->i[0];
    n.kv_heads = (int)params->i[1];
    n.group = n.heads / n.kv_heads;
    n.head_dim = (int)params->i[2];
    n.hi = window > 0 ? window - 1 : GD_ATTENTION_FAR;
    n.lo = both || cross ? -n.hi : 0;
    n.cross = cross;
    n.scale = (float)params->f[0];
    n.softcap = (float)params->f[1];
    n.bias_distance = params->i[6] > 0 ? (int)params->i[7] : 0;
    return n;
}

static inline bool attention_is_aligned(const void *pointer, int bytes)
{
    return (uintptr_t)pointer % (uintptr_t)bytes == 0;
}

static inline size_t attention_round(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* Bytes of a bias' table and buckets. */
static inline size_t attention_bias_bytes(const struct gd_op_params *params)
{
    if (params->i[6] == 0)
        return 0;
    return attention_round((size_t)(params->i[0] + 1) * (size_t)(2 * params->i[7] + 1) * sizeof(float));
}

/* Launches the making of the table in scratch. bias: f32 [buckets, heads]. (attention.cu) */
attention_bias gd_cuda_attention_bias(void *scratch, const struct gd_op_params *params, const float *bias);

/* A kernel that takes more than the 48 KiB of dynamic shared memory that need no asking. */
static inline bool attention_allow_shared(const void *kernel, size_t bytes, const char *op, struct gd_error *err)
{
    return bytes <= 48 * 1024 || gd_cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                                               "cudaFuncSetAttribute", op, err);
}

enum attention_kernel { ATTENTION_FORWARD, ATTENTION_CACHED, ATTENTION_ROWS, ATTENTION_KEYS, ATTENTION_BIAS };

/* Does `...` with PADDED as head_dim rounded up to a size that there are kernels for. */
#define GD_BY_HEAD_DIM(head_dim, PADDED, ...)                                                       \
    do {                                                                                            \
        if ((head_dim) <= 16) {                                                                     \
            constexpr int PADDED = 16;                                                              \
            __VA_ARGS__;                                                                            \
        } else if ((head_dim) <= 32) {                                                              \
            constexpr int PADDED = 32;                                                              \
            __VA_ARGS__;                                                                            \
        } else if ((head_dim) <= 64) {                                                              \
            constexpr int PADDED = 64;                                                              \
            __VA_ARGS__;                                                                            \
        } else if ((head_dim) <= 96) {                                                              \
            constexpr int PADDED = 96;                                                              \
            __VA_ARGS__;                                                                            \
        } else if ((head_dim) <= 128) {                                                             \
            constexpr int PADDED = 128;                                                             \
            __VA_ARGS__;                                                                            \
        } else if ((head_dim) <= 192) {                                                             \
            constexpr int PADDED = 192;                                                             \
            __VA_ARGS__;                                                                            \
        } else {                                                                                    \
            constexpr int PADDED = 256;                                                             \
            __VA_ARGS__;                                                                            \
        }                                                                                           \
    } while (0)

/* Bytes of shared memory that a block of a kernel on the tensor cores takes (all but ATTENTION_BIAS, which has none). */
static inline size_t attention_mma_bytes(enum attention_kernel kernel, int head_dim)
{
    size_t bytes = 0;
    GD_BY_HEAD_DIM(head_dim, PADDED, {
        using tiles = attention_tiles<PADDED>;
        const int own = kernel == ATTENTION_ROWS || kernel == ATTENTION_KEYS ? 2 * GD_ATTENTION_ROWS : GD_ATTENTION_ROWS;
        const int passing = kernel == ATTENTION_FORWARD  ? 2 * tiles::forward_keys
                            : kernel == ATTENTION_CACHED ? 4 * tiles::page
                            : kernel == ATTENTION_ROWS   ? 4 * tiles::backward_keys
                                                         : 4 * tiles::backward_rows;
        bytes = (size_t)(own + passing) * (PADDED + 8) * sizeof(bf16);
    });
    return bytes;
}

/* Does `...` with VALUES as numbers of a row that a lane holds, at least head_dim / 32. */
#define GD_BY_VALUES(head_dim, VALUES, ...)                                                         \
    do {                                                                                            \
        if ((head_dim) <= 128) {                                                                    \
            constexpr int VALUES = 4;                                                               \
            __VA_ARGS__;                                                                            \
        } else if ((head_dim) <= 256) {                                                             \
            constexpr int VALUES = 8;                                                               \
            __VA_ARGS__;                                                                            \
        } else {                                                                                    \
            constexpr int VALUES = 32;                                                              \
            __VA_ARGS__;                                                                            \
        }                                                                                           \
    } while (0)

#endif
