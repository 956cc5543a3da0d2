/*
 * again.h - wide values that the backward pass makes again instead of keeping them.
 *
 * Why      What a feed-forward part makes between its products is more than half of what a layer keeps, and two products of the
 *          layer's seven. Made again in two layers of three it costs a tenth of a step, where whole layers cost a third, and a
 *          quantised base then trains in 0.6 of the memory of a plain one.
 * Memory   In the graph.
 * Threads  engine thread
 * Errors   none
 * Limits   none
 * Life     gd_graph_wide while the graph is built; gd_graph_keep_narrow before gd_graph_gradient.
 *
 * Results are the same bit for bit. Where whole layers are made again (gd_graph_recompute), these come with them.
 */
#ifndef GD_TENSOR_AGAIN_H
#define GD_TENSOR_AGAIN_H

#include "engine/tensor/graph.h"

/* The calls from `begin` on, as many as there are now, make wide values. */
void gd_graph_wide(struct gd_graph *graph, int begin);
/* None of these is kept for the backward pass. */
void gd_graph_keep_narrow(struct gd_graph *graph);
/* Whether call `index` is made again for that reason. */
bool gd_graph_is_wide(const struct gd_graph *graph, int index);

#endif
