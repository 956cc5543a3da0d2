/* y[places[i]] += values[i], from zeros, in order of i. i[0]: length of y. dvalues[i] = dy[places[i]]. */
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *values = call->in[0], *places = call->in[1];
    if (values->dtype != GD_F32 || values->rank != 1 || values->kind == GD_VALUE_WEIGHT || places->dtype != GD_I32 ||
        !gd_value_same_shape(values, places) || call->params.i[0] < 1)
        return gd_graph_fail(graph, "scatter: '%s' and '%s' are no f32 and i32 lists of one length", values->name, places->name) != NULL;
    gd_shape_like(call->out[0], values, GD_F32);
    call->out[0]->shape[0] = call->params.i[0];
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = args->in[0].shape[0], length = args->out[0].shape[0];
    const float *values = args->in[0].data;
    const int32_t *places = args->in[1].data;
    float *out = args->out[0].data;
    memset(out, 0, (size_t)length * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
        if (places[i] < 0 || places[i] >= length)
            return gd_fail(err, GD_INTERNAL, "scatter: place %" PRId64 " is %d of %" PRId64, i, places[i], length);
        out[places[i]] += values[i];
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_pick(graph, out_grad[0], call->in[1]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    for (int64_t i = 0; i < op_case->params.i[0]; i++)
        out[0][i] = 0;
    for (int64_t i = 0; i < op_case->in[0].shape[0]; i++)
        out[0][(int64_t)in[1][i]] += in[0][i];
}

#define CASE(text, n, length) \
    {.name = text, .in_count = 2, \
     .in = {{.dtype = GD_F32, .rank = 1, .shape = {n}, .gradient = true}, \
            {.dtype = GD_I32, .rank = 1, .shape = {n}, .fill = GD_FILL_IDS, .fill_limit = length}}, \
     .params = {.i = {length}}, .tolerance = 1e-6, .tolerance_bf16 = 1e-6}
static const struct gd_op_case cases[] = {
    CASE("one number", 1, 1),
    CASE("places taken several times", 23, 9),
    CASE("few places of many", 31, 400),
    CASE("a long list", 300, 7),
};

const struct gd_op gd_op_scatter = {
    .name = "scatter",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_scatter(struct gd_graph *g, struct gd_value *values, struct gd_value *places, int64_t length)
{
    struct gd_op_params params = {.i = {length}};
    return gd_graph_call(g, &gd_op_scatter, (struct gd_value *[]){values, places}, 2, &params);
}
