/* Values and gradients of every preference loss through tiny-llama against PyTorch + PEFT (make_preference.py), in f32. */
#include "engine/base/alloc.h"
#include "engine/model/safetensors.h"
#include "engine/tensor/device.h"
#include "engine/train/passes.h"
#include "tests/unit/train/answers_testing.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PAIRS 3

struct setting {
    struct gd_model *model;
    struct gd_graft *graft;
    struct gd_safetensors *file;
    struct gd_dataset data;
    struct gd_batch batch;
    float *block, *grad;
};

static int set_up(void **state)
{
    struct setting *s = gd_alloc(sizeof(*s));
    struct gd_error err = {0};
    must(gd_device_init("cpu", 2, &err), &err);
    open_stored(&s->model, &s->file, "preference.safetensors");
    s->graft = make_lora(s->model);
    s->block = gd_alloc_array((size_t)s->graft->parameter_count, sizeof(float));
    s->grad = gd_alloc_array((size_t)s->graft->parameter_count, sizeof(float));
    for (int i = 0; i < s->graft->param_count; i++) {
        struct gd_tensor t = stored(s->file, "initial.", s->graft->params[i].name);
        memcpy(s->block + s->graft->params[i].offset, t.data, (size_t)gd_tensor_count(&t) * sizeof(float));
    }
    load_pairs(&s->data, s->file, PAIRS, *(const int32_t *)stored(s->file, "", "prompt").data);
    gd_batch_init(&s->batch, 256, GD_BATCH_SEGMENTS_MAX);
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
    gd_free(s->block);
    gd_free(s->grad);
    free_rows(&s->data);
    gd_free(s);
    return 0;
}

/* The loss over some of the pairs, packed in one micro-batch; gradients in s->grad. */
static struct gd_pass_result run(struct setting *s, const struct gd_preference *preference, int first, int count, int capacity,
                                 bool training)
{
    struct gd_error err = {0};
    struct gd_pass_result result;
    struct gd_passes passes;
    int64_t rows[PAIRS] = {first, first + 1, first + 2};
    gd_passes_init(&passes, s->model, s->graft, gd_objective_find("preference"), preference, GD_F32, s->block, s->grad);
    gd_batch_fill(&s->batch, &s->data, rows, count, capacity);
    struct gd_step_counts counts = {0};
    struct gd_survey survey = {0};
    for (int i = 0; i < PAIRS; i++)
        gd_step_count_row(&counts, preference, &s->data, i);
    gd_survey_begin(&survey, &counts, 0, 0);
    passes.survey = &survey;
    must(gd_passes_run(&passes, training, &s->batch, 1.0 / PAIRS, NULL, NULL, &result, &err), &err);
    gd_passes_release(&passes);
    return result;
}

static void every_loss_and_its_gradient_equal_pytorchs(void **state)
{
    struct setting *s = *state;
    int compared = 0;
    for (int l = 0; l < gd_preference_count; l++) {
        struct gd_preference preference;
        char key[64];
        struct gd_tensor found;
        snprintf(key, sizeof(key), "%s.loss", gd_preference_table[l].name);
        if (!gd_safetensors_find(s->file, key, &found)) /* of labelled rows, triples and whole steps: trl_parity_test */
            continue;
        compared++;
        gd_preference_default(&preference, &gd_preference_table[l]);
        char prefix[64];
        snprintf(prefix, sizeof(prefix), "%s.", preference.term[0].loss->name);
        struct gd_pass_result result = run(s, &preference, 0, PAIRS, 192, true);
        double expected = *(const float *)stored(s->file, prefix, "loss").data;
        if (fabs(result.loss - expected) > 1e-5 * (1 + fabs(expected)))
            fail_msg("%s: loss %.7f, PyTorch has %.7f", preference.term[0].loss->name, result.loss, expected);
        for (int i = 0; i < s->graft->param_count; i++) {
            const struct gd_graft_param *param = &s->graft->params[i];
            struct gd_tensor theirs = stored(s->file, prefix, param->name);
            double far = distance(s->grad + param->offset, theirs.data, gd_tensor_count(&theirs));
            if (far > 1e-4)
                fail_msg("%s: gradient of %s differs by %.3g relative", preference.term[0].loss->name, param->name, far);
        }
    }
    assert_int_equal(compared, 15);
}

static void log_probabilities_and_rewards_equal_pytorchs(void **state)
{
    struct setting *s = *state;
    const float *own = stored(s->file, "", "logps").data, *reference = stored(s->file, "", "reference").data;
    double chosen = 0, reward = 0;
    struct gd_preference preference;
    gd_preference_default(&preference, gd_preference_find("dpo"));
    for (int i = 0; i < PAIRS; i++) {
        chosen += own[2 * i];
        reward += 0.1 * (own[2 * i + 1] - reference[2 * i + 1]);
    }
    struct gd_pass_result result = run(s, &preference, 0, PAIRS, 192, false);
    assert_int_equal(result.pairs.rows, PAIRS);
    assert_true(fabs(result.pairs.logp_chosen - chosen) < 1e-3);
    assert_true(fabs(result.pairs.reward_rejected - reward) < 1e-4);
}

static void padding_and_packing_change_nothing_but_rounding(void **state)
{
    struct setting *s = *state;
    struct gd_preference preference;
    gd_preference_default(&preference, gd_preference_find("dpo"));
    int64_t count = s->graft->parameter_count;
    float *whole = gd_alloc_array((size_t)count, sizeof(float)), *parts = gd_alloc_array((size_t)count, sizeof(float));
    double loss = run(s, &preference, 0, PAIRS, 192, true).loss;
    memcpy(whole, s->grad, (size_t)count * sizeof(float));
    assert_true(fabs(run(s, &preference, 0, PAIRS, 256, true).loss - loss) < 1e-6);
    assert_true(distance(s->grad, whole, count) < 1e-5);
    double sum = 0;
    for (int i = 0; i < PAIRS; i++) {
        sum += run(s, &preference, i, 1, 64, true).loss;
        for (int64_t k = 0; k < count; k++)
            parts[k] += s->grad[k];
    }
    assert_true(fabs(sum - loss) < 1e-6);
    assert_true(distance(parts, whole, count) < 1e-5);
    gd_free(whole);
    gd_free(parts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_loss_and_its_gradient_equal_pytorchs, set_up, tear_down),
        cmocka_unit_test_setup_teardown(log_probabilities_and_rewards_equal_pytorchs, set_up, tear_down),
        cmocka_unit_test_setup_teardown(padding_and_packing_change_nothing_but_rounding, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
