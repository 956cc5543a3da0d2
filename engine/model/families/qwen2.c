/* qwen2.c - Qwen 2 and 2.5 (Yang et al. 2024): biases on q, k and v; a window only with use_sliding_window. */
#include "engine/model/config_read.h"

/* Without layer_types the layers from max_window_layers on slide. Qwen 3 goes by the same rules. */
bool gd_qwen_read_window(const struct gd_config_reader *r)
{
    struct gd_model_config *config = r->config;
    bool use = false;
    int64_t from = 28;
    if (!gd_config_read_bool(r, "use_sliding_window", &use) ||
        !gd_json_get_int(r->json, GD_CONFIG_PATH, "max_window_layers", false, 0, INT32_MAX, &from, r->err) ||
        !gd_config_read_window(r))
        return false;
    gd_config_slide_from(config, from < config->layers ? (int)from : config->layers);
    if (!gd_config_read_layer_types(r))
        return false;
    if (!use)
        config->sliding_window = 0;
    return true;
}

static bool read_hf(const struct gd_config_reader *r)
{
    return gd_config_read_activation(r, "hidden_act") && gd_qwen_read_window(r);
}

const struct gd_family gd_family_qwen2 = {
    .model_type = "qwen2",
    .class_name = "Qwen2ForCausalLM",
    .gguf = "qwen2",
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
        .context = 32768,
        .norm_eps = 1e-6,
        .rope_theta = 10000,
        .sliding_window = 4096,
        .qkv_bias = true,
        .gated = true,
        .activation = GD_ACTIVATION_SILU,
        .bos_id = -1,
    },
};
