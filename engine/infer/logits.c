#include "engine/infer/forward.h"
#include "engine/adapter/adapter.h"
#include "engine/base/alloc.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"
#include <assert.h>

#define LOGITS_BYTES ((size_t)32 << 20) /* of one vocabulary product, but at least ROWS_MIN rows */
#define ROWS_MIN 8
#define ROWS_MAX 256

struct gd_logits_plan {
    struct gd_graph *graph;
    struct gd_plan *plan;
    struct gd_value *hidden, *index, *wear, *out;
};

static void plan_destroy(struct gd_logits_plan *p)
{
    if (p == NULL)
        return;
    gd_plan_destroy(p->plan);
    gd_graph_destroy(p->graph);
    gd_free(p);
}

static bool plan_build(struct gd_logits *logits, struct gd_logits_plan *p, int rows, bool worn, bool dry, struct gd_error *err)
{
    const struct gd_model *model = logits->model;
    if (!gd_graph_create(&p->graph, logits->act, err))
        return false;
    struct gd_graph *g = p->graph;
    p->hidden = gd_graph_input(g, "hidden", logits->act, 2, (int64_t[]){GD_FORWARD_ROWS, model->config.embed_width});
    p->index = gd_graph_input(g, "rows", GD_I32, 1, (int64_t[]){rows});
    struct gd_value *chosen = gd_gather_rows(g, p->hidden, p->index);
    struct gd_value *out = gd_linear_f32(g, chosen, gd_model_head(g, model, NULL));
    if (worn) {
        p->wear = gd_graph_handle(g, "wear");
        out = gd_wear(g, out, gd_cast(g, chosen, GD_F32), p->wear, gd_slot_of_head(model));
    }
    p->out = gd_model_cap(g, model, out);
    if (!gd_graph_ok(g, err) || !gd_plan_create(&p->plan, g, &p->out, 1, dry, err))
        return false;
    if (dry)
        return true;
    gd_plan_bind(p->plan, p->index, logits->index);
    if (!gd_device_samples()) /* there they stay where they are made */
        gd_plan_bind(p->plan, p->out, logits->logits);
    if (worn)
        gd_plan_bind(p->plan, p->wear, &logits->wear);
    return true;
}

static struct gd_logits_plan *plan_create(struct gd_logits *logits, int rows, bool worn, bool dry, struct gd_error *err)
{
    struct gd_logits_plan *p = gd_alloc(sizeof(*p));
    if (plan_build(logits, p, rows, worn, dry, err))
        return p;
    gd_error_context(err, "plan the logits of %d rows", rows);
    plan_destroy(p);
    return NULL;
}

static int most_rows(const struct gd_model *model)
{
    size_t row_bytes = (size_t)model->config.vocab * sizeof(float);
    int rows = ROWS_MAX;
    while (rows > ROWS_MIN && (size_t)rows * row_bytes > LOGITS_BYTES)
        rows /= 2;
    return rows;
}

static int bucket_of(const struct gd_logits *logits, int count, int *rows)
{
    int b = 0;
    while (gd_forward_buckets[b] < count)
        b++;
    *rows = gd_forward_buckets[b] < logits->rows_max ? gd_forward_buckets[b] : logits->rows_max;
    return b;
}

bool gd_logits_estimate(struct gd_model *model, enum gd_dtype act, int count, size_t *bytes, struct gd_error *err)
{
    struct gd_logits logits = {.model = model, .act = act, .rows_max = most_rows(model)};
    int rows = count < logits.rows_max ? count : logits.rows_max, padded;
    bucket_of(&logits, rows, &padded);
    struct gd_logits_plan *p = plan_create(&logits, padded, false, true, err);
    if (p == NULL)
        return false;
    *bytes = gd_plan_arena_bytes(p->plan) + (size_t)rows * (size_t)model->config.vocab * sizeof(float);
    plan_destroy(p);
    return true;
}

bool gd_logits_create(struct gd_logits **out, struct gd_model *model, enum gd_dtype act, struct gd_error *err)
{
    assert(*out == NULL);
    struct gd_logits *logits = gd_alloc(sizeof(*logits));
    logits->model = model;
    logits->act = act;
    logits->rows_max = most_rows(model);
    logits->logits_bytes = (size_t)logits->rows_max * (size_t)model->config.vocab * sizeof(float);
    void *memory = NULL;
    bool ok = gd_large_alloc(&memory, logits->logits_bytes, "logits", err) &&
              gd_weight_prepare(model->head, GD_WEIGHT_LINEAR, act, err) && gd_weight_prepare(model->head, GD_WEIGHT_FEW_ROWS, act, err);
    logits->logits = memory;
    if (!ok) {
        gd_logits_destroy(logits);
        return false;
    }
    *out = logits;
    return true;
}

void gd_logits_destroy(struct gd_logits *logits)
{
    if (logits == NULL)
        return;
    for (int b = 0; b < GD_FORWARD_BUCKETS; b++)
        for (int worn = 0; worn < 2; worn++)
            plan_destroy(logits->plans[b][worn]);
    gd_device_release(&logits->arena);
    gd_large_free(logits->logits, logits->logits_bytes);
    gd_free(logits);
}

/* Where the grafts' rows are among the chosen ones; whether one of them changes the head. */
static bool choose_wear(struct gd_logits *logits, const struct gd_wear *wear, const int32_t *rows, int count)
{
    int slot = gd_slot_of_head(logits->model), at = 0;
    bool worn = false;
    for (int group = 0; group < wear->group_count; group++) {
        logits->row_begin[group] = at;
        int begin = at;
        while (at < count && rows[at] < wear->row_begin[group + 1])
            at++;
        worn |= at > begin && wear->sites[group] != NULL && wear->sites[group][slot].delta != NULL;
    }
    logits->row_begin[wear->group_count] = at;
    logits->wear = (struct gd_wear){.group_count = wear->group_count, .row_begin = logits->row_begin, .sites = wear->sites};
    return worn;
}

bool gd_logits_run(struct gd_logits *logits, const void *hidden, const struct gd_wear *wear, const int32_t *rows, int count,
                   struct gd_error *err)
{
    assert(count >= 1);
    assert(count <= logits->rows_max);
    int padded, b = bucket_of(logits, count, &padded);
    bool worn = choose_wear(logits, wear, rows, count);
    struct gd_logits_plan **p = &logits->plans[b][worn];
    if (*p == NULL && (*p = plan_create(logits, padded, worn, false, err)) == NULL)
        return false;
    size_t bytes = gd_plan_arena_bytes((*p)->plan);
    if (!gd_device_reserve(&logits->arena, bytes, "rows that are asked for their next token", err))
        return false;
    for (int i = 0; i < padded; i++)
        logits->index[i] = i < count ? rows[i] : -1;
    gd_plan_attach((*p)->plan, logits->arena.memory);
    gd_plan_bind((*p)->plan, (*p)->hidden, (void *)(uintptr_t)hidden);
    if (!gd_plan_run((*p)->plan, NULL, err))
        return false;
    logits->there = gd_plan_address((*p)->plan, (*p)->out);
    return true;
}

bool gd_logits_fetch(struct gd_logits *logits, int count, struct gd_error *err)
{
    return !gd_device_samples() ||
           gd_device_read(logits->logits, logits->there, (size_t)count * (size_t)logits->model->config.vocab * sizeof(float), err);
}
