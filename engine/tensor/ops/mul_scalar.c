/* y = a * s[0], s an f32 value of one element; da = dy * s[0], ds = sum dy a. */
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/ops/scaling.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *s = call->in[1];
    if (s->dtype != GD_F32 || s->kind == GD_VALUE_WEIGHT || gd_value_elements(s) != 1)
        return gd_graph_fail(graph, "mul_scalar: '%s' is not an f32 value of one element", s->name) != NULL;
    return gd_shape_unary(graph, call);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    gd_scale_kernel(&args->out[0], &args->in[0], *(const float *)args->in[1].data);
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_mul_scalar(graph, out_grad[0], call->in[1]);
    if (call->in[1]->needs_gradient)
        in_grad[1] = gd_dot(graph, out_grad[0], call->in[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0] * op_case->in[0].shape[1];
    for (int64_t i = 0; i < count; i++)
        out[0][i] = in[0][i] * in[1][0];
}

#define INPUT(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
#define SCALAR {.dtype = GD_F32, .rank = 1, .shape = {1}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {INPUT(1, 1), SCALAR}, .tolerance = 1e-6},
    {.name = "odd sizes", .in_count = 2, .in = {INPUT(5, 33), SCALAR}, .tolerance = 1e-6},
    {.name = "large enough for threads", .in_count = 2, .in = {INPUT(65, 517), SCALAR}, .tolerance = 1e-6},
};

const struct gd_op gd_op_mul_scalar = {
    .name = "mul_scalar",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

/* Times the gradient of the loss itself: nothing to do. */
struct gd_value *gd_mul_scalar(struct gd_graph *g, struct gd_value *a, struct gd_value *s)
{
    if (s != NULL && s == gd_graph_one(g))
        return a;
    return gd_graph_call(g, &gd_op_mul_scalar, (struct gd_value *[]){a, s}, 2, NULL);
}
