/*
 * lora.h - the parts of LoRA that have files of their own.
 *
 * Why      lora.c holds the options and what all variants share.
 * Memory   The graft's.
 * Threads  engine thread
 * Errors   through the graph
 * Limits   none
 * Life     the graft's
 */
#ifndef GD_ADAPTER_LORA_H
#define GD_ADAPTER_LORA_H

#include "engine/adapter/build.h"

enum { GD_LORA_TRUE, GD_LORA_GAUSSIAN, GD_LORA_PISSA }; /* init_lora_weights */
enum { GD_KASA_MEAN, GD_KASA_SUM }; /* kasa_reduction */

/* A module's parameters: A, B, and with DoRA the magnitudes. */
void gd_lora_dora_add(struct gd_graft *graft, const struct gd_site *site, double rate);
void gd_lora_dora_init(const struct gd_graft *graft, float *block);
struct gd_value *gd_lora_dora_linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                     struct gd_value *x, struct gd_value *w, struct gd_value *bias,
                                     struct gd_value *const *params);
/* The start hook: from the mean of a mixture of low-rank pairs. */
GD_MUST_CHECK bool gd_lora_start(const struct gd_graft *graft, struct gd_graft *from, uint64_t seed, float *block,
                                 struct gd_error *err);
/* After the product has been put into the part. */
void gd_lora_dora_wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                       struct gd_wear_part *part);

/* KaSA: the trained diagonal is a module's third parameter, and what is taken from the base follows all trained parameters. */
bool gd_lora_is_kasa(const struct gd_adapter_config *config);
void gd_lora_kasa_add(struct gd_graft *graft, const struct gd_site *site, double rate);
void gd_lora_kasa_add_dropped(struct gd_graft *graft, const struct gd_site *site);
void gd_lora_kasa_init(const struct gd_graft *graft, float *block, uint64_t seed);
void gd_lora_kasa_derive(const struct gd_graft *graft, float *block);
struct gd_value *gd_lora_kasa_linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                     struct gd_value *x, struct gd_value *w, struct gd_value *bias,
                                     struct gd_value *const *params);
struct gd_value *gd_lora_kasa_penalty(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *const *params);
void gd_lora_kasa_wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                       struct gd_wear_part *part);
void gd_lora_kasa_describe(const struct gd_graft *graft, cJSON *json);
GD_MUST_CHECK bool gd_lora_kasa_read(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err);

/* PiSSA's start. Frozen A0 and B0 of each module follow the trained parameters in the modules' order. */
void gd_lora_pissa_add(struct gd_graft *graft, const struct gd_site *site);
void gd_lora_pissa_init(const struct gd_graft *graft, float *block);
/* y - scale B0 A0 x */
struct gd_value *gd_lora_pissa_base(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                    struct gd_value *x, struct gd_value *y);
bool gd_lora_pissa_kept_options(struct gd_adapter_config *config);
bool gd_lora_pissa_keep(const struct gd_graft *graft, const float *block, const struct gd_graft *kept, float *kept_block,
                        struct gd_error *err);
void gd_lora_pissa_resume(const struct gd_graft *graft, float *block, const struct gd_graft *kept);

#endif
