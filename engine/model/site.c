/* site.c - the named places of a filled model, and what a linear site does when nobody answers. */
#include "engine/model/site.h"
#include "engine/model/family.h"
#include "engine/model/files.h"
#include "engine/tensor/ops.h"

struct gd_value *gd_site_linear_base(struct gd_graph *g, struct gd_value *x, struct gd_value *w, struct gd_value *bias)
{
    struct gd_value *y = gd_linear(g, x, w);
    return bias != NULL ? gd_add_row(g, y, bias) : y;
}

struct gd_value *gd_site_norm_base(struct gd_graph *g, const struct gd_site *site, struct gd_value *x, struct gd_value *w,
                                   struct gd_value *bias, double eps)
{
    return site->centred ? gd_layer_norm(g, x, w, bias, eps) : gd_rms_norm(g, x, w, eps, site->offset);
}

int gd_model_linear_sites(const struct gd_model *model, const struct gd_site **sites)
{
    *sites = gd_model_files(model)->linear_sites;
    return gd_linear_index(&model->config, model->config.layers, 0) + (model->config.projects ? 2 : 0);
}

int gd_model_norm_sites(const struct gd_model *model, const struct gd_site **sites)
{
    *sites = gd_model_files(model)->norm_sites;
    return gd_norm_index(&model->config, model->config.layers, 0) + (model->final_norm != NULL) + gd_model_encodes(model);
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

int gd_model_table_sites(const struct gd_model *model, const struct gd_site **sites)
{
    *sites = gd_model_files(model)->table_sites;
    return gd_model_files(model)->table_count;
}

const struct gd_site *gd_model_table_site(const struct gd_model *model, const struct gd_weight *weight)
{
    const struct gd_site *site = gd_model_files(model)->table_sites;
    while (site->weight != weight)
        site++;
    return site;
}

static const char *layer_name(const struct gd_model *model, int layer, const char *part)
{
    int number;
    const char *stack = gd_layer_stack(&model->config, layer, &number);
    return gd_arena_format(&gd_model_files(model)->arena, "%s.%d.%s", stack, number, part);
}

/* A part of a layer with a weight. */
static struct gd_site part_site(const struct gd_model *model, enum gd_site_kind kind, int layer, int index,
                                const struct gd_part *part, const struct gd_name *name, int copy)
{
    const struct gd_model_config *config = &model->config;
    struct gd_model_layer *weights = &model->layer[layer];
    struct gd_arena *arena = &gd_model_files(model)->arena;
    int out = gd_extent_size(config, part->out);
    return (struct gd_site){
        .kind = kind,
        .layer = layer,
        .index = index,
        .name = layer_name(model, layer, gd_part_name(name->hf, copy).text),
        .gguf = name->gguf != NULL && part->copies == 0 ? gd_arena_format(arena, "blk.%d.%s", layer, name->gguf) : NULL,
        .in = kind == GD_SITE_NORM ? out : gd_extent_size(config, part->in),
        .out = out,
        .weight = *gd_part_weight(weights, part, copy),
        .bias = gd_part_has_bias(config, part) ? *gd_part_bias(weights, part) : NULL,
        .part = part,
        .centred = kind == GD_SITE_NORM && config->layer_norm,
        .offset = kind == GD_SITE_NORM ? config->norm_offset : 0,
        .router = part->out == GD_EXTENT_EXPERTS,
        .expert = part->copies != 0,
    };
}

static struct gd_site block_site(const struct gd_model *model, enum gd_site_kind kind, int layer, int index, const char *name)
{
    int width = kind == GD_SITE_BLOCK ? model->config.width : 0;
    return (struct gd_site){.kind = kind, .layer = layer, .index = index, .name = layer_name(model, layer, name), .in = width, .out = width};
}

static void make_layer(struct gd_model *model, struct gd_files *files, int layer)
{
    const struct gd_model_config *config = &model->config;
    const struct gd_body *body = config->family->body;
    const struct gd_names *names = config->family->names;
    int index = gd_linear_index(config, layer, 0);
    for (int i = 0; i < body->linear_count; i++)
        for (int copy = 0; copy < gd_part_copies(config, &body->linears[i], layer); copy++) {
            files->linear_sites[index] = part_site(model, GD_SITE_LINEAR, layer, index, &body->linears[i], &names->linears[i], copy);
            index++;
        }
    index = gd_norm_index(config, layer, 0);
    for (int i = 0; i < body->norm_count; i++)
        if (gd_part_in_layer(config, &body->norms[i], layer)) {
            files->norm_sites[index] = part_site(model, GD_SITE_NORM, layer, index, &body->norms[i], &names->norms[i], 0);
            index++;
        }
    files->kv_sites[layer] = block_site(model, GD_SITE_KV, layer, layer, names->attention);
    files->block_sites[2 * layer] = block_site(model, GD_SITE_BLOCK, layer, 2 * layer, names->attention);
    files->block_sites[2 * layer + 1] = block_site(model, GD_SITE_BLOCK, layer, 2 * layer + 1,
                                                 config->encoder_layers > 0 && layer >= config->encoder_layers ? names->decoder_mlp : names->mlp);
}

/* After those of the layers: project_in, project_out. */
static void make_projections(struct gd_model *model, struct gd_files *files)
{
    struct gd_weight *const weights[] = {model->project_in, model->project_out};
    static const int outer[] = {GD_OUTER_PROJECT_IN, GD_OUTER_PROJECT_OUT};
    int first = gd_linear_index(&model->config, model->config.layers, 0);
    for (int i = 0; i < 2 && model->config.projects; i++)
        files->linear_sites[first + i] = (struct gd_site){
            .kind = GD_SITE_LINEAR, .layer = -1, .index = first + i, .name = model->config.family->names->outer[outer[i]].hf,
            .in = (int)gd_weight_dim(weights[i], 1), .out = (int)gd_weight_dim(weights[i], 0), .weight = weights[i]};
}

static void make_tables(struct gd_model *model, struct gd_files *files)
{
    const struct {
        struct gd_weight *weight;
        int outer;
        bool small;
    } tables[] = {
        {model->embed, GD_OUTER_EMBED, false},
        {model->positions, GD_OUTER_POSITIONS, false},
        {model->types, GD_OUTER_TYPES, true},
        {model->head != model->embed ? model->head : NULL, GD_OUTER_HEAD, false},
        {model->encoder_bias, GD_OUTER_ENCODER_BIAS, true},
        {model->decoder_bias, GD_OUTER_DECODER_BIAS, true},
    };
    _Static_assert(GD_COUNT(tables) == GD_COUNT(files->table_sites), "a site for each table");
    for (size_t i = 0; i < GD_COUNT(tables); i++) {
        struct gd_weight *weight = tables[i].weight;
        if (weight == NULL)
            continue;
        int index = files->table_count++;
        files->table_sites[index] = (struct gd_site){
            .kind = GD_SITE_TABLE, .layer = -1, .index = index, .name = model->config.family->names->outer[tables[i].outer].hf,
            .in = (int)gd_weight_dim(weight, 1), .out = (int)gd_weight_dim(weight, 0), .weight = weight, .small = tables[i].small};
    }
}

void gd_model_make_sites(struct gd_model *model)
{
    struct gd_files *files = model->files;
    const struct gd_names *names = model->config.family->names;
    int last = gd_norm_index(&model->config, model->config.layers, 0), width = model->config.width;
    size_t layers = (size_t)model->config.layers, each = sizeof(struct gd_site);
    files->linear_sites = gd_arena_alloc_array(&files->arena, (size_t)gd_linear_index(&model->config, model->config.layers, 0) + 2, each);
    files->norm_sites = gd_arena_alloc_array(&files->arena, (size_t)last + 2, each);
    files->kv_sites = gd_arena_alloc_array(&files->arena, layers, each);
    files->block_sites = gd_arena_alloc_array(&files->arena, layers * 2, each);
    for (int layer = 0; layer < model->config.layers; layer++)
        make_layer(model, files, layer);
    if (model->final_norm != NULL)
        files->norm_sites[last] = (struct gd_site){.kind = GD_SITE_NORM, .layer = -1, .index = last, .name = names->outer[GD_OUTER_NORM].hf,
                                               .gguf = names->outer[GD_OUTER_NORM].gguf, .in = width, .out = width,
                                               .weight = model->final_norm, .bias = model->final_norm_bias,
                                               .centred = model->config.layer_norm, .offset = model->config.norm_offset};
    if (gd_model_encodes(model))
        files->norm_sites[last + 1] = (struct gd_site){.kind = GD_SITE_NORM, .layer = -1, .index = last + 1,
                                                       .name = names->outer[GD_OUTER_ENCODER_NORM].hf, .in = width, .out = width,
                                                       .weight = model->encoder_norm};
    make_projections(model, files);
    files->embed_site = (struct gd_site){.kind = GD_SITE_EMBED, .layer = -1, .name = names->outer[GD_OUTER_EMBED].hf};
    make_tables(model, files);
    files->hidden_site = (struct gd_site){.kind = GD_SITE_HIDDEN, .layer = -1, .name = names->base};
}
