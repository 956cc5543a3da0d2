#include "engine/train/group_pass.h"

#include "engine/adapter/group.h"
#include "engine/base/alloc.h"
#include "engine/tensor/again.h"
#include "engine/tensor/rows_alone.h"

#include <string.h>

/* A job's segments, and its padding. */
#define SEGMENTS (GD_BATCH_SEGMENTS_MAX + 1)

struct gd_group_pass {
    int count, tokens;
    const struct gd_passes *of[GD_SPLIT_MAX];
    int64_t rows[GD_SPLIT_MAX];
    struct gd_graph *graph;
    struct gd_plan *plan;
    struct gd_model_inputs inputs;
    struct gd_objective_inputs objective_inputs;
    struct gd_objective_outputs outputs;
    struct gd_graft_group grafts;
    struct gd_value *penalty[GD_SPLIT_MAX], *share[GD_SPLIT_MAX]; /* NULL without a penalty */
    float share_data[GD_SPLIT_MAX];
    int32_t *ids, *positions, *labels, *cu_seqlens;
    float *weights;
};

bool gd_passes_share(const struct gd_passes *passes)
{
    const struct gd_model *model = passes->model;
    return gd_graft_shares_pass(passes->graft) && passes->objective->by_token && !gd_model_encodes(model) &&
           !gd_model_is_encoder(model) && model->config.experts == 0; /* rows of several jobs would mix in the experts */
}

bool gd_passes_alike(const struct gd_passes *one, const struct gd_passes *other)
{
    return one->model == other->model && one->act == other->act && one->objective == other->objective;
}

void gd_group_passes_init(struct gd_group_passes *group)
{
    memset(group, 0, sizeof(*group));
}

static void pass_destroy(struct gd_group_pass *pass)
{
    gd_plan_destroy(pass->plan);
    gd_graph_destroy(pass->graph);
    gd_graft_group_release(&pass->grafts);
    gd_free(pass->ids);
    gd_free(pass->positions);
    gd_free(pass->labels);
    gd_free(pass->cu_seqlens);
    gd_free(pass->weights);
    gd_free(pass);
}

void gd_group_passes_rest(struct gd_group_passes *group)
{
    gd_device_release(&group->arena);
}

void gd_group_passes_release(struct gd_group_passes *group)
{
    for (int i = 0; i < group->pass_count; i++)
        pass_destroy(group->pass[i]);
    gd_group_passes_rest(group);
    memset(group, 0, sizeof(*group));
}

void gd_group_passes_forget(struct gd_group_passes *group, const struct gd_passes *passes)
{
    int kept = 0;
    for (int i = 0; i < group->pass_count; i++) {
        struct gd_group_pass *pass = group->pass[i];
        bool has = false;
        for (int k = 0; k < pass->count; k++)
            has |= pass->of[k] == passes;
        if (has)
            pass_destroy(pass);
        else
            group->pass[kept++] = pass;
    }
    group->pass_count = kept;
}

/* ---- the graph ---- */

/* The sum of the jobs' losses; each keeps the terms of its own. */
static struct gd_value *build_loss(struct gd_group_pass *pass)
{
    struct gd_graph *g = pass->graph;
    const struct gd_passes *first = pass->of[0];
    struct gd_objective_inputs *inputs = &pass->objective_inputs;
    const struct gd_graft *grafts[GD_SPLIT_MAX];
    for (int k = 0; k < pass->count; k++)
        grafts[k] = pass->of[k]->graft;
    gd_model_inputs_create(&pass->inputs, g, first->model, pass->tokens, pass->count * SEGMENTS, false);
    inputs->labels = gd_graph_input(g, "labels", GD_I32, 1, (int64_t[]){pass->tokens});
    inputs->weights = gd_graph_input(g, "weights", GD_F32, 1, (int64_t[]){pass->tokens});
    inputs->cu_seqlens = pass->inputs.cu_seqlens;
    inputs->softcap = first->model->config.logit_softcap;
    gd_graft_group_sites(&pass->grafts, g, grafts, pass->rows, pass->count);
    struct gd_value *hidden = gd_model_hidden(g, first->model, &pass->inputs, &pass->grafts.sites);
    first->objective->build(g, hidden, gd_model_head(g, first->model, &pass->grafts.sites), inputs, &pass->outputs);
    struct gd_value *loss = pass->outputs.loss;
    for (int k = 0; k < pass->count; k++) {
        struct gd_graft_training *training = &pass->grafts.member[k];
        struct gd_value *penalty =
            grafts[k]->method->penalty != NULL ? grafts[k]->method->penalty(training, g, training->params) : NULL;
        if (penalty == NULL)
            continue;
        pass->share[k] = gd_graph_input(g, "share", GD_F32, 1, (int64_t[]){1});
        pass->penalty[k] = gd_mul_scalar(g, penalty, pass->share[k]);
        loss = gd_add(g, loss, pass->penalty[k]);
    }
    return loss;
}

/* Gradients of all members' parameters, in order; each is written where its job wants it. */
static bool plan_gradients(struct gd_group_pass *pass, struct gd_value *loss, struct gd_error *err)
{
    int total = 0, at = 0, wanted_count = 0;
    for (int k = 0; k < pass->count; k++)
        total += pass->of[k]->graft->param_count;
    struct gd_value **params = gd_alloc_array((size_t)total, sizeof(*params)), **grads = gd_alloc_array((size_t)total, sizeof(*grads));
    struct gd_value **wanted = gd_alloc_array((size_t)total + 2 + GD_SPLIT_MAX, sizeof(*wanted));
    for (int k = 0; k < pass->count; k++)
        for (int i = 0; i < pass->of[k]->graft->param_count; i++)
            params[at++] = pass->grafts.member[k].params[i];
    bool ok = gd_graph_gradient(pass->graph, loss, params, total, grads, err);
    wanted[wanted_count++] = pass->outputs.logprob;
    wanted[wanted_count++] = pass->outputs.argmax;
    for (int k = 0; k < pass->count; k++)
        if (pass->penalty[k] != NULL)
            wanted[wanted_count++] = pass->penalty[k];
    for (int i = 0; ok && i < total; i++)
        if (grads[i] != NULL)
            wanted[wanted_count++] = grads[i];
    ok = ok && gd_plan_create(&pass->plan, pass->graph, wanted, wanted_count, false, err);
    at = 0;
    for (int k = 0; k < pass->count && ok; k++)
        for (int i = 0; i < pass->of[k]->graft->param_count; i++, at++)
            if (grads[at] != NULL)
                gd_plan_bind(pass->plan, grads[at], pass->of[k]->grad + pass->of[k]->graft->params[i].offset);
    gd_free(params);
    gd_free(grads);
    gd_free(wanted);
    return ok;
}

static void bind(struct gd_group_pass *pass)
{
    struct gd_plan *plan = pass->plan;
    gd_plan_bind(plan, pass->inputs.inv_freq, pass->of[0]->model->config.inv_freq);
    gd_plan_bind(plan, pass->inputs.ids, pass->ids);
    gd_plan_bind(plan, pass->inputs.positions, pass->positions);
    gd_plan_bind(plan, pass->inputs.cu_seqlens, pass->cu_seqlens);
    gd_plan_bind(plan, pass->objective_inputs.labels, pass->labels);
    gd_plan_bind(plan, pass->objective_inputs.weights, pass->weights);
    for (int k = 0; k < pass->count; k++) {
        gd_graft_training_bind(&pass->grafts.member[k], plan, pass->of[k]->block);
        if (pass->share[k] != NULL)
            gd_plan_bind(plan, pass->share[k], &pass->share_data[k]);
    }
}

/* In the directions that the pass uses. */
static bool check_weight(const struct gd_group_pass *pass, const struct gd_weight *weight, const int64_t *rows, struct gd_error *err)
{
    static const enum gd_weight_use uses[] = {GD_WEIGHT_LINEAR, GD_WEIGHT_LINEAR_BACK};
    enum gd_dtype act = pass->of[0]->act;
    for (int back = 0; back < 2; back++) {
        bool same = true;
        if (gd_weight_prepare_cost(weight, uses[back], act) == 0 && !gd_rows_alone(weight, back, act, rows, pass->count, &same, err))
            return false;
        if (!same)
            return gd_fail(err, GD_UNSUPPORTED, "on this processor products of %d rows with '%s' differ from those of fewer",
                           pass->tokens, gd_weight_name(weight));
    }
    return true;
}

/* The last layer's weights stand for all: layers are alike. The head has some rows at a time, padded. */
static bool check_rows(struct gd_group_passes *group, const struct gd_group_pass *pass, struct gd_error *err)
{
    const struct gd_model *model = pass->of[0]->model;
    const struct gd_site *sites;
    int count = gd_model_linear_sites(model, &sites);
    for (int i = 0; i < count; i++)
        if (sites[i].layer == sites[count - 1].layer && !check_weight(pass, sites[i].weight, pass->rows, err))
            return false;
    int64_t few[GD_SPLIT_MAX];
    for (int k = 0; k < pass->count; k++)
        few[k] = 32;
    if (!group->head_checked && !check_weight(pass, model->head, few, err))
        return false;
    group->head_checked = true;
    return true;
}

static bool pass_build(struct gd_group_passes *group, struct gd_group_pass *pass, struct gd_error *err)
{
    if (!gd_graph_create(&pass->graph, pass->of[0]->act, err))
        return false;
    bool recompute = false, narrow = false;
    for (int k = 0; k < pass->count; k++)
        recompute |= pass->of[k]->recompute, narrow |= pass->of[k]->narrow;
    if (recompute)
        gd_graph_recompute(pass->graph);
    if (narrow)
        gd_graph_keep_narrow(pass->graph);
    struct gd_value *loss = build_loss(pass);
    if (!gd_graph_ok(pass->graph, err) || !plan_gradients(pass, loss, err))
        return false;
    size_t tokens = (size_t)pass->tokens;
    pass->ids = gd_alloc_array(tokens, sizeof(int32_t));
    pass->positions = gd_alloc_array(tokens, sizeof(int32_t));
    pass->labels = gd_alloc_array(tokens, sizeof(int32_t));
    pass->weights = gd_alloc_array(tokens, sizeof(float));
    pass->cu_seqlens = gd_alloc_array((size_t)pass->count * SEGMENTS + 1, sizeof(int32_t));
    bind(pass);
    return check_rows(group, pass, err);
}

static bool is_of(const struct gd_group_pass *pass, const struct gd_group_part *parts, int count)
{
    if (pass->count != count)
        return false;
    for (int k = 0; k < count; k++)
        if (pass->of[k] != parts[k].passes || pass->rows[k] != parts[k].batch->capacity)
            return false;
    return true;
}

static struct gd_group_pass *pass_make(struct gd_group_passes *group, const struct gd_group_part *parts, int count,
                                       struct gd_error *err)
{
    struct gd_group_pass *pass = gd_alloc(sizeof(*pass));
    pass->count = count;
    for (int k = 0; k < count; k++) {
        pass->of[k] = parts[k].passes;
        pass->rows[k] = parts[k].batch->capacity;
        pass->tokens += parts[k].batch->capacity;
    }
    if (!pass_build(group, pass, err)) {
        gd_error_context(err, "build a training pass of %d jobs and %d tokens", count, pass->tokens);
        pass_destroy(pass);
        return NULL;
    }
    if (group->pass_count == GD_GROUP_PASSES_MAX)
        pass_destroy(group->pass[--group->pass_count]);
    memmove(group->pass + 1, group->pass, sizeof(group->pass[0]) * (size_t)group->pass_count++);
    return group->pass[0] = pass;
}

static struct gd_group_pass *pass_get(struct gd_group_passes *group, const struct gd_group_part *parts, int count,
                                      struct gd_error *err)
{
    for (int i = 0; i < group->pass_count; i++) {
        struct gd_group_pass *pass = group->pass[i];
        if (!is_of(pass, parts, count))
            continue;
        memmove(group->pass + 1, group->pass, sizeof(group->pass[0]) * (size_t)i);
        return group->pass[0] = pass;
    }
    return pass_make(group, parts, count, err);
}

/* ---- a run ---- */

static bool ensure_arena(struct gd_group_passes *group, size_t bytes, size_t limit, struct gd_error *err)
{
    if (bytes > limit)
        return gd_fail(err, GD_NO_MEMORY, "the activations of the pass need %.0f MiB; there are %.0f", (double)bytes / 1048576,
                       (double)limit / 1048576);
    return gd_device_reserve(&group->arena, bytes, "activations of several jobs", err);
}

/* The jobs' rows side by side; weights as gd_passes_run scales them. */
static void fill(struct gd_group_pass *pass, const struct gd_group_part *parts)
{
    int32_t base = 0, segment = 0;
    for (int k = 0; k < pass->count; k++) {
        const struct gd_batch *batch = parts[k].batch;
        size_t rows = (size_t)batch->capacity;
        double sum = 0;
        memcpy(pass->ids + base, batch->ids, rows * sizeof(int32_t));
        memcpy(pass->positions + base, batch->positions, rows * sizeof(int32_t));
        memcpy(pass->labels + base, batch->labels, rows * sizeof(int32_t));
        memcpy(pass->weights + base, batch->weights, rows * sizeof(float));
        for (int t = 0; t < batch->used; t++) {
            sum += (double)batch->weights[t];
            pass->weights[base + t] *= (float)parts[k].scale;
        }
        pass->share_data[k] = (float)(sum * parts[k].scale);
        for (int s = 1; s <= batch->segment_count; s++)
            pass->cu_seqlens[++segment] = base + batch->cu_seqlens[s];
        base += batch->capacity;
        if (batch->used < batch->capacity)
            pass->cu_seqlens[++segment] = base;
        if (pass->grafts.member[k].dropout_key != NULL)
            gd_plan_bind(pass->plan, pass->grafts.member[k].dropout_key, parts[k].dropout_key);
    }
    while (segment < pass->count * SEGMENTS)
        pass->cu_seqlens[++segment] = base;
}

static bool read_results(const struct gd_group_pass *pass, struct gd_group_part *parts, struct gd_error *err)
{
    const float *logprob = gd_plan_read(pass->plan, pass->outputs.logprob, err);
    const int32_t *argmax = gd_plan_read(pass->plan, pass->outputs.argmax, err);
    int64_t base = 0;
    if (logprob == NULL || argmax == NULL)
        return false;
    for (int k = 0; k < pass->count; k++) {
        const int32_t *labels = pass->labels + base;
        struct gd_pass_result *result = &parts[k].result;
        *result = (struct gd_pass_result){.loss = (double)gd_cross_entropy_loss(labels, pass->weights + base, logprob + base, pass->rows[k]),
                                          .penalised = pass->penalty[k] != NULL};
        const float *penalty = result->penalised ? gd_plan_read(pass->plan, pass->penalty[k], err) : NULL;
        if (result->penalised && penalty == NULL)
            return false;
        result->penalty = penalty != NULL ? (double)*penalty : 0;
        for (int t = 0; t < parts[k].batch->used; t++) {
            result->labelled += labels[t] >= 0;
            result->correct += labels[t] >= 0 && argmax[base + t] == labels[t];
        }
        base += pass->rows[k];
    }
    return true;
}

bool gd_group_passes_run(struct gd_group_passes *group, struct gd_group_part *parts, int count, size_t arena_limit,
                         const struct gd_run_options *options, struct gd_error *err)
{
    struct gd_group_pass *pass = pass_get(group, parts, count, err);
    if (pass == NULL || !ensure_arena(group, gd_plan_arena_bytes(pass->plan), arena_limit, err))
        return false;
    gd_plan_attach(pass->plan, group->arena.memory);
    fill(pass, parts);
    return gd_plan_run(pass->plan, options, err) && read_results(pass, parts, err);
}
