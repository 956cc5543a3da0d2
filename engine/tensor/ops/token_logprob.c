/*
 * log p(labels[t]) of each labelled row (head_rows.h). The logits are not kept: the backward pass, whose weights are
 * known only after the forward pass, makes them again. f[0] logit_scale, f[1] softcap.
 */
#include "engine/tensor/ops/head_rows.h"

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    if (!gd_head_rows_shape(graph, call))
        return false;
    gd_shape_like(call->out[0], call->in[2], GD_F32);
    gd_shape_like(call->out[1], call->in[2], GD_I32);
    gd_shape_like(call->out[2], call->in[2], GD_F32);
    return true;
}

static enum gd_weight_use weight_use(const struct gd_call *call, int input)
{
    return GD_WEIGHT_LINEAR;
}

static size_t scratch_bytes(const struct gd_call *call)
{
    return gd_head_rows_scratch(call->in[0], call->in[1], false, false);
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct gd_head_rows rows = {.name = "token_logprob", .labels = args->in[2].data,
                                .logit_scale = (float)args->params->f[0], .softcap = (float)args->params->f[1],
                                .log_p = args->out[0].data, .argmax = args->out[1].data, .collision = args->out[2].data, .scratch = args->scratch};
    gd_head_rows_take(&rows, args);
    return gd_head_rows_run(&rows, err);
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    if (out_grad[2] != NULL)
        return gd_graph_fail(graph, "token_logprob: only its log p is differentiable") != NULL;
    struct gd_value *dh = gd_token_logprob_grad(graph, call->in[0], call->in[1], call->in[2], out_grad[0], call->params.f[0],
                                                call->params.f[1]);
    if (call->in[0]->needs_gradient)
        in_grad[0] = dh;
    if (call->in[1]->needs_gradient)
        in_grad[1] = gd_value_output(dh, 1);
    return true;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], width = op_case->in[0].shape[1], vocab = op_case->in[1].shape[0];
    double scale = op_case->params.f[0], cap = op_case->params.f[1];
    for (int64_t t = 0; t < rows; t++) {
        double sum = 0, squares = 0, best = -INFINITY, label_z = 0;
        int64_t label = (int64_t)in[2][t];
        out[0][t] = 0;
        out[1][t] = -1;
        out[2][t] = 0;
        for (int64_t v = 0; label >= 0 && v < vocab; v++) {
            double z = 0;
            for (int64_t j = 0; j < width; j++)
                z += scale * in[0][t * width + j] * in[1][v * width + j];
            z = cap > 0 ? cap * tanh(z / cap) : z;
            sum += exp(z);
            squares += exp(2 * z);
            label_z = v == label ? z : label_z;
            if (z > best) {
                best = z;
                out[1][t] = (double)v;
            }
        }
        if (label >= 0) {
            out[0][t] = label_z - log(sum);
            out[2][t] = log(squares) - 2 * log(sum);
        }
    }
}

#define CASE(text, t, d, v, fill_kind, scale, cap) \
    {.name = text, .in_count = 3, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, d}, .gradient = true}, \
            {.dtype = GD_F32, .rank = 2, .shape = {v, d}, .as_weight = true}, \
            {.dtype = GD_I32, .rank = 1, .shape = {t}, .fill = fill_kind, .fill_limit = v}}, \
     .params = {.f = {scale, cap}}, .tolerance = 2e-5, .tolerance_bf16 = 3e-2}
#define TRAINED(text, t, d, v, fill_kind, scale, cap) \
    {.name = text, .in_count = 3, \
     .in = {{.dtype = GD_F32, .rank = 2, .shape = {t, d}, .gradient = true}, \
            {.dtype = GD_F32, .rank = 2, .shape = {v, d}, .fill = GD_FILL_POSITIVE, .gradient = true}, \
            {.dtype = GD_I32, .rank = 1, .shape = {t}, .fill = fill_kind, .fill_limit = v}}, \
     .params = {.f = {scale, cap}}, .tolerance = 2e-5, .tolerance_bf16 = 3e-2}
static const struct gd_op_case cases[] = {
    CASE("one row, two words", 1, 3, 2, GD_FILL_IDS, 1.0, 0.0),
    TRAINED("a trained head", 7, 5, 17, GD_FILL_LABELS, 0.5, 0.0),
    TRAINED("a trained head, capped logits, several chunks", 70, 6, 1501, GD_FILL_IDS, 0.5, 2.0),
    CASE("odd sizes, some rows without label", 11, 7, 37, GD_FILL_LABELS, 1.0, 0.0),
    CASE("capped logits", 6, 8, 23, GD_FILL_IDS, 0.5, 2.0),
    CASE("large vocabulary, several chunks", 270, 8, 1501, GD_FILL_IDS, 0.5, 0.0),
    CASE("many rows, several chunks", 1100, 4, 9, GD_FILL_LABELS, 1.0, 0.0),
};

const struct gd_op gd_op_token_logprob = {
    .name = "token_logprob",
    .in_min = 3, .in_max = 3, .out_count = 3,
    .shape = shape,
    .scratch_bytes = scratch_bytes,
    .weight_use = weight_use,
    .run_cpu = run_cpu,
    .gradient = gradient,
    .inplace = -1,
    .reference = reference,
    .cases = cases, .case_count = GD_COUNT(cases),
};

struct gd_value *gd_token_logprob(struct gd_graph *g, struct gd_value *h, struct gd_value *w, struct gd_value *labels,
                                  double logit_scale, double softcap)
{
    struct gd_op_params params = {.f = {logit_scale, softcap}};
    return gd_graph_call(g, &gd_op_token_logprob, (struct gd_value *[]){h, w, labels}, 3, &params);
}
