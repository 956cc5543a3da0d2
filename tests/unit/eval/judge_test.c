/* Graders that have a model judge: what they ask, and how they read what it says. */
#include "engine/eval/grader.h"
#include "tests/unit/eval/eval_testing.h"

#define INPUT "\"input\":[{\"role\":\"user\",\"content\":\"rate {{sample.output_text}} by {{item.a}}\"}]"
#define SCORE(more) "{\"type\":\"score_model\",\"name\":\"s\",\"model\":\"m\"," INPUT more "}"
#define LABEL(more) "{\"type\":\"label_model\",\"name\":\"l\",\"model\":\"m\"," INPUT more "}"
#define LABELS ",\"labels\":[\"good\",\"bad\",\"ugly\"],\"passing_labels\":[\"good\"]"

static struct gd_grader *grader_of(const char *text)
{
    struct gd_error err = {0};
    cJSON *value = json_of(text);
    struct gd_grader *grader = gd_grader_parse(value, "grader", &err);
    if (grader == NULL)
        fail_msg("%s: %s", text, err.message);
    cJSON_Delete(value);
    return grader;
}

static void a_judge_is_asked_what_the_template_says(void **state)
{
    struct gd_grader *grader = grader_of(SCORE(",\"sampling_params\":{\"seed\":7,\"max_completions_tokens\":9}"));
    cJSON *item = json_of("{\"a\":5}"), *sample = gd_grader_sample("hello");
    struct gd_ask ask;
    assert_int_equal(gd_grader_ask_count(grader), 1);
    assert_string_equal(gd_grader_ask_model(grader, 0), "m");
    gd_grader_fill_asks(grader, item, sample, &ask);
    char *messages = gd_json_print(ask.messages), *choices = gd_json_print(ask.choices);
    assert_string_equal(messages, "[{\"role\":\"user\",\"content\":\"rate hello by 5\"}]");
    assert_string_equal(choices, "[\"0\",\"0.1\",\"0.2\",\"0.3\",\"0.4\",\"0.5\",\"0.6\",\"0.7\",\"0.8\",\"0.9\",\"1\"]");
    assert_false(ask.answered);
    assert_true(ask.temperature == 0 && ask.seed == 7 && ask.max_tokens == 9);
    gd_free(messages);
    gd_free(choices);
    gd_ask_release(&ask);
    gd_grader_destroy(grader);
    cJSON_Delete(item);
    cJSON_Delete(sample);
}

/* What the judge says becomes what reward; an error's part otherwise. */
static void check_answer(const char *text, const char *said, double reward, bool passed, const char *error)
{
    struct gd_grader *grader = grader_of(text);
    cJSON *item = json_of("{\"a\":5}"), *sample = gd_grader_sample("hello");
    struct gd_ask ask;
    struct gd_grade grade;
    gd_grader_fill_asks(grader, item, sample, &ask);
    ask.answered = true;
    ask.text = gd_strdup(said);
    gd_grader_run_asked(grader, item, sample, &ask, &grade);
    if (error == NULL ? grade.error.code != GD_OK || grade.reward != reward || grade.passed != passed
                      : !grade.flags[GD_GRADE_MODEL_PARSE] || strstr(grade.error.message, error) == NULL || grade.passed)
        fail_msg("%s said \"%s\": %g %d %s", text, said, grade.reward, grade.passed, grade.error.message);
    gd_grade_release(&grade);
    gd_ask_release(&ask);
    gd_grader_destroy(grader);
    cJSON_Delete(item);
    cJSON_Delete(sample);
}

static void answers_are_read_strictly(void **state)
{
    check_answer(SCORE(""), "1", 1, true, NULL);
    check_answer(SCORE(""), " 0.5\n", 0.5, false, NULL);
    check_answer(SCORE(",\"pass_threshold\":0.5"), "{\"steps\":[],\"result\":0.5}", 0.5, true, NULL);
    check_answer(SCORE(",\"range\":[1,10]"), "10", 10, true, NULL);
    check_answer(SCORE(",\"range\":[1,10]"), "0", 0, false, "outside the range 1 to 10");
    check_answer(SCORE(""), "0.5 of 1", 0, false, "\"0.5 of 1\", which is neither");
    check_answer(SCORE(""), "", 0, false, "neither");
    check_answer(SCORE(""), "{\"result\":\"0.5\"}", 0, false, "neither");
    check_answer(SCORE(""), "NaN", 0, false, "neither");
    check_answer(SCORE(""), "1e999", 0, false, "neither");
    check_answer(LABEL(LABELS), "good", 1, true, NULL);
    check_answer(LABEL(LABELS), "bad ", 0, false, NULL);
    check_answer(LABEL(LABELS), "{\"result\":\"good\"}", 1, true, NULL);
    check_answer(LABEL(LABELS), "Good", 0, false, "none of the labels");
    check_answer(LABEL(LABELS), "good, I think", 0, false, "none of the labels");
}

static void what_a_judge_could_not_be_asked_or_did_not_answer_is_told_apart(void **state)
{
    struct gd_grader *grader = grader_of(LABEL(LABELS));
    cJSON *item = json_of("{\"b\":5}"), *sample = gd_grader_sample("hello");
    struct gd_ask ask;
    struct gd_grade grade;
    gd_grader_fill_asks(grader, item, sample, &ask);
    assert_true(ask.answered);
    gd_grader_run_asked(grader, item, sample, &ask, &grade);
    assert_true(grade.flags[GD_GRADE_INVALID_VARIABLE]);
    assert_non_null(strstr(grade.error.message, "{{item.a}}"));
    gd_grade_release(&grade);
    gd_ask_release(&ask);
    cJSON_AddNumberToObject(item, "a", 1);
    gd_grader_fill_asks(grader, item, sample, &ask);
    ask.answered = true;
    gd_fail(&ask.error, GD_CONTEXT, "too long");
    gd_grader_run_asked(grader, item, sample, &ask, &grade);
    assert_true(grade.flags[GD_GRADE_MODEL_SERVER]);
    assert_string_equal(grade.error.message, "too long");
    gd_grade_release(&grade);
    gd_ask_release(&ask);
    gd_grader_run(grader, item, sample, &grade);
    assert_true(grade.flags[GD_GRADE_MODEL_SERVER]);
    gd_grade_release(&grade);
    gd_grader_destroy(grader);
    cJSON_Delete(item);
    cJSON_Delete(sample);
}

static void a_multi_asks_for_all_its_members(void **state)
{
    struct gd_grader *grader = grader_of(
        "{\"type\":\"multi\",\"name\":\"all\",\"calculate_output\":\"0.5 * s + 0.5 * l\",\"graders\":{\"e\":{\"type\":"
        "\"string_check\",\"operation\":\"eq\",\"input\":\"a\",\"reference\":\"a\"},\"s\":" SCORE("") ",\"l\":" LABEL(LABELS) "}}");
    cJSON *item = json_of("{\"a\":5}"), *sample = gd_grader_sample("hello");
    struct gd_ask asks[2];
    struct gd_grade grade;
    assert_int_equal(gd_grader_ask_count(grader), 2);
    gd_grader_fill_asks(grader, item, sample, asks);
    asks[0].answered = asks[1].answered = true;
    asks[0].text = gd_strdup("0.5");
    asks[1].text = gd_strdup("good");
    assert_int_equal(cJSON_GetArraySize(asks[1].choices), 3);
    gd_grader_run_asked(grader, item, sample, asks, &grade);
    assert_true(grade.reward == 0.75);
    assert_int_equal(grade.part_count, 3);
    assert_true(grade.parts[0].reward == 1 && grade.parts[1].reward == 0.5 && grade.parts[2].reward == 1);
    gd_grade_release(&grade);
    for (int i = 0; i < 2; i++)
        gd_ask_release(&asks[i]);
    gd_grader_destroy(grader);
    cJSON_Delete(item);
    cJSON_Delete(sample);
}

static void mistakes_are_named(void **state)
{
    static const struct {
        const char *grader;
        enum gd_code code;
        const char *param, *part;
    } cases[] = {
        {"{\"type\":\"score_model\",\"name\":\"s\",\"model\":\"m\"}", GD_MISSING, "grader.input", "messages"},
        {"{\"type\":\"score_model\",\"name\":\"s\",\"model\":\"m\",\"input\":[]}", GD_INVALID, "grader.input", "1 to"},
        {"{\"type\":\"score_model\",\"name\":\"s\",\"model\":\"m\",\"input\":[{\"role\":\"usr\",\"content\":\"\"}]}",
         GD_INVALID, "grader.input[0].role", "did you mean 'user'"},
        {"{\"type\":\"score_model\",\"name\":\"s\",\"model\":\"m\",\"input\":[{\"role\":\"user\"}]}", GD_MISSING,
         "grader.input[0].content", "missing"},
        {"{\"type\":\"score_model\",\"name\":\"s\",\"model\":\"m\",\"input\":[{\"role\":\"user\",\"content\":"
         "[{\"type\":\"input_image\",\"image_url\":\"x\"}]}]}", GD_UNSUPPORTED, "grader.input[0].content[0]", "input_image"},
        {"{\"type\":\"score_model\",\"name\":\"s\",\"model\":\"m\",\"input\":[{\"role\":\"user\",\"content\":\"{{item\"}]}",
         GD_INVALID, "grader.input[0].content", "not closed"},
        {SCORE(",\"range\":[1,0]"), GD_INVALID, "grader.range", "low < high"},
        {SCORE(",\"range\":[1]"), GD_INVALID, "grader.range", "two numbers"},
        {SCORE(",\"pass_threshold\":2"), GD_INVALID, "grader.pass_threshold", "2"},
        {SCORE(",\"output\":\"fre\""), GD_INVALID, "grader.output", "did you mean 'free'"},
        {SCORE(",\"sampling_params\":{\"temperature\":3}"), GD_INVALID, "grader.sampling_params.temperature", "3"},
        {SCORE(",\"sampling_params\":{\"tools\":[]}"), GD_UNKNOWN_FIELD, "grader.sampling_params.tools", ""},
        {SCORE(",\"sampling_params\":{\"reasoning_effort\":\"low\"}"), GD_UNSUPPORTED,
         "grader.sampling_params.reasoning_effort", "leave it out"},
        {SCORE(",\"sampling_params\":{\"max_completion_tokens\":1,\"max_completions_tokens\":2}"), GD_INVALID,
         "grader.sampling_params.max_completions_tokens", "give one"},
        {LABEL(""), GD_MISSING, "grader.labels", ""},
        {LABEL(",\"labels\":[]"), GD_INVALID, "grader.labels", "1 to 100"},
        {LABEL(",\"labels\":[\"a\",\"a\"]"), GD_INVALID, "grader.labels", "twice"},
        {LABEL(",\"labels\":[\"a\",3]"), GD_INVALID, "grader.labels", "strings"},
        {LABEL(",\"labels\":[\"good\"],\"passing_labels\":[]"), GD_INVALID, "grader.passing_labels", "empty"},
        {LABEL(",\"labels\":[\"good\"],\"passing_labels\":[\"god\"]"), GD_INVALID, "grader.passing_labels",
         "did you mean 'good'"},
        {LABEL(LABELS ",\"pass_threshold\":1"), GD_UNKNOWN_FIELD, "grader.pass_threshold", ""},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_error err = {0};
        cJSON *value = json_of(cases[i].grader);
        struct gd_grader *grader = gd_grader_parse(value, "grader", &err);
        if (grader != NULL || err.code != cases[i].code || strcmp(err.param, cases[i].param) != 0 ||
            strstr(err.message, cases[i].part) == NULL)
            fail_msg("%s: %s (%s, %s)", cases[i].grader, err.message, err.param, gd_code_wire(err.code));
        cJSON_Delete(value);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_judge_is_asked_what_the_template_says),
        cmocka_unit_test(answers_are_read_strictly),
        cmocka_unit_test(what_a_judge_could_not_be_asked_or_did_not_answer_is_told_apart),
        cmocka_unit_test(a_multi_asks_for_all_its_members),
        cmocka_unit_test(mistakes_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
