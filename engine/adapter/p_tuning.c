/*
 * p_tuning.c - P-tuning (Liu et al. 2021): the rows before the embedded tokens come from a network over learned embeddings,
 *
 *   P = W3 relu(W2 relu(W1 E + b1) + b2) + b3     E [n, width], W1 [h, width], W2 [h, h], W3 [width, h]
 *
 * n width + width h + h + h h + h + h width + width numbers. Only training has the network: the file holds P [n, width], and
 * is served as prompt tuning is.
 */
#include "engine/adapter/build.h"
#include "engine/tensor/activation.h"
#include "engine/tensor/ops.h"

static const char *const encoders[] = {"MLP", NULL};

static const struct gd_adapter_option options[] = {
    {.name = "num_virtual_tokens", .type = GD_OPTION_INT, .min = 1, .max = GD_VIRTUAL_ROWS_MAX, .fallback = 20,
     .help = "Rows before the tokens; they count against the context, but not as tokens of usage."},
    {.name = "encoder_reparameterization_type", .type = GD_OPTION_CHOICE, .use = GD_OPTION_TRAINS, .choices = encoders,
     .help = "The network that makes them while they are trained; PEFT's LSTM is not built."},
    {.name = "encoder_hidden_size", .type = GD_OPTION_INT, .use = GD_OPTION_TRAINS, .max = 65536,
     .help = "Width of that network; 0: the model's."},
};

enum { TABLE, WEIGHT_1, BIAS_1, WEIGHT_2, BIAS_2, WEIGHT_3, BIAS_3 };

static void add_layer(struct gd_graft *graft, const char *weight, const char *bias, int64_t out, int64_t in)
{
    gd_graft_add_named(graft, weight, out, in);
    struct gd_graft_param *param = gd_graft_add_named(graft, bias, out, 1);
    param->rank = 1;
    param->flat = true;
}

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    int64_t width = graft->model->config.embed_width, hidden = (int64_t)gd_adapter_value(&graft->config, "encoder_hidden_size");
    if (!gd_graft_begin_virtual(graft, err))
        return false;
    hidden = hidden > 0 ? hidden : width;
    gd_adapter_set_value(&graft->config, "encoder_hidden_size", (double)hidden);
    graft->bakes = !graft->config.finished;
    if (!graft->bakes) {
        gd_graft_add_named(graft, "prompt_embeddings", graft->virtual_rows.count, width);
        return true;
    }
    gd_graft_add_named(graft, "prompt_encoder.embedding.weight", graft->virtual_rows.count, width);
    add_layer(graft, "prompt_encoder.mlp_head.0.weight", "prompt_encoder.mlp_head.0.bias", hidden, width);
    add_layer(graft, "prompt_encoder.mlp_head.2.weight", "prompt_encoder.mlp_head.2.bias", hidden, hidden);
    add_layer(graft, "prompt_encoder.mlp_head.4.weight", "prompt_encoder.mlp_head.4.bias", width, hidden);
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    gd_fill_normal(block, graft->params[TABLE].shape[0] * graft->params[TABLE].shape[1], 1.0f, seed, TABLE);
    gd_fill_layer(graft, block, WEIGHT_1, BIAS_1, seed);
    gd_fill_layer(graft, block, WEIGHT_2, BIAS_2, seed);
    gd_fill_layer(graft, block, WEIGHT_3, BIAS_3, seed);
}

/* f32 [n, width] */
static struct gd_value *rows(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *const *params)
{
    if (!training->graft->bakes)
        return params[0];
    struct gd_value *h = gd_activation(g, gd_graft_layer(g, params[TABLE], params[WEIGHT_1], params[BIAS_1]), GD_ACTIVATION_RELU);
    h = gd_activation(g, gd_graft_layer(g, h, params[WEIGHT_2], params[BIAS_2]), GD_ACTIVATION_RELU);
    return gd_graft_layer(g, h, params[WEIGHT_3], params[BIAS_3]);
}

static struct gd_value *embed(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x,
                              struct gd_value *const *params)
{
    return gd_graft_add_virtual(training, g, x, rows(training, g, params));
}

static void result(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *const *params, struct gd_value **values)
{
    values[0] = rows(training, g, params);
}

static bool keep(const struct gd_graft *graft, const float *block, const struct gd_graft *kept, float *kept_block,
                 struct gd_error *err)
{
    return gd_graft_compute(graft, block, result, &kept_block, 1, err);
}

static void describe(const struct gd_graft *graft, cJSON *json)
{
    gd_graft_describe_virtual(graft, graft->model->config.embed_width, graft->model->config.heads, json);
}

static const char *const refused[] = {"modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_p_tuning = {
    .name = "p_tuning",
    .peft_type = "P_TUNING",
    .paper = "Liu et al. 2021, GPT Understands, Too",
    .help = "Puts rows before the embedded tokens that a network makes while they are trained.",
    .options = options,
    .option_count = GD_COUNT(options),
    .peft_fields = "{\"modules_to_save\": null, \"encoder_num_layers\": 2, \"encoder_dropout\": 0.0}",
    .refused = refused,
    .create = create,
    .init = init,
    .embed = embed,
    .keep = keep,
    .describe = describe,
};
