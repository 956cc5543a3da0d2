/*
 * attention_plain.h - attention without tensor cores: f32 activations, and head sizes that have no other kernel.
 *
 * Why      f32 inside and out, any head size; the same for packed rows and for pages.
 * Memory   Dynamic shared memory of the block: rows, keys and values of one tile as f32.
 * Threads  A block has the rows of a tile for one head; a warp has some of them; lanes are keys, then columns.
 * Errors   none
 * Limits   Head sizes to 1024.
 * Life     none
 */
#ifndef GD_CUDA_ATTENTION_PLAIN_H
#define GD_CUDA_ATTENTION_PLAIN_H

#include "cuda/attention.h"

/* How a block is made up where a lane holds VALUES numbers of a row. */
template <int VALUES> struct attention_plain {
    static constexpr int keys = VALUES <= 8 ? 32 : 8;
    static constexpr int rows_a_warp = VALUES <= 4 ? 4 : VALUES <= 8 ? 2 : 1;
    static constexpr int warps = VALUES <= 8 ? 8 : 4;
    static constexpr int rows = warps * rows_a_warp, threads = 32 * warps;
    static constexpr int diagonals = rows + keys - 1; /* of a tile */
};

/* Bytes of shared memory that a block of such a kernel takes: one or two arrays of its own rows, two of those that come by, weights. */
static inline size_t attention_plain_bytes(enum attention_kernel kernel, int head_dim)
{
    int numbers = 0;
    GD_BY_VALUES(head_dim, VALUES, {
        using plain = attention_plain<VALUES>;
        int own = kernel == ATTENTION_FORWARD || kernel == ATTENTION_CACHED ? 1 : 2;
        numbers = own * plain::rows * head_dim + 2 * plain::keys * (head_dim + 1) + plain::rows * 32 +
                  (kernel == ATTENTION_BIAS ? 2 * plain::diagonals : 0);
    });
    return (size_t)numbers * sizeof(float);
}

/* `count` rows, `row` apart, as f32 rows of `pitch`; zeros up to `rows`. */
template <class T> CU_FN void attention_plain_load(float *tile, int pitch, const T *from, long long row, int count, int rows, int head_dim)
{
    for (int i = (int)threadIdx.x; i < rows * head_dim; i += (int)blockDim.x) {
        int r = i / head_dim, d = i % head_dim;
        tile[r * pitch + d] = r < count ? to_f32(from[r * row + d]) : 0.0f;
    }
}

/* Keys and values one after another in the batch. */
struct attention_packed_keys {
    long long row;
    CU_FN long long operator()(int key) const
    {
        return key * row;
    }
};

template <class T, class KEYS>
CU_FN void attention_plain_load_keys(float *k_tile, float *v_tile, const T *k, const T *v, const KEYS &place, int key, int end, int keys, int head_dim)
{
    for (int i = (int)threadIdx.x; i < keys * head_dim; i += (int)blockDim.x) {
        int j = i / head_dim, d = i % head_dim;
        bool there = key + j < end;
        long long at = there ? place(key + j) + d : 0;
        k_tile[j * (head_dim + 1) + d] = there ? to_f32(k[at]) : 0.0f;
        v_tile[j * (head_dim + 1) + d] = there ? to_f32(v[at]) : 0.0f;
    }
}

/* s[r] = own[r] . tile[lane] for the warp's rows. Lanes without a row of the tile get 0. */
template <int VALUES> CU_FN void attention_plain_dots(float *s, const float *own, const float *tile, int head_dim)
{
    using plain = attention_plain<VALUES>;
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < plain::rows_a_warp; r++)
        s[r] = 0;
    if (lane >= plain::keys)
        return;
    const float *mine = tile + lane * (head_dim + 1);
    for (int d = 0; d < head_dim; d++) {
        float x = mine[d];
#pragma unroll
        for (int r = 0; r < plain::rows_a_warp; r++)
            s[r] += own[r * head_dim + d] * x;
    }
}

/* sum[r][column] += own[r] of lane j times tile[j][column], for the warp's rows. weight: room for these, [rows_a_warp][32]. */
template <int VALUES>
CU_FN void attention_plain_add(float (*sum)[VALUES], float *weight, const float *own, const float *tile, int head_dim)
{
    using plain = attention_plain<VALUES>;
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < plain::rows_a_warp; r++)
        weight[r * 32 + lane] = own[r];
    __syncwarp();
    for (int j = 0; j < plain::keys; j++) {
        float w[plain::rows_a_warp];
#pragma unroll
        for (int r = 0; r < plain::rows_a_warp; r++)
            w[r] = weight[r * 32 + j];
#pragma unroll
        for (int i = 0; i < VALUES; i++) {
            float x = lane + 32 * i < head_dim ? tile[j * (head_dim + 1) + lane + 32 * i] : 0.0f;
#pragma unroll
            for (int r = 0; r < plain::rows_a_warp; r++)
                sum[r][i] += w[r] * x;
        }
    }
    __syncwarp(); /* the next call writes */
}

template <class T, int VALUES>
CU_FN void attention_plain_store(T *to, long long row, float (*sum)[VALUES], const float *factor, int count, int head_dim)
{
    using plain = attention_plain<VALUES>;
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < plain::rows_a_warp; r++)
#pragma unroll
        for (int i = 0; i < VALUES; i++)
            if (r < count && lane + 32 * i < head_dim)
                to[r * row + lane + 32 * i] = from_f32<T>(sum[r][i] * factor[r]);
}

/* Zeros in the rows [begin, end) of one head. */
template <class T> CU_FN void attention_zero_rows(T *to, long long row, int begin, int end, int head_dim)
{
    for (int i = (int)threadIdx.x; i < (end - begin) * head_dim; i += (int)blockDim.x)
        to[(begin + i / head_dim) * row + i % head_dim] = from_f32<T>(0.0f);
}

/* The block's tile of rows and the keys that they see, long rows first. False: none; rows behind the last segment get 0 in out. */
template <class T, int ROWS_A_TILE>
CU_FN bool attention_find_rows(const attention_shape &n, const attention_offsets &at, T *out, attention_tile *tile, attention_part *parts)
{
    *tile = attention_find_tile(at.cu, n.segments, n.rows, ROWS_A_TILE, 1, (int)(gridDim.x - 1 - blockIdx.x));
    if (tile->begin == tile->end)
        return false;
    if (tile->segment == n.segments) {
        attention_zero_rows(out + (int)blockIdx.y * n.head_dim, (long long)n.heads * n.head_dim, tile->begin, tile->end, n.head_dim);
        return false;
    }
    attention_keys_of(n, at, *tile, parts);
    return true;
}

/* Rows [begin, end) of one head against two ranges of keys. q, out: row 0 of the head; k, v: of its kv head; lse: or NULL. */
template <class Q, class KV, int VALUES, class KEYS>
CU_FN void attention_plain_rows(const attention_shape &n, const attention_bias &bias, int head, const Q *q, const KV *k, const KV *v,
                                Q *out, float *lse, const KEYS &place, const attention_part *parts, int begin, int end)
{
    using plain = attention_plain<VALUES>;
    const int mine = plain::rows_a_warp;
    CU_DYN_SHARED(float, shared);
    int lane = (int)threadIdx.x % 32, first = (int)threadIdx.x / 32 * mine;
    long long q_row = (long long)n.heads * n.head_dim;
    float *q_tile = shared, *k_tile = q_tile + plain::rows * n.head_dim, *v_tile = k_tile + plain::keys * (n.head_dim + 1);
    float *weight = v_tile + plain::keys * (n.head_dim + 1) + first * 32;
    float sum[mine][VALUES] = {}, most[mine], total[mine];
#pragma unroll
    for (int r = 0; r < mine; r++) {
        most[r] = GD_ATTENTION_NOTHING;
        total[r] = 0;
    }
    attention_plain_load(q_tile, n.head_dim, q + begin * q_row, q_row, end - begin, plain::rows, n.head_dim);
    for (int part = 0; part < 2; part++) {
        attention_part keys = part == 0 ? parts[0] : parts[1];
        for (int key = keys.begin; key < keys.end; key += plain::keys) {
            __syncthreads();
            attention_plain_load_keys(k_tile, v_tile, k, v, place, key, keys.end, plain::keys, n.head_dim);
            __syncthreads();
            float s[mine];
            attention_plain_dots<VALUES>(s, q_tile + first * n.head_dim, k_tile, n.head_dim);
#pragma unroll
            for (int r = 0; r < mine; r++) {
                int distance = begin + first + r - (key + lane) + keys.shift;
                bool seen = lane < plain::keys && key + lane < keys.end && attention_sees(n, distance);
                float x = seen ? attention_exponent(n, s[r]) : -INFINITY;
                if (n.bias_distance > 0 && seen)
                    x += attention_bias_of(n, bias, head, distance);
                float higher = fmaxf(most[r], warp_max(x)), fade = exp2f(most[r] - higher), p = exp2f(x - higher);
                most[r] = higher;
                total[r] = total[r] * fade + warp_sum(p);
                s[r] = p;
#pragma unroll
                for (int i = 0; i < VALUES; i++)
                    sum[r][i] *= fade;
            }
            attention_plain_add<VALUES>(sum, weight, s, v_tile, n.head_dim);
        }
    }
    float factor[mine];
#pragma unroll
    for (int r = 0; r < mine; r++) {
        factor[r] = total[r] != 0 ? 1 / total[r] : 0;
        if (lse != NULL && lane == 0 && begin + first + r < end)
            lse[(long long)(begin + first + r) * n.heads + head] =
                total[r] != 0 ? (most[r] + log2f(total[r])) * GD_ATTENTION_LN_2 : 0;
    }
    attention_plain_store(out + (begin + first) * q_row, q_row, sum, factor, end - begin - first, n.head_dim);
}

#endif
