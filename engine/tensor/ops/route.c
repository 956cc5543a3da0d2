/*
 * w[g][h][j] = u[g][h][j] / (sum_j u[g][h][j] + 1e-12), u of route.h: mixing weights of skills from logits (Ponti et al. 2022).
 * i[0] splits h, i[1] skills j, i[2] site. A few numbers a segment: in double, on one thread.
 */
#include "engine/tensor/ops/route.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    return gd_route_shape(graph, call, 1);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct gd_route route = gd_route_of(args, 1);
    int64_t splits = args->params->i[0], skills = args->params->i[1], groups = args->in[0].shape[0] * splits;
    const float *z = args->in[0].data;
    float *w = args->out[0].data;
    for (int64_t group = 0; group < groups; group++) {
        int64_t segment = group / splits, first = group % splits * skills;
        double sum = GD_ROUTE_EPS;
        for (int64_t j = 0; j < skills; j++)
            sum += gd_route_gate((double)z[group * skills + j], &route, segment, first + j);
        for (int64_t j = 0; j < skills; j++)
            w[group * skills + j] = (float)(gd_route_gate((double)z[group * skills + j], &route, segment, first + j) / sum);
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_route_grad;
    struct gd_value *in[] = {call->in[0], out_grad[0], call->in[1], call->in[2]};
    in_grad[0] = gd_graph_call(graph, &gd_op_route_grad, in, call->in_count + 1, &call->params);
    return in_grad[0] != NULL;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t width = op_case->in[0].shape[1], skills = op_case->params.i[1];
    uint32_t key[4] = {0};
    int32_t owner[16] = {0};
    bool noise = op_case->in_count > 1;
    for (int i = 0; i < 4 && noise; i++)
        key[i] = (uint32_t)(int64_t)in[1][i];
    for (int64_t i = 0; i < op_case->in[0].shape[0] && noise; i++)
        owner[i] = (int32_t)in[2][i];
    struct gd_route route = {noise ? key : NULL, owner, width, op_case->params.i[2]};
    for (int64_t at = 0; at < op_case->in[0].shape[0] * width; at++) {
        int64_t first = at / skills * skills;
        double sum = GD_ROUTE_EPS;
        for (int64_t j = first; j < first + skills; j++)
            sum += gd_route_gate(in[0][j], &route, j / width, j % width);
        out[0][at] = gd_route_gate(in[0][at], &route, at / width, at % width) / sum;
    }
}

/* Positive inputs are no activations: they stay f32. */
#define LOGITS(g, n) {.dtype = GD_F32, .rank = 2, .shape = {g, n}, .fill = GD_FILL_POSITIVE, .gradient = true}
#define KEY {.dtype = GD_I32, .rank = 1, .shape = {4}, .fill = GD_FILL_KEY}
#define OWNER(g) {.dtype = GD_I32, .rank = 1, .shape = {g}, .fill = GD_FILL_IDS, .fill_limit = 4}
static const struct gd_op_case cases[] = {
    {.name = "one pair", .in_count = 1, .in = {LOGITS(1, 2)}, .params = {.i = {1, 2}}, .tolerance = 1e-6},
    {.name = "odd sizes", .in_count = 1, .in = {LOGITS(3, 15)}, .params = {.i = {5, 3}}, .tolerance = 1e-6},
    {.name = "with noise", .in_count = 3, .in = {LOGITS(6, 8), KEY, OWNER(6)}, .params = {.i = {2, 4, 17}}, .tolerance = 1e-6},
};

const struct gd_op gd_op_route = {
    .name = "route",
    .in_min = 1, .in_max = 3, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_route(struct gd_graph *g, struct gd_value *z, struct gd_value *key, struct gd_value *owner, int splits,
                          int skills, int site)
{
    struct gd_op_params params = {.i = {splits, skills, site}};
    return gd_graph_call(g, &gd_op_route, (struct gd_value *[]){z, key, owner}, key != NULL ? 3 : 1, &params);
}
