/* y = x / rms(x) * (w + f[1]), rms = sqrt(mean(x^2) + eps), row by row (Zhang & Sennrich 2019), or head by head
 * where w is shorter than a row: a row is then as many vectors of its length. Output 1: 1 / rms. f[0]: eps.
 * Serving: with the handle of a gd_wear as third input, rows of a graft with a norm at i[0], the site, take its weight. */
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/wear.h"
#include <math.h>

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *w = call->in[1];
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || w->rank != 1 || w->shape[0] < 1 || x->shape[1] % w->shape[0] != 0 || (w->kind != GD_VALUE_WEIGHT && w->dtype != GD_F32))
        return gd_graph_fail(graph, "rms_norm: '%s' is no f32 vector that fits whole times in the rows of '%s'", w->name, x->name) != NULL;
    if (call->in_count > 2 && (call->in[2]->dtype != GD_HANDLE || call->params.i[0] < 0))
        return gd_graph_fail(graph, "rms_norm: '%s' is no handle, or the site is negative", call->in[2]->name) != NULL;
    call->out[1]->dtype = GD_F32;
    call->out[1]->rank = 1;
    call->out[1]->shape[0] = x->shape[0] * (x->shape[1] / w->shape[0]);
    return true;
}

GD_INLINE void body(void *y, float *inverse_rms, const void *x, const float *w, float eps, float offset, bool bf16, int64_t width,
                    int64_t begin, int64_t end)
{
    for (int64_t t = begin; t < end; t++) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) {
            float value = gd_load(x, bf16, t * width + j);
            sum += value * value;
        }
        float inverse = 1.0f / sqrtf(sum / (float)width + eps);
        inverse_rms[t] = inverse;
#pragma omp simd
        for (int64_t j = 0; j < width; j++)
            gd_store(y, bf16, t * width + j, gd_load(x, bf16, t * width + j) * inverse * (w[j] + offset));
    }
}

GD_KERNEL static void rows_f32(float *y, float *inverse_rms, const float *x, const float *w, float eps, float offset, int64_t width,
                               int64_t begin, int64_t end)
{
    body(y, inverse_rms, x, w, eps, offset, false, width, begin, end);
}

GD_KERNEL static void rows_bf16(uint16_t *y, float *inverse_rms, const uint16_t *x, const float *w, float eps, float offset,
                                int64_t width, int64_t begin, int64_t end)
{
    body(y, inverse_rms, x, w, eps, offset, true, width, begin, end);
}

/* Vectors [begin, end). */
static void run_rows(const struct gd_kernel_args *args, const float *w, int64_t begin, int64_t end)
{
    int64_t width = args->in[1].shape[0];
    float eps = (float)args->params->f[0], offset = (float)args->params->f[1];
    if (args->out[0].dtype == GD_BF16)
        rows_bf16(args->out[0].data, args->out[1].data, args->in[0].data, w, eps, offset, width, begin, end);
    else
        rows_f32(args->out[0].data, args->out[1].data, args->in[0].data, w, eps, offset, width, begin, end);
}

/* Vectors [begin, end), each with the weight of its row's graft. */
static void run_worn(const struct gd_kernel_args *args, const float *base, int64_t begin, int64_t end)
{
    const struct gd_wear *wear = args->in[2].data;
    int64_t heads = args->out[0].shape[1] / args->in[1].shape[0];
    for (int group = 0; group < wear->group_count && begin < end; group++) {
        const struct gd_wear_part *sites = wear->sites[group];
        const float *own = sites != NULL ? sites[args->params->i[0]].norm : NULL;
        int64_t stop = wear->row_begin[group + 1] * heads < end ? wear->row_begin[group + 1] * heads : end;
        if (stop <= begin)
            continue;
        run_rows(args, own != NULL ? own : base, begin, stop);
        begin = stop;
    }
    if (begin < end) /* padding */
        run_rows(args, base, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t width = args->in[1].shape[0], rows = args->out[0].shape[0] * (args->out[0].shape[1] / width);
    const float *w = args->weight[1] != NULL ? gd_weight_vector(args->weight[1]) : args->in[1].data;
    bool worn = args->in[2].data != NULL;
    GD_PARALLEL(rows * width)
    {
        struct gd_range r = gd_thread_range(rows, 1);
        if (worn)
            run_worn(args, w, r.begin, r.end);
        else
            run_rows(args, w, r.begin, r.end);
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_rms_norm_grad;
    if (call->in_count > 2)
        return gd_graph_fail(graph, "rms_norm: it is not differentiable while rows wear grafts") != NULL;
    if (out_grad[1] != NULL)
        return gd_graph_fail(graph, "rms_norm: its 1/rms is not differentiable") != NULL;
    bool wants_w = call->in[1]->needs_gradient;
    struct gd_op_params params = {.i = {wants_w}, .f = {call->params.f[1]}};
    struct gd_value *in[] = {call->in[0], call->in[1], call->out[1], out_grad[0]};
    struct gd_value *dx = gd_graph_call(graph, &gd_op_rms_norm_grad, in, GD_COUNT(in), &params);
    in_grad[0] = call->in[0]->needs_gradient ? dx : NULL;
    in_grad[1] = wants_w ? gd_value_output(dx, 1) : NULL;
    return dx != NULL;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t width = op_case->in[1].shape[0], rows = op_case->in[0].shape[0] * op_case->in[0].shape[1] / width;
    for (int64_t t = 0; t < rows; t++) {
        double sum = 0;
        for (int64_t j = 0; j < width; j++)
            sum += in[0][t * width + j] * in[0][t * width + j];
        out[1][t] = 1 / sqrt(sum / (double)width + op_case->params.f[0]);
        for (int64_t j = 0; j < width; j++)
            out[0][t * width + j] = in[0][t * width + j] * out[1][t] * (in[1][j] + op_case->params.f[1]);
    }
}

#define ROWS(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
#define FROZEN(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .fill = GD_FILL_POSITIVE, .as_weight = true}
#define TRAINED(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .fill = GD_FILL_POSITIVE, .gradient = true}
#define EPS .params = {.f = {1e-5}}
static const struct gd_op_case cases[] = {
    {.name = "one element", .in_count = 2, .in = {ROWS(1, 1), FROZEN(1)}, .params = {.f = {0.5}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "odd sizes, frozen", .in_count = 2, .in = {ROWS(5, 37), FROZEN(37)}, EPS, .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "odd sizes, trained", .in_count = 2, .in = {ROWS(19, 37), TRAINED(37)}, EPS, .tolerance = 1e-5},
    {.name = "around 1, trained", .in_count = 2, .in = {ROWS(9, 20), TRAINED(20)}, .params = {.f = {1e-5, 1}}, .tolerance = 1e-5},
    {.name = "heads, frozen", .in_count = 2, .in = {ROWS(5, 33), FROZEN(11)}, EPS, .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "heads, trained", .in_count = 2, .in = {ROWS(19, 64), TRAINED(16)}, EPS, .tolerance = 1e-5},
    {.name = "large enough for threads", .in_count = 2, .in = {ROWS(67, 576), FROZEN(576)}, EPS, .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "long rows", .in_count = 2, .in = {ROWS(3, 1544), FROZEN(1544)}, EPS, .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "long odd rows", .in_count = 2, .in = {ROWS(2, 1031), FROZEN(1031)}, EPS, .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
};

const struct gd_op gd_op_rms_norm = {
    .name = "rms_norm",
    .in_min = 2, .in_max = 3, .out_count = 2,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .light = true,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_rms_norm(struct gd_graph *g, struct gd_value *x, struct gd_value *w, double eps, double offset)
{
    struct gd_op_params params = {.f = {eps, offset}};
    return gd_graph_call(g, &gd_op_rms_norm, (struct gd_value *[]){x, w}, 2, &params);
}

struct gd_value *gd_rms_norm_worn(struct gd_graph *g, struct gd_value *x, struct gd_value *w, double eps, double offset,
                                  struct gd_value *wear, int site)
{
    struct gd_op_params params = {.i = {site}, .f = {eps, offset}};
    return gd_graph_call(g, &gd_op_rms_norm, (struct gd_value *[]){x, w, wear}, 3, &params);
}
