/*
 * config_read.h - what the families' readers of config.json are made of.
 *
 * Why      A field that several families have is read and refused in one way.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   reader->err: the getters' (GD_BAD_MODEL in the end) naming config.json.FIELD, GD_UNSUPPORTED for values not computed.
 * Limits   config.h
 * Life     the reader's
 *
 * Each leaves its part of reader->config as it was where the field is absent, and is false on an error.
 */
#ifndef GD_MODEL_CONFIG_READ_H
#define GD_MODEL_CONFIG_READ_H

#include "engine/model/config.h"
#include "engine/model/family.h"

#define GD_CONFIG_PATH "config.json"

/* For fields where null is a value of its own. */
bool gd_config_is_null(const cJSON *json, const char *key);
GD_MUST_CHECK bool gd_config_read_int(const struct gd_config_reader *r, const char *key, int64_t max, int *out);
GD_MUST_CHECK bool gd_config_read_bool(const struct gd_config_reader *r, const char *key, bool *out);
GD_MUST_CHECK bool gd_config_read_number(const struct gd_config_reader *r, const char *key, double min, double max, double *out);
/* Fails: "config.json.KEY "VALUE" is not supported; supported is SUPPORTED". */
GD_MUST_CHECK bool gd_config_refuse(const struct gd_config_reader *r, const char *key, const char *value, const char *supported);
/* Fails if the flag is set. */
GD_MUST_CHECK bool gd_config_refuse_flag(const struct gd_config_reader *r, const char *key);

/* The function of the feed-forward part, by transformers' name. */
GD_MUST_CHECK bool gd_config_read_activation(const struct gd_config_reader *r, const char *key);
/* sliding_window: config->sliding_window; null: 0. */
GD_MUST_CHECK bool gd_config_read_window(const struct gd_config_reader *r);
/* layer_types, where the file has them: config->slides. */
GD_MUST_CHECK bool gd_config_read_layer_types(const struct gd_config_reader *r);
/* The layers from `first` on slide. */
void gd_config_slide_from(struct gd_model_config *config, int first);

/* use_sliding_window, max_window_layers, sliding_window, layer_types (families/qwen2.c). */
GD_MUST_CHECK bool gd_qwen_read_window(const struct gd_config_reader *r);

/* BERT's fields (families/bert.c), and those that differ in RoBERTa (families/roberta.c). */
extern const struct gd_size_fields gd_size_fields_bert;
extern const struct gd_names gd_names_roberta;
GD_MUST_CHECK bool gd_bert_read(const struct gd_config_reader *r);
GD_MUST_CHECK bool gd_roberta_read(const struct gd_config_reader *r);
extern const char *const gd_roberta_ignored[];
/* What RoBERTa and XLM-R are where config.json does not say; the vocabularies differ. */
#define GD_ROBERTA(type, class, entries)                        \
    {                                                           \
        .model_type = type,                                     \
        .class_name = class,                                    \
        .body = &gd_body_encoder,                               \
        .names = &gd_names_roberta,                             \
        .fields = &gd_size_fields_bert,                         \
        .ignored = gd_roberta_ignored,                          \
        .read_hf = gd_roberta_read,                             \
        .defaults = {                                           \
            .vocab = entries,                                   \
            .width = 768,                                       \
            .ffn_width = 3072,                                  \
            .layers = 12,                                       \
            .heads = 12,                                        \
            .context = 512,                                     \
            .types = 2,                                         \
            .norm_eps = 1e-12,                                  \
            .rope_theta = 10000,                                \
            .layer_norm = true,                                 \
            .qkv_bias = true,                                   \
            .o_bias = true,                                     \
            .mlp_bias = true,                                   \
            .tied = true,                                       \
            .activation = GD_ACTIVATION_GELU,                   \
            .bos_id = 0,                                        \
            .eos_ids = {2},                                     \
            .eos_count = 1,                                     \
        },                                                      \
    }

/* architectures: config->head and the flags that go with it; of a classifier id2label, num_labels, problem_type (config_labels.c). */
GD_MUST_CHECK bool gd_config_read_class(const struct gd_config_reader *r);

/* What the Gemmas share (families/gemma2.c): every `pattern`-th layer sees everything, the others slide. */
extern const struct gd_names gd_names_gemma;
GD_MUST_CHECK bool gd_gemma_read(const struct gd_config_reader *r, int pattern);
void gd_gemma_read_gguf(struct gd_model_config *config, int pattern, int layers_of_largest);

/* Of GGUF files: fails on a window, since no key says which layers slide. */
GD_MUST_CHECK bool gd_gguf_refuse_window(struct gd_model_config *config, const struct gd_gguf *file, struct gd_error *err);

/* rope_theta, rope_scaling, rope_parameters, partial_rotary_factor (config_rope.c). */
struct gd_config_ropes {
    struct gd_rope_scaling table[2];
    float divisors[2][GD_HEAD_DIM_MAX / 2]; /* longrope's factors, which the scalings point at */
};
GD_MUST_CHECK bool gd_config_read_rope(const struct gd_config_reader *r, struct gd_config_ropes *ropes);

#endif
