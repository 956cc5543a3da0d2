/* compare.c - do two worn models say the same? Their logits over fixed texts, in f32. */
#include "engine/adapter/export.h"

#include "engine/base/alloc.h"
#include "engine/tensor/device.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"

#include <math.h>

#define TOKENS_MAX 48

static const char *const texts[] = {"The capital of France is Paris, and the river that crosses it",
                                    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))  #",
                                    "1, 2, 3 und 4; \xe5\x8c\x97\xe4\xba\xac: what comes next?"};

/* The texts as one packed batch; each is cut to what the context holds. */
struct batch {
    int32_t ids[GD_COUNT(texts) * TOKENS_MAX], positions[GD_COUNT(texts) * TOKENS_MAX], cu_seqlens[GD_COUNT(texts) + 1];
    int32_t types[GD_COUNT(texts) * TOKENS_MAX]; /* 0 */
    int count;
};

static bool make_batch(const struct gd_model *model, struct batch *batch, struct gd_error *err)
{
    int most = model->config.context < TOKENS_MAX ? model->config.context : TOKENS_MAX;
    batch->count = 0;
    for (size_t i = 0; i < GD_COUNT(texts); i++) {
        struct gd_tokens tokens = {0};
        bool ok = gd_tokenizer_encode(model->tokenizer, texts[i], strlen(texts[i]), GD_SPECIAL_PARSE, true, &tokens, err);
        batch->cu_seqlens[i] = batch->count;
        for (int t = 0; ok && t < tokens.count && t < most; t++) {
            batch->positions[batch->count] = t;
            batch->ids[batch->count++] = tokens.ids[t];
        }
        gd_tokens_release(&tokens);
        if (!ok)
            return false;
    }
    batch->cu_seqlens[GD_COUNT(texts)] = batch->count;
    return true;
}

/* table: what the hidden states are multiplied by; NULL: the model's own head, as it is worn. */
static bool run(const struct gd_worn *worn, struct gd_weight *table, struct batch *batch, struct gd_graph *g, float *logits, struct gd_error *err)
{
    struct gd_model_inputs inputs;
    struct gd_graft_serving serving = {0};
    struct gd_plan *plan = NULL;
    const struct gd_wear_part *sites[] = {worn->graft != NULL ? worn->graft->wear : NULL};
    int32_t rows[] = {0, batch->count};
    struct gd_wear wear = {.group_count = 1, .row_begin = rows, .sites = sites, .ids = batch->ids, .positions = batch->positions};
    gd_model_inputs_create(&inputs, g, worn->model, batch->count, (int)GD_COUNT(texts), false);
    if (gd_model_encodes(worn->model)) /* which reads what its decoder says */
        gd_model_inputs_encoder(&inputs, g, batch->count, (int)GD_COUNT(texts));
    if (worn->graft != NULL)
        gd_graft_serving_sites(&serving, g, worn->model, worn->graft->depth);
    struct gd_value *hidden = gd_model_hidden(g, worn->model, &inputs, worn->graft != NULL ? &serving.sites : NULL);
    struct gd_value *out = gd_linear(g, hidden, gd_graph_weight(g, table != NULL ? table : worn->model->head));
    if (worn->graft != NULL && table == NULL)
        out = gd_wear(g, out, hidden, serving.wear, gd_slot_of_head(worn->model));
    out = gd_model_cap(g, worn->model, out);
    if (!gd_graph_ok(g, err) || !gd_plan_create(&plan, g, &out, 1, false, err))
        return false;
    struct gd_device_block arena = {0};
    bool ok = gd_device_reserve(&arena, gd_plan_arena_bytes(plan), "activations of a comparison", err);
    if (ok) {
        gd_plan_attach(plan, arena.memory);
        gd_plan_bind(plan, inputs.ids, batch->ids);
        gd_plan_bind(plan, inputs.positions, batch->positions);
        gd_plan_bind(plan, inputs.cu_seqlens, batch->cu_seqlens);
        gd_plan_bind(plan, inputs.inv_freq, worn->model->config.inv_freq);
        if (inputs.types != NULL)
            gd_plan_bind(plan, inputs.types, batch->types);
        if (inputs.encoder_ids != NULL) {
            gd_plan_bind(plan, inputs.encoder_ids, batch->ids);
            gd_plan_bind(plan, inputs.encoder_cu_seqlens, batch->cu_seqlens);
        }
        gd_plan_bind(plan, out, logits);
        if (worn->graft != NULL) {
            gd_plan_bind(plan, serving.wear, &wear);
            gd_graft_tables_bind(&serving.tables, plan);
            gd_graft_tables_fill(&serving.tables, worn->model, worn->graft->wear);
        }
        ok = gd_plan_run(plan, NULL, err);
    }
    gd_plan_destroy(plan);
    gd_graft_tables_release(&serving.tables);
    gd_device_release(&arena);
    return ok;
}

static bool logits_of(const struct gd_worn *worn, struct gd_weight *table, struct batch *batch, float *logits, struct gd_error *err)
{
    struct gd_graph *g = NULL;
    bool ok = gd_graph_create(&g, GD_F32, err) && run(worn, table, batch, g, logits, err);
    gd_graph_destroy(g);
    return ok;
}

bool gd_worn_difference(const struct gd_worn *a, const struct gd_worn *b, double *difference, struct gd_error *err)
{
    struct batch batch = {0};
    if (a->model->config.vocab != b->model->config.vocab)
        return gd_fail(err, GD_INTERNAL, "vocabularies of %d and %d entries", a->model->config.vocab, b->model->config.vocab);
    if (!make_batch(a->model, &batch, err))
        return false;
    size_t count = (size_t)batch.count * (size_t)a->model->config.vocab;
    void *memory = NULL;
    if (!gd_large_alloc(&memory, 2 * count * sizeof(float), "logits of a comparison", err))
        return false;
    float *of_a = memory, *of_b = of_a + count;
    /* A classifier has lost the head that its base had: the hidden states of both are compared by one table. */
    struct gd_weight *table = a->model->config.classifies != b->model->config.classifies ? a->model->embed : NULL;
    bool ok = logits_of(a, table, &batch, of_a, err) && logits_of(b, table, &batch, of_b, err);
    double apart = 0, size = 0;
    for (size_t i = 0; ok && i < count; i++) {
        apart += ((double)of_a[i] - (double)of_b[i]) * ((double)of_a[i] - (double)of_b[i]);
        size += (double)of_a[i] * (double)of_a[i];
    }
    *difference = size > 0 ? sqrt(apart / size) : sqrt(apart);
    gd_large_free(memory, 2 * count * sizeof(float));
    return ok;
}
