/*
 * decoder.c - the graph of a decoder: Llama (Touvron et al. 2023) and its relatives by flags, through the sites.
 *
 *   u = x + Wo attention(rope(Wq n1), rope(Wk n1), Wv n1)   n1 = RMSNorm(x)
 *   y = u + Wdown(silu(Wgate n2) * (Wup n2))                n2 = RMSNorm(u)
 *
 * With qk_norm each head of q and k goes through an RMSNorm of its own before rope (Qwen3). Query head i attends to key/value head floor(i / (h/g)); scores are scaled by 1/sqrt(dh).
 */
#include "engine/model/files.h"
#include "engine/model/parts.h"
#include "engine/tensor/ops.h"
#include <assert.h>
#include <math.h>

struct builder {
    struct gd_graph *graph;
    const struct gd_model *model;
    const struct gd_files *files;
    const struct gd_model_inputs *inputs;
    struct gd_sites sites;
};

/* Of rows of x, or of as many heads as fit in a row. */
static struct gd_value *norm(const struct builder *b, const struct gd_site *site, struct gd_value *x)
{
    struct gd_value *w = gd_graph_weight(b->graph, site->weight);
    struct gd_value *added = site->bias != NULL ? gd_graph_weight(b->graph, site->bias) : NULL;
    if (b->sites.norm != NULL)
        return b->sites.norm(b->sites.context, b->graph, site, x, w, added, b->model->config.norm_eps);
    return gd_site_norm_base(b->graph, site, x, w, added, b->model->config.norm_eps);
}

static struct gd_value *layer_norm(const struct builder *b, int layer, int part, struct gd_value *x)
{
    const struct gd_model_config *config = &b->model->config;
    int index = layer * gd_norms_of_layer(config) + gd_norms_before(config, part);
    return norm(b, &b->files->norm_sites[index], x);
}

static struct gd_value *linear(const struct builder *b, int layer, int part, struct gd_value *x)
{
    const struct gd_site *site = &b->files->linear_sites[layer * gd_linears_of_layer(&b->model->config) +
                                                         gd_linears_before(&b->model->config, part)];
    struct gd_value *w = gd_graph_weight(b->graph, site->weight);
    struct gd_value *added = site->bias != NULL ? gd_graph_weight(b->graph, site->bias) : NULL;
    if (b->sites.linear != NULL)
        return b->sites.linear(b->sites.context, b->graph, site, x, w, added);
    return gd_site_linear_base(b->graph, x, w, added);
}

static struct gd_value *block(const struct builder *b, const struct gd_site *site, struct gd_value *input,
                              struct gd_value *output)
{
    if (b->sites.block == NULL)
        return output;
    return b->sites.block(b->sites.context, b->graph, site, input, output);
}

static struct gd_value *rope(const struct builder *b, struct gd_value *x)
{
    const struct gd_model_config *config = &b->model->config;
    return gd_rope(b->graph, x, b->inputs->positions, b->inputs->inv_freq, config->head_dim, config->attention_factor,
                   1);
}

static struct gd_value *attention(const struct builder *b, int layer, struct gd_value *x)
{
    const struct gd_model_config *config = &b->model->config;
    struct gd_value *q, *k, *v;
    if (config->fused) {
        struct gd_value *qkv = linear(b, layer, GD_LINEAR_QKV, x);
        int query = gd_extent_size(config, GD_EXTENT_QUERY), key = gd_extent_size(config, GD_EXTENT_KV);
        q = gd_columns(b->graph, qkv, 0, query);
        k = gd_columns(b->graph, qkv, query, key);
        v = gd_columns(b->graph, qkv, query + key, key);
    } else {
        q = linear(b, layer, GD_LINEAR_Q, x);
        k = linear(b, layer, GD_LINEAR_K, x);
        v = linear(b, layer, GD_LINEAR_V, x);
    }
    if (config->qk_norm) {
        q = layer_norm(b, layer, GD_NORM_Q, q);
        k = layer_norm(b, layer, GD_NORM_K, k);
    }
    q = rope(b, q);
    k = rope(b, k);
    if (b->sites.kv != NULL)
        b->sites.kv(b->sites.context, b->graph, &b->files->kv_sites[layer], &k, &v);
    struct gd_attention_options options = {
        .heads = config->heads, .kv_heads = config->kv_heads, .head_dim = config->head_dim, .scale = 1 / sqrt(config->head_dim),
        .window = config->slides[layer] ? config->sliding_window : 0,
    };
    struct gd_value *y;
    if (b->inputs->cache != NULL)
        y = gd_attention_cached(b->graph, q, k, v, b->inputs->cache, layer, &options);
    else
        y = gd_attention(b->graph, q, k, v, b->inputs->cu_seqlens, b->inputs->prefix, &options);
    return linear(b, layer, GD_LINEAR_O, y);
}

static struct gd_value *mlp(const struct builder *b, int layer, struct gd_value *x)
{
    const struct gd_model_config *config = &b->model->config;
    struct gd_value *gate, *up;
    if (config->fused) {
        struct gd_value *both = linear(b, layer, GD_LINEAR_GATE_UP, x);
        gate = gd_columns(b->graph, both, 0, config->ffn_width);
        up = gd_columns(b->graph, both, config->ffn_width, config->ffn_width);
    } else {
        gate = linear(b, layer, GD_LINEAR_GATE, x);
        up = linear(b, layer, GD_LINEAR_UP, x);
    }
    struct gd_value *inner = config->activation == GD_ACTIVATION_SILU
                                 ? gd_swiglu(b->graph, gate, up)
                                 : gd_mul(b->graph, gd_activation(b->graph, gate, config->activation), up);
    return linear(b, layer, GD_LINEAR_DOWN, inner);
}

static struct gd_value *decoder_layer(const struct builder *b, int layer, struct gd_value *x)
{
    const struct gd_site *blocks = &b->files->block_sites[2 * layer];
    struct gd_value *n1 = layer_norm(b, layer, GD_NORM_INPUT, x);
    struct gd_value *u = gd_add(b->graph, x, block(b, &blocks[0], n1, attention(b, layer, n1)));
    struct gd_value *n2 = layer_norm(b, layer, GD_NORM_POST, u);
    return gd_add(b->graph, u, block(b, &blocks[1], n2, mlp(b, layer, n2)));
}

struct gd_value *gd_decoder_hidden(struct gd_graph *graph, const struct gd_model *model,
                                   const struct gd_model_inputs *inputs, const struct gd_sites *sites)
{
    struct builder b = {graph, model, model->files, inputs, sites != NULL ? *sites : (struct gd_sites){0}};
    assert((inputs->cache != NULL) + (inputs->cu_seqlens != NULL) <= 1);
    struct gd_value *x = gd_embed(graph, gd_model_embedding(graph, model, sites), inputs->ids);
    if (b.sites.embed != NULL)
        x = b.sites.embed(b.sites.context, graph, &b.files->embed_site, x);
    for (int layer = 0; layer < model->config.layers; layer++) {
        gd_graph_mark(graph);
        x = decoder_layer(&b, layer, x);
    }
    gd_graph_mark(graph);
    struct gd_value *h = norm(&b, &b.files->norm_sites[model->config.layers * gd_norms_of_layer(&model->config)], x);
    if (b.sites.hidden != NULL)
        h = b.sites.hidden(b.sites.context, graph, &b.files->hidden_site, h);
    return h;
}
