/*
 * build.h - what methods share: choosing sites, declaring parameters, filling them.
 *
 * Why      A method's file holds its mathematics only.
 * Memory   Parameters belong to the graft.
 * Threads  engine thread
 * Errors   GD_INVALID with param "adapter.FIELD"
 * Limits   none
 * Life     inside gd_graft_create and gd_graft_init
 */
#ifndef GD_ADAPTER_BUILD_H
#define GD_ADAPTER_BUILD_H

#include "engine/adapter/adapter.h"

/* A name matches a site's module that it equals or that ends in "." + name; "all-linear" matches every linear one. */
/* Puts the family's own names in place of those that options fall back to (fallback.c). */
void gd_graft_translate_fallbacks(struct gd_graft *graft);
bool gd_modules_match(const struct gd_modules *modules, const struct gd_site *site);

/* Sets site_param to 0 where a site of the kind (LINEAR, NORM, BLOCK) is among the option's modules, and returns how many are; 0: a name matches
 * nothing, an error that lists what exists. */
GD_MUST_CHECK int gd_graft_choose(struct gd_graft *graft, enum gd_site_kind kind, const char *option, struct gd_error *err);

/* A parameter [rows, columns] named base_model.model.MODULE.SUFFIX, or base_model.SUFFIX with module NULL. Trained ones
 * come before frozen ones. Valid until the next is added. */
struct gd_graft_param *gd_graft_add(struct gd_graft *graft, bool trained, const char *module, const char *suffix,
                                    int64_t rows, int64_t columns);

/* A trained one behind all trained ones, when frozen ones are there too: those move up. */
struct gd_graft_param *gd_graft_add_last(struct gd_graft *graft, const char *module, const char *suffix, int64_t rows, int64_t columns);

/* A trained parameter [rows, columns] of exactly this name. */
struct gd_graft_param *gd_graft_add_named(struct gd_graft *graft, const char *name, int64_t rows, int64_t columns);

/* For methods with virtual rows: as many as option num_virtual_tokens says, or `count` as `option` does, if they leave room in the
 * model's context. */
GD_MUST_CHECK bool gd_graft_begin_virtual(struct gd_graft *graft, struct gd_error *err);
GD_MUST_CHECK bool gd_graft_set_virtual(struct gd_graft *graft, int count, const char *option, struct gd_error *err);
/* The members of adapter_config.json that PEFT wants of every prompt method. */
void gd_graft_describe_virtual(const struct gd_graft *graft, int token_dim, int heads, cJSON *json);
/* The option's text must be given where it is `wanted` (`why`), and only there, and have no more tokens than virtual rows. */
GD_MUST_CHECK bool gd_graft_check_start(const struct gd_graft *graft, const char *option, bool wanted, const char *why,
                                        struct gd_error *err);
/* Embeddings [count, width] of tokens drawn from the vocabulary, or of a text's, repeated where they are fewer. */
void gd_fill_vocabulary(const struct gd_model *model, float *out, int count, uint64_t seed);
void gd_fill_text(const struct gd_model *model, float *out, int count, const char *text);

void gd_graft_drop_prefix(struct gd_graft *graft);

/* What the base makes of the rows x at a linear site (gd_site_linear_base), or has made of them already. */
struct gd_value *gd_graft_base(const struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x, struct gd_value *w,
                               struct gd_value *bias);

/* x W^T (+ b), all f32, and W [out, in], b [out] (or -1) as PyTorch's Linear starts them: U(-1/sqrt(in), 1/sqrt(in)). */
struct gd_value *gd_graft_layer(struct gd_graph *g, struct gd_value *x, struct gd_value *weight, struct gd_value *bias);
void gd_fill_layer(const struct gd_graft *graft, float *block, int weight, int bias, uint64_t seed);

/* The f32 values that `build` puts into values[count] (none a bare parameter), computed from a block: out[i] has as many floats. */
typedef void (*gd_graft_values_fn)(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *const *params,
                                   struct gd_value **values);
GD_MUST_CHECK bool gd_graft_compute(const struct gd_graft *graft, const float *block, gd_graft_values_fn build,
                                    float *const *out, int count, struct gd_error *err);

/* i32 [T]: one value per graph, bound by passes. */
struct gd_value *gd_graft_index(struct gd_graft_training *training, struct gd_graph *g, enum gd_row_index which, int64_t rows);
/* x with rows added to its virtual rows; rows: f32 [virtual rows, width of x]. */
struct gd_value *gd_graft_add_virtual(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x,
                                      struct gd_value *rows);
/* x with its virtual rows replaced. */
struct gd_value *gd_graft_put_virtual(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x,
                                      struct gd_value *rows);

/* The first `rows` rows of a frozen parameter (as the block holds it), one value per graph. */
struct gd_value *gd_graft_view(struct gd_graft_training *training, struct gd_graph *g, const struct gd_graft_param *param,
                               int64_t rows);

/* Whether the site takes a product of rank r, at most its smaller side; adapter.r is at fault. */
GD_MUST_CHECK bool gd_graft_check_rank(const struct gd_graft *graft, const struct gd_site *site, int64_t r, struct gd_error *err);

/* Memory for what a part needs beside the block; lives as long as the graft. */
float *gd_graft_derive(struct gd_graft *graft, int64_t count);
void gd_graft_drop_derived(struct gd_graft *graft);

/* What serving needs (wear, depth, digest), once the graft owns its filled block. */
void gd_graft_make_wear(struct gd_graft *graft);
void gd_graft_make_digest(struct gd_graft *graft);
void gd_graft_ready(struct gd_graft *graft); /* both */
void gd_graft_drop_wear(struct gd_graft *graft);

/* A list of the graft's as an i32 [count] input of the graph. */
struct gd_value *gd_graft_list(struct gd_graft_training *training, struct gd_graph *g, const char *name, const int32_t *data,
                               int64_t count);

/* The file of a graft's folder that holds what it took from its base; PEFT does not read it. */
#define GD_APART_FILE "graftd_base.safetensors"

/* [rows][columns] from [columns][rows]; gd_free it. */
float *gd_transposed(const float *from, int64_t rows, int64_t columns);

/* U(-bound, bound), the same for a seed, a stream and a place. */
void gd_fill_uniform(float *out, int64_t count, float bound, uint64_t seed, uint32_t stream);
void gd_fill_normal(float *out, int64_t count, float deviation, uint64_t seed, uint32_t stream); /* N(0, deviation^2) */

/* Kaiming-uniform(sqrt 5), as PEFT starts factors: U(-1/sqrt(columns), 1/sqrt(columns)). */
void gd_fill_kaiming(const struct gd_graft_param *param, float *block, uint64_t seed, uint32_t stream);

/* Names of tasks where nobody gave any: "0", "1", ... */
void gd_adapter_number_tasks(struct gd_adapter_config *config, int count);
/* An option that create works out from others, as files and listings then show it. */
void gd_adapter_set_value(struct gd_adapter_config *config, const char *option, double value);

#endif
