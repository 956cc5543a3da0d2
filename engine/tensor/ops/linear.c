/*
 * y = x W^T (+ c), W frozen [out, in], packed once. dx = dy W; a frozen weight has no gradient.
 * A trained W goes through matmul.
 */
#include "engine/tensor/few_rows.h"
#include "engine/tensor/ops/frozen_product.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    return gd_frozen_product_shape(graph, call, false);
}

static enum gd_weight_use weight_use(const struct gd_call *call, int input)
{
    return call->in[0]->shape[0] <= GD_FEW_ROWS ? GD_WEIGHT_FEW_ROWS : GD_WEIGHT_LINEAR;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    return gd_frozen_product_run(args, false, err);
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_linear_back(graph, out_grad[0], call->in[1]);
    if (call->in_count > 2 && call->in[2] != NULL && call->in[2]->needs_gradient)
        in_grad[2] = out_grad[0];
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1], height = op_case->in[1].shape[0];
    for (int64_t t = 0; t < rows; t++)
        for (int64_t o = 0; o < height; o++) {
            double sum = op_case->in_count > 2 ? in[2][t * height + o] : 0.0;
            for (int64_t i = 0; i < width; i++)
                sum += in[0][t * width + i] * in[1][o * width + i];
            out[0][t * height + o] = sum;
        }
}

/* bf16 results are rounded once, at the end; the sums are f32. */
#define X(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
#define W(out, in) {.dtype = GD_F32, .rank = 2, .shape = {out, in}, .as_weight = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {X(1, 1), W(1, 1)}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3},
    {.name = "one row", .in_count = 2, .in = {X(1, 64), W(48, 64)}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3},
    {.name = "odd sizes", .in_count = 2, .in = {X(7, 37), W(53, 37)}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3},
    {.name = "odd sizes and an addend", .in_count = 3, .in = {X(9, 35), W(67, 35), X(9, 67)}, .tolerance = 1e-5, .tolerance_bf16 = 1.6e-2},
    {.name = "several blocks", .in_count = 2, .in = {X(65, 160), W(130, 160)}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3},
};

const struct gd_op gd_op_linear = {
    .name = "linear",
    .in_min = 2, .in_max = 3, .out_count = 1,
    .shape = shape,
    .weight_use = weight_use,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = 2,
    .groups = GD_GROUPS_KEPT,
    .addend = 2,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_linear(struct gd_graph *g, struct gd_value *x, struct gd_value *w)
{
    if (w != NULL && w->kind != GD_VALUE_WEIGHT)
        return gd_matmul(g, x, false, w, true, 1.0, NULL, gd_graph_act(g));
    return gd_graph_call(g, &gd_op_linear, (struct gd_value *[]){x, w}, 2, NULL);
}

struct gd_value *gd_linear_f32(struct gd_graph *g, struct gd_value *x, struct gd_value *w)
{
    struct gd_op_params params = {.i = {1}};
    if (g != NULL && x != NULL && x->needs_gradient)
        return gd_graph_fail(g, "linear_f32: '%s' needs a gradient", x->name);
    return gd_graph_call(g, &gd_op_linear, (struct gd_value *[]){x, w}, 2, &params);
}
