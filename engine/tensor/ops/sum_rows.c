/*
 * y[j] = sum_t x[t][j] in f32. A thread owns columns, not rows, so the order of summation is the same for any number of
 * threads; partial sums of BLOCK rows keep the rounding error from growing with T. dx[t][j] = dy[j].
 */
#include "engine/tensor/ops/elementwise.h"

#define BLOCK 64
#define COLUMNS 64

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2)
        return gd_graph_fail(graph, "sum_rows: '%s' is no matrix", x->name) != NULL;
    call->out[0]->dtype = GD_F32;
    call->out[0]->rank = 1;
    call->out[0]->shape[0] = x->shape[1];
    return true;
}

GD_INLINE void body(float *y, const void *x, bool bf16, int64_t rows, int64_t width, int64_t begin, int64_t end)
{
    for (int64_t at = begin; at < end; at += COLUMNS) {
        int64_t columns = end - at < COLUMNS ? end - at : COLUMNS;
        float total[COLUMNS] = {0};
        for (int64_t row = 0; row < rows; row += BLOCK) {
            float part[COLUMNS] = {0};
            for (int64_t t = row; t < rows && t < row + BLOCK; t++)
                for (int64_t j = 0; j < columns; j++)
                    part[j] += gd_load(x, bf16, t * width + at + j);
            for (int64_t j = 0; j < COLUMNS; j++)
                total[j] += part[j];
        }
        memcpy(y + at, total, (size_t)columns * sizeof(float));
    }
}

GD_KERNEL static void columns_f32(float *y, const float *x, int64_t rows, int64_t width, int64_t begin, int64_t end)
{
    body(y, x, false, rows, width, begin, end);
}

GD_KERNEL static void columns_bf16(float *y, const uint16_t *x, int64_t rows, int64_t width, int64_t begin, int64_t end)
{
    body(y, x, true, rows, width, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->in[0].shape[0], width = args->in[0].shape[1];
    GD_PARALLEL(rows * width)
    {
        struct gd_range r = gd_thread_range(width, COLUMNS);
        if (args->in[0].dtype == GD_BF16)
            columns_bf16(args->out[0].data, args->in[0].data, rows, width, r.begin, r.end);
        else
            columns_f32(args->out[0].data, args->in[0].data, rows, width, r.begin, r.end);
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    in_grad[0] = gd_spread_rows(graph, out_grad[0], call->in[0]->shape[0], call->in[0]->dtype);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1];
    for (int64_t j = 0; j < width; j++) {
        out[0][j] = 0.0;
        for (int64_t t = 0; t < rows; t++)
            out[0][j] += in[0][t * width + j];
    }
}

#define INPUT(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 1, .in = {INPUT(1, 1)}, .tolerance = 1e-6, .tolerance_bf16 = 1e-6},
    {.name = "odd sizes", .in_count = 1, .in = {INPUT(67, 37)}, .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "large enough for threads", .in_count = 1, .in = {INPUT(201, 131)}, .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
    {.name = "many rows", .in_count = 1, .in = {INPUT(600, 5)}, .tolerance = 1e-5, .tolerance_bf16 = 1e-5},
};

const struct gd_op gd_op_sum_rows = {
    .name = "sum_rows",
    .in_min = 1, .in_max = 1, .out_count = 1,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .groups = GD_GROUPS_OWN,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_sum_rows(struct gd_graph *g, struct gd_value *x)
{
    return gd_graph_call(g, &gd_op_sum_rows, &x, 1, NULL);
}
