/* Standard errors, intervals and draws against numpy, scipy and Python (fixtures/make_stats.py). */
#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "engine/eval/stats.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static cJSON *reference;

static int load(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/eval/stats.json", getenv("GD_FIXTURES"));
    reference = gd_json_parse_file(path, 1 << 20, &err);
    gd_free(path);
    return reference == NULL;
}

static int drop(void **state)
{
    cJSON_Delete(reference);
    return 0;
}

static double number(const cJSON *json, const char *key)
{
    const cJSON *member = gd_json_find(json, key);
    return cJSON_IsNumber(member) ? member->valuedouble : NAN;
}

static size_t numbers(const cJSON *array, double *out, size_t limit)
{
    const cJSON *entry;
    size_t n = 0;
    cJSON_ArrayForEach(entry, array)
    {
        assert_true(n < limit);
        out[n++] = entry->valuedouble;
    }
    return n;
}

static void near(const char *what, double got, double expected, double tolerance)
{
    if (isnan(got) != isnan(expected) || fabs(got - expected) > tolerance * (fabs(expected) + 1e-300))
        if (fabs(got - expected) > 1e-15)
            fail_msg("%s: %.17g, expected %.17g", what, got, expected);
}

static void check(const struct gd_stat *stat, const cJSON *expected, double tolerance)
{
    near("standard error", stat->standard_error, number(expected, "standard_error"), tolerance);
    near("low", stat->low, number(expected, "low"), tolerance);
    near("high", stat->high, number(expected, "high"), tolerance);
}

static void quantiles_of_t_are_those_of_scipy(void **state)
{
    const cJSON *row;
    cJSON_ArrayForEach(row, gd_json_find(reference, "t_quantiles"))
    {
        double v[3];
        assert_int_equal(numbers(row, v, 3), 3);
        near("t", gd_stats_t_quantile(v[0], v[1]), v[2], 1e-9);
    }
}

static void a_mean_has_the_t_interval_of_scipy(void **state)
{
    const cJSON *row;
    cJSON_ArrayForEach(row, gd_json_find(reference, "means"))
    {
        double v[256];
        size_t n = numbers(gd_json_find(row, "values"), v, 256);
        struct gd_stat stat = gd_stats_mean(v, n);
        assert_int_equal(stat.n, n);
        assert_string_equal(stat.interval, "t");
        near("mean", stat.value, number(row, "mean"), 1e-12);
        check(&stat, row, 1e-7);
    }
}

static void a_proportion_has_the_interval_of_wilson(void **state)
{
    const cJSON *row;
    cJSON_ArrayForEach(row, gd_json_find(reference, "proportions"))
    {
        double v[1000] = {0};
        size_t passed = (size_t)number(row, "passed"), n = (size_t)number(row, "n");
        for (size_t i = 0; i < passed; i++)
            v[i] = 1;
        struct gd_stat mean = gd_stats_mean(v, n), stat = gd_stats_proportion(passed, n);
        assert_string_equal(mean.interval, "wilson");
        near("value", stat.value, (double)passed / (double)n, 1e-15);
        check(&stat, row, 1e-9);
        check(&mean, row, 1e-9);
    }
}

static void a_paired_difference_has_the_interval_of_scipy(void **state)
{
    const cJSON *row;
    cJSON_ArrayForEach(row, gd_json_find(reference, "paired"))
    {
        double a[64], b[64];
        size_t n = numbers(gd_json_find(row, "a"), a, 64);
        assert_int_equal(numbers(gd_json_find(row, "b"), b, 64), n);
        struct gd_stat stat = gd_stats_paired(a, b, n);
        near("mean", stat.value, number(row, "mean"), 1e-9);
        check(&stat, row, 1e-9);
    }
}

static double perplexity(const void *context, const uint32_t *pick, size_t n)
{
    const double *values = context;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += values[pick[i]];
    return exp(-sum / (double)n);
}

static void a_bootstrap_draws_what_the_harness_draws(void **state)
{
    const cJSON *row;
    cJSON_ArrayForEach(row, gd_json_find(reference, "bootstraps"))
    {
        double v[64];
        size_t n = numbers(gd_json_find(row, "values"), v, 64);
        struct gd_stat stat = gd_stats_bootstrap(perplexity, v, n, (int)number(row, "resamples"));
        near("value", stat.value, number(row, "value"), 1e-12);
        check(&stat, row, 1e-9);
        assert_int_equal(stat.resamples, (int)number(row, "resamples"));
    }
}

static void draws_are_those_of_python(void **state)
{
    const cJSON *row, *entry;
    cJSON_ArrayForEach(row, gd_json_find(reference, "draws"))
    {
        struct gd_twister twister;
        gd_twister_seed(&twister, strtoull(gd_json_find(row, "seed")->valuestring, NULL, 10));
        cJSON_ArrayForEach(entry, gd_json_find(row, "bits"))
            assert_true(gd_twister_bits(&twister) == (uint32_t)entry->valuedouble);
        cJSON_ArrayForEach(entry, gd_json_find(row, "uniform"))
            assert_true(gd_twister_uniform(&twister) == entry->valuedouble);
        cJSON_ArrayForEach(entry, gd_json_find(row, "below"))
            assert_true((double)gd_twister_below(&twister, (uint64_t)cJSON_GetArrayItem(entry, 0)->valuedouble) ==
                        cJSON_GetArrayItem(entry, 1)->valuedouble);
        cJSON_ArrayForEach(entry, gd_json_find(row, "samples"))
        {
            uint32_t out[64];
            const cJSON *expected = cJSON_GetArrayItem(entry, 1);
            size_t k = (size_t)cJSON_GetArraySize(expected);
            gd_twister_sample(&twister, (size_t)cJSON_GetArrayItem(entry, 0)->valuedouble, k, out);
            for (size_t i = 0; i < k; i++)
                assert_int_equal(out[i], cJSON_GetArrayItem(expected, (int)i)->valueint);
        }
    }
}

static void what_the_values_do_not_determine_is_not_a_number(void **state)
{
    double values[] = {2.5, INFINITY, 1};
    struct gd_stat none = gd_stats_mean(values, 0), one = gd_stats_mean(values, 1), endless = gd_stats_mean(values, 3);
    assert_true(isnan(none.value) && isnan(none.standard_error) && none.n == 0);
    assert_true(one.value == 2.5 && isnan(one.standard_error) && isnan(one.low));
    assert_true(!isfinite(endless.value) && isnan(endless.standard_error));
    assert_true(isnan(gd_stats_proportion(0, 0).value));
    assert_true(isnan(gd_stats_bootstrap(perplexity, values, 0, 100).value));
    assert_true(isnan(gd_stats_bootstrap(perplexity, values, 1, 100).standard_error));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantiles_of_t_are_those_of_scipy),
        cmocka_unit_test(a_mean_has_the_t_interval_of_scipy),
        cmocka_unit_test(a_proportion_has_the_interval_of_wilson),
        cmocka_unit_test(a_paired_difference_has_the_interval_of_scipy),
        cmocka_unit_test(a_bootstrap_draws_what_the_harness_draws),
        cmocka_unit_test(draws_are_those_of_python),
        cmocka_unit_test(what_the_values_do_not_determine_is_not_a_number),
    };
    return cmocka_run_group_tests(tests, load, drop);
}
