/* bert.c - BERT (Devlin et al. 2019), and what calls itself so: MiniLM, BGE, E5, GTE. */
#include "engine/model/config_read.h"
#include "engine/model/encoder.h"

static const struct gd_names names = {
    .base = "bert",
    .layers = "bert.encoder.layer",
    .outer = {
        [GD_OUTER_EMBED] = {"bert.embeddings.word_embeddings", NULL},
        [GD_OUTER_POSITIONS] = {"bert.embeddings.position_embeddings", NULL},
        [GD_OUTER_TYPES] = {"bert.embeddings.token_type_embeddings", NULL},
        [GD_OUTER_NORM] = {"bert.embeddings.LayerNorm", NULL},
        [GD_OUTER_POOL] = {"bert.pooler.dense", NULL},
        [GD_OUTER_LABELS] = {"classifier", NULL},
        [GD_OUTER_MASK_DENSE] = {"cls.predictions.transform.dense", NULL},
        [GD_OUTER_MASK_NORM] = {"cls.predictions.transform.LayerNorm", NULL},
        [GD_OUTER_MASK_BIAS] = {"cls.predictions", NULL},
    },
    .attention = "attention",
    .mlp = "output",
    .linears = {
        [GD_LINEAR_Q] = {"attention.self.query", NULL},
        [GD_LINEAR_K] = {"attention.self.key", NULL},
        [GD_LINEAR_V] = {"attention.self.value", NULL},
        [GD_LINEAR_O] = {"attention.output.dense", NULL},
        [GD_LINEAR_UP] = {"intermediate.dense", NULL},
        [GD_LINEAR_DOWN] = {"output.dense", NULL},
    },
    .norms = {
        [GD_NORM_INPUT] = {"attention.output.LayerNorm", NULL},
        [GD_NORM_POST] = {"output.LayerNorm", NULL},
    },
};

const struct gd_size_fields gd_size_fields_bert = {
    .width = "hidden_size",
    .layers = "num_hidden_layers",
    .heads = "num_attention_heads",
    .ffn_width = "intermediate_size",
    .vocab = "vocab_size",
    .context = "max_position_embeddings",
    .norm_eps = "layer_norm_eps",
};

/* position_embedding_type, is_decoder and add_cross_attention make other graphs of the same tensors. */
bool gd_bert_read(const struct gd_config_reader *r)
{
    const char *positions = "absolute";
    struct gd_model_config *config = r->config;
    config->pools = config->classifies;
    config->positions = config->context;
    if (!gd_config_read_activation(r, "hidden_act") || !gd_config_refuse_flag(r, "is_decoder") ||
        !gd_config_refuse_flag(r, "add_cross_attention") || !gd_config_read_int(r, "type_vocab_size", 64, &config->types) ||
        !gd_json_get_string(r->json, GD_CONFIG_PATH, "position_embedding_type", false, 1, 64, &positions, r->err))
        return false;
    if (strcmp(positions, "absolute") != 0)
        return gd_config_refuse(r, "position_embedding_type", positions, "absolute");
    if (!config->tied)
        return gd_fail_param(r->err, GD_UNSUPPORTED, GD_CONFIG_PATH ".tie_word_embeddings",
                             GD_CONFIG_PATH ".tie_word_embeddings false is not supported for %s; true is", r->family->model_type);
    return true;
}

static const char *const ignored[] = {"bert.embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
                                      "cls.seq_relationship.weight", "cls.seq_relationship.bias", NULL};

const struct gd_family gd_family_bert = {
    .model_type = "bert",
    .class_name = "BertForMaskedLM",
    .body = &gd_body_encoder,
    .names = &names,
    .fields = &gd_size_fields_bert,
    .ignored = ignored,
    .read_hf = gd_bert_read,
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
        .bos_id = -1,
    },
};
