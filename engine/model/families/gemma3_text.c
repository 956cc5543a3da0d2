/*
 * gemma3_text.c - Gemma 3, text (Gemma Team 2025): Gemma 2 without caps, with norms of the heads of q and k, a window in five
 * of six layers, and a rope of their own for those.
 */
#include "engine/model/families/gemma.h"

#define LAYERS_27B 62
#define PATTERN 6

bool gd_gemma3_read(const struct gd_config_reader *r)
{
    int pattern = PATTERN;
    return gd_config_read_int(r, "sliding_window_pattern", GD_LAYERS_MAX, &pattern) &&
           gd_config_read_number(r, "rope_local_base_freq", 2, 1e15, &r->config->local_rope_theta) && gd_gemma_read(r, pattern);
}

static bool read_gguf(struct gd_model_config *config, const struct gd_gguf *file, struct gd_error *err)
{
    int64_t pattern = PATTERN;
    if (!gd_gguf_get_int(file, "gemma3.attention.sliding_window_pattern", false, 1, GD_LAYERS_MAX, &pattern, err) ||
        !gd_gguf_get_number(file, "gemma3.rope.freq_base_swa", false, 2, 1e15, &config->local_rope_theta, err))
        return false;
    gd_gemma_read_gguf(config, (int)pattern, LAYERS_27B);
    return true;
}

const struct gd_family gd_family_gemma3_text = {
    .model_type = "gemma3_text",
    .class_name = "Gemma3ForCausalLM",
    .classifier = "Gemma3TextForSequenceClassification",
    .gguf = "gemma3",
    .body = &gd_body_decoder,
    .names = &gd_names_gemma,
    .fields = &gd_size_fields_llama,
    .read_hf = gd_gemma3_read,
    .read_gguf = read_gguf,
    .defaults = GD_GEMMA3_DEFAULTS,
};
