/* y[t][j] = v[j] for i[0] rows, in dtype i[1]: the gradient of sum_rows. dv[j] = sum_t dy[t][j]. */
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *v = call->in[0];
    int64_t rows = call->params.i[0], dtype = call->params.i[1];
    if (v->dtype != GD_F32 || v->kind == GD_VALUE_WEIGHT || v->rank != 1)
        return gd_graph_fail(graph, "spread_rows: '%s' is no f32 vector", v->name) != NULL;
    if (rows < 0 || (dtype != GD_F32 && dtype != GD_BF16))
        return gd_graph_fail(graph, "spread_rows: %lld rows, or a dtype that is not F32 or BF16", (long long)rows) != NULL;
    struct gd_value *out = call->out[0];
    out->dtype = (enum gd_dtype)dtype;
    out->rank = 2;
    out->shape[0] = rows;
    out->shape[1] = v->shape[0];
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *y = &args->out[0];
    int64_t rows = y->shape[0], width = y->shape[1];
    GD_PARALLEL(rows * width)
    {
        struct gd_range r = gd_thread_range(rows, 1);
        for (int64_t t = r.begin; t < r.end; t++)
            gd_row_from_f32(gd_at(y, t * width), y->dtype, args->in[0].data, width);
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    in_grad[0] = gd_sum_rows(graph, out_grad[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->params.i[0], width = op_case->in[0].shape[0];
    for (int64_t i = 0; i < rows * width; i++)
        out[0][i] = in[0][i % width];
}

#define INPUT(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 1, .in = {INPUT(1)}, .params = {.i = {1, GD_F32}}, .tolerance = 1e-6},
    {.name = "odd sizes", .in_count = 1, .in = {INPUT(37)}, .params = {.i = {5, GD_F32}}, .tolerance = 1e-6},
    {.name = "large enough for threads", .in_count = 1, .in = {INPUT(259)}, .params = {.i = {130, GD_F32}}, .tolerance = 1e-6},
};

const struct gd_op gd_op_spread_rows = {
    .name = "spread_rows",
    .in_min = 1, .in_max = 1, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_spread_rows(struct gd_graph *g, struct gd_value *v, int64_t rows, enum gd_dtype dtype)
{
    return gd_graph_call(g, &gd_op_spread_rows, &v, 1, &(struct gd_op_params){.i = {rows, dtype}});
}
