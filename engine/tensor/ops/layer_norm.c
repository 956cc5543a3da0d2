/* y = (x - mean(x)) r * w + b, r = 1 / sqrt(var(x) + eps), row by row (Ba et al. 2016); b may be absent. Outputs 1 and 2: mean
 * and r. f[0]: eps. Serving: with the handle of a gd_wear as fourth input, rows of a graft with a norm at i[0], the site, take
 * its weight and its bias. */
#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/wear.h"
#include <math.h>

static bool fits(const struct gd_value *x, const struct gd_value *w)
{
    return w->rank == 1 && x->shape[1] == w->shape[0] && (w->kind == GD_VALUE_WEIGHT || w->dtype == GD_F32);
}

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *x = call->in[0], *w = call->in[1], *b = call->in_count > 2 ? call->in[2] : NULL;
    const struct gd_value *wear = call->in_count > 3 ? call->in[3] : NULL;
    if (!gd_shape_unary(graph, call))
        return false;
    if (x->rank != 2 || x->shape[1] < 1 || !fits(x, w) || (b != NULL && !fits(x, b)))
        return gd_graph_fail(graph, "layer_norm: '%s' or '%s' is no f32 vector as long as the rows of '%s'", w->name,
                             b != NULL ? b->name : w->name, x->name) != NULL;
    if (wear != NULL && (wear->dtype != GD_HANDLE || call->params.i[0] < 0))
        return gd_graph_fail(graph, "layer_norm: '%s' is no handle, or the site is negative", wear->name) != NULL;
    for (int i = 1; i < 3; i++) {
        call->out[i]->dtype = GD_F32;
        call->out[i]->rank = 1;
        call->out[i]->shape[0] = x->shape[0];
    }
    return true;
}

/* Two passes over a row: the variance of large numbers must not drown in their squares. */
GD_INLINE void body(void *y, float *means, float *inverses, const void *x, const float *w, const float *b, float eps, bool bf16,
                    int64_t width, int64_t begin, int64_t end)
{
    for (int64_t t = begin; t < end; t++) {
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++)
            sum += gd_load(x, bf16, t * width + j);
        float mean = sum / (float)width;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < width; j++) {
            float apart = gd_load(x, bf16, t * width + j) - mean;
            squares += apart * apart;
        }
        float inverse = 1.0f / sqrtf(squares / (float)width + eps);
        means[t] = mean;
        inverses[t] = inverse;
        if (b == NULL)
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                gd_store(y, bf16, t * width + j, (gd_load(x, bf16, t * width + j) - mean) * inverse * w[j]);
        else
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                gd_store(y, bf16, t * width + j, (gd_load(x, bf16, t * width + j) - mean) * inverse * w[j] + b[j]);
    }
}

GD_KERNEL static void rows_f32(float *y, float *means, float *inverses, const float *x, const float *w, const float *b,
                               float eps, int64_t width, int64_t begin, int64_t end)
{
    body(y, means, inverses, x, w, b, eps, false, width, begin, end);
}

GD_KERNEL static void rows_bf16(uint16_t *y, float *means, float *inverses, const uint16_t *x, const float *w, const float *b,
                                float eps, int64_t width, int64_t begin, int64_t end)
{
    body(y, means, inverses, x, w, b, eps, true, width, begin, end);
}

static void run_rows(const struct gd_kernel_args *args, const float *w, const float *b, int64_t begin, int64_t end)
{
    int64_t width = args->in[0].shape[1];
    float eps = (float)args->params->f[0];
    if (args->out[0].dtype == GD_BF16)
        rows_bf16(args->out[0].data, args->out[1].data, args->out[2].data, args->in[0].data, w, b, eps, width, begin, end);
    else
        rows_f32(args->out[0].data, args->out[1].data, args->out[2].data, args->in[0].data, w, b, eps, width, begin, end);
}

/* Rows [begin, end), each with the weight and the bias of its graft. */
static void run_worn(const struct gd_kernel_args *args, const float *base, const float *base_bias, int64_t begin, int64_t end)
{
    const struct gd_wear *wear = args->in[3].data;
    for (int group = 0; group < wear->group_count && begin < end; group++) {
        const struct gd_wear_part *sites = wear->sites[group], *own = sites != NULL ? &sites[args->params->i[0]] : NULL;
        int64_t stop = wear->row_begin[group + 1] < end ? wear->row_begin[group + 1] : end;
        if (stop <= begin)
            continue;
        run_rows(args, own != NULL && own->norm != NULL ? own->norm : base,
                 own != NULL && own->norm_bias != NULL ? own->norm_bias : base_bias, begin, stop);
        begin = stop;
    }
    if (begin < end) /* padding */
        run_rows(args, base, base_bias, begin, end);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->in[0].shape[0];
    const float *w = args->weight[1] != NULL ? gd_weight_vector(args->weight[1]) : args->in[1].data;
    const float *b = args->weight[2] != NULL ? gd_weight_vector(args->weight[2]) : args->in[2].data;
    bool worn = args->in[3].data != NULL;
    GD_PARALLEL(rows * args->in[0].shape[1])
    {
        struct gd_range r = gd_thread_range(rows, 1);
        if (worn)
            run_worn(args, w, b, r.begin, r.end);
        else
            run_rows(args, w, b, r.begin, r.end);
    }
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_layer_norm_grad;
    if (call->in_count > 3)
        return gd_graph_fail(graph, "layer_norm: it is not differentiable while rows wear grafts") != NULL;
    if (out_grad[1] != NULL || out_grad[2] != NULL)
        return gd_graph_fail(graph, "layer_norm: its mean and 1/deviation are not differentiable") != NULL;
    bool wants_w = call->in[1]->needs_gradient, wants_b = call->in_count > 2 && call->in[2] != NULL && call->in[2]->needs_gradient;
    struct gd_op_params params = {.i = {wants_w, wants_b}};
    struct gd_value *in[] = {call->in[0], call->in[1], call->out[1], call->out[2], out_grad[0]};
    struct gd_value *dx = gd_graph_call(graph, &gd_op_layer_norm_grad, in, GD_COUNT(in), &params);
    in_grad[0] = call->in[0]->needs_gradient ? dx : NULL;
    in_grad[1] = wants_w ? gd_value_output(dx, 1) : NULL;
    if (wants_b)
        in_grad[2] = gd_value_output(dx, 2);
    return dx != NULL;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1];
    for (int64_t t = 0; t < rows; t++) {
        const double *x = in[0] + t * width;
        double mean = 0, squares = 0;
        for (int64_t j = 0; j < width; j++)
            mean += x[j] / (double)width;
        for (int64_t j = 0; j < width; j++)
            squares += (x[j] - mean) * (x[j] - mean);
        out[1][t] = mean;
        out[2][t] = 1 / sqrt(squares / (double)width + op_case->params.f[0]);
        for (int64_t j = 0; j < width; j++)
            out[0][t * width + j] = (x[j] - mean) * out[2][t] * in[1][j] + (in[2] != NULL ? in[2][j] : 0);
    }
}

#define ROWS(t, n) {.dtype = GD_F32, .rank = 2, .shape = {t, n}, .gradient = true}
#define FROZEN(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .fill = GD_FILL_POSITIVE, .as_weight = true}
#define TRAINED(n) {.dtype = GD_F32, .rank = 1, .shape = {n}, .fill = GD_FILL_POSITIVE, .gradient = true}
#define EPS .params = {.f = {1e-5}}
static const struct gd_op_case cases[] = {
    {.name = "two elements", .in_count = 2, .in = {ROWS(1, 2), FROZEN(2)}, .params = {.f = {0.5}}, .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "no bias", .in_count = 2, .in = {ROWS(5, 37), FROZEN(37)}, EPS, .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "frozen", .in_count = 3, .in = {ROWS(5, 37), FROZEN(37), FROZEN(37)}, EPS, .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "trained", .in_count = 3, .in = {ROWS(19, 37), TRAINED(37), TRAINED(37)}, EPS, .tolerance = 1e-5},
    {.name = "the weight trained alone", .in_count = 3, .in = {ROWS(9, 16), TRAINED(16), FROZEN(16)}, EPS, .tolerance = 1e-5},
    {.name = "the bias trained alone", .in_count = 3, .in = {ROWS(9, 16), FROZEN(16), TRAINED(16)}, EPS, .tolerance = 1e-5},
    {.name = "large enough for threads", .in_count = 3, .in = {ROWS(67, 576), FROZEN(576), FROZEN(576)}, EPS, .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "long rows", .in_count = 3, .in = {ROWS(3, 1544), FROZEN(1544), FROZEN(1544)}, EPS, .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
    {.name = "long odd rows", .in_count = 3, .in = {ROWS(2, 1031), FROZEN(1031), FROZEN(1031)}, EPS, .tolerance = 1e-5, .tolerance_bf16 = 1e-2},
};

const struct gd_op gd_op_layer_norm = {
    .name = "layer_norm",
    .in_min = 2, .in_max = 4, .out_count = 3,
    .shape = shape,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_layer_norm(struct gd_graph *g, struct gd_value *x, struct gd_value *w, struct gd_value *b, double eps)
{
    struct gd_op_params params = {.f = {eps}};
    return gd_graph_call(g, &gd_op_layer_norm, (struct gd_value *[]){x, w, b}, b != NULL ? 3 : 2, &params);
}

struct gd_value *gd_layer_norm_worn(struct gd_graph *g, struct gd_value *x, struct gd_value *w, struct gd_value *b, double eps,
                                    struct gd_value *wear, int site)
{
    struct gd_op_params params = {.i = {site}, .f = {eps}};
    return gd_graph_call(g, &gd_op_layer_norm, (struct gd_value *[]){x, w, b, wear}, 4, &params);
}
