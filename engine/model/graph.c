/* graph.c - what the graphs of all bodies share: inputs, tables. */
#include "engine/model/family.h"
#include "engine/model/files.h"
#include "engine/tensor/ops.h"

void gd_model_inputs_create(struct gd_model_inputs *inputs, struct gd_graph *graph, const struct gd_model *model,
                            int tokens, int segments, bool cached)
{
    *inputs = (struct gd_model_inputs){
        .ids = gd_graph_input(graph, "ids", GD_I32, 1, (int64_t[]){tokens}),
        .positions = gd_graph_input(graph, "positions", GD_I32, 1, (int64_t[]){tokens}),
        .inv_freq = gd_graph_input(graph, "inv_freq", GD_F32, 1, (int64_t[]){gd_model_frequencies(&model->config)}),
    };
    if (model->config.types > 0)
        inputs->types = gd_graph_input(graph, "types", GD_I32, 1, (int64_t[]){tokens});
    if (cached)
        inputs->cache = gd_graph_handle(graph, "cache");
    if (cached && gd_model_encodes(model))
        inputs->cross = gd_graph_handle(graph, "cross");
    if (cached)
        return;
    inputs->cu_seqlens = gd_graph_input(graph, "cu_seqlens", GD_I32, 1, (int64_t[]){(int64_t)segments + 1});
}

void gd_model_inputs_encoder(struct gd_model_inputs *inputs, struct gd_graph *graph, int tokens, int segments)
{
    inputs->encoder_ids = gd_graph_input(graph, "encoder_ids", GD_I32, 1, (int64_t[]){tokens});
    inputs->encoder_cu_seqlens = gd_graph_input(graph, "encoder_cu_seqlens", GD_I32, 1, (int64_t[]){(int64_t)segments + 1});
}

bool gd_model_is_encoder(const struct gd_model *model)
{
    return model->config.family->body->encoder;
}

struct gd_value *gd_model_hidden(struct gd_graph *graph, const struct gd_model *model,
                                 const struct gd_model_inputs *inputs, const struct gd_sites *sites)
{
    return model->config.family->body->hidden(graph, model, inputs, sites);
}

struct gd_value *gd_model_table(struct gd_graph *graph, const struct gd_model *model, const struct gd_weight *weight,
                                const struct gd_sites *sites)
{
    const struct gd_site *site = gd_model_table_site(model, weight);
    struct gd_value *w = gd_graph_weight(graph, site->weight);
    return sites != NULL && sites->table != NULL ? sites->table(sites->context, graph, site, w) : w;
}

struct gd_value *gd_model_embedding(struct gd_graph *graph, const struct gd_model *model, const struct gd_sites *sites)
{
    return gd_model_table(graph, model, model->embed, sites);
}

struct gd_value *gd_model_head(struct gd_graph *graph, const struct gd_model *model, const struct gd_sites *sites)
{
    return gd_model_table(graph, model, model->head, sites);
}

struct gd_value *gd_model_positions(struct gd_graph *graph, const struct gd_model *model, const struct gd_sites *sites)
{
    return gd_model_table(graph, model, model->positions, sites);
}

struct gd_value *gd_model_cap(struct gd_graph *graph, const struct gd_model *model, struct gd_value *logits)
{
    double cap = model->config.logit_softcap;
    return cap == 0 ? logits : gd_scale(graph, gd_activation(graph, gd_scale(graph, logits, 1 / cap), GD_ACTIVATION_TANH), cap);
}

void gd_model_embedding_row(const struct gd_model *model, int64_t id, float *out)
{
    gd_weight_row_f32(model->embed, id, out);
    for (int i = 0; i < model->config.embed_width; i++)
        out[i] *= (float)model->config.embed_scale;
}
