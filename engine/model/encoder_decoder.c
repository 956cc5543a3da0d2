/*
 * encoder_decoder.c - the parts and the graph of T5 (Raffel et al. 2020): an encoder whose rows see each other, and a decoder
 * whose rows see those before them and all of the encoder's.
 *
 *   encoder   u = x + Wo attention(n1)            y = u + F(n3)
 *   decoder   u = x + Wo attention(n1)            w = u + Wo' attention(Wq' n2, Wk' e, Wv' e)      y = w + F(n3)
 *   F(n) = Wdown f(Wup n), or Wdown (f(Wgate n) * (Wup n));  n = RMSNorm; e: the encoder's rows after its last norm
 *
 * Scores are not scaled; one table of each stack adds a number for each head and distance to the scores of all its layers'
 * attention among their own rows (ops/attention_bias.h). Layers [0, encoder_layers) are the encoder's.
 */
#include "engine/model/builder.h"
#include <math.h>

#define ENCODER .stack = GD_STACK_ENCODER
#define DECODER .stack = GD_STACK_DECODER

static const struct gd_part linears[GD_T5_LINEAR_COUNT] = {
    [GD_T5_Q] = {GD_EXTENT_QUERY, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(q)},
    [GD_T5_K] = {GD_EXTENT_KV, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(k)},
    [GD_T5_V] = {GD_EXTENT_KV, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(v)},
    [GD_T5_O] = {GD_EXTENT_WIDTH, GD_EXTENT_QUERY, GD_ROWS_PLAIN, GD_PART_WEIGHT(o)},
    [GD_T5_CROSS_Q] = {GD_EXTENT_QUERY, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(cross_q), DECODER},
    [GD_T5_CROSS_K] = {GD_EXTENT_KV, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(cross_k), DECODER},
    [GD_T5_CROSS_V] = {GD_EXTENT_KV, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(cross_v), DECODER},
    [GD_T5_CROSS_O] = {GD_EXTENT_WIDTH, GD_EXTENT_QUERY, GD_ROWS_PLAIN, GD_PART_WEIGHT(cross_o), DECODER},
    [GD_T5_ENCODER_GATE] = {GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(gate), GD_PART_IF(gated), ENCODER},
    [GD_T5_ENCODER_UP] = {GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(up), GD_PART_IF(gated), ENCODER},
    [GD_T5_ENCODER_PLAIN] = {GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(up), GD_PART_UNLESS(gated), ENCODER},
    [GD_T5_ENCODER_DOWN] = {GD_EXTENT_WIDTH, GD_EXTENT_FFN, GD_ROWS_PLAIN, GD_PART_WEIGHT(down), ENCODER},
    [GD_T5_DECODER_GATE] = {GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(gate), GD_PART_IF(gated), DECODER},
    [GD_T5_DECODER_UP] = {GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(up), GD_PART_IF(gated), DECODER},
    [GD_T5_DECODER_PLAIN] = {GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(up), GD_PART_UNLESS(gated), DECODER},
    [GD_T5_DECODER_DOWN] = {GD_EXTENT_WIDTH, GD_EXTENT_FFN, GD_ROWS_PLAIN, GD_PART_WEIGHT(down), DECODER},
};

static const struct gd_part norms[GD_T5_NORM_COUNT] = {
    [GD_T5_NORM_INPUT] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_PART_WEIGHT(input_norm)},
    [GD_T5_NORM_CROSS] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_PART_WEIGHT(cross_norm), DECODER},
    [GD_T5_NORM_ENCODER_POST] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_PART_WEIGHT(post_norm), ENCODER},
    [GD_T5_NORM_DECODER_POST] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_PART_WEIGHT(post_norm), DECODER},
};

static const struct gd_part outer[GD_OUTER_COUNT] = {
    [GD_OUTER_EMBED] = {GD_EXTENT_VOCAB, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(embed)},
    [GD_OUTER_NORM] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(final_norm)},
    [GD_OUTER_HEAD] = {GD_EXTENT_VOCAB, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(head), GD_PART_UNLESS(tied)},
    [GD_OUTER_ENCODER_NORM] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(encoder_norm)},
    [GD_OUTER_ENCODER_BIAS] = {GD_EXTENT_BUCKETS, GD_EXTENT_HEADS, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(encoder_bias)},
    [GD_OUTER_DECODER_BIAS] = {GD_EXTENT_BUCKETS, GD_EXTENT_HEADS, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(decoder_bias)},
};

static const struct gd_class classes[] = {{"ForConditionalGeneration", GD_HEAD_VOCABULARY}, {NULL, GD_HEAD_NONE}};

const struct gd_body gd_body_encoder_decoder = {
    .classes = classes,
    .linears = linears,
    .norms = norms,
    .linear_count = GD_T5_LINEAR_COUNT,
    .norm_count = GD_T5_NORM_COUNT,
    .outer = outer,
    .hidden = gd_encoder_decoder_hidden,
};

/* One stack at a time. */
struct builder {
    struct gd_builder base;
    bool decoder;
};

static struct builder begin(struct gd_graph *graph, const struct gd_model *model, const struct gd_model_inputs *inputs,
                            const struct gd_sites *sites)
{
    return (struct builder){{graph, model, model->files, inputs, sites != NULL ? *sites : (struct gd_sites){0}}, false};
}

static struct gd_value *linear(const struct builder *b, int layer, int part, struct gd_value *x)
{
    return gd_build_linear(&b->base, layer, part, x);
}

static struct gd_value *attention(const struct builder *b, int layer, struct gd_value *x)
{
    const struct gd_model *model = b->base.model;
    const struct gd_model_config *config = &model->config;
    struct gd_value *q = linear(b, layer, GD_T5_Q, x), *k = linear(b, layer, GD_T5_K, x), *v = linear(b, layer, GD_T5_V, x), *y;
    struct gd_attention_options options = {
        .heads = config->heads, .kv_heads = config->kv_heads, .head_dim = config->head_dim, .scale = 1, .bidirectional = !b->decoder,
        .bias = gd_model_table(b->base.graph, model, b->decoder ? model->decoder_bias : model->encoder_bias, &b->base.sites),
        .bias_distance = config->bias_distance,
    };
    if (b->decoder && b->base.inputs->cache != NULL)
        y = gd_attention_cached(b->base.graph, q, k, v, b->base.inputs->cache, layer - config->encoder_layers, &options);
    else
        y = gd_attention(b->base.graph, q, k, v, b->decoder ? b->base.inputs->cu_seqlens : b->base.inputs->encoder_cu_seqlens, NULL, &options);
    return linear(b, layer, GD_T5_O, y);
}

/* encoded: the encoder's rows, or NULL where their keys and values are in the pages already. */
static struct gd_value *cross_attention(const struct builder *b, int layer, struct gd_value *x, struct gd_value *encoded)
{
    const struct gd_model_config *config = &b->base.model->config;
    struct gd_attention_options options = {
        .heads = config->heads, .kv_heads = config->kv_heads, .head_dim = config->head_dim, .scale = 1,
    };
    struct gd_value *q = linear(b, layer, GD_T5_CROSS_Q, x), *y;
    if (b->base.inputs->cross != NULL) {
        y = gd_attention_cached(b->base.graph, q, NULL, NULL, b->base.inputs->cross, layer - config->encoder_layers, &options);
    } else {
        options.key_cu_seqlens = b->base.inputs->encoder_cu_seqlens;
        struct gd_value *k = linear(b, layer, GD_T5_CROSS_K, encoded), *v = linear(b, layer, GD_T5_CROSS_V, encoded);
        y = gd_attention(b->base.graph, q, k, v, b->base.inputs->cu_seqlens, NULL, &options);
    }
    return linear(b, layer, GD_T5_CROSS_O, y);
}

static struct gd_value *feed_forward(const struct builder *b, int layer, struct gd_value *x)
{
    const struct gd_model_config *config = &b->base.model->config;
    int gate = b->decoder ? GD_T5_DECODER_GATE : GD_T5_ENCODER_GATE, up = b->decoder ? GD_T5_DECODER_UP : GD_T5_ENCODER_UP;
    int plain = b->decoder ? GD_T5_DECODER_PLAIN : GD_T5_ENCODER_PLAIN, down = b->decoder ? GD_T5_DECODER_DOWN : GD_T5_ENCODER_DOWN;
    struct gd_value *inner = gd_activation(b->base.graph, linear(b, layer, config->gated ? gate : plain, x), config->activation);
    if (config->gated)
        inner = gd_mul(b->base.graph, inner, linear(b, layer, up, x));
    return linear(b, layer, down, inner);
}

static struct gd_value *layer_rows(const struct builder *b, int layer, struct gd_value *x, struct gd_value *encoded)
{
    x = gd_add(b->base.graph, x, attention(b, layer, gd_build_layer_norm(&b->base, layer, GD_T5_NORM_INPUT, x)));
    if (b->decoder)
        x = gd_add(b->base.graph, x, cross_attention(b, layer, gd_build_layer_norm(&b->base, layer, GD_T5_NORM_CROSS, x), encoded));
    int post = b->decoder ? GD_T5_NORM_DECODER_POST : GD_T5_NORM_ENCODER_POST;
    return gd_add(b->base.graph, x, feed_forward(b, layer, gd_build_layer_norm(&b->base, layer, post, x)));
}

/* Layers [first, end) and what the stack ends with. */
static struct gd_value *stack(const struct builder *b, struct gd_value *ids, int first, int end, struct gd_value *encoded)
{
    struct gd_value *table = gd_model_embedding(b->base.graph, b->base.model, &b->base.sites);
    struct gd_value *x = gd_build_embedded(&b->base, gd_embed(b->base.graph, table, ids));
    for (int layer = first; layer < end; layer++) {
        gd_graph_mark(b->base.graph);
        x = layer_rows(b, layer, x, encoded);
    }
    gd_graph_mark(b->base.graph);
    if (b->decoder)
        return gd_build_outer_norm(&b->base, x);
    return gd_build_norm(&b->base, &b->base.files->norm_sites[gd_norm_index(&b->base.model->config, b->base.model->config.layers, 0) + 1], x);
}

struct gd_value *gd_model_encode(struct gd_graph *graph, const struct gd_model *model, const struct gd_model_inputs *inputs,
                                 const struct gd_sites *sites, struct gd_value **kv)
{
    const struct gd_model_config *config = &model->config;
    struct builder b = begin(graph, model, inputs, sites);
    if (inputs->encoder_ids == NULL || inputs->encoder_cu_seqlens == NULL)
        return gd_graph_fail(graph, "'%s' has an encoder, which has nothing to read", model->id);
    struct gd_value *encoded = stack(&b, inputs->encoder_ids, 0, config->encoder_layers, NULL);
    for (int layer = config->encoder_layers; kv != NULL && layer < config->layers; layer++) {
        *kv++ = linear(&b, layer, GD_T5_CROSS_K, encoded);
        *kv++ = linear(&b, layer, GD_T5_CROSS_V, encoded);
    }
    return encoded;
}

struct gd_value *gd_encoder_decoder_hidden(struct gd_graph *graph, const struct gd_model *model,
                                           const struct gd_model_inputs *inputs, const struct gd_sites *sites)
{
    const struct gd_model_config *config = &model->config;
    struct builder b = begin(graph, model, inputs, sites);
    struct gd_value *encoded = inputs->cross == NULL ? gd_model_encode(graph, model, inputs, sites, NULL) : NULL;
    b.decoder = true;
    struct gd_value *h = stack(&b, inputs->ids, config->encoder_layers, config->layers, encoded);
    if (config->scaled_output)
        h = gd_scale(graph, h, 1 / sqrt(config->width));
    return gd_build_hidden(&b.base, h);
}
