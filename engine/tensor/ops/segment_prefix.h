/*
 * segment_prefix.h - what segment_sum and segment_spread check of prefixes (attention_blocks.h says what they are).
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

static inline bool gd_segment_prefix_check(const char *what, const int32_t *prefix, int64_t segment, int32_t begin,
                                           struct gd_error *err)
{
    int32_t first = prefix[2 * segment], last = prefix[2 * segment + 1];
    if (first >= 0 && first <= last && last <= begin)
        return true;
    return gd_fail(err, GD_INTERNAL, "%s: segment %" PRId64 " begins at row %d and has the rows %d to %d as its prefix", what, segment,
                   begin, first, last);
}

#endif
