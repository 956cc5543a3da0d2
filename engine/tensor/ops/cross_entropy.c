/*
 * The vocabulary product (head_rows.h) and the cross-entropy in one op:
 *     loss = -sum_t weights[t] log p[t].
 * The gradients for h and a trained head are made while the logits of the chunk are there, so neither direction keeps [T, V].
 * f[0] logit_scale, f[1] softcap.
 */
#include "engine/tensor/ops/head_rows.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *h = call->in[0], *labels = call->in[2], *weights = call->in[3];
    if (!gd_head_rows_shape(graph, call))
        return false;
    if (weights->dtype != GD_F32 || weights->rank != 1 || weights->shape[0] != h->shape[0])
        return gd_graph_fail(graph, "cross_entropy: weights '%s' (f32) need one entry for each row of '%s'", weights->name,
                             h->name) != NULL;
    call->out[0]->dtype = GD_F32;
    call->out[0]->rank = 1;
    call->out[0]->shape[0] = 1;
    gd_shape_like(call->out[1], labels, GD_F32);
    gd_shape_like(call->out[2], labels, GD_I32);
    gd_head_rows_shape_gradient(call->out[3], h);
    gd_head_rows_shape_gradient(call->out[4], call->in[1]);
    if (h->needs_gradient && call->in[1]->kind == GD_VALUE_WEIGHT) {
        call->in[4] = call->in[1]; /* the head is read backwards too: a second use, a second layout */
        call->in_count = 5;
    }
    return true;
}

static enum gd_weight_use weight_use(const struct gd_call *call, int input)
{
    return input == 4 ? GD_WEIGHT_LINEAR_BACK : GD_WEIGHT_LINEAR;
}

static size_t scratch_bytes(const struct gd_call *call)
{
    return gd_head_rows_scratch(call->in[0], call->in[1], call->in[0]->needs_gradient, call->in[1]->needs_gradient);
}

float gd_cross_entropy_loss(const int32_t *labels, const float *weights, const float *log_p, int64_t rows)
{
    double loss = 0;
    for (int64_t t = 0; t < rows; t++)
        if (labels[t] >= 0)
            loss -= (double)weights[t] * (double)log_p[t];
    return (float)loss;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const int32_t *labels = args->in[2].data;
    const float *weights = args->in[3].data, *log_p = args->out[1].data;
    struct gd_head_rows rows = {.name = "cross_entropy", .labels = labels, .weights = weights, .sign = 1,
                                .logit_scale = (float)args->params->f[0], .softcap = (float)args->params->f[1],
                                .log_p = args->out[1].data, .argmax = args->out[2].data, .scratch = args->scratch};
    gd_head_rows_take(&rows, args);
    rows.dh = gd_tensor_count(&args->out[3]) > 0 ? args->out[3].data : NULL;
    rows.dtable = gd_tensor_count(&args->out[4]) > 0 ? args->out[4].data : NULL;
    if (!gd_head_rows_run(&rows, err))
        return false;
    *(float *)args->out[0].data = gd_cross_entropy_loss(labels, weights, log_p, args->in[0].shape[0]);
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (out_grad[1] != NULL || out_grad[3] != NULL || out_grad[4] != NULL)
        return gd_graph_fail(graph, "cross_entropy: only its loss is differentiable") != NULL;
    if (call->in[0]->needs_gradient)
        in_grad[0] = gd_mul_scalar(graph, call->out[3], out_grad[0]);
    if (call->in[1]->needs_gradient)
        in_grad[1] = gd_mul_scalar(graph, call->out[4], out_grad[0]);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1], vocab = op_case->in[1].shape[0];
    double scale = op_case->params.f[0], cap = op_case->params.f[1];
    bool wants_gradient = op_case->in[0].gradient, trained = op_case->in[1].gradient;
    out[0][0] = 0;
    for (int64_t t = 0; t < rows; t++) {
        double sum = 0, best = -INFINITY, label_z = 0, *dh = wants_gradient ? out[3] + t * width : NULL;
        int64_t label = (int64_t)in[2][t];
        out[1][t] = 0;
        out[2][t] = -1;
        for (int64_t j = 0; wants_gradient && j < width; j++)
            dh[j] = 0;
        for (int64_t i = 0; t == 0 && trained && i < vocab * width; i++)
            out[4][i] = 0;
        for (int pass = 0; label >= 0 && pass < (wants_gradient ? 2 : 1); pass++)
            for (int64_t v = 0; v < vocab; v++) {
                double z = 0;
                for (int64_t j = 0; j < width; j++)
                    z += scale * in[0][t * width + j] * in[1][v * width + j];
                double chain = scale;
                if (cap > 0) {
                    z = cap * tanh(z / cap);
                    chain *= 1 - z * z / cap / cap;
                }
                double d = in[3][t] * (exp(z) / sum - (v == label)) * chain;
                for (int64_t j = 0; pass == 1 && j < width; j++)
                    dh[j] += d * in[1][v * width + j];
                for (int64_t j = 0; pass == 1 && trained && j < width; j++)
                    out[4][v * width + j] += d * in[0][t * width + j];
                if (pass == 1)
                    continue;
                sum += exp(z);
                label_z = v == label ? z : label_z;
                if (z > best) {
                    best = z;
                    out[2][t] = (double)v;
                }
            }
        if (label >= 0) {
            out[1][t] = label_z - log(sum);
            out[0][0] -= in[3][t] * out[1][t];
        }
    }
}

#define CASE(text, t, d, v, fill_kind, scale, cap, wanted) \
    {.name = text, .in_count = 4, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, d}, .gradient = wanted}, \
            {.dtype = GD_F32, .rank = 2, .shape = {v, d}, .as_weight = true}, \
            {.dtype = GD_I32, .rank = 1, .shape = {t}, .fill = fill_kind, .fill_limit = v}, \
            {.dtype = GD_F32, .rank = 1, .shape = {t}, .fill = GD_FILL_POSITIVE}}, \
     .params = {.f = {scale, cap}}, .tolerance = 2e-5, .tolerance_bf16 = 3e-2}
#define TRAINED(text, t, d, v, fill_kind, scale, cap) \
    {.name = text, .in_count = 4, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, d}, .gradient = true}, \
            {.dtype = GD_F32, .rank = 2, .shape = {v, d}, .fill = GD_FILL_POSITIVE, .gradient = true}, \
            {.dtype = GD_I32, .rank = 1, .shape = {t}, .fill = fill_kind, .fill_limit = v}, \
            {.dtype = GD_F32, .rank = 1, .shape = {t}, .fill = GD_FILL_POSITIVE}}, \
     .params = {.f = {scale, cap}}, .tolerance = 2e-5, .tolerance_bf16 = 3e-2}
static const struct gd_op_case cases[] = {
    CASE("one row, two words", 1, 3, 2, GD_FILL_IDS, 1.0, 0.0, true),
    CASE("odd sizes, some rows without label", 11, 7, 37, GD_FILL_LABELS, 1.0, 0.0, true),
    CASE("scaled logits", 5, 8, 19, GD_FILL_LABELS, 0.25, 0.0, true),
    CASE("capped logits", 6, 8, 23, GD_FILL_IDS, 0.5, 2.0, true),
    TRAINED("a trained head", 7, 5, 17, GD_FILL_LABELS, 0.5, 0.0),
    TRAINED("a trained head, capped logits, several chunks", 70, 6, 1501, GD_FILL_IDS, 0.5, 2.0),
    CASE("no gradient wanted", 33, 16, 300, GD_FILL_LABELS, 0.25, 0.0, false),
    CASE("large vocabulary, several chunks", 270, 8, 1501, GD_FILL_IDS, 0.5, 0.0, true),
    TRAINED("a trained head, many rows, several chunks", 800, 3, 41, GD_FILL_LABELS, 1.0, 0.0),
};

const struct gd_op gd_op_cross_entropy = {
    .name = "cross_entropy",
    .in_min = 4, .in_max = 4, .out_count = 5,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .weight_use = weight_use,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_cross_entropy(struct gd_graph *g, struct gd_value *h, struct gd_value *w, struct gd_value *labels,
                                  struct gd_value *weights, double logit_scale, double softcap)
{
    struct gd_op_params params = {.f = {logit_scale, softcap}};
    return gd_graph_call(g, &gd_op_cross_entropy, (struct gd_value *[]){h, w, labels, weights}, 4, &params);
}
