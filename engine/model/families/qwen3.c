/* qwen3.c - Qwen 3 (Yang et al. 2025): the heads of q and k are normalised, and a head's size is a field of its own. */
#include "engine/model/config_read.h"

static bool read_hf(const struct gd_config_reader *r)
{
    if (!gd_config_read_activation(r, "hidden_act") || !gd_config_read_bool(r, "attention_bias", &r->config->qkv_bias) || !gd_qwen_read_window(r))
        return false;
    r->config->o_bias = r->config->qkv_bias;
    return true;
}

const struct gd_family gd_family_qwen3 = {
    .model_type = "qwen3",
    .class_name = "Qwen3ForCausalLM",
    .gguf = "qwen3",
    .body = &gd_body_decoder,
    .names = &gd_names_llama,
    .fields = &gd_size_fields_llama,
    .read_hf = read_hf,
    .read_gguf = gd_gguf_refuse_window,
    .defaults = {
        .vocab = 151936,
        .width = 4096,
        .ffn_width = 22016,
        .layers = 32,
        .heads = 32,
        .kv_heads = 32,
        .head_dim = 128,
        .context = 32768,
        .norm_eps = 1e-6,
        .rope_theta = 10000,
        .sliding_window = 4096,
        .qk_norm = true,
        .gated = true,
        .activation = GD_ACTIVATION_SILU,
        .bos_id = -1,
    },
};
