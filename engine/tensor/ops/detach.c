/* y = x, through which no gradient flows. */
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    call->out[0]->needs_gradient = false;
    return gd_shape_unary(graph, call);
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0] * op_case->in[0].shape[1];
    memcpy(out[0], in[0], (size_t)count * sizeof(double));
}

static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 1, .in = {{.dtype = GD_F32, .rank = 2, .shape = {1, 1}}}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
    {.name = "odd sizes", .in_count = 1, .in = {{.dtype = GD_F32, .rank = 2, .shape = {7, 35}}}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
};

const struct gd_op gd_op_detach = {
    .name = "detach",
    .in_min = 1, .in_max = 1, .out_count = 1,
    .shape = shape,
    .run_cpu = gd_run_copy,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_detach(struct gd_graph *g, struct gd_value *x)
{
    return gd_graph_call(g, &gd_op_detach, &x, 1, NULL);
}
