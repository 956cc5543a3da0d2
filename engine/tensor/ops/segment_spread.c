/* y[t] = weights[t] times the sum of v over the segments that row t is of, itself or through their prefix; 0 for rows of
 * none: the backward pass of segment_sum and the other way round. v f32 [S], weights f32 [T], cu_seqlens i32 [S+1], prefix
 * i32 [2S] or none -> f32 [T]. */
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/ops/segment_prefix.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *v = call->in[0], *weights = call->in[1], *cu = call->in[2];
    if (v->dtype != GD_F32 || v->rank != 1 || weights->dtype != GD_F32 || weights->rank != 1 || cu->dtype != GD_I32 ||
        cu->rank != 1 || cu->shape[0] != v->shape[0] + 1)
        return gd_graph_fail(graph, "segment_spread: '%s' must be f32 [S], '%s' f32 [T], '%s' i32 [S+1]", v->name, weights->name,
                             cu->name) != NULL;
    if (!gd_segment_prefix_shape(graph, call))
        return false;
    gd_shape_like(call->out[0], weights, GD_F32);
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const float *v = args->in[0].data, *weights = args->in[1].data;
    int64_t rows = args->out[0].shape[0];
    float *y = args->out[0].data;
    memset(y, 0, (size_t)rows * sizeof(*y));
    for (int64_t s = 0; s < args->in[0].shape[0]; s++) {
        struct gd_segment_rows of;
        if (!gd_segment_rows_of(&of, "segment_spread", args, s, rows, err))
            return false;
        for (int part = 0; part < 2; part++)
            for (int64_t t = of.begin[part]; t < of.end[part]; t++)
                y[t] += weights[t] * v[s];
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[1]->needs_gradient)
        return gd_graph_fail(graph, "segment_spread: '%s' needs a gradient, but the op is differentiable in its first input only",
                             call->in[1]->name) != NULL;
    in_grad[0] = gd_segment_sum(graph, out_grad[0], call->in[1], call->in[2], call->in[3]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    for (int64_t t = 0; t < op_case->in[1].shape[0]; t++)
        out[0][t] = 0;
    for (int64_t s = 0; s < op_case->in[0].shape[0]; s++)
        for (int64_t t = (int64_t)in[2][s]; t < (int64_t)in[2][s + 1]; t++)
            out[0][t] = in[1][t] * in[0][s];
    for (int64_t s = 0; op_case->in[3].rank > 0 && s < op_case->in[0].shape[0]; s++)
        for (int64_t t = (int64_t)in[3][2 * s]; t < (int64_t)in[3][2 * s + 1]; t++)
            out[0][t] += in[1][t] * in[0][s];
}

static const struct gd_op_case cases[] = {
    GD_SEGMENT_CASE("one row", 1, 1, 1, 1),
    GD_SEGMENT_CASE("uneven segments, padding behind them", 5, 67, 5, 61),
    GD_SEGMENT_CASE("empty segments", 7, 9, 7, 4),
    GD_SEGMENT_PREFIX_CASE("segments that continue prefixes", 6, 67, 6, 61),
};

const struct gd_op gd_op_segment_spread = {
    .name = "segment_spread",
    .in_min = 3, .in_max = 4, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_segment_spread(struct gd_graph *g, struct gd_value *v, struct gd_value *weights, struct gd_value *cu_seqlens,
                                   struct gd_value *prefix)
{
    return gd_graph_call(g, &gd_op_segment_spread, (struct gd_value *[]){v, weights, cu_seqlens, prefix}, 4, NULL);
}
