/* y = x + i[0], i32. */
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0];
    if (x->dtype != GD_I32 || x->rank != 1)
        return gd_graph_fail(graph, "shift: '%s' is no i32 vector", x->name) != NULL;
    gd_shape_like(call->out[0], x, GD_I32);
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const int32_t *x = args->in[0].data;
    int32_t *y = args->out[0].data, by = (int32_t)args->params->i[0];
    for (int64_t i = 0; i < args->in[0].shape[0]; i++)
        y[i] = x[i] + by;
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    for (int64_t i = 0; i < op_case->in[0].shape[0]; i++)
        out[0][i] = in[0][i] + (double)op_case->params.i[0];
}

static const struct gd_op_case cases[] = {
    {.name = "by two", .in_count = 1, .in = {{.dtype = GD_I32, .rank = 1, .shape = {37}, .fill = GD_FILL_POSITIONS}},
     .params = {.i = {2}}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
};

const struct gd_op gd_op_shift = {
    .name = "shift",
    .in_min = 1, .in_max = 1, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_shift(struct gd_graph *g, struct gd_value *x, int by)
{
    struct gd_op_params params = {.i = {by}};
    return by == 0 ? x : gd_graph_call(g, &gd_op_shift, (struct gd_value *[]){x}, 1, &params);
}
