/*
 * attention_few.h - template: online softmax attention for few query rows, with keys in lanes (see lanes.h, attention_forward.h).
 *
 * Why      A decode step has one row of a few heads against each key: in attention_forward.h most lanes would stand idle. Here a
 *          block of keys is turned once, and all rows of the task share it. Every sum runs in the order in which attention_forward.h
 *          takes it, so both give a row the same bits.
 * Memory   The task's scratch: q and out lie row by row here, key holds the turned block, score [row][GD_TILE].
 * Threads  One task, one thread.
 * Errors   none
 * Limits   GD_TILE; a block's rows may be read up to the next multiple of LANES, though only `count` of them are looked at.
 * Life     gd_attention_few_LANES is the instance's table.
 */

/* The four elements of each 128 bits of two vectors. */
#define QUADS_4(a, b, c, d) a, b, c, d
#define QUADS_8(a, b, c, d) QUADS_4(a, b, c, d), QUADS_4(a + 4, b + 4, c + 4, d + 4)
#define QUADS_16(a, b, c, d) QUADS_8(a, b, c, d), QUADS_8(a + 8, b + 8, c + 8, d + 8)
#define QUADS GD_LANES_PASTE(QUADS_, LANES)

typedef float ISA(gd_quad) __attribute__((vector_size(16), aligned(4), may_alias));

/* Four columns of 32 bits of a row and of those 4, 8... further on. */
LANES_INLINE VEC ISA(quads)(const char *const *row, int64_t offset)
{
    ISA(gd_quad) q[4];
#pragma GCC unroll 4
    for (int i = 0; i < LANES / 4; i++)
        q[i] = *(const ISA(gd_quad) *)(const void *)(row[i] + offset);
#if LANES == 4
    return (VEC)q[0];
#elif LANES == 8
    return (VEC)__builtin_shufflevector(q[0], q[1], 0, 1, 2, 3, 4, 5, 6, 7);
#else
    typedef float half __attribute__((vector_size(32)));
    half low = __builtin_shufflevector(q[0], q[1], 0, 1, 2, 3, 4, 5, 6, 7);
    half high = __builtin_shufflevector(q[2], q[3], 0, 1, 2, 3, 4, 5, 6, 7);
    return (VEC)__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
}

/* Four columns of 32 bits of LANES rows, each column a vector. */
LANES_INLINE void ISA(turn)(VEC *column, const char *const *row, int64_t row_bytes)
{
    VEC a = ISA(quads)(row, 0), b = ISA(quads)(row, row_bytes), c = ISA(quads)(row, 2 * row_bytes), d = ISA(quads)(row, 3 * row_bytes);
    VEC ab_low = __builtin_shufflevector(a, b, QUADS(0, LANES, 1, LANES + 1));
    VEC ab_high = __builtin_shufflevector(a, b, QUADS(2, LANES + 2, 3, LANES + 3));
    VEC cd_low = __builtin_shufflevector(c, d, QUADS(0, LANES, 1, LANES + 1));
    VEC cd_high = __builtin_shufflevector(c, d, QUADS(2, LANES + 2, 3, LANES + 3));
    column[0] = __builtin_shufflevector(ab_low, cd_low, QUADS(0, 1, LANES, LANES + 1));
    column[1] = __builtin_shufflevector(ab_low, cd_low, QUADS(2, 3, LANES + 2, LANES + 3));
    column[2] = __builtin_shufflevector(ab_high, cd_high, QUADS(0, 1, LANES, LANES + 1));
    column[3] = __builtin_shufflevector(ab_high, cd_high, QUADS(2, 3, LANES + 2, LANES + 3));
}

/* out[d][j] = rows[j][d] for LANES rows; f32, or pairs of bf16. */
LANES_INLINE void ISA(turn_block)(float *out, const char *rows, const bool bf16, int64_t row_bytes, int width)
{
    const char *row[LANES / 4];
    for (int i = 0; i < LANES / 4; i++)
        row[i] = rows + 4 * i * row_bytes;
    for (int d = 0; d < width; d += bf16 ? 8 : 4) {
        VEC column[4];
        ISA(turn)(column, row, row_bytes);
        for (int c = 0; c < 4; c++, out += bf16 ? 2 * GD_TILE : GD_TILE) {
            if (bf16) { /* little-endian: the first of a pair is in the low half */
                VSTORE(out, (VEC)((ISA(gd_uvec))column[c] << 16));
                VSTORE(out + GD_TILE, (VEC)((ISA(gd_uvec))column[c] & 0xFFFF0000u));
            } else {
                VSTORE(out, column[c]);
            }
        }
        for (int i = 0; i < LANES / 4; i++)
            row[i] += 16;
    }
}

/* For `keys` rows, a multiple of LANES. */
LANES_FN void ISA(turn_keys)(float *out, const void *rows, bool bf16, int64_t row_bytes, int keys, int width)
{
    for (int j = 0; j < keys; j += LANES) {
        const char *from = (const char *)rows + j * row_bytes;
        if (bf16)
            ISA(turn_block)(out + j, from, true, row_bytes, width);
        else
            ISA(turn_block)(out + j, from, false, row_bytes, width);
    }
}

/* The product for few rows: tiles of four. */
LANES_PRODUCT void ISA(product_few)(int rows, int nv, int depth, const float *a, int64_t a_row, const float *b, int64_t b_row, float *c,
                                    int64_t c_row, bool accumulate)
{
    const int widest = LANES == 16 ? 4 : 2;
    for (int v = 0; v < nv;) {
        int take = nv - v < widest ? nv - v : widest;
        take = take == 3 ? 2 : take;
        const float *bv = b + v * LANES;
        float *cv = c + v * LANES;
        for (int m = 0; m < rows; m += 4) {
            int some = rows - m < 4 ? rows - m : 4;
            const float *am = a + m * a_row;
            float *cm = cv + m * c_row;
#define TILE(r, n)                                                                       \
    case 8 * r + n:                                                                      \
        ISA(tile)(r, n, depth, am, a_row, 1, bv, b_row, cm, c_row, accumulate);          \
        break;
#define TILES(r) TILE(r, 1) TILE(r, 2) TILE(r, 4)
            switch (8 * some + take) {
                TILES(1) TILES(2) TILES(3) TILES(4)
            }
#undef TILES
#undef TILE
        }
        v += take;
    }
}

/* Asks memory for one of `parts` equal parts of what is absorbed next: blocks lie far from each other, and all at once would stand in
 * the way of the loads between. Inlined, because a call that does nothing else would be left out as having no effect. */
LANES_INLINE void ISA(ask)(const char *rows, size_t bytes, int part, int parts)
{
    const size_t line = 64;
    for (size_t at = bytes * (size_t)part / (size_t)parts; rows != NULL && at < bytes * (size_t)(part + 1) / (size_t)parts; at += line)
        __builtin_prefetch(rows + at);
}

LANES_FN void ISA(few_begin)(struct gd_attention_lanes *task)
{
    int padded = task->head_dim_padded;
    for (int i = 0; i < task->count; i++) {
        float *row = task->q + (int64_t)i * padded;
        task->max[i] = -1e30f;
        task->sum[i] = 0;
        ISA(rows_to_f32)(row, padded, task->q_row[i], task->bf16, 0, 1, task->head_dim);
#pragma omp simd
        for (int d = 0; d < padded; d++)
            row[d] *= task->scale;
    }
    memset(task->out, 0, (size_t)(task->count * padded) * sizeof(float));
}

/* One row's scores as they are to be: capped, biased, -infinity where it does not see the key. */
LANES_FN void ISA(few_mask)(struct gd_attention_lanes *task, int i, int32_t first_key, int keys)
{
    float *score = task->score + (int64_t)i * GD_TILE;
    VEC cap = (VEC){0} + task->cap, inverse = 1.0f / cap;
    if (task->cap > 0)
        for (int j = 0; j < keys; j += LANES)
            VSTORE(score + j, cap * ISA(tanh)(VLOAD(score + j) * inverse));
    for (int j = 0; task->bias != NULL && j < keys; j++)
        score[j] += task->bias[gd_attention_bias_place(task->bias_distance, (int64_t)task->row + i - first_key - j)];
    for (int j = 0; j < keys; j++)
        if (first_key + j < task->first[i] || first_key + j >= task->end[i])
            score[j] = -INFINITY;
}

/* One row's scores to probabilities, and its running maximum, sum and output brought up to date. */
LANES_FN void ISA(few_softmax)(struct gd_attention_lanes *task, int i, int keys, int count)
{
    float *score = task->score + (int64_t)i * GD_TILE, *out = task->out + (int64_t)i * task->head_dim_padded;
    float max = task->max[i];
#pragma omp simd reduction(max : max)
    for (int j = 0; j < keys; j++)
        max = score[j] > max ? score[j] : max;
    VEC fades = ISA(exp2)((VEC){0} + (task->max[i] - max));
    float fade = fades[0], sum = task->sum[i] * fade;
    for (int j = 0; j < keys; j += LANES)
        VSTORE(score + j, ISA(exp2)(VLOAD(score + j) - max));
    for (int j = 0; j < count; j++)
        sum += score[j];
    task->max[i] = max;
    task->sum[i] = sum;
    for (int d = 0; fade != 1.0f && d < task->head_dim_padded; d += LANES)
        VSTORE(out + d, VLOAD(out + d) * fade);
}

LANES_FN void ISA(few_absorb)(struct gd_attention_lanes *task, const void *keys, const void *values, bool bf16, int64_t row,
                              int32_t first_key, int count)
{
    int head_dim = task->head_dim, padded = task->head_dim_padded, used = (int)gd_round_up(count, LANES);
    const float *v = values;
    if (bf16 && head_dim % 8 == 0) {
        ISA(turn_keys)(task->key, keys, true, row * 2, used, head_dim);
    } else if (!bf16 && head_dim % 4 == 0) {
        ISA(turn_keys)(task->key, keys, false, row * 4, used, head_dim);
    } else {
        ISA(rows_to_f32)(task->value, padded, keys, bf16, row, count, head_dim);
        ISA(turn_keys)(task->key, task->value, false, padded * 4, used, padded);
    }
    ISA(ask)(task->next_keys, task->next_bytes, 0, 1);
    ISA(product_few)(task->count, used / LANES, head_dim, task->q, padded, task->key, GD_TILE, task->score, GD_TILE, false);
    bool whole = task->first[task->count - 1] <= first_key && task->end[0] >= first_key + used;
    for (int i = 0; i < task->count; i++) {
        ISA(ask)(task->next_values, task->next_bytes, i, task->count);
        if (!whole || task->cap > 0 || task->bias != NULL)
            ISA(few_mask)(task, i, first_key, used);
        ISA(few_softmax)(task, i, used, count);
    }
    if (bf16 || head_dim < padded) {
        ISA(rows_to_f32)(task->value, padded, values, bf16, row, count, head_dim);
        v = task->value;
        row = padded;
    }
    ISA(product_few)(task->count, padded / LANES, count, task->score, GD_TILE, v, row, task->out, padded, true);
}

LANES_FN void ISA(few_finish)(struct gd_attention_lanes *task)
{
    int padded = task->head_dim_padded;
    for (int i = 0; i < task->count; i++) {
        float *out = task->out + (int64_t)i * padded, inverse = task->sum[i] != 0 ? 1.0f / task->sum[i] : 0;
        for (int d = 0; d < padded; d += LANES)
            VSTORE(out + d, VLOAD(out + d) * inverse);
        ISA(rows_from_f32)(task->out_row[i], task->bf16, 0, out, 0, 1, task->head_dim);
        if (task->lse[i] != NULL)
            *task->lse[i] = task->sum[i] != 0 ? (task->max[i] + log2f(task->sum[i])) * 0.69314718055994530942f : 0;
    }
}

static const struct gd_attention_forward ISA(gd_attention_few) = {ISA(few_begin), ISA(few_absorb), ISA(few_finish)};

#undef QUADS
#undef QUADS_16
#undef QUADS_8
#undef QUADS_4
