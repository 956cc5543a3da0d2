/* y[i] = x[places[i]] of an f32 list. dx is the scatter of dy. */
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *places = call->in[1];
    if (x->dtype != GD_F32 || x->rank != 1 || x->kind == GD_VALUE_WEIGHT || places->dtype != GD_I32 || places->rank != 1)
        return gd_graph_fail(graph, "pick: '%s' is no f32 list, or '%s' no i32 list", x->name, places->name) != NULL;
    gd_shape_like(call->out[0], places, GD_F32);
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = args->out[0].shape[0], length = args->in[0].shape[0];
    const float *x = args->in[0].data;
    const int32_t *places = args->in[1].data;
    float *out = args->out[0].data;
    for (int64_t i = 0; i < count; i++) {
        if (places[i] < 0 || places[i] >= length)
            return gd_fail(err, GD_INTERNAL, "pick: place %" PRId64 " is %d of %" PRId64, i, places[i], length);
        out[i] = x[places[i]];
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_scatter(graph, out_grad[0], call->in[1], call->in[0]->shape[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    for (int64_t i = 0; i < op_case->in[1].shape[0]; i++)
        out[0][i] = in[0][(int64_t)in[1][i]];
}

#define CASE(text, length, n) \
    {.name = text, .in_count = 2, \
     .in = {{.dtype = GD_F32, .rank = 1, .shape = {length}, .gradient = true}, \
            {.dtype = GD_I32, .rank = 1, .shape = {n}, .fill = GD_FILL_IDS, .fill_limit = length}}, \
     .tolerance = 1e-6, .tolerance_bf16 = 1e-6}
static const struct gd_op_case cases[] = {
    CASE("one number", 1, 1),
    CASE("places taken several times", 9, 23),
    CASE("few places of many", 400, 31),
};

const struct gd_op gd_op_pick = {
    .name = "pick",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_pick(struct gd_graph *g, struct gd_value *x, struct gd_value *places)
{
    return gd_graph_call(g, &gd_op_pick, (struct gd_value *[]){x, places}, 2, NULL);
}
