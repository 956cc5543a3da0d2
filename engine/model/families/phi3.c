/* phi3.c - Phi 3, 3.5 and 4 (Abdin et al. 2024): q, k, v are one matrix, gate and up another; a part of a head is rotated. */
#include "engine/model/config_read.h"

static bool read_hf(const struct gd_config_reader *r)
{
    gd_config_slide_from(r->config, 0);
    return gd_config_read_activation(r, "hidden_act") && gd_config_read_window(r);
}

const struct gd_family gd_family_phi3 = {
    .model_type = "phi3",
    .class_name = "Phi3ForCausalLM",
    .partial_rotary = 1,
    .body = &gd_body_decoder,
    .names = &gd_names_llama,
    .fields = &gd_size_fields_llama,
    .read_hf = read_hf,
    .defaults = {
        .vocab = 32064,
        .width = 3072,
        .ffn_width = 8192,
        .layers = 32,
        .heads = 32,
        .context = 4096,
        .norm_eps = 1e-5,
        .rope_theta = 10000,
        .fused_qkv = true,
        .gated = true,
        .fused_mlp = true,
        .activation = GD_ACTIVATION_SILU,
        .bos_id = 1,
        .eos_ids = {32000},
        .eos_count = 1,
    },
};
