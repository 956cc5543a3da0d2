/* llama.c - Llama 2 and 3 (Touvron et al. 2023), and what calls itself Llama: SmolLM2, TinyLlama. */
#include "engine/model/config_read.h"

const struct gd_names gd_names_llama = {
    .base = "model",
    .layers = "model.layers",
    .outer = {
        [GD_OUTER_EMBED] = {"model.embed_tokens", "token_embd"},
        [GD_OUTER_NORM] = {"model.norm", "output_norm"},
        [GD_OUTER_HEAD] = {"lm_head", "output"},
        [GD_OUTER_LABELS] = {"score", NULL},
    },
    .attention = "self_attn",
    .mlp = "mlp",
    .linears = {
        [GD_LINEAR_QKV] = {"self_attn.qkv_proj", "attn_qkv"},
        [GD_LINEAR_Q] = {"self_attn.q_proj", "attn_q"},
        [GD_LINEAR_K] = {"self_attn.k_proj", "attn_k"},
        [GD_LINEAR_V] = {"self_attn.v_proj", "attn_v"},
        [GD_LINEAR_O] = {"self_attn.o_proj", "attn_output"},
        [GD_LINEAR_GATE_UP] = {"mlp.gate_up_proj", "ffn_up"},
        [GD_LINEAR_GATE] = {"mlp.gate_proj", "ffn_gate"},
        [GD_LINEAR_UP] = {"mlp.up_proj", "ffn_up"},
        [GD_LINEAR_DOWN] = {"mlp.down_proj", "ffn_down"},
    },
    .norms = {
        [GD_NORM_INPUT] = {"input_layernorm", "attn_norm"},
        [GD_NORM_Q] = {"self_attn.q_norm", "attn_q_norm"},
        [GD_NORM_K] = {"self_attn.k_norm", "attn_k_norm"},
        [GD_NORM_POST] = {"post_attention_layernorm", "ffn_norm"},
    },
};

static bool read_hf(const struct gd_config_reader *r)
{
    struct gd_model_config *config = r->config;
    if (!gd_config_read_activation(r, "hidden_act") || !gd_config_read_bool(r, "attention_bias", &config->qkv_bias) ||
        !gd_config_read_bool(r, "mlp_bias", &config->mlp_bias))
        return false;
    config->o_bias = config->qkv_bias;
    return true;
}

const struct gd_family gd_family_llama = {
    .model_type = "llama",
    .class_name = "LlamaForCausalLM",
    .gguf = "llama",
    .gguf_permuted = true,
    .bias_options = true,
    .body = &gd_body_decoder,
    .names = &gd_names_llama,
    .fields = &gd_size_fields_llama,
    .read_hf = read_hf,
    .defaults = {
        .vocab = 32000,
        .width = 4096,
        .ffn_width = 11008,
        .layers = 32,
        .heads = 32,
        .context = 2048,
        .norm_eps = 1e-6,
        .rope_theta = 10000,
        .gated = true,
        .activation = GD_ACTIVATION_SILU,
        .bos_id = 1,
        .eos_ids = {2},
        .eos_count = 1,
    },
};
