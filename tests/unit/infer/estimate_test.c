/* What serving makes is what its estimate says, to the byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/infer/engine.h"
#include "engine/tensor/device.h"
#include <stdlib.h>

static void ignore_token(void *context, const struct gd_infer_token *token)
{
}

static void ignore_finish(void *context, enum gd_finish finish, const char *tail, size_t tail_length, const struct gd_infer_usage *usage,
                          const struct gd_error *error)
{
    assert_null(error);
}

static size_t prepared_bytes(const struct gd_model *model)
{
    size_t bytes = 0;
    for (int i = 0; i < model->weight_count; i++)
        bytes += gd_weight_prepared_bytes(model->weights[i]);
    return bytes;
}

/* Two prompts of `count` tokens each in large batches, then tokens one by one. */
static void serve(struct gd_model *model, int count, int tokens)
{
    int32_t prompts[2][130] = {{0}, {1}};
    struct gd_infer *infer = NULL;
    struct gd_error err = {0};
    uint64_t id;
    struct gd_sampling sampling = {.top_p = 1, .repetition_penalty = 1, .max_tokens = tokens, .logprobs = 0, .echo = tokens == 0, .ignore_eos = true};
    struct gd_infer_sink sink = {NULL, ignore_token, ignore_finish, NULL};
    if (!gd_infer_create(&infer, model, 1 << 20, &err))
        fail_msg("%s", err.message);
    for (int i = 0; i < 2; i++)
        if (!gd_infer_submit(infer, NULL, prompts[i], count, &sampling, &sink, &id, &err))
            fail_msg("%s", err.message);
    while (gd_infer_busy(infer))
        assert_true(gd_infer_turn(infer, &err));
    gd_infer_destroy(infer);
}

static void test_layouts_of_serving_are_those_of_the_estimate(void **state)
{
    static const char *const names[] = {"tiny-llama", "tiny-llama-q8_0.gguf", "tiny-qwen2-f16.gguf", "tiny-mixtral"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        struct gd_model *model = NULL;
        struct gd_infer_load load = {.rows = 256, .logits = 256, .tokens = 64};
        struct gd_infer_need need;
        struct gd_error err = {0};
        char *path = gd_format("%s/models/%s", getenv("GD_FIXTURES"), names[i]);
        if (!gd_model_open(&model, names[i], path, &err) || !gd_infer_estimate(model, 1 << 20, &load, &need, &err))
            fail_msg("%s", err.message);
        assert_int_equal(prepared_bytes(model), 0);
        serve(model, 130, 0); /* a first slice of 256 rows would leave four */
        if (prepared_bytes(model) != gd_layout_cost_sum(&need.weights))
            fail_msg("%s: %zu bytes are laid out for a prompt, %zu were estimated", names[i], prepared_bytes(model),
                     gd_layout_cost_sum(&need.weights));
        serve(model, 20, 4);
        if (prepared_bytes(model) != gd_layout_cost_sum(&need.few))
            fail_msg("%s: %zu bytes are laid out, %zu were estimated", names[i], prepared_bytes(model), gd_layout_cost_sum(&need.few));
        if (!gd_infer_estimate(model, 1 << 20, &load, &need, &err))
            fail_msg("%s", err.message);
        assert_int_equal(gd_layout_cost_sum(&need.few), 0);
        gd_model_destroy(model);
        gd_free(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_layouts_of_serving_are_those_of_the_estimate)};
    struct gd_error err = {0};
    if (gd_device_multiplies(GD_BF16)) /* only then have few rows layouts of their own */
        setenv("GRAFTD_COMPUTE", "bf16", 1);
    if (!gd_device_init("cpu", 2, &err))
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
