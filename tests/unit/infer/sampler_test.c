#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/infer/sampler.h"
#include <math.h>
#include <string.h>

#define DRAWS 20000
#define VOCAB_MAX 64

static const struct gd_sampling plain = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 17, .logprobs = -1};

static int32_t draw(const float *logits, int vocab, const struct gd_sampling *sampling, uint32_t position)
{
    struct gd_sampler sampler = {0};
    gd_sampler_init(&sampler, vocab);
    int32_t id = gd_sample(&sampler, logits, sampling, NULL, NULL, 0, position);
    gd_sampler_release(&sampler);
    return id;
}

static void count_draws(const float *logits, int vocab, const struct gd_sampling *sampling, int counts[VOCAB_MAX])
{
    struct gd_sampler sampler = {0};
    gd_sampler_init(&sampler, vocab);
    memset(counts, 0, VOCAB_MAX * sizeof(counts[0]));
    for (uint32_t i = 0; i < DRAWS; i++) {
        int32_t id = gd_sample(&sampler, logits, sampling, NULL, NULL, 0, i);
        assert_in_range(id, 0, vocab - 1);
        counts[id]++;
    }
    gd_sampler_release(&sampler);
}

/* Pearson's statistic over the ids with expected draws; the seed is fixed, so this either holds or does not. */
static void check_distribution(const int counts[VOCAB_MAX], const double *p, int vocab)
{
    double chi2 = 0;
    int cells = 0;
    for (int i = 0; i < vocab; i++) {
        if (p[i] == 0) {
            assert_int_equal(counts[i], 0);
            continue;
        }
        chi2 += (counts[i] - DRAWS * p[i]) * (counts[i] - DRAWS * p[i]) / (DRAWS * p[i]);
        cells++;
    }
    double freedom = cells - 1;
    if (chi2 > freedom + 4 * sqrt(2 * freedom) + 1)
        fail_msg("chi-square is %g for %g degrees of freedom", chi2, freedom);
}

static void softmax(double *p, const float *logits, int vocab, double temperature)
{
    double sum = 0;
    for (int i = 0; i < vocab; i++)
        sum += p[i] = exp((double)logits[i] / temperature);
    for (int i = 0; i < vocab; i++)
        p[i] /= sum;
}

static void greedy_takes_the_largest_and_the_lowest_of_equals(void **state)
{
    struct gd_sampling greedy = plain;
    greedy.temperature = 0;
    assert_int_equal(draw((float[]){1, 5, 5, -2}, 4, &greedy, 0), 1);
    assert_int_equal(draw((float[]){-3}, 1, &greedy, 9), 0);
    assert_int_equal(draw((float[]){-INFINITY, -INFINITY, -7}, 3, &greedy, 0), 2);
}

static void draws_follow_the_softmax_at_any_temperature(void **state)
{
    const float logits[] = {0.5f, -1, 2, 0, 1.5f, -3, 0.25f, 1};
    const double temperatures[] = {0.5, 1, 2};
    for (int t = 0; t < 3; t++) {
        struct gd_sampling sampling = plain;
        double p[VOCAB_MAX];
        int counts[VOCAB_MAX];
        sampling.temperature = temperatures[t];
        softmax(p, logits, 8, temperatures[t]);
        count_draws(logits, 8, &sampling, counts);
        check_distribution(counts, p, 8);
    }
}

static void a_tiny_temperature_is_greedy_and_overflows_nothing(void **state)
{
    struct gd_sampling sampling = plain;
    sampling.temperature = 1e-30;
    assert_int_equal(draw((float[]){1e30f, 3e30f, -1e30f}, 3, &sampling, 0), 1);
    sampling.temperature = 1e-300;
    assert_int_equal(draw((float[]){1, 3, 2}, 3, &sampling, 0), 1);
}

static void top_k_keeps_k_and_gives_ties_to_lower_ids(void **state)
{
    const float logits[] = {1, 2, 2, 2, 0, 3};
    struct gd_sampling sampling = plain;
    int counts[VOCAB_MAX];
    sampling.top_k = 3; /* 3 and two of the three 2s: ids 5, 1, 2 */
    double p[] = {0, exp(2), exp(2), 0, 0, exp(3)}, sum = 2 * exp(2) + exp(3);
    for (int i = 0; i < 6; i++)
        p[i] /= sum;
    count_draws(logits, 6, &sampling, counts);
    check_distribution(counts, p, 6);
    sampling.top_k = 1;
    assert_int_equal(draw(logits, 6, &sampling, 3), 5);
    sampling.top_k = 6; /* all */
    softmax(p, logits, 6, 1);
    count_draws(logits, 6, &sampling, counts);
    check_distribution(counts, p, 6);
}

static void top_p_keeps_the_smallest_set_that_reaches_p_and_at_least_one(void **state)
{
    const float logits[] = {logf(0.1f), logf(0.4f), logf(0.3f), logf(0.2f)};
    struct gd_sampling sampling = plain;
    int counts[VOCAB_MAX];
    sampling.top_p = 0.65; /* 0.4 + 0.3 */
    count_draws(logits, 4, &sampling, counts);
    check_distribution(counts, (double[]){0, 4.0 / 7, 3.0 / 7, 0}, 4);
    sampling.top_p = 1e-9;
    count_draws(logits, 4, &sampling, counts);
    check_distribution(counts, (double[]){0, 1, 0, 0}, 4);
    sampling.top_p = 0.85; /* needs three */
    count_draws(logits, 4, &sampling, counts);
    check_distribution(counts, (double[]){0, 4.0 / 9, 3.0 / 9, 2.0 / 9}, 4);
}

static void top_p_counts_what_top_k_left(void **state)
{
    const float logits[] = {logf(0.4f), logf(0.3f), logf(0.2f), logf(0.1f)};
    struct gd_sampling sampling = plain;
    int counts[VOCAB_MAX];
    sampling.top_k = 2;
    sampling.top_p = 0.6; /* of 0.7: 0.4 / 0.7 is not enough */
    count_draws(logits, 4, &sampling, counts);
    check_distribution(counts, (double[]){4.0 / 7, 3.0 / 7, 0, 0}, 4);
    sampling.top_p = 0.5;
    count_draws(logits, 4, &sampling, counts);
    check_distribution(counts, (double[]){1, 0, 0, 0}, 4);
}

static void min_p_keeps_what_is_large_against_the_largest(void **state)
{
    const float logits[] = {logf(0.05f), logf(0.5f), logf(0.25f), logf(0.2f)};
    struct gd_sampling sampling = plain;
    int counts[VOCAB_MAX];
    sampling.min_p = 0.45;
    count_draws(logits, 4, &sampling, counts);
    check_distribution(counts, (double[]){0, 2.0 / 3, 1.0 / 3, 0}, 4);
    sampling.min_p = 1;
    count_draws(logits, 4, &sampling, counts);
    check_distribution(counts, (double[]){0, 1, 0, 0}, 4);
}

static void filters_agree_with_the_whole_on_a_large_vocabulary(void **state)
{
    enum { VOCAB = 5000 };
    static float logits[VOCAB];
    for (int i = 0; i < VOCAB; i++)
        logits[i] = 3 * sinf((float)(i * 37 % VOCAB));
    struct gd_sampling all = plain, filtered = plain;
    filtered.top_k = VOCAB - 1;
    filtered.top_p = 1;
    int same_half = 0;
    for (uint32_t i = 0; i < 50; i++) /* other orders of the same distribution: both draws are ids of the vocabulary */
        same_half += draw(logits, VOCAB, &all, i) < VOCAB && draw(logits, VOCAB, &filtered, i) < VOCAB;
    assert_int_equal(same_half, 50);
    filtered.top_k = 0;
    filtered.top_p = 0.5;
    double p[VOCAB], sum = 0;
    softmax(p, logits, VOCAB, 1);
    for (uint32_t i = 0; i < 200; i++) { /* what is drawn is among those that make up the upper half */
        int32_t id = draw(logits, VOCAB, &filtered, i);
        sum = 0;
        for (int v = 0; v < VOCAB; v++)
            sum += p[v] > p[id] ? p[v] : 0;
        assert_true(sum < 0.5 + 1e-6);
    }
}

static void among_a_few_the_draw_follows_their_softmax(void **state)
{
    const float logits[] = {0.5f, -1, 2, 0, 1.5f, -3, 0.25f, 9};
    static const int32_t few[] = {4, 0, 2};
    struct gd_sampler sampler = {0};
    gd_sampler_init(&sampler, 8);
    for (int round = 0; round < 3; round++) {
        struct gd_sampling sampling = plain;
        sampling.temperature = round == 2 ? 0 : 2;
        sampling.top_p = round == 1 ? 0.7 : 1; /* of .44, .35, .21 */
        int counts[VOCAB_MAX] = {0};
        double p[VOCAB_MAX], sum = 0;
        softmax(p, logits, 8, 2);
        for (int i = 0; i < 8; i++)
            sum += p[i] *= i == 2 || (round < 2 && i == 4) || (round == 0 && i == 0);
        for (int i = 0; i < 8; i++)
            p[i] /= sum;
        for (uint32_t i = 0; i < DRAWS; i++) {
            int32_t ids[3];
            memcpy(ids, few, sizeof ids);
            counts[gd_sample_among(&sampler, logits, &sampling, NULL, NULL, ids, 3, 0, i)]++;
        }
        check_distribution(counts, p, 8);
    }
    gd_sampler_release(&sampler);
}

static void bias_and_penalties_change_the_choice_by_their_formulas(void **state)
{
    struct gd_sampler sampler = {0};
    gd_sampler_init(&sampler, 4);
    const float logits[] = {1, 1.5f, -1, 0.9f};
    struct gd_sampling s = plain;
    s.temperature = 0;
    s.bias_ids = (int32_t[]){2};
    s.bias_values = (float[]){100};
    s.bias_count = 1;
    assert_int_equal(gd_sample(&sampler, logits, &s, NULL, NULL, 0, 0), 2);
    s.bias_values = (float[]){-100};
    s.bias_ids = (int32_t[]){1};
    assert_int_equal(gd_sample(&sampler, logits, &s, NULL, NULL, 0, 0), 0);
    s.bias_count = 0;

    const uint16_t counts[] = {0, 2, 0, 0};
    s.presence_penalty = 0.4; /* 1.5 - 0.4 is still the largest */
    assert_int_equal(gd_sample(&sampler, logits, &s, counts, NULL, 0, 0), 1);
    s.frequency_penalty = 0.1; /* 1.5 - 0.4 - 2 * 0.1 = 0.9 < 1 */
    assert_int_equal(gd_sample(&sampler, logits, &s, counts, NULL, 0, 0), 0);
    s.presence_penalty = s.frequency_penalty = 0;

    const uint8_t seen[] = {1, 1, 1, 0};
    s.repetition_penalty = 2; /* 0.5, 0.75, -2, 0.9 */
    assert_int_equal(gd_sample(&sampler, logits, &s, NULL, seen, 0, 0), 3);
    gd_sampler_release(&sampler);
}

static void the_same_key_gives_the_same_draw_and_another_choice_another(void **state)
{
    struct gd_sampler sampler = {0};
    gd_sampler_init(&sampler, VOCAB_MAX);
    float logits[VOCAB_MAX] = {0};
    int same = 0, same_seed = 0;
    struct gd_sampling other = plain;
    other.seed = 18;
    for (uint32_t i = 0; i < 200; i++) {
        int32_t a = gd_sample(&sampler, logits, &plain, NULL, NULL, 0, i);
        assert_int_equal(a, gd_sample(&sampler, logits, &plain, NULL, NULL, 0, i));
        same += a == gd_sample(&sampler, logits, &plain, NULL, NULL, 1, i);
        same_seed += a == gd_sample(&sampler, logits, &other, NULL, NULL, 0, i);
    }
    assert_in_range(same, 0, 20); /* 200 / 64 are expected */
    assert_in_range(same_seed, 0, 20);
    gd_sampler_release(&sampler);
}

static void logprobs_are_the_log_softmax_in_falling_order(void **state)
{
    struct gd_sampler sampler = {0};
    const float logits[] = {1, 3, 2, 3, -4};
    double p[5], logprob = 0;
    struct gd_token_logprob top[4];
    gd_sampler_init(&sampler, 5);
    softmax(p, logits, 5, 1);
    gd_logprobs(&sampler, logits, 4, &logprob, top, 4);
    assert_true(fabs(logprob - log(p[4])) < 1e-6);
    const int32_t order[] = {1, 3, 2, 0};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(top[i].id, order[i]);
        assert_true(fabs(top[i].logprob - log(p[order[i]])) < 1e-6);
    }
    gd_logprobs(&sampler, logits, 2, &logprob, NULL, 0);
    assert_true(fabs(logprob - log(p[2])) < 1e-6);
    gd_sampler_release(&sampler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_largest_and_the_lowest_of_equals),
        cmocka_unit_test(draws_follow_the_softmax_at_any_temperature),
        cmocka_unit_test(a_tiny_temperature_is_greedy_and_overflows_nothing),
        cmocka_unit_test(top_k_keeps_k_and_gives_ties_to_lower_ids),
        cmocka_unit_test(top_p_keeps_the_smallest_set_that_reaches_p_and_at_least_one),
        cmocka_unit_test(top_p_counts_what_top_k_left),
        cmocka_unit_test(min_p_keeps_what_is_large_against_the_largest),
        cmocka_unit_test(filters_agree_with_the_whole_on_a_large_vocabulary),
        cmocka_unit_test(among_a_few_the_draw_follows_their_softmax),
        cmocka_unit_test(bias_and_penalties_change_the_choice_by_their_formulas),
        cmocka_unit_test(the_same_key_gives_the_same_draw_and_another_choice_another),
        cmocka_unit_test(logprobs_are_the_log_softmax_in_falling_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
