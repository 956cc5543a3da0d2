/* Pairs whose common beginning is computed once against the same pairs computed side by side: losses, log-probabilities and
 * gradients, with and without a sliding window, in f32. */
#include "engine/base/alloc.h"
#include "engine/tensor/device.h"
#include "engine/train/passes.h"
#include "tests/unit/train/answers_testing.h"

#define SPACE 1024

/* Tokens in common, trained ones at their end, then each side's own. */
struct shape {
    int common, trained, chosen, rejected;
};

static const struct shape shapes[] = {
    {9, 0, 5, 7}, {12, 4, 3, 6}, {1, 0, 4, 4}, {0, 0, 5, 3}, {150, 3, 90, 20}, {70, 0, 1, 140}, {30, 2, 0, 4},
};
#define ROWS ((int)GD_COUNT(shapes))

struct setting {
    struct gd_model *model;
    struct gd_graft *graft;
    struct gd_dataset data;
    struct gd_batch batch;
    float *block, *grad;
    int64_t count;
};

static void add_side(struct gd_dataset *data, const struct shape *shape, int row, int side, int own)
{
    int length = shape->common + own;
    for (int i = 0; i < length; i++) {
        bool common = i < shape->common;
        data->tokens[data->token_count] = common ? (i * 7 + row * 13) % 90 + 3 : (i * 5 + row * 11 + side * 31 + 1) % 90 + 3;
        data->weights[data->token_count++] = i >= shape->common - shape->trained;
    }
}

static void make_rows(struct gd_dataset *data)
{
    data->pairs = true;
    data->row_count = ROWS;
    data->rows = gd_alloc_array(ROWS, sizeof(*data->rows));
    data->tokens = gd_alloc_array(SPACE * 2, sizeof(int32_t));
    data->weights = gd_alloc_array(SPACE * 2, sizeof(float));
    for (int r = 0; r < ROWS; r++) {
        const struct shape *shape = &shapes[r];
        data->rows[r] = (struct gd_dataset_row){.line = r + 1, .offset = data->token_count, .chosen = shape->common + shape->chosen,
                                                .length = 2 * shape->common + shape->chosen + shape->rejected};
        add_side(data, shape, r, 0, shape->chosen);
        add_side(data, shape, r, 1, shape->rejected);
    }
}

static void share(struct gd_dataset *data, bool shared)
{
    for (int r = 0; r < ROWS; r++)
        data->rows[r].shared = shared && shapes[r].common > 0 ? shapes[r].common - 1 : 0;
}

static struct setting *set_up(const char *name, int heads_window)
{
    struct setting *s = gd_alloc(sizeof(*s));
    struct gd_error err = {0};
    const char *fixtures = getenv("GD_FIXTURES");
    assert_non_null(fixtures);
    must(gd_device_init("cpu", 2, &err), &err);
    char *path = gd_format("%s/models/%s", fixtures, name);
    must(gd_model_open(&s->model, name, path, &err), &err);
    assert_int_equal(s->model->config.sliding_window, heads_window);
    cJSON *json = cJSON_Parse("{\"r\": 4, \"lora_alpha\": 8}");
    struct gd_adapter_config config;
    must(gd_adapter_config_parse(&config, json, &err), &err);
    must(gd_graft_create(&s->graft, s->model, &config, &err), &err);
    gd_adapter_config_release(&config);
    cJSON_Delete(json);
    s->count = s->graft->parameter_count;
    s->block = gd_alloc_array((size_t)s->count, sizeof(float));
    s->grad = gd_alloc_array((size_t)s->count, sizeof(float));
    for (int64_t i = 0; i < s->count; i++)
        s->block[i] = 0.05f * (float)sin((double)i * 0.7 + 0.1);
    make_rows(&s->data);
    gd_batch_init(&s->batch, SPACE, GD_BATCH_SEGMENTS_MAX);
    gd_free(path);
    return s;
}

static void tear_down(struct setting *s)
{
    gd_batch_release(&s->batch);
    gd_graft_destroy(s->graft);
    gd_model_destroy(s->model);
    gd_free(s->block);
    gd_free(s->grad);
    gd_free(s->data.rows);
    gd_free(s->data.tokens);
    gd_free(s->data.weights);
    gd_free(s);
}

static struct gd_pass_result run(struct setting *s, const char *loss, bool shared)
{
    struct gd_error err = {0};
    struct gd_pass_result result;
    struct gd_passes passes;
    struct gd_preference preference;
    int64_t rows[ROWS];
    for (int r = 0; r < ROWS; r++)
        rows[r] = ROWS - 1 - r;
    share(&s->data, shared);
    gd_preference_default(&preference, gd_preference_find(loss));
    gd_passes_init(&passes, s->model, s->graft, gd_objective_find("preference"), &preference, GD_F32, s->block, s->grad);
    gd_batch_fill(&s->batch, &s->data, rows, ROWS, SPACE);
    struct gd_step_counts counts = {0};
    struct gd_survey survey = {0};
    for (int r = 0; r < ROWS; r++)
        gd_step_count_row(&counts, &preference, &s->data, r);
    gd_survey_begin(&survey, &counts, 0, 0);
    passes.survey = &survey;
    must(gd_passes_run(&passes, true, &s->batch, 1.0 / ROWS, NULL, NULL, &result, &err), &err);
    gd_passes_release(&passes);
    return result;
}

static void compare(struct setting *s, const char *loss)
{
    float *whole = gd_alloc_array((size_t)s->count, sizeof(float));
    struct gd_pass_result apart = run(s, loss, false);
    int apart_rows = s->batch.used;
    memcpy(whole, s->grad, (size_t)s->count * sizeof(float));
    struct gd_pass_result shared = run(s, loss, true);
    assert_true(s->batch.used < apart_rows);
    if (fabs(shared.loss - apart.loss) > 1e-6 * (1 + fabs(apart.loss)))
        fail_msg("%s: loss %.8f shared, %.8f apart", loss, shared.loss, apart.loss);
    assert_true(fabs(shared.pairs.logp_chosen - apart.pairs.logp_chosen) < 1e-5 * fabs(apart.pairs.logp_chosen));
    assert_true(fabs(shared.pairs.logp_rejected - apart.pairs.logp_rejected) < 1e-5 * fabs(apart.pairs.logp_rejected));
    assert_int_equal(shared.labelled, apart.labelled);
    assert_int_equal(shared.correct, apart.correct);
    if (distance(s->grad, whole, s->count) > 1e-5)
        fail_msg("%s: gradients differ by %.3g relative", loss, distance(s->grad, whole, s->count));
    /* and again, to the bit */
    memcpy(whole, s->grad, (size_t)s->count * sizeof(float));
    run(s, loss, true);
    assert_memory_equal(s->grad, whole, (size_t)s->count * sizeof(float));
    gd_free(whole);
}

static void a_common_beginning_computed_once_gives_the_same_gradients(void **state)
{
    struct setting *s = set_up("tiny-llama", 0);
    compare(s, "dpo");
    compare(s, "ipo");
    compare(s, "simpo");
    compare(s, "orpo");
    tear_down(s);
}

static void a_sliding_window_counts_through_the_common_beginning(void **state)
{
    struct setting *s = set_up("tiny-mistral", 8);
    compare(s, "dpo");
    tear_down(s);
    s = set_up("tiny-qwen2-window", 6);
    compare(s, "simpo");
    tear_down(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_common_beginning_computed_once_gives_the_same_gradients),
        cmocka_unit_test(a_sliding_window_counts_through_the_common_beginning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
