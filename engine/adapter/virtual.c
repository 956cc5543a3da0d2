/* virtual.c - rows before the tokens of a sequence: in graphs of training, and as keys and values for serving. */
#include "engine/adapter/build.h"

#include "engine/base/alloc.h"
#include "engine/base/philox.h"
#include "engine/tensor/device.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

bool gd_graft_begin_virtual(struct gd_graft *graft, struct gd_error *err)
{
    return gd_graft_set_virtual(graft, (int)gd_adapter_value(&graft->config, "num_virtual_tokens"), "num_virtual_tokens", err);
}

bool gd_graft_set_virtual(struct gd_graft *graft, int count, const char *option, struct gd_error *err)
{
    int context = graft->model->config.context;
    char param[96];
    snprintf(param, sizeof(param), "adapter.%s", option);
    if (count < 1)
        return gd_fail_param(err, GD_INVALID, param, "%s is missing, empty or 0", option);
    if (count > context - 2) /* a token, and one to predict */
        return gd_fail_param(err, GD_INVALID, param,
                             "%d virtual tokens leave no room in the context of '%s', which holds %d: give at most %d", count,
                             graft->model->id, context, context - 2);
    graft->virtual_rows.count = count;
    return true;
}

void gd_graft_describe_virtual(const struct gd_graft *graft, int token_dim, int heads, cJSON *json)
{
    cJSON_AddNumberToObject(json, "token_dim", token_dim);
    cJSON_AddNumberToObject(json, "num_attention_heads", heads);
    cJSON_AddNumberToObject(json, "num_layers", graft->model->config.layers);
    cJSON_AddNumberToObject(json, "num_transformer_submodules", 1);
}

static bool encode(const struct gd_model *model, const char *text, struct gd_tokens *tokens, struct gd_error *err)
{
    return gd_tokenizer_encode(model->tokenizer, text, strlen(text), GD_SPECIAL_PARSE, true, tokens, err);
}

bool gd_graft_check_start(const struct gd_graft *graft, const char *option, bool wanted, const char *why, struct gd_error *err)
{
    const char *text = gd_adapter_text(&graft->config, option);
    char param[96];
    snprintf(param, sizeof(param), "adapter.%s", option);
    if (wanted && text == NULL)
        return gd_fail_param(err, GD_MISSING, param, "%s is missing: %s", option, why);
    if (!wanted && text != NULL)
        return gd_fail_param(err, GD_INVALID, param, "%s counts only if %s: leave it out or set that", option, why);
    if (text == NULL)
        return true;
    struct gd_tokens tokens = {0};
    bool ok = encode(graft->model, text, &tokens, err);
    if (ok && (tokens.count < 1 || tokens.count > graft->virtual_rows.count))
        ok = gd_fail_param(err, GD_INVALID, param, "%s has %d tokens for %d virtual ones: shorten it or set num_virtual_tokens to %d",
                           option, tokens.count, graft->virtual_rows.count, tokens.count);
    for (int i = 0; ok && i < tokens.count; i++)
        if (tokens.ids[i] >= graft->model->config.vocab)
            ok = gd_fail_param(err, GD_INVALID, param, "%s has token %d; the model's vocabulary has %d", option, tokens.ids[i],
                               graft->model->config.vocab);
    gd_tokens_release(&tokens);
    return ok;
}

void gd_fill_vocabulary(const struct gd_model *model, float *out, int count, uint64_t seed)
{
    uint64_t key = gd_philox_stream(GD_RANDOM_INIT, 0, 0);
    for (int i = 0; i < count; i++) {
        struct gd_philox word = gd_philox4(seed, key, (uint64_t)i);
        double place = gd_uniform_from_bits64(word.v[0], word.v[1]);
        gd_model_embedding_row(model, (int64_t)(place * model->config.vocab), out + (int64_t)i * model->config.embed_width);
    }
}

void gd_fill_text(const struct gd_model *model, float *out, int count, const char *text)
{
    struct gd_tokens tokens = {0};
    struct gd_error none = {0};
    bool encoded = encode(model, text, &tokens, &none); /* as it was when the graft was made */
    assert(encoded && tokens.count > 0);
    for (int i = 0; encoded && i < count; i++)
        gd_model_embedding_row(model, tokens.ids[i % tokens.count], out + (int64_t)i * model->config.embed_width);
    gd_tokens_release(&tokens);
}

struct gd_value *gd_graft_index(struct gd_graft_training *training, struct gd_graph *g, enum gd_row_index which, int64_t rows)
{
    static const char *const names[] = {[GD_ROW_VIRTUAL] = "virtual_index", [GD_ROW_TOKEN] = "token_index",
                                        [GD_ROW_TABLE] = "table_index"};
    if (training->index[which] == NULL)
        training->index[which] = gd_graph_input(g, names[which], GD_I32, 1, (int64_t[]){rows});
    return training->index[which];
}

struct gd_value *gd_graft_add_virtual(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x,
                                      struct gd_value *rows)
{
    if (x == NULL || rows == NULL)
        return NULL;
    struct gd_value *placed = gd_gather_rows(g, rows, gd_graft_index(training, g, GD_ROW_VIRTUAL, x->shape[0]));
    /* Cast last: gradients of all segments are then added in f32. */
    return gd_add(g, x, rows->dtype == x->dtype ? placed : gd_cast(g, placed, x->dtype));
}

struct gd_value *gd_graft_put_virtual(struct gd_graft_training *training, struct gd_graph *g, struct gd_value *x,
                                      struct gd_value *rows)
{
    if (x == NULL)
        return NULL;
    struct gd_value *tokens = gd_gather_rows(g, x, gd_graft_index(training, g, GD_ROW_TOKEN, x->shape[0]));
    return gd_graft_add_virtual(training, g, tokens, rows);
}

struct gd_value *gd_graft_layer(struct gd_graph *g, struct gd_value *x, struct gd_value *weight, struct gd_value *bias)
{
    struct gd_value *y = gd_matmul(g, x, false, weight, true, 1.0, NULL, GD_F32);
    return bias != NULL ? gd_add_row(g, y, bias) : y;
}

void gd_fill_layer(const struct gd_graft *graft, float *block, int weight, int bias, uint64_t seed)
{
    const struct gd_graft_param *w = &graft->params[weight];
    float bound = 1.0f / sqrtf((float)w->shape[1]);
    gd_fill_uniform(block + w->offset, w->shape[0] * w->shape[1], bound, seed, (uint32_t)weight);
    if (bias >= 0)
        gd_fill_uniform(block + graft->params[bias].offset, graft->params[bias].shape[0], bound, seed, (uint32_t)bias);
}

/* ---- values of a graft by themselves ---- */

static bool run_values(struct gd_graft_training *training, struct gd_plan *plan, float *block, struct gd_value *const *values,
                       float *const *out, int count, struct gd_error *err)
{
    struct gd_device_block arena = {0};
    if (!gd_device_reserve(&arena, gd_plan_arena_bytes(plan), "the values of an adapter", err))
        return false;
    gd_plan_attach(plan, arena.memory);
    gd_graft_training_bind(training, plan, block);
    bool ok = gd_plan_run(plan, NULL, err);
    for (int i = 0; ok && i < count; i++) {
        int64_t floats = values[i]->rank == 2 ? values[i]->shape[0] * values[i]->shape[1] : values[i]->shape[0];
        const float *from = gd_plan_read(plan, values[i], err);
        ok = from != NULL;
        if (ok)
            memcpy(out[i], from, (size_t)floats * sizeof(float));
    }
    gd_device_release(&arena);
    return ok;
}

bool gd_graft_compute(const struct gd_graft *graft, const float *block, gd_graft_values_fn build, float *const *out, int count,
                      struct gd_error *err)
{
    struct gd_graph *g = NULL;
    struct gd_plan *plan = NULL;
    struct gd_graft_training training;
    if (!gd_graph_create(&g, GD_F32, err))
        return false;
    struct gd_value **values = gd_alloc_array((size_t)count, sizeof(*values));
    gd_graft_training_sites(&training, g, graft, false);
    build(&training, g, training.params, values);
    bool ok = gd_graph_ok(g, err) && gd_plan_create(&plan, g, values, count, false, err) &&
              run_values(&training, plan, (float *)(uintptr_t)block, values, out, count, err);
    gd_plan_destroy(plan);
    gd_graph_destroy(g);
    gd_graft_training_release(&training);
    gd_free(values);
    return ok;
}

/* ---- keys and values for serving ---- */

/* The bare model over the virtual rows alone; what its layers attend to is kept. */
struct capture {
    struct gd_value *rows;       /* f32 [count, width] */
    struct gd_value **kept;      /* [2 * layers]: keys, values of layer 0, ... */
};

static struct gd_value *capture_embed(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x)
{
    const struct capture *capture = context;
    return gd_graph_act(g) == GD_F32 ? capture->rows : gd_cast(g, capture->rows, gd_graph_act(g));
}

static void capture_kv(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value **k, struct gd_value **v)
{
    const struct capture *capture = context;
    capture->kept[2 * site->layer] = *k;
    capture->kept[2 * site->layer + 1] = *v;
}

static bool run_capture(const struct gd_graft *graft, struct gd_graph *g, struct capture *capture, float *prefix,
                        bool is_long, struct gd_error *err)
{
    const struct gd_model_config *config = &graft->model->config;
    int count = graft->virtual_rows.count, layers = config->layers;
    int64_t kv_width = (int64_t)config->kv_heads * config->head_dim;
    struct gd_sites sites = {.context = capture, .embed = capture_embed, .kv = capture_kv};
    struct gd_model_inputs inputs;
    struct gd_plan *plan = NULL;
    struct gd_device_block arena = {0};
    gd_model_inputs_create(&inputs, g, graft->model, count, 1, false);
    capture->rows = gd_graph_input(g, "virtual_rows", GD_F32, 2, (int64_t[]){count, config->embed_width});
    gd_model_hidden(g, graft->model, &inputs, &sites);
    if (!gd_graph_ok(g, err) || !gd_plan_create(&plan, g, capture->kept, 2 * layers, false, err))
        return false;
    bool ok = gd_device_reserve(&arena, gd_plan_arena_bytes(plan), "the keys and values of virtual rows", err);
    if (ok) {
        int32_t *positions = gd_alloc_array((size_t)count, sizeof(int32_t)), bounds[2] = {0, count};
        int32_t *ids = gd_alloc_array((size_t)count, sizeof(int32_t));
        for (int i = 0; i < count; i++)
            positions[i] = is_long ? i | GD_POSITION_LONG : i;
        gd_plan_attach(plan, arena.memory);
        gd_plan_bind(plan, capture->rows, graft->block + graft->params[0].offset);
        gd_plan_bind(plan, inputs.ids, ids); /* their embeddings are not looked at */
        gd_plan_bind(plan, inputs.positions, positions);
        gd_plan_bind(plan, inputs.cu_seqlens, bounds);
        gd_plan_bind(plan, inputs.inv_freq, config->inv_freq);
        ok = gd_plan_run(plan, NULL, err);
        for (int i = 0; ok && i < 2 * layers; i++) {
            const void *kept = gd_plan_read(plan, capture->kept[i], err);
            ok = kept != NULL;
            if (ok)
                gd_convert_to_f32(prefix + i * count * kv_width, kept, capture->kept[i]->dtype, count * kv_width);
        }
        gd_free(positions);
        gd_free(ids);
    }
    gd_device_release(&arena);
    gd_plan_destroy(plan);
    return ok;
}

static bool capture_prefix(const struct gd_graft *graft, float *prefix, bool is_long, struct gd_error *err)
{
    struct gd_graph *g = NULL;
    if (!gd_graph_create(&g, gd_device()->compute, err))
        return false;
    struct capture capture = {.kept = gd_alloc_array((size_t)graft->model->config.layers * 2, sizeof(struct gd_value *))};
    bool ok = run_capture(graft, g, &capture, prefix, is_long, err);
    gd_graph_destroy(g);
    gd_free(capture.kept);
    return ok;
}

size_t gd_graft_prefix_floats(const struct gd_graft *graft)
{
    const struct gd_model_config *config = &graft->model->config;
    return (size_t)graft->virtual_rows.count * (size_t)config->layers * 2 * (size_t)config->kv_heads * (size_t)config->head_dim;
}

size_t gd_graft_prefix_bytes(const struct gd_graft *graft)
{
    return gd_graft_prefix_floats(graft) * sizeof(float) * (graft->model->config.long_from > 0 ? 2 : 1);
}

bool gd_graft_make_prefix(struct gd_graft *graft, struct gd_error *err)
{
    void *memory = NULL;
    if (graft->virtual_rows.count == 0 || graft->prefix != NULL)
        return true;
    bool ok = gd_large_alloc(&memory, gd_graft_prefix_bytes(graft), "the keys and values of virtual rows", err);
    graft->prefix = memory;
    for (int table = 0; ok && table < (graft->model->config.long_from > 0 ? 2 : 1); table++) {
        float *rows = graft->prefix + (size_t)table * gd_graft_prefix_floats(graft);
        if (graft->method->prefix != NULL)
            graft->method->prefix(graft, rows);
        else
            ok = capture_prefix(graft, rows, table == 1, err);
    }
    if (!ok) {
        gd_graft_drop_prefix(graft);
        gd_error_context(err, "the virtual rows of an adapter");
    }
    return ok;
}

void gd_graft_drop_prefix(struct gd_graft *graft)
{
    gd_large_free(graft->prefix, gd_graft_prefix_bytes(graft));
    graft->prefix = NULL;
}
