/*
 * gemma2.c - Gemma 2 (Gemma Team 2024): norms around 1 before and after each block, scaled embeddings, capped scores and logits,
 * and a window in every other layer.
 */
#include "engine/model/families/gemma.h"
#include <math.h>

#define LAYERS_27B 46

const struct gd_names gd_names_gemma = GD_GEMMA_NAMES("model", NULL);

/* A cap, or null for none. */
static bool read_cap(const struct gd_config_reader *r, const char *key, double *cap)
{
    if (gd_config_is_null(r->json, key))
        *cap = 0;
    return gd_config_read_number(r, key, 1e-3, 1e6, cap);
}

bool gd_gemma_read(const struct gd_config_reader *r, int pattern)
{
    struct gd_model_config *config = r->config;
    double scalar = 256;
    for (int layer = 0; layer < config->layers; layer++)
        config->slides[layer] = (layer + 1) % pattern != 0;
    if (!gd_config_read_activation(r, "hidden_activation") || !gd_config_read_bool(r, "attention_bias", &config->qkv_bias) ||
        !gd_config_refuse_flag(r, "use_bidirectional_attention") ||
        !read_cap(r, "attn_logit_softcapping", &config->score_softcap) ||
        !read_cap(r, "final_logit_softcapping", &config->logit_softcap) ||
        !gd_config_read_number(r, "query_pre_attn_scalar", 1e-3, 1e6, &scalar) || !gd_config_read_window(r) ||
        !gd_config_read_layer_types(r))
        return false;
    config->o_bias = config->qkv_bias;
    config->attention_scale = 1 / sqrt(scalar);
    return true;
}

void gd_gemma_read_gguf(struct gd_model_config *config, int pattern, int layers_of_largest)
{
    int per_head = config->layers == layers_of_largest ? config->width / config->heads : config->head_dim;
    config->attention_scale = 1 / sqrt(per_head); /* the files hold no query_pre_attn_scalar; the largest model's is another */
    for (int layer = 0; layer < config->layers; layer++)
        config->slides[layer] = (layer + 1) % pattern != 0;
}

static bool read_hf(const struct gd_config_reader *r)
{
    return gd_gemma_read(r, 2);
}

static bool read_gguf(struct gd_model_config *config, const struct gd_gguf *file, struct gd_error *err)
{
    (void)file;
    (void)err;
    gd_gemma_read_gguf(config, 2, LAYERS_27B);
    return true;
}

const struct gd_family gd_family_gemma2 = {
    .model_type = "gemma2",
    .class_name = "Gemma2ForCausalLM",
    .gguf = "gemma2",
    .body = &gd_body_decoder,
    .names = &gd_names_gemma,
    .fields = &gd_size_fields_llama,
    .read_hf = read_hf,
    .read_gguf = read_gguf,
    .defaults = {
        .vocab = 256000,
        .width = 2304,
        .ffn_width = 9216,
        .layers = 26,
        .heads = 8,
        .kv_heads = 4,
        .head_dim = 256,
        .context = 8192,
        .norm_eps = 1e-6,
        .norm_offset = 1,
        .output_norms = true,
        .rope_theta = 10000,
        .sliding_window = 4096,
        .score_softcap = 50,
        .logit_softcap = 30,
        .scaled_embed = true,
        .tied = true,
        .gated = true,
        .activation = GD_ACTIVATION_GELU_NEW,
        .bos_id = 2,
        .eos_ids = {1},
        .eos_count = 1,
    },
};
