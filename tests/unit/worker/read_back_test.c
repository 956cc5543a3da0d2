/* An adapter counts as written only when serving it says what training said. */
#include "engine/tensor/device.h"
#include "engine/worker/read_back.h"
#include "tests/unit/base/scratch.h"

#include <math.h>

#define COUNT 24

static void keep_logprob(void *context, const struct gd_infer_token *token)
{
    float **next = context;
    *(*next)++ = token->has_logprob ? (float)token->logprob : 0.0f;
}

static void ignore_finish(void *context, enum gd_finish finish, const char *tail, size_t tail_length,
                          const struct gd_infer_usage *usage, const struct gd_error *error)
{
}

static void what_serving_says_is_compared_with_the_probe(void **state)
{
    struct gd_error err = {0};
    struct gd_model *model = NULL;
    struct gd_infer *infer = NULL;
    int32_t ids[COUNT];
    float served[COUNT], *next = served;
    char *path = gd_format("%s/models/tiny-llama", getenv("GD_FIXTURES"));
    must(gd_device_init("cpu", 2, &err), &err);
    must(gd_model_open(&model, "tiny", path, &err), &err);
    must(gd_infer_create(&infer, model, (size_t)16 << 20, &err), &err);
    for (int i = 0; i < COUNT; i++)
        ids[i] = 3 + 5 * i;
    struct gd_sampling sampling = {.top_p = 1, .repetition_penalty = 1, .echo = true, .logprobs = 0};
    struct gd_infer_sink sink = {.context = &next, .token = keep_logprob, .finish = ignore_finish};
    uint64_t id;
    must(gd_infer_submit(infer, NULL, ids, COUNT, &sampling, &sink, &id, &err), &err);
    while (gd_infer_busy(infer))
        must(gd_infer_turn(infer, &err), &err);
    assert_ptr_equal(next, served + COUNT);

    struct gd_probe probe = {ids, served, COUNT, GD_F32};
    double difference = 1;
    must(gd_read_back(infer, NULL, &probe, &difference, &err), &err);
    assert_true(difference < 1e-6);
    for (int i = 1; i < COUNT; i++)
        served[i] -= 0.5f;
    assert_false(gd_read_back(infer, NULL, &probe, &difference, &err));
    assert_true(fabs(difference - 0.5) < 1e-5);
    assert_non_null(strstr(err.message, "is not the one that was trained"));
    gd_infer_destroy(infer);
    gd_model_destroy(model);
    gd_free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_serving_says_is_compared_with_the_probe)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
