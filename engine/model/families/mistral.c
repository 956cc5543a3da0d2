/* mistral.c - Mistral 7B (Jiang et al. 2023): Llama with a window in every layer. Its GGUF files call themselves Llama. */
#include "engine/model/config_read.h"

static bool read_hf(const struct gd_config_reader *r)
{
    gd_config_slide_from(r->config, 0);
    return gd_config_read_activation(r, "hidden_act") && gd_config_read_window(r);
}

const struct gd_family gd_family_mistral = {
    .model_type = "mistral",
    .class_name = "MistralForCausalLM",
    .gguf = "llama",
    .gguf_permuted = true,
    .body = &gd_body_decoder,
    .names = &gd_names_llama,
    .fields = &gd_size_fields_llama,
    .read_hf = read_hf,
    .defaults = {
        .vocab = 32000,
        .width = 4096,
        .ffn_width = 14336,
        .layers = 32,
        .heads = 32,
        .kv_heads = 8,
        .context = 131072,
        .norm_eps = 1e-6,
        .rope_theta = 10000,
        .sliding_window = 4096,
        .gated = true,
        .activation = GD_ACTIVATION_SILU,
        .bos_id = 1,
        .eos_ids = {2},
        .eos_count = 1,
    },
};
