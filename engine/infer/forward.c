#include "engine/infer/forward.h"
#include "engine/adapter/adapter.h"
#include "engine/base/alloc.h"
#include "engine/tensor/few_rows.h"
#include "engine/tensor/gemm.h"
#include "engine/tensor/plan.h"
#include <assert.h>
#include <math.h>

/* Powers of two, with steps between them where a row costs most of what it would alone. */
static const int buckets[GD_FORWARD_BUCKETS] = {1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, GD_FORWARD_ROWS};

#define LOGITS_BYTES ((size_t)32 << 20) /* of one vocabulary product, but at least LOGIT_ROWS_MIN rows */
#define LOGIT_ROWS_MIN 8
#define LOGIT_ROWS_MAX 256

struct gd_forward_plan {
    struct gd_graph *graph;
    struct gd_plan *plan;
    struct gd_value *hidden;
    struct gd_graft_tables tables;
};

static void plan_destroy(struct gd_forward_plan *p)
{
    if (p == NULL)
        return;
    gd_plan_destroy(p->plan);
    gd_graph_destroy(p->graph);
    gd_graft_tables_release(&p->tables);
    gd_free(p);
}

static bool plan_build(struct gd_forward *forward, struct gd_forward_plan *p, int rows, enum gd_wear_depth depth, bool dry,
                       struct gd_error *err)
{
    if (!gd_graph_create(&p->graph, forward->act, err))
        return false;
    struct gd_model_inputs inputs;
    struct gd_graft_serving serving = {0};
    gd_model_inputs_create(&inputs, p->graph, forward->model, rows, 1, true);
    if (depth != GD_WEAR_NONE)
        gd_graft_serving_sites(&serving, p->graph, forward->model, depth);
    p->hidden = gd_model_hidden(p->graph, forward->model, &inputs, depth != GD_WEAR_NONE ? &serving.sites : NULL);
    if (!gd_graph_ok(p->graph, err) || !gd_plan_create(&p->plan, p->graph, &p->hidden, 1, dry, err))
        return false;
    if (dry)
        return true;
    gd_plan_bind(p->plan, inputs.ids, forward->ids);
    gd_plan_bind(p->plan, inputs.positions, forward->positions);
    gd_plan_bind(p->plan, inputs.inv_freq, forward->model->config.inv_freq);
    gd_plan_bind(p->plan, inputs.cache, &forward->kv);
    if (inputs.cross != NULL)
        gd_plan_bind(p->plan, inputs.cross, &forward->cross);
    if (depth != GD_WEAR_NONE)
        gd_plan_bind(p->plan, serving.wear, &forward->wear);
    p->tables = serving.tables;
    gd_graft_tables_bind(&p->tables, p->plan);
    return true;
}

static struct gd_forward_plan *plan_create(struct gd_forward *forward, int rows, enum gd_wear_depth depth, bool dry, struct gd_error *err)
{
    struct gd_forward_plan *p = gd_alloc(sizeof(*p));
    if (plan_build(forward, p, rows, depth, dry, err))
        return p;
    gd_error_context(err, "plan a batch of %d rows", rows);
    plan_destroy(p);
    return NULL;
}

static bool reserve_arena(struct gd_forward *forward, size_t bytes, struct gd_error *err)
{
    if (bytes <= forward->arena_bytes)
        return true;
    gd_large_free(forward->arena, forward->arena_bytes);
    forward->arena = NULL;
    forward->arena_bytes = 0;
    if (!gd_large_alloc(&forward->arena, bytes, "activations of an inference batch", err))
        return false;
    forward->arena_bytes = bytes;
    return true;
}

static int logit_rows(const struct gd_model *model)
{
    size_t row_bytes = (size_t)model->config.vocab * sizeof(float);
    int rows = LOGIT_ROWS_MAX;
    while (rows > LOGIT_ROWS_MIN && (size_t)rows * row_bytes > LOGITS_BYTES)
        rows /= 2;
    return rows;
}

static int bucket_of(int rows)
{
    int b = 0;
    while (buckets[b] < rows)
        b++;
    return b;
}

bool gd_forward_estimate(struct gd_model *model, enum gd_dtype act, int rows, int logits, struct gd_forward_need *need, struct gd_error *err)
{
    struct gd_forward forward = {.model = model, .act = act};
    struct gd_forward_plan *large = plan_create(&forward, buckets[bucket_of(rows)], GD_WEAR_DEPTHS - 1, true, err), *few = NULL;
    struct gd_layout_cost head = {0};
    size_t logit_bytes = (size_t)model->config.vocab * sizeof(float) + gd_dtype_bytes(act, model->config.embed_width);
    if (large != NULL)
        few = plan_create(&forward, GD_FEW_ROWS, GD_WEAR_DEPTHS - 1, true, err);
    if (few != NULL) {
        int most = logit_rows(model);
        need->bytes = gd_plan_arena_bytes(large->plan) + gd_plan_table_bytes(large->plan) + (size_t)(logits < most ? logits : most) * logit_bytes;
        need->layouts = *gd_plan_layouts(large->plan);
        need->few = *gd_plan_layouts(few->plan);
        gd_layout_cost_add(&need->layouts, model->head, GD_WEIGHT_LINEAR, act);
        gd_layout_cost_add(&head, model->head, GD_WEIGHT_FEW_ROWS, act);
        gd_layout_cost_add(&need->few, model->head, GD_WEIGHT_FEW_ROWS, act);
        gd_layout_cost_join(&need->layouts, &head); /* made with the first */
        gd_layout_cost_join(&need->few, &need->layouts);
    }
    bool ok = few != NULL;
    plan_destroy(few);
    plan_destroy(large);
    return ok;
}

bool gd_forward_create(struct gd_forward **out, struct gd_model *model, enum gd_dtype act, struct gd_error *err)
{
    assert(*out == NULL);
    struct gd_forward *forward = gd_alloc(sizeof(*forward));
    forward->model = model;
    forward->act = act;
    int rows = logit_rows(model);
    forward->logit_rows_max = rows;
    forward->logits_bytes = (size_t)rows * (size_t)model->config.vocab * sizeof(float);
    forward->chosen = gd_alloc_array((size_t)rows * (size_t)model->config.embed_width, act == GD_BF16 ? 2 : 4);
    void *logits = NULL;
    bool ok = gd_large_alloc(&logits, forward->logits_bytes, "logits", err);
    forward->logits = logits;
    /* The largest plan tells now what memory will be needed. */
    struct gd_forward_plan *largest = ok ? plan_create(forward, GD_FORWARD_ROWS, GD_WEAR_DEPTHS - 1, true, err) : NULL;
    ok = largest != NULL && reserve_arena(forward, gd_plan_arena_bytes(largest->plan), err) &&
         gd_weight_prepare(model->head, GD_WEIGHT_LINEAR, act, err) && gd_weight_prepare(model->head, GD_WEIGHT_FEW_ROWS, act, err);
    plan_destroy(largest);
    if (!ok) {
        gd_forward_destroy(forward);
        return false;
    }
    *out = forward;
    return true;
}

void gd_forward_destroy(struct gd_forward *forward)
{
    if (forward == NULL)
        return;
    for (int b = 0; b < GD_FORWARD_BUCKETS; b++)
        for (int depth = 0; depth < GD_WEAR_DEPTHS; depth++)
            plan_destroy(forward->plans[b][depth]);
    gd_large_free(forward->arena, forward->arena_bytes);
    gd_large_free(forward->logits, forward->logits_bytes);
    gd_free(forward->chosen);
    gd_free(forward);
}

bool gd_forward_run(struct gd_forward *forward, int used, enum gd_wear_depth depth, struct gd_error *err)
{
    assert(used >= 1);
    assert(used <= GD_FORWARD_ROWS);
    int b = bucket_of(used);
    struct gd_forward_plan **p = &forward->plans[b][depth];
    if (*p == NULL && (*p = plan_create(forward, buckets[b], depth, false, err)) == NULL)
        return false;
    if (!reserve_arena(forward, gd_plan_arena_bytes((*p)->plan), err))
        return false;
    gd_plan_attach((*p)->plan, forward->arena);
    for (int t = used; t < buckets[b]; t++)
        forward->ids[t] = forward->positions[t] = 0;
    gd_graft_tables_fill(&(*p)->tables, forward->model, forward->wear.group_count > 0 ? forward->wear.sites[0] : NULL);
    if (!gd_plan_run((*p)->plan, NULL, err))
        return false;
    forward->hidden = gd_plan_data((*p)->plan, (*p)->hidden);
    return true;
}

/* The group that row `row` of the last run belongs to; -1: none. */
static int group_of(const struct gd_wear *wear, int32_t row)
{
    for (int g = 0; g < wear->group_count; g++)
        if (row >= wear->row_begin[g] && row < wear->row_begin[g + 1])
            return g;
    return -1;
}

/* logits [begin, end) += what their graft adds to the head. */
static bool wear_head(struct gd_forward *forward, const float *delta, int begin, int end, struct gd_error *err)
{
    int64_t width = forward->model->config.embed_width, vocab = forward->model->config.vocab;
    struct gd_gemm gemm = {.m = end - begin, .n = vocab, .k = width, .transpose_b = true, .in = GD_F32, .out = GD_F32,
                           .accumulate = true, .alpha = 1.0f};
    float *h = gd_alloc_array((size_t)((end - begin) * width), sizeof(float));
    gd_convert_to_f32(h, forward->chosen + (size_t)begin * gd_dtype_bytes(forward->act, width), forward->act, (end - begin) * width);
    bool ok = gd_gemm_run(&gemm, h, delta, forward->logits + begin * vocab, err);
    gd_free(h);
    return ok;
}

/* For runs of rows of one graft. */
static bool wear_heads(struct gd_forward *forward, const int32_t *rows, int count, struct gd_error *err)
{
    int slot = gd_slot_of_head(forward->model), end;
    for (int begin = 0; begin < count; begin = end) {
        int group = group_of(&forward->wear, rows[begin]);
        for (end = begin + 1; end < count && group_of(&forward->wear, rows[end]) == group;)
            end++;
        const struct gd_wear_part *sites = group >= 0 ? forward->wear.sites[group] : NULL;
        if (sites != NULL && sites[slot].delta != NULL && !wear_head(forward, sites[slot].delta, begin, end, err))
            return false;
    }
    return true;
}

/* c tanh(z / c), where the model caps its logits. */
static void cap_logits(struct gd_forward *forward, int count)
{
    float cap = (float)forward->model->config.logit_softcap;
    int64_t numbers = (int64_t)count * forward->model->config.vocab;
    for (int64_t i = 0; cap > 0 && i < numbers; i++)
        forward->logits[i] = cap * tanhf(forward->logits[i] / cap);
}

bool gd_forward_logits(struct gd_forward *forward, const int32_t *rows, int count, struct gd_error *err)
{
    assert(count >= 1);
    assert(count <= forward->logit_rows_max);
    size_t row_bytes = (size_t)forward->model->config.embed_width * (forward->act == GD_BF16 ? 2 : 4);
    int padded = buckets[bucket_of(count)] < forward->logit_rows_max ? buckets[bucket_of(count)] : forward->logit_rows_max;
    for (int i = 0; i < count; i++)
        memcpy(forward->chosen + (size_t)i * row_bytes, forward->hidden + (size_t)rows[i] * row_bytes, row_bytes);
    memset(forward->chosen + (size_t)count * row_bytes, 0, (size_t)(padded - count) * row_bytes);
    if (!gd_weight_multiply(forward->model->head, false, forward->chosen, forward->act, forward->logits, GD_F32, padded, false, err) ||
        !wear_heads(forward, rows, count, err))
        return false;
    cap_logits(forward, count);
    return true;
}
