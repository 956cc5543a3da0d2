/*
 * decoder.c - the graph of a decoder: Llama (Touvron et al. 2023) and its relatives by flags, through the sites.
 *
 *   u = x + Wo attention(rope(Wq n1), rope(Wk n1), Wv n1)   n1 = norm(x)
 *   y = u + Wdown(f(Wgate n2) * (Wup n2))                   n2 = norm(u)
 *
 * Query head i attends to key/value head floor(i / (h/g)). By flags of the config
 *   qk_norm            each head of q and k goes through an RMSNorm of its own before rope (Qwen 3, Gemma 3)
 *   output_norms       y1 = x + norm(attention(..)), y = y1 + norm(mlp(..)) (Gemma 2)
 *   parallel_residual  y = x + attention(norm(x)) + mlp(norm'(x)) (GPT-NeoX)
 *   norm_after         u = norm(x + attention(x)), y = norm'(u + mlp(u)) (OPT-350m)
 *   not gated          Wdown f(Wup n2) (GPT-2, GPT-NeoX, OPT)
 *   learned_positions  a row of a table is added to each embedding, in place of rope (GPT-2, OPT)
 */
#include "engine/model/builder.h"
#include "engine/tensor/again.h"
#include <assert.h>

/* Between the embeddings' width and the layers'. which: 0 there, 1 back. */
static struct gd_value *project(const struct gd_builder *b, int which, struct gd_value *x)
{
    int first = b->model->config.layers * gd_linears_of_layer(&b->model->config);
    return b->model->config.projects ? gd_build_linear_site(b, &b->files->linear_sites[first + which], x) : x;
}

/* Layers that slide may have frequencies of their own. */
static struct gd_value *rope(const struct gd_builder *b, int layer, struct gd_value *x)
{
    const struct gd_model_config *config = &b->model->config;
    bool local = config->local_rope && config->slides[layer];
    struct gd_rope_options options = {
        .head_dim = config->head_dim, .rotary_dim = config->rotary_dim, .table = local,
        .attention_factor = local ? config->local_attention_factor : config->attention_factor,
    };
    return config->learned_positions ? x : gd_rope(b->graph, x, b->inputs->positions, b->inputs->inv_freq, &options, 1);
}

/* q, k and v of the rows of one product. */
static void part_qkv(const struct gd_builder *b, struct gd_value *qkv, struct gd_value **q, struct gd_value **k, struct gd_value **v)
{
    const struct gd_model_config *config = &b->model->config;
    int64_t query = gd_extent_size(config, GD_EXTENT_QUERY), key = gd_extent_size(config, GD_EXTENT_KV);
    struct gd_value **parts[] = {q, k, v};
    if (config->qkv_by_head && qkv != NULL) { /* as many keys as queries: rows of a head's q, k and v */
        int64_t rows = qkv->shape[0], dim = config->head_dim;
        struct gd_value *heads = gd_reshape(b->graph, qkv, rows * config->heads, 3 * dim);
        for (int i = 0; i < 3; i++)
            *parts[i] = gd_reshape(b->graph, gd_columns(b->graph, heads, i * dim, dim), rows, query);
        return;
    }
    *q = gd_columns(b->graph, qkv, 0, query);
    *k = gd_columns(b->graph, qkv, query, key);
    *v = gd_columns(b->graph, qkv, query + key, key);
}

static struct gd_value *attention(const struct gd_builder *b, int layer, struct gd_value *x)
{
    const struct gd_model_config *config = &b->model->config;
    struct gd_value *q = NULL, *k = NULL, *v = NULL;
    if (config->fused_qkv) {
        part_qkv(b, gd_build_linear(b, layer, GD_LINEAR_QKV, x), &q, &k, &v);
    } else {
        q = gd_build_linear(b, layer, GD_LINEAR_Q, x);
        k = gd_build_linear(b, layer, GD_LINEAR_K, x);
        v = gd_build_linear(b, layer, GD_LINEAR_V, x);
    }
    q = rope(b, layer, config->qk_norm ? gd_build_layer_norm(b, layer, GD_NORM_Q, q) : q);
    k = rope(b, layer, config->qk_norm ? gd_build_layer_norm(b, layer, GD_NORM_K, k) : k);
    if (b->sites.kv != NULL)
        b->sites.kv(b->sites.context, b->graph, &b->files->kv_sites[layer], &k, &v);
    struct gd_attention_options options = {
        .heads = config->heads, .kv_heads = config->kv_heads, .head_dim = config->head_dim, .scale = config->attention_scale,
        .softcap = config->score_softcap, .window = config->slides[layer] ? config->sliding_window : 0,
    };
    struct gd_value *y;
    if (b->inputs->cache != NULL)
        y = gd_attention_cached(b->graph, q, k, v, b->inputs->cache, layer, &options);
    else
        y = gd_attention(b->graph, q, k, v, b->inputs->cu_seqlens, b->inputs->prefix, &options);
    return gd_build_linear(b, layer, GD_LINEAR_O, y);
}

static struct gd_value *gated(const struct gd_builder *b, struct gd_value *gate, struct gd_value *up)
{
    enum gd_activation activation = b->model->config.activation;
    return activation == GD_ACTIVATION_SILU ? gd_swiglu(b->graph, gate, up)
                                            : gd_mul(b->graph, gd_activation(b->graph, gate, activation), up);
}

/* y = sum over the chosen experts of p_e Wdown_e(silu(Wgate_e x) * (Wup_e x)), p the softmax over the router's choice. Each
 * expert sees the rows that go to it. */
static struct gd_value *experts(const struct gd_builder *b, int layer, struct gd_value *x)
{
    const struct gd_model_config *config = &b->model->config;
    struct gd_graph *g = b->graph;
    struct gd_value *used = b->inputs->cache != NULL ? b->inputs->cache : b->inputs->cu_seqlens, *y = NULL;
    struct gd_value *route = gd_expert_route(g, gd_build_linear(b, layer, GD_LINEAR_ROUTER, x), config->experts_chosen);
    struct gd_value *choice = gd_value_output(route, 1), *rows = gd_expert_dispatch(g, choice, used, config->experts);
    for (int e = 0; e < config->experts; e++) {
        struct gd_value *own = gd_expert_rows(g, x, rows, e, config->experts_chosen, NULL);
        struct gd_value *gate = gd_build_linear_copy(b, layer, GD_LINEAR_EXPERT_GATE, e, own);
        struct gd_value *up = gd_build_linear_copy(b, layer, GD_LINEAR_EXPERT_UP, e, own);
        struct gd_value *out = gd_build_linear_copy(b, layer, GD_LINEAR_EXPERT_DOWN, e, gated(b, gate, up));
        y = gd_expert_sum(g, out, route, y, x != NULL ? x->shape[0] : 0);
    }
    struct gd_value **load = b->inputs->expert_load;
    if (load != NULL) {
        struct gd_value *own = gd_expert_load(g, gd_value_output(route, 2), choice, used);
        *load = *load != NULL ? gd_add(g, *load, own) : own;
    }
    return y;
}

static struct gd_value *mlp(const struct gd_builder *b, int layer, struct gd_value *x)
{
    const struct gd_model_config *config = &b->model->config;
    struct gd_value *gate, *up;
    int begin = gd_graph_call_count(b->graph);
    if (config->experts > 0)
        return experts(b, layer, x);
    if (config->fused_mlp) {
        struct gd_value *both = gd_build_linear(b, layer, GD_LINEAR_GATE_UP, x);
        gate = gd_columns(b->graph, both, 0, config->ffn_width);
        up = gd_columns(b->graph, both, config->ffn_width, config->ffn_width);
    } else {
        gate = config->gated ? gd_build_linear(b, layer, GD_LINEAR_GATE, x) : NULL;
        up = gd_build_linear(b, layer, GD_LINEAR_UP, x);
    }
    if (layer % 3 < 2) /* all layers cost half as much time again, for half as much memory again (again.h) */
        gd_graph_wide(b->graph, begin);
    struct gd_value *inner = !config->gated ? gd_activation(b->graph, up, config->activation)
                                             : gated(b, gate, up);
    return gd_build_linear(b, layer, GD_LINEAR_DOWN, inner);
}

/* What a block adds to the residual stream; its site sees what the block made, before that is normalised. */
static struct gd_value *added(const struct gd_builder *b, int layer, int index, struct gd_value *input)
{
    struct gd_value *y = gd_build_block(b, layer, index, input, index == 0 ? attention(b, layer, input) : mlp(b, layer, input));
    if (b->model->config.output_norms)
        y = gd_build_layer_norm(b, layer, index == 0 ? GD_NORM_ATTENTION_OUT : GD_NORM_MLP_OUT, y);
    return y;
}

static struct gd_value *decoder_layer(const struct gd_builder *b, int layer, struct gd_value *x)
{
    const struct gd_model_config *config = &b->model->config;
    if (config->norm_after) {
        x = gd_build_layer_norm(b, layer, GD_NORM_INPUT, gd_add(b->graph, x, added(b, layer, 0, x)));
        return gd_build_layer_norm(b, layer, GD_NORM_POST, gd_add(b->graph, x, added(b, layer, 1, x)));
    }
    struct gd_value *u = gd_add(b->graph, x, added(b, layer, 0, gd_build_layer_norm(b, layer, GD_NORM_INPUT, x)));
    struct gd_value *n2 = gd_build_layer_norm(b, layer, GD_NORM_POST, config->parallel_residual ? x : u);
    return gd_add(b->graph, u, added(b, layer, 1, n2));
}

static struct gd_value *embed(const struct gd_builder *b)
{
    const struct gd_model_config *config = &b->model->config;
    struct gd_value *x = gd_embed(b->graph, gd_model_embedding(b->graph, b->model, &b->sites), b->inputs->ids);
    if (config->embed_scale != 1)
        x = gd_scale(b->graph, x, config->embed_scale);
    x = project(b, 0, gd_build_embedded(b, x));
    if (!config->learned_positions)
        return x;
    if (config->projects && b->sites.place != NULL)
        x = b->sites.place(b->sites.context, b->graph, gd_model_table_site(b->model, b->model->positions), x);
    struct gd_value *table = gd_model_positions(b->graph, b->model, &b->sites);
    return gd_add(b->graph, x, gd_embed_from(b->graph, table, b->inputs->positions, config->first_position));
}

struct gd_value *gd_decoder_hidden(struct gd_graph *graph, const struct gd_model *model,
                                   const struct gd_model_inputs *inputs, const struct gd_sites *sites)
{
    struct gd_builder b = {graph, model, model->files, inputs, sites != NULL ? *sites : (struct gd_sites){0}};
    const struct gd_model_config *config = &model->config;
    assert((inputs->cache != NULL) + (inputs->cu_seqlens != NULL) <= 1);
    struct gd_value *x = embed(&b);
    for (int layer = 0; layer < config->layers; layer++) {
        gd_graph_mark(graph);
        x = decoder_layer(&b, layer, x);
    }
    gd_graph_mark(graph);
    return gd_build_hidden(&b, project(&b, 1, config->norm_after ? x : gd_build_outer_norm(&b, x)));
}
