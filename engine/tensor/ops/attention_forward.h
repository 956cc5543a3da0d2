/*
 * attention_forward.h - template: online softmax attention with query rows in lanes (see lanes.h, attention_lanes.h).
 *
 * Why      Training, prefill and decode share one kernel, so they agree to the last bit where their blocks agree.
 * Memory   The task's scratch.
 * Threads  One task, one thread.
 * Errors   none
 * Limits   GD_TILE
 * Life     gd_attention_forward_LANES is the instance's table.
 *
 * For a block of keys j and lanes i (Milakov & Gimelshein 2018; Dao et al. 2022), in base 2:
 *     s[j][i] = k[j] . q[i],  m' = max(m, max_j s),  p = 2^(s - m'),  l = l 2^(m - m') + sum_j p,
 *     o[d][i] = o[d][i] 2^(m - m') + sum_j v[j][d] p[j][i]
 */
#include "engine/tensor/ops/lanes_math.h"

/* Strips of keys in which masked corners are skipped. */
#define STRIP 16

LANES_FN void ISA(begin)(struct gd_attention_lanes *task)
{
    int used = (int)gd_round_up(task->count, LANES), padded = task->head_dim_padded;
    for (int i = 0; i < used; i++) {
        float *row = task->key + (int64_t)i * padded;
        task->max[i] = -1e30f; /* finite, so that a lane that has seen nothing yet makes no NaN */
        task->sum[i] = 0;
        if (i >= task->count) {
            task->first[i] = task->first[task->count - 1];
            task->end[i] = task->end[task->count - 1];
            memset(row, 0, (size_t)padded * sizeof(float));
            continue;
        }
        ISA(rows_to_f32)(row, padded, task->q_row[i], task->bf16, 0, 1, task->head_dim);
#pragma omp simd
        for (int d = 0; d < padded; d++)
            row[d] *= task->scale;
    }
    ISA(transpose)(task->q, GD_TILE, task->key, padded, used, padded);
    for (int d = 0; d < padded; d++)
        memset(task->out + (int64_t)d * GD_TILE, 0, (size_t)used * sizeof(float));
}

/* Vectors of lanes [*from, *to) of which some lane sees some key of [first, end). */
LANES_INLINE void ISA(seeing)(const struct gd_attention_lanes *task, int32_t first, int32_t end, int *from, int *to)
{
    int vectors = (task->count + LANES - 1) / LANES, a = 0, b = vectors;
    while (a < vectors && task->end[a * LANES + LANES - 1] <= first)
        a++;
    while (b > a && task->first[(b - 1) * LANES] >= end)
        b--;
    *from = a;
    *to = b;
}

/* s = cap tanh(s / cap) */
LANES_FN void ISA(cap_scores)(struct gd_attention_lanes *task, int lane, int begin, int end)
{
    VEC cap = (VEC){0} + task->cap, inverse = 1.0f / cap;
    for (int j = begin; j < end; j++) {
        float *score = task->score + (int64_t)j * GD_TILE + lane;
        VSTORE(score, cap * ISA(tanh)(VLOAD(score) * inverse));
    }
}

LANES_FN void ISA(add_bias)(struct gd_attention_lanes *task, int lane, int begin, int end)
{
    for (int j = begin; j < end; j++) {
        float *score = task->score + (int64_t)j * GD_TILE + lane;
        VSTORE(score, VLOAD(score) + VLOAD(task->by_distance + GD_TILE - 1 + lane - j));
    }
}

/* Scores of one vector of lanes to probabilities, and its running maximum, sum and output brought up to date. */
LANES_INLINE void ISA(softmax)(struct gd_attention_lanes *task, int lane, int32_t first_key, int begin, int end)
{
    float *score = task->score + lane;
    IVEC first = ILOAD(task->first + lane), last = ILOAD(task->end + lane);
    bool masked = task->first[lane + LANES - 1] > first_key + begin || task->end[lane] < first_key + end;
    if (task->cap > 0)
        ISA(cap_scores)(task, lane, begin, end);
    if (task->bias != NULL)
        ISA(add_bias)(task, lane, begin, end);
    VEC old = VLOAD(task->max + lane), top[4] = {old, old, old, old};
    for (int j = begin; masked && j < end; j++) {
        int32_t key = first_key + j;
        IVEC visible = (first <= key) & (last > key);
        VEC s = VLOAD(score + j * GD_TILE);
        VSTORE(score + j * GD_TILE, ISA(select)(visible, s, (VEC){0} - INFINITY));
    }
    int j = begin;
    for (; j + 4 <= end; j += 4)
#pragma GCC unroll 4
        for (int u = 0; u < 4; u++)
            top[u] = ISA(max)(VLOAD(score + (j + u) * GD_TILE), top[u]);
    for (; j < end; j++)
        top[0] = ISA(max)(VLOAD(score + j * GD_TILE), top[0]);
    VEC max = ISA(max)(ISA(max)(top[0], top[1]), ISA(max)(top[2], top[3]));
    VEC fade = ISA(exp2)(old - max), sum = VLOAD(task->sum + lane) * fade;
    for (j = begin; j < end; j++) {
        VEC p = ISA(exp2)(VLOAD(score + j * GD_TILE) - max);
        VSTORE(score + j * GD_TILE, p);
        sum += p;
    }
    VSTORE(task->max + lane, max);
    VSTORE(task->sum + lane, sum);
    for (int d = 0; d < task->head_dim_padded; d++) {
        float *out = task->out + (int64_t)d * GD_TILE + lane;
        VSTORE(out, VLOAD(out) * fade);
    }
}

LANES_FN void ISA(absorb)(struct gd_attention_lanes *task, const void *keys, const void *values, bool bf16, int64_t row,
                          int32_t first_key, int count)
{
    const float *k = keys, *v = values;
    int head_dim = task->head_dim, from, to;
    ISA(seeing)(task, first_key, first_key + count, &from, &to);
    if (from >= to)
        return;
    if (bf16) {
        ISA(rows_to_f32)(task->key, task->head_dim_padded, keys, true, row, count, head_dim);
        ISA(rows_to_f32)(task->value, task->head_dim_padded, values, true, row, count, head_dim);
        k = task->key;
        v = task->value;
        row = task->head_dim_padded;
    }
    if (task->bias != NULL)
        gd_attention_bias_between(task->by_distance, task->bias, task->bias_distance,
                                  (int64_t)task->row - first_key - (GD_TILE - 1), false);
    /* Where all lanes see all keys one product does it; else strips leave out what nobody sees. */
    bool whole = task->first[task->count - 1] <= first_key && task->end[0] >= first_key + count;
    int strip = whole ? count : STRIP;
    for (int j = 0; j < count; j += strip) {
        int n = count - j < strip ? count - j : strip, a, b;
        ISA(seeing)(task, first_key + j, first_key + j + n, &a, &b);
        ISA(product)(n, b - a, head_dim, k + j * row, row, 1, task->q + a * LANES, GD_TILE,
                     task->score + (int64_t)j * GD_TILE + a * LANES, GD_TILE, false);
    }
    for (int g = from; g < to; g++) {
        int begin = 0, end = count;
        while (begin + strip < count && task->first[g * LANES] >= first_key + begin + strip)
            begin += strip;
        if (task->end[g * LANES + LANES - 1] < first_key + count)
            end = (int)gd_round_up(task->end[g * LANES + LANES - 1] - first_key, strip);
        ISA(softmax)(task, g * LANES, first_key, begin, end < count ? end : count);
    }
    for (int j = 0; j < count; j += strip) {
        int n = count - j < strip ? count - j : strip, a, b;
        ISA(seeing)(task, first_key + j, first_key + j + n, &a, &b);
        ISA(product)(head_dim, b - a, n, v + j * row, 1, row, task->score + (int64_t)j * GD_TILE + a * LANES, GD_TILE,
                     task->out + a * LANES, GD_TILE, true);
    }
}

LANES_FN void ISA(finish)(struct gd_attention_lanes *task)
{
    int used = (int)gd_round_up(task->count, LANES), padded = task->head_dim_padded;
    float inverse[GD_TILE];
    for (int i = 0; i < used; i++)
        inverse[i] = task->sum[i] != 0 ? 1.0f / task->sum[i] : 0; /* NaN goes through */
    for (int d = 0; d < padded; d++)
        for (int i = 0; i < used; i += LANES) {
            float *out = task->out + (int64_t)d * GD_TILE + i;
            VSTORE(out, VLOAD(out) * VLOAD(inverse + i));
        }
    ISA(transpose)(task->key, padded, task->out, GD_TILE, padded, used);
    for (int i = 0; i < task->count; i++) {
        ISA(rows_from_f32)(task->out_row[i], task->bf16, 0, task->key + (int64_t)i * padded, 0, 1, task->head_dim);
        if (task->lse[i] != NULL)
            *task->lse[i] = task->sum[i] != 0 ? (task->max[i] + log2f(task->sum[i])) * 0.69314718055994530942f : 0;
    }
}

static const struct gd_attention_forward ISA(gd_attention_forward) = {ISA(begin), ISA(absorb), ISA(finish)};

#undef STRIP
