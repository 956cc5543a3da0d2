/* What losses must know of a whole step: mismatched answers, ranks and running means, however the step is packed. */
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

#define ROWS 6

struct setting {
    struct gd_model *model;
    struct gd_graft *graft;
    struct gd_safetensors *file;
    struct gd_dataset pairs, labelled; /* the same answers: three pairs, and six rows */
    struct gd_batch batch;
    float *block, *grad;
    int32_t prompt;
};

static void add_row(struct gd_dataset *data, const int32_t *ids, int length, int prompt, bool desirable)
{
    data->rows[data->row_count] = (struct gd_dataset_row){.line = data->row_count + 1, .offset = data->token_count, .length = length,
                                                          .desirable = desirable, .importance = 1};
    for (int i = 0; i < length; i++) {
        data->tokens[data->token_count] = ids[i];
        data->weights[data->token_count++] = i >= prompt;
    }
    data->row_count++;
}

static void make_data(struct setting *s)
{
    const int32_t *ids = stored(s->file, "", "ids").data, *lengths = stored(s->file, "", "lengths").data;
    struct gd_dataset *sets[] = {&s->pairs, &s->labelled};
    s->prompt = *(const int32_t *)stored(s->file, "", "prompt").data;
    for (int k = 0; k < 2; k++) {
        sets[k]->rows = gd_alloc_array(ROWS + 1, sizeof(struct gd_dataset_row));
        sets[k]->tokens = gd_alloc_array((ROWS + 1) * 2 * LENGTH_MAX, sizeof(int32_t));
        sets[k]->weights = gd_alloc_array((ROWS + 1) * 2 * LENGTH_MAX, sizeof(float));
        for (int i = 0; i < ROWS; i++)
            add_row(sets[k], ids + i * LENGTH_MAX, lengths[i], s->prompt, i % 2 == 0);
    }
    s->pairs.pairs = s->labelled.labelled = true;
    s->pairs.row_count = ROWS / 2;
    for (int i = 0; i < ROWS / 2; i++)
        s->pairs.rows[i] = (struct gd_dataset_row){.line = i + 1, .offset = s->labelled.rows[2 * i].offset, .chosen = lengths[2 * i],
                                                   .length = lengths[2 * i] + lengths[2 * i + 1]};
}

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
        const char *name = s->graft->params[i].name;
        struct gd_tensor t = stored(s->file, "initial.", name);
        const float *from = t.data;
        int64_t count = gd_tensor_count(&t);
        float factor = strstr(name, "lora_B") != NULL ? -0.5f : 4; /* away from the base, to where z is not 0 */
        for (int64_t k = 0; k < count; k++)
            s->block[s->graft->params[i].offset + k] = factor * from[k];
    }
    make_data(s);
    gd_batch_init(&s->batch, 512, GD_BATCH_SEGMENTS_MAX);
    *state = s;
    return 0;
}

static int tear_down(void **state)
{
    struct setting *s = *state;
    struct gd_dataset *sets[] = {&s->pairs, &s->labelled};
    gd_batch_release(&s->batch);
    gd_graft_destroy(s->graft);
    gd_model_destroy(s->model);
    gd_safetensors_close(s->file);
    for (int k = 0; k < 2; k++)
        free_rows(sets[k]);
    gd_free(s->block);
    gd_free(s->grad);
    gd_free(s);
    return 0;
}

struct looked_at {
    struct gd_survey survey;
    double loss;
    float *gradient;
};

/* A step over all rows of `data`, whose packing the budget decides. */
static struct looked_at *look(struct setting *s, const struct gd_dataset *data, const char *loss, int budget, double mean, double total)
{
    struct looked_at *out = gd_alloc(sizeof(*out));
    struct gd_preference preference;
    struct gd_passes passes;
    struct gd_error err = {0};
    struct gd_step_counts counts = {0};
    int64_t rows[ROWS];
    int count = (int)data->row_count;
    size_t floats = (size_t)s->graft->parameter_count;
    gd_preference_default(&preference, gd_preference_find(loss));
    gd_passes_init(&passes, s->model, s->graft, gd_objective_find("preference"), &preference, GD_F32, s->block, s->grad);
    for (int i = 0; i < count; i++) {
        rows[i] = i;
        gd_step_count_row(&counts, &preference, data, i);
    }
    struct gd_survey_options options = {.training = true, .rows = rows, .count = count, .before = 0, .tokens_per_batch = budget, .max_length = 512};
    gd_survey_begin(&out->survey, &counts, mean, total);
    passes.survey = &out->survey;
    must(gd_survey_run(&out->survey, &passes, &s->batch, data, &options, NULL, &err), &err);
    out->gradient = gd_alloc_array(floats, sizeof(float));
    for (int i = 0, most = budget > 100 ? count : 1; i < count; i += most) {
        struct gd_pass_result result;
        gd_batch_fill(&s->batch, data, rows + i, most, 256);
        must(gd_passes_run(&passes, true, &s->batch, 1.0 / count, NULL, NULL, &result, &err), &err);
        out->loss += result.loss;
        for (size_t k = 0; k < floats; k++)
            out->gradient[k] += s->grad[k];
    }
    gd_passes_release(&passes);
    return out;
}

static void look_away(struct looked_at *looked)
{
    gd_free(looked->gradient);
    gd_free(looked);
}

static double log_ratio(struct setting *s, const int32_t *ids, int length)
{
    struct gd_dataset one = {.labelled = true};
    struct gd_preference preference;
    struct gd_passes passes;
    struct gd_error err = {0};
    int32_t tokens[2 * LENGTH_MAX];
    float weights[2 * LENGTH_MAX], own, reference;
    struct gd_dataset_row row;
    one.tokens = tokens;
    one.weights = weights;
    one.rows = &row;
    add_row(&one, ids, length, s->prompt, true);
    gd_preference_default(&preference, gd_preference_find("kto"));
    gd_passes_init(&passes, s->model, s->graft, gd_objective_find("preference"), &preference, GD_F32, s->block, s->grad);
    gd_batch_fill(&s->batch, &one, (int64_t[]){0}, 1, 64);
    must(gd_passes_logprobs(&passes, &s->batch, NULL, &own, &reference, &err), &err);
    gd_passes_release(&passes);
    return (double)own - (double)reference;
}

/* Each prompt with the previous row's answer, put together by hand, one at a time. */
static void ktos_estimate_is_what_mismatched_answers_cost(void **state)
{
    struct setting *s = *state;
    const int32_t *ids = stored(s->file, "", "ids").data, *lengths = stored(s->file, "", "lengths").data;
    double sum = 0;
    for (int i = 0; i < ROWS; i++) {
        int other = (i + ROWS - 1) % ROWS, answer = lengths[other] - s->prompt;
        int32_t mixed[2 * LENGTH_MAX];
        memcpy(mixed, ids + i * LENGTH_MAX, (size_t)s->prompt * sizeof(*ids));
        memcpy(mixed + s->prompt, ids + other * LENGTH_MAX + s->prompt, (size_t)answer * sizeof(*ids));
        sum += log_ratio(s, mixed, s->prompt + answer);
    }
    struct looked_at *packed = look(s, &s->labelled, "kto", 512, 0, 0), *apart = look(s, &s->labelled, "kto", 32, 0, 0);
    assert_true(sum > 0.01);
    assert_true(fabs(packed->survey.step.kl - sum / ROWS) < 1e-5);
    assert_true(fabs(apart->survey.step.kl - sum / ROWS) < 1e-5);
    look_away(packed);
    look_away(apart);
}

static void a_step_is_the_same_however_it_is_packed(void **state)
{
    static const char *const losses[] = {"kto", "bco", "apo_zero_unpaired", "aot", "aot_unpaired", "orpo", "cpo", "sft"};
    struct setting *s = *state;
    for (size_t l = 0; l < GD_COUNT(losses); l++) {
        const struct gd_dataset *data = l < 3 ? &s->labelled : &s->pairs;
        struct looked_at *packed = look(s, data, losses[l], 512, 0.3, 5), *apart = look(s, data, losses[l], 32, 0.3, 5);
        double far = 0, size = 0;
        for (int64_t k = 0; k < s->graft->parameter_count; k++) {
            far += pow((double)packed->gradient[k] - (double)apart->gradient[k], 2);
            size += pow((double)packed->gradient[k], 2);
        }
        if (fabs(packed->loss - apart->loss) > 1e-5 || !(sqrt(far) < 1e-4 * sqrt(size)))
            fail_msg("%s: %.7f packed, %.7f apart; gradients differ by %.3g of %.3g", losses[l], packed->loss, apart->loss, sqrt(far), sqrt(size));
        look_away(packed);
        look_away(apart);
    }
}

static void bcos_mean_goes_on_from_where_it_was(void **state)
{
    struct setting *s = *state;
    const int32_t *ids = stored(s->file, "", "ids").data, *lengths = stored(s->file, "", "lengths").data;
    double sum = 0;
    for (int i = 0; i < ROWS; i++)
        sum += log_ratio(s, ids + i * LENGTH_MAX, lengths[i]);
    struct looked_at *looked = look(s, &s->labelled, "bco", 64, 0.25, 4);
    assert_true(fabs(looked->survey.running_mean - (0.25 * 4 + sum) / (4 + ROWS)) < 1e-5);
    assert_true(looked->survey.running_count == 4 + ROWS && looked->survey.step.shift == looked->survey.running_mean);
    look_away(looked);
}

/* Moving one parameter moves the step's loss by its gradient: z, ranks and means are looked at again each time. */
static void gradients_are_slopes_of_the_whole_model(void **state)
{
    static const char *const losses[] = {"aot", "aot_unpaired", "apo_zero_unpaired", "orpo"};
    struct setting *s = *state;
    for (size_t l = 0; l < GD_COUNT(losses); l++) {
        const struct gd_dataset *data = strcmp(losses[l], "apo_zero_unpaired") == 0 ? &s->labelled : &s->pairs;
        struct looked_at *at = look(s, data, losses[l], 512, 0, 0);
        double far = 0, size = 0;
        for (int i = 0; i < 20; i++) {
            int64_t k = (int64_t)i * 47 % s->graft->parameter_count;
            float kept = s->block[k], step = 1e-2f;
            double loss[2];
            for (int side = 0; side < 2; side++) {
                s->block[k] = kept + (side ? step : -step);
                struct looked_at *moved = look(s, data, losses[l], 512, 0, 0);
                loss[side] = moved->loss;
                look_away(moved);
            }
            s->block[k] = kept;
            double slope = (loss[1] - loss[0]) / (2 * (double)step);
            far += pow(slope - (double)at->gradient[k], 2);
            size += pow(slope, 2);
        }
        if (!(sqrt(far) < 5e-3 * sqrt(size)))
            fail_msg("%s: slopes differ by %.3g of %.3g", losses[l], sqrt(far), sqrt(size));
        look_away(at);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(ktos_estimate_is_what_mismatched_answers_cost, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_step_is_the_same_however_it_is_packed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bcos_mean_goes_on_from_where_it_was, set_up, tear_down),
        cmocka_unit_test_setup_teardown(gradients_are_slopes_of_the_whole_model, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
