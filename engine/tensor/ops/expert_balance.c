/*
 * The load-balancing loss of Switch transformers (Fedus et al. 2021, eq. 4 to 6) for k experts a row, over all layers together:
 *
 *   L = E sum_e f_e P_e,  f_e = rows that chose e / R,  P_e = mean p_e over the R rows of all layers
 *
 * x: f32 [2, E], the layers' expert_load added up; i[0]: k, so that R = sum of x[0] / k. Output 0: L f32 [1] (0 without rows),
 * output 1: dL/dx f32 [2, E], where the first row counts as constant.
 */
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0];
    if (x->dtype != GD_F32 || x->rank != 2 || x->shape[0] != 2 || call->params.i[0] < 1)
        return gd_graph_fail(graph, "expert_balance: '%s' is no load of experts", x->name) != NULL;
    call->out[0]->dtype = GD_F32;
    call->out[0]->rank = 1;
    call->out[0]->shape[0] = 1;
    gd_shape_like(call->out[1], x, GD_F32);
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t experts = args->in[0].shape[1];
    const float *rows = args->in[0].data, *sums = rows + experts;
    float *gradient = args->out[1].data;
    double all = 0, loss = 0;
    for (int64_t e = 0; e < experts; e++)
        all += (double)rows[e] / (double)args->params->i[0];
    double factor = all > 0 ? (double)experts / (all * all) : 0;
    for (int64_t e = 0; e < experts; e++) {
        loss += factor * (double)rows[e] * (double)sums[e];
        gradient[e] = 0;
        gradient[experts + e] = (float)(factor * (double)rows[e]);
    }
    *(float *)args->out[0].data = (float)loss;
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (out_grad[1] != NULL)
        return gd_graph_fail(graph, "expert_balance: only its loss is differentiable") != NULL;
    in_grad[0] = gd_mul_scalar(graph, call->out[1], out_grad[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t experts = op_case->in[0].shape[1];
    double all = 0;
    for (int64_t e = 0; e < experts; e++)
        all += in[0][e] / (double)op_case->params.i[0];
    out[0][0] = 0;
    for (int64_t e = 0; e < experts; e++) {
        out[0][0] += (double)experts * in[0][e] * in[0][experts + e] / (all * all);
        out[1][e] = 0;
        out[1][experts + e] = (double)experts * in[0][e] / (all * all);
    }
}

/* Its gradient takes the counts as constants, which finite differences do not: experts_test.c checks it through the router. */
#define CASE(text, experts, k) \
    {.name = text, .in_count = 1, .in = {{.dtype = GD_F32, .rank = 2, .shape = {2, experts}, .fill = GD_FILL_POSITIVE}}, \
     .params = {.i = {k}}, .tolerance = 1e-6}
static const struct gd_op_case cases[] = {
    CASE("one expert", 1, 1),
    CASE("two of eight", 8, 2),
};

const struct gd_op gd_op_expert_balance = {
    .name = "expert_balance",
    .in_min = 1, .in_max = 1, .out_count = 2,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_expert_balance(struct gd_graph *g, struct gd_value *load, int chosen)
{
    return gd_graph_call(g, &gd_op_expert_balance, &load, 1, &(struct gd_op_params){.i = {chosen}});
}
