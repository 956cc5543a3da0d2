/* Graders: what is accepted, how mistakes are named, what a sample earns. */
#include "engine/eval/grader.h"
#include "tests/unit/eval/eval_testing.h"
#include <math.h>

#define CHECK(operation, input, reference)                                                                             \
    "{\"type\":\"string_check\",\"name\":\"check\",\"operation\":\"" operation "\",\"input\":\"" input                 \
    "\",\"reference\":\"" reference "\"}"
#define SIMILAR(name, more)                                                                                            \
    "{\"type\":\"text_similarity\",\"name\":\"" name                                                                   \
    "\",\"input\":\"{{sample.output_text}}\",\"reference\":\"{{item.answer}}\"," more "}"
#define MULTI(graders, formula)                                                                                        \
    "{\"type\":\"multi\",\"name\":\"all\",\"graders\":" graders ",\"calculate_output\":\"" formula "\"}"

static struct gd_grade run(const char *grader_text, const char *item_text, cJSON *sample_taken)
{
    struct gd_error err = {0};
    cJSON *json = json_of(grader_text), *item = item_text != NULL ? json_of(item_text) : NULL;
    struct gd_grader *grader = gd_grader_parse(json, "grader", &err);
    cJSON_Delete(json); /* the grader keeps nothing of it */
    if (grader == NULL)
        fail_msg("%s: %s", grader_text, err.message);
    struct gd_grade grade;
    gd_grader_run(grader, item, sample_taken, &grade);
    gd_grader_destroy(grader);
    cJSON_Delete(item);
    cJSON_Delete(sample_taken);
    return grade;
}

static double reward(const char *grader_text, const char *item, const char *sample)
{
    struct gd_grade grade = run(grader_text, item, gd_grader_sample(sample));
    double value = grade.reward;
    if (grade.error.code != GD_OK)
        fail_msg("%s: %s", grader_text, grade.error.message);
    gd_grade_release(&grade);
    return value;
}

static void string_checks_compare(void **state)
{
    static const struct {
        const char *grader;
        double reward;
    } cases[] = {
        {CHECK("eq", "Paris", "Paris"), 1},
        {CHECK("eq", "Paris", "paris"), 0},
        {CHECK("ne", "a", "b"), 1},
        {CHECK("ne", "a", "a"), 0},
        {CHECK("like", "in Paris!", "Paris"), 1},
        {CHECK("like", "in paris!", "Paris"), 0},
        {CHECK("like", "x", ""), 1},
        {CHECK("ilike", "in PARIS!", "paris"), 1},
        {CHECK("ilike", "Die STRASSE", "straße"), 1},
        {CHECK("ilike", "ΟΔΟΣ", "οδος"), 1},
        {CHECK("ilike", "ПРИВЕТ мир", "привет"), 1},
        {CHECK("ilike", "x", "y"), 0},
        {CHECK("eq", "", ""), 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (reward(cases[i].grader, NULL, "") != cases[i].reward)
            fail_msg("%s", cases[i].grader);
}

static void references_are_filled_in(void **state)
{
    static const char item[] =
        "{\"answer\":\"Paris\",\"n\":1.5,\"list\":[\"x\",{\"y\":[1,2]}],\"a\":{\"b\":true,\"c d\":null},\"é\":\"ü\"}";
    static const struct {
        const char *input, *becomes;
    } cases[] = {
        {"{{item.answer}}", "Paris"},
        {"<{{ item.answer }}>", "<Paris>"},
        {"{{item.answer}}{{item.answer}}", "ParisParis"},
        {"{{item.n}}", "1.5"},
        {"{{item.list[0]}}", "x"},
        {"{{item.list[1].y[1]}}", "2"},
        {"{{item.list[1]}}", "{\\\"y\\\":[1,2]}"},
        {"{{item.a.b}}", "true"},
        {"{{item.a[\\\"c d\\\"]}}", "null"},
        {"{{item['answer']}}", "Paris"},
        {"{{item.é}}", "ü"},
        {"}} {", "}} {"},
        {"{{sample.output_text}}", "{\\\"city\\\": \\\"Paris\\\", \\\"n\\\": [3]}"},
        {"{{sample.output_json.city}}", "Paris"},
        {"{{sample.output_json.n[0]}}", "3"},
        {"{{sample.output_json}}", "{\\\"city\\\":\\\"Paris\\\",\\\"n\\\":[3]}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *grader = gd_format(
            "{\"type\":\"string_check\",\"name\":\"c\",\"operation\":\"eq\",\"input\":\"%s\",\"reference\":\"%s\"}",
            cases[i].input, cases[i].becomes);
        if (reward(grader, item, "{\"city\": \"Paris\", \"n\": [3]}") != 1)
            fail_msg("%s", grader);
        gd_free(grader);
    }
    struct gd_grade grade =
        run(CHECK("eq", "{{sample.output_tools[0].function.name}}", "f"), NULL,
            json_of("{\"output_text\":\"\",\"output_tools\":[{\"function\":{\"name\":\"f\"}}]}"));
    assert_true(grade.reward == 1 && grade.passed && grade.part_count == 0);
    gd_grade_release(&grade);
}

static void what_is_missing_is_named_and_flagged(void **state)
{
    static const struct {
        const char *input;
        enum gd_grade_flag flag;
        const char *part;
    } cases[] = {
        {"{{item.anser}}", GD_GRADE_INVALID_VARIABLE,
         "{{item.anser}}: the item has no 'anser'; did you mean 'answer'?"},
        {"{{item.answer.x}}", GD_GRADE_INVALID_VARIABLE, "'x' is asked of what is not an object"},
        {"{{item.list[7]}}", GD_GRADE_INVALID_VARIABLE, "no element 7, the list has 1"},
        {"{{item.answer[0]}}", GD_GRADE_INVALID_VARIABLE, "element 0 is asked of what is not a list"},
        {"{{sample.output_json.x}}", GD_GRADE_SAMPLE_PARSE, "the sample is not JSON"},
        {"{{sample.output_tools}}", GD_GRADE_INVALID_VARIABLE, "the sample has no 'output_tools'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *grader = gd_format(CHECK("eq", "%s", "x"), cases[i].input);
        struct gd_grade grade = run(grader, "{\"answer\":\"a\",\"list\":[1]}", gd_grader_sample("{oops"));
        if (grade.reward != 0 || grade.passed || strstr(grade.error.message, cases[i].part) == NULL)
            fail_msg("%s: %s", grader, grade.error.message);
        for (int flag = 0; flag < GD_GRADE_FLAG_COUNT; flag++)
            assert_int_equal(grade.flags[flag], flag == (int)cases[i].flag);
        gd_grade_release(&grade);
        gd_free(grader);
    }
    struct gd_grade grade = run(CHECK("eq", "{{item.x}}", "x"), NULL, gd_grader_sample(""));
    assert_true(grade.flags[GD_GRADE_INVALID_VARIABLE] && strstr(grade.error.message, "there is no item") != NULL);
    gd_grade_release(&grade);
}

static void similarity_passes_from_its_threshold_on(void **state)
{
    struct gd_grade grade = run(SIMILAR("s", "\"evaluation_metric\":\"fuzzy_match\",\"pass_threshold\":0.75"),
                                "{\"answer\":\"abcd\"}", gd_grader_sample("abcx"));
    assert_true(fabs(grade.reward - 0.75) < 1e-12 && grade.passed);
    gd_grade_release(&grade);
    grade =
        run(SIMILAR("s", "\"evaluation_metric\":\"fuzzy_match\""), "{\"answer\":\"abcd\"}", gd_grader_sample("abcx"));
    assert_false(grade.passed);
    gd_grade_release(&grade);
    grade = run(SIMILAR("s", "\"evaluation_metric\":\"rouge_l\""), "{\"answer\":\"да\"}", gd_grader_sample("да"));
    assert_true(grade.flags[GD_GRADE_OTHER] && grade.reward == 0);
    gd_grade_release(&grade);
}

static void multi_takes_one_a_list_or_a_map(void **state)
{
    static const char item[] = "{\"answer\":\"abcd\"}";
    assert_true(reward(MULTI(CHECK("eq", "a", "a"), "check / 2"), item, "abcd") == 0.5);
    assert_true(reward(MULTI("[" CHECK("eq", "a", "a") "," SIMILAR("near", "\"evaluation_metric\":\"fuzzy_match\"") "]",
                             "0.5*check+0.5*near"),
                       item, "abcx") == 0.875);
    assert_true(
        reward(MULTI("{\"name\":" SIMILAR("n", "\"evaluation_metric\":\"bleu\"") ",\"type\":" CHECK("eq", "a", "a") "}",
                     "(name + type) / 2"),
               item, "abcd") == 1);
    assert_true(
        reward(MULTI("{\"k\":{\"type\":\"string_check\",\"operation\":\"eq\",\"input\":\"\",\"reference\":\"\"}}", "k"),
               item, "") == 1);
}

static void a_member_that_fails_fails_the_whole_and_the_rest_is_shown(void **state)
{
    struct gd_grade grade =
        run(MULTI("{\"good\":" CHECK("eq", "a", "a") ",\"bad\":" CHECK("eq", "{{item.x}}", "a") "}", "good"), "{}",
            gd_grader_sample(""));
    assert_true(grade.reward == 0 && grade.flags[GD_GRADE_INVALID_VARIABLE] && !grade.flags[GD_GRADE_FORMULA]);
    assert_string_equal(grade.error.message, "bad: {{item.x}}: the item has no 'x'");
    assert_int_equal(grade.part_count, 2);
    assert_true(grade.parts[0].reward == 1 && !grade.parts[0].failed && grade.parts[1].failed);
    gd_grade_release(&grade);
    grade = run(MULTI(CHECK("eq", "a", "b"), "1 / check"), NULL, gd_grader_sample(""));
    assert_true(grade.reward == 0 && grade.flags[GD_GRADE_FORMULA] && grade.part_count == 1);
    gd_grade_release(&grade);
}

static void mistakes_are_named(void **state)
{
    static const struct {
        const char *grader;
        enum gd_code code;
        const char *param, *part;
    } cases[] = {
        {"3", GD_INVALID, "grader", "grader object"},
        {"null", GD_MISSING, "grader", ""},
        {"{}", GD_MISSING, "grader.type", ""},
        {"{\"type\":\"string_chek\"}", GD_INVALID, "grader.type", "did you mean 'string_check'"},
        {"{\"type\":\"python\",\"name\":\"p\",\"source\":\"x\"}", GD_UNSUPPORTED, "grader.type",
         "turned off here (graders.python = off"},
        {"{\"type\":\"score_model\"}", GD_MISSING, "grader.name", "name"},
        {"{\"type\":\"label_model\",\"name\":\"l\"}", GD_MISSING, "grader.model", "model"},
        {"{\"type\":\"string_check\",\"refrence\":\"\"}", GD_UNKNOWN_FIELD, "grader.refrence", "reference"},
        {"{\"type\":\"string_check\"}", GD_MISSING, "grader.name", ""},
        {"{\"type\":\"string_check\",\"name\":\"\"}", GD_INVALID, "grader.name", ""},
        {"{\"type\":\"string_check\",\"name\":\"a\"}", GD_MISSING, "grader.input", ""},
        {"{\"type\":\"string_check\",\"name\":\"a\",\"input\":\"\"}", GD_MISSING, "grader.reference", ""},
        {"{\"type\":\"string_check\",\"name\":\"a\",\"input\":\"\",\"reference\":\"\"}", GD_MISSING, "grader.operation",
         ""},
        {CHECK("neq", "", ""), GD_INVALID, "grader.operation", "eq, ilike, like, ne"},
        {CHECK("eq", "{{item.x", ""), GD_INVALID, "grader.input", "at character 1: '{{' is not closed"},
        {CHECK("eq", "", "é {{x.y}}"), GD_INVALID, "grader.reference", "at character 5: a reference starts"},
        {CHECK("eq", "{{item}}", ""), GD_INVALID, "grader.input", "names a field"},
        {CHECK("eq", "{{}}", ""), GD_INVALID, "grader.input", "starts with"},
        {CHECK("eq", "{{item.}}", ""), GD_INVALID, "grader.input", "a name must follow"},
        {CHECK("eq", "{{item..a}}", ""), GD_INVALID, "grader.input", "a name must follow"},
        {CHECK("eq", "{{item.a[x]}}", ""), GD_INVALID, "grader.input", "a number from 0"},
        {CHECK("eq", "{{item.a[-1]}}", ""), GD_INVALID, "grader.input", "a number from 0"},
        {CHECK("eq", "{{item.a['x}}", ""), GD_INVALID, "grader.input", "is not closed"},
        {CHECK("eq", "{{item.a b}}", ""), GD_INVALID, "grader.input", "must follow"},
        {CHECK("eq", "{{item.a[99999999999]}}", ""), GD_INVALID, "grader.input", "a number from 0"},
        {CHECK("eq", "{{sample.text}}", ""), GD_INVALID, "grader.input", "output_text, output_json and output_tools"},
        {CHECK("eq", "{{sample[0]}}", ""), GD_INVALID, "grader.input", "output_text"},
        {SIMILAR("s", "\"evaluation_metric\":\"rouge\""), GD_INVALID, "grader.evaluation_metric", "rouge_1"},
        {SIMILAR("s", "\"evaluation_metric\":\"bleu\",\"pass_threshold\":1.5"), GD_INVALID, "grader.pass_threshold",
         "1.5"},
        {SIMILAR("s", "\"evaluation_metric\":\"bleu\",\"model\":\"x\""), GD_UNKNOWN_FIELD, "grader.model", ""},
        {"{\"type\":\"multi\",\"name\":\"m\",\"calculate_output\":\"1\"}", GD_MISSING, "grader.graders", ""},
        {MULTI("[]", "1"), GD_INVALID, "grader.graders", "empty"},
        {MULTI("{}", "1"), GD_INVALID, "grader.graders", "empty"},
        {MULTI("3", "1"), GD_INVALID, "grader.graders", "list"},
        {MULTI("[" CHECK("eq", "", "") "," CHECK("eq", "", "") "]", "check"), GD_INVALID, "grader.graders[1]",
         "two graders named 'check'"},
        {MULTI("{\"a b\":" CHECK("eq", "", "") "}", "1"), GD_INVALID, "grader.graders.a b", "letters, digits"},
        {MULTI(MULTI(CHECK("eq", "", ""), "check"), "all"), GD_UNSUPPORTED, "grader.graders", "cannot hold another"},
        {MULTI(CHECK("eq", "", ""), "chek"), GD_INVALID, "grader.calculate_output", "did you mean 'check'"},
        {MULTI("[" CHECK("like", "", "{{") "]", "check"), GD_INVALID, "grader.graders[0].reference", "not closed"},
        {"{\"type\":\"multi\",\"name\":\"m\",\"graders\":" CHECK("eq", "", "") "}", GD_MISSING,
         "grader.calculate_output", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gd_error err = {0};
        cJSON *json = json_of(cases[i].grader);
        struct gd_grader *grader = gd_grader_parse(json, "grader", &err);
        if (grader != NULL || err.code != cases[i].code || strcmp(err.param, cases[i].param) != 0 ||
            strstr(err.message, cases[i].part) == NULL)
            fail_msg("%s: %s (%s, %s)", cases[i].grader, err.message, err.param, gd_code_wire(err.code));
        cJSON_Delete(json);
    }
}

static void sizes_are_bounded(void **state)
{
    struct gd_buf graders, deep;
    gd_buf_init(&graders, 0);
    gd_buf_init(&deep, 0);
    for (int i = 0; i < GD_GRADER_PARTS_MAX + 1; i++)
        gd_buf_printf(&graders, "%s\"g%d\":" CHECK("eq", "", ""), i > 0 ? "," : "", i);
    char *multi = gd_format(MULTI("{%s}", "g0"), graders.data);
    struct gd_error err = {0};
    cJSON *json = json_of(multi);
    assert_null(gd_grader_parse(json, "grader", &err));
    assert_non_null(strstr(err.message, "at most 32 graders"));
    cJSON_Delete(json);
    gd_free(multi);

    gd_buf_append_text(&deep, "{{item");
    for (int i = 0; i < 40; i++)
        gd_buf_append_text(&deep, ".a");
    char *check = gd_format(CHECK("eq", "%s}}", ""), deep.data);
    gd_error_clear(&err);
    json = json_of(check);
    assert_null(gd_grader_parse(json, "grader", &err));
    assert_non_null(strstr(err.message, "at most 32 steps"));
    cJSON_Delete(json);
    gd_free(check);
    gd_buf_release(&graders);
    gd_buf_release(&deep);
}

static void a_text_that_grows_too_large_is_an_error_of_the_grade(void **state)
{
    struct gd_buf input, item;
    gd_buf_init(&input, 0);
    gd_buf_init(&item, 0);
    for (int i = 0; i < 1000; i++)
        gd_buf_append_text(&input, "{{item.x}}");
    for (int i = 0; i < 2000; i++)
        gd_buf_append_char(&item, 'x');
    char *grader = gd_format(CHECK("eq", "%s", ""), input.data), *row = gd_format("{\"x\":\"%s\"}", item.data);
    struct gd_grade grade = run(grader, row, gd_grader_sample(""));
    assert_true(grade.flags[GD_GRADE_OTHER] && strstr(grade.error.message, "1048576 bytes") != NULL);
    gd_grade_release(&grade);
    gd_free(grader);
    gd_free(row);
    gd_buf_release(&input);
    gd_buf_release(&item);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(string_checks_compare),
        cmocka_unit_test(references_are_filled_in),
        cmocka_unit_test(what_is_missing_is_named_and_flagged),
        cmocka_unit_test(similarity_passes_from_its_threshold_on),
        cmocka_unit_test(multi_takes_one_a_list_or_a_map),
        cmocka_unit_test(a_member_that_fails_fails_the_whole_and_the_rest_is_shown),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(sizes_are_bounded),
        cmocka_unit_test(a_text_that_grows_too_large_is_an_error_of_the_grade),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
