/*
 * adapter.h - grafts: what is trained on a frozen base, how it enters the graph, how it is kept.
 *
 * Why      A tuning method is one file here and one line in the registry; what can be trained can be served.
 * Memory   A graft owns its parameters' description; the flat f32 parameter block belongs to whoever made it
 *          (the trainer, or the loaded graft itself).
 * Threads  engine thread
 * Errors   GD_INVALID with param "adapter.FIELD"; GD_BAD_FILE for a broken adapter folder (tensor named).
 * Limits   rank <= GD_LORA_RANK_MAX
 * Life     gd_adapter_config_parse -> gd_graft_create -> sites in graphs ... -> gd_graft_save -> gd_graft_destroy.
 *
 * To add a method: 1 write adapter/NAME.c with `const struct gd_adapter_method gd_adapter_NAME` 2 add its name to
 * adapter_names in meson.build. The request schema, docs and tests find it through the registry.
 */
#ifndef GD_ADAPTER_ADAPTER_H
#define GD_ADAPTER_ADAPTER_H

#include "engine/base/json.h"
#include "engine/model/model.h"
#include "engine/tensor/wear.h"

#define GD_LORA_RANK_MAX 512
#define GD_TARGETS_MAX 4096

/* Resolved options of a graft; the union grows with the methods. */
struct gd_adapter_config {
    char type[32];               /* "lora" */
    int r;
    double lora_alpha;
    double lora_dropout;
    bool use_rslora;
    char **targets;              /* module names, dotted suffixes, or the one entry "all-linear"; owned */
    int target_count;            /* <= GD_TARGETS_MAX */
};
void gd_adapter_config_release(struct gd_adapter_config *config);

/* `json`: the request's "adapter" object or NULL (then all defaults: lora, r 16, lora_alpha 32, lora_dropout 0,
 * target_modules "all-linear"). Unknown fields and values out of range are errors naming adapter.FIELD. Needs no model. */
GD_MUST_CHECK bool gd_adapter_config_parse(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err);
/* The same, resolved, as it is echoed in the job. */
cJSON *gd_adapter_config_json(const struct gd_adapter_config *config);

struct gd_graft_param {
    char name[192];              /* PEFT key: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight */
    int64_t offset;              /* into the flat block, in floats */
    int rank;
    int64_t shape[2];
};

struct gd_graft {
    struct gd_adapter_config config;
    const struct gd_adapter_method *method;
    const struct gd_model *model;
    struct gd_graft_param *params;
    int param_count;
    int64_t parameter_count;     /* floats in the flat block */
    double scale;                /* lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA */
    int *site_param;             /* [linear site] -> index of its first param, -1 where untouched */
    float *block;                /* parameters: loaded grafts own theirs; else NULL (the trainer holds them) */
    struct gd_wear_lowrank *wear;/* [linear site count]: for serving, made by gd_graft_load */
};

struct gd_adapter_method {
    const char *name, *peft_type, *paper;
    /* Fills params, site_param, scale. Targets that match nothing: an error listing what exists. */
    bool (*create)(struct gd_graft *graft, struct gd_error *err);
    void (*init)(const struct gd_graft *graft, float *block, uint64_t seed);
    struct gd_value *(*linear)(const struct gd_graft *graft, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *w, struct gd_value *bias,
                               struct gd_value *const *params, struct gd_value *dropout_key);
};
extern const struct gd_adapter_method *const gd_adapter_table[];
extern const int gd_adapter_count;

GD_MUST_CHECK bool gd_graft_create(struct gd_graft **out, const struct gd_model *model,
                                   const struct gd_adapter_config *config, struct gd_error *err);
void gd_graft_destroy(struct gd_graft *graft);
void gd_graft_init(const struct gd_graft *graft, float *block, uint64_t seed);

/* Sites for a training graph: declares one value per parameter (in param order, [param_count]): PARAMs and dropout when
 * `training` (dropout_key: i32 [4] input, NULL without dropout), plain inputs for evaluation. */
struct gd_graft_training {
    const struct gd_graft *graft;
    struct gd_value **params;
    struct gd_value *dropout_key;
    struct gd_sites sites;
};
void gd_graft_training_sites(struct gd_graft_training *training, struct gd_graph *graph, const struct gd_graft *graft,
                             bool training_pass);
void gd_graft_training_release(struct gd_graft_training *training);

/* Sites for a serving graph: every linear site gets a wear_lowrank reading `wear` (handle). */
struct gd_graft_serving {
    const struct gd_model *model;
    struct gd_value *wear;
    struct gd_sites sites;
};
void gd_graft_serving_sites(struct gd_graft_serving *serving, struct gd_graph *graph, const struct gd_model *model);

/* PEFT folder: adapter_config.json, adapter_model.safetensors, README.md (model card), graftd.json (digests of base,
 * tokenizer, template; job id; seed). Written inside `folder` (a gd_dir_tx path); the caller commits. `extra`: members
 * merged into graftd.json. */
GD_MUST_CHECK bool gd_graft_save(const struct gd_graft *graft, const float *block, const char *folder,
                                 const cJSON *extra, struct gd_error *err);
/* Strict account: every tensor used, every target filled. Digests in graftd.json that differ from the model's are an
 * error naming both (absent graftd.json, as PEFT writes: accepted). */
GD_MUST_CHECK bool gd_graft_load(struct gd_graft **out, const struct gd_model *model, const char *folder,
                                 struct gd_error *err);

#endif
