#include "engine/infer/encode.h"
#include "engine/base/alloc.h"
#include "engine/infer/kv_cache.h"
#include "engine/tensor/device.h"
#include "engine/tensor/plan.h"
#include <assert.h>

struct encode_plan {
    int rows;
    enum gd_wear_depth depth;
    struct gd_graph *graph;
    struct gd_plan *plan;
    struct gd_value **kv; /* [2 * layers of the decoder] */
    struct gd_graft_tables tables;
};

struct gd_encoder {
    struct gd_model *model;
    enum gd_dtype act;
    struct encode_plan *plans[GD_ENCODER_PLANS]; /* the oldest first */
    int plan_count;
    struct gd_device_block arena;
    /* The text. */
    int32_t *ids;
    int count, capacity;
    int32_t cu_seqlens[2], row_begin[2];
    const struct gd_wear_part *sites[1];
    struct gd_wear wear;
    const struct encode_plan *last;
};

void gd_encoder_create(struct gd_encoder **out, struct gd_model *model, enum gd_dtype act)
{
    assert(*out == NULL);
    struct gd_encoder *encoder = *out = gd_alloc(sizeof(*encoder));
    encoder->model = model;
    encoder->act = act;
    encoder->wear = (struct gd_wear){.group_count = 1, .row_begin = encoder->row_begin, .sites = encoder->sites};
}

static void plan_destroy(struct encode_plan *p)
{
    gd_plan_destroy(p->plan);
    gd_graph_destroy(p->graph);
    gd_graft_tables_release(&p->tables);
    gd_free(p->kv);
    gd_free(p);
}

void gd_encoder_destroy(struct gd_encoder *encoder)
{
    if (encoder == NULL)
        return;
    for (int i = 0; i < encoder->plan_count; i++)
        plan_destroy(encoder->plans[i]);
    gd_device_release(&encoder->arena);
    gd_free(encoder->ids);
    gd_free(encoder);
}

static bool plan_build(struct gd_encoder *encoder, struct encode_plan *p, bool dry, struct gd_error *err)
{
    struct gd_graft_serving serving = {0};
    struct gd_model_inputs inputs = {0};
    int parts = 2 * gd_model_decoder_layers(encoder->model);
    p->kv = gd_alloc_array((size_t)parts, sizeof(*p->kv));
    if (!gd_graph_create(&p->graph, encoder->act, err))
        return false;
    gd_model_inputs_encoder(&inputs, p->graph, p->rows, 1);
    if (p->depth != GD_WEAR_NONE)
        gd_graft_serving_sites(&serving, p->graph, encoder->model, p->depth);
    gd_model_encode(p->graph, encoder->model, &inputs, p->depth != GD_WEAR_NONE ? &serving.sites : NULL, p->kv);
    if (!gd_graph_ok(p->graph, err) || !gd_plan_create(&p->plan, p->graph, p->kv, parts, dry, err))
        return false;
    if (dry)
        return true;
    gd_plan_bind(p->plan, inputs.encoder_ids, encoder->ids);
    gd_plan_bind(p->plan, inputs.encoder_cu_seqlens, encoder->cu_seqlens);
    if (p->depth != GD_WEAR_NONE)
        gd_plan_bind(p->plan, serving.wear, &encoder->wear);
    p->tables = serving.tables;
    gd_graft_tables_bind(&p->tables, p->plan);
    return true;
}

/* Few sizes, so that plans are used again. */
static int padded(int count)
{
    int step = count <= 64 ? 16 : count <= 512 ? 64 : 256;
    return (count + step - 1) / step * step;
}

static void forget_plans(struct gd_encoder *encoder)
{
    for (int i = 0; i < encoder->plan_count; i++)
        plan_destroy(encoder->plans[i]);
    encoder->plan_count = 0;
}

/* Plans read the ids where they stand: they go when these move. */
static void reserve_ids(struct gd_encoder *encoder, int rows)
{
    if (rows <= encoder->capacity)
        return;
    forget_plans(encoder);
    gd_free(encoder->ids);
    encoder->ids = gd_alloc_array((size_t)rows, sizeof(*encoder->ids));
    encoder->capacity = rows;
}

static struct encode_plan *plan_get(struct gd_encoder *encoder, int rows, enum gd_wear_depth depth, struct gd_error *err)
{
    for (int i = 0; i < encoder->plan_count; i++)
        if (encoder->plans[i]->rows == rows && encoder->plans[i]->depth == depth)
            return encoder->plans[i];
    if (encoder->plan_count == GD_ENCODER_PLANS) {
        plan_destroy(encoder->plans[0]);
        memmove(encoder->plans, encoder->plans + 1, sizeof(encoder->plans[0]) * (GD_ENCODER_PLANS - 1));
        encoder->plan_count--;
    }
    struct encode_plan *p = gd_alloc(sizeof(*p));
    p->rows = rows;
    p->depth = depth;
    if (!plan_build(encoder, p, false, err)) {
        gd_error_context(err, "plan the encoding of %d rows", rows);
        plan_destroy(p);
        return NULL;
    }
    return encoder->plans[encoder->plan_count++] = p;
}

bool gd_encoder_estimate(struct gd_model *model, enum gd_dtype act, int rows, size_t *bytes, struct gd_layout_cost *layouts,
                         struct gd_error *err)
{
    struct gd_encoder encoder = {.model = model, .act = act};
    struct encode_plan *p = gd_alloc(sizeof(*p));
    p->rows = padded(rows);
    p->depth = GD_WEAR_DEPTHS - 1;
    bool ok = plan_build(&encoder, p, true, err);
    *bytes = ok ? gd_plan_arena_bytes(p->plan) : 0;
    *layouts = ok ? *gd_plan_layouts(p->plan) : (struct gd_layout_cost){0};
    plan_destroy(p);
    return ok;
}

bool gd_encoder_run(struct gd_encoder *encoder, const int32_t *ids, int count, const struct gd_graft *graft, struct gd_error *err)
{
    int rows = padded(count);
    reserve_ids(encoder, rows);
    struct encode_plan *p = plan_get(encoder, rows, graft != NULL ? graft->depth : GD_WEAR_NONE, err);
    if (p == NULL ||
        !gd_device_reserve(&encoder->arena, gd_plan_arena_bytes(p->plan), "activations of an encoded text", err))
        return false;
    memcpy(encoder->ids, ids, (size_t)count * sizeof(*ids));
    memset(encoder->ids + count, 0, (size_t)(rows - count) * sizeof(*ids));
    encoder->count = encoder->cu_seqlens[1] = encoder->row_begin[1] = count;
    encoder->sites[0] = graft != NULL ? graft->wear : NULL;
    encoder->wear.ids = encoder->ids;
    gd_graft_tables_fill(&p->tables, encoder->model, encoder->sites[0]);
    encoder->last = p;
    gd_plan_attach(p->plan, encoder->arena.memory);
    return gd_plan_run(p->plan, NULL, err);
}

bool gd_encoder_store(const struct gd_encoder *encoder, const struct gd_kv_batch *kv, const int32_t *pages, struct gd_error *err)
{
    assert(kv->dtype == encoder->act);
    int count = 2 * kv->layer_count;
    const void **parts = gd_alloc_array((size_t)count, sizeof(*parts));
    bool ok = true;
    for (int part = 0; ok && part < count; part++)
        ok = (parts[part] = gd_plan_read(encoder->last->plan, encoder->last->kv[part], err)) != NULL;
    ok = ok && gd_kv_pages_fill(kv, pages, 0, encoder->count, parts, kv->dtype, err);
    gd_free(parts);
    return ok;
}
