/*
 * segment_prefix.h - the segments and prefixes (attention_blocks.h) of segment_sum and segment_spread.
 *
 * Why      Both are each other's gradient and take the same inputs.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   GD_INTERNAL naming segment and rows.
 * Limits   none
 * Life     none
 */
#ifndef GD_TENSOR_OPS_SEGMENT_PREFIX_H
#define GD_TENSOR_OPS_SEGMENT_PREFIX_H

#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

/* Input 3, the prefix, beside input 2, the offsets. */
static inline bool gd_segment_prefix_shape(struct gd_graph *graph, const struct gd_call *call)
{
    const struct gd_value *cu = call->in[2], *prefix = call->in[3];
    if (prefix != NULL && (prefix->dtype != GD_I32 || prefix->rank != 1 || prefix->shape[0] != 2 * (cu->shape[0] - 1)))
        return gd_graph_fail(graph, "%s: prefix '%s' must be i32 [2S], two for each segment of '%s'", call->op->name, prefix->name,
                             cu->name) != NULL;
    return true;
}

/* The rows that segment s is of, in the order of the batch: [0] its prefix (empty without one), [1] its own. */
struct gd_segment_rows {
    int32_t begin[2], end[2];
};

static inline bool gd_segment_rows_of(struct gd_segment_rows *out, const char *what, const struct gd_kernel_args *args, int64_t s,
                                      int64_t rows, struct gd_error *err)
{
    const int32_t *cu = args->in[2].data, *prefix = args->in[3].data;
    *out = (struct gd_segment_rows){.begin = {0, cu[s]}, .end = {0, cu[s + 1]}};
    if (cu[s] < 0 || cu[s] > cu[s + 1] || cu[s + 1] > rows)
        return gd_fail(err, GD_INTERNAL, "%s: segment %" PRId64 " is rows %d to %d of %" PRId64, what, s, cu[s], cu[s + 1], rows);
    if (prefix == NULL)
        return true;
    out->begin[0] = prefix[2 * s];
    out->end[0] = prefix[2 * s + 1];
    if (out->begin[0] >= 0 && out->begin[0] <= out->end[0] && out->end[0] <= cu[s])
        return true;
    return gd_fail(err, GD_INTERNAL, "%s: segment %" PRId64 " begins at row %d and has the rows %d to %d as its prefix", what, s,
                   cu[s], out->begin[0], out->end[0]);
}

/* The cases of both: x is [x_rows], weights [t]. */
#define GD_SEGMENT_INPUTS(x_rows, t, segments, used) \
    {.dtype = GD_F32, .rank = 1, .shape = {x_rows}, .gradient = true}, \
    {.dtype = GD_F32, .rank = 1, .shape = {t}, .fill = GD_FILL_POSITIVE}, \
    {.dtype = GD_I32, .rank = 1, .shape = {(segments) + 1}, .fill = GD_FILL_OFFSETS, .fill_limit = used}
#define GD_SEGMENT_CASE(text, x_rows, t, segments, used) \
    {.name = text, .in_count = 3, .in = {GD_SEGMENT_INPUTS(x_rows, t, segments, used)}, .tolerance = 1e-5}
#define GD_SEGMENT_PREFIX_CASE(text, x_rows, t, segments, used) \
    {.name = text, .in_count = 4, \
     .in = {GD_SEGMENT_INPUTS(x_rows, t, segments, used), \
            {.dtype = GD_I32, .rank = 1, .shape = {2 * (segments)}, .fill = GD_FILL_PREFIXES, .fill_limit = used}}, \
     .tolerance = 1e-5}

#endif
