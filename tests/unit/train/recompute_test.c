/* Layers that are made again in the backward pass: the same loss and gradient bit for bit, in less memory. */
#include "engine/tensor/device.h"
#include "engine/train/passes.h"
#include "tests/unit/base/scratch.h"

#define ROWS 4
#define LENGTH 40

static struct gd_model *open_model(const char *name)
{
    struct gd_error err = {0};
    struct gd_model *model = NULL;
    must(gd_device_init("cpu", 2, &err), &err);
    char *path = gd_format("%s/models/%s", getenv("GD_FIXTURES"), name);
    must(gd_model_open(&model, name, path, &err), &err);
    gd_free(path);
    return model;
}

static struct gd_graft *make_graft(const struct gd_model *model, const char *json)
{
    struct gd_error err = {0};
    struct gd_adapter_config config;
    struct gd_graft *graft = NULL;
    cJSON *parsed = cJSON_Parse(json);
    assert_non_null(parsed);
    must(gd_adapter_config_parse(&config, parsed, &err), &err);
    must(gd_graft_create(&graft, model, &config, &err), &err);
    gd_adapter_config_release(&config);
    cJSON_Delete(parsed);
    return graft;
}

static void make_rows(struct gd_dataset *data, const struct gd_model *model)
{
    *data = (struct gd_dataset){.row_count = ROWS};
    data->rows = gd_alloc_array(ROWS, sizeof(*data->rows));
    data->tokens = gd_alloc_array(ROWS * LENGTH, sizeof(int32_t));
    data->weights = gd_alloc_array(ROWS * LENGTH, sizeof(float));
    for (int row = 0; row < ROWS; row++) {
        data->rows[row] = (struct gd_dataset_row){.line = row + 1, .offset = row * LENGTH, .length = LENGTH};
        for (int i = 0; i < LENGTH; i++) {
            data->tokens[row * LENGTH + i] = (row * 53 + i * i * 17 + 3) % model->config.vocab;
            data->weights[row * LENGTH + i] = i % 3 != 0;
        }
    }
}

struct outcome {
    double loss;
    float *grad;
    size_t arena_bytes;
};

static struct outcome run(const struct gd_model *model, const struct gd_graft *graft, enum gd_dtype act, bool recompute, bool narrow)
{
    static const int64_t rows[ROWS] = {0, 1, 2, 3};
    int32_t key[4] = {11, 0, 1, 0};
    struct gd_error err = {0};
    struct gd_dataset data;
    struct gd_passes passes;
    struct gd_batch batch;
    struct gd_pass_result result;
    struct outcome outcome = {.grad = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float))};
    float *block = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    struct gd_pass_need need;
    gd_graft_init(graft, block, 3);
    for (int64_t i = 0; i < graft->parameter_count; i++) /* nothing is zero: gradients flow everywhere */
        block[i] += 0.02f * (float)((i * 7919) % 1000 - 500) / 500;
    make_rows(&data, model);
    gd_passes_init(&passes, model, graft, gd_objective_find("supervised"), NULL, act, block, outcome.grad);
    passes.recompute = recompute;
    passes.narrow = narrow;
    gd_batch_init(&batch, 256, GD_BATCH_SEGMENTS_MAX);
    gd_batch_fill(&batch, &data, rows, ROWS, gd_token_bucket(ROWS * LENGTH));
    must(gd_passes_estimate(&passes, ROWS * LENGTH, true, &need, &err), &err);
    must(gd_passes_prepare(&passes, ROWS * LENGTH, true, &outcome.arena_bytes, &err), &err);
    assert_int_equal(need.arena, outcome.arena_bytes);
    assert_true(need.head > 0 && need.head <= need.arena);
    must(gd_passes_run(&passes, true, &batch, 1.0 / 100, key, NULL, &result, &err), &err);
    outcome.loss = result.loss;
    gd_passes_release(&passes);
    gd_batch_release(&batch);
    gd_free(block);
    gd_free(data.rows);
    gd_free(data.tokens);
    gd_free(data.weights);
    return outcome;
}

static void check(const struct gd_model *model, const char *adapter, enum gd_dtype act, bool narrow)
{
    struct gd_graft *graft = make_graft(model, adapter);
    struct outcome kept = run(model, graft, act, false, false), again = run(model, graft, act, !narrow, narrow);
    double sum = 0;
    if (memcmp(&kept.loss, &again.loss, sizeof(double)) != 0)
        fail_msg("%s: loss %.17g, made again %.17g", adapter, kept.loss, again.loss);
    for (int64_t i = 0; i < graft->parameter_count; i++) {
        sum += (double)kept.grad[i] * (double)kept.grad[i];
        if (memcmp(&kept.grad[i], &again.grad[i], sizeof(float)) != 0)
            fail_msg("%s: gradient %lld is %.9g, made again %.9g", adapter, (long long)i, (double)kept.grad[i], (double)again.grad[i]);
    }
    assert_true(sum > 0);
    if (again.arena_bytes >= kept.arena_bytes)
        fail_msg("%s: %zu bytes of activations, made again %zu", adapter, kept.arena_bytes, again.arena_bytes);
    gd_free(kept.grad);
    gd_free(again.grad);
    gd_graft_destroy(graft);
}

static const char *const adapters[] = {
    "{\"type\": \"lora\", \"r\": 4, \"lora_dropout\": 0.3}",
    "{\"type\": \"lora\", \"r\": 4, \"use_dora\": true}",
    "{\"type\": \"full\"}",
    "{\"type\": \"houlsby\"}",
    "{\"type\": \"ia3\"}",
};

static void layers_made_again_give_the_same_bits_in_less_memory(void **state)
{
    struct gd_model *model = open_model("tiny-llama");
    for (size_t i = 0; i < GD_COUNT(adapters); i++)
        check(model, adapters[i], GD_F32, false);
    check(model, adapters[0], GD_BF16, false);
    gd_model_destroy(model);
}

static void wide_values_made_again_give_the_same_bits_in_less_memory(void **state)
{
    static const char *const models[] = {"tiny-llama", "tiny-phi3", "tiny-gemma2", "tiny-gpt2"};
    for (size_t m = 0; m < GD_COUNT(models); m++) {
        struct gd_model *model = open_model(models[m]);
        for (size_t i = 0; i < GD_COUNT(adapters); i++)
            if (m == 0 || i == 0 || i == 2)
                check(model, adapters[i], i == 0 ? GD_BF16 : GD_F32, true);
        gd_model_destroy(model);
    }
}

static void fused_layers_are_made_again_too(void **state)
{
    struct gd_model *model = open_model("tiny-phi3");
    check(model, adapters[0], GD_F32, false);
    gd_model_destroy(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(layers_made_again_give_the_same_bits_in_less_memory),
                                       cmocka_unit_test(wide_values_made_again_give_the_same_bits_in_less_memory),
                                       cmocka_unit_test(fused_layers_are_made_again_too)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
