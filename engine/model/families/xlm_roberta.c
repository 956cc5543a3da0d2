/* xlm_roberta.c - XLM-R (Conneau et al. 2020): RoBERTa on another vocabulary; the multilingual E5 and BGE-M3 go by this name. */
#include "engine/model/config_read.h"
#include "engine/model/encoder.h"

static const char *const ignored[] = {"roberta.embeddings.position_ids", "lm_head.decoder.weight", "lm_head.decoder.bias", NULL};

const struct gd_family gd_family_xlm_roberta = {
    .model_type = "xlm-roberta",
    .class_name = "XLMRobertaForMaskedLM",
    .body = &gd_body_encoder,
    .names = &gd_names_roberta,
    .fields = &gd_size_fields_bert,
    .ignored = ignored,
    .read_hf = gd_roberta_read,
    .defaults = {
        .vocab = 30522,
        .width = 768,
        .ffn_width = 3072,
        .layers = 12,
        .heads = 12,
        .context = 512,
        .types = 2,
        .norm_eps = 1e-12,
        .rope_theta = 10000,
        .layer_norm = true,
        .qkv_bias = true,
        .o_bias = true,
        .mlp_bias = true,
        .tied = true,
        .activation = GD_ACTIVATION_GELU,
        .bos_id = 0,
        .eos_ids = {2},
        .eos_count = 1,
    },
};
