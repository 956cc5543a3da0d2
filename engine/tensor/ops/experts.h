/*
 * experts.h - what the ops of a mixture of experts share.
 *
 * Why      A token's row goes to a few experts, and comes back from them.
 * Memory   none
 * Threads  the graph's; kernels split by rows, and a token has at most one row with each expert
 * Errors   through the graph; GD_INTERNAL where an order names rows that are not there
 * Limits   none
 * Life     none
 *
 * T rows, E experts, k slots. Slot j of row t goes to expert choice[t][j]; order lists t k + j by expert, upwards in each,
 * padded with -1 to a number of rows that products are made for: gd_padded_rows. What expert e has is rows
 * offsets[e] to offsets[e + 1] of these.
 */
#ifndef GD_TENSOR_OPS_EXPERTS_H
#define GD_TENSOR_OPS_EXPERTS_H

#include "engine/tensor/kv.h"
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

/* Up to eight sizes in each octave: few enough for the library to keep a product for each, and at most an eighth too many. */
static inline int64_t gd_padded_rows(int64_t rows)
{
    int64_t step = 1;
    while (16 * step < rows)
        step *= 2;
    return (rows + step - 1) / step * step;
}

/* At most, of one expert and of all. */
static inline int64_t gd_group_rows_max(int64_t rows)
{
    return rows + rows / 8;
}

/* Which rows are in use: an i32 list of segments [S + 1], or a handle of a gd_kv_batch. Later ones are padding. */
static inline bool gd_used_rows_shape(const struct gd_value *used)
{
    return used->dtype == GD_HANDLE || (used->dtype == GD_I32 && used->rank == 1 && used->shape[0] > 0);
}

static inline bool gd_used_rows(const struct gd_tensor *used, int64_t rows, int64_t *out, struct gd_error *err)
{
    if (used->dtype == GD_HANDLE) {
        const struct gd_kv_batch *cache = used->data;
        *out = cache->cu_seqlens[cache->sequence_count];
    } else {
        *out = ((const int32_t *)used->data)[used->shape[0] - 1];
    }
    if (*out < 0 || *out > rows)
        return gd_fail(err, GD_INTERNAL, "%" PRId64 " rows of %" PRId64 " are in use", *out, rows);
    return true;
}

/* The order entries of the rows that `first` has (offsets and order are inputs `at` and at + 1), each within rows * slots. */
static inline bool gd_group_order(const struct gd_kernel_args *args, int at, int64_t rows, const int32_t **order, int64_t *count,
                                  struct gd_error *err)
{
    const int32_t *offsets = args->in[at].data;
    int64_t index = args->params->i[0], slots = args->params->i[1];
    *order = (const int32_t *)args->in[at + 1].data + offsets[index];
    *count = offsets[index + 1] - offsets[index];
    for (int64_t i = 0; i < *count; i++)
        if ((*order)[i] >= rows * slots)
            return gd_fail(err, GD_INTERNAL, "row %" PRId64 " of expert %" PRId64 " is %d of %" PRId64, i, index, (*order)[i],
                           rows * slots);
    return true;
}

#endif
