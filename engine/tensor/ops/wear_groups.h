/*
 * wear_groups.h - where each graft's rows begin among those that an op sees.
 *
 * Why      An expert gets some of a batch's rows, in the batch's order, so that they too are sorted by graft.
 * Memory   The op's scratch.
 * Threads  the calling one
 * Errors   GD_INTERNAL where there are more grafts than rows
 * Limits   none
 * Life     none
 */
#ifndef GD_TENSOR_OPS_WEAR_GROUPS_H
#define GD_TENSOR_OPS_WEAR_GROUPS_H

#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/wear.h"
#include <inttypes.h>

/* i[1]: which expert, i[2]: slots of a row, where the last two of the call's inputs are its offsets and order. */
static inline struct gd_value *gd_wear_call(struct gd_graph *g, const struct gd_op *op, struct gd_value *const *in, int in_count,
                                            int site)
{
    struct gd_value *all[GD_CALL_INPUTS_MAX] = {NULL};
    const struct gd_group *group = in[0] != NULL ? in[0]->group : NULL;
    struct gd_op_params params = {.i = {site, group != NULL ? group->index : 0, group != NULL ? group->slots : 0}};
    memcpy(all, in, (size_t)in_count * sizeof(*all));
    if (group != NULL) {
        all[in_count] = group->offsets;
        all[in_count + 1] = group->order;
    }
    return gd_graph_call(g, op, all, in_count + (group != NULL ? 2 : 0), &params);
}

/* out[0] as the rows in[0], in[1] a handle, i[0] the site. */
static inline bool gd_wear_shape_of_rows(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *wear = call->in[1];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || wear->dtype != GD_HANDLE || call->params.i[0] < 0)
        return gd_graph_fail(graph, "%s: '%s' is no rows, '%s' is no handle, or the site is negative", call->op->name, x->name,
                             wear->name) != NULL;
    return true;
}

static inline size_t gd_wear_groups_bytes(const struct gd_call *call)
{
    size_t bytes = call->in[0]->group != NULL ? ((size_t)call->in[0]->shape[0] + 2) * sizeof(int32_t) : 0;
    return (bytes + 63) / 64 * 64;
}

/* row_begin of the rows that the op sees; `scratch` has the bytes above. `at`: the input that the offsets are. */
static inline bool gd_wear_groups(const struct gd_kernel_args *args, int at, const struct gd_wear *wear, int32_t *scratch,
                                  const int32_t **row_begin, struct gd_error *err)
{
    *row_begin = wear->row_begin;
    if (args->in[at].rank == 0)
        return true;
    int64_t index = args->params->i[1], slots = args->params->i[2], count = args->in[0].shape[0], row = 0;
    const int32_t *order = (const int32_t *)args->in[at + 1].data + ((const int32_t *)args->in[at].data)[index];
    int64_t room = args->in[at + 1].shape[0] / slots;
    if (wear->group_count > room)
        return gd_fail(err, GD_INTERNAL, "%d grafts in a batch of %" PRId64 " rows", wear->group_count, room);
    for (int group = 0; group <= wear->group_count; group++) {
        while (row < count && order[row] >= 0 && order[row] / slots < wear->row_begin[group])
            row++;
        scratch[group] = (int32_t)row;
    }
    *row_begin = scratch;
    return true;
}

#endif
