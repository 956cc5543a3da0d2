/* y = x[:, i[0] : i[0] + i[1]]: some columns of each row. */
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0];
    int64_t from = call->params.i[0], count = call->params.i[1];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || from < 0 || count < 1 || from > x->shape[1] || count > x->shape[1] - from)
        return gd_graph_fail(graph, "columns: '%s' has no %" PRId64 " columns from %" PRId64, x->name, count, from) != NULL;
    call->out[0]->shape[1] = count;
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *y = &args->out[0];
    int64_t rows = y->shape[0];
    size_t unit = gd_dtype_bytes(y->dtype, 1), from = (size_t)args->params->i[0] * unit;
    size_t bytes = (size_t)y->shape[1] * unit, row = (size_t)x->shape[1] * unit;
    GD_PARALLEL(rows * y->shape[1])
    {
        struct gd_range r = gd_thread_range(rows, 1);
        for (int64_t t = r.begin; t < r.end; t++)
            memcpy((char *)y->data + (size_t)t * bytes, (const char *)x->data + (size_t)t * row + from, bytes);
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_columns_grad;
    struct gd_op_params params = {.i = {call->params.i[0], call->in[0]->shape[1]}};
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_graph_call(graph, &gd_op_columns_grad, &out_grad[0], 1, &params);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1], count = op_case->params.i[1];
    for (int64_t i = 0; i < rows * count; i++)
        out[0][i] = in[0][i / count * width + op_case->params.i[0] + i % count];
}

#define X(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 1, .in = {X(1, 1)}, .params = {.i = {0, 1}}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
    {.name = "in the middle", .in_count = 1, .in = {X(7, 11)}, .params = {.i = {3, 5}}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
    {.name = "the last, enough for threads", .in_count = 1, .in = {X(67, 576)}, .params = {.i = {200, 376}}, .tolerance = 1e-7,
     .tolerance_bf16 = 1e-7},
};

const struct gd_op gd_op_columns = {
    .name = "columns",
    .in_min = 1, .in_max = 1, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_columns(struct gd_graph *g, struct gd_value *x, int64_t from, int64_t count)
{
    return gd_graph_call(g, &gd_op_columns, &x, 1, &(struct gd_op_params){.i = {from, count}});
}
