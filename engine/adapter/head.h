/*
 * head.h - the head of a classifier beside a method's parameters, as PEFT keeps it for the task SEQ_CLS (modules_to_save).
 *
 * Why      Any method that trains a body can train a classifier; the head is none of their business.
 * Memory   Parameters of the graft, its last trained ones.
 * Threads  engine thread
 * Errors   GD_UNSUPPORTED, GD_BAD_MODEL naming the field
 * Limits   GD_LABELS_MAX labels
 * Life     inside gd_graft_create, gd_graft_save and gd_graft_load
 *
 * Of a decoder: score.weight [labels, width], on the last token. Of an encoder: a dense layer with tanh on the first token, then the
 * labels' product; BERT calls them bert.pooler.dense and classifier, RoBERTa classifier.dense and classifier.out_proj. Both are
 * trained, from the base's own where it has them.
 */
#ifndef GD_ADAPTER_HEAD_H
#define GD_ADAPTER_HEAD_H

#include "engine/adapter/adapter.h"

struct gd_safetensors;

/* After the method's parameters are declared; config.labels says for how many. */
GD_MUST_CHECK bool gd_head_add(struct gd_graft *graft, struct gd_error *err);
/* The base's own numbers, else N(0, 0.02^2), and biases of 0, as transformers starts it. */
void gd_head_init(const struct gd_graft *graft, float *block, uint64_t seed);
/* From one graft's block to another's, where both have heads. */
void gd_head_copy(const struct gd_graft *from, const float *block, const struct gd_graft *to, float *to_block);
/* Whether the parameter may be taken from the base where a file lacks it (PEFT keeps BERT's pooler only if it is asked to), and is. */
bool gd_head_from_base(const struct gd_graft *graft, const struct gd_graft_param *param, float *to);

/* adapter_config.json and graftd.json: written, and read into config->labels. */
void gd_head_describe(const struct gd_graft *graft, cJSON *json);
void gd_head_add_facts(const struct gd_graft *graft, cJSON *facts);
/* *found: it is a classifier's. facts: graftd.json or NULL. */
GD_MUST_CHECK bool gd_head_read(struct gd_adapter_config *config, const struct gd_model *model, const cJSON *json, const cJSON *facts,
                                const struct gd_safetensors *file, bool *found, struct gd_error *err);
/* A tensor of the head. */
bool gd_head_owns(const struct gd_model *model, const char *name);

#endif
