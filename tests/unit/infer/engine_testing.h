/*
 * engine_testing.h - what the tests of the engine share: requests, what their sinks were told, and the same sequences at once.
 *
 * Why      A result of mixed batches and cached pages is held against one pass of the training graph over the whole sequence.
 * Memory   heard_destroy what submit gives.
 * Threads  One.
 * Errors   A failed check ends the test.
 * Limits   TOKENS_MAX tokens of a sequence.
 * Life     submit -> run_all -> check_recomputed -> heard_destroy
 */
#ifndef TESTS_INFER_ENGINE_TESTING_H
#define TESTS_INFER_ENGINE_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/philox.h"
#include "engine/infer/engine.h"
#include "engine/tensor/backend.h"
#include "engine/tensor/device.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/unit/tensor/reading.h"

#define TOKENS_MAX 300
#define PAGES_BYTES ((size_t)4 << 20)

/* What a sink was told. */
struct heard {
    int32_t ids[TOKENS_MAX];
    double logprobs[TOKENS_MAX];
    bool from_prompt[TOKENS_MAX], has_logprob[TOKENS_MAX];
    int top_ids[TOKENS_MAX];
    int count, finishes;
    enum gd_finish finish;
    struct gd_infer_usage usage;
    struct gd_error error;
    struct gd_buf text;
    struct gd_infer *cancel;      /* cancel `cancel_id` after `cancel_after` tokens */
    uint64_t id, cancel_id;
    int cancel_after;
};

static inline void hear_token(void *context, const struct gd_infer_token *token)
{
    struct heard *heard = context;
    assert_int_equal(heard->finishes, 0);
    assert_true(heard->count < TOKENS_MAX);
    assert_true(gd_utf8_valid(token->text, token->text_length));
    heard->ids[heard->count] = token->id;
    heard->from_prompt[heard->count] = token->from_prompt;
    heard->has_logprob[heard->count] = token->has_logprob;
    heard->logprobs[heard->count] = token->logprob;
    heard->top_ids[heard->count] = token->top_count > 0 ? token->top[0].id : -1;
    heard->count++;
    gd_buf_append(&heard->text, token->text, token->text_length);
    if (heard->cancel != NULL && heard->count == heard->cancel_after)
        gd_infer_cancel(heard->cancel, heard->cancel_id);
}

static inline void hear_finish(void *context, enum gd_finish finish, const char *tail, size_t tail_length,
                        const struct gd_infer_usage *usage, const struct gd_error *error)
{
    struct heard *heard = context;
    heard->finishes++;
    heard->finish = finish;
    heard->usage = *usage;
    gd_buf_append(&heard->text, tail, tail_length);
    if (error != NULL)
        heard->error = *error;
}

static inline struct heard *heard_create(void)
{
    struct heard *heard = gd_alloc(sizeof(*heard));
    gd_buf_init(&heard->text, 0);
    return heard;
}

static inline void heard_destroy(struct heard *heard)
{
    gd_buf_release(&heard->text);
    gd_free(heard);
}

static const struct gd_sampling greedy = {.top_p = 1, .repetition_penalty = 1, .max_tokens = 20, .logprobs = 0, .ignore_eos = true};

static inline struct gd_model *open_model(const char *name)
{
    struct gd_model *model = NULL;
    struct gd_error err = {0};
    char *path = gd_format("%s/models/%s", getenv("GD_FIXTURES"), name);
    if (!gd_model_open(&model, name, path, &err))
        fail_msg("%s", err.message);
    gd_free(path);
    return model;
}

static inline struct gd_infer *make_infer(struct gd_model *model, size_t cache_bytes)
{
    struct gd_infer *infer = NULL;
    struct gd_error err = {0};
    if (!gd_infer_create(&infer, model, cache_bytes, &err))
        fail_msg("%s", err.message);
    return infer;
}

static inline void make_prompt(int32_t *ids, int count, uint64_t key, int vocab)
{
    for (int i = 0; i < count; i++)
        ids[i] = (int32_t)(gd_philox4(key, gd_philox_stream(GD_RANDOM_TEST, 3, 0), (uint64_t)i).v[0] % (uint32_t)vocab);
}

static inline struct heard *submit_with(struct gd_infer *infer, struct heard *heard, const struct gd_graft *graft,
                                 const int32_t *prompt, int count, const struct gd_sampling *sampling)
{
    struct gd_error err = {0};
    struct gd_infer_sink sink = {heard, hear_token, hear_finish};
    if (!gd_infer_submit(infer, graft, prompt, count, sampling, &sink, &heard->id, &err))
        fail_msg("%s", err.message);
    return heard;
}

static inline struct heard *submit(struct gd_infer *infer, const struct gd_graft *graft, const int32_t *prompt, int count,
                            const struct gd_sampling *sampling)
{
    return submit_with(infer, heard_create(), graft, prompt, count, sampling);
}

static inline void run_all(struct gd_infer *infer)
{
    struct gd_error err = {0};
    for (int turn = 0; gd_infer_busy(infer); turn++) {
        if (!gd_infer_turn(infer, &err))
            fail_msg("%s", err.message);
        assert_true(turn < 5000);
    }
}

static inline void check_empty(struct gd_infer *infer)
{
    struct gd_infer_stats stats;
    gd_infer_get_stats(infer, &stats);
    assert_int_equal(stats.running, 0);
    assert_int_equal(stats.waiting, 0);
    assert_int_equal(stats.pages_used, 0);
}

/* To the bit on the CPU; a device's library adds up in another order where there are more rows. */
static inline void check_same(const struct heard *a, const struct heard *b)
{
    double tolerance = gd_backend()->own_memory ? 1e-5 : 0;
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->finish, b->finish);
    for (int i = 0; i < a->count; i++) {
        assert_int_equal(a->ids[i], b->ids[i]);
        if (!(fabs(a->logprobs[i] - b->logprobs[i]) <= tolerance))
            fail_msg("token %d: log-probability %.17g alone, %.17g in company", i, a->logprobs[i], b->logprobs[i]);
    }
}

/* ---- the whole sequence at once, without a cache ---- */

/* log p(tokens[t + 1]) after tokens[0..t] and the most likely id there, for all t < token_count - 1, through the training graph.
 * prompt_count: tokens that a graft may take for the prompt. */
static inline void score_whole(struct gd_model *model, const struct gd_graft *graft, const int32_t *tokens, int token_count,
                        int prompt_count, double *logp, int32_t *best)
{
    static const struct gd_virtual_rows none;
    const struct gd_virtual_rows *virtual_rows = graft != NULL ? &graft->virtual_rows : &none;
    int lead = virtual_rows->count, count = lead + token_count;
    int32_t ids[TOKENS_MAX], index[GD_ROW_INDICES][TOKENS_MAX];
    struct gd_error err = {0};
    struct gd_graph *graph = NULL;
    struct gd_plan *plan = NULL;
    struct gd_model_inputs inputs;
    struct gd_graft_training training = {0};
    int32_t positions[TOKENS_MAX], labels[TOKENS_MAX], cu[2] = {0, count};
    float weights[TOKENS_MAX];
    assert_true(count <= TOKENS_MAX);
    for (int t = 0; t < count; t++) {
        int token = t - lead, limit = virtual_rows->prompt_only ? prompt_count : token_count;
        ids[t] = token < 0 ? -1 : tokens[token];
        index[GD_ROW_VIRTUAL][t] = token < 0 ? t : -1;
        index[GD_ROW_TOKEN][t] = token < 0 ? -1 : t;
        index[GD_ROW_TABLE][t] = token >= 0 && token < virtual_rows->table_rows && token < limit ? token : -1;
        positions[t] = t | (model->config.long_from > 0 && count > model->config.long_from ? GD_POSITION_LONG : 0);
        labels[t] = token >= 0 && t + 1 < count ? tokens[token + 1] : -100;
        weights[t] = 1;
    }
    assert_true(gd_graph_create(&graph, gd_device()->compute, &err));
    gd_model_inputs_create(&inputs, graph, model, count, 1, false);
    if (graft != NULL)
        gd_graft_training_sites(&training, graph, graft, false);
    if (graft != NULL)
        gd_graft_training_segments(&training, graph, inputs.cu_seqlens);
    struct gd_value *label_value = gd_graph_input(graph, "labels", GD_I32, 1, (int64_t[]){count});
    struct gd_value *weight_value = gd_graph_input(graph, "weights", GD_F32, 1, (int64_t[]){count});
    struct gd_value *hidden = gd_model_hidden(graph, model, &inputs, graft != NULL ? &training.sites : NULL);
    struct gd_value *loss = gd_cross_entropy(graph, hidden, gd_model_head(graph, model, graft != NULL ? &training.sites : NULL), label_value, weight_value, 1,
                                           model->config.logit_softcap);
    struct gd_value *outputs[] = {gd_value_output(loss, 1), gd_value_output(loss, 2)};
    if (!gd_graph_ok(graph, &err) || !gd_plan_create(&plan, graph, outputs, 2, false, &err))
        fail_msg("%s", err.message);
    void *arena = NULL;
    size_t bytes = gd_plan_arena_bytes(plan);
    assert_true(gd_device_alloc(&arena, bytes, "a test's arena", &err));
    gd_plan_attach(plan, arena);
    gd_plan_bind(plan, inputs.ids, (void *)ids);
    gd_plan_bind(plan, inputs.positions, positions);
    gd_plan_bind(plan, inputs.inv_freq, model->config.inv_freq);
    gd_plan_bind(plan, inputs.cu_seqlens, cu);
    gd_plan_bind(plan, label_value, labels);
    gd_plan_bind(plan, weight_value, weights);
    for (int i = 0; i < GD_ROW_INDICES; i++)
        if (training.index[i] != NULL)
            gd_plan_bind(plan, training.index[i], index[i]);
    if (graft != NULL)
        gd_graft_training_bind(&training, plan, graft->block);
    int32_t task = graft != NULL ? graft->task : 0;
    if (training.tasks != NULL)
        gd_plan_bind(plan, training.tasks, &task);
    if (!gd_plan_run(plan, NULL, &err))
        fail_msg("%s", err.message);
    for (int t = 0; t + 1 < token_count; t++) {
        logp[t] = (double)((const float *)test_read(plan, outputs[0]))[lead + t];
        best[t] = ((const int32_t *)test_read(plan, outputs[1]))[lead + t];
    }
    gd_plan_destroy(plan);
    gd_graph_destroy(graph);
    gd_graft_training_release(&training);
    gd_device_free(arena, bytes);
}

/* What was generated after `prompt` has the log-probabilities of a full recomputation and, greedily, its argmax. */
static inline void check_recomputed(struct gd_model *model, const struct gd_graft *graft, const int32_t *prompt, int prompt_count,
                             const struct heard *heard, bool is_greedy)
{
    int32_t ids[TOKENS_MAX], best[TOKENS_MAX];
    double logp[TOKENS_MAX];
    memcpy(ids, prompt, (size_t)prompt_count * sizeof(*ids));
    memcpy(ids + prompt_count, heard->ids, (size_t)heard->count * sizeof(*ids));
    score_whole(model, graft, ids, prompt_count + heard->count, prompt_count, logp, best);
    for (int i = 0; i < heard->count; i++) {
        int t = prompt_count + i - 1;
        if (!(fabs(heard->logprobs[i] - logp[t]) < 1e-4))
            fail_msg("%s, step %d: log-probability %g, recomputed %g", model->id, i, heard->logprobs[i], logp[t]);
        if (is_greedy)
            assert_int_equal(heard->ids[i], best[t]);
    }
}

#endif
