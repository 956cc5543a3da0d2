/*
 * graph_internal.h - what the plan and a few building functions may know about a graph.
 *
 * Why      The public graph is a contract with model code; this is shared inside the room only.
 * Memory   The graph's.
 * Threads  The graph's.
 * Errors   none
 * Limits   none
 * Life     the graph's
 */
#ifndef GD_TENSOR_GRAPH_INTERNAL_H
#define GD_TENSOR_GRAPH_INTERNAL_H

#include "engine/tensor/graph.h"

/* The gradient of the loss itself: an f32 [1] that is always 1; made by gd_graph_gradient, bound by the plan. */
const struct gd_value *gd_graph_one(const struct gd_graph *graph); /* NULL if there is none yet */
struct gd_value *gd_graph_make_one(struct gd_graph *graph);

/* gd_graph_gradient for any value and the gradient that arrives at it (same shape and dtype). */
GD_MUST_CHECK bool gd_graph_gradient_from(struct gd_graph *graph, struct gd_value *from, struct gd_value *from_grad,
                                          struct gd_value *const *params, int param_count, struct gd_value **grads,
                                          struct gd_error *err);

/* The stretch of calls [*begin, *end) between two marks that call `index` lies in, where stretches are made again. */
bool gd_graph_stretch(const struct gd_graph *graph, int index, int *begin, int *end);

/* Elements and bytes of a value; both fit size_t (checked when the value was made). */
int64_t gd_value_elements(const struct gd_value *value);
size_t gd_value_bytes(const struct gd_value *value);
bool gd_value_same_shape(const struct gd_value *a, const struct gd_value *b);

#endif
