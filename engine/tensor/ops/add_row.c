/* y[t][j] = x[t][j] + b[j], b an f32 vector (weight or param). dx = dy, db[j] = sum_t dy[t][j]. */
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *b = call->in[1];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || b->rank != 1 || b->shape[0] != x->shape[1] || (b->kind != GD_VALUE_WEIGHT && b->dtype != GD_F32))
        return gd_graph_fail(graph, "add_row: '%s' is no f32 vector as long as the rows of '%s'", b->name, x->name) != NULL;
    return true;
}

GD_INLINE void body(const struct gd_kernel_args *args, bool bf16, int64_t begin, int64_t end)
{
    int64_t width = args->out[0].shape[1];
    void *y = args->out[0].data;
    const void *x = args->in[0].data;
    const float *b = args->weight[1] != NULL ? gd_weight_vector(args->weight[1]) : args->in[1].data;
    for (int64_t t = begin; t < end; t++)
        for (int64_t j = 0; j < width; j++)
            gd_store(y, bf16, t * width + j, gd_load(x, bf16, t * width + j) + b[j]);
}

#define BY_ROW
#include "engine/tensor/ops/by_element.h"

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[0]->needs_gradient)
        in_grad[0] = out_grad[0];
    if (call->in[1]->needs_gradient)
        in_grad[1] = gd_sum_rows(graph, out_grad[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1];
    for (int64_t i = 0; i < rows * width; i++)
        out[0][i] = in[0][i] + in[1][i % width];
}

#define ROWS(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
#define FROZEN(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .as_weight = true}
#define TRAINED(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element, frozen", .in_count = 2, .in = {ROWS(1, 1), FROZEN(1)}, .tolerance = 1e-6, .tolerance_bf16 = 8e-3},
    {.name = "odd sizes, frozen", .in_count = 2, .in = {ROWS(5, 37), FROZEN(37)}, .tolerance = 1e-6, .tolerance_bf16 = 8e-3},
    {.name = "odd sizes, trained", .in_count = 2, .in = {ROWS(19, 37), TRAINED(37)}, .tolerance = 1e-6},
    {.name = "large enough for threads", .in_count = 2, .in = {ROWS(129, 259), TRAINED(259)}, .tolerance = 1e-6},
};

const struct gd_op gd_op_add_row = {
    .name = "add_row",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = 0,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_add_row(struct gd_graph *g, struct gd_value *x, struct gd_value *b)
{
    return gd_graph_call(g, &gd_op_add_row, (struct gd_value *[]){x, b}, 2, NULL);
}
