/*
 * score.h - the head of a reward model: one row beside a method's parameters, PEFT's modules_to_save ["score"].
 *
 * Why      Any method that trains a body can train a reward model; the head is none of their business.
 * Memory   A parameter of the graft, the last trained one.
 * Threads  engine thread
 * Errors   GD_UNSUPPORTED, GD_BAD_MODEL naming the field
 * Limits   one score
 * Life     inside gd_graft_create, gd_graft_save and gd_graft_load
 */
#ifndef GD_ADAPTER_SCORE_H
#define GD_ADAPTER_SCORE_H

#include "engine/adapter/adapter.h"

/* After the method's parameters are declared. */
GD_MUST_CHECK bool gd_score_add(struct gd_graft *graft, struct gd_error *err);
/* N(0, 0.02^2), as transformers starts it. */
void gd_score_init(const struct gd_graft *graft, float *block, uint64_t seed);
/* From one graft's block to another's, where they have heads. */
void gd_score_copy(const struct gd_graft *from, const float *block, const struct gd_graft *to, float *to_block);

/* adapter_config.json: written, and read into config->score. */
void gd_score_describe(const struct gd_graft *graft, cJSON *json);
GD_MUST_CHECK bool gd_score_read(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err);

#endif
