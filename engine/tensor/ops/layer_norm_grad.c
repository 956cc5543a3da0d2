/*
 * The backward pass of layer_norm: x, w, mean, r = 1/deviation, dy, c -> dx, dw (f32 [n] if i[0], else [0]), db (the same by i[1]).
 * c, or nothing: the gradient so far of what else reads x.
 *     xn = (x - mean) r,  dx = c + r (w dy - mean(w dy) - xn mean(w dy xn)),  dw[j] = sum_t dy[t][j] xn[t][j],  db[j] = sum_t dy[t][j]
 * Threads own rows for dx and columns for dw and db, so the order of every sum is fixed.
 */
#include "engine/tensor/ops/elementwise.h"

#define BLOCK 64   /* rows of a partial sum of dw and db */
#define COLUMNS 64

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *w = call->in[1], *mean = call->in[2], *r = call->in[3], *dy = call->in[4];
    const struct gd_value *c = call->in_count > 5 ? call->in[5] : NULL;
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || w->rank != 1 || w->shape[0] != x->shape[1] || (w->kind != GD_VALUE_WEIGHT && w->dtype != GD_F32) ||
        mean->dtype != GD_F32 || mean->rank != 1 || mean->shape[0] != x->shape[0] || !gd_value_same_shape(mean, r) ||
        r->dtype != GD_F32 || dy->dtype != x->dtype || !gd_value_same_shape(x, dy) ||
        (c != NULL && (c->dtype != x->dtype || !gd_value_same_shape(x, c))))
        return gd_graph_fail(graph, "layer_norm_grad: the inputs do not fit '%s'", x->name) != NULL;
    for (int i = 0; i < 2; i++) {
        call->out[1 + i]->dtype = GD_F32;
        call->out[1 + i]->rank = 1;
        call->out[1 + i]->shape[0] = call->params.i[i] ? w->shape[0] : 0;
    }
    return true;
}

/* c may be NULL, and may lie where dx does. */
GD_INLINE void rows_body(void *dx, const void *x, const float *w, const float *means, const float *inverses, const void *dy,
                         const void *c, bool bf16, int64_t width, int64_t begin, int64_t end)
{
    for (int64_t t = begin; t < end; t++) {
        float r = inverses[t], mean = means[t], sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
        for (int64_t j = 0; j < width; j++) {
            float wdy = w[j] * gd_load(dy, bf16, t * width + j);
            sum += wdy;
            product += wdy * (gd_load(x, bf16, t * width + j) - mean);
        }
        float shift = sum / (float)width, factor = product * r * r / (float)width;
        if (c == NULL) {
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                gd_store(dx, bf16, t * width + j,
                         r * (w[j] * gd_load(dy, bf16, t * width + j) - shift - factor * (gd_load(x, bf16, t * width + j) - mean)));
        } else {
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                gd_store(dx, bf16, t * width + j,
                         gd_load(c, bf16, t * width + j) + r * (w[j] * gd_load(dy, bf16, t * width + j) - shift -
                                                                factor * (gd_load(x, bf16, t * width + j) - mean)));
        }
    }
}

/* dw or db may be NULL. */
GD_INLINE void columns_body(float *dw, float *db, const void *x, const float *means, const float *inverses, const void *dy,
                            bool bf16, int64_t rows, int64_t width, int64_t begin, int64_t end)
{
    for (int64_t at = begin; at < end; at += COLUMNS) {
        int64_t columns = end - at < COLUMNS ? end - at : COLUMNS;
        float total_w[COLUMNS] = {0}, total_b[COLUMNS] = {0};
        for (int64_t row = 0; row < rows; row += BLOCK) {
            float part_w[COLUMNS] = {0}, part_b[COLUMNS] = {0};
            for (int64_t t = row; t < rows && t < row + BLOCK; t++)
#pragma omp simd
                for (int64_t j = 0; j < columns; j++) {
                    float of = gd_load(dy, bf16, t * width + at + j);
                    part_w[j] += of * (gd_load(x, bf16, t * width + at + j) - means[t]) * inverses[t];
                    part_b[j] += of;
                }
            for (int64_t j = 0; j < COLUMNS; j++) {
                total_w[j] += part_w[j];
                total_b[j] += part_b[j];
            }
        }
        if (dw != NULL)
            memcpy(dw + at, total_w, (size_t)columns * sizeof(float));
        if (db != NULL)
            memcpy(db + at, total_b, (size_t)columns * sizeof(float));
    }
}

GD_KERNEL static void rows_f32(float *dx, const float *x, const float *w, const float *means, const float *inverses,
                               const float *dy, const float *c, int64_t width, int64_t begin, int64_t end)
{
    rows_body(dx, x, w, means, inverses, dy, c, false, width, begin, end);
}

GD_KERNEL static void rows_bf16(uint16_t *dx, const uint16_t *x, const float *w, const float *means, const float *inverses,
                                const uint16_t *dy, const uint16_t *c, int64_t width, int64_t begin, int64_t end)
{
    rows_body(dx, x, w, means, inverses, dy, c, true, width, begin, end);
}

GD_KERNEL static void columns_f32(float *dw, float *db, const float *x, const float *means, const float *inverses,
                                  const float *dy, int64_t rows, int64_t width, int64_t begin, int64_t end)
{
    columns_body(dw, db, x, means, inverses, dy, false, rows, width, begin, end);
}

GD_KERNEL static void columns_bf16(float *dw, float *db, const uint16_t *x, const float *means, const float *inverses,
                                   const uint16_t *dy, int64_t rows, int64_t width, int64_t begin, int64_t end)
{
    columns_body(dw, db, x, means, inverses, dy, true, rows, width, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->in[0].shape[0], width = args->in[0].shape[1];
    const void *x = args->in[0].data, *dy = args->in[4].data, *addend = args->in[5].data;
    const float *w = args->weight[1] != NULL ? gd_weight_vector(args->weight[1]) : args->in[1].data;
    const float *means = args->in[2].data, *inverses = args->in[3].data;
    float *dw = args->params->i[0] ? args->out[1].data : NULL, *db = args->params->i[1] ? args->out[2].data : NULL;
    bool bf16 = args->in[0].dtype == GD_BF16;
    GD_PARALLEL(rows * width)
    {
        struct gd_range r = gd_thread_range(rows, 1), c = gd_thread_range(dw != NULL || db != NULL ? width : 0, COLUMNS);
        if (bf16) {
            rows_bf16(args->out[0].data, x, w, means, inverses, dy, addend, width, r.begin, r.end);
            columns_bf16(dw, db, x, means, inverses, dy, rows, width, c.begin, c.end);
        } else {
            rows_f32(args->out[0].data, x, w, means, inverses, dy, addend, width, r.begin, r.end);
            columns_f32(dw, db, x, means, inverses, dy, rows, width, c.begin, c.end);
        }
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1];
    bool wants_w = op_case->params.i[0] != 0, wants_b = op_case->params.i[1] != 0;
    for (int64_t j = 0; j < width; j++) {
        if (wants_w)
            out[1][j] = 0;
        if (wants_b)
            out[2][j] = 0;
    }
    for (int64_t t = 0; t < rows; t++) {
        const double *x = in[0] + t * width, *dy = in[4] + t * width;
        double mean = in[2][t], r = in[3][t], sum = 0, product = 0;
        for (int64_t j = 0; j < width; j++) {
            sum += in[1][j] * dy[j] / (double)width;
            product += in[1][j] * dy[j] * (x[j] - mean) * r / (double)width;
        }
        for (int64_t j = 0; j < width; j++) {
            double xn = (x[j] - mean) * r;
            out[0][t * width + j] = r * (in[1][j] * dy[j] - sum - xn * product) + (op_case->in_count > 5 ? in[5][t * width + j] : 0);
            if (wants_w)
                out[1][j] += dy[j] * xn;
            if (wants_b)
                out[2][j] += dy[j];
        }
    }
}

#define ROWS(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}}
#define SMALL(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .fill = GD_FILL_SMALL}
#define VECTOR(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .fill = GD_FILL_POSITIVE}
#define FROZEN(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .fill = GD_FILL_POSITIVE, .as_weight = true}
#define CASE(text, t, n, wants_w, wants_b) \
    {.name = text, .in_count = 5, .in = {ROWS(t, n), FROZEN(n), SMALL(t), VECTOR(t), ROWS(t, n)}, \
     .params = {.i = {wants_w, wants_b}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-2}
#define ADDED(text, t, n, wants_w) \
    {.name = text, .in_count = 6, .in = {ROWS(t, n), FROZEN(n), SMALL(t), VECTOR(t), ROWS(t, n), ROWS(t, n)}, \
     .params = {.i = {wants_w, wants_w}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-2}
static const struct gd_op_case cases[] = {
    CASE("one element", 1, 1, 0, 0),
    CASE("odd sizes", 5, 37, 0, 0),
    CASE("odd sizes with both gradients", 71, 37, 1, 1),
    CASE("the gradient of the bias alone", 9, 33, 0, 1),
    ADDED("odd sizes and an addend", 5, 37, 1),
    ADDED("an addend of several rows a warp", 33, 64, 0),
    ADDED("long rows and an addend", 3, 1544, 0),
    CASE("large enough for threads", 150, 576, 1, 1),
    CASE("long rows", 3, 1544, 1, 1),
    CASE("long odd rows", 2, 1031, 1, 1),
};

const struct gd_op gd_op_layer_norm_grad = {
    .name = "layer_norm_grad",
    .in_min = 5, .in_max = 6, .out_count = 3,
    .shape = shape,
    .run_cpu = run_cpu,
    .inplace = 5,
    .addend = 5,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};
