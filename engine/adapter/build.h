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
bool gd_modules_match(const struct gd_modules *modules, const struct gd_site *site);

/* Sets site_param to 0 where a site of the kind (LINEAR, NORM, BLOCK) is among the option's modules, and returns how many are; 0: a name matches
 * nothing, an error that lists what exists. */
GD_MUST_CHECK int gd_graft_choose(struct gd_graft *graft, enum gd_site_kind kind, const char *option, struct gd_error *err);

/* A parameter [rows, columns] named base_model.model.MODULE.SUFFIX, or base_model.SUFFIX with module NULL. Trained ones
 * come before frozen ones. Valid until the next is added. */
struct gd_graft_param *gd_graft_add(struct gd_graft *graft, bool trained, const char *module, const char *suffix,
                                    int64_t rows, int64_t columns);

/* The first `rows` rows of a frozen parameter (as the block holds it), one value per graph. */
struct gd_value *gd_graft_view(struct gd_graft_training *training, struct gd_graph *g, const struct gd_graft_param *param,
                               int64_t rows);

/* Memory for what a part needs beside the block; lives as long as the graft. */
float *gd_graft_derive(struct gd_graft *graft, int64_t count);

/* What serving needs (wear, depth, digest), once the graft owns its filled block. */
void gd_graft_ready(struct gd_graft *graft);

/* U(-bound, bound), the same for a seed, a stream and a place. */
void gd_fill_uniform(float *out, int64_t count, float bound, uint64_t seed, uint32_t stream);
void gd_fill_normal(float *out, int64_t count, float deviation, uint64_t seed, uint32_t stream); /* N(0, deviation^2) */

/* An option that create works out from others, as files and listings then show it. */
void gd_adapter_set_value(struct gd_adapter_config *config, const char *option, double value);

#endif
