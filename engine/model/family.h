/*
 * family.h - the architectures that graftd builds: a registry of one file each.
 *
 * Why      An architecture is a mapping of config, tensor names and flags, not code: those that differ in flags share a body.
 *          Published configs leave out what equals their family's default.
 * Memory   Constants.
 * Threads  Any.
 * Errors   GD_UNSUPPORTED naming the architecture and what is supported.
 * Limits   none
 * Life     none
 *
 * To add one: families/NAME.c with one `const struct gd_family gd_family_NAME`, NAME in meson.build's list, and a fixture in
 * tests/fixtures/make_models.py. The file says
 *   which body builds it     decoder.c, or a body of its own: the parts of its layers and the function that lays out the graph;
 *   what it calls things     `names`: in its Hugging Face files (sites go by these names, and so do PEFT's keys) and in GGUF;
 *   what absent fields mean  `defaults`: sizes, flags and ids as transformers' config class has them;
 *   what its fields mean     read_hf and read_gguf: what a config says beyond the sizes, as flags of struct gd_model_config.
 * A flag that no body knows yet is added to struct gd_model_config and to the body, once for all families.
 */
#ifndef GD_MODEL_FAMILY_H
#define GD_MODEL_FAMILY_H

#include "engine/base/json.h"
#include "engine/model/gguf.h"
#include "engine/model/parts.h"

/* One config.json on its way into `config`, which begins as the family's defaults. */
struct gd_config_reader {
    struct gd_model_config *config;
    const struct gd_family *family;
    const cJSON *json;
    struct gd_error *err;
};

/* What the fields of config.json are called. NULL: the family has no such field. */
struct gd_size_fields {
    const char *width, *layers, *heads, *kv_heads, *head_dim, *ffn_width, *vocab, *context, *norm_eps;
    const char *theta, *partial_rotary; /* where rope_parameters do not say it */
};
extern const struct gd_size_fields gd_size_fields_llama;

struct gd_family {
    const char *model_type;   /* config.json */
    const char *class_name;   /* config.json: architectures; those of the same stem with the body's other suffixes are read too */
    const char *classifier;   /* what its class with labels is called where that is not class_name with another suffix; or NULL */
    const char *gguf;         /* general.architecture (the first family with a name reads its files); NULL: not read from GGUF */
    bool gguf_permuted;       /* its q and k rows are stored for interleaved rope */
    bool bias_options;        /* attention_bias and mlp_bias are options; GGUF files have the tensors or not */
    double partial_rotary;    /* default of partial_rotary_factor; 0: no such option */
    const struct gd_body *body;
    const struct gd_names *names;
    const struct gd_size_fields *fields;
    const char *nested;       /* the object of config.json that describes the language model; NULL: config.json itself */
    const char *const *aside; /* how the tensors of what else such a model has begin (its eyes), NULL at the end: kept, not read; or NULL */
    const char *const *ignored; /* tensors that some of its files carry and that hold nothing of the model, NULL at the end; or NULL */
    /* sizes, flags, norm_eps, rope_theta, ids (-1: none). kv_heads 0: as many as heads; head_dim 0: width / heads. */
    struct gd_model_config defaults;
    /* What config.json says beyond sizes, rope and ids (config_read.h); NULL: nothing. */
    bool (*read_hf)(const struct gd_config_reader *reader);
    /* The same of a GGUF file's keys; NULL: nothing. */
    bool (*read_gguf)(struct gd_model_config *config, const struct gd_gguf *file, struct gd_error *err);
};

/* Length of what the names of its classes begin with: "Llama". */
size_t gd_family_stem(const struct gd_family *family);
/* By model_type. */
GD_MUST_CHECK bool gd_family_find(const struct gd_family **out, const char *model_type, struct gd_error *err);
/* By general.architecture; `experts`: of those with the name, the one whose layers have experts. */
GD_MUST_CHECK bool gd_family_find_gguf(const struct gd_family **out, const char *architecture, bool experts, struct gd_error *err);

#endif
