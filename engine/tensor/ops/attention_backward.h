/*
 * attention_backward.h - template: gradients of attention for one block of queries against one block of keys.
 *
 * Why      Nothing of size T x T is kept: probabilities come back from the log-sum-exp (Dao et al. 2022).
 * Memory   The task's scratch (struct gd_attention_pair).
 * Threads  One task, one thread.
 * Errors   none
 * Limits   GD_TILE rows and keys.
 * Life     gd_attention_backward_LANES is the instance's table; load_keys -> pair for each block of queries that sees them.
 *
 *     P[i][j] = 2^(scale log2(e) q[i].k[j] - lse[i] log2(e)),  dP[i][j] = dO[i].v[j],  dS = P (dP - D[i]) scale
 * (a position bias is added to the exponent of P; its gradient is dS without the scale;
 * with a softcap c and t = tanh(scale q[i].k[j] / c): P = 2^(c t log2(e) - ...), and dS times 1 - t^2)
 *     dQ[i] += sum_j dS[i][j] k[j],  dK[j] += sum_i dS[i][j] q[i],  dV[j] += sum_i P[i][j] dO[i]
 */
#include "engine/tensor/ops/lanes_math.h"

/* Masked corners are left out in squares of this size. */
#define STRIP 16

LANES_FN void ISA(load_keys)(struct gd_attention_pair *pair, const void *keys, const void *values, int64_t row, int count)
{
    int padded = pair->head_dim_padded, rows = (int)gd_round_up(count, STRIP);
    pair->key_count = count;
    ISA(rows_to_f32)(pair->key, padded, keys, pair->bf16, row, count, pair->head_dim);
    ISA(rows_to_f32)(pair->value, padded, values, pair->bf16, row, count, pair->head_dim);
    size_t rest = (size_t)(rows - count) * (size_t)padded * sizeof(float);
    memset(pair->key + (int64_t)count * padded, 0, rest);
    memset(pair->value + (int64_t)count * padded, 0, rest);
    ISA(transpose)(pair->key_columns, GD_TILE, pair->key, padded, rows, padded);
    ISA(transpose)(pair->value_columns, GD_TILE, pair->value, padded, rows, padded);
}

/* P and dS of one row for the keys [begin, end); keys that it does not see get 0. */
LANES_INLINE void ISA(row_grad)(struct gd_attention_pair *pair, int row, int begin, int end, const bool capped,
                                const bool biased)
{
    const float log2_e = 1.44269504088896340736f;
    float *p_row = pair->p + row * GD_TILE, *ds_row = pair->ds + row * GD_TILE;
    float lse = pair->lse[row] * log2_e, dot = pair->dot[row], scale = pair->scale, scale_log2 = scale * log2_e;
    float cap_log2 = pair->softcap * log2_e, inverse_cap = capped ? scale / pair->softcap : 0;
    IVEC index;
    for (int u = 0; u < LANES; u++)
        index[u] = u;
    for (int j = begin; j < end; j += LANES) {
        IVEC key = index + j;
        IVEC visible = (key >= pair->first[row]) & (key < pair->end[row]);
        VEC s = VLOAD(p_row + j) * scale_log2, slope = (VEC){0} + scale;
        if (capped) {
            VEC t = ISA(tanh)(VLOAD(p_row + j) * inverse_cap);
            s = t * cap_log2;
            slope -= t * t * scale;
        }
        if (biased)
            s += VLOAD(pair->bias + GD_TILE - 1 + j - row);
        VEC p = ISA(exp2)(s - lse);
        VEC ds = p * (VLOAD(ds_row + j) - dot);
        if (biased && pair->wants_bias) {
            float *sum = pair->d_bias + GD_TILE - 1 + j - row;
            VSTORE(sum, VLOAD(sum) + ISA(select)(visible, ds, (VEC){0}));
        }
        ds *= slope;
        VSTORE(p_row + j, ISA(select)(visible, p, (VEC){0}));
        VSTORE(ds_row + j, ISA(select)(visible, ds, (VEC){0}));
    }
}

LANES_FN void ISA(row_grad_biased)(struct gd_attention_pair *pair, int row, int begin, int end)
{
    if (pair->softcap > 0)
        ISA(row_grad)(pair, row, begin, end, true, true);
    else
        ISA(row_grad)(pair, row, begin, end, false, true);
}

/* Squares of keys [*from, *to) that some row of [row, row + count) sees. */
LANES_INLINE void ISA(key_squares)(const struct gd_attention_pair *pair, int row, int count, int *from, int *to)
{
    *from = pair->first[row] / STRIP;
    *to = (pair->end[row + count - 1] + STRIP - 1) / STRIP;
}

/* Scores, probabilities and dQ for all rows, in strips of rows. */
LANES_INLINE void ISA(query_side)(struct gd_attention_pair *pair, int strip, float *dq, int64_t dq_row, bool add_dq)
{
    const int squares_to_vectors = STRIP / LANES;
    int padded = pair->head_dim_padded, vectors = padded / LANES;
    for (int i = 0; i < pair->row_count; i += strip) {
        int n = pair->row_count - i < strip ? pair->row_count - i : strip, from, to;
        ISA(key_squares)(pair, i, n, &from, &to);
        int begin = from * STRIP, width = (to - from) * squares_to_vectors, square = (int)(i * GD_TILE) + begin;
        if (from >= to) {
            for (int r = i; !add_dq && r < i + n; r++)
                memset(dq + r * dq_row, 0, (size_t)padded * sizeof(float));
            continue;
        }
        ISA(product)(n, width, padded, pair->q + i * padded, padded, 1, pair->key_columns + begin, GD_TILE,
                     pair->p + square, GD_TILE, false);
        ISA(product)(n, width, padded, pair->d_out + i * padded, padded, 1, pair->value_columns + begin, GD_TILE,
                     pair->ds + square, GD_TILE, false);
        for (int r = i; r < i + n; r++)
            if (pair->biased)
                ISA(row_grad_biased)(pair, r, begin, to * STRIP);
            else if (pair->softcap > 0)
                ISA(row_grad)(pair, r, begin, to * STRIP, true, false);
            else
                ISA(row_grad)(pair, r, begin, to * STRIP, false, false);
        ISA(product)(n, vectors, (to - from) * STRIP, pair->ds + square, GD_TILE, 1, pair->key + begin * padded, padded,
                     dq + i * dq_row, dq_row, add_dq);
    }
}

/* dK and dV for all keys, in strips of keys, from the rows that see them. */
LANES_INLINE void ISA(key_side)(struct gd_attention_pair *pair, int strip, float *dk, float *dv, int64_t kv_row, bool add_kv)
{
    int padded = pair->head_dim_padded, vectors = padded / LANES;
    for (int j = 0; j < pair->key_count; j += strip) {
        int n = pair->key_count - j < strip ? pair->key_count - j : strip, begin = 0, end = pair->row_count, from, to;
        for (; begin < end; begin += STRIP) {
            int rows = end - begin < STRIP ? end - begin : STRIP;
            ISA(key_squares)(pair, begin, rows, &from, &to);
            if (to * STRIP > j)
                break;
        }
        while (end > begin) {
            int rows = end % STRIP ? end % STRIP : STRIP;
            ISA(key_squares)(pair, end - rows, rows, &from, &to);
            if (from * STRIP < j + n)
                break;
            end -= rows;
        }
        int depth = end > begin ? end - begin : 0;
        if (depth == 0)
            begin = 0;
        ISA(product)(n, vectors, depth, pair->p + begin * GD_TILE + j, 1, GD_TILE, pair->d_out + begin * padded, padded,
                     dv + j * kv_row, kv_row, add_kv);
        ISA(product)(n, vectors, depth, pair->ds + begin * GD_TILE + j, 1, GD_TILE, pair->q + begin * padded, padded,
                     dk + j * kv_row, kv_row, add_kv);
    }
}

LANES_FN void ISA(pair)(struct gd_attention_pair *pair, const void *q, const void *d_out, int64_t q_row, float *dq,
                        int64_t dq_row, bool add_dq, float *dk, float *dv, int64_t kv_row, bool add_kv)
{
    int padded = pair->head_dim_padded, count = pair->row_count;
    ISA(rows_to_f32)(pair->q, padded, q, pair->bf16, q_row, count, pair->head_dim);
    ISA(rows_to_f32)(pair->d_out, padded, d_out, pair->bf16, q_row, count, pair->head_dim);
    bool whole = pair->first[count - 1] <= 0 && pair->end[0] >= pair->key_count;
    ISA(query_side)(pair, whole ? GD_TILE : STRIP, dq, dq_row, add_dq);
    ISA(key_side)(pair, whole ? GD_TILE : STRIP, dk, dv, kv_row, add_kv);
}

LANES_FN void ISA(row_dots)(float *dot, const void *a, const void *b, bool bf16, int64_t count, int head_dim)
{
    for (int64_t i = 0; i < count; i++) {
        float sum = 0;
        int64_t at = i * head_dim;
        if (bf16) {
#pragma omp simd reduction(+ : sum)
            for (int d = 0; d < head_dim; d++)
                sum += gd_load(a, true, at + d) * gd_load(b, true, at + d);
        } else {
#pragma omp simd reduction(+ : sum)
            for (int d = 0; d < head_dim; d++)
                sum += gd_load(a, false, at + d) * gd_load(b, false, at + d);
        }
        dot[i] = sum;
    }
}

static const struct gd_attention_backward ISA(gd_attention_backward) = {ISA(load_keys), ISA(pair), ISA(row_dots),
                                                                        ISA(rows_from_f32)};

#undef STRIP
