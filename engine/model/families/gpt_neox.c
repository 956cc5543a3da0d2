/*
 * gpt_neox.c - GPT-NeoX (Black et al. 2022), Pythia: attention and feed-forward part read the same rows, q, k, v of one product head
 * by head, a quarter of a head is rotated.
 */
#include "engine/model/config_read.h"

static const struct gd_names names = {
    .base = "gpt_neox",
    .layers = "gpt_neox.layers",
    .outer = {
        [GD_OUTER_EMBED] = {"gpt_neox.embed_in"},
        [GD_OUTER_NORM] = {"gpt_neox.final_layer_norm"},
        [GD_OUTER_HEAD] = {.hf = "embed_out", .also = "lm_head"},
        [GD_OUTER_LABELS] = {"score"},
    },
    .attention = "attention",
    .mlp = "mlp",
    .linears = {
        [GD_LINEAR_QKV] = {"attention.query_key_value"},
        [GD_LINEAR_O] = {"attention.dense"},
        [GD_LINEAR_UP] = {"mlp.dense_h_to_4h"},
        [GD_LINEAR_DOWN] = {"mlp.dense_4h_to_h"},
    },
    .norms = {
        [GD_NORM_INPUT] = {"input_layernorm"},
        [GD_NORM_POST] = {"post_attention_layernorm"},
    },
};

static const struct gd_size_fields fields = {
    .width = "hidden_size",
    .layers = "num_hidden_layers",
    .heads = "num_attention_heads",
    .ffn_width = "intermediate_size",
    .vocab = "vocab_size",
    .context = "max_position_embeddings",
    .norm_eps = "layer_norm_eps",
    .theta = "rotary_emb_base",
    .partial_rotary = "rotary_pct",
};

static bool read_hf(const struct gd_config_reader *r)
{
    struct gd_model_config *config = r->config;
    if (!gd_config_read_activation(r, "hidden_act") || !gd_config_read_bool(r, "use_parallel_residual", &config->parallel_residual) ||
        !gd_config_read_bool(r, "attention_bias", &config->qkv_bias))
        return false;
    config->o_bias = config->qkv_bias;
    return true;
}

const struct gd_family gd_family_gpt_neox = {
    .model_type = "gpt_neox",
    .class_name = "GPTNeoXForCausalLM",
    .partial_rotary = 0.25,
    .body = &gd_body_decoder,
    .names = &names,
    .fields = &fields,
    .read_hf = read_hf,
    .defaults = {
        .vocab = 50432,
        .width = 6144,
        .ffn_width = 24576,
        .layers = 44,
        .heads = 64,
        .context = 2048,
        .norm_eps = 1e-5,
        .rope_theta = 10000,
        .layer_norm = true,
        .parallel_residual = true,
        .fused_qkv = true,
        .qkv_by_head = true,
        .qkv_bias = true,
        .o_bias = true,
        .mlp_bias = true,
        .activation = GD_ACTIVATION_GELU,
        .bos_id = 0,
        .eos_ids = {2},
        .eos_count = 1,
    },
};
