/* roberta.c - RoBERTa (Liu et al. 2019): BERT's graph; positions count from the row after the padding's, and a classifier has a
 * dense layer of its own in place of the pooler. */
#include "engine/model/config_read.h"
#include "engine/model/encoder.h"

const struct gd_names gd_names_roberta = {
    .base = "roberta",
    .layers = "roberta.encoder.layer",
    .outer = {
        [GD_OUTER_EMBED] = {"roberta.embeddings.word_embeddings", NULL},
        [GD_OUTER_POSITIONS] = {"roberta.embeddings.position_embeddings", NULL},
        [GD_OUTER_TYPES] = {"roberta.embeddings.token_type_embeddings", NULL},
        [GD_OUTER_NORM] = {"roberta.embeddings.LayerNorm", NULL},
        [GD_OUTER_POOL] = {"roberta.pooler.dense", NULL},
        [GD_OUTER_LABEL_POOL] = {"classifier.dense", NULL},
        [GD_OUTER_LABELS] = {"classifier.out_proj", NULL},
        [GD_OUTER_MASK_DENSE] = {"lm_head.dense", NULL},
        [GD_OUTER_MASK_NORM] = {"lm_head.layer_norm", NULL},
        [GD_OUTER_MASK_BIAS] = {"lm_head", NULL},
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

bool gd_roberta_read(const struct gd_config_reader *r)
{
    struct gd_model_config *config = r->config;
    int64_t padding = 1;
    if (!gd_bert_read(r) || !gd_json_get_int(r->json, GD_CONFIG_PATH, "pad_token_id", false, 0, config->vocab - 1, &padding, r->err))
        return false;
    config->label_pools = config->classifies;
    config->pools = false; /* unless the files have one */
    config->first_position = (int)padding + 1;
    config->context = config->positions - config->first_position;
    return config->context > 0 ||
           gd_fail_param(r->err, GD_BAD_MODEL, GD_CONFIG_PATH ".max_position_embeddings",
                         GD_CONFIG_PATH ".max_position_embeddings %d leaves no position after that of the padding, %d",
                         config->positions, (int)padding);
}

const char *const gd_roberta_ignored[] = {"roberta.embeddings.position_ids", "lm_head.decoder.weight", "lm_head.decoder.bias", NULL};

const struct gd_family gd_family_roberta = GD_ROBERTA("roberta", "RobertaForMaskedLM", 50265);
