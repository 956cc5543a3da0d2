/* The backward pass of softmax: y, dy -> dx = y (dy - sum_j y[j] dy[j]), row by row. */
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    if (!gd_shape_binary(graph, call))
        return false;
    if (call->in[0]->rank != 2 || call->in[0]->dtype != GD_F32)
        return gd_graph_fail(graph, "softmax_grad: '%s' is no f32 matrix", call->in[0]->name) != NULL;
    return true;
}

static void rows(float *dx, const float *y, const float *dy, int64_t width, int64_t begin, int64_t end)
{
    for (int64_t t = begin; t < end; t++) {
        float sum = 0;
        for (int64_t j = t * width; j < (t + 1) * width; j++)
            sum += y[j] * dy[j];
        for (int64_t j = t * width; j < (t + 1) * width; j++)
            dx[j] = y[j] * (dy[j] - sum);
    }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = args->out[0].shape[0], width = args->out[0].shape[1];
    GD_PARALLEL(count * width)
    {
        struct gd_range r = gd_thread_range(count, 1);
        rows(args->out[0].data, args->in[0].data, args->in[1].data, width, r.begin, r.end);
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0], width = op_case->in[0].shape[1];
    for (int64_t t = 0; t < count; t++) {
        double sum = 0;
        for (int64_t j = t * width; j < (t + 1) * width; j++)
            sum += in[0][j] * in[1][j];
        for (int64_t j = t * width; j < (t + 1) * width; j++)
            out[0][j] = in[0][j] * (in[1][j] - sum);
    }
}

#define INPUT(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {INPUT(1, 1), INPUT(1, 1)}, .tolerance = 1e-5},
    {.name = "odd sizes", .in_count = 2, .in = {INPUT(5, 37), INPUT(5, 37)}, .tolerance = 1e-5},
    {.name = "large enough for threads", .in_count = 2, .in = {INPUT(67, 517), INPUT(67, 517)}, .tolerance = 1e-5},
};

const struct gd_op gd_op_softmax_grad = {
    .name = "softmax_grad",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};
