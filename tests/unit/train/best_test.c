/* Which evaluation was the best, when to stop, and what a request may ask of it. */
#include "engine/base/alloc.h"
#include "engine/train/best.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static bool parse(struct gd_evaluation *evaluation, const char *text, bool has_validation, struct gd_error *err)
{
    cJSON *body = cJSON_Parse(text);
    assert_non_null(body);
    bool ok = gd_evaluation_parse(evaluation, body, has_validation, err);
    cJSON_Delete(body);
    return ok;
}

static bool consider(struct gd_best *best, const struct gd_evaluation *evaluation, int64_t step, double value)
{
    struct gd_metric metrics[] = {{"train_loss", 0.0}, {evaluation->metric_for_best_model, value}};
    return gd_best_consider(best, evaluation, step, metrics, 2);
}

static void the_lowest_loss_is_the_best(void **state)
{
    struct gd_evaluation evaluation;
    struct gd_error err = {0};
    struct gd_best best = {0};
    assert_true(parse(&evaluation, "{\"evaluation\": {\"early_stopping_patience\": 2}}", true, &err));
    assert_true(consider(&best, &evaluation, 10, 2.0));
    assert_true(consider(&best, &evaluation, 20, 1.5));
    assert_false(consider(&best, &evaluation, 30, 1.5));
    assert_false(gd_best_stops(&best, &evaluation));
    assert_false(consider(&best, &evaluation, 40, NAN));
    assert_true(gd_best_stops(&best, &evaluation));
    assert_int_equal(best.step, 20);
    assert_float_equal(best.value, 1.5, 0);
    gd_evaluation_release(&evaluation);
}

static void steps_without_the_metric_change_nothing(void **state)
{
    struct gd_evaluation evaluation;
    struct gd_error err = {0};
    struct gd_best best = {0};
    struct gd_metric other = {"train_loss", 0.1};
    assert_true(parse(&evaluation, "{\"evaluation\": {\"early_stopping_patience\": 1}}", true, &err));
    assert_false(gd_best_consider(&best, &evaluation, 1, &other, 1));
    assert_int_equal(best.since, 0);
    gd_evaluation_release(&evaluation);
}

static void scores_are_better_when_greater_and_thresholds_count(void **state)
{
    struct gd_evaluation evaluation;
    struct gd_error err = {0};
    struct gd_best best = {0};
    assert_true(parse(&evaluation, "{\"evaluation\": {\"metric_for_best_model\": \"eval/f1\", \"early_stopping_threshold\": 0.1,"
                                   "\"early_stopping_patience\": 5, \"evals\": [{\"name\": \"f1\"}]}}", false, &err));
    assert_true(consider(&best, &evaluation, 1, 0.5));
    assert_false(consider(&best, &evaluation, 2, 0.55));
    assert_true(consider(&best, &evaluation, 3, 0.7));
    gd_evaluation_release(&evaluation);
}

static void wrong_requests_name_their_field(void **state)
{
    static const struct {
        const char *text, *param;
    } cases[] = {
        {"{\"evaluation\": 3}", "evaluation"},
        {"{\"evaluation\": {\"patience\": 3}}", "evaluation.patience"},
        {"{\"evaluation\": {\"early_stopping_patience\": -1}}", "evaluation.early_stopping_patience"},
        {"{\"evaluation\": {\"early_stopping_patience\": 1}}", "validation_file"},
        {"{\"evaluation\": {\"metric_for_best_model\": \"bleu\"}}", "evaluation.metric_for_best_model"},
        {"{\"evaluation\": {\"metric_for_best_model\": \"eval/x\"}}", "evaluation.metric_for_best_model"},
        {"{\"evaluation\": {\"evals\": [{}]}}", "evaluation.evals[0].name"},
        {"{\"evaluation\": {\"evals\": [{\"name\": \"a b\"}]}}", "evaluation.evals[0]"},
        {"{\"evaluation\": {\"evals\": [{\"name\": \"a\"}, {\"name\": \"a\"}]}}", "evaluation.evals[1]"},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_evaluation evaluation;
        struct gd_error err = {0};
        assert_false(parse(&evaluation, cases[i].text, false, &err));
        assert_string_equal(err.param, cases[i].param);
        gd_evaluation_release(&evaluation);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_lowest_loss_is_the_best),
        cmocka_unit_test(steps_without_the_metric_change_nothing),
        cmocka_unit_test(scores_are_better_when_greater_and_thresholds_count),
        cmocka_unit_test(wrong_requests_name_their_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
