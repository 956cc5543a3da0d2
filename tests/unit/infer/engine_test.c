/* engine_test.c - sequences through the engine: cache, company, choices, echo, stops, scores, refusals, against the training graph. */
#include "tests/unit/infer/engine_testing.h"

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
        cmocka_unit_test(bad_requests_are_refused_with_the_field),
        cmocka_unit_test(destroying_a_busy_engine_finishes_its_requests),
    };
    return cmocka_run_group_tests(tests, test_open_device, NULL);
}
