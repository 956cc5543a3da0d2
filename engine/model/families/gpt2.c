/*
 * gpt2.c - GPT-2 (Radford et al. 2019): learned positions, LayerNorm, q, k, v of one product, biases everywhere. Its linear modules
 * are Conv1D, whose weights lie [in, out] in the files.
 */
#include "engine/model/config_read.h"

static const struct gd_names names = {
    .base = "transformer",
    .layers = "transformer.h",
    .outer = {
        [GD_OUTER_EMBED] = {"transformer.wte"},
        [GD_OUTER_POSITIONS] = {"transformer.wpe"},
        [GD_OUTER_NORM] = {"transformer.ln_f"},
        [GD_OUTER_HEAD] = {"lm_head"},
        [GD_OUTER_LABELS] = {"score"},
    },
    .attention = "attn",
    .mlp = "mlp",
    .linears = {
        [GD_LINEAR_QKV] = {"attn.c_attn"},
        [GD_LINEAR_O] = {"attn.c_proj"},
        [GD_LINEAR_UP] = {"mlp.c_fc"},
        [GD_LINEAR_DOWN] = {"mlp.c_proj"},
    },
    .norms = {
        [GD_NORM_INPUT] = {"ln_1"},
        [GD_NORM_POST] = {"ln_2"},
    },
};

static const struct gd_size_fields fields = {
    .width = "n_embd",
    .layers = "n_layer",
    .heads = "n_head",
    .vocab = "vocab_size",
    .context = "n_positions",
    .norm_eps = "layer_norm_epsilon",
};

/* n_inner absent or null: four times the width. */
static bool read_hf(const struct gd_config_reader *r)
{
    struct gd_model_config *config = r->config;
    bool scaled = true;
    config->ffn_width = 4 * config->width;
    if (!gd_config_read_int(r, "n_inner", GD_FFN_WIDTH_MAX, &config->ffn_width) ||
        !gd_config_read_activation(r, "activation_function") || !gd_config_read_bool(r, "scale_attn_weights", &scaled) ||
        !gd_config_refuse_flag(r, "scale_attn_by_inverse_layer_idx") || !gd_config_refuse_flag(r, "add_cross_attention"))
        return false;
    config->attention_scale = scaled ? 0 : 1;
    return true;
}

const struct gd_family gd_family_gpt2 = {
    .model_type = "gpt2",
    .class_name = "GPT2LMHeadModel",
    .body = &gd_body_decoder,
    .names = &names,
    .fields = &fields,
    .read_hf = read_hf,
    .defaults = {
        .vocab = 50257,
        .width = 768,
        .layers = 12,
        .heads = 12,
        .context = 1024,
        .norm_eps = 1e-5,
        .layer_norm = true,
        .learned_positions = true,
        .fused_qkv = true,
        .transposed = true,
        .qkv_bias = true,
        .o_bias = true,
        .mlp_bias = true,
        .tied = true,
        .activation = GD_ACTIVATION_GELU_NEW,
        .bos_id = 50256,
        .eos_ids = {50256},
        .eos_count = 1,
    },
};
