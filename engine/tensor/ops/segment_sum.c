/*
 * y[s] = sum over the rows t of segment s, and of the prefix that it continues, of weights[t] x[t]: x, weights f32 [T],
 * cu_seqlens i32 [S+1], prefix i32 [2S] or none (attention_blocks.h) -> f32 [S], an empty segment gives 0. Summed in double
 * in the order of t. dx[t] = weights[t] dy[s] (segment_spread).
 */
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/ops/segment_prefix.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *weights = call->in[1], *cu = call->in[2];
    if (x->dtype != GD_F32 || x->rank != 1 || weights->dtype != GD_F32 || !gd_value_same_shape(x, weights) ||
        cu->dtype != GD_I32 || cu->rank != 1 || cu->shape[0] < 2)
        return gd_graph_fail(graph, "segment_sum: '%s' and '%s' must be f32 [T], '%s' i32 [S+1]", x->name, weights->name,
                             cu->name) != NULL;
    if (!gd_segment_prefix_shape(graph, call))
        return false;
    call->out[0]->dtype = GD_F32;
    call->out[0]->rank = 1;
    call->out[0]->shape[0] = cu->shape[0] - 1;
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const float *x = args->in[0].data, *weights = args->in[1].data;
    float *y = args->out[0].data;
    for (int64_t s = 0; s < args->out[0].shape[0]; s++) {
        struct gd_segment_rows of;
        if (!gd_segment_rows_of(&of, "segment_sum", args, s, args->in[0].shape[0], err))
            return false;
        double sum = 0;
        for (int part = 0; part < 2; part++)
            for (int64_t t = of.begin[part]; t < of.end[part]; t++)
                sum += (double)weights[t] * (double)x[t];
        y[s] = (float)sum;
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[1]->needs_gradient)
        return gd_graph_fail(graph, "segment_sum: '%s' needs a gradient, but the op is differentiable in its first input only",
                             call->in[1]->name) != NULL;
    in_grad[0] = gd_segment_spread(graph, out_grad[0], call->in[1], call->in[2], call->in[3]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    for (int64_t s = 0; s < op_case->in[2].shape[0] - 1; s++) {
        out[0][s] = 0;
        for (int64_t t = (int64_t)in[2][s]; t < (int64_t)in[2][s + 1]; t++)
            out[0][s] += in[1][t] * in[0][t];
        for (int64_t t = 0; op_case->in[3].rank > 0 && t < op_case->in[0].shape[0]; t++)
            if (t >= (int64_t)in[3][2 * s] && t < (int64_t)in[3][2 * s + 1])
                out[0][s] += in[1][t] * in[0][t];
    }
}

static const struct gd_op_case cases[] = {
    GD_SEGMENT_CASE("one row", 1, 1, 1, 1),
    GD_SEGMENT_CASE("uneven segments, padding behind them", 67, 67, 5, 61),
    GD_SEGMENT_CASE("empty segments", 9, 9, 7, 4),
    GD_SEGMENT_PREFIX_CASE("segments that continue prefixes", 67, 67, 6, 61),
};

const struct gd_op gd_op_segment_sum = {
    .name = "segment_sum",
    .in_min = 3, .in_max = 4, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_segment_sum(struct gd_graph *g, struct gd_value *x, struct gd_value *weights, struct gd_value *cu_seqlens,
                                struct gd_value *prefix)
{
    return gd_graph_call(g, &gd_op_segment_sum, (struct gd_value *[]){x, weights, cu_seqlens, prefix}, 4, NULL);
}
