/*
 * op_case.h - one case of an op made runnable: inputs as doubles, a graph of one call, its plan and its memory.
 *
 * Why      The shared op test builds every case many times: f32, bf16, in place, with its gradient.
 * Memory   A bench owns everything that hangs on it; bench_release.
 * Threads  one
 * Errors   Failures are cmocka failures or messages of the graph and plan.
 * Limits   none
 * Life     case_fill -> bench_build -> bench_run ... -> bench_release
 */
#ifndef TESTS_UNIT_TENSOR_OP_CASE_H
#define TESTS_UNIT_TENSOR_OP_CASE_H

#include "engine/tensor/op.h"
#include "engine/tensor/plan.h"

int64_t case_count(const struct gd_case_input *input);
/* Inputs of a case as doubles (NULL where absent), already rounded to bf16 for the bf16 run. */
void case_fill(const struct gd_op_case *op_case, enum gd_dtype act, double *data[GD_CALL_INPUTS_MAX]);
void case_release(double *data[GD_CALL_INPUTS_MAX]);

struct bench {
    struct gd_graph *graph;
    struct gd_plan *plan;
    struct gd_call *call;                            /* the op's */
    struct gd_value *in[GD_CALL_INPUTS_MAX];         /* what is bound */
    void *memory[GD_CALL_INPUTS_MAX];
    struct gd_weight *weights[GD_CALL_INPUTS_MAX];
    struct gd_value *upstream;                       /* gradient of out[0], an input; NULL without gradients */
    void *upstream_memory;
    struct gd_value *grads[GD_CALL_INPUTS_MAX];
    char *arena;
    size_t arena_bytes;
};

/* through_copy: inputs that the op may overwrite pass through a copy that dies at the op. upstream: values of the
 * gradient that arrives at out[0], or NULL for the forward pass alone. */
bool bench_build(struct bench *bench, const struct gd_op *op, const struct gd_op_case *op_case, enum gd_dtype act,
                 double *const *data, bool through_copy, const double *upstream, struct gd_error *err);
/* Fills the arena with NaN first, so that nothing old can help. */
bool bench_run(struct bench *bench, struct gd_error *err);
/* Element i of a value of the plan, as a double. */
double bench_at(const struct bench *bench, const struct gd_value *value, int64_t i);
void bench_release(struct bench *bench);

double test_normal(uint64_t key, uint64_t i);
double test_uniform(uint64_t key, uint64_t i);

#endif
