/*
 * The backward pass of token_logprob: with g[t] = d loss / d log p[t],
 *     dh[t] = g[t] W^T (onehot(labels[t]) - softmax(z[t])),  dW = sum_t g[t] (onehot(labels[t]) - softmax(z[t])) h[t]^T,
 * the second (output 1) for a trained head.
 * The logits of a chunk of rows are made once more. f[0] logit_scale, f[1] softcap.
 */
#include "engine/tensor/ops/head_rows.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *h = call->in[0], *g = call->in[3];
    if (!gd_head_rows_shape(graph, call))
        return false;
    if (g->dtype != GD_F32 || g->rank != 1 || g->shape[0] != h->shape[0])
        return gd_graph_fail(graph, "token_logprob_grad: '%s' (f32) needs one entry for each row of '%s'", g->name, h->name) != NULL;
    gd_shape_like(call->out[0], h, h->dtype);
    gd_head_rows_shape_gradient(call->out[1], call->in[1]);
    if (call->in[1]->kind == GD_VALUE_WEIGHT) {
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
    return gd_head_rows_scratch(call->in[0], call->in[1], true, call->in[1]->needs_gradient);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct gd_head_rows rows = {.name = "token_logprob_grad", .labels = args->in[2].data, .weights = args->in[3].data, .sign = -1,
                                .logit_scale = (float)args->params->f[0], .softcap = (float)args->params->f[1],
                                .dh = args->out[0].data, .scratch = args->scratch};
    gd_head_rows_take(&rows, args);
    rows.dtable = gd_tensor_count(&args->out[1]) > 0 ? args->out[1].data : NULL;
    return gd_head_rows_run(&rows, err);
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1], vocab = op_case->in[1].shape[0];
    double scale = op_case->params.f[0], cap = op_case->params.f[1];
    for (int64_t t = 0; t < rows; t++) {
        double sum = 0, *dh = out[0] + t * width;
        int64_t label = (int64_t)in[2][t];
        for (int64_t j = 0; j < width; j++)
            dh[j] = 0;
        for (int pass = 0; label >= 0 && pass < 2; pass++)
            for (int64_t v = 0; v < vocab; v++) {
                double z = 0;
                for (int64_t j = 0; j < width; j++)
                    z += scale * in[0][t * width + j] * in[1][v * width + j];
                double capped = cap > 0 ? cap * tanh(z / cap) : z;
                double chain = cap > 0 ? scale * (1 - capped * capped / cap / cap) : scale;
                double d = in[3][t] * ((v == label) - exp(capped) / sum) * chain;
                for (int64_t j = 0; pass == 1 && j < width; j++)
                    dh[j] += d * in[1][v * width + j];
                sum += pass == 0 ? exp(capped) : 0;
            }
    }
}

#define CASE(text, t, d, v, fill_kind, scale, cap) \
    {.name = text, .in_count = 4, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, d}}, \
            {.dtype = GD_F32, .rank = 2, .shape = {v, d}, .as_weight = true}, \
            {.dtype = GD_I32, .rank = 1, .shape = {t}, .fill = fill_kind, .fill_limit = v}, \
            {.dtype = GD_F32, .rank = 1, .shape = {t}}}, \
     .params = {.f = {scale, cap}}, .tolerance = 2e-5, .tolerance_bf16 = 3e-2}
static const struct gd_op_case cases[] = {
    CASE("one row, two words", 1, 3, 2, GD_FILL_IDS, 1.0, 0.0),
    CASE("odd sizes, some rows without label", 11, 7, 37, GD_FILL_LABELS, 1.0, 0.0),
    CASE("capped logits", 6, 8, 23, GD_FILL_IDS, 0.5, 2.0),
    CASE("large vocabulary, several chunks", 270, 8, 1501, GD_FILL_IDS, 0.5, 0.0),
    CASE("many rows, several chunks", 1100, 4, 9, GD_FILL_LABELS, 1.0, 0.0),
};

const struct gd_op gd_op_token_logprob_grad = {
    .name = "token_logprob_grad",
    .in_min = 4, .in_max = 4, .out_count = 2,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .weight_use = weight_use,
    .run_cpu = run_cpu,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_token_logprob_grad(struct gd_graph *g, struct gd_value *h, struct gd_value *w, struct gd_value *labels,
                                       struct gd_value *dlogprob, double logit_scale, double softcap)
{
    struct gd_op_params params = {.f = {logit_scale, softcap}};
    return gd_graph_call(g, &gd_op_token_logprob_grad, (struct gd_value *[]){h, w, labels, dlogprob}, 4, &params);
}
