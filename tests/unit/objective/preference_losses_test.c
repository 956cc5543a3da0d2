/* Preference losses as scalar functions: published values, slopes, identities, far ends, and their requests. */
#include "engine/base/alloc.h"
#include "engine/objective/preference.h"
#include "engine/tensor/device.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct gd_preference make(const char *text)
{
    struct gd_preference preference;
    struct gd_error err = {0};
    cJSON *json = cJSON_Parse(text);
    assert_non_null(json);
    if (!gd_preference_parse(&preference, json, "p", &err))
        fail_msg("%s: %s", text, err.message);
    cJSON_Delete(json);
    return preference;
}

static struct gd_pair_loss value(const char *text, struct gd_pair pair)
{
    struct gd_preference preference = make(text);
    struct gd_pair_loss result;
    if (!preference.loss->reference)
        pair.reference_chosen = pair.reference_rejected = 0;
    gd_preference_evaluate(&preference, &pair, &result);
    return result;
}

static const struct gd_pair example = {-11.2, -15.3, -12.0, -15.0, 10, 12};

/* a = -11.2, b = -15.3, a0 = -12, b0 = -15, 10 and 12 tokens. */
static void losses_and_slopes_have_the_reference_values(void **state)
{
    static const struct {
        const char *text;
        double loss, chosen, rejected;
    } table[] = {
        {"{\"loss\":\"dpo\"}", 0.639659, -0.047253, 0.047253},
        {"{\"loss\":\"sigmoid\",\"label_smoothing\":0.1}", 0.650659, -0.037253, 0.037253},
        {"{\"loss\":\"robust\",\"label_smoothing\":0.1}", 0.625909, -0.059753, 0.059753},
        {"{\"loss\":\"hinge\"}", 0.890000, -0.100000, 0.100000},
        {"{\"loss\":\"ipo\"}", 23.961025, -0.979000, 0.815833},
        {"{\"loss\":\"sigmoid_norm\"}", 0.687911, -0.004974, 0.004145},
        {"{\"loss\":\"exo\",\"label_smoothing\":0.001}", 2.572996, -0.169406, 0.169406},
        {"{\"loss\":\"nca\",\"beta\":0.1}", 1.360050, -0.022002, 0.024625},
        {"{\"loss\":\"bco_pair\",\"beta\":0.1}", 1.332207, -0.048001, 0.049250},
        {"{\"loss\":\"sppo\",\"beta\":0.1}", 39.730000, -8.400000, 9.400000},
        {"{\"loss\":\"apo_zero\"}", 0.972511, -0.024960, 0.024994},
        {"{\"loss\":\"apo_down\"}", 0.992517, 0.000036, 0.024925},
        {"{\"loss\":\"discopop\",\"beta\":0.1,\"tau\":0.05}", 0.870281, -0.039352, 0.039352},
        {"{\"loss\":\"cpo\",\"nll_weight\":0}", 0.509014, -0.039891, 0.039891},
        {"{\"loss\":\"simpo\",\"beta\":2,\"gamma\":1}", 1.096515, -0.133193, 0.110994},
        {"{\"loss\":\"orpo\",\"lambda\":1,\"nll_weight\":0}", 0.588194, -0.066002, 0.051426},
    };
    for (size_t i = 0; i < GD_COUNT(table); i++) {
        struct gd_pair_loss got = value(table[i].text, example);
        if (fabs(got.loss - table[i].loss) > 1e-6 || fabs(got.chosen - table[i].chosen) > 1e-6 ||
            fabs(got.rejected - table[i].rejected) > 1e-6)
            fail_msg("%s: %.6f %.6f %.6f", table[i].text, got.loss, got.chosen, got.rejected);
    }
}

static void slopes_equal_central_differences(void **state)
{
    static const struct gd_pair points[] = {
        {-11.2, -15.3, -12.0, -15.0, 10, 12}, {-40.0, -3.0, -20.0, -30.0, 7, 3}, {-2.5, -60.0, -9.0, -50.0, 4, 31}};
    for (int l = 0; l < gd_preference_count; l++)
        for (size_t i = 0; i < GD_COUNT(points); i++)
            for (int side = 0; side < 2; side++) {
                struct gd_preference preference;
                struct gd_pair_loss at, low, high;
                struct gd_pair left = points[i], right = points[i];
                double step = 1e-5;
                gd_preference_default(&preference, &gd_preference_table[l]);
                preference.parameter[GD_PREFERENCE_NLL_WEIGHT] = 0.3;
                *(side ? &left.rejected : &left.chosen) -= step;
                *(side ? &right.rejected : &right.chosen) += step;
                gd_preference_evaluate(&preference, &points[i], &at);
                gd_preference_evaluate(&preference, &left, &low);
                gd_preference_evaluate(&preference, &right, &high);
                double slope = (high.loss - low.loss) / (2 * step), got = side ? at.rejected : at.chosen;
                if (fabs(got - slope) > 1e-6 * (1 + fabs(slope)) + 1e-10 * fabs(at.loss) / step)
                    fail_msg("%s at point %zu, side %d: slope %.9g, differences give %.9g", preference.loss->name, i, side, got, slope);
            }
}

static void without_a_difference_to_the_reference_losses_have_their_neutral_values(void **state)
{
    struct gd_pair same = {-11.2, -15.3, -11.2, -15.3, 10, 12};
    assert_true(fabs(value("{\"loss\":\"dpo\"}", same).loss - log(2)) < 1e-12);
    assert_true(fabs(value("{\"loss\":\"apo_zero\"}", same).loss - 1) < 1e-12);
    assert_true(fabs(value("{\"loss\":\"nca\"}", same).loss - 2 * log(2)) < 1e-12);
    assert_true(fabs(value("{\"loss\":\"simpo\"}", same).loss - log(2)) > 0.01);
}

static void identities_between_losses_hold(void **state)
{
    struct gd_pair swapped = {example.rejected, example.chosen, example.reference_rejected, example.reference_chosen, 12, 10};
    double s = 0.1 * ((example.chosen - example.reference_chosen) - (example.rejected - example.reference_rejected));
    double dpo = value("{\"loss\":\"dpo\"}", example).loss;
    assert_true(fabs(dpo - value("{\"loss\":\"dpo\"}", swapped).loss + s) < 1e-12);
    assert_true(fabs(dpo - value("{\"loss\":\"robust\",\"label_smoothing\":0}", example).loss) < 1e-12);
    assert_true(fabs(value("{\"loss\":\"orpo\",\"lambda\":0}", example).loss - 11.2 / 10) < 1e-12);
    assert_true(fabs(value("{\"loss\":\"dpo\",\"nll_weight\":0.5}", example).loss - dpo - 0.5 * 11.2 / 10) < 1e-12);
}

static void far_ends_stay_finite(void **state)
{
    static const double far[] = {0, -1e-9, -1, -1000, -1e5};
    for (int l = 0; l < gd_preference_count; l++)
        for (size_t i = 0; i < GD_COUNT(far); i++)
            for (size_t j = 0; j < GD_COUNT(far); j++) {
                struct gd_pair pair = {far[i], far[j], far[j], far[i], 3, 5};
                struct gd_preference preference;
                struct gd_pair_loss got;
                gd_preference_default(&preference, &gd_preference_table[l]);
                gd_preference_evaluate(&preference, &pair, &got);
                if (!isfinite(got.loss) || !isfinite(got.chosen) || !isfinite(got.rejected))
                    fail_msg("%s at a %g, b %g: %g %g %g", preference.loss->name, far[i], far[j], got.loss, got.chosen, got.rejected);
            }
}

static void a_batch_sums_its_pairs_and_leaves_the_other_segments_alone(void **state)
{
    struct gd_preference preference = make("{\"loss\":\"dpo\"}");
    struct gd_preference_batch batch = {.preference = &preference, .pairs = 2, .scale = 0.5, .tokens = {10, 12, 10, 12},
                                        .reference = {-12, -15, -15, -12}};
    float logp[6] = {-11.2f, -15.3f, -15.3f, -11.2f, 7, 7}, gradient[6] = {1, 1, 1, 1, 1, 1};
    double loss = gd_preference_batch_evaluate(&batch, logp, 6, gradient);
    assert_true(fabs(loss - 0.5 * (0.639659 + 0.639659 + 0.11)) < 1e-5);
    assert_true(fabsf(gradient[0] + 0.5f * 0.047253f) < 1e-6f && gradient[1] == -gradient[0]);
    assert_true(gradient[4] == 0 && gradient[5] == 0);
    assert_int_equal(batch.sums.pairs, 2);
    assert_int_equal(batch.sums.preferred, 1);
    assert_true(fabs(batch.sums.reward_chosen - 0.1 * (0.8 - 0.3)) < 1e-6);
    assert_true(fabs(batch.sums.logp_rejected + 26.5) < 1e-5);
}

/* loss = sum x^2 as a function of the segments. */
static double squares(void *context, const float *x, int64_t segments, float *gradient)
{
    double sum = 0;
    for (int64_t i = 0; i < segments; i++) {
        sum += (double)x[i] * (double)x[i];
        gradient[i] = 2 * x[i];
    }
    *(int *)context += 1;
    return sum;
}

static void segment_loss_calls_the_function_and_passes_its_gradient_back(void **state)
{
    struct gd_error err = {0};
    struct gd_graph *graph = NULL;
    struct gd_plan *plan = NULL;
    int calls = 0;
    struct gd_segment_loss loss = {.context = &calls, .evaluate = squares};
    assert_true(gd_device_init("cpu", 1, &err));
    assert_true(gd_graph_create(&graph, GD_F32, &err));
    struct gd_value *x = gd_graph_input(graph, "x", GD_F32, 1, (int64_t[]){3}), *handle = gd_graph_handle(graph, "loss");
    struct gd_value *grad = NULL;
    gd_graph_want(x);
    struct gd_value *y = gd_segment_loss(graph, x, handle);
    assert_true(gd_graph_gradient(graph, y, &x, 1, &grad, &err));
    struct gd_value *wanted[] = {y, grad};
    assert_true(gd_plan_create(&plan, graph, wanted, 2, false, &err));
    float data[3] = {1, -2, 3};
    void *arena = NULL;
    size_t bytes = gd_plan_arena_bytes(plan);
    assert_true(gd_large_alloc(&arena, bytes, "arena", &err));
    gd_plan_attach(plan, arena);
    gd_plan_bind(plan, x, data);
    gd_plan_bind(plan, handle, &loss);
    assert_true(gd_plan_run(plan, NULL, &err));
    const float *slope = gd_plan_data(plan, grad);
    assert_true(*(const float *)gd_plan_data(plan, y) == 14 && slope[0] == 2 && slope[1] == -4 && slope[2] == 6);
    assert_int_equal(calls, 1);
    gd_large_free(arena, bytes);
    gd_plan_destroy(plan);
    gd_graph_destroy(graph);
}

static void requests_name_the_wrong_field_and_the_nearest_loss(void **state)
{
    static const struct {
        const char *text, *param, *part;
    } bad[] = {
        {"{}", "p.loss", ""},
        {"{\"loss\":\"simpi\"}", "p.loss", "did you mean 'simpo'"},
        {"{\"loss\":\"exo_pairs\"}", "p.loss", "did you mean 'exo_pair'"},
        {"{\"loss\":7}", "p.loss", ""},
        {"{\"loss\":\"simpo\",\"label_smoothing\":0.1}", "p.label_smoothing", "it takes beta, gamma, nll_weight"},
        {"{\"loss\":\"dpo\",\"betta\":0.1}", "p.betta", "beta"},
        {"{\"loss\":\"dpo\",\"beta\":0}", "p.beta", ""},
        {"{\"loss\":\"dpo\",\"beta\":\"high\"}", "p.beta", ""},
        {"{\"loss\":\"robust\",\"label_smoothing\":0.5}", "p.label_smoothing", ""},
        {"{\"loss\":\"exo\",\"label_smoothing\":0}", "p.label_smoothing", ""},
        {"{\"loss\":\"orpo\",\"beta\":0.1}", "p.beta", "it takes lambda, nll_weight"},
    };
    for (size_t i = 0; i < GD_COUNT(bad); i++) {
        struct gd_preference preference;
        struct gd_error err = {0};
        cJSON *json = cJSON_Parse(bad[i].text);
        if (gd_preference_parse(&preference, json, "p", &err))
            fail_msg("accepted: %s", bad[i].text);
        if (strcmp(err.param, bad[i].param) != 0 || strstr(err.message, bad[i].part) == NULL)
            fail_msg("%s: %s: %s", bad[i].text, err.param, err.message);
        cJSON_Delete(json);
    }
    struct gd_preference preference = make("{\"loss\":\"sppo_hard\",\"beta\":\"auto\",\"nll_weight\":0.25,\"hyperparameters\":{}}");
    cJSON *json = cJSON_CreateObject();
    gd_preference_add_json(&preference, json);
    char *text = gd_json_print(json);
    assert_string_equal(text, "{\"loss\":\"sppo\",\"beta\":0.001,\"nll_weight\":0.25}");
    gd_free(text);
    cJSON_Delete(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_and_slopes_have_the_reference_values),
        cmocka_unit_test(slopes_equal_central_differences),
        cmocka_unit_test(without_a_difference_to_the_reference_losses_have_their_neutral_values),
        cmocka_unit_test(identities_between_losses_hold),
        cmocka_unit_test(far_ends_stay_finite),
        cmocka_unit_test(a_batch_sums_its_pairs_and_leaves_the_other_segments_alone),
        cmocka_unit_test(segment_loss_calls_the_function_and_passes_its_gradient_back),
        cmocka_unit_test(requests_name_the_wrong_field_and_the_nearest_loss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
