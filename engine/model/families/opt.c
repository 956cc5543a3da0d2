/*
 * opt.c - OPT (Zhang et al. 2022): learned positions from row 2 on, LayerNorm, ReLU; the 350m has its norms after the
 * sums, and embeddings of a width of their own.
 */
#include "engine/model/config_read.h"

static const struct gd_names names = {
    .base = "model",
    .layers = "model.decoder.layers",
    .outer = {
        [GD_OUTER_EMBED] = {"model.decoder.embed_tokens"},
        [GD_OUTER_POSITIONS] = {"model.decoder.embed_positions"},
        [GD_OUTER_NORM] = {"model.decoder.final_layer_norm"},
        [GD_OUTER_HEAD] = {"lm_head"},
        [GD_OUTER_LABELS] = {"score"},
        [GD_OUTER_PROJECT_IN] = {"model.decoder.project_in"},
        [GD_OUTER_PROJECT_OUT] = {"model.decoder.project_out"},
    },
    .attention = "self_attn",
    .mlp = "mlp", /* no module: fc1 and fc2 lie in the layer itself */
    .linears = {
        [GD_LINEAR_Q] = {"self_attn.q_proj"},
        [GD_LINEAR_K] = {"self_attn.k_proj"},
        [GD_LINEAR_V] = {"self_attn.v_proj"},
        [GD_LINEAR_O] = {"self_attn.out_proj"},
        [GD_LINEAR_UP] = {"fc1"},
        [GD_LINEAR_DOWN] = {"fc2"},
    },
    .norms = {
        [GD_NORM_INPUT] = {"self_attn_layer_norm"},
        [GD_NORM_POST] = {"final_layer_norm"},
    },
};

static const struct gd_size_fields fields = {
    .width = "hidden_size",
    .layers = "num_hidden_layers",
    .heads = "num_attention_heads",
    .ffn_width = "ffn_dim",
    .vocab = "vocab_size",
    .context = "max_position_embeddings",
};

static bool read_hf(const struct gd_config_reader *r)
{
    struct gd_model_config *config = r->config;
    bool before = true, affine = true;
    if (!gd_config_read_activation(r, "activation_function") || !gd_config_read_bool(r, "do_layer_norm_before", &before) ||
        !gd_config_read_bool(r, "enable_bias", &config->qkv_bias) || !gd_config_refuse_flag(r, "_remove_final_layer_norm") ||
        !gd_config_read_bool(r, "layer_norm_elementwise_affine", &affine) ||
        !gd_config_read_int(r, "word_embed_proj_dim", GD_WIDTH_MAX, &config->embed_width))
        return false;
    if (!affine)
        return gd_config_refuse(r, "layer_norm_elementwise_affine", "false", "true");
    config->norm_after = !before;
    config->o_bias = config->mlp_bias = config->qkv_bias;
    return true;
}

const struct gd_family gd_family_opt = {
    .model_type = "opt",
    .class_name = "OPTForCausalLM",
    .body = &gd_body_decoder,
    .names = &names,
    .fields = &fields,
    .read_hf = read_hf,
    .defaults = {
        .vocab = 50272,
        .width = 768,
        .ffn_width = 3072,
        .layers = 12,
        .heads = 12,
        .context = 2048,
        .norm_eps = 1e-5,
        .layer_norm = true,
        .learned_positions = true,
        .first_position = 2,
        .qkv_bias = true,
        .o_bias = true,
        .mlp_bias = true,
        .tied = true,
        .activation = GD_ACTIVATION_RELU,
        .bos_id = 2,
        .eos_ids = {2},
        .eos_count = 1,
    },
};
