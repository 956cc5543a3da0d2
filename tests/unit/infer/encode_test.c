/* encode_test.c - serving a model with an encoder: greedy like transformers' generate, mixed batches like each alone, pages given back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/adapter/export.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/infer/engine.h"
#include "engine/model/safetensors.h"
#include "engine/tensor/device.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define PROMPTS 3
#define KINDS 5 /* of what sequences wear */
#define TOKENS_MAX 64

static const char *const names[] = {"tiny-t5", "tiny-t5-gated"};

struct heard {
    int32_t ids[TOKENS_MAX];
    double logprobs[TOKENS_MAX];
    int count;
    bool done;
    enum gd_finish finish;
    struct gd_infer_usage usage;
    struct gd_error error;
};

static void hear_token(void *context, const struct gd_infer_token *token)
{
    struct heard *heard = context;
    assert_true(heard->count < TOKENS_MAX);
    heard->ids[heard->count] = token->id;
    heard->logprobs[heard->count++] = token->has_logprob ? token->logprob : 0;
}

static void hear_finish(void *context, enum gd_finish finish, const char *tail, size_t tail_length,
                        const struct gd_infer_usage *usage, const struct gd_error *error)
{
    struct heard *heard = context;
    heard->done = true;
    heard->finish = finish;
    heard->usage = *usage;
    if (error != NULL)
        heard->error = *error;
}

struct fixture {
    struct gd_model *model;
    struct gd_infer *infer;
    struct gd_safetensors *reference;
};

static struct fixture open_fixture(const char *name)
{
    struct fixture f = {0};
    struct gd_error err = {0};
    char *path = gd_format("%s/models/%s", getenv("GD_FIXTURES"), name), *file = gd_format("%s/reference.safetensors", path);
    if (!gd_model_open(&f.model, name, path, &err) || !gd_infer_create(&f.infer, f.model, (size_t)4 << 20, &err) ||
        !gd_safetensors_open(&f.reference, file, &err))
        fail_msg("%s", err.message);
    gd_free(path);
    gd_free(file);
    return f;
}

static void close_fixture(struct fixture *f)
{
    gd_infer_destroy(f->infer);
    gd_model_destroy(f->model);
    gd_safetensors_close(f->reference);
}

static struct gd_tensor stored(const struct fixture *f, const char *what, int k)
{
    struct gd_tensor tensor;
    char name[64];
    snprintf(name, sizeof name, "%s.%d", what, k);
    assert_true(gd_safetensors_find(f->reference, name, &tensor));
    return tensor;
}

static void submit(struct fixture *f, const struct gd_graft *graft, struct heard *heard, const int32_t *ids, int count,
                   const struct gd_sampling *sampling)
{
    struct gd_infer_sink sink = {.context = heard, .token = hear_token, .finish = hear_finish};
    struct gd_error err = {0};
    uint64_t id;
    memset(heard, 0, sizeof(*heard));
    if (!gd_infer_submit(f->infer, graft, ids, count, sampling, &sink, &id, &err))
        fail_msg("%s", err.message);
}

static void run_all(struct fixture *f)
{
    struct gd_error err = {0};
    while (gd_infer_busy(f->infer))
        if (!gd_infer_turn(f->infer, &err))
            fail_msg("%s", err.message);
    struct gd_infer_stats stats;
    gd_infer_get_stats(f->infer, &stats);
    assert_int_equal(stats.pages_used, 0);
}

static const struct gd_sampling greedy = {.top_p = 1, .repetition_penalty = 1, .max_tokens = 24, .logprobs = 0};

static void greedy_decoding_equals_generate(void **state)
{
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        struct fixture f = open_fixture(names[i]);
        for (int k = 0; k < PROMPTS; k++) {
            struct gd_tensor source = stored(&f, "source", k), wanted = stored(&f, "greedy", k);
            int count = (int)wanted.shape[0];
            const int32_t *ids = wanted.data;
            bool ends = ids[count - 1] == 1;
            struct heard heard;
            submit(&f, NULL, &heard, source.data, (int)source.shape[0], &greedy);
            run_all(&f);
            assert_int_equal(heard.count, count - ends);
            assert_memory_equal(heard.ids, ids, (size_t)heard.count * sizeof(*ids));
            assert_int_equal(heard.finish, ends ? GD_FINISH_STOP : GD_FINISH_LENGTH);
            assert_int_equal(heard.usage.prompt_tokens, source.shape[0]);
            assert_int_equal(heard.usage.completion_tokens, count - ends);
        }
        close_fixture(&f);
    }
}

/* What was decoded already counts: log-probabilities of a given answer. */
static void a_given_answer_is_scored(void **state)
{
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        struct fixture f = open_fixture(names[i]);
        struct gd_tensor source = stored(&f, "source", 1), target = stored(&f, "target", 1), logits = stored(&f, "logits", 1);
        int encoded = (int)source.shape[0], decoded = (int)target.shape[0], vocab = f.model->config.vocab;
        int32_t ids[256];
        memcpy(ids, source.data, (size_t)encoded * 4);
        memcpy(ids + encoded, (const int32_t *)target.data + 1, (size_t)(decoded - 1) * 4);
        struct gd_sampling scored = {.top_p = 1, .repetition_penalty = 1, .echo = true, .logprobs = 0, .encoded = encoded};
        struct heard heard;
        submit(&f, NULL, &heard, ids, encoded + decoded - 1, &scored);
        run_all(&f);
        assert_int_equal(heard.count, decoded);
        for (int t = 1; t < decoded; t++) {
            const float *row = (const float *)logits.data + (t - 1) * vocab;
            double sum = 0;
            for (int v = 0; v < vocab; v++)
                sum += exp((double)row[v]);
            assert_true(fabs(heard.logprobs[t] - ((double)row[heard.ids[t]] - log(sum))) < 1e-3);
        }
        close_fixture(&f);
    }
}

static const char lora[] = "{\"type\":\"lora\",\"r\":4,\"lora_alpha\":16,\"target_modules\":[\"q\",\"v\",\"wo\"]}";
static const char tables[] = "{\"type\":\"full\",\"target_modules\":[],\"target_norms\":[],\"train_embeddings\":true}";

/* Some way from its start. */
static struct gd_graft *make_graft(struct gd_model *model, const char *options, uint64_t seed)
{
    struct gd_error err = {0};
    struct gd_adapter_config config = {0};
    struct gd_graft *graft = NULL, *loaded = NULL;
    char folder[] = "/tmp/graftd-test-XXXXXX";
    assert_non_null(mkdtemp(folder));
    cJSON *json = cJSON_Parse(options);
    if (!gd_adapter_config_parse(&config, json, &err) || !gd_graft_create(&graft, model, &config, &err))
        fail_msg("%s", err.message);
    float *block = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    gd_graft_init(graft, block, seed);
    for (int64_t i = 0; i < gd_graft_floats(graft); i++)
        block[i] += 0.2f * sinf((float)(i + (int64_t)seed));
    if (!gd_graft_save(graft, block, folder, NULL, &err) || !gd_graft_load(&loaded, model, folder, &err))
        fail_msg("%s", err.message);
    assert_true(gd_remove_tree(folder, &err));
    gd_free(block);
    gd_graft_destroy(graft);
    gd_adapter_config_release(&config);
    cJSON_Delete(json);
    return loaded;
}

static void a_mixed_batch_equals_each_alone(void **state)
{
    struct fixture f = open_fixture("tiny-t5-gated");
    struct gd_graft *grafts[KINDS] = {NULL, make_graft(f.model, lora, 1), make_graft(f.model, lora, 5), make_graft(f.model, tables, 2),
                                      make_graft(f.model, tables, 9)};
    struct heard alone[PROMPTS * KINDS], together[PROMPTS * KINDS];
    struct gd_sampling sampled = {.top_p = 0.9, .temperature = 1, .repetition_penalty = 1.1, .max_tokens = 15, .logprobs = 0,
                                  .ignore_eos = true};
    for (int mixed = 0; mixed < 2; mixed++)
        for (int n = 0; n < PROMPTS * KINDS; n++) {
            struct gd_tensor source = stored(&f, "source", n / KINDS);
            sampled.seed = (uint64_t)n;
            submit(&f, grafts[n % KINDS], mixed ? &together[n] : &alone[n], source.data, (int)source.shape[0], &sampled);
            if (!mixed || n == PROMPTS * KINDS - 1)
                run_all(&f);
        }
    for (int n = 0; n < PROMPTS * KINDS; n++) {
        assert_int_equal(alone[n].count, 15);
        assert_int_equal(together[n].count, 15);
        assert_memory_equal(alone[n].ids, together[n].ids, 15 * sizeof(int32_t));
        assert_memory_equal(alone[n].logprobs, together[n].logprobs, 15 * sizeof(double));
    }
    for (int kind = 1; kind < KINDS; kind++) {
        assert_true(memcmp(alone[kind].logprobs, alone[kind - 1].logprobs, sizeof(alone[0].logprobs)) != 0);
        gd_graft_destroy(grafts[kind]);
    }
    close_fixture(&f);
}

/* What attention adds for a distance is a table of the graft's own; a graft says what the model says that it is merged into. */
static void trained_tables_are_served_as_they_are_merged(void **state)
{
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        struct fixture f = open_fixture(names[i]), merged = f;
        struct gd_error err = {0};
        char folder[] = "/tmp/graftd-test-XXXXXX";
        struct gd_graft *graft = make_graft(f.model, tables, 3);
        assert_int_equal(graft->param_count, f.model->head == f.model->embed ? 3 : 4);
        assert_non_null(mkdtemp(folder));
        char *path = gd_format("%s/merged", folder);
        merged.model = NULL;
        merged.infer = NULL;
        if (!gd_graft_merge(graft, GD_F32, path, &err) || !gd_model_open(&merged.model, "merged", path, &err) ||
            !gd_infer_create(&merged.infer, merged.model, (size_t)4 << 20, &err))
            fail_msg("%s", err.message);
        for (int k = 0; k < PROMPTS; k++) {
            struct gd_tensor source = stored(&f, "source", k);
            struct heard worn, whole, bare;
            submit(&f, graft, &worn, source.data, (int)source.shape[0], &greedy);
            submit(&f, NULL, &bare, source.data, (int)source.shape[0], &greedy);
            run_all(&f);
            submit(&merged, NULL, &whole, source.data, (int)source.shape[0], &greedy);
            run_all(&merged);
            assert_int_equal(worn.count, whole.count);
            assert_memory_equal(worn.ids, whole.ids, (size_t)worn.count * sizeof(int32_t));
            for (int t = 0; t < worn.count; t++)
                assert_true(fabs(worn.logprobs[t] - whole.logprobs[t]) < 1e-4);
            assert_true(bare.logprobs[0] != worn.logprobs[0]);
        }
        gd_infer_destroy(merged.infer);
        gd_model_destroy(merged.model);
        gd_graft_destroy(graft);
        close_fixture(&f);
        assert_true(gd_remove_tree(folder, &err));
        gd_free(path);
    }
}

static void echo_and_prompts_beyond_the_context_are_refused(void **state)
{
    struct fixture f = open_fixture("tiny-t5");
    static int32_t ids[9000];
    struct heard heard;
    struct gd_infer_sink sink = {.context = &heard, .token = hear_token, .finish = hear_finish};
    struct gd_error err = {0};
    struct gd_sampling sampling = greedy;
    uint64_t id;
    sampling.echo = true;
    assert_false(gd_infer_submit(f.infer, NULL, ids, 3, &sampling, &sink, &id, &err));
    assert_string_equal(err.param, "echo");
    sampling.echo = false;
    gd_error_clear(&err);
    assert_false(gd_infer_submit(f.infer, NULL, ids, f.model->config.context + 1, &sampling, &sink, &id, &err));
    assert_int_equal(err.code, GD_CONTEXT);
    close_fixture(&f);
}

int main(void)
{
    struct gd_error err = {0};
    if (!gd_device_init("cpu", 2, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_decoding_equals_generate),
        cmocka_unit_test(a_given_answer_is_scored),
        cmocka_unit_test(a_mixed_batch_equals_each_alone),
        cmocka_unit_test(trained_tables_are_served_as_they_are_merged),
        cmocka_unit_test(echo_and_prompts_beyond_the_context_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
