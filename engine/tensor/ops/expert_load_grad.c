/* The backward of expert_load: dy f32 [2, E], the rows in use -> dp[t][e] = dy[1][e] there, else 0; f32 [i[0], E]. */
#include "engine/tensor/ops/experts.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *dy = call->in[0];
    if (dy->dtype != GD_F32 || dy->rank != 2 || dy->shape[0] != 2 || call->params.i[0] < 0 || !gd_used_rows_shape(call->in[1]))
        return gd_graph_fail(graph, "expert_load_grad: '%s' is no load of experts", dy->name) != NULL;
    gd_shape_like(call->out[0], dy, GD_F32);
    call->out[0]->shape[0] = call->params.i[0];
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->out[0].shape[0], experts = args->out[0].shape[1], used;
    const float *dy = (const float *)args->in[0].data + experts;
    float *dp = args->out[0].data;
    if (!gd_used_rows(&args->in[1], rows, &used, err))
        return false;
    for (int64_t t = 0; t < used; t++)
        memcpy(dp + t * experts, dy, (size_t)experts * sizeof(*dp));
    memset(dp + used * experts, 0, (size_t)((rows - used) * experts) * sizeof(*dp));
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->params.i[0], experts = op_case->in[0].shape[1], used = (int64_t)in[1][op_case->in[1].shape[0] - 1];
    for (int64_t t = 0; t < rows; t++)
        for (int64_t e = 0; e < experts; e++)
            out[0][t * experts + e] = t < used ? in[0][experts + e] : 0;
}

#define CASE(text, t, experts, used) \
    {.name = text, .in_count = 2, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {2, experts}, .fill = GD_FILL_POSITIVE}, \
            {.dtype = GD_I32, .rank = 1, .shape = {4}, .fill = GD_FILL_OFFSETS, .fill_limit = used}}, \
     .params = {.i = {t}}, .tolerance = 1e-6}
static const struct gd_op_case cases[] = {
    CASE("all rows", 37, 4, 37),
    CASE("padding rows", 64, 8, 41),
};

const struct gd_op gd_op_expert_load_grad = {
    .name = "expert_load_grad",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};
