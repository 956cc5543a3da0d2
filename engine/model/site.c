/* site.c - the named places of a filled model, and what a linear site does when nobody answers. */
#include "engine/model/site.h"
#include "engine/model/files.h"
#include "engine/model/parts.h"
#include "engine/tensor/ops.h"

struct gd_value *gd_site_linear_base(struct gd_graph *g, struct gd_value *x, struct gd_value *w, struct gd_value *bias)
{
    struct gd_value *y = gd_linear(g, x, w);
    return bias != NULL ? gd_add_row(g, y, bias) : y;
}

struct gd_value *gd_site_norm_base(struct gd_graph *g, const struct gd_site *site, struct gd_value *x, struct gd_value *w,
                                   struct gd_value *bias, double eps)
{
    return site->centred ? gd_layer_norm(g, x, w, bias, eps) : gd_rms_norm(g, x, w, eps);
}

int gd_model_linear_sites(const struct gd_model *model, const struct gd_site **sites)
{
    *sites = gd_model_files(model)->linear_sites;
    return model->config.layers * gd_linears_before(&model->config, GD_LINEAR_COUNT);
}

int gd_model_norm_sites(const struct gd_model *model, const struct gd_site **sites)
{
    *sites = gd_model_files(model)->norm_sites;
    return model->config.layers * gd_norms_before(&model->config, GD_NORM_COUNT) + 1;
}

int gd_model_block_sites(const struct gd_model *model, const struct gd_site **sites)
{
    *sites = gd_model_files(model)->block_sites;
    return model->config.layers * 2;
}

const struct gd_site *gd_model_embed_site(const struct gd_model *model)
{
    return &gd_model_files(model)->embed_site;
}

static const char *layer_name(struct gd_files *files, int layer, const char *part)
{
    return gd_arena_format(&files->arena, "model.layers.%d.%s", layer, part);
}

static void make_layer(struct gd_model *model, struct gd_files *files, int layer)
{
    struct gd_model_layer *weights = &model->layer[layer];
    const struct gd_model_config *config = &model->config;
    for (int i = 0; i < GD_LINEAR_COUNT; i++) {
        const struct gd_part *part = &gd_linear_parts[i];
        int index = layer * gd_linears_before(config, GD_LINEAR_COUNT) + gd_linears_before(config, i);
        if (gd_part_present(config, part))
            files->linear_sites[index] = (struct gd_site){GD_SITE_LINEAR,
                                                          layer,
                                                          index,
                                                          layer_name(files, layer, part->name),
                                                          gd_extent_size(config, part->in),
                                                          gd_extent_size(config, part->out),
                                                          *gd_part_weight(weights, part),
                                                          gd_part_has_bias(config, part) ? *gd_part_bias(weights, part) : NULL,
                                                          part};
    }
    for (int i = 0; i < GD_NORM_COUNT; i++) {
        const struct gd_part *part = &gd_norm_parts[i];
        int index = layer * gd_norms_before(config, GD_NORM_COUNT) + gd_norms_before(config, i);
        int width = gd_extent_size(config, part->out);
        if (gd_part_present(config, part))
            files->norm_sites[index] = (struct gd_site){
                GD_SITE_NORM, layer, index, layer_name(files, layer, part->name), width, width, *gd_part_weight(weights, part), NULL, part};
    }
    files->kv_sites[layer] =
        (struct gd_site){GD_SITE_KV, layer, layer, layer_name(files, layer, "self_attn"), 0, 0, NULL, NULL, NULL};
    files->block_sites[2 * layer] =
        (struct gd_site){GD_SITE_BLOCK, layer, 2 * layer, layer_name(files, layer, "self_attn"), config->width, config->width, NULL, NULL, NULL};
    files->block_sites[2 * layer + 1] =
        (struct gd_site){GD_SITE_BLOCK, layer, 2 * layer + 1, layer_name(files, layer, "mlp"), config->width, config->width, NULL, NULL, NULL};
}

void gd_model_make_sites(struct gd_model *model)
{
    struct gd_files *files = model->files;
    int last = model->config.layers * gd_norms_before(&model->config, GD_NORM_COUNT);
    size_t layers = (size_t)model->config.layers, each = sizeof(struct gd_site);
    files->linear_sites = gd_arena_alloc_array(&files->arena, layers * (size_t)gd_linears_before(&model->config, GD_LINEAR_COUNT), each);
    files->norm_sites = gd_arena_alloc_array(&files->arena, (size_t)last + 1, each);
    files->kv_sites = gd_arena_alloc_array(&files->arena, layers, each);
    files->block_sites = gd_arena_alloc_array(&files->arena, layers * 2, each);
    for (int layer = 0; layer < model->config.layers; layer++)
        make_layer(model, files, layer);
    files->norm_sites[last] = (struct gd_site){GD_SITE_NORM, -1, last, "model.norm", model->config.width,
                                               model->config.width, model->final_norm, NULL, NULL};
    files->embed_site = (struct gd_site){GD_SITE_EMBED, -1, 0, "model.embed_tokens", 0, 0, NULL, NULL, NULL};
    files->hidden_site = (struct gd_site){GD_SITE_HIDDEN, -1, 0, "model", 0, 0, NULL, NULL, NULL};
}
