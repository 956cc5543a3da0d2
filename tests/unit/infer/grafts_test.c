/* grafts_test.c - grafts in the engine: mixed batches, virtual rows, trained tables and tensors, against the training graph. */
#include "tests/unit/infer/engine_testing.h"

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
        assert_true(gd_graft_wear_task(grafts[i], grafts[i]->method->by_task ? worn[i].task : NULL, &err) && gd_graft_prepare(grafts[i], &err));
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
        if (!gd_graft_load(&served, model, folder, &err) || !gd_graft_prepare(served, &err) || !gd_graft_read(&plain, model, folder, &err))
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

/* Rows of trained tensors beside rows of the base: each has the logits of the model that was trained. */
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
        if (!gd_graft_load(&served, model, folder, &err) || !gd_graft_prepare(served, &err) || !gd_graft_read(&plain, model, folder, &err))
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(methods_share_a_batch_but_no_pages),
        cmocka_unit_test(long_requests_have_a_rope_of_their_own),
        cmocka_unit_test(virtual_rows_lead_and_are_shared),
        cmocka_unit_test(trained_tables_are_served_as_they_were_trained),
        cmocka_unit_test(trained_tensors_are_served_as_they_were_trained),
        cmocka_unit_test(an_answer_in_the_next_prompt_is_computed_anew),
    };
    return cmocka_run_group_tests(tests, test_open_device, NULL);
}
