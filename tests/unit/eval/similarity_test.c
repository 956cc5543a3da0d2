/* Similarity metrics against what the reference packages said (fixtures/make_similarity.py). */
#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "engine/eval/similarity.h"
#include "engine/eval/stem.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static cJSON *fixture(const char *name)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/eval/%s.json", getenv("GD_FIXTURES"), name);
    cJSON *json = gd_json_parse_file(path, 1 << 20, &err);
    if (json == NULL)
        fail_msg("%s", err.message);
    gd_free(path);
    return json;
}

static void every_metric_agrees_with_its_package(void **state)
{
    cJSON *json = fixture("similarity");
    const cJSON *pair, *pairs = gd_json_find(json, "pairs");
    int wrong = 0, refused = 0;
    assert_true(cJSON_GetArraySize(pairs) >= 300);
    for (int metric = 0; metric < GD_SIMILARITY_COUNT; metric++)
        assert_string_equal(gd_similarity_names[metric],
                            cJSON_GetArrayItem(gd_json_find(json, "metrics"), metric)->valuestring);
    cJSON_ArrayForEach(pair, pairs) for (int metric = 0; metric < GD_SIMILARITY_COUNT; metric++)
    {
        const char *input = gd_json_find(pair, "input")->valuestring,
                   *reference = gd_json_find(pair, "reference")->valuestring;
        double expected = cJSON_GetArrayItem(gd_json_find(pair, "scores"), metric)->valuedouble, score = -1;
        struct gd_error err = {0};
        if (!gd_similarity((enum gd_similarity_metric)metric, input, reference, &score, &err)) {
            assert_true(metric >= GD_SIMILARITY_ROUGE_1 &&
                        expected == 0); /* rouge_score says 0 without a word of warning */
            refused++;
        } else if (!(fabs(score - expected) <= 1e-10) || score < 0 || score > 1) {
            print_message("%s of \"%s\" and \"%s\": %.12g, expected %.12g\n", gd_similarity_names[metric], input,
                          reference, score, expected);
            wrong++;
        }
    }
    assert_int_equal(wrong, 0);
    assert_in_range(refused, 100, 600);
    cJSON_Delete(json);
}

static void stems_are_those_of_nltk(void **state)
{
    cJSON *json = fixture("stems");
    const cJSON *pair;
    int wrong = 0;
    cJSON_ArrayForEach(pair, gd_json_find(json, "words"))
    {
        const char *word = pair->child->valuestring, *expected = pair->child->next->valuestring;
        struct gd_buf out;
        gd_buf_init(&out, 0);
        gd_stem(word, strlen(word), &out);
        if (strcmp(out.data != NULL ? out.data : "", expected) != 0) {
            print_message("%s: %s, expected %s\n", word, out.data, expected);
            wrong++;
        }
        gd_buf_release(&out);
    }
    assert_int_equal(wrong, 0);
    cJSON_Delete(json);
}

static void rouge_refuses_a_reference_that_it_cannot_see(void **state)
{
    struct gd_error err = {0};
    double score;
    assert_false(gd_similarity(GD_SIMILARITY_ROUGE_1, "лиса", "лиса", &score, &err));
    assert_int_equal(err.code, GD_UNSUPPORTED);
    assert_non_null(strstr(err.message, "rouge_1"));
    gd_error_clear(&err);
    assert_true(gd_similarity(GD_SIMILARITY_ROUGE_1, "лиса", "fox", &score, &err) && score == 0);
    assert_true(gd_similarity(GD_SIMILARITY_ROUGE_1, "fox", "...", &score, &err) && score == 0);
}

static void long_texts_take_moderate_time_and_longer_ones_are_refused(void **state)
{
    struct gd_error err = {0};
    size_t length = GD_SIMILARITY_BYTES_MAX;
    char *a = gd_alloc(length + 2), *b = gd_alloc(length + 2);
    uint32_t random = 1;
    for (size_t i = 0; i < length; i++) {
        random = random * 1664525u + 1013904223u;
        a[i] = "ab c"[random >> 30];
        b[i] = 'y';
    }
    for (int metric = 0; metric < GD_SIMILARITY_COUNT; metric++) {
        clock_t start = clock();
        double score = -1;
        assert_true(gd_similarity((enum gd_similarity_metric)metric, a, a, &score, &err));
        assert_true(score > 0.9 && score <= 1);
        assert_true(gd_similarity((enum gd_similarity_metric)metric, a, b, &score, &err) && score == 0);
        double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        if (seconds > 20) /* a second at most, but for sanitizers */
            fail_msg("%s takes %.3f s for two comparisons of %zu bytes", gd_similarity_names[metric], seconds, length);
    }
    double score;
    a[length] = 'a';
    assert_false(gd_similarity(GD_SIMILARITY_BLEU, "b", a, &score, &err));
    assert_int_equal(err.code, GD_TOO_LARGE);
    gd_free(a);
    gd_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_metric_agrees_with_its_package),
        cmocka_unit_test(stems_are_those_of_nltk),
        cmocka_unit_test(rouge_refuses_a_reference_that_it_cannot_see),
        cmocka_unit_test(long_texts_take_moderate_time_and_longer_ones_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
