/*
 * config.h - from a model's description (config.json or GGUF metadata) to struct gd_model_config, range-checked.
 *
 * Why      Every number that later sizes memory or divides passes here once, named by its field.
 * Memory   config->inv_freq is allocated on success; gd_model_config_release frees it.
 * Threads  Any; pure functions.
 * Errors   GD_BAD_MODEL naming file and field; GD_UNSUPPORTED naming what is not computed.
 * Limits   GD_*_MAX below.
 * Life     read -> release
 */
#ifndef GD_MODEL_CONFIG_H
#define GD_MODEL_CONFIG_H

#include "engine/base/json.h"
#include "engine/model/family.h"
#include "engine/model/gguf.h"
#include "engine/model/model.h"
#include "engine/model/rope.h"

#define GD_WIDTH_MAX (1 << 17)
#define GD_FFN_WIDTH_MAX (1 << 20)
#define GD_HEADS_MAX 4096
#define GD_HEAD_DIM_MAX 1024
#define GD_CONTEXT_MAX (1 << 26)
#define GD_EXPERTS_MAX 1024
#define GD_MODEL_CONFIG_BYTES_MAX (4 << 20)

/* config.json, and generation_config.json (NULL: absent) for the end-of-sequence ids. */
GD_MUST_CHECK bool gd_model_config_from_json(struct gd_model_config *config, const cJSON *json, const cJSON *generation,
                                       struct gd_error *err);
GD_MUST_CHECK bool gd_model_config_from_gguf(struct gd_model_config *config, struct gd_gguf *file,
                                       struct gd_error *err);
void gd_model_config_release(struct gd_model_config *config);

/* `config` as the family has it where its files say nothing. */
void gd_model_config_begin(struct gd_model_config *config, const struct gd_family *family);
/* What the two readers share. The names of the fields, for messages: */
struct gd_model_config_names {
    const char *heads, *kv_heads, *head_dim, *theta;
};
/* Relations between heads and between windows; then inv_freq and the factors of the tables from the thetas and ropes[table]. */
GD_MUST_CHECK bool gd_model_config_finish(struct gd_model_config *config, const struct gd_rope_scaling *ropes,
                                    const struct gd_model_config_names *names, struct gd_error *err);
/* Adds an end-of-sequence id unless it is there. */
GD_MUST_CHECK bool gd_model_config_add_eos(struct gd_model_config *config, int64_t id, const char *field,
                                     struct gd_error *err);

#endif
