#include "engine/train/passes.h"

#include "engine/base/alloc.h"
#include "engine/tensor/again.h"

#include <string.h>

/* A reference pass is the model without its graft, or with the one that it started from, up to the log-probabilities of
 * the segments; a probe is the model with its graft, up to those of the tokens. */
enum kind { EVALUATION, TRAINING, REFERENCE, PROBE };

struct gd_pass {
    int tokens, encoder_tokens; /* the second of a model with an encoder; else 0 */
    enum kind kind;
    int head_begin, head_end;          /* calls of the vocabulary product and the loss */
    struct gd_graph *graph;
    struct gd_plan *plan;
    struct gd_model_inputs inputs;
    struct gd_objective_inputs objective_inputs;
    struct gd_objective_outputs outputs;
    struct gd_graft_training graft;
    struct gd_value *penalty, *share;  /* NULL without a penalty; share also with experts */
    struct gd_value *expert_load, *balance; /* of a training pass of a model with experts; else NULL */
    struct gd_value *loss;             /* what is differentiated */
    struct gd_value **grads;
};

void gd_passes_init(struct gd_passes *passes, const struct gd_model *model, const struct gd_graft *graft,
                    const struct gd_objective *objective, const struct gd_preference *preference, enum gd_dtype act,
                    float *block, float *grad)
{
    *passes = (struct gd_passes){.model = model, .graft = graft, .objective = objective, .preference = preference, .act = act,
                                 .block = block, .grad = grad};
}

static void pass_destroy(struct gd_pass *pass)
{
    gd_plan_destroy(pass->plan);
    gd_graph_destroy(pass->graph);
    gd_graft_training_release(&pass->graft);
    gd_free(pass->grads);
    gd_free(pass);
}

void gd_passes_release(struct gd_passes *passes)
{
    for (int i = 0; i < passes->pass_count; i++)
        pass_destroy(passes->pass[i]);
    gd_batch_release(&passes->bare);
    gd_device_release(&passes->arena);
    gd_free(passes->nll);
    memset(passes, 0, sizeof(*passes));
}

static bool bare(const struct gd_passes *passes, const struct gd_pass *pass)
{
    return pass->kind == REFERENCE && passes->reference == GD_REFERENCE_BASE;
}

/* The classifier's parameters are the last ones (head.h). */
static void set_head(const struct gd_graft *graft, struct gd_pass *pass)
{
    struct gd_value **params = pass->graft.params + graft->param_count - graft->head_params;
    struct gd_objective_inputs *inputs = &pass->objective_inputs;
    if (graft->head_params == 4) {
        inputs->pool = params[0];
        inputs->pool_bias = params[1];
        inputs->label_head = params[2];
        inputs->label_bias = params[3];
    } else {
        inputs->label_head = params[0];
    }
}

static struct gd_value *by_share(struct gd_pass *pass, struct gd_value *term)
{
    if (pass->share == NULL)
        pass->share = gd_graph_input(pass->graph, "share", GD_F32, 1, (int64_t[]){1});
    return gd_mul_scalar(pass->graph, term, pass->share);
}

/* What is added to a training pass's loss: the balance of the experts, and the graft's own term. */
static void add_terms(const struct gd_passes *passes, struct gd_pass *pass)
{
    struct gd_graph *g = pass->graph;
    if (pass->expert_load != NULL) {
        pass->balance = by_share(pass, gd_expert_balance(g, pass->expert_load, passes->model->config.experts_chosen));
        if (passes->router_loss > 0)
            pass->loss = gd_add(g, pass->loss, gd_scale(g, pass->balance, passes->router_loss));
    }
    struct gd_value *penalty = passes->graft->method->penalty != NULL ? passes->graft->method->penalty(&pass->graft, g, pass->graft.params) : NULL;
    if (penalty != NULL) {
        pass->penalty = by_share(pass, penalty);
        pass->loss = gd_add(g, pass->loss, pass->penalty);
    }
}

/* The loss over the model's last hidden states, with the graft's sites unless the reference has none. */
static void build_loss(struct gd_passes *passes, struct gd_pass *pass)
{
    static const struct gd_sites none;
    struct gd_graph *g = pass->graph;
    struct gd_objective_inputs *inputs = &pass->objective_inputs;
    gd_model_inputs_create(&pass->inputs, g, passes->model, pass->tokens, GD_BATCH_SEGMENTS_MAX, false);
    if (pass->encoder_tokens > 0)
        gd_model_inputs_encoder(&pass->inputs, g, pass->encoder_tokens, GD_BATCH_SEGMENTS_MAX);
    inputs->labels = gd_graph_input(g, "labels", GD_I32, 1, (int64_t[]){pass->tokens});
    inputs->weights = gd_graph_input(g, "weights", GD_F32, 1, (int64_t[]){pass->tokens});
    inputs->cu_seqlens = pass->inputs.cu_seqlens;
    inputs->softcap = passes->model->config.logit_softcap;
    if (passes->objective->pairs) {
        inputs->segment_loss = gd_graph_handle(g, "segment_loss");
        inputs->prefix = pass->inputs.prefix = gd_graph_input(g, "prefix", GD_I32, 1, (int64_t[]){2 * GD_BATCH_SEGMENTS_MAX});
    }
    if (passes->objective->classifies) {
        inputs->segment_loss = gd_graph_handle(g, "segment_loss");
        inputs->place = gd_graph_input(g, "place", GD_I32, 1, (int64_t[]){GD_BATCH_SEGMENTS_MAX});
    }
    if (!bare(passes, pass))
        gd_graft_training_sites(&pass->graft, g, passes->graft, pass->kind == TRAINING);
    if (!bare(passes, pass))
        gd_graft_training_segments(&pass->graft, g, pass->inputs.cu_seqlens);
    if (pass->kind == TRAINING && passes->model->config.experts > 0)
        pass->inputs.expert_load = &pass->expert_load;
    const struct gd_sites *sites = bare(passes, pass) ? &none : &pass->graft.sites;
    struct gd_value *hidden = gd_model_hidden(g, passes->model, &pass->inputs, sites);
    pass->head_begin = gd_graph_call_count(g);
    if (pass->kind == PROBE) {
        pass->outputs.logprob = gd_token_logprob(g, hidden, gd_model_head(g, passes->model, sites), inputs->labels, 1.0, inputs->softcap);
        return;
    }
    if (passes->graft->head_params > 0)
        set_head(passes->graft, pass);
    if (passes->graft->config.score)
        inputs->score = pass->graft.params[passes->graft->param_count - 1];
    passes->objective->build(g, hidden, gd_model_head(g, passes->model, sites), inputs, &pass->outputs);
    pass->head_end = gd_graph_call_count(g);
    pass->loss = pass->outputs.loss;
    if (pass->kind == TRAINING)
        add_terms(passes, pass);
}

static bool plan(struct gd_passes *passes, struct gd_pass *pass, bool dry, struct gd_error *err)
{
    int param_count = passes->graft->param_count, wanted_count = 0;
    struct gd_value **wanted = gd_alloc_array((size_t)param_count + 6, sizeof(struct gd_value *));
    if (pass->kind == PROBE) {
        wanted[wanted_count++] = pass->outputs.logprob;
    } else if (pass->kind != REFERENCE) {
        wanted[wanted_count++] = pass->outputs.loss;
        if (pass->outputs.argmax != NULL)
            wanted[wanted_count++] = pass->outputs.argmax;
    } else {
        wanted[wanted_count++] = pass->outputs.segments;
    }
    if (pass->penalty != NULL)
        wanted[wanted_count++] = pass->penalty;
    if (pass->balance != NULL) {
        wanted[wanted_count++] = pass->balance;
        wanted[wanted_count++] = pass->expert_load;
    }
    for (int i = 0; pass->kind == TRAINING && i < param_count; i++)
        if (pass->grads[i] != NULL)
            wanted[wanted_count++] = pass->grads[i];
    bool ok = gd_plan_create(&pass->plan, pass->graph, wanted, wanted_count, dry, err);
    gd_free(wanted);
    return ok;
}

static bool pass_build(struct gd_passes *passes, struct gd_pass *pass, bool dry, struct gd_error *err)
{
    int param_count = passes->graft->param_count;
    if (!gd_graph_create(&pass->graph, passes->act, err))
        return false;
    if (passes->recompute)
        gd_graph_recompute(pass->graph);
    if (passes->narrow)
        gd_graph_keep_narrow(pass->graph);
    build_loss(passes, pass);
    if (!gd_graph_ok(pass->graph, err))
        return false;
    pass->grads = gd_alloc_array((size_t)param_count, sizeof(struct gd_value *));
    if (pass->kind == TRAINING &&
        !gd_graph_gradient(pass->graph, pass->loss, pass->graft.params, param_count, pass->grads, err))
        return false;
    if (!plan(passes, pass, dry, err))
        return false;

    gd_plan_bind(pass->plan, pass->inputs.inv_freq, passes->model->config.inv_freq);
    if (!bare(passes, pass))
        gd_graft_training_bind(&pass->graft, pass->plan, pass->kind == REFERENCE ? passes->start_block : passes->block);
    for (int i = 0; i < param_count; i++)
        if (pass->kind == TRAINING && pass->grads[i] != NULL)
            gd_plan_bind(pass->plan, pass->grads[i], passes->grad + passes->graft->params[i].offset);
    return true;
}

static struct gd_pass *pass_make(struct gd_passes *passes, int tokens, int encoder_tokens, enum kind kind, bool dry, struct gd_error *err)
{
    static const char *const names[] = {[EVALUATION] = "evaluation", [TRAINING] = "training", [REFERENCE] = "reference",
                                        [PROBE] = "probing"};
    struct gd_pass *pass = gd_alloc(sizeof(*pass));
    pass->tokens = tokens;
    pass->encoder_tokens = encoder_tokens;
    pass->kind = kind;
    if (pass_build(passes, pass, dry, err))
        return pass;
    gd_error_context(err, "build a %s pass of %d tokens", names[kind], tokens);
    pass_destroy(pass);
    return NULL;
}

static struct gd_pass *pass_get(struct gd_passes *passes, int tokens, int encoder_tokens, enum kind kind, struct gd_error *err)
{
    for (int i = 0; i < passes->pass_count; i++)
        if (passes->pass[i]->tokens == tokens && passes->pass[i]->encoder_tokens == encoder_tokens && passes->pass[i]->kind == kind)
            return passes->pass[i];
    if (passes->pass_count == GD_PASS_BUCKETS_MAX) {
        pass_destroy(passes->pass[0]);
        memmove(passes->pass, passes->pass + 1, sizeof(passes->pass[0]) * (GD_PASS_BUCKETS_MAX - 1));
        passes->pass_count--;
    }
    struct gd_pass *pass = pass_make(passes, tokens, encoder_tokens, kind, false, err);
    if (pass != NULL)
        passes->pass[passes->pass_count++] = pass;
    return pass;
}

static struct gd_pass *pass_of(struct gd_passes *passes, const struct gd_batch *batch, enum kind kind, struct gd_error *err)
{
    return pass_get(passes, batch->capacity, gd_model_encodes(passes->model) ? batch->encoder_capacity : 0, kind, err);
}

/* With an encoder: how a budget of tokens is used up most, all on the side with more layers. */
static void widest_sides(const struct gd_passes *passes, int bucket, int *tokens, int *encoder_tokens)
{
    const struct gd_model_config *config = &passes->model->config;
    bool encoder = config->encoder_layers > config->layers - config->encoder_layers;
    *tokens = encoder ? gd_token_bucket(1) : bucket;
    *encoder_tokens = encoder ? bucket : gd_model_encodes(passes->model) ? gd_token_bucket(1) : 0;
}

static bool ensure_arena(struct gd_passes *passes, size_t bytes, struct gd_error *err)
{
    if (bytes > passes->arena.size_bytes) {
        gd_device_release(&passes->arena);
        if (passes->make_room != NULL)
            passes->make_room(passes->room_context, bytes);
    }
    return gd_device_reserve(&passes->arena, bytes, "activations of a micro-batch", err);
}

static bool has_reference(const struct gd_passes *passes)
{
    return passes->objective->pairs && passes->reference != GD_REFERENCE_NONE &&
           gd_preference_has(passes->preference, GD_LOSS_REFERENCE);
}

bool gd_passes_prepare(struct gd_passes *passes, int tokens, bool training, size_t *arena_bytes, struct gd_error *err)
{
    int sides[2];
    widest_sides(passes, gd_token_bucket(tokens), &sides[0], &sides[1]);
    bool live = has_reference(passes) && passes->reference != GD_REFERENCE_PRECOMPUTED;
    struct gd_pass *reference = live ? pass_get(passes, sides[0], sides[1], REFERENCE, err) : NULL;
    struct gd_pass *pass = pass_get(passes, sides[0], sides[1], training ? TRAINING : EVALUATION, err);
    if (pass == NULL || (live && reference == NULL))
        return false;
    *arena_bytes = gd_plan_arena_bytes(pass->plan);
    if (reference != NULL && gd_plan_arena_bytes(reference->plan) > *arena_bytes)
        *arena_bytes = gd_plan_arena_bytes(reference->plan);
    return true;
}

bool gd_passes_estimate(struct gd_passes *passes, int tokens, bool training, struct gd_pass_need *need, struct gd_error *err)
{
    int sides[2];
    widest_sides(passes, gd_token_bucket(tokens), &sides[0], &sides[1]);
    bool live = has_reference(passes) && passes->reference != GD_REFERENCE_PRECOMPUTED;
    *need = (struct gd_pass_need){0};
    for (int i = live ? 0 : 1; i < 2; i++) {
        struct gd_pass *pass = pass_make(passes, sides[0], sides[1], i == 0 ? REFERENCE : training ? TRAINING : EVALUATION, true, err);
        if (pass == NULL)
            return false;
        size_t arena = gd_plan_arena_bytes(pass->plan);
        if (arena > need->arena) {
            need->arena = arena;
            need->head = gd_plan_share_bytes(pass->plan, pass->head_begin, pass->head_end);
        }
        gd_layout_cost_join(&need->weights, gd_plan_layouts(pass->plan));
        need->tables += gd_plan_table_bytes(pass->plan);
        pass_destroy(pass);
    }
    return true;
}

void gd_passes_rest(struct gd_passes *passes)
{
    gd_device_release(&passes->arena);
}

static bool run_pass(struct gd_passes *passes, struct gd_pass *pass, struct gd_batch *batch, int32_t *dropout_key,
                     const struct gd_run_options *options, struct gd_error *err)
{
    if (pass == NULL || !ensure_arena(passes, gd_plan_arena_bytes(pass->plan), err))
        return false;
    gd_plan_attach(pass->plan, passes->arena.memory);
    gd_plan_bind(pass->plan, pass->inputs.ids, batch->ids);
    gd_plan_bind(pass->plan, pass->inputs.positions, batch->positions);
    gd_plan_bind(pass->plan, pass->inputs.cu_seqlens, batch->cu_seqlens);
    if (pass->encoder_tokens > 0) {
        gd_plan_bind(pass->plan, pass->inputs.encoder_ids, batch->encoder_ids);
        gd_plan_bind(pass->plan, pass->inputs.encoder_cu_seqlens, batch->encoder_cu_seqlens);
    }
    if (pass->inputs.prefix != NULL)
        gd_plan_bind(pass->plan, pass->inputs.prefix, batch->prefix);
    if (pass->inputs.types != NULL)
        gd_plan_bind(pass->plan, pass->inputs.types, batch->types);
    if (pass->objective_inputs.place != NULL)
        gd_plan_bind(pass->plan, pass->objective_inputs.place, passes->place);
    gd_plan_bind(pass->plan, pass->objective_inputs.labels, batch->labels);
    if (pass->kind != PROBE)
        gd_plan_bind(pass->plan, pass->objective_inputs.weights, batch->weights);
    if (pass->objective_inputs.segment_loss != NULL && pass->kind != PROBE)
        gd_plan_bind(pass->plan, pass->objective_inputs.segment_loss, &passes->segment_loss);
    if (pass->share != NULL)
        gd_plan_bind(pass->plan, pass->share, &passes->share);
    for (int i = 0; i < GD_ROW_INDICES; i++)
        if (pass->graft.index[i] != NULL)
            gd_plan_bind(pass->plan, pass->graft.index[i], batch->index[i]);
    if (pass->graft.tasks != NULL)
        gd_plan_bind(pass->plan, pass->graft.tasks, batch->tasks);
    if (pass->graft.owner != NULL)
        gd_plan_bind(pass->plan, pass->graft.owner, batch->owner);
    if (pass->graft.dropout_key != NULL)
        gd_plan_bind(pass->plan, pass->graft.dropout_key, dropout_key);
    return gd_plan_run(pass->plan, options, err);
}

/* The bare model has no virtual rows. */
static struct gd_batch *stripped(struct gd_passes *passes, const struct gd_batch *batch)
{
    struct gd_batch *bare_batch = &passes->bare;
    int tokens = 0;
    for (int t = 0; t < batch->used; t++)
        tokens += batch->index[GD_ROW_VIRTUAL][t] < 0;
    if (batch->capacity > passes->bare_capacity) {
        gd_batch_release(bare_batch);
        gd_batch_init(bare_batch, batch->capacity, GD_BATCH_SEGMENTS_MAX);
        passes->bare_capacity = batch->capacity;
    }
    gd_batch_strip(bare_batch, batch, gd_token_bucket(tokens));
    return bare_batch;
}

static float *nll_of(struct gd_passes *passes, int capacity)
{
    if (passes->nll_capacity < capacity) {
        gd_free(passes->nll);
        passes->nll = gd_alloc_array((size_t)capacity, sizeof(float));
        passes->nll_capacity = capacity;
    }
    memset(passes->nll, 0, (size_t)capacity * sizeof(float));
    return passes->nll;
}

/* What is known of the batch's rows, and of their place in the step. */
static void set_rows(struct gd_passes *passes, const struct gd_batch *batch, int sides)
{
    const struct gd_survey *survey = passes->survey;
    struct gd_preference_batch *pairs = &passes->pairs;
    for (int i = 0; i < pairs->rows; i++) {
        int at = survey->count > 0 ? gd_survey_find(survey, batch->row_index[i]) : -1;
        pairs->desirable[i] = batch->desirable[i];
        pairs->margin[i] = batch->margin[i];
        if (at >= 0)
            memcpy(pairs->partner[i], survey->partner[at], sizeof(pairs->partner[i]));
        if (at >= 0 && survey->has_reference)
            memcpy(pairs->reference + sides * i, survey->reference + sides * at, (size_t)sides * sizeof(float));
    }
}

/* A pass of its own, over what begin_rows has made of the batch. */
static bool reference_pass(struct gd_passes *passes, struct gd_batch *batch, float *out, const struct gd_run_options *options,
                           struct gd_error *err)
{
    bool strip = passes->reference == GD_REFERENCE_BASE && passes->graft->virtual_rows.count > 0;
    struct gd_batch *seen = strip ? stripped(passes, batch) : batch;
    struct gd_pass *pass = pass_of(passes, seen, REFERENCE, err);
    if (!run_pass(passes, pass, seen, NULL, options, err))
        return false;
    const float *segments = gd_plan_read(pass->plan, pass->outputs.segments, err);
    if (segments == NULL)
        return false;
    memcpy(out, segments, (size_t)batch->segment_count * sizeof(float));
    return true;
}

static bool run_reference(struct gd_passes *passes, struct gd_batch *batch, float *out, const struct gd_run_options *options,
                          struct gd_error *err)
{
    if (!has_reference(passes))
        return true;
    if (passes->reference != GD_REFERENCE_PRECOMPUTED || batch->mismatched)
        return reference_pass(passes, batch, out, options, err);
    memcpy(out, batch->reference, (size_t)batch->segment_count * sizeof(float));
    return true;
}

/* The score of an answer is that of its last token. */
static void keep_last(struct gd_batch *batch)
{
    memset(batch->weights, 0, (size_t)batch->capacity * sizeof(*batch->weights));
    for (int s = 0; s < batch->segment_count; s++)
        batch->weights[batch->cu_seqlens[s + 1] - 1] = 1;
}

static void begin_rows(struct gd_passes *passes, struct gd_batch *batch)
{
    struct gd_preference_batch *pairs = &passes->pairs;
    int sides = gd_preference_sides(passes->preference);
    *pairs = (struct gd_preference_batch){.preference = passes->preference, .rows = batch->segment_count / sides,
                                          .step = passes->survey->step, .cu_seqlens = batch->cu_seqlens, .prefix = batch->prefix,
                                          .labels = batch->labels, .weights = batch->weights,
                                          .nll = nll_of(passes, batch->capacity),
                                          .importance = batch->importance};
    passes->segment_loss = (struct gd_segment_loss){.context = pairs, .evaluate = gd_preference_batch_evaluate};
    gd_preference_batch_begin(pairs, batch->ids, batch->index[GD_ROW_VIRTUAL]);
    if (passes->objective->scores)
        keep_last(batch);
}

bool gd_passes_reference(struct gd_passes *passes, struct gd_batch *batch, const struct gd_run_options *options, float *logps,
                         struct gd_error *err)
{
    static const struct gd_survey unknown;
    const struct gd_survey *survey = passes->survey;
    passes->survey = &unknown;
    begin_rows(passes, batch);
    passes->survey = survey;
    return reference_pass(passes, batch, logps, options, err);
}

/* What the loss over answers needs to know of this batch; the reference's log-probabilities come from a pass of its own, or
 * with the rows. */
static bool begin_pairs(struct gd_passes *passes, struct gd_batch *batch, const struct gd_run_options *options, struct gd_error *err)
{
    struct gd_preference_batch *pairs = &passes->pairs;
    begin_rows(passes, batch);
    set_rows(passes, batch, gd_preference_sides(passes->preference));
    return passes->survey->has_reference || run_reference(passes, batch, pairs->reference, options, err);
}

static double record(void *context, const float *logp, const float *collision, int64_t count, float *gradient)
{
    struct gd_passes *passes = context;
    gd_preference_segment_sums(&passes->pairs, logp, passes->recorded);
    memset(gradient, 0, (size_t)count * sizeof(*gradient));
    return 0;
}

bool gd_passes_logprobs(struct gd_passes *passes, struct gd_batch *batch, const struct gd_run_options *options, float *own,
                        float *reference, struct gd_error *err)
{
    static const struct gd_survey unknown;
    const struct gd_survey *survey = passes->survey;
    passes->survey = &unknown;
    bool ok = begin_pairs(passes, batch, options, err);
    passes->survey = survey;
    if (!ok)
        return false;
    passes->recorded = own;
    passes->segment_loss = (struct gd_segment_loss){.context = passes, .evaluate = record};
    memcpy(reference, passes->pairs.reference, (size_t)batch->segment_count * sizeof(float));
    return run_pass(passes, pass_of(passes, batch, EVALUATION, err), batch, NULL, options, err);
}

/* What the loss of a classifier needs to know of this batch: which row of a segment is looked at, and its labels. */
static void begin_classes(struct gd_passes *passes, const struct gd_batch *batch, double scale)
{
    const struct gd_dataset *data = batch->dataset;
    bool first = gd_model_is_encoder(passes->model);
    double sum = 0;
    for (int s = 0; s < GD_BATCH_SEGMENTS_MAX; s++)
        passes->place[s] = s >= batch->segment_count ? -1 : first ? batch->cu_seqlens[s] : batch->cu_seqlens[s + 1] - 1;
    for (int s = 0; s < batch->segment_count; s++) {
        const struct gd_dataset_row *row = &data->rows[batch->row_index[s]];
        passes->row_labels[s] = data->labels + row->label_at;
        passes->row_label_count[s] = row->label_count;
        sum += gd_dataset_class_weight(data, batch->row_index[s]);
    }
    passes->classes = (struct gd_label_batch){.rows = batch->segment_count, .labels = data->classes.count, .multi = data->multi,
                                              .row_labels = passes->row_labels, .row_label_count = passes->row_label_count,
                                              .weights = data->class_weights, .scale = scale, .counts = passes->label_counts};
    passes->segment_loss = (struct gd_segment_loss){.context = &passes->classes, .evaluate = gd_label_loss};
    passes->share = (float)(sum * scale);
}

/* Nothing where the pass has no such value. */
static bool read_number(const struct gd_pass *pass, const struct gd_value *value, double *number, struct gd_error *err)
{
    const float *read = value != NULL ? gd_plan_read(pass->plan, value, err) : NULL;
    *number = read != NULL ? (double)*read : 0;
    return read != NULL || value == NULL;
}

bool gd_passes_run(struct gd_passes *passes, bool training, struct gd_batch *batch, double scale, int32_t *dropout_key,
                   const struct gd_run_options *options, struct gd_pass_result *result, struct gd_error *err)
{
    if (passes->objective->pairs) {
        if (!begin_pairs(passes, batch, options, err))
            return false;
        passes->share = (float)(passes->pairs.rows * passes->survey->step.scale);
    } else if (passes->objective->classifies) {
        begin_classes(passes, batch, scale);
    } else {
        double sum = 0;
        for (int t = 0; t < batch->used; t++) {
            sum += (double)batch->weights[t];
            batch->weights[t] *= (float)scale;
        }
        passes->share = (float)(sum * scale);
    }
    struct gd_pass *pass = pass_of(passes, batch, training ? TRAINING : EVALUATION, err);
    if (!run_pass(passes, pass, batch, dropout_key, options, err))
        return false;

    *result = (struct gd_pass_result){.pairs = passes->pairs.sums, .penalised = pass->penalty != NULL};
    if (!read_number(pass, pass->outputs.loss, &result->loss, err) || !read_number(pass, pass->penalty, &result->penalty, err) ||
        !read_number(pass, pass->balance, &result->balance, err))
        return false;
    if (pass->balance != NULL && (result->expert_rows = gd_plan_read(pass->plan, pass->expert_load, err)) == NULL)
        return false;
    if (passes->objective->classifies) {
        result->labelled = passes->classes.rows;
        result->correct = passes->classes.correct;
        return true;
    }
    const int32_t *argmax = pass->outputs.argmax != NULL ? gd_plan_read(pass->plan, pass->outputs.argmax, err) : NULL;
    if (pass->outputs.argmax != NULL && argmax == NULL)
        return false;
    for (int s = 0; passes->objective->pairs && s < batch->segment_count; s++)
        result->labelled += passes->pairs.tokens[s];
    for (int t = 0; !passes->objective->pairs && t < batch->used; t++) {
        result->labelled += batch->labels[t] >= 0;
        result->correct += batch->labels[t] >= 0 && argmax[t] == batch->labels[t];
    }
    return true;
}

const float *gd_passes_probe(struct gd_passes *passes, struct gd_batch *batch, const struct gd_run_options *options,
                             struct gd_error *err)
{
    struct gd_pass *pass = pass_of(passes, batch, PROBE, err);
    return run_pass(passes, pass, batch, NULL, options, err) ? gd_plan_read(pass->plan, pass->outputs.logprob, err) : NULL;
}
