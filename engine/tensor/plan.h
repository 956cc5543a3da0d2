/*
 * plan.h - decides what lives where and when, and runs a graph.
 *
 * Why      Peak memory is known to the byte before anything runs; a step is a fixed list of kernel
 *          calls between any two of which the worker may do something more urgent.
 * Memory   The plan owns its tables; the arena is the caller's (several plans may share one).
 * Threads  engine thread
 * Errors   The graph's first failure; GD_NO_MEMORY from weight layouts; kernel errors with the op's name.
 * Limits   none
 * Life     gd_plan_create -> gd_plan_attach -> bind -> run ... -> gd_plan_destroy (before the graph).
 */
#ifndef GD_TENSOR_PLAN_H
#define GD_TENSOR_PLAN_H

#include "engine/tensor/graph.h"

struct gd_plan;

/* Only calls that `outputs` depend on are planned. Prepares the weights that they use, unless
 * `dry` (then only sizes are known: gd_plan_arena_bytes, gd_plan_weight_bytes). */
GD_MUST_CHECK bool gd_plan_create(struct gd_plan **out, struct gd_graph *graph, struct gd_value *const *outputs,
                                  int output_count, bool dry, struct gd_error *err);
void gd_plan_destroy(struct gd_plan *plan);

size_t gd_plan_arena_bytes(const struct gd_plan *plan);   /* computed values and scratch, peak */
/* What of it calls [begin, end) of the graph hold at the fullest step: their results and scratch. */
size_t gd_plan_share_bytes(const struct gd_plan *plan, int begin, int end);
size_t gd_plan_table_bytes(const struct gd_plan *plan);   /* of the plan and its graph themselves */
size_t gd_plan_weight_bytes(const struct gd_plan *plan);  /* layouts that prepare added or would add */
const struct gd_layout_cost *gd_plan_layouts(const struct gd_plan *plan); /* the same by use */

/* `arena`: of gd_device_alloc, at least gd_plan_arena_bytes; used only while gd_plan_run is running,
 * except that outputs which are not bound stay there until the arena is used again. */
void gd_plan_attach(struct gd_plan *plan, void *arena);

/* Binds an INPUT or PARAM (must be bound before run), or an output (else it lives in the arena). `data` may be any memory of the
 * host: inputs are brought to the device before each run and outputs back after it, unless it is a twin (device.h), which
 * kernels use where it lies, or memory of the device. */
void gd_plan_bind(struct gd_plan *plan, struct gd_value *value, void *data);
/* Where kernels find a value: an address of the device. */
void *gd_plan_address(const struct gd_plan *plan, const struct gd_value *value);
/* A value after a run, for the host to read until the next run; NULL after an error of the device. */
const void *gd_plan_read(struct gd_plan *plan, const struct gd_value *value, struct gd_error *err);

struct gd_run_options {
    /* Called between ops; false stops the run with GD_CANCELLED. May run other plans on other arenas. */
    bool (*between)(void *context);
    void *context;
    bool check_finite;      /* after each op: GD_INTERNAL naming op, value and first bad index */
};
GD_MUST_CHECK bool gd_plan_run(struct gd_plan *plan, const struct gd_run_options *options, struct gd_error *err);

#endif
