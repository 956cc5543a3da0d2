/*
 * The backward pass of rms_norm: x, w, r = 1/rms, dy, c -> dx, dw (f32 [n] if i[0], else [0]). c, or nothing: the gradient so far
 * of what else reads x.
 *     xn = x r,  v = w + f[0],  dx = c + r (v dy - xn mean(v dy xn)),  dw[j] = sum_t dy[t][j] xn[t][j]
 * Where w is shorter than a row, rows are as many vectors of its length. Threads own rows for dx and columns for dw, so the order of every sum is fixed.
 */
#include "engine/tensor/ops/elementwise.h"
#include <math.h>

#define BLOCK 64   /* rows of a partial sum of dw */
#define COLUMNS 64

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *w = call->in[1], *r = call->in[2], *dy = call->in[3];
    const struct gd_value *c = call->in_count > 4 ? call->in[4] : NULL;
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || w->rank != 1 || w->shape[0] < 1 || x->shape[1] % w->shape[0] != 0 || (w->kind != GD_VALUE_WEIGHT && w->dtype != GD_F32) ||
        r->dtype != GD_F32 || r->rank != 1 || r->shape[0] != x->shape[0] * (x->shape[1] / w->shape[0]) || dy->dtype != x->dtype ||
        !gd_value_same_shape(x, dy) || (c != NULL && (c->dtype != x->dtype || !gd_value_same_shape(x, c))))
        return gd_graph_fail(graph, "rms_norm_grad: the inputs do not fit '%s'", x->name) != NULL;
    call->out[1]->dtype = GD_F32;
    call->out[1]->rank = 1;
    call->out[1]->shape[0] = call->params.i[0] ? w->shape[0] : 0;
    return true;
}

/* c may be NULL, and may lie where dx does. */
GD_INLINE void rows_body(void *dx, const void *x, const float *w, const float *inverse_rms, const void *dy, const void *c, float offset,
                         bool bf16, int64_t width, int64_t begin, int64_t end)
{
    for (int64_t t = begin; t < end; t++) {
        float r = inverse_rms[t], sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++)
            sum += (w[j] + offset) * gd_load(dy, bf16, t * width + j) * gd_load(x, bf16, t * width + j);
        float factor = sum * r * r * r / (float)width;
        if (c == NULL) {
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                gd_store(dx, bf16, t * width + j,
                         r * (w[j] + offset) * gd_load(dy, bf16, t * width + j) - factor * gd_load(x, bf16, t * width + j));
        } else {
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                gd_store(dx, bf16, t * width + j,
                         gd_load(c, bf16, t * width + j) + (r * (w[j] + offset) * gd_load(dy, bf16, t * width + j) -
                                                            factor * gd_load(x, bf16, t * width + j)));
        }
    }
}

GD_INLINE void columns_body(float *dw, const void *x, const float *inverse_rms, const void *dy, bool bf16, int64_t rows,
                            int64_t width, int64_t begin, int64_t end)
{
    for (int64_t at = begin; at < end; at += COLUMNS) {
        int64_t columns = end - at < COLUMNS ? end - at : COLUMNS;
        float total[COLUMNS] = {0};
        for (int64_t row = 0; row < rows; row += BLOCK) {
            float part[COLUMNS] = {0};
            for (int64_t t = row; t < rows && t < row + BLOCK; t++)
#pragma omp simd
                for (int64_t j = 0; j < columns; j++)
                    part[j] += gd_load(dy, bf16, t * width + at + j) * gd_load(x, bf16, t * width + at + j) * inverse_rms[t];
            for (int64_t j = 0; j < COLUMNS; j++)
                total[j] += part[j];
        }
        memcpy(dw + at, total, (size_t)columns * sizeof(float));
    }
}

GD_KERNEL static void rows_f32(float *dx, const float *x, const float *w, const float *inverse_rms, const float *dy,
                               const float *c, float offset, int64_t width, int64_t begin, int64_t end)
{
    rows_body(dx, x, w, inverse_rms, dy, c, offset, false, width, begin, end);
}

GD_KERNEL static void rows_bf16(uint16_t *dx, const uint16_t *x, const float *w, const float *inverse_rms,
                                const uint16_t *dy, const uint16_t *c, float offset, int64_t width, int64_t begin, int64_t end)
{
    rows_body(dx, x, w, inverse_rms, dy, c, offset, true, width, begin, end);
}

GD_KERNEL static void columns_f32(float *dw, const float *x, const float *inverse_rms, const float *dy, int64_t rows,
                                  int64_t width, int64_t begin, int64_t end)
{
    columns_body(dw, x, inverse_rms, dy, false, rows, width, begin, end);
}

GD_KERNEL static void columns_bf16(float *dw, const uint16_t *x, const float *inverse_rms, const uint16_t *dy,
                                   int64_t rows, int64_t width, int64_t begin, int64_t end)
{
    columns_body(dw, x, inverse_rms, dy, true, rows, width, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t width = args->in[1].shape[0], rows = args->in[0].shape[0] * (args->in[0].shape[1] / width);
    const void *x = args->in[0].data, *dy = args->in[3].data, *addend = args->in[4].data;
    const float *w = args->weight[1] != NULL ? gd_weight_vector(args->weight[1]) : args->in[1].data;
    const float *inverse_rms = args->in[2].data;
    bool bf16 = args->in[0].dtype == GD_BF16, wants_w = args->params->i[0] != 0;
    GD_PARALLEL(rows * width)
    {
        struct gd_range r = gd_thread_range(rows, 1), c = gd_thread_range(wants_w ? width : 0, COLUMNS);
        if (bf16) {
            rows_bf16(args->out[0].data, x, w, inverse_rms, dy, addend, (float)args->params->f[0], width, r.begin, r.end);
            columns_bf16(args->out[1].data, x, inverse_rms, dy, rows, width, c.begin, c.end);
        } else {
            rows_f32(args->out[0].data, x, w, inverse_rms, dy, addend, (float)args->params->f[0], width, r.begin, r.end);
            columns_f32(args->out[1].data, x, inverse_rms, dy, rows, width, c.begin, c.end);
        }
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t width = op_case->in[1].shape[0], rows = op_case->in[0].shape[0] * op_case->in[0].shape[1] / width;
    bool wants_w = op_case->params.i[0] != 0;
    for (int64_t j = 0; wants_w && j < width; j++)
        out[1][j] = 0;
    for (int64_t t = 0; t < rows; t++) {
        const double *x = in[0] + t * width, *dy = in[3] + t * width;
        double r = in[2][t], mean = 0;
        for (int64_t j = 0; j < width; j++)
            mean += (in[1][j] + op_case->params.f[0]) * dy[j] * x[j] * r / (double)width;
        for (int64_t j = 0; j < width; j++) {
            out[0][t * width + j] = r * ((in[1][j] + op_case->params.f[0]) * dy[j] - x[j] * r * mean);
            if (op_case->in_count > 4)
                out[0][t * width + j] += in[4][t * width + j];
            if (wants_w)
                out[1][j] += dy[j] * x[j] * r;
        }
    }
}

#define ROWS(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}}
#define VECTOR(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .fill = GD_FILL_POSITIVE}
#define FROZEN(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .fill = GD_FILL_POSITIVE, .as_weight = true}
#define CASE(text, t, n, w, wants_w) \
    {.name = text, .in_count = 4, .in = {ROWS(t, n), w, VECTOR(t), ROWS(t, n)}, .params = {.i = {wants_w}}, \
     .tolerance = 1e-5, .tolerance_bf16 = 1e-2}
#define ADDED(text, t, n, wants_w) \
    {.name = text, .in_count = 5, .in = {ROWS(t, n), FROZEN(n), VECTOR(t), ROWS(t, n), ROWS(t, n)}, .params = {.i = {wants_w}}, \
     .tolerance = 1e-5, .tolerance_bf16 = 1e-2}
static const struct gd_op_case cases[] = {
    CASE("one element", 1, 1, FROZEN(1), 0),
    CASE("odd sizes", 5, 37, FROZEN(37), 0),
    CASE("odd sizes with the gradient of w", 71, 37, FROZEN(37), 1),
    {.name = "heads with the gradient of w", .in_count = 4, .in = {ROWS(9, 33), FROZEN(11), VECTOR(27), ROWS(9, 33)}, .params = {.i = {1}},
     .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "around 1", .in_count = 4, .in = {ROWS(9, 20), FROZEN(20), VECTOR(9), ROWS(9, 20)}, .params = {.i = {1}, .f = {1}},
     .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    ADDED("odd sizes and an addend", 5, 37, 1),
    ADDED("an addend of several rows a warp", 33, 64, 0),
    ADDED("long rows and an addend", 3, 1544, 0),
    CASE("large enough for threads", 150, 576, FROZEN(576), 1),
    CASE("long rows", 3, 1544, FROZEN(1544), 1),
    CASE("long odd rows", 2, 1031, FROZEN(1031), 1),
    CASE("many rows", 600, 5, FROZEN(5), 1),
};

const struct gd_op gd_op_rms_norm_grad = {
    .name = "rms_norm_grad",
    .in_min = 4, .in_max = 5, .out_count = 2,
    .shape = shape,
    .run_cpu = run_cpu,
    .inplace = 4,
    .addend = 4,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};
