/*
 * The backward pass of mix_linear: x, F, w, cu_seqlens, dy -> dx, dF, dw. For each segment dM = x^T dy over its rows, then
 *
 *   dx = dy M^T     dF[h][j] += w[h][j] dM of part h     dw[h][j] = sum F[h][j] dM of part h
 *
 * Segments come one after another, so the order of all sums is fixed.
 */
#include "engine/tensor/ops/mix.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    if (!gd_mix_shape(graph, call))
        return false;
    const struct gd_value *x = call->in[0], *dy = call->in[4];
    int64_t out = gd_mix_of(&call->params, x->shape, call->in[1]->shape).out;
    if (dy->rank != 2 || dy->dtype != x->dtype || dy->shape[0] != x->shape[0] || dy->shape[1] != out)
        return gd_graph_fail(graph, "mix_linear_grad: '%s' is not the gradient of the product's rows", dy->name) != NULL;
    for (int i = 0; i < 3; i++)
        gd_shape_like(call->out[i], call->in[i], call->in[i]->dtype);
    return true;
}

struct scratch {
    int64_t m, turned, dm, x, dy, count; /* offsets in floats */
};

static struct scratch scratch_of(const struct gd_mix *mix, int64_t rows)
{
    struct scratch at = {.m = 0};
    at.turned = at.m + mix->in * gd_mix_padded(mix->out);
    at.dm = at.turned + mix->out * gd_mix_padded(mix->in);
    at.x = at.dm + gd_mix_padded(mix->in) * gd_mix_padded(mix->out);
    at.dy = at.x + rows * mix->in;
    at.count = at.dy + rows * mix->out;
    return at;
}

static size_t scratch_bytes(const struct gd_call *call)
{
    struct gd_mix mix = gd_mix_of(&call->params, call->in[0]->shape, call->in[1]->shape);
    return (size_t)scratch_of(&mix, call->in[0]->shape[0]).count * sizeof(float);
}

/* Rows [begin, end) of M, and the same as columns of its transpose. */
GD_KERNEL static void make_rows(float *m, float *turned, const struct gd_mix *mix, const float *f, const float *w, int64_t begin,
                                int64_t end)
{
    int64_t stride = gd_mix_padded(mix->out), turned_row = gd_mix_padded(mix->in);
    gd_mix_rows(m, stride, mix, f, w, begin, end);
    for (int64_t c = 0; c < mix->out; c++)
        for (int64_t k = begin; k < end; k++)
            turned[c * turned_row + k] = m[k * stride + c];
}

/* Tiles [begin, end) of dM = x^T dy over `rows` rows. */
GD_KERNEL static void make_dm(float *dm, const struct gd_mix *mix, const float *x, const float *dy, int64_t rows, int64_t begin,
                              int64_t end)
{
    int64_t stride = gd_mix_padded(mix->out), across = stride / GD_MIX_COLUMNS;
    for (int64_t tile = begin; tile < end; tile++) {
        int64_t k = tile / across * GD_MIX_ROWS, c = tile % across * GD_MIX_COLUMNS;
        int64_t high = mix->in - k < GD_MIX_ROWS ? mix->in - k : GD_MIX_ROWS;
        int64_t wide = mix->out - c < GD_MIX_COLUMNS ? mix->out - c : GD_MIX_COLUMNS;
        float sum[GD_MIX_ROWS][GD_MIX_COLUMNS] = {{0}};
        for (int64_t t = 0; t < rows; t++)
            for (int64_t u = 0; u < high; u++)
                for (int64_t v = 0; v < wide; v++)
                    sum[u][v] += x[t * mix->in + k + u] * dy[t * mix->out + c + v];
        for (int64_t u = 0; u < high; u++)
            memcpy(dm + (k + u) * stride + c, sum[u], sizeof(sum[u]));
    }
}

/* dF and dw of the pairs (h, j) in [begin, end). */
GD_KERNEL static void spread(float *df, float *dw, const struct gd_mix *mix, const float *f, const float *w, const float *dm,
                             int64_t begin, int64_t end)
{
    int64_t stride = gd_mix_padded(mix->out);
    for (int64_t pair = begin; pair < end; pair++) {
        int64_t h = pair / mix->skills;
        const float *part = dm + (mix->by_output ? h * mix->columns : h * mix->rows * stride);
        double total = 0;
        for (int64_t i = 0; i < mix->rows; i++) {
            int64_t at = (pair * mix->rows + i) * mix->columns;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < mix->columns; c++) {
                df[at + c] += w[pair] * part[i * stride + c];
                sum += f[at + c] * part[i * stride + c];
            }
            total += (double)sum;
        }
        dw[pair] = (float)total;
    }
}

GD_KERNEL static void multiply(void *dx, bool bf16, const struct gd_mix *mix, const float *dy, const float *turned, int64_t begin,
                               int64_t end)
{
    gd_mix_product(dx, bf16, mix->in, dy, mix->out, mix->out, turned, gd_mix_padded(mix->in), begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *x = &args->in[0], *dy = &args->in[4];
    struct gd_mix mix = gd_mix_of(args->params, x->shape, args->in[1].shape);
    const float *f = args->in[1].data, *w = args->in[2].data;
    const int32_t *cu = args->in[3].data;
    int64_t rows = x->shape[0], segments = args->in[2].shape[0], pairs = mix.splits * mix.skills;
    int64_t tiles = (mix.in + GD_MIX_ROWS - 1) / GD_MIX_ROWS * (gd_mix_padded(mix.out) / GD_MIX_COLUMNS);
    float *base = args->scratch, *df = args->out[1].data, *dw = args->out[2].data;
    struct scratch at = scratch_of(&mix, rows);
    bool bf16 = x->dtype == GD_BF16;
    if (!gd_mix_check("mix_linear_grad", cu, segments, rows, err))
        return false;
    memset(args->out[0].data, 0, gd_dtype_bytes(x->dtype, rows * mix.in));
    memset(df, 0, (size_t)gd_tensor_count(&args->out[1]) * sizeof(float));
    memset(dw, 0, (size_t)(segments * pairs) * sizeof(float));
    memset(base + at.turned, 0, (size_t)(at.dm - at.turned) * sizeof(float));
    GD_PARALLEL(rows * mix.in * mix.out / 4)
    {
        struct gd_range all = gd_thread_range(rows * mix.in, 32), from = gd_thread_range(rows * mix.out, 32);
        gd_row_to_f32(base + at.x + all.begin, gd_at(x, all.begin), x->dtype, all.end - all.begin);
        gd_row_to_f32(base + at.dy + from.begin, gd_at(dy, from.begin), dy->dtype, from.end - from.begin);
        for (int64_t s = 0; s < segments; s++) {
            if (cu[s + 1] == cu[s])
                continue;
            const float *weights = w + s * pairs;
            struct gd_range r = gd_thread_range(mix.in, 1), t = gd_thread_range(cu[s + 1] - cu[s], GD_MIX_ROWS);
            struct gd_range tile = gd_thread_range(tiles, 1), pair = gd_thread_range(pairs, 1);
#pragma omp barrier
            make_rows(base + at.m, base + at.turned, &mix, f, weights, r.begin, r.end);
            make_dm(base + at.dm, &mix, base + at.x + cu[s] * mix.in, base + at.dy + cu[s] * mix.out, cu[s + 1] - cu[s], tile.begin,
                    tile.end);
#pragma omp barrier
            multiply(args->out[0].data, bf16, &mix, base + at.dy, base + at.turned, cu[s] + t.begin, cu[s] + t.end);
            spread(df, dw + s * pairs, &mix, f, weights, base + at.dm, pair.begin, pair.end);
        }
    }
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    struct gd_mix mix = gd_mix_of(&op_case->params, op_case->in[0].shape, op_case->in[1].shape);
    int64_t rows = op_case->in[0].shape[0], segments = op_case->in[2].shape[0], pairs = mix.splits * mix.skills;
    memset(out[0], 0, (size_t)(rows * mix.in) * sizeof(double));
    memset(out[1], 0, (size_t)(pairs * mix.rows * mix.columns) * sizeof(double));
    memset(out[2], 0, (size_t)(segments * pairs) * sizeof(double));
    for (int64_t s = 0; s < segments; s++)
        for (int64_t t = (int64_t)in[3][s]; t < (int64_t)in[3][s + 1]; t++)
            for (int64_t k = 0; k < mix.in; k++)
                for (int64_t c = 0; c < mix.out; c++) {
                    int64_t h = mix.by_output ? c / mix.columns : k / mix.rows;
                    double x = in[0][t * mix.in + k], dy = in[4][t * mix.out + c];
                    for (int64_t j = 0; j < mix.skills; j++) {
                        int64_t at = ((h * mix.skills + j) * mix.rows + k % mix.rows) * mix.columns + c % mix.columns;
                        int64_t pair = s * pairs + h * mix.skills + j;
                        out[0][t * mix.in + k] += in[2][pair] * in[1][at] * dy;
                        out[1][at] += in[2][pair] * x * dy;
                        out[2][pair] += in[1][at] * x * dy;
                    }
                }
}

#define CASE(text, t, n, m, h, s, by_output, g) \
    {.name = text, .in_count = 5, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, n}}, \
            {.dtype = GD_F32, .rank = 2, .shape = {(by_output) ? (h) * (s) * (n) : (s) * (n), (by_output) ? (m) / (h) : (m)}, \
             .fill = GD_FILL_POSITIVE}, \
            {.dtype = GD_F32, .rank = 2, .shape = {g, (h) * (s)}, .fill = GD_FILL_POSITIVE}, \
            {.dtype = GD_I32, .rank = 1, .shape = {(g) + 1}, .fill = GD_FILL_OFFSETS, .fill_limit = (t) - ((t) > 1)}, \
            {.dtype = GD_F32, .rank = 2, .shape = {t, m}}}, \
     .params = {.i = {h, s, by_output}}, .tolerance = 2e-5, .tolerance_bf16 = 1e-2}
static const struct gd_op_case cases[] = {
    CASE("one element", 1, 1, 1, 1, 1, 0, 1),
    CASE("odd sizes, by input", 13, 15, 7, 3, 2, 0, 3),
    CASE("odd sizes, by output", 13, 5, 21, 3, 2, 1, 3),
    CASE("large enough for threads", 67, 96, 24, 4, 3, 0, 4),
    CASE("a wide result, by output", 11, 6, 70, 2, 3, 1, 3),
};

const struct gd_op gd_op_mix_linear_grad = {
    .name = "mix_linear_grad",
    .in_min = 5, .in_max = 5, .out_count = 3,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};
