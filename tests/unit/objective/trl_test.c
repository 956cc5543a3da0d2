/* Values and gradients of losses over answers against the TRL package (make_trl.py), on log-probabilities of tokens. */
#include "engine/base/alloc.h"
#include "engine/objective/preference.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TOKENS_MAX 128
#define SEGMENTS_MAX 16

static cJSON *fixture;

static int set_up(void **state)
{
    struct gd_error err = {0};
    const char *folder = getenv("GD_FIXTURES");
    assert_non_null(folder);
    char *path = gd_format("%s/training/trl.json", folder);
    fixture = gd_json_parse_file(path, 1 << 20, &err);
    if (fixture == NULL)
        fail_msg("%s", err.message);
    gd_free(path);
    return 0;
}

static int tear_down(void **state)
{
    cJSON_Delete(fixture);
    return 0;
}

static double number(const cJSON *object, const char *key, double absent)
{
    const cJSON *value = gd_json_find(object, key);
    return value != NULL ? value->valuedouble : absent;
}

static int read_floats(const cJSON *list, float *out, int max)
{
    const cJSON *item;
    int count = 0;
    cJSON_ArrayForEach(item, list) {
        assert_true(count < max);
        out[count++] = (float)item->valuedouble;
    }
    return count;
}

/* A step of one micro-batch, as the trainer makes it: two prompt tokens and an answer in each segment. */
struct step {
    struct gd_preference preference;
    struct gd_preference_batch batch;
    int32_t cu[SEGMENTS_MAX + 1], labels[TOKENS_MAX], ids[TOKENS_MAX];
    float weights[TOKENS_MAX], nll[TOKENS_MAX], own[TOKENS_MAX], reference[TOKENS_MAX], collision[TOKENS_MAX], gradient[TOKENS_MAX];
    float sums[SEGMENTS_MAX];
    int tokens, segments;
};

static void read_tokens(struct step *step, const cJSON *data, double moved)
{
    const cJSON *length;
    int prompt = (int)number(fixture, "prompt", 0), at = 0;
    step->tokens = read_floats(gd_json_find(data, "own"), step->own, TOKENS_MAX);
    read_floats(gd_json_find(data, "reference"), step->reference, TOKENS_MAX);
    read_floats(gd_json_find(data, "collision"), step->collision, TOKENS_MAX);
    cJSON_ArrayForEach(length, gd_json_find(data, "lengths")) {
        assert_true(step->segments < SEGMENTS_MAX);
        for (int i = 0; i < length->valueint; i++, at++) {
            step->labels[at] = i >= prompt ? 1 : -100;
            step->weights[at] = i >= prompt;
            step->own[at] += (float)moved;
        }
        step->cu[++step->segments] = at;
    }
    assert_int_equal(at, step->tokens);
}

/* The NLL of prompts counts every token here: the fixture has none that stands before the first. */
static void whole_nll(struct step *step)
{
    int sides = gd_preference_sides(&step->preference);
    for (int s = 0; step->preference.full_nll && s < step->segments; s += sides)
        for (int t = step->cu[s]; t < step->cu[s + 1]; t++)
            step->nll[t] = 1;
}

static void set_scales(struct step *step)
{
    int sides = gd_preference_sides(&step->preference);
    double nll = 0, gold = 0;
    for (int s = 0; s < step->segments; s++)
        for (int t = step->cu[s]; t < step->cu[s + 1]; t++)
            *(s % sides == 2 ? &gold : &nll) += (double)step->nll[t];
    step->batch.step.scale = 1.0 / step->batch.rows;
    step->batch.step.nll_scale = nll > 0 ? 1 / nll : 0;
    step->batch.step.gold_scale = gold > 0 ? 1 / gold : 0;
}

static void make_step(struct step *step, const cJSON *test)
{
    struct gd_error err = {0};
    const cJSON *data = gd_json_find(fixture, gd_json_find(test, "data")->valuestring), *label;
    memset(step, 0, sizeof *step);
    if (!gd_preference_parse(&step->preference, gd_json_find(test, "request"), "p", &err))
        fail_msg("%s: %s", gd_json_find(test, "name")->valuestring, err.message);
    read_tokens(step, data, number(test, "moved", 0));
    step->batch = (struct gd_preference_batch){.preference = &step->preference, .rows = step->segments / (int)number(data, "sides", 0),
                                               .cu_seqlens = step->cu, .labels = step->labels, .weights = step->weights, .nll = step->nll};
    assert_int_equal(gd_preference_sides(&step->preference), (int)number(data, "sides", 0));
    gd_preference_batch_begin(&step->batch, step->ids, NULL);
    whole_nll(step);
    set_scales(step);
    if (gd_json_find(gd_json_find(test, "request"), "reference") == NULL) /* else it is "none" */
        gd_preference_segment_sums(&step->batch, step->reference, step->batch.reference);
    gd_preference_segment_sums(&step->batch, step->own, step->sums);
    if (gd_preference_has(&step->preference, GD_LOSS_SORTS))
        gd_preference_match(step->sums, step->batch.reference, step->batch.rows, step->batch.partner);
    int row = 0;
    cJSON_ArrayForEach(label, gd_json_find(data, "labels"))
        step->batch.desirable[row++] = cJSON_IsTrue(label);
}

/* KTO's estimate from what mismatched answers cost, and BCO's mean with all steps so far. */
static void look_at_step(struct step *step, const cJSON *test, double *mean, double *count)
{
    const cJSON *mismatched = gd_json_find(fixture, "mismatched");
    const char *name = gd_json_find(test, "name")->valuestring;
    float own[SEGMENTS_MAX], reference[SEGMENTS_MAX];
    double kl = 0, ratio = 0;
    int rows = read_floats(gd_json_find(mismatched, "own"), own, SEGMENTS_MAX);
    read_floats(gd_json_find(mismatched, "reference"), reference, SEGMENTS_MAX);
    for (int i = 0; i < rows; i++)
        kl += ((double)own[i] - (double)reference[i]) / rows;
    if (gd_preference_has(&step->preference, GD_LOSS_KL)) {
        step->batch.step.kl = kl > 0 ? kl : 0;
        if (fabs(step->batch.step.kl - number(test, "kl", -1)) > 1e-6)
            fail_msg("%s: kl %.8f, TRL has %.8f", name, step->batch.step.kl, number(test, "kl", -1));
    }
    if (!gd_preference_has(&step->preference, GD_LOSS_SHIFT))
        return;
    for (int i = 0; i < step->batch.rows; i++)
        ratio += ((double)step->sums[i] - (double)step->batch.reference[i]) / step->batch.rows;
    gd_preference_merge_mean(mean, count, ratio, step->batch.rows);
    step->batch.step.shift = *mean;
    double delta = step->preference.term[0].parameter[GD_PREFERENCE_BETA] * *mean;
    if (fabs(delta - number(test, "delta", -9)) > 1e-6)
        fail_msg("%s: delta %.8f, TRL has %.8f", name, delta, number(test, "delta", -9));
}

static void losses_and_their_gradients_equal_trls(void **state)
{
    const cJSON *test;
    int compared = 0;
    double mean = 0, count = 0;
    cJSON_ArrayForEach(test, gd_json_find(fixture, "cases")) {
        const char *name = gd_json_find(test, "name")->valuestring;
        float theirs[TOKENS_MAX];
        double expected = number(test, "loss", 0), far = 0, size = 0;
        struct step step;
        make_step(&step, test);
        look_at_step(&step, test, &mean, &count);
        double loss = gd_preference_batch_evaluate(&step.batch, step.own, step.collision, step.tokens, step.gradient);
        if (fabs(loss - expected) > 2e-6 * (1 + fabs(expected)))
            fail_msg("%s: loss %.8f, TRL has %.8f", name, loss, expected);
        assert_int_equal(read_floats(gd_json_find(test, "gradient"), theirs, TOKENS_MAX), step.tokens);
        for (int t = 0; t < step.tokens; t++) {
            far = fmax(far, fabs((double)step.gradient[t] - (double)theirs[t]));
            size = fmax(size, fabs((double)theirs[t]));
        }
        if (far > 1e-5 * size)
            fail_msg("%s: gradients differ by %.3g, of %.3g", name, far, size);
        compared++;
    }
    assert_int_equal(compared, 61);
}

/* Every loss is in the fixture. */
static void the_package_has_been_asked_about_every_loss(void **state)
{
    for (int l = 0; l < gd_preference_count; l++) {
        const cJSON *test;
        bool found = false;
        cJSON_ArrayForEach(test, gd_json_find(fixture, "cases")) {
            struct gd_preference preference;
            struct gd_error err = {0};
            assert_true(gd_preference_parse(&preference, gd_json_find(test, "request"), "p", &err));
            for (int i = 0; i < preference.term_count; i++)
                found |= preference.term[i].loss == &gd_preference_table[l];
        }
        if (!found)
            fail_msg("no case of %s", gd_preference_table[l].name);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_and_their_gradients_equal_trls),
        cmocka_unit_test(the_package_has_been_asked_about_every_loss),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
