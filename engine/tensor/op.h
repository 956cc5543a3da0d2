/*
 * op.h - one operation: shape rule, CPU kernel, gradient, test cases, in one file.
 *
 * Why      Whoever adds an op touches one new file under ops/ and one line in meson's op_names.
 * Memory   Kernels allocate nothing; scratch is in the plan's arena.
 * Threads  Kernels run on the engine thread and use OpenMP inside, with fixed (static) schedules
 *          and fixed orders of summation, so that results repeat bit for bit for a thread count.
 * Errors   shape() rejects bad inputs through gd_graph_fail; kernels fail only for library errors.
 * Limits   none
 * Life     none (constants)
 *
 * To add an op: 1 write ops/NAME.c with `const struct gd_op gd_op_NAME` and its building function
 * 2 declare the building function in ops.h 3 add 'NAME' to op_names in meson.build (sorted)
 * 4 give it cases with a double-precision reference: the shared op test finds them.
 */
#ifndef GD_TENSOR_OP_H
#define GD_TENSOR_OP_H

#include "engine/tensor/graph.h"

struct gd_kernel_args {
    struct gd_tensor in[GD_CALL_INPUTS_MAX];         /* rank 0 where the optional input is absent */
    struct gd_weight *weight[GD_CALL_INPUTS_MAX];    /* where in[i] is a frozen weight (in[i].data is NULL) */
    struct gd_tensor out[GD_CALL_OUTPUTS_MAX];
    const struct gd_op_params *params;
    void *scratch;                                   /* the backend's scratch_bytes(call), 64-byte aligned */
    const void *staged;                              /* what the backend's stage() packed of handles, on the device */
};

/* What an op makes of values that have a group's rows (graph.h). */
enum gd_group_rule {
    GD_GROUPS_REFUSED,
    GD_GROUPS_KEPT,      /* it works row by row: its outputs have the same rows; it is not called where there are none */
    GD_GROUPS_OWN,       /* its shape() says which outputs have rows of a group */
};

typedef bool (*gd_kernel_fn)(const struct gd_kernel_args *args, struct gd_error *err);

enum gd_case_fill {
    GD_FILL_NORMAL,   /* N(0,1); with two or more dimensions and no weight an activation: BF16 in the bf16 run */
    GD_FILL_POSITIVE, /* uniform (0.5, 1.5) */
    GD_FILL_APART,    /* an activation within (-2, 2) in no order, the numbers of a row clearly apart: for what chooses among them */
    GD_FILL_SMALL,    /* N(0, 0.05^2) */
    GD_FILL_IDS,      /* uniform integers in [0, fill_limit) */
    GD_FILL_POSITIONS,/* 0,1,2,... */
    GD_FILL_OFFSETS,  /* cu_seqlens: splits [0, fill_limit] into shape[0]-1 segments of uneven length */
    GD_FILL_PREFIXES, /* [2S] beside such offsets with the same fill_limit: part of an earlier segment for two of three segments */
    GD_FILL_LABELS,   /* ids with every third entry -100 */
    GD_FILL_FREQS,    /* rope inverse frequencies for theta 10000 */
    GD_FILL_KEY,      /* random key words */
};

struct gd_case_input {
    enum gd_dtype dtype;
    int rank;
    int64_t shape[GD_RANK_MAX];
    enum gd_case_fill fill;
    int64_t fill_limit;
    bool as_weight;      /* passed as a frozen gd_weight */
    bool gradient;       /* checked against finite differences of the reference */
};

struct gd_op_case {
    const char *name;    /* a sentence fragment: "odd sizes, window 3" */
    int in_count;        /* 0-rank inputs are passed as NULL */
    struct gd_case_input in[GD_CALL_INPUTS_MAX];
    struct gd_op_params params;
    double tolerance;    /* relative, f32 kernel against the double reference */
    double tolerance_bf16; /* 0: the op has no bf16 form */
};

/* Inputs as doubles (integers too), shapes as in the case; fills out[k][...] with out_shape known. */
typedef void (*gd_reference_fn)(const struct gd_op_case *op_case, double *const *in, double **out);

struct gd_op {
    const char *name;
    int in_min, in_max, out_count;
    /* Sets dtype, rank and shape of call->out[*], and lowers call->out_count where it varies; false after gd_graph_fail. */
    bool (*shape)(struct gd_graph *graph, struct gd_call *call);
    size_t (*scratch_bytes)(const struct gd_call *call);        /* NULL: none */
    enum gd_weight_use (*weight_use)(const struct gd_call *call, int input); /* NULL: GD_WEIGHT_VECTOR */
    gd_kernel_fn run_cpu;
    /* out_grad[k] is NULL where nothing flows; set in_grad[i] only where in[i]->needs_gradient.
     * Absent (NULL function): the op is not differentiable. */
    bool (*gradient)(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad);
    /* The plan may put out[0] into the memory of in[inplace] when that dies here. -1: never. */
    int inplace;
    /* Optional input that the kernel adds to out[0] on the way (same shape and dtype): sums of gradients ride on the
     * products that make them. 0: none. */
    int addend;
    bool light;   /* cheap, of inputs that its own gradient reads: the backward pass makes it again instead of keeping its outputs */
    bool views;   /* its outputs are rows of in[0], in order, and lie where that lies; the kernel does nothing */
    bool joins;   /* out[0] is the inputs side by side; the kernel leaves alone what lies where it belongs */
    enum gd_group_rule groups;
    gd_reference_fn reference;
    const struct gd_op_case *cases;
    int case_count;
};

/* All ops, sorted by name (made from meson's list). */
extern const struct gd_op *const gd_op_table[];
extern const int gd_op_count;
const struct gd_op *gd_op_find(const char *name);

#endif
