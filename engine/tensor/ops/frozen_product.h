/*
 * frozen_product.h - what linear and linear_back share: a product with a frozen weight, plus an optional addend.
 *
 * Why      They are one kernel in two directions.
 * Memory   none
 * Threads  the graph's; the library's inside the kernel
 * Errors   through the graph; GD_INTERNAL from the library
 * Limits   none
 * Life     none
 */
#ifndef GD_TENSOR_OPS_FROZEN_PRODUCT_H
#define GD_TENSOR_OPS_FROZEN_PRODUCT_H

#include "engine/tensor/ops/elementwise.h"

/* in: x, weight, optional addend of out's shape and dtype. i[0]: the result is f32 whatever x is. */
static inline bool gd_frozen_product_shape(struct gd_graph *graph, struct gd_call *call, bool back)
{
    const struct gd_value *x = call->in[0], *w = call->in[1], *c = call->in_count > 2 ? call->in[2] : NULL;
    struct gd_value *out = call->out[0];
    const char *op = call->op->name;
    if (w->kind != GD_VALUE_WEIGHT || w->rank != 2)
        return gd_graph_fail(graph, "%s: '%s' is no weight of two dimensions", op, w->name) != NULL;
    if (x->kind == GD_VALUE_WEIGHT || x->dtype != gd_graph_act(graph) || x->rank != 2 || x->shape[1] != w->shape[back ? 0 : 1])
        return gd_graph_fail(graph, "%s: '%s' does not fit '%s' [%lld, %lld]", op, x->name, w->name, (long long)w->shape[0],
                             (long long)w->shape[1]) != NULL;
    out->dtype = call->params.i[0] != 0 ? GD_F32 : x->dtype;
    out->rank = 2;
    out->shape[0] = x->shape[0];
    out->shape[1] = w->shape[back ? 1 : 0];
    if (c != NULL && (c->kind == GD_VALUE_WEIGHT || c->dtype != out->dtype || c->group != x->group || !gd_value_same_shape(c, out)))
        return gd_graph_fail(graph, "%s: addend '%s' differs from the result in shape or dtype", op, c->name) != NULL;
    return true;
}

static inline bool gd_frozen_product_run(const struct gd_kernel_args *args, bool back, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *c = &args->in[2], *y = &args->out[0];
    if (c->rank != 0 && c->data != y->data)
        memcpy(y->data, c->data, gd_dtype_bytes(y->dtype, gd_tensor_count(y)));
    return gd_weight_multiply(args->weight[1], back, x->data, x->dtype, y->data, y->dtype, x->shape[0], c->rank != 0, err);
}

#endif
