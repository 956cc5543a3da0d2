/*
 * builder.h - what the graphs of all bodies are laid out with: a part of a layer, through its site.
 *
 * Why      A body is its formula; how a part meets who tunes or serves it is the same everywhere.
 * Memory   The graph owns what is built; the builder borrows.
 * Threads  The graph's.
 * Errors   Through the graph.
 * Limits   none
 * Life     inside gd_model_hidden
 */
#ifndef GD_MODEL_BUILDER_H
#define GD_MODEL_BUILDER_H

#include "engine/model/family.h"
#include "engine/model/files.h"
#include "engine/tensor/ops.h"

struct gd_builder {
    struct gd_graph *graph;
    const struct gd_model *model;
    const struct gd_files *files;
    const struct gd_model_inputs *inputs;
    struct gd_sites sites;
};

/* Of rows of x, or of as many heads as fit in a row. */
static inline struct gd_value *gd_build_norm(const struct gd_builder *b, const struct gd_site *site, struct gd_value *x)
{
    struct gd_value *w = gd_graph_weight(b->graph, site->weight);
    struct gd_value *added = site->bias != NULL ? gd_graph_weight(b->graph, site->bias) : NULL;
    if (b->sites.norm != NULL)
        return b->sites.norm(b->sites.context, b->graph, site, x, w, added, b->model->config.norm_eps);
    return gd_site_norm_base(b->graph, site, x, w, added, b->model->config.norm_eps);
}

/* part: of the body's norms. */
static inline struct gd_value *gd_build_layer_norm(const struct gd_builder *b, int layer, int part, struct gd_value *x)
{
    const struct gd_model_config *config = &b->model->config;
    return gd_build_norm(b, &b->files->norm_sites[gd_norm_index(config, layer, part)], x);
}

/* The norm outside the layers: a decoder's last. */
static inline struct gd_value *gd_build_outer_norm(const struct gd_builder *b, struct gd_value *x)
{
    const struct gd_model_config *config = &b->model->config;
    return gd_build_norm(b, &b->files->norm_sites[gd_norm_index(config, config->layers, 0)], x);
}

static inline struct gd_value *gd_build_linear_site(const struct gd_builder *b, const struct gd_site *site, struct gd_value *x)
{
    struct gd_value *w = gd_graph_weight(b->graph, site->weight);
    struct gd_value *added = site->bias != NULL ? gd_graph_weight(b->graph, site->bias) : NULL;
    if (b->sites.linear != NULL)
        return b->sites.linear(b->sites.context, b->graph, site, x, w, added);
    return gd_site_linear_base(b->graph, x, w, added);
}

/* part: of the body's linear modules; copy: the expert it belongs to, 0 of others. */
static inline struct gd_value *gd_build_linear_copy(const struct gd_builder *b, int layer, int part, int copy, struct gd_value *x)
{
    return gd_build_linear_site(b, &b->files->linear_sites[gd_linear_index(&b->model->config, layer, part) + copy], x);
}

static inline struct gd_value *gd_build_linear(const struct gd_builder *b, int layer, int part, struct gd_value *x)
{
    return gd_build_linear_copy(b, layer, part, 0, x);
}

/* which: 0 attention, 1 feed-forward. input: what entered it; output: what it made. */
static inline struct gd_value *gd_build_block(const struct gd_builder *b, int layer, int which, struct gd_value *input,
                                              struct gd_value *output)
{
    if (b->sites.block == NULL)
        return output;
    return b->sites.block(b->sites.context, b->graph, &b->files->block_sites[2 * layer + which], input, output);
}

/* The embedded tokens, as far as a tuning method sees them. */
static inline struct gd_value *gd_build_embedded(const struct gd_builder *b, struct gd_value *x)
{
    return b->sites.embed != NULL ? b->sites.embed(b->sites.context, b->graph, &b->files->embed_site, x) : x;
}

static inline struct gd_value *gd_build_hidden(const struct gd_builder *b, struct gd_value *h)
{
    return b->sites.hidden != NULL ? b->sites.hidden(b->sites.context, b->graph, &b->files->hidden_site, h) : h;
}

#endif
