#include "engine/infer/forward.h"
#include "engine/adapter/adapter.h"
#include "engine/base/alloc.h"
#include "engine/tensor/few_rows.h"
#include "engine/tensor/plan.h"
#include <assert.h>

#define ARENA "activations of an inference batch"

/* Powers of two, with steps between them where a row costs most of what it would alone. */
const int gd_forward_buckets[GD_FORWARD_BUCKETS] = {1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, GD_FORWARD_ROWS};

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

static int bucket_of(int rows)
{
    int b = 0;
    while (gd_forward_buckets[b] < rows)
        b++;
    return b;
}

bool gd_forward_estimate(struct gd_model *model, enum gd_dtype act, int rows, int logits, struct gd_forward_need *need, struct gd_error *err)
{
    struct gd_forward forward = {.model = model, .act = act};
    struct gd_forward_plan *large = plan_create(&forward, gd_forward_buckets[bucket_of(rows)], GD_WEAR_DEPTHS - 1, true, err), *few = NULL;
    struct gd_layout_cost head = {0};
    size_t head_bytes = 0;
    bool ok = large != NULL && gd_logits_estimate(model, act, logits, &head_bytes, err);
    if (ok)
        few = plan_create(&forward, GD_FEW_ROWS, GD_WEAR_DEPTHS - 1, true, err);
    ok = few != NULL;
    if (ok) {
        need->bytes = gd_plan_arena_bytes(large->plan) + gd_plan_table_bytes(large->plan) + head_bytes;
        need->layouts = *gd_plan_layouts(large->plan);
        need->few = *gd_plan_layouts(few->plan);
        gd_layout_cost_add(&need->layouts, model->head, GD_WEIGHT_LINEAR, act);
        gd_layout_cost_add(&head, model->head, GD_WEIGHT_FEW_ROWS, act);
        gd_layout_cost_add(&need->few, model->head, GD_WEIGHT_FEW_ROWS, act);
        gd_layout_cost_join(&need->layouts, &head); /* made with the first */
        gd_layout_cost_join(&need->few, &need->layouts);
    }
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
    bool ok = gd_logits_create(&forward->head, model, act, err);
    /* The largest plan tells now what memory will be needed. */
    struct gd_forward_plan *largest = ok ? plan_create(forward, GD_FORWARD_ROWS, GD_WEAR_DEPTHS - 1, true, err) : NULL;
    ok = largest != NULL && gd_device_reserve(&forward->arena, gd_plan_arena_bytes(largest->plan), ARENA, err);
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
    gd_device_release(&forward->arena);
    gd_logits_destroy(forward->head);
    gd_free(forward);
}

bool gd_forward_run(struct gd_forward *forward, int used, enum gd_wear_depth depth, struct gd_error *err)
{
    assert(used >= 1);
    assert(used <= GD_FORWARD_ROWS);
    int b = bucket_of(used);
    struct gd_forward_plan **p = &forward->plans[b][depth];
    if (*p == NULL && (*p = plan_create(forward, gd_forward_buckets[b], depth, false, err)) == NULL)
        return false;
    if (!gd_device_reserve(&forward->arena, gd_plan_arena_bytes((*p)->plan), ARENA, err))
        return false;
    gd_plan_attach((*p)->plan, forward->arena.memory);
    for (int t = used; t < gd_forward_buckets[b]; t++)
        forward->ids[t] = forward->positions[t] = 0;
    gd_graft_tables_fill(&(*p)->tables, forward->model, forward->wear.group_count > 0 ? forward->wear.sites[0] : NULL);
    if (!gd_plan_run((*p)->plan, NULL, err))
        return false;
    forward->hidden = gd_plan_address((*p)->plan, (*p)->hidden);
    return true;
}

bool gd_forward_row(const struct gd_forward *forward, int row, float *out, struct gd_error *err)
{
    int width = forward->model->config.embed_width;
    size_t bytes = gd_dtype_bytes(forward->act, width);
    void *copy = gd_alloc(bytes);
    bool ok = gd_device_read(copy, (const char *)forward->hidden + (size_t)row * bytes, bytes, err);
    if (ok)
        gd_convert_to_f32(out, copy, forward->act, width);
    gd_free(copy);
    return ok;
}

bool gd_forward_logits(struct gd_forward *forward, const int32_t *rows, int count, struct gd_error *err)
{
    return gd_logits_run(forward->head, forward->hidden, &forward->wear, rows, count, err);
}
