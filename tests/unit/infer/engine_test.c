#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/philox.h"
#include "engine/infer/engine.h"
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

static void hear_token(void *context, const struct gd_infer_token *token)
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

static void hear_finish(void *context, enum gd_finish finish, const char *tail, size_t tail_length,
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

static struct heard *heard_create(void)
{
    struct heard *heard = gd_alloc(sizeof(*heard));
    gd_buf_init(&heard->text, 0);
    return heard;
}

static void heard_destroy(struct heard *heard)
{
    gd_buf_release(&heard->text);
    gd_free(heard);
}

static const struct gd_sampling greedy = {.top_p = 1, .repetition_penalty = 1, .max_tokens = 20, .logprobs = 0, .ignore_eos = true};

static struct gd_model *open_model(const char *name)
{
    struct gd_model *model = NULL;
    struct gd_error err = {0};
    char *path = gd_format("%s/models/%s", getenv("GD_FIXTURES"), name);
    if (!gd_model_open(&model, name, path, &err))
        fail_msg("%s", err.message);
    gd_free(path);
    return model;
}

static struct gd_infer *make_infer(struct gd_model *model, size_t cache_bytes)
{
    struct gd_infer *infer = NULL;
    struct gd_error err = {0};
    if (!gd_infer_create(&infer, model, cache_bytes, &err))
        fail_msg("%s", err.message);
    return infer;
}

static void make_prompt(int32_t *ids, int count, uint64_t key, int vocab)
{
    for (int i = 0; i < count; i++)
        ids[i] = (int32_t)(gd_philox4(key, gd_philox_stream(GD_RANDOM_TEST, 3, 0), (uint64_t)i).v[0] % (uint32_t)vocab);
}

static struct heard *submit_with(struct gd_infer *infer, struct heard *heard, const struct gd_graft *graft,
                                 const int32_t *prompt, int count, const struct gd_sampling *sampling)
{
    struct gd_error err = {0};
    struct gd_infer_sink sink = {heard, hear_token, hear_finish};
    if (!gd_infer_submit(infer, graft, prompt, count, sampling, &sink, &heard->id, &err))
        fail_msg("%s", err.message);
    return heard;
}

static struct heard *submit(struct gd_infer *infer, const struct gd_graft *graft, const int32_t *prompt, int count,
                            const struct gd_sampling *sampling)
{
    return submit_with(infer, heard_create(), graft, prompt, count, sampling);
}

static void run_all(struct gd_infer *infer)
{
    struct gd_error err = {0};
    for (int turn = 0; gd_infer_busy(infer); turn++) {
        if (!gd_infer_turn(infer, &err))
            fail_msg("%s", err.message);
        assert_true(turn < 5000);
    }
}

static void check_empty(struct gd_infer *infer)
{
    struct gd_infer_stats stats;
    gd_infer_get_stats(infer, &stats);
    assert_int_equal(stats.running, 0);
    assert_int_equal(stats.waiting, 0);
    assert_int_equal(stats.pages_used, 0);
}

static void check_same(const struct heard *a, const struct heard *b)
{
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->finish, b->finish);
    for (int i = 0; i < a->count; i++) {
        assert_int_equal(a->ids[i], b->ids[i]);
        if (a->logprobs[i] != b->logprobs[i])
            fail_msg("token %d: log-probability %.17g alone, %.17g in company", i, a->logprobs[i], b->logprobs[i]);
    }
}

/* ---- the whole sequence at once, without a cache ---- */

/* log p(tokens[t + 1]) after tokens[0..t] and the most likely id there, for all t < token_count - 1, through the training graph.
 * prompt_count: tokens that a graft may take for the prompt. */
static void score_whole(struct gd_model *model, const struct gd_graft *graft, const int32_t *tokens, int token_count,
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
static void check_recomputed(struct gd_model *model, const struct gd_graft *graft, const int32_t *prompt, int prompt_count,
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

/* ---- tests ---- */

static const char *const models[] = {"tiny-llama", "tiny-qwen2", "tiny-qwen2-window", "tiny-mistral", "tiny-llama3-rope",
                                     "tiny-llama-yarn", "tiny-llama-sharded", "tiny-llama-q8_0.gguf", "tiny-qwen3", "tiny-phi3",
                                     "tiny-gemma2", "tiny-gemma3-f16.gguf", "tiny-gpt2", "tiny-neox", "tiny-opt", "tiny-opt-after", "tiny-opt-350m", "tiny-phi3-long",
                                     "tiny-mixtral", "tiny-mixtral.gguf"};

static void decoding_with_the_cache_equals_full_recomputation(void **state)
{
    for (size_t m = 0; m < GD_COUNT(models); m++) {
        struct gd_model *model = open_model(models[m]);
        struct gd_infer *infer = make_infer(model, PAGES_BYTES);
        int32_t prompt[45];
        make_prompt(prompt, 45, m, model->config.vocab);
        struct gd_sampling sampling = greedy;
        sampling.max_tokens = 64;
        struct heard *first = submit(infer, NULL, prompt, 45, &sampling);
        sampling.temperature = 1;
        sampling.seed = 5;
        struct heard *second = submit(infer, NULL, prompt, 1, &sampling);
        run_all(infer);
        assert_int_equal(first->count, 64);
        assert_int_equal(first->finish, GD_FINISH_LENGTH);
        check_recomputed(model, NULL, prompt, 45, first, true);
        check_recomputed(model, NULL, prompt, 1, second, false);
        heard_destroy(first);
        heard_destroy(second);
        check_empty(infer);
        gd_infer_destroy(infer);
        gd_model_destroy(model);
    }
}

static void check_company_of_prompts(const char *model_name)
{
    struct gd_model *model = open_model(model_name);
    enum { COUNT = 12 };
    struct heard *alone[COUNT], *together[COUNT];
    int32_t prompt[TOKENS_MAX];
    struct gd_sampling sampling = greedy;
    sampling.temperature = 0.9;
    for (int i = 0; i < COUNT; i++) {
        struct gd_infer *infer = make_infer(model, PAGES_BYTES); /* a new one: nothing is in the prefix cache */
        make_prompt(prompt, 1 + 17 * i, 100 + (uint64_t)i, model->config.vocab);
        sampling.seed = (uint64_t)i;
        alone[i] = submit(infer, NULL, prompt, 1 + 17 * i, &sampling);
        run_all(infer);
        gd_infer_destroy(infer);
    }
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    struct gd_error err = {0};
    for (int i = 0; i < COUNT; i++) {
        make_prompt(prompt, 1 + 17 * i, 100 + (uint64_t)i, model->config.vocab);
        sampling.seed = (uint64_t)i;
        together[i] = submit(infer, NULL, prompt, 1 + 17 * i, &sampling);
        if (i % 3 == 2)
            assert_true(gd_infer_turn(infer, &err));
    }
    run_all(infer);
    for (int i = 0; i < COUNT; i++) {
        check_same(alone[i], together[i]);
        heard_destroy(alone[i]);
        heard_destroy(together[i]);
    }
    check_empty(infer);
    gd_infer_destroy(infer);
    gd_model_destroy(model);
}

static void company_changes_no_bit_of_a_result(void **state)
{
    check_company_of_prompts("tiny-llama");
    check_company_of_prompts("tiny-mixtral"); /* whose experts get other numbers of rows in company */
}

static void a_cached_prefix_gives_the_same_tokens(void **state)
{
    struct gd_model *model = open_model("tiny-qwen2");
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    int32_t prompt[100];
    make_prompt(prompt, 100, 7, model->config.vocab);
    struct heard *first = submit(infer, NULL, prompt, 100, &greedy);
    run_all(infer);
    struct heard *second = submit(infer, NULL, prompt, 100, &greedy);
    run_all(infer);
    assert_int_equal(first->usage.cached_tokens, 0);
    assert_int_equal(second->usage.cached_tokens, 96);
    check_same(first, second);
    prompt[40] ^= 1; /* one page fits, the next differs */
    struct heard *third = submit(infer, NULL, prompt, 100, &greedy);
    run_all(infer);
    assert_int_equal(third->usage.cached_tokens, 32);
    check_recomputed(model, NULL, prompt, 100, third, true);
    /* A prompt of whole pages: its last token still goes through the model. */
    struct heard *fourth = submit(infer, NULL, prompt, 64, &greedy);
    run_all(infer);
    assert_int_equal(fourth->usage.cached_tokens, 32);
    heard_destroy(first);
    heard_destroy(second);
    heard_destroy(third);
    heard_destroy(fourth);
    check_empty(infer);
    gd_infer_destroy(infer);
    gd_model_destroy(model);
}

static void choices_of_one_prompt_share_its_pages_and_differ(void **state)
{
    struct gd_model *model = open_model("tiny-llama");
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    int32_t prompt[100];
    struct heard *heard[4];
    struct gd_sampling sampling = greedy;
    sampling.temperature = 1.5;
    make_prompt(prompt, 100, 8, model->config.vocab);
    for (int i = 0; i < 4; i++) {
        sampling.choice = i;
        heard[i] = submit(infer, NULL, prompt, 100, &sampling);
    }
    run_all(infer);
    for (int i = 1; i < 4; i++) {
        assert_int_equal(heard[i]->usage.cached_tokens, 96);
        assert_memory_not_equal(heard[0]->ids, heard[i]->ids, 20 * sizeof(int32_t));
    }
    for (int i = 0; i < 4; i++)
        heard_destroy(heard[i]);
    check_empty(infer);
    gd_infer_destroy(infer);
    gd_model_destroy(model);
}

static void cancelling_frees_pages_at_once(void **state)
{
    struct gd_model *model = open_model("tiny-llama");
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    struct gd_error err = {0};
    int32_t prompt[50];
    make_prompt(prompt, 50, 9, model->config.vocab);
    struct heard *running = submit(infer, NULL, prompt, 50, &greedy);
    for (int i = 0; i < 3; i++)
        assert_true(gd_infer_turn(infer, &err));
    struct heard *waiting = submit(infer, NULL, prompt, 40, &greedy);
    gd_infer_cancel(infer, running->id);
    gd_infer_cancel(infer, waiting->id);
    gd_infer_cancel(infer, 12345);
    assert_int_equal(running->finishes, 1);
    assert_int_equal(running->finish, GD_FINISH_CANCELLED);
    assert_int_equal(running->usage.completion_tokens, running->count);
    assert_int_equal(waiting->finish, GD_FINISH_CANCELLED);
    assert_false(gd_infer_busy(infer));
    check_empty(infer);

    /* From inside a sink, in the middle of a turn: itself, and another. */
    struct heard *self = heard_create(), *other = submit(infer, NULL, prompt, 20, &greedy);
    self->cancel = infer;
    self->cancel_after = 3;
    submit_with(infer, self, NULL, prompt, 10, &greedy);
    self->cancel_id = self->id;
    struct heard *killer = heard_create();
    killer->cancel = infer;
    killer->cancel_after = 5;
    killer->cancel_id = other->id;
    submit_with(infer, killer, NULL, prompt, 30, &greedy);
    run_all(infer);
    assert_int_equal(self->count, 3);
    assert_int_equal(self->finish, GD_FINISH_CANCELLED);
    assert_int_equal(other->finish, GD_FINISH_CANCELLED);
    assert_int_equal(killer->finish, GD_FINISH_LENGTH);
    assert_int_equal(self->finishes + other->finishes + killer->finishes, 3);
    check_empty(infer);
    gd_infer_destroy(infer);
    heard_destroy(running);
    heard_destroy(waiting);
    heard_destroy(self);
    heard_destroy(other);
    heard_destroy(killer);
    gd_model_destroy(model);
}

static void many_requests_of_mixed_lengths_all_finish_in_a_small_cache(void **state)
{
    struct gd_model *model = open_model("tiny-mistral");
    /* 3 layers x 2 x 2 heads x 32 tokens x 8 x 4 bytes = 12 KiB a page: 20 pages */
    size_t page = (size_t)model->config.layers * 2 * (size_t)(model->config.kv_heads * model->config.head_dim) * 32 * 4;
    struct gd_infer *infer = make_infer(model, 20 * page);
    enum { COUNT = 60 };
    struct heard *heard[COUNT];
    int32_t prompt[TOKENS_MAX];
    for (int i = 0; i < COUNT; i++) {
        struct gd_sampling sampling = greedy;
        int length = 1 + i * 37 % 150;
        sampling.max_tokens = 1 + i * 13 % 60;
        sampling.temperature = i % 2 ? 0 : 1;
        sampling.seed = (uint64_t)i;
        make_prompt(prompt, length, 200 + (uint64_t)i % 7, model->config.vocab); /* some begin alike */
        heard[i] = submit(infer, NULL, prompt, length, &sampling);
    }
    run_all(infer);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(heard[i]->finishes, 1);
        assert_int_equal(heard[i]->finish, GD_FINISH_LENGTH);
        assert_int_equal(heard[i]->count, 1 + i * 13 % 60);
        make_prompt(prompt, 1 + i * 37 % 150, 200 + (uint64_t)i % 7, model->config.vocab);
        if (i % 6 == 1)
            check_recomputed(model, NULL, prompt, 1 + i * 37 % 150, heard[i], true);
        heard_destroy(heard[i]);
    }
    check_empty(infer);

    struct gd_error err = {0};
    struct gd_infer_sink sink = {NULL, hear_token, hear_finish};
    struct gd_infer *tiny = make_infer(model, 2 * page);
    uint64_t id = 0;
    make_prompt(prompt, 60, 1, model->config.vocab);
    assert_false(gd_infer_submit(tiny, NULL, prompt, 60, &greedy, &sink, &id, &err));
    assert_int_equal(err.code, GD_CONTEXT);
    gd_infer_destroy(tiny);
    gd_infer_destroy(infer);
    gd_model_destroy(model);
}

static void echo_scores_the_prompt_exactly(void **state)
{
    struct gd_model *model = open_model("tiny-llama");
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    int32_t prompt[90], best[TOKENS_MAX];
    double logp[TOKENS_MAX];
    make_prompt(prompt, 90, 11, model->config.vocab);
    struct gd_sampling sampling = greedy;
    struct heard *warm = submit(infer, NULL, prompt, 90, &sampling); /* fills the prefix cache */
    run_all(infer);
    sampling.echo = true;
    sampling.logprobs = 2;
    sampling.max_tokens = 0;
    struct heard *scored = submit(infer, NULL, prompt, 90, &sampling);
    sampling.max_tokens = 5;
    struct heard *both = submit(infer, NULL, prompt, 90, &sampling);
    sampling.max_tokens = 0;
    struct heard *one = submit(infer, NULL, prompt, 1, &sampling);
    sampling.logprobs = -1;
    struct heard *text_only = submit(infer, NULL, prompt, 90, &sampling);
    run_all(infer);
    score_whole(model, NULL, prompt, 90, 90, logp, best);
    assert_int_equal(scored->count, 90);
    assert_int_equal(scored->usage.cached_tokens, 0);
    assert_int_equal(scored->usage.completion_tokens, 0);
    assert_int_equal(scored->finish, GD_FINISH_LENGTH);
    assert_false(scored->has_logprob[0]);
    for (int i = 1; i < 90; i++) {
        assert_int_equal(scored->ids[i], prompt[i]);
        assert_true(scored->from_prompt[i] && scored->has_logprob[i]);
        assert_true(fabs(scored->logprobs[i] - logp[i - 1]) < 1e-4);
        assert_int_equal(scored->top_ids[i], best[i - 1]);
        assert_true(scored->logprobs[i] == both->logprobs[i]);
    }
    assert_int_equal(both->count, 95);
    assert_false(both->from_prompt[90]);
    for (int i = 0; i < 5; i++)
        assert_int_equal(both->ids[90 + i], warm->ids[i]);
    assert_int_equal(one->count, 1);
    assert_int_equal(text_only->count, 90);
    assert_false(text_only->has_logprob[5]);
    assert_string_equal(text_only->text.data, scored->text.data);
    heard_destroy(warm);
    heard_destroy(scored);
    heard_destroy(both);
    heard_destroy(one);
    heard_destroy(text_only);
    check_empty(infer);
    gd_infer_destroy(infer);
    gd_model_destroy(model);
}

static void stop_strings_and_end_tokens_end_a_sequence(void **state)
{
    struct gd_model *model = open_model("tiny-llama");
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    int32_t prompt[20];
    make_prompt(prompt, 20, 13, model->config.vocab);
    struct gd_sampling sampling = greedy;
    sampling.temperature = 1;
    sampling.max_tokens = 60;
    struct heard *whole = submit(infer, NULL, prompt, 20, &sampling);
    run_all(infer);
    assert_true(whole->text.length > 20);

    /* The same request with a piece of its own text as stop string is cut before it. */
    char *stop = gd_strndup(whole->text.data + whole->text.length / 2, 3);
    while (!gd_utf8_valid(stop, strlen(stop)))
        stop[strlen(stop) - 1] = '\0';
    if (stop[0] != '\0') {
        sampling.stops[0] = stop;
        sampling.stop_count = 1;
        struct heard *stopped = submit(infer, NULL, prompt, 20, &sampling);
        run_all(infer);
        size_t expected = (size_t)(strstr(whole->text.data, stop) - whole->text.data);
        assert_int_equal(stopped->finish, GD_FINISH_STOP);
        assert_int_equal(stopped->text.length, expected);
        assert_memory_equal(stopped->text.data, whole->text.data, expected);
        heard_destroy(stopped);
    }
    gd_free(stop);

    sampling.stop_count = 0;
    sampling.ignore_eos = false;
    sampling.bias_ids = &model->config.eos_ids[0];
    sampling.bias_values = (float[]){100};
    sampling.bias_count = 1;
    struct heard *ended = submit(infer, NULL, prompt, 20, &sampling);
    run_all(infer);
    assert_int_equal(ended->finish, GD_FINISH_STOP);
    assert_int_equal(ended->count, 0);
    assert_int_equal(ended->usage.completion_tokens, 0);
    heard_destroy(ended);
    sampling.echo = true; /* who scores the prompt counts on an entry for what was generated */
    sampling.logprobs = 1;
    struct heard *scored = submit(infer, NULL, prompt, 20, &sampling);
    run_all(infer);
    assert_int_equal(scored->count, 21);
    assert_int_equal(scored->ids[20], model->config.eos_ids[0]);
    assert_int_equal(scored->usage.completion_tokens, 0);
    heard_destroy(scored);
    heard_destroy(whole);
    gd_infer_destroy(infer);
    gd_model_destroy(model);
}

static void scoring_an_end_alone_takes_what_stands_before_from_the_cache(void **state)
{
    struct gd_model *model = open_model("tiny-llama");
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    int32_t prompt[90], best[TOKENS_MAX];
    double logp[TOKENS_MAX];
    struct heard *heard[4];
    struct gd_sampling sampling = greedy;
    sampling.echo = true;
    sampling.logprobs = 1;
    sampling.max_tokens = 0;
    for (int i = 0; i < 4; i++) { /* one beginning, four ends, at once */
        make_prompt(prompt, 90, 11, model->config.vocab);
        prompt[80] = 40 + i;
        sampling.score_from = i < 3 ? 80 : 1;
        heard[i] = submit(infer, NULL, prompt, 90, &sampling);
    }
    run_all(infer);
    for (int i = 0; i < 4; i++) {
        int from = i < 3 ? 80 : 1;
        prompt[80] = 40 + i;
        score_whole(model, NULL, prompt, 90, 90, logp, best);
        assert_int_equal(heard[i]->count, 90 - from);
        assert_int_equal(heard[i]->finish, GD_FINISH_LENGTH);
        assert_int_equal(heard[i]->usage.cached_tokens, i == 1 || i == 2 ? 64 : 0);
        for (int t = from; t < 90; t++) {
            assert_int_equal(heard[i]->ids[t - from], prompt[t]);
            assert_true(fabs(heard[i]->logprobs[t - from] - logp[t - 1]) < 1e-4);
            assert_int_equal(heard[i]->top_ids[t - from], best[t - 1]);
        }
        heard_destroy(heard[i]);
    }
    struct gd_error err = {0};
    struct gd_infer_sink sink = {NULL, hear_token, hear_finish};
    uint64_t id;
    sampling.score_from = 90;
    assert_false(gd_infer_submit(infer, NULL, prompt, 90, &sampling, &sink, &id, &err));
    assert_string_equal(err.param, "score_from");
    gd_infer_destroy(infer);
    gd_model_destroy(model);
}

static void outputs_that_are_given_are_the_only_ones(void **state)
{
    struct gd_model *model = open_model("tiny-llama");
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    int32_t prompt[20], outputs[] = {7, 8, /**/ 7, 8, 9, /**/ 30, /**/ 7, 11};
    int begin[] = {0, 2, 5, 6, 8}, seen[4] = {0};
    make_prompt(prompt, 20, 13, model->config.vocab);
    struct gd_sampling sampling = greedy;
    sampling.ignore_eos = false;
    sampling.temperature = 5;
    sampling.max_tokens = 4;
    sampling.output_ids = outputs;
    sampling.output_begin = begin;
    sampling.output_count = 4;
    for (int i = 0; i < 60; i++) {
        sampling.seed = (uint64_t)i;
        struct heard *heard = submit(infer, NULL, prompt, 20, &sampling);
        run_all(infer);
        int which = 0;
        while (which < 4 && (begin[which + 1] - begin[which] != heard->count ||
                             memcmp(outputs + begin[which], heard->ids, (size_t)heard->count * sizeof(int32_t)) != 0))
            which++;
        assert_true(which < 4);
        seen[which]++;
        assert_int_equal(heard->finish, GD_FINISH_STOP);
        heard_destroy(heard);
    }
    assert_true(seen[0] > 0 && seen[1] > 0 && seen[2] > 0 && seen[3] > 0);
    check_empty(infer);
    gd_infer_destroy(infer);
    gd_model_destroy(model);
}

/* A graft somewhere around its start, into a folder. */
static void save_graft(struct gd_model *model, uint64_t seed, const char *options, float distance, const char *folder)
{
    struct gd_graft *trained = NULL;
    struct gd_adapter_config config = {0};
    struct gd_error err = {0};
    cJSON *json = cJSON_Parse(options);
    if (!gd_adapter_config_parse(&config, json, &err) || !gd_graft_create(&trained, model, &config, &err))
        fail_msg("%s", err.message);
    float *block = gd_alloc_array((size_t)gd_graft_floats(trained), sizeof(float));
    gd_graft_init(trained, block, seed);
    for (int64_t i = 0; i < trained->parameter_count; i++) {
        struct gd_philox bits = gd_philox4(seed, gd_philox_stream(GD_RANDOM_TEST, 4, 0), (uint64_t)i);
        block[i] += distance * gd_normal_from_bits(bits.v[0], bits.v[1]);
    }
    if (trained->method->after_step != NULL)
        trained->method->after_step(trained, block);
    if (!gd_graft_save(trained, block, folder, NULL, &err))
        fail_msg("%s", err.message);
    cJSON_Delete(json);
    gd_adapter_config_release(&config);
    gd_graft_destroy(trained);
    gd_free(block);
}

/* The same as it is served. */
static struct gd_graft *make_graft(struct gd_model *model, uint64_t seed, const char *options, float distance)
{
    struct gd_graft *served = NULL;
    struct gd_error err = {0};
    char folder[] = "/tmp/graftd-test-XXXXXX";
    assert_non_null(mkdtemp(folder));
    save_graft(model, seed, options, distance, folder);
    if (!gd_graft_load(&served, model, folder, &err) || !gd_graft_prepare(served, &err))
        fail_msg("%s", err.message);
    assert_true(gd_remove_tree(folder, &err));
    return served;
}

/* One of each kind of method, and how far from its start. */
static const struct {
    const char *options;
    float distance;
    const char *task;
    bool dense;                  /* not for experts, or for modules that they have not */
} worn[] = {
    {NULL, 0},
    {"{\"type\": \"lora\", \"r\": 4}", 0.1f},
    {"{\"type\": \"lora\", \"r\": 7}", 0.1f},
    {"{\"type\": \"lora\", \"r\": 5, \"use_dora\": true}", 0.1f},
    {"{\"type\": \"lora\", \"r\": 6, \"use_kasa\": true}", 0.1f},
    {"{\"type\": \"loha\", \"r\": 2}", 0.5f}, /* served as low ranks and, in small modules, whole */
    {"{\"type\": \"loha\", \"r\": 8}", 0.2f},
    {"{\"type\": \"lokr\", \"r\": 1, \"decompose_both\": true}", 0.5f},
    {"{\"type\": \"lokr\", \"r\": 3, \"decompose_factor\": 2}", 0.2f},
    {"{\"type\": \"oft\", \"oft_block_size\": 8}", 0.1f},
    {"{\"type\": \"oft\", \"r\": 2, \"oft_block_size\": 0, \"use_cayley_neumann\": false, \"block_share\": true}", 0.1f},
    {"{\"type\": \"ia3\"}", 0.3f, .dense = true},
    {"{\"type\": \"vera\", \"r\": 24}", 1.0f},
    {"{\"type\": \"ln_tuning\", \"target_modules\": [\"all-norms\"]}", 0.2f},
    {"{\"type\": \"poly\", \"n_tasks\": 3, \"n_splits\": 4, \"r\": 5}", 0.3f, "1"},
    {"{\"type\": \"poly\", \"n_tasks\": 3, \"n_splits\": 2, \"target_modules\": \"all-linear\"}", 0.3f, "2", true},
    {"{\"type\": \"houlsby\", \"reduction_factor\": 8, \"learned_scaling\": true}", 0.2f},
    {"{\"type\": \"pfeiffer\", \"bottleneck_size\": 9, \"residual\": false, \"non_linearity\": \"gelu_new\"}", 0.2f},
    {"{\"type\": \"parallel\", \"residual\": true, \"non_linearity\": \"tanh\"}", 0.1f},
};

static void check_company(const char *model_name)
{
    enum { GRAFTS = GD_COUNT(worn), REQUESTS = 2 * GRAFTS };
    struct gd_model *model = open_model(model_name);
    struct gd_graft *grafts[GRAFTS] = {NULL};
    for (int i = 1; i < GRAFTS; i++) {
        bool other = model->config.experts > 0 && worn[i].dense;
        grafts[i] = make_graft(model, (uint64_t)i, other ? "{\"r\": 3, \"target_modules\": [\"gate\", \"w2\"]}" : worn[i].options, worn[i].distance);
    }
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    struct gd_error err = {0};
    int32_t prompt[70];
    struct heard *heard[REQUESTS];
    for (int i = 1; i < GRAFTS; i++)
        assert_true(gd_graft_wear_task(grafts[i], grafts[i]->method->by_task ? worn[i].task : NULL, &err));
    make_prompt(prompt, 70, 21, model->config.vocab);
    for (int i = 0; i < REQUESTS; i++)
        heard[i] = submit(infer, grafts[i % GRAFTS], prompt, 70 - i / GRAFTS, &greedy);
    assert_int_equal(gd_infer_graft_users(infer, grafts[1]), 2);
    run_all(infer);
    assert_int_equal(gd_infer_graft_users(infer, grafts[1]), 0);
    for (int i = 0; i < GRAFTS; i++) {
        check_recomputed(model, grafts[i], prompt, 70, heard[i], true);
        assert_int_equal(heard[i]->usage.cached_tokens, 0);
        check_recomputed(model, grafts[i], prompt, 69, heard[i + GRAFTS], true);
        assert_int_equal(heard[i + GRAFTS]->usage.cached_tokens, 64);
        struct gd_infer *lone = make_infer(model, PAGES_BYTES);
        struct heard *alone = submit(lone, grafts[i], prompt, 70, &greedy);
        run_all(lone);
        check_same(alone, heard[i]);
        heard_destroy(alone);
        gd_infer_destroy(lone);
    }
    for (int i = 0; i < GRAFTS; i++)
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(heard[i]->logprobs, heard[j]->logprobs, 8);
    for (int i = 0; i < REQUESTS; i++)
        heard_destroy(heard[i]);
    check_empty(infer);
    gd_infer_destroy(infer);
    for (int i = 0; i < GRAFTS; i++)
        gd_graft_destroy(grafts[i]);
    gd_model_destroy(model);
}

static void methods_share_a_batch_but_no_pages(void **state)
{
    check_company("tiny-llama");
    check_company("tiny-qwen2"); /* whose projections have biases */
    check_company("tiny-qwen3"); /* whose heads have norms, with weights of grafts' own */
    check_company("tiny-gemma3"); /* whose norms are around 1 */
    check_company("tiny-gpt2");  /* whose norms have biases, and whose projections are one */
    check_company("tiny-mixtral"); /* whose experts get some of each graft's rows */
}

/* Short and long ones of one graft beside each other: each kind has a rope and pages of its own. */
static void long_requests_have_a_rope_of_their_own(void **state)
{
    static const char *const options[] = {NULL, "{\"type\": \"lora\", \"r\": 4}", "{\"type\": \"prompt_tuning\", \"num_virtual_tokens\": 3}",
                                          "{\"type\": \"prefix_tuning\", \"num_virtual_tokens\": 4}"};
    enum { COUNT = GD_COUNT(options) };
    struct gd_model *model = open_model("tiny-phi3-long");
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    struct gd_graft *grafts[COUNT] = {NULL};
    struct heard *heard[2 * COUNT];
    struct gd_sampling sampling = greedy;
    int32_t prompt[40];
    make_prompt(prompt, 40, 3, model->config.vocab);
    for (int i = 0; i < 2 * COUNT; i++) {
        if (i < COUNT && options[i] != NULL)
            grafts[i] = make_graft(model, (uint64_t)i, options[i], 0.1f);
        sampling.max_tokens = i < COUNT ? 20 : 4;
        heard[i] = submit(infer, grafts[i % COUNT], prompt, i < COUNT ? 40 : 7, &sampling);
    }
    run_all(infer);
    for (int i = 0; i < 2 * COUNT; i++) {
        check_recomputed(model, grafts[i % COUNT], prompt, i < COUNT ? 40 : 7, heard[i], true);
        heard_destroy(heard[i]);
    }
    check_empty(infer);
    gd_infer_destroy(infer);
    for (int i = 0; i < COUNT; i++)
        gd_graft_destroy(grafts[i]);
    gd_model_destroy(model);
}

/* Methods with rows before the tokens: fewer than a page, a page, more; beside other methods and the base. */
static void virtual_rows_lead_and_are_shared(void **state)
{
    static const char *const options[] = {
        "{\"type\": \"prompt_tuning\", \"num_virtual_tokens\": 3}",
        "{\"type\": \"prompt_tuning\", \"num_virtual_tokens\": 32}",
        "{\"type\": \"prompt_tuning\", \"num_virtual_tokens\": 70}",
        "{\"type\": \"p_tuning\", \"num_virtual_tokens\": 9}",
        "{\"type\": \"cpt\", \"cpt_token_ids\": [7, 19, 33, 40], \"cpt_tokens_type_mask\": [1, 2, 3, 4]}",
        "{\"type\": \"ept\", \"num_virtual_tokens\": 6, \"r\": 5}",
        "{\"type\": \"dept\", \"num_virtual_tokens\": 6, \"r\": 5, \"max_length\": 80, \"apply_to\": \"sequence\"}",
        "{\"type\": \"dept\", \"num_virtual_tokens\": 35, \"r\": 5}",
        "{\"type\": \"dept\", \"num_virtual_tokens\": 0, \"r\": 5, \"max_length\": 33}",
        "{\"type\": \"prefix_tuning\", \"num_virtual_tokens\": 5}",
        "{\"type\": \"prefix_tuning\", \"num_virtual_tokens\": 70, \"prefix_projection\": true}",
    };
    enum { LED = GD_COUNT(options), GRAFTS = LED + 2, REQUESTS = 2 * GRAFTS };
    struct gd_model *model = open_model("tiny-llama");
    struct gd_graft *grafts[GRAFTS] = {NULL, make_graft(model, 1, "{\"type\": \"lora\", \"r\": 4}", 0.1f)};
    for (int i = 0; i < (int)LED; i++)
        grafts[i + 2] = make_graft(model, (uint64_t)i + 2, options[i], 0.1f);
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    int32_t prompt[70];
    struct heard *heard[REQUESTS];
    make_prompt(prompt, 70, 21, model->config.vocab);
    for (int i = 0; i < REQUESTS; i++)
        heard[i] = submit(infer, grafts[i % GRAFTS], prompt, 70 - i / GRAFTS, &greedy);
    run_all(infer);
    struct gd_sampling echoing = greedy;
    echoing.echo = true;
    for (int i = 0; i < GRAFTS; i++) {
        int lead = grafts[i] != NULL ? grafts[i]->virtual_rows.count : 0;
        check_recomputed(model, grafts[i], prompt, 70, heard[i], true);
        check_recomputed(model, grafts[i], prompt, 69, heard[i + GRAFTS], true);
        assert_int_equal(heard[i]->usage.prompt_tokens, 70);
        assert_int_equal(heard[i]->usage.cached_tokens, 0);
        assert_int_equal(heard[i + GRAFTS]->usage.cached_tokens, (lead + 68) / 32 * 32 - lead);
        struct gd_infer *lone = make_infer(model, PAGES_BYTES);
        struct heard *alone = submit(lone, grafts[i], prompt, 70, &greedy);
        run_all(lone);
        check_same(alone, heard[i]);
        struct heard *echoed = submit(lone, grafts[i], prompt, 70, &echoing);
        run_all(lone);
        assert_int_equal(echoed->count, 70 + greedy.max_tokens);
        int32_t best[TOKENS_MAX];
        double logp[TOKENS_MAX];
        score_whole(model, grafts[i], echoed->ids, echoed->count, 70, logp, best);
        for (int t = 0; t < echoed->count; t++) {
            assert_int_equal(echoed->from_prompt[t], t < 70);
            assert_true(t == 0 || fabs(echoed->logprobs[t] - logp[t - 1]) < 1e-4);
        }
        heard_destroy(echoed);
        heard_destroy(alone);
        check_empty(lone);
        gd_infer_destroy(lone);
    }
    for (int i = 0; i < REQUESTS; i++)
        heard_destroy(heard[i]);
    check_empty(infer);

    struct gd_error err = {0};
    struct gd_infer_sink sink = {NULL, hear_token, hear_finish};
    struct gd_sampling sampling = greedy;
    uint64_t id;
    sampling.max_tokens = model->config.context - 72;
    assert_false(gd_infer_submit(infer, grafts[GRAFTS - 1], prompt, 3, &sampling, &sink, &id, &err));
    assert_int_equal(err.code, GD_CONTEXT);
    assert_non_null(strstr(err.message, "70 virtual tokens"));
    gd_infer_destroy(infer);
    for (int i = 0; i < GRAFTS; i++)
        gd_graft_destroy(grafts[i]);
    gd_model_destroy(model);
}

/* Rows of trained tensors beside rows of the base: each has the logits of the model that was trained. */
/* A graft of the embedding and the head, tied and not, beside the bare base; both in one batch. */
static void trained_tables_are_served_as_they_were_trained(void **state)
{
    static const char *const bases[] = {"tiny-llama", "tiny-mistral", "tiny-gpt2", "tiny-opt-350m"};
    for (size_t i = 0; i < GD_COUNT(bases); i++) {
        struct gd_model *model = open_model(bases[i]);
        struct gd_graft *served = NULL, *plain = NULL;
        char folder[] = "/tmp/graftd-test-XXXXXX";
        struct gd_error err = {0};
        assert_non_null(mkdtemp(folder));
        save_graft(model, 4, strcmp(bases[i], "tiny-gpt2") == 0 ? "{\"type\": \"full\", \"train_embeddings\": true, \"target_modules\": [\"c_fc\"]}"
                                                          : "{\"type\": \"full\", \"train_embeddings\": true, \"target_modules\": [\"v_proj\"]}",
                   0.1f, folder);
        if (!gd_graft_load(&served, model, folder, &err) || !gd_graft_read(&plain, model, folder, &err))
            fail_msg("%s", err.message);
        assert_int_equal(served->depth, GD_WEAR_ROWS);
        struct gd_infer *infer = make_infer(model, PAGES_BYTES);
        int32_t prompt[30];
        make_prompt(prompt, 30, 37, model->config.vocab);
        struct heard *heard[3];
        for (int h = 0; h < 3; h++)
            heard[h] = submit(infer, h == 1 ? NULL : served, prompt, 30 - h, &greedy);
        run_all(infer);
        for (int h = 0; h < 3; h++) {
            check_recomputed(model, h == 1 ? NULL : plain, prompt, 30 - h, heard[h], true);
            heard_destroy(heard[h]);
        }
        gd_infer_destroy(infer);
        gd_graft_destroy(served);
        gd_graft_destroy(plain);
        gd_model_destroy(model);
        assert_true(gd_remove_tree(folder, &err));
    }
}

static void trained_tensors_are_served_as_they_were_trained(void **state)
{
    static const struct {
        const char *model, *adapter;
    } cases[] = {{"tiny-llama", "torch-full"}, {"tiny-llama", "torch-hft"}, {"tiny-llama", "torch-spt"}, {"tiny-llama", "torch-bitfit"}};
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_model *model = open_model(cases[i].model);
        struct gd_graft *served = NULL, *plain = NULL;
        struct gd_error err = {0};
        char *folder = gd_format("%s/adapters/%s", getenv("GD_FIXTURES"), cases[i].adapter);
        if (!gd_graft_load(&served, model, folder, &err) || !gd_graft_read(&plain, model, folder, &err))
            fail_msg("%s", err.message);
        struct gd_infer *infer = make_infer(model, PAGES_BYTES);
        int32_t prompt[40];
        make_prompt(prompt, 40, 31, model->config.vocab);
        struct heard *base = submit(infer, NULL, prompt, 40, &greedy), *tuned = submit(infer, served, prompt, 40, &greedy);
        run_all(infer);
        check_recomputed(model, plain, prompt, 40, tuned, true);
        check_recomputed(model, NULL, prompt, 40, base, true);
        assert_memory_not_equal(base->logprobs, tuned->logprobs, 8);
        heard_destroy(base);
        heard_destroy(tuned);
        gd_infer_destroy(infer);
        gd_graft_destroy(served);
        gd_graft_destroy(plain);
        gd_model_destroy(model);
        gd_free(folder);
    }
}

/* Where a graft changes the prompt's tokens only, an answer that becomes part of a prompt has other keys and values there. */
static void an_answer_in_the_next_prompt_is_computed_anew(void **state)
{
    struct gd_model *model = open_model("tiny-llama");
    struct gd_graft *graft = make_graft(model, 3, "{\"type\": \"dept\", \"num_virtual_tokens\": 5, \"r\": 4}", 0.1f);
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    int32_t prompt[150];
    make_prompt(prompt, 40, 5, model->config.vocab);
    struct gd_sampling sampling = greedy;
    sampling.max_tokens = 80;
    struct heard *first = submit(infer, graft, prompt, 40, &sampling);
    run_all(infer);
    memcpy(prompt + 40, first->ids, 80 * sizeof *prompt);
    sampling.max_tokens = 20;
    struct heard *second = submit(infer, graft, prompt, 120, &sampling);
    run_all(infer);
    assert_int_equal(second->usage.cached_tokens, 32 - 5); /* the one page of prompt alone */
    check_recomputed(model, graft, prompt, 40, first, true);
    check_recomputed(model, graft, prompt, 120, second, true);
    heard_destroy(first);
    heard_destroy(second);
    gd_infer_destroy(infer);
    gd_graft_destroy(graft);
    gd_model_destroy(model);
}

static void bad_requests_are_refused_with_the_field(void **state)
{
    struct gd_model *model = open_model("tiny-llama");
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    struct gd_infer_sink sink = {NULL, hear_token, hear_finish};
    struct { int32_t prompt[2]; int count; struct gd_sampling s; enum gd_code code; const char *param; } cases[] = {
        {{1, 2}, 0, greedy, GD_INVALID, "prompt"},
        {{1, 320}, 2, greedy, GD_INVALID, "prompt"},
        {{-1, 2}, 2, greedy, GD_INVALID, "prompt"},
        {{1, 2}, 2, greedy, GD_CONTEXT, "max_tokens"},
        {{1, 2}, 2, greedy, GD_INVALID, "max_tokens"},
        {{1, 2}, 2, greedy, GD_INVALID, "temperature"},
        {{1, 2}, 2, greedy, GD_INVALID, "top_p"},
        {{1, 2}, 2, greedy, GD_INVALID, "repetition_penalty"},
        {{1, 2}, 2, greedy, GD_INVALID, "logprobs"},
        {{1, 2}, 2, greedy, GD_INVALID, "logit_bias"},
        {{1, 2}, 2, greedy, GD_INVALID, "choices"},
        {{1, 2}, 2, greedy, GD_INVALID, "choices"},
        {{1, 2}, 2, greedy, GD_INVALID, "ignore_eos"},
    };
    int32_t outputs[] = {320, 1};
    int whole[] = {0, 1, 2}, hollow[] = {0, 0, 2};
    for (int i = 10; i < 13; i++) {
        cases[i].s.ignore_eos = i == 12;
        cases[i].s.output_ids = outputs;
        cases[i].s.output_begin = i == 11 ? hollow : whole;
        cases[i].s.output_count = 2;
    }
    cases[3].s.max_tokens = INT32_MAX;
    cases[4].s.max_tokens = -1;
    cases[5].s.temperature = NAN;
    cases[6].s.top_p = 0;
    cases[7].s.repetition_penalty = 0;
    cases[8].s.logprobs = 21;
    cases[9].s.bias_ids = (int32_t[]){320};
    cases[9].s.bias_values = (float[]){1};
    cases[9].s.bias_count = 1;
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_error err = {0};
        uint64_t id = 0;
        assert_false(gd_infer_submit(infer, NULL, cases[i].prompt, cases[i].count, &cases[i].s, &sink, &id, &err));
        assert_int_equal(err.code, cases[i].code);
        assert_string_equal(err.param, cases[i].param);
    }
    assert_false(gd_infer_busy(infer));
    gd_infer_destroy(infer);
    gd_model_destroy(model);
}

static void destroying_a_busy_engine_finishes_its_requests(void **state)
{
    struct gd_model *model = open_model("tiny-llama");
    struct gd_infer *infer = make_infer(model, PAGES_BYTES);
    struct gd_error err = {0};
    int32_t prompt[30];
    make_prompt(prompt, 30, 3, model->config.vocab);
    struct heard *a = submit(infer, NULL, prompt, 30, &greedy), *b;
    assert_true(gd_infer_turn(infer, &err));
    b = submit(infer, NULL, prompt, 30, &greedy);
    gd_infer_destroy(infer);
    assert_int_equal(a->finishes, 1);
    assert_int_equal(b->finish, GD_FINISH_CANCELLED);
    heard_destroy(a);
    heard_destroy(b);
    gd_model_destroy(model);
}

int main(void)
{
    struct gd_error err = {0};
    if (!gd_device_init(test_device(), 2, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decoding_with_the_cache_equals_full_recomputation),
        cmocka_unit_test(company_changes_no_bit_of_a_result),
        cmocka_unit_test(a_cached_prefix_gives_the_same_tokens),
        cmocka_unit_test(choices_of_one_prompt_share_its_pages_and_differ),
        cmocka_unit_test(cancelling_frees_pages_at_once),
        cmocka_unit_test(many_requests_of_mixed_lengths_all_finish_in_a_small_cache),
        cmocka_unit_test(echo_scores_the_prompt_exactly),
        cmocka_unit_test(stop_strings_and_end_tokens_end_a_sequence),
        cmocka_unit_test(scoring_an_end_alone_takes_what_stands_before_from_the_cache),
        cmocka_unit_test(outputs_that_are_given_are_the_only_ones),
        cmocka_unit_test(methods_share_a_batch_but_no_pages),
        cmocka_unit_test(long_requests_have_a_rope_of_their_own),
        cmocka_unit_test(virtual_rows_lead_and_are_shared),
        cmocka_unit_test(trained_tables_are_served_as_they_were_trained),
        cmocka_unit_test(trained_tensors_are_served_as_they_were_trained),
        cmocka_unit_test(an_answer_in_the_next_prompt_is_computed_anew),
        cmocka_unit_test(bad_requests_are_refused_with_the_field),
        cmocka_unit_test(destroying_a_busy_engine_finishes_its_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
