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
#include "tests/unit/tensor/reading.h"

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

/* Over pairs, and no comparison that has two owners. */
static bool is_own_function(int loss)
{
    return gd_preference_table[loss].labelled == NULL && strcmp(gd_preference_table[loss].name, "aot_unpaired") != 0;
}

static void slopes_equal_central_differences(void **state)
{
    static const struct gd_pair points[] = {
        {-11.2, -15.3, -12.0, -15.0, 10, 12}, {-40.0, -3.0, -20.0, -30.0, 7, 3}, {-2.5, -60.0, -9.0, -50.0, 4, 31}};
    for (int l = 0; l < gd_preference_count; l++)
        for (size_t i = 0; is_own_function(l) && i < GD_COUNT(points); i++)
            for (int side = 0; side < 2; side++) {
                struct gd_preference preference;
                struct gd_pair_loss at, low, high;
                struct gd_pair left = points[i], right = points[i];
                double step = 1e-5;
                gd_preference_default(&preference, &gd_preference_table[l]);
                preference.term[0].parameter[GD_PREFERENCE_NLL_WEIGHT] = 0.3;
                *(side ? &left.rejected : &left.chosen) -= step;
                *(side ? &right.rejected : &right.chosen) += step;
                gd_preference_evaluate(&preference, &points[i], &at);
                gd_preference_evaluate(&preference, &left, &low);
                gd_preference_evaluate(&preference, &right, &high);
                double slope = (high.loss - low.loss) / (2 * step), got = side ? at.rejected : at.chosen;
                if (fabs(got - slope) > 1e-6 * (1 + fabs(slope)) + 1e-10 * fabs(at.loss) / step)
                    fail_msg("%s at point %zu, side %d: slope %.9g, differences give %.9g", preference.term[0].loss->name, i, side, got, slope);
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
        for (size_t i = 0; gd_preference_table[l].labelled == NULL && i < GD_COUNT(far); i++)
            for (size_t j = 0; j < GD_COUNT(far); j++) {
                struct gd_pair pair = {far[i], far[j], far[j], far[i], 3, 5};
                struct gd_preference preference;
                struct gd_pair_loss got;
                gd_preference_default(&preference, &gd_preference_table[l]);
                gd_preference_evaluate(&preference, &pair, &got);
                if (!isfinite(got.loss) || !isfinite(got.chosen) || !isfinite(got.rejected))
                    fail_msg("%s at a %g, b %g: %g %g %g", preference.term[0].loss->name, far[i], far[j], got.loss, got.chosen, got.rejected);
            }
}

/* Segments of two tokens, each with half of the log-probability. */
struct batch {
    struct gd_preference_batch batch;
    int32_t cu[17], labels[32];
    float weights[32], nll[32], gradient[34], logp[34], collision[34];
    int segments;
};

static struct batch *make_batch(const struct gd_preference *preference, int rows, const float *logp, const float *reference)
{
    struct batch *b = gd_alloc(sizeof *b);
    b->segments = rows * gd_preference_sides(preference);
    b->batch = (struct gd_preference_batch){.preference = preference, .rows = rows, .step = {.scale = 1.0 / rows}, .cu_seqlens = b->cu,
                                            .labels = b->labels, .weights = b->weights, .nll = b->nll};
    for (int s = 0; s < b->segments; s++) {
        b->cu[s + 1] = 2 * s + 2;
        b->batch.tokens[s] = 2;
        b->batch.reference[s] = reference[s];
        b->logp[2 * s] = b->logp[2 * s + 1] = logp[s] / 2;
        b->weights[2 * s] = b->weights[2 * s + 1] = 1;
    }
    return b;
}

static double run_batch(struct batch *b)
{
    b->gradient[2 * b->segments] = 7;
    return gd_preference_batch_evaluate(&b->batch, b->logp, b->collision, 2 * b->segments + 1, b->gradient);
}

static void a_batch_sums_its_pairs_and_leaves_the_other_tokens_alone(void **state)
{
    struct gd_preference preference = make("{\"loss\":\"dpo\"}");
    struct batch *b = make_batch(&preference, 2, (float[]){-11.2f, -15.3f, -15.3f, -11.2f}, (float[]){-12, -15, -15, -12});
    double loss = run_batch(b);
    assert_true(fabs(loss - 0.5 * (0.639659 + 0.639659 + 0.11)) < 1e-5);
    assert_true(fabsf(b->gradient[0] + 0.5f * 0.047253f) < 1e-6f && b->gradient[1] == b->gradient[0]);
    assert_true(b->gradient[2] == -b->gradient[0] && b->gradient[8] == 0);
    assert_int_equal(b->batch.sums.rows, 2);
    assert_int_equal(b->batch.sums.preferred, 1);
    assert_true(fabs(b->batch.sums.reward_chosen - 0.1 * (0.8 - 0.3)) < 1e-6);
    assert_true(fabs(b->batch.sums.logp_rejected + 26.5) < 1e-5);
    gd_free(b);
}

/* The example's chosen answer as a desirable row, its rejected one as an undesirable one: values of both, summed. */
static void losses_over_labelled_answers_have_the_reference_values(void **state)
{
    static const struct {
        const char *text;
        double kl, shift, loss, chosen, rejected;
    } table[] = {
        {"{\"loss\":\"kto\"}", 0.2, 0, 0.972507, -0.024978, 0.024984},
        {"{\"loss\":\"bco\"}", 0, 0.5, 1.332207, -0.049250, 0.048001},
        {"{\"loss\":\"apo_zero_unpaired\"}", 0, 0, 0.972511, -0.024960, 0.024994},
        {"{\"loss\":\"kto\",\"desirable_weight\":2}", 0.2, 0, 1.457512, -0.049955, 0.024984},
        {"{\"loss\":[{\"name\":\"kto\",\"weight\":0.5},{\"name\":\"bco\",\"weight\":2}]}", 0.2, 0.5, 0.4862535 + 2.664414, -0.012489 - 0.0985,
         0.012492 + 0.096002},
    };
    for (size_t i = 0; i < GD_COUNT(table); i++) {
        struct gd_preference preference = make(table[i].text);
        struct batch *b = make_batch(&preference, 2, (float[]){-11.2f, -15.3f}, (float[]){-12, -15});
        b->batch.desirable[0] = true;
        b->batch.step = (struct gd_preference_step){.scale = 1, .kl = table[i].kl, .shift = table[i].shift};
        double loss = run_batch(b);
        if (fabs(loss - table[i].loss) > 2e-6 || fabs((double)b->gradient[0] - table[i].chosen) > 2e-6 ||
            fabs((double)b->gradient[2] - table[i].rejected) > 2e-6)
            fail_msg("%s: %.6f %.6f %.6f", table[i].text, loss, (double)b->gradient[0], (double)b->gradient[2]);
        assert_true(b->batch.sums.chosen == 1 && b->batch.sums.rejected == 1);
        gd_free(b);
    }
}

static void aot_compares_pairs_of_the_same_rank(void **state)
{
    static const float logp[] = {-10, -11, -12, -10.5f, -9, -13}, reference[] = {-10.4f, -12.2f, -11.8f, -10.9f, -9.9f, -10.7f};
    static const struct {
        const char *text;
        double loss;
    } table[] = {{"{\"loss\":\"aot\",\"beta\":0.5}", 0.595362}, {"{\"loss\":\"dpo\",\"beta\":0.5}", 0.650424}};
    for (size_t i = 0; i < GD_COUNT(table); i++) {
        struct gd_preference preference = make(table[i].text);
        struct batch *b = make_batch(&preference, 3, logp, reference);
        gd_preference_match(logp, reference, 3, b->batch.partner);
        double loss = run_batch(b);
        if (fabs(loss - table[i].loss) > 1e-6)
            fail_msg("%s: %.6f", table[i].text, loss);
        gd_free(b);
    }
}

/* Moving one log-probability moves the whole step's loss by its slope, where the ranks stay. */
static void slopes_of_sorted_losses_are_those_of_the_step(void **state)
{
    static const float logp[] = {-10, -11, -12, -10.5f, -9, -13}, reference[] = {-10.4f, -12.2f, -11.8f, -10.9f, -9.9f, -10.7f};
    static const char *const losses[] = {"aot", "aot_unpaired"};
    for (size_t l = 0; l < GD_COUNT(losses); l++) {
        struct gd_preference preference;
        gd_preference_default(&preference, gd_preference_find(losses[l]));
        preference.term[0].parameter[GD_PREFERENCE_BETA] = 0.5;
        preference.term[0].parameter[GD_PREFERENCE_LABEL_SMOOTHING] = 0.1;
        for (int s = 0; s < 6; s++) {
            double loss[2];
            float slope = 0;
            for (int side = 0; side < 2; side++) {
                float moved[6];
                memcpy(moved, logp, sizeof moved);
                moved[s] += side ? 0.01f : -0.01f;
                struct batch *b = make_batch(&preference, 3, moved, reference);
                gd_preference_match(moved, reference, 3, b->batch.partner);
                loss[side] = run_batch(b);
                slope += b->gradient[2 * s] / 2;
                gd_free(b);
            }
            if (fabs((loss[1] - loss[0]) / 0.02 - (double)slope) > 1e-4)
                fail_msg("%s, segment %d: %.6f %.6f", losses[l], s, (loss[1] - loss[0]) / 0.02, (double)slope);
        }
    }
}

static void sorting_one_pair_and_shifting_by_nothing_change_nothing(void **state)
{
    struct gd_preference aot = make("{\"loss\":\"aot\"}"), unpaired = make("{\"loss\":\"aot_unpaired\"}");
    struct gd_preference bco = make("{\"loss\":\"bco\",\"beta\":0.1}");
    const struct gd_preference *sorted[] = {&aot, &unpaired};
    for (int i = 0; i < 2; i++) {
        struct batch *b = make_batch(sorted[i], 1, (float[]){-11.2f, -15.3f}, (float[]){-12, -15});
        gd_preference_match((float[]){-11.2f, -15.3f}, (float[]){-12, -15}, 1, b->batch.partner);
        assert_true(fabs(run_batch(b) - 0.639659) < 1e-6 && fabsf(b->gradient[2] - 0.047253f) < 1e-6f);
        gd_free(b);
    }
    struct batch *b = make_batch(&bco, 2, (float[]){-11.2f, -15.3f}, (float[]){-12, -15});
    b->batch.desirable[0] = true;
    assert_true(fabs(2 * run_batch(b) - value("{\"loss\":\"bco_pair\",\"beta\":0.1}", example).loss) < 1e-6);
    gd_free(b);
}

static void modifiers_that_change_nothing_change_nothing(void **state)
{
    double dpo = value("{\"loss\":\"dpo\"}", example).loss;
    assert_true(value("{\"loss\":\"dpo\",\"f_divergence_type\":\"reverse_kl\"}", example).loss == dpo);
    assert_true(fabs(value("{\"loss\":\"dpo\",\"f_divergence_type\":\"alpha\",\"f_alpha_divergence_coef\":1}", example).loss - dpo) < 1e-12);
    assert_true(value("{\"loss\":\"dpo\",\"ld_alpha\":1}", example).loss == dpo);
    assert_true(fabs(value("{\"loss\":[\"sigmoid\",\"sft\"],\"loss_weights\":[1,0.5]}", example).loss - dpo - 0.5 * 1.12) < 1e-12);
    assert_true(fabs(value("{\"loss\":\"ipo\",\"length_normalize\":false}", example).loss - 3.9 * 3.9) < 1e-9);
    assert_true(fabs(value("{\"loss\":\"simpo\",\"beta\":2,\"gamma\":1,\"alpha\":1e-6}", example).loss - 1.096515) < 1e-5);
}

static void running_means_merge_as_if_all_values_were_there_at_once(void **state)
{
    double mean = 0, total = 0;
    gd_preference_merge_mean(&mean, &total, 2, 3);
    gd_preference_merge_mean(&mean, &total, -1, 5);
    gd_preference_merge_mean(&mean, &total, 4, 0);
    assert_true(fabs(mean - 1.0 / 8) < 1e-15 && total == 8);
}

/* loss = sum x^2 as a function of the segments. */
static double squares(void *context, const float *x, const float *aside, int64_t segments, float *gradient)
{
    double sum = 0;
    for (int64_t i = 0; i < segments; i++) {
        sum += (double)x[i] * (double)x[i];
        gradient[i] = 2 * x[i];
    }
    assert_null(aside);
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
    struct gd_value *y = gd_segment_loss(graph, x, NULL, handle);
    assert_true(gd_graph_gradient(graph, y, &x, 1, &grad, &err));
    struct gd_value *wanted[] = {y, grad};
    assert_true(gd_plan_create(&plan, graph, wanted, 2, false, &err));
    float data[3] = {1, -2, 3};
    void *arena = NULL;
    size_t bytes = gd_plan_arena_bytes(plan);
    assert_true(gd_device_alloc(&arena, bytes, "arena", &err));
    gd_plan_attach(plan, arena);
    gd_plan_bind(plan, x, data);
    gd_plan_bind(plan, handle, &loss);
    assert_true(gd_plan_run(plan, NULL, &err));
    const float *slope = test_read(plan, grad);
    assert_true(*(const float *)test_read(plan, y) == 14 && slope[0] == 2 && slope[1] == -4 && slope[2] == 6);
    assert_int_equal(calls, 1);
    gd_device_free(arena, bytes);
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
        {"{\"loss\":\"ipo\",\"label_smoothing\":0.1}", "p.label_smoothing", "it takes beta, length_normalize, nll_weight"},
        {"{\"loss\":\"dpo\",\"betta\":0.1}", "p.betta", "beta"},
        {"{\"loss\":\"dpo\",\"beta\":0}", "p.beta", ""},
        {"{\"loss\":\"dpo\",\"beta\":\"high\"}", "p.beta", ""},
        {"{\"loss\":\"robust\",\"label_smoothing\":0.5}", "p.label_smoothing", ""},
        {"{\"loss\":\"exo\",\"label_smoothing\":0}", "p.label_smoothing", ""},
        {"{\"loss\":\"orpo\",\"beta\":0.1}", "p.beta", "it takes lambda, nll_weight"},
        {"{\"loss\":\"sft\",\"beta\":0.1}", "p.beta", "it takes none"},
        {"{\"loss\":\"kto\",\"label_smoothing\":0.1}", "p.label_smoothing", "desirable_weight"},
        {"{\"loss\":[]}", "p.loss", "1 to 8"},
        {"{\"loss\":[\"dpo\",\"sigmoid\"]}", "p.loss[1]", "twice"},
        {"{\"loss\":[\"dpo\",7]}", "p.loss[1]", "name"},
        {"{\"loss\":[\"dpo\",{\"name\":\"stf\"}]}", "p.loss[1].name", "did you mean 'sft'"},
        {"{\"loss\":[{\"name\":\"dpo\",\"wieght\":1}]}", "p.loss[0].wieght", "weight"},
        {"{\"loss\":[{\"name\":\"dpo\",\"gamma\":1}]}", "p.loss[0].gamma", "it takes beta"},
        {"{\"loss\":[\"dpo\",\"sft\"],\"gamma\":1}", "p.gamma", "none of the losses"},
        {"{\"loss\":[\"dpo\",\"kto\"]}", "p.loss", "cannot be summed"},
        {"{\"loss\":[\"dpo\",\"sft\"],\"loss_weights\":[1]}", "p.loss_weights", "1 numbers for 2 losses"},
        {"{\"loss\":[{\"name\":\"dpo\",\"weight\":1},\"sft\"],\"loss_weights\":[1,2]}", "p.loss_weights", "exclude"},
        {"{\"loss\":[\"dpo\",\"sft\"],\"loss_weights\":[0,0]}", "p.loss", "weight 0"},
        {"{\"loss\":[\"dpo\",\"sft\"],\"loss_weights\":[1,-1]}", "p.loss_weights", "loss_weights[1]"},
        {"{\"loss\":\"dpo\",\"loss_type\":\"dpo\"}", "p.loss", "mean the same"},
        {"{\"loss\":\"apo_zero\",\"f_divergence_type\":\"js\"}", "p.f_divergence_type", "apo_zero"},
        {"{\"loss\":\"dpo\",\"f_divergence_type\":\"forward\"}", "p.f_divergence_type", "forward_kl"},
        {"{\"loss\":\"dpo\",\"f_alpha_divergence_coef\":0.3}", "p.f_alpha_divergence_coef", "alpha_divergence"},
        {"{\"loss\":\"dpo\",\"ld_alpha\":1.5}", "p.ld_alpha", ""},
        {"{\"loss\":\"simpo\",\"ld_alpha\":0.5}", "p.ld_alpha", "simpo"},
        {"{\"loss\":\"kto\",\"ld_alpha\":0.5}", "p.ld_alpha", "kto"},
        {"{\"loss\":\"aot\",\"use_weighting\":true}", "p.use_weighting", "aot"},
        {"{\"loss\":\"dpo\",\"nll_weight\":1,\"use_weighting\":true}", "p.use_weighting", "nll_weight"},
        {"{\"loss\":\"dpo\",\"nll_scope\":\"full\"}", "p.nll_scope", "nll_weight"},
        {"{\"loss\":\"cpo\",\"nll_scope\":\"prompt\"}", "p.nll_scope", "completion"},
        {"{\"loss\":\"ipo\",\"length_normalize\":1}", "p.length_normalize", ""},
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
    assert_string_equal(text, "{\"loss\":\"sppo\",\"beta\":0.001,\"nll_weight\":0.25,\"nll_scope\":\"completion\"}");
    gd_free(text);
    cJSON_Delete(json);
}

/* What a request says comes back resolved, and parses to the same. */
static void sums_and_modifiers_come_back_as_they_were_meant(void **state)
{
    static const struct {
        const char *text, *shown;
    } table[] = {
        {"{\"loss_type\":[\"sigmoid\",\"bco_pair\",\"sft\"],\"loss_weights\":[0.8,0.2,1],\"beta\":0.2}",
         "{\"loss\":[{\"name\":\"dpo\",\"weight\":0.8,\"beta\":0.2,\"label_smoothing\":0,\"nll_weight\":0},"
         "{\"name\":\"bco_pair\",\"weight\":0.2,\"beta\":0.2,\"nll_weight\":0},{\"name\":\"sft\",\"weight\":1}],\"nll_scope\":\"completion\"}"},
        {"{\"loss\":[{\"name\":\"hinge\",\"beta\":0.5},\"ipo\"],\"beta\":0.3}",
         "{\"loss\":[{\"name\":\"hinge\",\"weight\":1,\"beta\":0.5,\"nll_weight\":0},"
         "{\"name\":\"ipo\",\"weight\":1,\"beta\":0.3,\"length_normalize\":true,\"nll_weight\":0}]}"},
        {"{\"loss\":\"sigmoid\",\"f_divergence_type\":\"alpha\",\"ld_alpha\":0.5,\"use_weighting\":true}",
         "{\"loss\":\"dpo\",\"beta\":0.1,\"label_smoothing\":0,\"nll_weight\":0,\"f_divergence_type\":\"alpha_divergence\","
         "\"f_alpha_divergence_coef\":0.5,\"ld_alpha\":0.5,\"use_weighting\":true}"},
        {"{\"loss\":\"orpo\"}", "{\"loss\":\"orpo\",\"lambda\":0.1,\"nll_weight\":1,\"nll_scope\":\"full\"}"},
    };
    for (size_t i = 0; i < GD_COUNT(table); i++) {
        struct gd_preference preference = make(table[i].text), again;
        cJSON *json = cJSON_CreateObject();
        gd_preference_add_json(&preference, json);
        char *text = gd_json_print(json);
        assert_string_equal(text, table[i].shown);
        again = make(text);
        assert_memory_equal(&again, &preference, sizeof again);
        gd_free(text);
        cJSON_Delete(json);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_and_slopes_have_the_reference_values),
        cmocka_unit_test(slopes_equal_central_differences),
        cmocka_unit_test(without_a_difference_to_the_reference_losses_have_their_neutral_values),
        cmocka_unit_test(identities_between_losses_hold),
        cmocka_unit_test(far_ends_stay_finite),
        cmocka_unit_test(a_batch_sums_its_pairs_and_leaves_the_other_tokens_alone),
        cmocka_unit_test(losses_over_labelled_answers_have_the_reference_values),
        cmocka_unit_test(aot_compares_pairs_of_the_same_rank),
        cmocka_unit_test(slopes_of_sorted_losses_are_those_of_the_step),
        cmocka_unit_test(sorting_one_pair_and_shifting_by_nothing_change_nothing),
        cmocka_unit_test(modifiers_that_change_nothing_change_nothing),
        cmocka_unit_test(running_means_merge_as_if_all_values_were_there_at_once),
        cmocka_unit_test(segment_loss_calls_the_function_and_passes_its_gradient_back),
        cmocka_unit_test(requests_name_the_wrong_field_and_the_nearest_loss),
        cmocka_unit_test(sums_and_modifiers_come_back_as_they_were_meant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
