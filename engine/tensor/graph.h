/*
 * graph.h - a computation as calls of ops on symbolic values, built once, run many times.
 *
 * Why      The plan can know the peak memory before anything runs, free early, share one arena, and
 *          the backward pass is built from the forward pass, op by op.
 * Memory   The graph owns values and calls (one arena). Names are copied.
 * Threads  One thread at a time.
 * Errors   Building functions return NULL after the first failure, which the graph keeps; NULL in
 *          gives NULL out, so that building code reads like the formula. gd_graph_ok tells.
 * Limits   GD_CALL_INPUTS_MAX, GD_CALL_OUTPUTS_MAX.
 * Life     gd_graph_create -> inputs, weights, params, ops (ops.h) -> gd_graph_gradient -> gd_plan_create
 *          (plan.h) -> gd_graph_destroy after the plan.
 */
#ifndef GD_TENSOR_GRAPH_H
#define GD_TENSOR_GRAPH_H

#include "engine/base/error.h"
#include "engine/tensor/tensor.h"
#include "engine/tensor/weight.h"

#define GD_CALL_INPUTS_MAX 10
#define GD_CALL_OUTPUTS_MAX 8
#define GD_SPLIT_MAX 8           /* of a value that is split */

enum gd_value_kind {
    GD_VALUE_INPUT,    /* bound before each run: ids, positions, labels, handles */
    GD_VALUE_WEIGHT,   /* frozen */
    GD_VALUE_PARAM,    /* trainable f32 master, bound to the job's flat block */
    GD_VALUE_COMPUTED, /* result of a call */
};

struct gd_op;
struct gd_call;
struct gd_graph;

/* Rows of one expert: how many there are is known only when the graph runs (gd_expert_dispatch in ops.h). */
struct gd_group {
    struct gd_value *offsets;   /* i32 [groups + 1]: where each group begins among the rows of all */
    struct gd_value *order;     /* i32 [rows of all groups]: row * slots + slot that each came from, or -1: from none */
    int index;                  /* which group */
    int slots;
    int64_t rows_max;           /* of one group; a value whose shape[0] is n times that has n rows for each of the group's */
};

struct gd_value {
    int index;                  /* dense, in order of creation */
    enum gd_value_kind kind;
    enum gd_dtype dtype;
    int rank;
    int64_t shape[GD_RANK_MAX];
    const char *name;           /* for dumps and errors; never NULL */
    struct gd_weight *weight;   /* GD_VALUE_WEIGHT only */
    struct gd_call *producer;   /* GD_VALUE_COMPUTED only */
    bool needs_gradient;        /* PARAMs, and whatever depends on one */
    const struct gd_group *group; /* it has this group's rows, and shape[0] is the most there may be; NULL: as shape says */
};

/* What an op needs besides its inputs; each op documents its own use of the slots (ops.h). */
struct gd_op_params {
    int64_t i[8];
    double f[4];
};

struct gd_call {
    const struct gd_op *op;
    int index;
    int in_count, out_count;
    struct gd_value *in[GD_CALL_INPUTS_MAX];   /* entries may be NULL where the op says "optional" */
    struct gd_value *out[GD_CALL_OUTPUTS_MAX];
    struct gd_op_params params;
};

/* `act` is the dtype of activations (F32 or BF16) that ops produce from ids and weights. */
GD_MUST_CHECK bool gd_graph_create(struct gd_graph **out, enum gd_dtype act, struct gd_error *err);
void gd_graph_destroy(struct gd_graph *graph);
enum gd_dtype gd_graph_act(const struct gd_graph *graph);
bool gd_graph_ok(const struct gd_graph *graph, struct gd_error *err); /* copies the first failure */

struct gd_value *gd_graph_input(struct gd_graph *graph, const char *name, enum gd_dtype dtype, int rank,
                                const int64_t *shape);
struct gd_value *gd_graph_handle(struct gd_graph *graph, const char *name); /* dtype HANDLE: a struct pointer */
struct gd_value *gd_graph_weight(struct gd_graph *graph, struct gd_weight *weight); /* one value per weight */
struct gd_value *gd_graph_param(struct gd_graph *graph, const char *name, int rank, const int64_t *shape);

/* For ops: one object for each group of `offsets`. */
const struct gd_group *gd_graph_group(struct gd_graph *graph, struct gd_value *offsets, struct gd_value *order, int index, int slots,
                                      int64_t rows_max);

/* For ops: appends a call after op->shape accepted it; returns out[0]. */
struct gd_value *gd_graph_call(struct gd_graph *graph, const struct gd_op *op, struct gd_value *const *in, int in_count,
                               const struct gd_op_params *params);
/* Output i of the call that produced `first` (out[0]). NULL for NULL. */
struct gd_value *gd_value_output(struct gd_value *first, int output_index);
/* Marks the graph as failed with a message. Always returns NULL. */
struct gd_value *gd_graph_fail(struct gd_graph *graph, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * Adds the backward pass of the scalar `loss` ([1] f32; its own gradient is 1). For params[i] the
 * gradient ([same shape] f32) is returned in grads[i], NULL where the loss does not depend on it.
 * Values of any kind may stand among `params`: gd_graph_want marks an input as needing a gradient first.
 */
GD_MUST_CHECK bool gd_graph_gradient(struct gd_graph *graph, struct gd_value *loss, struct gd_value *const *params,
                                     int param_count, struct gd_value **grads, struct gd_error *err);

/* A layer begins or ends here. With gd_graph_recompute (before gd_graph_gradient), calls between two marks keep nothing for
 * the backward pass, which makes them again, the same calls on the same inputs, when it comes to their layer (Chen et al.
 * 2016): what is kept is what crosses a mark. Results are the same bit for bit. */
void gd_graph_mark(struct gd_graph *graph);
void gd_graph_recompute(struct gd_graph *graph);

/* Makes an INPUT count as trainable (attribution, tests). Call before it is used. */
void gd_graph_want(struct gd_value *input);

int gd_graph_call_count(const struct gd_graph *graph);
struct gd_call *gd_graph_call_at(const struct gd_graph *graph, int index);
int gd_graph_value_count(const struct gd_graph *graph);
struct gd_value *gd_graph_value_at(const struct gd_graph *graph, int index);

#endif
