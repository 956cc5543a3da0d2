/*
 * encoder.c - the graph of an encoder: BERT (Devlin et al. 2019) and its relatives by flags, through the sites.
 *
 *   x = LN(word + position + type)
 *   u = LN(x + Wo attention(Wq x, Wk x, Wv x)),   y = LN(u + Wdown f(Wup u))
 *
 * Rows see all rows of their segment. Scores are scaled by 1/sqrt(dh).
 */
#include "engine/model/encoder.h"
#include "engine/model/builder.h"
#include <assert.h>
#include <math.h>

static const struct gd_part linears[GD_LINEAR_COUNT] = {
    [GD_LINEAR_Q] = {GD_EXTENT_QUERY, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(q), GD_PART_BIAS(q_bias, qkv_bias)},
    [GD_LINEAR_K] = {GD_EXTENT_KV, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(k), GD_PART_BIAS(k_bias, qkv_bias)},
    [GD_LINEAR_V] = {GD_EXTENT_KV, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(v), GD_PART_BIAS(v_bias, qkv_bias)},
    [GD_LINEAR_O] = {GD_EXTENT_WIDTH, GD_EXTENT_QUERY, GD_ROWS_PLAIN, GD_PART_WEIGHT(o), GD_PART_BIAS(o_bias, o_bias)},
    [GD_LINEAR_UP] = {GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(up), GD_PART_BIAS(up_bias, mlp_bias)},
    [GD_LINEAR_DOWN] = {GD_EXTENT_WIDTH, GD_EXTENT_FFN, GD_ROWS_PLAIN, GD_PART_WEIGHT(down), GD_PART_BIAS(down_bias, mlp_bias)},
};

static const struct gd_part norms[GD_NORM_COUNT] = {
    [GD_NORM_INPUT] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_PART_WEIGHT(input_norm),
                       GD_PART_BIAS(input_norm_bias, layer_norm)},
    [GD_NORM_POST] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_PART_WEIGHT(post_norm),
                      GD_PART_BIAS(post_norm_bias, layer_norm)},
};

static const struct gd_part outer[GD_OUTER_COUNT] = {
    [GD_OUTER_EMBED] = {GD_EXTENT_VOCAB, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(embed)},
    [GD_OUTER_POSITIONS] = {GD_EXTENT_POSITIONS, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(positions)},
    [GD_OUTER_TYPES] = {GD_EXTENT_TYPES, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(types)},
    [GD_OUTER_NORM] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(final_norm),
                       GD_OUTER_BIAS(final_norm_bias, layer_norm)},
    [GD_OUTER_POOL] = {GD_EXTENT_WIDTH, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(pool), GD_OUTER_BIAS(pool_bias, pools),
                       GD_PART_IF(pools), .optional = true},
    [GD_OUTER_LABEL_POOL] = {GD_EXTENT_WIDTH, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(pool),
                             GD_OUTER_BIAS(pool_bias, label_pools), GD_PART_IF(label_pools)},
    [GD_OUTER_LABELS] = {GD_EXTENT_LABELS, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(label_head),
                         GD_OUTER_BIAS(label_bias, classifies), GD_PART_IF(classifies)},
    [GD_OUTER_MASK_DENSE] = {GD_EXTENT_WIDTH, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(mask_dense),
                             GD_OUTER_BIAS(mask_dense_bias, masks), GD_PART_IF(masks)},
    [GD_OUTER_MASK_NORM] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(mask_norm),
                            GD_OUTER_BIAS(mask_norm_bias, masks), GD_PART_IF(masks)},
    [GD_OUTER_MASK_BIAS] = {GD_EXTENT_VOCAB, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(mask_bias), GD_PART_IF(masks),
                            .tensor = "bias"},
};

static const struct gd_class classes[] = {
    {"Model", GD_HEAD_NONE}, {"ForMaskedLM", GD_HEAD_MASKED}, {"ForSequenceClassification", GD_HEAD_LABELS},
    {"ForPreTraining", GD_HEAD_MASKED}, /* with a head for the next sentence, which is not read */
    {NULL, GD_HEAD_NONE}};

static struct gd_value *attention(const struct gd_builder *b, int layer, struct gd_value *x)
{
    const struct gd_model_config *config = &b->model->config;
    struct gd_attention_options options = {.heads = config->heads, .kv_heads = config->kv_heads, .head_dim = config->head_dim,
                                           .scale = 1 / sqrt(config->head_dim), .bidirectional = true};
    struct gd_value *q = gd_build_linear(b, layer, GD_LINEAR_Q, x), *k = gd_build_linear(b, layer, GD_LINEAR_K, x);
    struct gd_value *v = gd_build_linear(b, layer, GD_LINEAR_V, x);
    struct gd_value *y = gd_attention(b->graph, q, k, v, b->inputs->cu_seqlens, NULL, &options);
    return gd_build_linear(b, layer, GD_LINEAR_O, y);
}

static struct gd_value *encoder_layer(const struct gd_builder *b, int layer, struct gd_value *x)
{
    struct gd_graph *g = b->graph;
    struct gd_value *a = gd_build_block(b, layer, 0, x, attention(b, layer, x));
    struct gd_value *u = gd_build_layer_norm(b, layer, GD_NORM_INPUT, gd_add(g, x, a));
    struct gd_value *inner = gd_activation(g, gd_build_linear(b, layer, GD_LINEAR_UP, u), b->model->config.activation);
    struct gd_value *f = gd_build_block(b, layer, 1, u, gd_build_linear(b, layer, GD_LINEAR_DOWN, inner));
    return gd_build_layer_norm(b, layer, GD_NORM_POST, gd_add(g, u, f));
}

static struct gd_value *hidden(struct gd_graph *graph, const struct gd_model *model, const struct gd_model_inputs *inputs,
                               const struct gd_sites *sites)
{
    struct gd_builder b = {graph, model, model->files, inputs, sites != NULL ? *sites : (struct gd_sites){0}};
    assert(inputs->cu_seqlens != NULL && inputs->prefix == NULL);
    struct gd_value *word = gd_build_embedded(&b, gd_embed(graph, gd_model_embedding(graph, model, sites), inputs->ids));
    struct gd_value *place = gd_shift(graph, inputs->positions, model->config.first_position);
    struct gd_value *position = gd_embed(graph, gd_model_positions(graph, model, sites), place);
    struct gd_value *type = gd_embed(graph, gd_model_table(graph, model, model->types, sites), inputs->types);
    struct gd_value *x = gd_build_outer_norm(&b, gd_add(graph, gd_add(graph, word, type), position));
    for (int layer = 0; layer < model->config.layers; layer++)
        x = encoder_layer(&b, layer, x);
    return gd_build_hidden(&b, x);
}

const struct gd_body gd_body_encoder = {
    .encoder = true,
    .linears = linears,
    .norms = norms,
    .linear_count = GD_LINEAR_COUNT,
    .norm_count = GD_NORM_COUNT,
    .outer = outer,
    .classes = classes,
    .hidden = hidden,
};

/* ---- heads ---- */

static struct gd_value *dense(struct gd_graph *g, struct gd_value *x, struct gd_weight *w, struct gd_weight *bias)
{
    return gd_site_linear_base(g, x, gd_graph_weight(g, w), bias != NULL ? gd_graph_weight(g, bias) : NULL);
}

struct gd_value *gd_encoder_pooled(struct gd_graph *graph, const struct gd_model *model, struct gd_value *rows)
{
    return gd_activation(graph, dense(graph, rows, model->pool, model->pool_bias), GD_ACTIVATION_TANH);
}

struct gd_value *gd_model_label_logits(struct gd_graph *graph, const struct gd_model *model, struct gd_value *rows)
{
    return dense(graph, rows, model->label_head, model->label_bias);
}

struct gd_value *gd_encoder_mask_logits(struct gd_graph *graph, const struct gd_model *model, struct gd_value *hidden)
{
    const struct gd_model_config *config = &model->config;
    struct gd_value *x = gd_activation(graph, dense(graph, hidden, model->mask_dense, model->mask_dense_bias), config->activation);
    x = gd_layer_norm(graph, x, gd_graph_weight(graph, model->mask_norm), gd_graph_weight(graph, model->mask_norm_bias), config->norm_eps);
    return dense(graph, x, model->embed, model->mask_bias);
}
