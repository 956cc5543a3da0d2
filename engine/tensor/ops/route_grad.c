/*
 * The backward pass of route: z, dw, key and owner or neither -> dz. With S = sum_j u[j] + 1e-12 over a group,
 *   du[j] = (dw[j] - sum_i dw[i] w[i]) / S,   dz[j] = du[j] u[j] (1 - u[j]).
 */
#include "engine/tensor/ops/route.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    if (!gd_route_shape(graph, call, 2))
        return false;
    if (call->in[1]->dtype != GD_F32 || !gd_value_same_shape(call->in[0], call->in[1]))
        return gd_graph_fail(graph, "route_grad: '%s' is not like '%s'", call->in[1]->name, call->in[0]->name) != NULL;
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct gd_route route = gd_route_of(args, 2);
    int64_t splits = args->params->i[0], skills = args->params->i[1], groups = args->in[0].shape[0] * splits;
    const float *z = args->in[0].data, *dw = args->in[1].data;
    float *dz = args->out[0].data;
    for (int64_t group = 0; group < groups; group++) {
        int64_t segment = group / splits, first = group % splits * skills, at = group * skills;
        double sum = GD_ROUTE_EPS, along = 0;
        for (int64_t j = 0; j < skills; j++) {
            double u = gd_route_gate((double)z[at + j], &route, segment, first + j);
            sum += u;
            along += (double)dw[at + j] * u;
        }
        for (int64_t j = 0; j < skills; j++) {
            double u = gd_route_gate((double)z[at + j], &route, segment, first + j);
            dz[at + j] = (float)(((double)dw[at + j] - along / sum) / sum * u * (1 - u));
        }
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t width = op_case->in[0].shape[1], skills = op_case->params.i[1];
    struct gd_route route = {.width = width};
    for (int64_t at = 0; at < op_case->in[0].shape[0] * width; at++) {
        int64_t first = at / skills * skills;
        double sum = GD_ROUTE_EPS, own = gd_route_gate(in[0][at], &route, at / width, at % width);
        for (int64_t j = first; j < first + skills; j++)
            sum += gd_route_gate(in[0][j], &route, j / width, j % width);
        out[0][at] = 0;
        for (int64_t j = first; j < first + skills; j++) { /* d w[j] / d u[at], weight by weight */
            double u = gd_route_gate(in[0][j], &route, j / width, j % width);
            out[0][at] += in[1][j] * ((j == at ? 1 : 0) / sum - u / (sum * sum)) * own * (1 - own);
        }
    }
}

#define INPUT(g, n) {.dtype = GD_F32, .rank = 2, .shape = {g, n}, .fill = GD_FILL_POSITIVE}
#define ROW(g, n) {.dtype = GD_F32, .rank = 2, .shape = {g, n}}
static const struct gd_op_case cases[] = {
    {.name = "odd sizes", .in_count = 2, .in = {INPUT(3, 15), ROW(3, 15)}, .params = {.i = {5, 3}}, .tolerance = 1e-5},
    {.name = "one split", .in_count = 2, .in = {INPUT(2, 4), ROW(2, 4)}, .params = {.i = {1, 4}}, .tolerance = 1e-5},
};

const struct gd_op gd_op_route_grad = {
    .name = "route_grad",
    .in_min = 2, .in_max = 4, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};
