/*
 * Parts of x, each some of its rows, one after the other: no memory of their own (plan.h). i[k]: rows of part k; they add up to
 * x's. The way back puts the parts' gradients side by side (join.c).
 */
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0];
    int64_t rows = 0;
    int count = 0;
    if (x->kind == GD_VALUE_WEIGHT || (!gd_is_float(x) && x->dtype != GD_I32))
        return gd_graph_fail(graph, "split: '%s' is a weight or has no rows of numbers", x->name) != NULL;
    for (; count < GD_SPLIT_MAX && call->params.i[count] > 0; count++) {
        struct gd_value *part = call->out[count];
        gd_shape_like(part, x, x->dtype);
        part->shape[0] = call->params.i[count];
        rows += part->shape[0];
    }
    if (rows != x->shape[0])
        return gd_graph_fail(graph, "split: parts of %" PRId64 " rows for '%s' of %" PRId64, rows, x->name, x->shape[0]) != NULL;
    call->out_count = count;
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_join(graph, out_grad, call->params.i, call->out_count);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t width = op_case->in[0].shape[1], at = 0;
    for (int k = 0; k < GD_SPLIT_MAX && op_case->params.i[k] > 0; k++)
        for (int64_t i = 0; i < op_case->params.i[k] * width; i++)
            out[k][i] = in[0][at++];
}

#define CASE(text, t, width, ...) \
    {.name = text, .in_count = 1, .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, width}, .gradient = true}}, \
     .params = {.i = {__VA_ARGS__}}, .tolerance = 1e-9, .tolerance_bf16 = 1e-9}
static const struct gd_op_case cases[] = {
    CASE("one part", 3, 5, 3),
    CASE("parts of many sizes", 17, 7, 1, 9, 2, 5),
    CASE("as many parts as there can be", 36, 3, 1, 2, 3, 4, 5, 6, 7, 8),
};

const struct gd_op gd_op_split = {
    .name = "split",
    .in_min = 1, .in_max = 1, .out_count = GD_SPLIT_MAX,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .views = true,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_split(struct gd_graph *g, struct gd_value *x, const int64_t *rows, int count)
{
    struct gd_op_params params = {0};
    for (int k = 0; k < count && k < GD_SPLIT_MAX; k++)
        params.i[k] = rows[k];
    return gd_graph_call(g, &gd_op_split, &x, 1, &params);
}
