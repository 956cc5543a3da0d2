/*
 * y[o] = m[o] / n[o], n[o] = ||w[o] + f[0] b[o] a||_2, and 0 where n is 0; w a weight [out, in], b f32 [out, r], a f32 [r, in],
 * m f32 [out]. Output 1: 1 / n. dm = dy / n; to w, b and a nothing flows: DoRA takes the norm as a constant (Liu et al. 2024,
 * section 4.3).
 */
#include "engine/tensor/device.h"
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/row_norms.h"
#include <math.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *w = call->in[0], *b = call->in[1], *a = call->in[2], *m = call->in[3];
    if (w->kind != GD_VALUE_WEIGHT || w->rank != 2 || b->rank != 2 || a->rank != 2 || b->dtype != GD_F32 || a->dtype != GD_F32 ||
        b->shape[0] != w->shape[0] || a->shape[1] != w->shape[1] || a->shape[0] != b->shape[1])
        return gd_graph_fail(graph, "row_norm_ratio: '%s' is no matrix weight, or '%s' '%s' is no f32 product of its shape",
                             w->name, b->name, a->name) != NULL;
    if (m->dtype != GD_F32 || m->rank != 1 || m->shape[0] != w->shape[0] || m->kind == GD_VALUE_WEIGHT)
        return gd_graph_fail(graph, "row_norm_ratio: '%s' is no f32 vector with an entry for each row of '%s'", m->name,
                             w->name) != NULL;
    gd_shape_like(call->out[0], m, GD_F32);
    gd_shape_like(call->out[1], m, GD_F32);
    call->out[0]->needs_gradient = m->needs_gradient;
    call->out[1]->needs_gradient = false;
    return true;
}

static enum gd_weight_use weight_use(const struct gd_call *call, int input)
{
    return GD_WEIGHT_ROWS;
}

static size_t scratch_bytes(const struct gd_call *call)
{
    return gd_row_norms_scratch_bytes(call->in[0]->shape[1], omp_get_max_threads());
}

GD_KERNEL static float norm(const float *restrict w, const float *restrict b, const float *restrict a, float *restrict row,
                            int64_t rank, float scale, int64_t in)
{
    for (int64_t i = 0; i < in; i++)
        row[i] = 0.0f;
    for (int64_t r = 0; r < rank; r++)
        for (int64_t i = 0; i < in; i++)
            row[i] += b[r] * a[r * in + i];
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < in; i++) {
        float value = w[i] + scale * row[i];
        sum += value * value;
    }
    return sqrtf(sum);
}

void gd_row_norms(const struct gd_weight *w, const float *b, const float *a, int64_t rank, float scale, float *out, float *scratch)
{
    int64_t rows = gd_weight_dim(w, 0), in = gd_weight_dim(w, 1);
    GD_PARALLEL(rows * in)
    {
        struct gd_range r = gd_thread_range(rows, 1);
        float *row = scratch + 2 * (int64_t)omp_get_thread_num() * in;
        for (int64_t o = r.begin; o < r.end; o++) {
            gd_weight_row_f32(w, o, row);
            out[o] = norm(row, b + o * rank, a, row + in, rank, scale, in);
        }
    }
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const float *m = args->in[3].data;
    float *ratio = args->out[0].data, *inverse = args->out[1].data;
    gd_row_norms(args->weight[0], args->in[1].data, args->in[2].data, args->in[2].shape[0], (float)args->params->f[0], inverse,
                 args->scratch);
    for (int64_t o = 0; o < args->out[0].shape[0]; o++) {
        float n = inverse[o];
        ratio[o] = n > 0.0f ? m[o] / n : 0.0f;
        inverse[o] = n > 0.0f ? 1.0f / n : 0.0f;
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (call->in[3]->needs_gradient)
        in_grad[3] = gd_mul(graph, out_grad[0], gd_value_output(call->out[0], 1));
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1], rank = op_case->in[2].shape[0];
    for (int64_t o = 0; o < rows; o++) {
        double sum = 0.0;
        for (int64_t i = 0; i < width; i++) {
            double value = in[0][o * width + i];
            for (int64_t r = 0; r < rank; r++)
                value += op_case->params.f[0] * in[1][o * rank + r] * in[2][r * width + i];
            sum += value * value;
        }
        out[0][o] = in[3][o] / sqrt(sum);
        out[1][o] = 1.0 / sqrt(sum);
    }
}

#define W(out, in) {.dtype = GD_F32, .rank = 2, .shape = {out, in}, .as_weight = true}
#define F(rows, columns) {.dtype = GD_F32, .rank = 2, .shape = {rows, columns}, .fill = GD_FILL_POSITIVE}
#define V(rows) {.dtype = GD_F32, .rank = 1, .shape = {rows}, .gradient = true}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 4, .in = {W(1, 1), F(1, 1), F(1, 1), V(1)}, .params = {.f = {0.5}}, .tolerance = 1e-5},
    {.name = "odd sizes", .in_count = 4, .in = {W(23, 37), F(23, 5), F(5, 37), V(23)}, .params = {.f = {-0.7}}, .tolerance = 1e-5},
    {.name = "large enough for threads", .in_count = 4, .in = {W(130, 259), F(130, 16), F(16, 259), V(130)}, .params = {.f = {2.0}}, .tolerance = 1e-5},
};

const struct gd_op gd_op_row_norm_ratio = {
    .name = "row_norm_ratio",
    .in_min = 4, .in_max = 4, .out_count = 2,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .weight_use = weight_use,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_row_norm_ratio(struct gd_graph *g, struct gd_value *w, struct gd_value *b, struct gd_value *a, double scale,
                                   struct gd_value *m)
{
    return gd_graph_call(g, &gd_op_row_norm_ratio, (struct gd_value *[]){w, b, a, m}, 4, &(struct gd_op_params){.f = {scale}});
}
