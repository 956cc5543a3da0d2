/*
 * elementwise.h - what the ops that work element by element share.
 *
 * Why      Their shape rules and splits over threads are the same.
 * Memory   none
 * Threads  the graph's; kernels split by elements
 * Errors   through the graph
 * Limits   none
 * Life     none
 */
#ifndef GD_TENSOR_OPS_ELEMENTWISE_H
#define GD_TENSOR_OPS_ELEMENTWISE_H

#include "engine/tensor/graph_internal.h"
#include "engine/tensor/kernel.h"
#include "engine/tensor/ops.h"

static inline bool gd_is_float(const struct gd_value *value)
{
    return value->dtype == GD_F32 || value->dtype == GD_BF16;
}

static inline void gd_shape_like(struct gd_value *out, const struct gd_value *in, enum gd_dtype dtype)
{
    out->dtype = dtype;
    out->rank = in->rank;
    memcpy(out->shape, in->shape, sizeof(out->shape));
}

/* out[0] as in[0], which is not a weight and is F32 or BF16. */
static inline bool gd_shape_unary(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *a = call->in[0];
    if (!gd_is_float(a) || a->kind == GD_VALUE_WEIGHT)
        return gd_graph_fail(graph, "%s: '%s' is %s%s; it takes F32 or BF16 values", call->op->name, a->name,
                             a->kind == GD_VALUE_WEIGHT ? "a weight in " : "", gd_dtype_name(a->dtype)) != NULL;
    gd_shape_like(call->out[0], a, a->dtype);
    return true;
}

/* in[1] of the same shape and dtype as well. */
static inline bool gd_shape_binary(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *a = call->in[0], *b = call->in[1];
    if (!gd_shape_unary(graph, call))
        return false;
    if (b->kind == GD_VALUE_WEIGHT || a->dtype != b->dtype || a->group != b->group || !gd_value_same_shape(a, b))
        return gd_graph_fail(graph, "%s: '%s' (%s) and '%s' (%s) differ in shape or dtype", call->op->name, a->name,
                             gd_dtype_name(a->dtype), b->name, gd_dtype_name(b->dtype)) != NULL;
    return true;
}

/* run_cpu of an op whose output has the bytes of its input. */
static inline bool gd_run_copy(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *y = &args->out[0];
    if (x->data != y->data)
        memcpy(y->data, x->data, gd_dtype_bytes(x->dtype, gd_tensor_count(x)));
    return true;
}

#endif
