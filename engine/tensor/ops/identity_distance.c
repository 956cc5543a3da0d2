/*
 * s = ||x - I||_F, f32 [1], of a square x f32 [n, n]. Output 1: (x - I) / s, or zeros where s is 0; dx = ds times that.
 */
#include "engine/tensor/ops/elementwise.h"
#include <math.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0];
    if (x->dtype != GD_F32 || x->kind == GD_VALUE_WEIGHT || x->rank != 2 || x->shape[0] != x->shape[1])
        return gd_graph_fail(graph, "identity_distance: '%s' is no f32 square", x->name) != NULL;
    gd_shape_like(call->out[0], x, GD_F32);
    gd_shape_like(call->out[1], x, GD_F32);
    call->out[0]->rank = 1;
    call->out[0]->shape[0] = 1;
    call->out[0]->shape[1] = 0;
    call->out[1]->needs_gradient = false;
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const float *x = args->in[0].data;
    float *direction = args->out[1].data;
    int64_t size = args->in[0].shape[0];
    double sum = 0;
    for (int64_t i = 0; i < size * size; i++) {
        direction[i] = x[i] - (i % (size + 1) == 0 ? 1.0f : 0.0f);
        sum += (double)direction[i] * (double)direction[i];
    }
    double distance = sqrt(sum);
    for (int64_t i = 0; i < size * size; i++)
        direction[i] = distance > 0 ? (float)((double)direction[i] / distance) : 0.0f;
    *(float *)args->out[0].data = (float)distance;
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    in_grad[0] = gd_mul_scalar(graph, gd_value_output(call->out[0], 1), out_grad[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t size = op_case->in[0].shape[0];
    double sum = 0;
    for (int64_t i = 0; i < size * size; i++) {
        out[1][i] = in[0][i] - (i % (size + 1) == 0);
        sum += out[1][i] * out[1][i];
    }
    out[0][0] = sqrt(sum);
    for (int64_t i = 0; i < size * size; i++)
        out[1][i] /= out[0][0];
}

#define X(n) {.dtype = GD_F32, .rank = 2, .shape = {n, n}, .fill = GD_FILL_POSITIVE, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 1, .in = {X(1)}, .tolerance = 1e-5},
    {.name = "a square", .in_count = 1, .in = {X(37)}, .tolerance = 1e-5},
};

const struct gd_op gd_op_identity_distance = {
    .name = "identity_distance",
    .in_min = 1, .in_max = 1, .out_count = 2,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_identity_distance(struct gd_graph *g, struct gd_value *x)
{
    return gd_graph_call(g, &gd_op_identity_distance, &x, 1, NULL);
}
