/* t5.c - T5 v1.0 (Raffel et al. 2020: ReLU, one table for embedding and head), v1.1 and FLAN (gated GELU, a head of its own). */
#include "engine/model/config_read.h"

static const char *const ignored[] = {
    "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", /* copies of shared.weight */
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", /* of old files; nothing reads it */
    NULL,
};

static const struct gd_names names = {
    .base = "decoder",
    .layers = "encoder.block",
    .decoder_layers = "decoder.block",
    .outer = {
        [GD_OUTER_EMBED] = {"shared", NULL},
        [GD_OUTER_NORM] = {"decoder.final_layer_norm", NULL},
        [GD_OUTER_HEAD] = {"lm_head", NULL},
        [GD_OUTER_ENCODER_NORM] = {"encoder.final_layer_norm", NULL},
        [GD_OUTER_ENCODER_BIAS] = {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias", NULL},
        [GD_OUTER_DECODER_BIAS] = {"decoder.block.0.layer.0.SelfAttention.relative_attention_bias", NULL},
    },
    .ignored = ignored,
    .attention = "layer.0.SelfAttention",
    .mlp = "layer.1.DenseReluDense",
    .decoder_mlp = "layer.2.DenseReluDense",
    .linears = {
        [GD_T5_Q] = {"layer.0.SelfAttention.q", NULL},
        [GD_T5_K] = {"layer.0.SelfAttention.k", NULL},
        [GD_T5_V] = {"layer.0.SelfAttention.v", NULL},
        [GD_T5_O] = {"layer.0.SelfAttention.o", NULL},
        [GD_T5_CROSS_Q] = {"layer.1.EncDecAttention.q", NULL},
        [GD_T5_CROSS_K] = {"layer.1.EncDecAttention.k", NULL},
        [GD_T5_CROSS_V] = {"layer.1.EncDecAttention.v", NULL},
        [GD_T5_CROSS_O] = {"layer.1.EncDecAttention.o", NULL},
        [GD_T5_ENCODER_GATE] = {"layer.1.DenseReluDense.wi_0", NULL},
        [GD_T5_ENCODER_UP] = {"layer.1.DenseReluDense.wi_1", NULL},
        [GD_T5_ENCODER_PLAIN] = {"layer.1.DenseReluDense.wi", NULL},
        [GD_T5_ENCODER_DOWN] = {"layer.1.DenseReluDense.wo", NULL},
        [GD_T5_DECODER_GATE] = {"layer.2.DenseReluDense.wi_0", NULL},
        [GD_T5_DECODER_UP] = {"layer.2.DenseReluDense.wi_1", NULL},
        [GD_T5_DECODER_PLAIN] = {"layer.2.DenseReluDense.wi", NULL},
        [GD_T5_DECODER_DOWN] = {"layer.2.DenseReluDense.wo", NULL},
    },
    .norms = {
        [GD_T5_NORM_INPUT] = {"layer.0.layer_norm", NULL},
        [GD_T5_NORM_CROSS] = {"layer.1.layer_norm", NULL},
        [GD_T5_NORM_ENCODER_POST] = {"layer.1.layer_norm", NULL},
        [GD_T5_NORM_DECODER_POST] = {"layer.2.layer_norm", NULL},
    },
};

/* num_layers is the encoder's; the decoder has as many unless it says otherwise. */
static bool read_layers(const struct gd_config_reader *r)
{
    struct gd_model_config *config = r->config;
    int decoder = config->layers;
    if (!gd_config_is_null(r->json, "num_decoder_layers") &&
        !gd_config_read_int(r, "num_decoder_layers", GD_LAYERS_MAX, &decoder))
        return false;
    if (config->layers + decoder > GD_LAYERS_MAX)
        return gd_fail_param(r->err, GD_UNSUPPORTED, GD_CONFIG_PATH ".num_layers",
                             GD_CONFIG_PATH ".num_layers %d and num_decoder_layers %d are more than %d layers", config->layers, decoder,
                             GD_LAYERS_MAX);
    config->encoder_layers = config->layers;
    config->layers += decoder;
    return true;
}

/* "relu", "gated-gelu", "gated-silu": transformers means gelu_new by gated-gelu. */
static bool read_feed_forward(const struct gd_config_reader *r)
{
    static const struct {
        const char *name;
        bool gated;
        enum gd_activation kind;
    } kinds[] = {
        {"relu", false, GD_ACTIVATION_RELU},         {"gelu", false, GD_ACTIVATION_GELU},
        {"gelu_new", false, GD_ACTIVATION_GELU_NEW}, {"silu", false, GD_ACTIVATION_SILU},
        {"gated-gelu", true, GD_ACTIVATION_GELU_NEW}, {"gated-gelu_new", true, GD_ACTIVATION_GELU_NEW},
        {"gated-silu", true, GD_ACTIVATION_SILU},    {"gated-relu", true, GD_ACTIVATION_RELU},
    };
    const char *name = NULL;
    if (!gd_json_get_string(r->json, GD_CONFIG_PATH, "feed_forward_proj", false, 1, 64, &name, r->err))
        return false;
    for (size_t i = 0; name != NULL && i < GD_COUNT(kinds); i++)
        if (strcmp(name, kinds[i].name) == 0) {
            r->config->gated = kinds[i].gated;
            r->config->activation = kinds[i].kind;
            return true;
        }
    return name == NULL || gd_config_refuse(r, "feed_forward_proj", name, "relu, gelu, gelu_new, silu, and gated-relu, gated-gelu, "
                                            "gated-gelu_new, gated-silu");
}

/* A head of its own goes with unscaled rows. Files written by transformers 5 say the latter and claim to be tied. */
static bool read_head(const struct gd_config_reader *r)
{
    struct gd_model_config *config = r->config;
    config->scaled_output = config->tied;
    if (!gd_config_read_bool(r, "scale_decoder_outputs", &config->scaled_output))
        return false;
    config->head_optional = config->tied && !config->scaled_output;
    config->tied = config->tied && config->scaled_output;
    return true;
}

static bool read_bias(const struct gd_config_reader *r)
{
    struct gd_model_config *config = r->config;
    if (!gd_config_read_int(r, "relative_attention_num_buckets", 4096, &config->bias_buckets) ||
        !gd_config_read_int(r, "relative_attention_max_distance", 65536, &config->bias_distance))
        return false;
    if (config->bias_buckets >= 4 && config->bias_distance > config->bias_buckets / 2)
        return true;
    return gd_fail_param(r->err, GD_BAD_MODEL, GD_CONFIG_PATH ".relative_attention_num_buckets",
                         GD_CONFIG_PATH ".relative_attention_num_buckets %d up to a distance of %d: there must be 4 or more, and the "
                         "distance above half of them", config->bias_buckets, config->bias_distance);
}

static bool read_start(const struct gd_config_reader *r)
{
    struct gd_model_config *config = r->config;
    int64_t pad = 0, start;
    bool both = true;
    if (!gd_config_is_null(r->json, "pad_token_id") &&
        !gd_json_get_int(r->json, GD_CONFIG_PATH, "pad_token_id", false, 0, config->vocab - 1, &pad, r->err))
        return false;
    start = pad;
    if (!gd_config_is_null(r->json, "decoder_start_token_id") &&
        !gd_json_get_int(r->json, GD_CONFIG_PATH, "decoder_start_token_id", false, 0, config->vocab - 1, &start, r->err))
        return false;
    config->decoder_start_id = (int32_t)start;
    return gd_config_read_bool(r, "is_encoder_decoder", &both) &&
           (both || gd_fail_param(r->err, GD_UNSUPPORTED, GD_CONFIG_PATH ".is_encoder_decoder",
                                  GD_CONFIG_PATH ".is_encoder_decoder false is not supported for t5; true is"));
}

static bool read_hf(const struct gd_config_reader *r)
{
    return read_layers(r) && read_feed_forward(r) && read_head(r) && read_bias(r) && read_start(r);
}

static const struct gd_size_fields fields = {
    .width = "d_model",
    .layers = "num_layers",
    .heads = "num_heads",
    .head_dim = "d_kv",
    .ffn_width = "d_ff",
    .vocab = "vocab_size",
    .context = "n_positions",
    .norm_eps = "layer_norm_epsilon",
};

/* Distances have no end: a config without n_positions (v1.1, FLAN) leaves the length to memory, which 8192 rows bound. */
const struct gd_family gd_family_t5 = {
    .model_type = "t5",
    .class_name = "T5ForConditionalGeneration",
    .body = &gd_body_encoder_decoder,
    .names = &names,
    .fields = &fields,
    .read_hf = read_hf,
    .defaults = {
        .vocab = 32128,
        .width = 512,
        .ffn_width = 2048,
        .layers = 6,
        .heads = 8,
        .head_dim = 64,
        .context = 8192,
        .norm_eps = 1e-6,
        .rope_theta = 10000,
        .tied = true,
        .activation = GD_ACTIVATION_RELU,
        .bias_buckets = 32,
        .bias_distance = 128,
        .bos_id = -1,
        .eos_ids = {1},
        .eos_count = 1,
    },
};
