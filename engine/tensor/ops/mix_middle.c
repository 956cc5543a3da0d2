/*
 * y[t][i][p] = sum_j op(w)[i][j] x[t][j][p]: rows of x as matrices of as many rows as op(w) has columns, mixed by w f32 [l, m].
 * i[0]: transpose w. dx is the same with the other transposition, dw is outer_middle.
 */
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *w = call->in[1];
    if (!gd_shape_unary(graph, call))
        return false;
    int64_t from = w->shape[call->params.i[0] ? 0 : 1], to = w->shape[call->params.i[0] ? 1 : 0];
    if (x->rank != 2 || w->rank != 2 || w->dtype != GD_F32 || w->kind == GD_VALUE_WEIGHT || from < 1 || x->shape[1] % from != 0)
        return gd_graph_fail(graph, "mix_middle: '%s' is no f32 matrix that divides the rows of '%s'", w->name, x->name) != NULL;
    call->out[0]->shape[1] = x->shape[1] / from * to;
    return true;
}

/* A row of x and one of y as f32 for each thread. */
static size_t scratch_bytes(const struct gd_call *call)
{
    return (size_t)omp_get_max_threads() * (size_t)(call->in[0]->shape[1] + call->out[0]->shape[1]) * sizeof(float);
}

/* step: between the elements of w along its mixed side, and along the other one. */
GD_KERNEL static void mix_row(float *restrict y, const float *restrict x, const float *restrict w, int64_t from, int64_t to,
                              int64_t step_from, int64_t step_to, int64_t size)
{
    for (int64_t i = 0; i < to; i++) {
        for (int64_t p = 0; p < size; p++)
            y[i * size + p] = 0.0f;
        for (int64_t j = 0; j < from; j++) {
            float factor = w[i * step_to + j * step_from];
            for (int64_t p = 0; p < size; p++)
                y[i * size + p] += factor * x[j * size + p];
        }
    }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *w = &args->in[1], *y = &args->out[0];
    bool transpose = args->params->i[0];
    int64_t rows = x->shape[0], width = x->shape[1], height = y->shape[1], columns = w->shape[1];
    int64_t from = w->shape[transpose ? 0 : 1], to = w->shape[transpose ? 1 : 0];
    GD_PARALLEL(rows * width * to / 8)
    {
        float *row = (float *)args->scratch + (int64_t)omp_get_thread_num() * (width + height);
        struct gd_range r = gd_thread_range(rows, 1);
        for (int64_t t = r.begin; t < r.end; t++) {
            gd_row_to_f32(row, gd_at(x, t * width), x->dtype, width);
            mix_row(row + width, row, w->data, from, to, transpose ? columns : 1, transpose ? 1 : columns, width / from);
            gd_row_from_f32(gd_at(y, t * height), y->dtype, row + width, height);
        }
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    struct gd_value *x = call->in[0], *w = call->in[1], *dy = out_grad[0];
    bool transpose = call->params.i[0];
    if (x->needs_gradient)
        in_grad[0] = gd_mix_middle(graph, dy, w, !transpose);
    if (w->needs_gradient)
        in_grad[1] = transpose ? gd_outer_middle(graph, x, dy, w->shape[0]) : gd_outer_middle(graph, dy, x, w->shape[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    bool transpose = op_case->params.i[0];
    const int64_t *w = op_case->in[1].shape;
    int64_t rows = op_case->in[0].shape[0], from = w[transpose ? 0 : 1], to = w[transpose ? 1 : 0];
    int64_t size = op_case->in[0].shape[1] / from;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < to; i++)
            for (int64_t p = 0; p < size; p++) {
                double sum = 0;
                for (int64_t j = 0; j < from; j++)
                    sum += in[1][transpose ? j * w[1] + i : i * w[1] + j] * in[0][(t * from + j) * size + p];
                out[0][(t * to + i) * size + p] = sum;
            }
}

#define X(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
#define W(l, m) {.dtype = GD_F32, .rank = 2, .shape = {l, m}, .fill = GD_FILL_POSITIVE, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {X(1, 1), W(1, 1)}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3},
    {.name = "odd sizes", .in_count = 2, .in = {X(9, 35), W(3, 5)}, .tolerance = 1e-5, .tolerance_bf16 = 1.6e-2},
    {.name = "transposed", .in_count = 2, .in = {X(9, 35), W(5, 3)}, .params = {.i = {1}}, .tolerance = 1e-5, .tolerance_bf16 = 1.6e-2},
    {.name = "large enough for threads", .in_count = 2, .in = {X(70, 384), W(24, 16)}, .tolerance = 1e-5},
};

const struct gd_op gd_op_mix_middle = {
    .name = "mix_middle",
    .in_min = 2, .in_max = 2, .out_count = 1,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .groups = GD_GROUPS_KEPT,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_mix_middle(struct gd_graph *g, struct gd_value *x, struct gd_value *w, bool transpose)
{
    return gd_graph_call(g, &gd_op_mix_middle, (struct gd_value *[]){x, w}, 2, &(struct gd_op_params){.i = {transpose}});
}
