/* The backward pass of columns: rows of i[1] columns, zeros but for dy from column i[0] on. */
#include "engine/tensor/ops/elementwise.h"
#include <inttypes.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *dy = call->in[0];
    int64_t from = call->params.i[0], width = call->params.i[1];
    if (!gd_shape_unary(graph, call))
        return false;
    if (dy->rank != 2 || from < 0 || width < 1 || from > width || dy->shape[1] > width - from)
        return gd_graph_fail(graph, "columns_grad: '%s' does not fit in %" PRId64 " columns from %" PRId64, dy->name, width,
                             from) != NULL;
    call->out[0]->shape[1] = width;
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *dy = &args->in[0], *dx = &args->out[0];
    int64_t rows = dx->shape[0];
    size_t unit = gd_dtype_bytes(dx->dtype, 1), from = (size_t)args->params->i[0] * unit;
    size_t bytes = (size_t)dy->shape[1] * unit, row = (size_t)dx->shape[1] * unit;
    GD_PARALLEL(rows * dx->shape[1])
    {
        struct gd_range r = gd_thread_range(rows, 1);
        for (int64_t t = r.begin; t < r.end; t++) {
            char *to = (char *)dx->data + (size_t)t * row;
            memset(to, 0, from);
            memcpy(to + from, (const char *)dy->data + (size_t)t * bytes, bytes);
            memset(to + from + bytes, 0, row - from - bytes);
        }
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], count = op_case->in[0].shape[1], width = op_case->params.i[1];
    for (int64_t i = 0; i < rows * width; i++) {
        int64_t column = i % width - op_case->params.i[0];
        out[0][i] = column >= 0 && column < count ? in[0][i / width * count + column] : 0;
    }
}

#define DY(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 1, .in = {DY(1, 1)}, .params = {.i = {0, 1}}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
    {.name = "in the middle", .in_count = 1, .in = {DY(7, 5)}, .params = {.i = {3, 11}}, .tolerance = 1e-7, .tolerance_bf16 = 1e-7},
    {.name = "the last, enough for threads", .in_count = 1, .in = {DY(67, 376)}, .params = {.i = {200, 576}}, .tolerance = 1e-7,
     .tolerance_bf16 = 1e-7},
};

const struct gd_op gd_op_columns_grad = {
    .name = "columns_grad",
    .in_min = 1, .in_max = 1, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .inplace = -1,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};
