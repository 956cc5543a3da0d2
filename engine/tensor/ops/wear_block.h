/*
 * wear_block.h - template: rows of one graft through its low-rank pair (see lanes.h).
 *
 * Why      Decode brings one row a graft, prefill hundreds; both take the same sums in the same order, so a row's
 *          result does not depend on how many rows came with it.
 * Memory   The op's scratch.
 * Threads  Ranges of rows x ranks (shrink) and of output columns (expand); one thread owns each result.
 * Errors   none
 * Limits   none
 * Life     gd_wear_kernels_LANES is the instance's table.
 *
 *     shrink  s[i][r] = mid[r] * f(sum_k a[r][k] x[i][k] + mid_add[r])   16 partial sums by k mod 16, then a fixed tree
 *     expand  y[i][o] += scale * b_scale[o] * sum_r b[o][r] s[i][r]   one chain over r
 *     dense   y[i][o] += sum_k delta[o][k] x[i][k]                   as shrink
 */
#include "engine/tensor/ops/lanes_math.h"

#define SPLIT 16                   /* partial sums of a dot product, whatever the vector width */
#define PARTS (SPLIT / LANES)

/* s[0][0..ranks) for one row: `ranks` <= 8 dot products at once, so that their chains overlap. */
LANES_INLINE void ISA(dots)(const int ranks, float *s, const float *a, int64_t a_row, const float *x, int64_t in)
{
    VEC sum[8][PARTS];
    float tail[8][SPLIT];
#pragma GCC unroll 8
    for (int r = 0; r < ranks; r++)
#pragma GCC unroll 4
        for (int p = 0; p < PARTS; p++)
            sum[r][p] = (VEC){0};
    int64_t k = 0;
    for (; k + SPLIT <= in; k += SPLIT)
#pragma GCC unroll 8
        for (int r = 0; r < ranks; r++)
#pragma GCC unroll 4
            for (int p = 0; p < PARTS; p++)
                sum[r][p] += VLOAD(a + r * a_row + k + p * LANES) * VLOAD(x + k + p * LANES);
    for (int r = 0; r < ranks; r++) {
        for (int p = 0; p < PARTS; p++)
            VSTORE(tail[r] + p * LANES, sum[r][p]);
        for (int64_t j = k; j < in; j++)
            tail[r][j - k] += a[r * a_row + j] * x[j];
        for (int step = SPLIT / 2; step > 0; step /= 2)
            for (int i = 0; i < step; i++)
                tail[r][i] += tail[r][i + step];
        s[r] = tail[r][0];
    }
}

LANES_FN void ISA(shrink)(float *s, const struct gd_wear_part *part, const float *x, int64_t in)
{
    const float *a = part->a;
    int64_t a_row = part->a_row;
    int r = 0, rank = part->rank;
    for (; r + 8 <= rank; r += 8)
        ISA(dots)(8, s + r, a + r * a_row, a_row, x, in);
    for (; r < rank; r++)
        ISA(dots)(1, s + r, a + r * a_row, a_row, x, in);
    for (r = 0; part->mid_add != NULL && r < rank; r++)
        s[r] += part->mid_add[r];
    for (r = 0; part->activation != GD_ACTIVATION_LINEAR && r < rank; r++)
        s[r] = gd_activate(part->activation, s[r]);
    for (r = 0; part->mid != NULL && r < rank; r++)
        s[r] *= part->mid[r];
}

/* Columns [begin, end) of `rows` rows of y, SPLIT columns at a time: their rows of b are transposed once, into `columns`
 * [rank][SPLIT], and used for all rows. */
LANES_FN void ISA(expand)(void *y, bool bf16, int64_t y_row, const float *s, int64_t s_row,
                          const struct gd_wear_part *part, int rows, int64_t begin, int64_t end, float *columns)
{
    float square[SPLIT * SPLIT], sums[GD_TILE * SPLIT], scale[SPLIT];
    const float *b = part->b;
    int rank = part->rank;
    for (int64_t o = begin; o < end; o += SPLIT) {
        int n = end - o < SPLIT ? (int)(end - o) : SPLIT;
        for (int j = 0; j < n; j++)
            scale[j] = part->b_scale != NULL ? part->scale * part->b_scale[o + j] : part->scale;
        for (int r = 0; r < rank; r += SPLIT) {
            int depth = rank - r < SPLIT ? rank - r : SPLIT;
            const float *source = b + o * rank + r;
            bool whole = n == SPLIT && depth == SPLIT;
            memset(square, 0, whole ? 0 : sizeof(square));
            for (int i = 0; !whole && i < n; i++)
                memcpy(square + i * SPLIT, source + i * rank, (size_t)depth * sizeof(float));
            ISA(transpose)(columns + r * SPLIT, SPLIT, whole ? source : square, whole ? rank : SPLIT, SPLIT, SPLIT);
        }
        for (int i = 0; i < rows; i += GD_TILE) {
            int count = rows - i < GD_TILE ? rows - i : GD_TILE;
            ISA(product)(count, PARTS, rank, s + i * s_row, s_row, 1, columns, SPLIT, sums, SPLIT, false);
            for (int u = 0; u < count; u++)
                for (int j = 0; j < n; j++) {
                    int64_t at = (i + u) * y_row + o + j;
                    gd_store(y, bf16, at, gd_load(y, bf16, at) + scale[j] * sums[u * SPLIT + j]);
                }
        }
    }
}

/* Columns [begin, end) of one row of y. */
LANES_FN void ISA(dense)(void *y, bool bf16, const float *delta, const float *x, int64_t in, int64_t begin, int64_t end)
{
    float sums[8];
    for (int64_t o = begin; o < end; o += 8) {
        int n = end - o < 8 ? (int)(end - o) : 8;
        if (n == 8)
            ISA(dots)(8, sums, delta + o * in, in, x, in);
        for (int j = 0; n < 8 && j < n; j++)
            ISA(dots)(1, sums + j, delta + (o + j) * in, in, x, in);
        for (int j = 0; j < n; j++)
            gd_store(y, bf16, o + j, gd_load(y, bf16, o + j) + sums[j]);
    }
}

static const struct gd_wear_kernels ISA(gd_wear_kernels) = {ISA(shrink), ISA(expand), ISA(dense)};

#undef SPLIT
#undef PARTS
