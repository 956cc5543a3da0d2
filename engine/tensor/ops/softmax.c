/* y[t] = e^(x[t] - max) / sum, row by row, in f32. dx = y (dy - sum_j y[j] dy[j]). */
#include "engine/tensor/ops/elementwise.h"
#include <math.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || x->dtype != GD_F32)
        return gd_graph_fail(graph, "softmax: '%s' is no f32 matrix", x->name) != NULL;
    return true;
}

static void rows(float *y, const float *x, int64_t width, int64_t begin, int64_t end)
{
    for (int64_t t = begin; t < end; t++) {
        const float *from = x + t * width;
        float *to = y + t * width, most = from[0], sum = 0;
        for (int64_t j = 1; j < width; j++)
            most = fmaxf(most, from[j]);
        for (int64_t j = 0; j < width; j++)
            sum += to[j] = expf(from[j] - most);
        for (int64_t j = 0; j < width; j++)
            to[j] /= sum;
    }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t count = args->out[0].shape[0], width = args->out[0].shape[1];
    GD_PARALLEL(count * width)
    {
        struct gd_range r = gd_thread_range(count, 1);
        rows(args->out[0].data, args->in[0].data, width, r.begin, r.end);
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_softmax_grad;
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_graph_call(graph, &gd_op_softmax_grad, (struct gd_value *[]){call->out[0], out_grad[0]}, 2, NULL);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t count = op_case->in[0].shape[0], width = op_case->in[0].shape[1];
    for (int64_t t = 0; t < count; t++) {
        double sum = 0;
        for (int64_t j = 0; j < width; j++)
            sum += exp(in[0][t * width + j]);
        for (int64_t j = 0; j < width; j++)
            out[0][t * width + j] = exp(in[0][t * width + j]) / sum;
    }
}

#define CASE(text, t, n) \
    {.name = text, .in_count = 1, .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}}, .tolerance = 1e-6 + (n) * 6e-9} /* sums of n */
static const struct gd_op_case cases[] = {
    CASE("one element", 1, 1),
    CASE("odd sizes", 5, 37),
    CASE("large enough for threads", 67, 517),
};

const struct gd_op gd_op_softmax = {
    .name = "softmax",
    .in_min = 1, .in_max = 1, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_softmax(struct gd_graph *g, struct gd_value *x)
{
    return gd_graph_call(g, &gd_op_softmax, (struct gd_value *[]){x}, 1, NULL);
}
