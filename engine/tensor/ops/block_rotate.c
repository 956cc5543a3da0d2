/*
 * y[t][n] = x[t][n] op(r)[n], rows of x as n rows of b, r f32 [n b, b] of n squares, or [b, b] of one for all; i[0]: transpose each
 * square. dx is the same with the other transposition, dr is block_outer.
 */
#include "engine/tensor/ops/elementwise.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *r = call->in[1];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || r->rank != 2 || r->dtype != GD_F32 || r->kind == GD_VALUE_WEIGHT || r->shape[1] < 1 ||
        x->shape[1] % r->shape[1] != 0 || (r->shape[0] != x->shape[1] && r->shape[0] != r->shape[1]))
        return gd_graph_fail(graph, "block_rotate: '%s' holds no f32 squares for the rows of '%s'", r->name, x->name) != NULL;
    return true;
}

/* A row of x and one of y as f32 for each thread. */
static size_t scratch_bytes(const struct gd_call *call)
{
    return 2 * (size_t)omp_get_max_threads() * (size_t)call->in[0]->shape[1] * sizeof(float);
}

GD_KERNEL static void turn(float *restrict y, const float *restrict x, const float *restrict r, int64_t width, int64_t size,
                           int64_t step)
{
    for (int64_t first = 0; first < width; first += size, r += step) {
        for (int64_t c = 0; c < size; c++)
            y[first + c] = 0.0f;
        for (int64_t k = 0; k < size; k++) {
            float factor = x[first + k];
            for (int64_t c = 0; c < size; c++)
                y[first + c] += factor * r[k * size + c];
        }
    }
}

GD_KERNEL static void turn_back(float *restrict y, const float *restrict x, const float *restrict r, int64_t width, int64_t size,
                                int64_t step)
{
    for (int64_t first = 0; first < width; first += size, r += step)
        for (int64_t c = 0; c < size; c++) {
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t k = 0; k < size; k++)
                sum += x[first + k] * r[c * size + k];
            y[first + c] = sum;
        }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *r = &args->in[1], *y = &args->out[0];
    int64_t rows = x->shape[0], width = x->shape[1], size = r->shape[1], step = r->shape[0] == size ? 0 : size * size;
    GD_PARALLEL(rows * width * size / 8)
    {
        float *row = (float *)args->scratch + 2 * (int64_t)omp_get_thread_num() * width;
        struct gd_range range = gd_thread_range(rows, 1);
        for (int64_t t = range.begin; t < range.end; t++) {
            gd_row_to_f32(row, gd_at(x, t * width), x->dtype, width);
            (args->params->i[0] ? turn_back : turn)(row + width, row, r->data, width, size, step);
            gd_row_from_f32(gd_at(y, t * width), y->dtype, row + width, width);
        }
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    struct gd_value *x = call->in[0], *r = call->in[1], *dy = out_grad[0];
    bool transpose = call->params.i[0], shared = r->shape[0] == r->shape[1];
    if (x->needs_gradient)
        in_grad[0] = gd_block_rotate(graph, dy, r, !transpose);
    if (r->needs_gradient)
        in_grad[1] = transpose ? gd_block_outer(graph, dy, x, r->shape[1], shared) : gd_block_outer(graph, x, dy, r->shape[1], shared);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1], size = op_case->in[1].shape[1];
    bool shared = op_case->in[1].shape[0] == size;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0; i < width; i++) {
            const double *r = in[1] + (shared ? 0 : i / size * size * size);
            double sum = 0;
            for (int64_t k = 0; k < size; k++)
                sum += in[0][t * width + i / size * size + k] * r[op_case->params.i[0] ? i % size * size + k : k * size + i % size];
            out[0][t * width + i] = sum;
        }
}

#define X(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
#define R(rows, b) {.dtype = GD_F32, .rank = 2, .shape = {rows, b}, .fill = GD_FILL_POSITIVE, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {X(1, 1), R(1, 1)}, .tolerance = 1e-5, .tolerance_bf16 = 8e-3},
    {.name = "odd sizes", .in_count = 2, .in = {X(9, 35), R(35, 7)}, .tolerance = 1e-5, .tolerance_bf16 = 1.6e-2},
    {.name = "transposed", .in_count = 2, .in = {X(9, 35), R(35, 7)}, .params = {.i = {1}}, .tolerance = 1e-5, .tolerance_bf16 = 1.6e-2},
    {.name = "one square for all", .in_count = 2, .in = {X(9, 35), R(7, 7)}, .tolerance = 1e-5, .tolerance_bf16 = 1.6e-2},
    {.name = "large enough for threads", .in_count = 2, .in = {X(70, 384), R(384, 32)}, .tolerance = 1e-5},
};

const struct gd_op gd_op_block_rotate = {
    .name = "block_rotate",
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

struct gd_value *gd_block_rotate(struct gd_graph *g, struct gd_value *x, struct gd_value *r, bool transpose)
{
    return gd_graph_call(g, &gd_op_block_rotate, (struct gd_value *[]){x, r}, 2, &(struct gd_op_params){.i = {transpose}});
}
