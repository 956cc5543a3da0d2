/*
 * wear.h - which rows of a mixed batch wear which graft, and what a graft does to its rows at a site.
 *
 * Why      Requests of different grafts, and of different methods, share one pass over one base. What a method does to
 *          a linear map is expressed in a small closed set of row operations, so that serving knows no methods.
 * Memory   Borrowed by the kernels.
 * Threads  engine thread
 * Errors   none
 * Limits   GD_WEAR_RANK_MAX
 * Life     filled for each run
 *
 *     x' = in_rotate (in_scale * x)
 *     y  = out_scale * base(x') + out_add + scale * b_scale * (B (mid * (A x'))) + delta x' + S x'
 *
 * where in_rotate is block-diagonal, S sparse, * between vectors is by element and what is absent (NULL) leaves its step out. At a
 * norm, `norm` and `norm_bias` stand in for the base's weight and bias. At a block, base(x') is what the block made, x what
 * entered it or (`serial`) what it made, and
 *
 *     y  = out_scale * base(x') + out_add + skip x + scale * b_scale * (B (mid * f(A x + mid_add)))
 *
 * with f the activation, which is "linear" in parts that can be merged.
 *
 * At the embedded tokens, y = x + rows[index of the token in its sequence], if there is such a row, + table_scale table[the token] +
 * positions[the token's position + position_offset].
 */
#ifndef GD_TENSOR_WEAR_H
#define GD_TENSOR_WEAR_H

#include "engine/base/anywhere.h"
#include "engine/tensor/activation.h"
#include "engine/tensor/tensor.h"

#define GD_WEAR_RANK_MAX 512

struct gd_wear_part {            /* one graft at one site */
    const float *in_scale;       /* [in] */
    const float *in_rotate;      /* [in / rotate_block] squares of rotate_block rows and columns; rotate_block divides in */
    int rotate_block;
    const float *out_scale;      /* [out] */
    const float *out_add;        /* [out] */
    int rank;                    /* 0: no product */
    float scale;
    const float *a;              /* [rank] rows of `in`, a_row floats apart */
    int64_t a_row;
    const float *mid;            /* [rank] */
    const float *b;              /* [out, rank] */
    const float *b_scale;        /* [out] */
    const float *delta;          /* [out, in] */
    int64_t entry_count;         /* of S, sorted by row */
    const int32_t *entry_row, *entry_column;
    const float *entry;
    const float *norm;           /* [width] */
    const float *norm_bias;      /* [width] */
    bool serial;                 /* at a block */
    enum gd_activation activation;
    const float *mid_add;        /* [rank] */
    float skip;
    const float *rows;           /* [row_count, width] */
    int row_count;
    const float *table;          /* [vocabulary, width] */
    float table_scale;
    const float *positions;      /* [positions, width] */
    int position_offset;
};

/* The first entry of S whose row is not below `row`. */
static GD_ANYWHERE inline int64_t gd_wear_entry_from(const struct gd_wear_part *part, int64_t row)
{
    int64_t low = 0, high = part->entry_count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (part->entry_row[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* What a part's arrays belong to, for a device that takes them into its own memory. */
struct gd_wear_shape {
    int64_t in, out;             /* of the linear map or block; of a norm and of embedded tokens `out` is the width */
    int64_t table_rows;          /* of table */
    int64_t position_rows;       /* of positions */
};

/* How much of a graph the wearing of a batch needs; each includes those before it. */
enum gd_wear_depth {
    GD_WEAR_NONE,                /* bare base rows only */
    GD_WEAR_OUTPUTS,             /* what follows the base's product */
    GD_WEAR_INPUTS,              /* in_scale and in_rotate too */
    GD_WEAR_NORMS,               /* norms too */
    GD_WEAR_BLOCKS,              /* blocks too */
    GD_WEAR_ROWS,                /* embedded tokens too */
    GD_WEAR_DEPTHS,
};

struct gd_wear {
    int group_count;                         /* rows are sorted by graft */
    const int32_t *row_begin;                /* [group_count + 1] */
    const struct gd_wear_part *const *sites; /* sites[group][site]; sites[group] NULL: base rows */
    const int32_t *row_index;                /* of each row: the token's index in its sequence, or -1 where no part may change it */
    const int32_t *ids, *positions;          /* of each row: its token, and where that stands */
};

#endif
