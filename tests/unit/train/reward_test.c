/* Reward models against PyTorch + PEFT (make_reward.py), in f32: scores, the Bradley-Terry loss and its gradients, and the files. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/safetensors.h"
#include "engine/tensor/device.h"
#include "engine/train/checkpoint.h"
#include "engine/train/passes.h"
#include "tests/unit/train/answers_testing.h"
#include "engine/train/survey.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PAIRS 3
#define PROMPT 6

struct setting {
    struct gd_model *model;
    struct gd_graft *graft;
    struct gd_safetensors *file;
    struct gd_dataset data;
    struct gd_batch batch;
    float *grad;
};

static char *fixture(const char *path)
{
    const char *fixtures = getenv("GD_FIXTURES");
    assert_non_null(fixtures);
    return gd_format("%s/%s", fixtures, path);
}

static int set_up(void **state)
{
    struct setting *s = gd_alloc(sizeof(*s));
    struct gd_error err = {0};
    must(gd_device_init("cpu", 2, &err), &err);
    open_stored(&s->model, &s->file, "reward.safetensors");
    char *graft = fixture("adapters/peft-reward");
    must(gd_graft_load(&s->graft, s->model, graft, &err), &err);
    assert_true(s->graft->config.score);
    s->grad = gd_alloc_array((size_t)s->graft->parameter_count, sizeof(float));
    load_pairs(&s->data, s->file, PAIRS, PROMPT);
    gd_batch_init(&s->batch, 256, GD_BATCH_SEGMENTS_MAX);
    gd_free(graft);
    *state = s;
    return 0;
}

static int tear_down(void **state)
{
    struct setting *s = *state;
    gd_batch_release(&s->batch);
    gd_graft_destroy(s->graft);
    gd_model_destroy(s->model);
    gd_safetensors_close(s->file);
    gd_free(s->grad);
    free_rows(&s->data);
    gd_free(s);
    return 0;
}

static struct gd_pass_result run(struct setting *s, double centre, bool margins, bool shared)
{
    struct gd_error err = {0};
    struct gd_pass_result result;
    struct gd_passes passes;
    struct gd_preference preference;
    struct gd_step_counts counts = {0};
    struct gd_survey survey = {0};
    const float *margin = stored(s->file, "", "margins").data;
    gd_preference_default(&preference, &gd_preference_reward);
    preference.term[0].parameter[GD_PREFERENCE_CENTER_REWARDS] = centre;
    for (int i = 0; i < PAIRS; i++) {
        s->data.rows[i].margin = margins ? margin[i] : 0;
        s->data.rows[i].shared = shared ? PROMPT - 1 : 0;
        gd_step_count_row(&counts, &preference, &s->data, i);
    }
    gd_survey_begin(&survey, &counts, 0, 0);
    gd_passes_init(&passes, s->model, s->graft, gd_objective_find("reward"), &preference, GD_F32, s->graft->block, s->grad);
    passes.reference = GD_REFERENCE_NONE;
    passes.survey = &survey;
    gd_batch_fill(&s->batch, &s->data, (int64_t[]){0, 1, 2}, PAIRS, 192);
    must(gd_passes_run(&passes, true, &s->batch, 1.0 / PAIRS, NULL, NULL, &result, &err), &err);
    gd_passes_release(&passes);
    return result;
}

static void compare(struct setting *s, const char *prefix, const struct gd_pass_result *result)
{
    double expected = *(const float *)stored(s->file, prefix, "loss").data;
    if (fabs(result->loss - expected) > 1e-5 * (1 + fabs(expected)))
        fail_msg("%s loss %.7f, PyTorch has %.7f", prefix, result->loss, expected);
    for (int i = 0; i < s->graft->param_count; i++) {
        const struct gd_graft_param *param = &s->graft->params[i];
        struct gd_tensor theirs = stored(s->file, prefix, param->name);
        double far = distance(s->grad + param->offset, theirs.data, gd_tensor_count(&theirs));
        if (far > 1e-4)
            fail_msg("%s gradient of %s differs by %.3g relative", prefix, param->name, far);
    }
}

static void scores_loss_and_gradients_equal_pytorchs(void **state)
{
    struct setting *s = *state;
    const float *scores = stored(s->file, "", "scores").data;
    double chosen = 0, rejected = 0;
    for (int i = 0; i < PAIRS; i++) {
        chosen += scores[2 * i];
        rejected += scores[2 * i + 1];
    }
    for (int shared = 0; shared < 2; shared++) {
        struct gd_pass_result result = run(s, 0, false, shared);
        compare(s, "plain.", &result);
        assert_true(fabs(result.pairs.reward_chosen - chosen) < 1e-4 && fabs(result.pairs.reward_rejected - rejected) < 1e-4);
        assert_int_equal(result.pairs.preferred, 2);
        result = run(s, 0.05, true, shared);
        compare(s, "full.", &result);
    }
}

static void the_dossiers_values_come_out(void **state)
{
    struct gd_preference preference;
    struct gd_pair_loss out;
    struct gd_pair pair = {.chosen = 0.9, .rejected = 0.4, .chosen_tokens = 1, .rejected_tokens = 1};
    gd_preference_default(&preference, &gd_preference_reward);
    gd_preference_evaluate(&preference, &pair, &out);
    assert_true(fabs(out.loss - 0.474077) < 1e-6);
    preference.term[0].parameter[GD_PREFERENCE_CENTER_REWARDS] = 0.01;
    gd_preference_evaluate(&preference, &pair, &out);
    assert_true(fabs(out.loss - 0.490977) < 1e-6);
    assert_true(fabs(out.chosen - (2 * 0.01 * 1.3 - 1 / (1 + exp(0.5)))) < 1e-12);
}

static void what_is_saved_loads_to_the_same_bits(void **state)
{
    struct setting *s = *state;
    struct gd_error err = {0};
    struct gd_graft *loaded = NULL;
    char folder[] = "/tmp/graftd-reward-test-XXXXXX";
    assert_non_null(mkdtemp(folder));
    char *path = gd_format("%s/adapter", folder), *config_path = gd_format("%s/adapter_config.json", path);
    must(gd_adapter_publish(path, s->graft, s->graft->block, NULL, &err), &err);
    must(gd_graft_load(&loaded, s->model, path, &err), &err);
    assert_true(loaded->config.score);
    assert_string_equal(loaded->params[loaded->param_count - 1].name, GD_SCORE_NAME);
    assert_int_equal(gd_graft_floats(loaded), gd_graft_floats(s->graft));
    assert_memory_equal(loaded->block, s->graft->block, (size_t)gd_graft_floats(loaded) * sizeof(float));
    cJSON *config = gd_json_parse_file(config_path, 1 << 20, &err);
    assert_string_equal(gd_json_find(config, "task_type")->valuestring, "SEQ_CLS");
    assert_string_equal(cJSON_GetArrayItem(gd_json_find(config, "modules_to_save"), 0)->valuestring, "score");
    cJSON_Delete(config);
    gd_graft_destroy(loaded);
    must(gd_remove_tree(folder, &err), &err);
    gd_free(path);
    gd_free(config_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(scores_loss_and_gradients_equal_pytorchs, set_up, tear_down),
        cmocka_unit_test(the_dossiers_values_come_out),
        cmocka_unit_test_setup_teardown(what_is_saved_loads_to_the_same_bits, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
