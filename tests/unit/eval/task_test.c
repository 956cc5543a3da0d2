/* Tasks ask and score what lm-evaluation-harness asked and scored with the same answers (fixtures/make_tasks.py). */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/eval/literal.h"
#include "engine/eval/pattern.h"
#include "engine/eval/scores.h"
#include "engine/eval/task.h"
#include "engine/eval/yaml_read.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static cJSON *reference;
static char folder[] = "/tmp/graftd-task-test-XXXXXX";

/* The rows as files. */
static int load(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/eval/tasks.json", getenv("GD_FIXTURES"));
    const cJSON *file, *row;
    reference = gd_json_parse_file(path, 1 << 20, &err);
    gd_free(path);
    if (reference == NULL || mkdtemp(folder) == NULL)
        return 1;
    cJSON_ArrayForEach(file, gd_json_find(reference, "data"))
    {
        path = gd_format("%s/%s", folder, file->string);
        FILE *out = fopen(path, "w");
        cJSON_ArrayForEach(row, file)
        {
            char *line = gd_json_print(row);
            fprintf(out, "%s\n", line);
            gd_free(line);
        }
        fclose(out);
        gd_free(path);
    }
    return 0;
}

static int drop(void **state)
{
    struct gd_error err = {0};
    cJSON_Delete(reference);
    return !gd_remove_tree(folder, &err);
}

static const char *text_of(const cJSON *json, const char *key)
{
    const cJSON *member = gd_json_find(json, key);
    return cJSON_IsString(member) ? member->valuestring : NULL;
}

static struct gd_task *task_of(const char *yaml, struct gd_error *err)
{
    cJSON *config = gd_yaml_parse(yaml, strlen(yaml), err);
    struct gd_task *task = config != NULL ? gd_task_parse(config, "task", err) : NULL;
    cJSON_Delete(config);
    return task;
}

/* Is this the harness's request? Then its answer. */
static void answer(const char *name, struct gd_ask *ask, const cJSON *request)
{
    const char *prompt = text_of(request, "prompt"), *continuation = text_of(request, "continuation"),
               *text = text_of(request, "answer");
    if (strcmp(ask->prompt != NULL ? ask->prompt : "", prompt != NULL ? prompt : "") != 0)
        fail_msg("%s: prompt\n[%s]\nexpected\n[%s]", name, ask->prompt, prompt);
    if (continuation != NULL && strcmp(ask->continuation, continuation) != 0)
        fail_msg("%s: continuation [%s], expected [%s]", name, ask->continuation, continuation);
    if (text != NULL)
        assert_true(cJSON_Compare(ask->stops, gd_json_find(request, "until"), true) ||
                    cJSON_GetArraySize(ask->stops) == 1); /* until as one text */
    ask->answered = true;
    ask->text = gd_strdup(text);
    if (gd_json_find(request, "loglikelihood") != NULL)
        ask->loglikelihood = gd_json_find(request, "loglikelihood")->valuedouble;
    ask->greedy = cJSON_IsTrue(gd_json_find(request, "greedy"));
}

static struct gd_scores *run(const char *name, const cJSON *json)
{
    struct gd_error err = {0};
    struct gd_task_options options = {.limit = -1, .shots = -1, .seed = GD_TASK_SEED};
    struct gd_scores *scores = gd_scores_create();
    const cJSON *request = gd_json_find(json, "requests")->child;
    char *rows = gd_format("%s/%s", folder, text_of(json, "rows")),
         *shots = text_of(json, "shots") != NULL ? gd_format("%s/%s", folder, text_of(json, "shots")) : NULL;
    struct gd_task *task = task_of(text_of(json, "yaml"), &err);
    if (task == NULL || !gd_task_open(task, rows, shots, &options, &err))
        fail_msg("%s: %s", name, err.message);
    assert_true(gd_task_needs_shots(task, -1) == (shots != NULL));
    for (int64_t i = 0; i < gd_task_count(task); i++) {
        struct gd_eval_item item = {.index = i};
        gd_task_begin(task, &item);
        if (item.finished)
            fail_msg("%s, row %d: %s", name, (int)i + 1, gd_json_print(gd_json_find(item.body, "error")));
        for (int k = 0; k < item.ask_count; k++) {
            assert_non_null(request);
            answer(name, &item.asks[k], request);
            request = request->next;
        }
        gd_task_answered(task, &item, "m");
        assert_true(item.finished && strcmp(item.status, "error") != 0);
        gd_scores_add(scores, i, gd_json_find(item.body, "results"));
        gd_eval_item_release(&item);
    }
    assert_null(request);
    gd_task_destroy(task);
    gd_free(rows);
    gd_free(shots);
    return scores;
}

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-9 * fmax(1, fabs(b));
}

static void requests_and_scores_are_those_of_the_harness(void **state)
{
    const cJSON *json, *score;
    cJSON_ArrayForEach(json, gd_json_find(reference, "tasks"))
    {
        struct gd_scores *scores = run(json->string, json);
        cJSON *list = gd_scores_json(scores);
        const cJSON *expected = gd_json_find(json, "scores");
        assert_int_equal(cJSON_GetArraySize(list), cJSON_GetArraySize(expected));
        cJSON_ArrayForEach(score, list)
        {
            const cJSON *wanted = gd_json_find(expected, text_of(score, "name"));
            double value = gd_json_find(score, "score")->valuedouble, error = gd_json_find(score, "standard_error")->valuedouble;
            if (wanted == NULL)
                fail_msg("%s: %s is no score of the harness", json->string, text_of(score, "name"));
            const cJSON *value_wanted = cJSON_GetArrayItem(wanted, 0), *error_wanted = cJSON_GetArrayItem(wanted, 1);
            if (!near(value, value_wanted->valuedouble))
                fail_msg("%s: %s is %.12g, expected %.12g", json->string, text_of(score, "name"), value, value_wanted->valuedouble);
            if (cJSON_IsNumber(error_wanted) && !near(error, error_wanted->valuedouble))
                fail_msg("%s: %s has the standard error %.12g, expected %.12g", json->string, text_of(score, "name"), error,
                         error_wanted->valuedouble);
        }
        cJSON_Delete(list);
        gd_scores_destroy(scores);
    }
}

static void a_run_differs_from_itself_by_nothing(void **state)
{
    const cJSON *json = gd_json_find(gd_json_find(reference, "tasks"), "translate"), *score;
    struct gd_scores *a = run("translate", json), *b = run("translate", json);
    cJSON *list = gd_scores_compare(a, b);
    assert_int_equal(cJSON_GetArraySize(list), 3);
    cJSON_ArrayForEach(score, list)
    {
        assert_true(gd_json_find(score, "difference")->valuedouble == 0);
        assert_true(gd_json_find(score, "n")->valueint == 14);
    }
    cJSON_Delete(list);
    gd_scores_destroy(a);
    gd_scores_destroy(b);
}

static void yaml_is_read_as_pyyaml_reads_it(void **state)
{
    const cJSON *pair;
    cJSON_ArrayForEach(pair, gd_json_find(reference, "yaml"))
    {
        struct gd_error err = {0};
        const char *text = cJSON_GetArrayItem(pair, 0)->valuestring;
        cJSON *json = gd_yaml_parse(text, strlen(text), &err);
        if (json == NULL || !cJSON_Compare(json, cJSON_GetArrayItem(pair, 1), true))
            fail_msg("%s: %s%s", text, json != NULL ? gd_json_print(json) : "", err.message);
        cJSON_Delete(json);
    }
}

static void bad_yaml_is_refused_with_its_place(void **state)
{
    static const struct {
        const char *text, *said;
    } cases[] = {
        {"a: !function utils.f", "column 4: !function names Python code"},
        {"a: !!python/object:x {}", "python/object"},
        {"a: 1\na: 2", "line 2, column 1: the key 'a' is there twice"},
        {"a: [1", "line 2, column 1"},
        {"a: 1:30", "base 60"},
        {"", "nothing in it"},
        {"a: 1\n---\nb: 2", "one document"},
        {"? [a]\n: 1", "a key must be a text"},
        {"a: &x [*x]", "nested too deeply"},
        {"a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]",
         "too many values"},
        {"\xff", "UTF-8"},
        {"a: \"\\0\"", "NUL"},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_error err = {0};
        cJSON *json = gd_yaml_parse(cases[i].text, strlen(cases[i].text), &err);
        if (json != NULL || strstr(err.message, cases[i].said) == NULL)
            fail_msg("%s: '%s', expected '%s'", cases[i].text, err.message, cases[i].said);
    }
}

#define HEAD "task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: x}}\ntest_split: test\n"
#define ASK "doc_to_text: q\ndoc_to_target: a\n"

static void bad_tasks_are_refused_by_name(void **state)
{
    static const struct {
        const char *text, *param, *said;
    } cases[] = {
        {"[]", "task", "mapping"},
        {HEAD ASK "doc_to_txt: x", "task.doc_to_txt", "doc_to_text"},
        {HEAD ASK "process_docs: x", "task.process_docs", "Python"},
        {HEAD ASK "include: x", "task.include", "one file"},
        {HEAD ASK "unsafe_code: true", "task.unsafe_code", "not supported"},
        {"task: t\ndataset_path: ai2_arc\ntest_split: test\n" ASK, "task.dataset_path", "nothing is downloaded"},
        {"task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: x}}\n" ASK, "task", "neither test_split"},
        {HEAD ASK "fewshot_split: few", "task.fewshot_split", "no file for 'few'"},
        {HEAD "doc_to_text: q", "task.doc_to_target", "missing"},
        {HEAD ASK "output_type: multiple_choice", "task.doc_to_choice", "missing"},
        {HEAD ASK "output_type: generate", "task.output_type", "generate_until"},
        {HEAD "doc_to_text: '{{ q '\ndoc_to_target: a", "task.doc_to_text", "line 1"},
        {HEAD ASK "metric_list: [{metric: acc}]", "task.metric_list[0].metric", "exact_match"},
        {HEAD ASK "metric_list: [{metric: ter}]", "task.metric_list[0].metric", "chrf"},
        {HEAD ASK "metric_list: [{metric: bleu, aggregation: mean}]", "task.metric_list[0].aggregation", "only 'bleu'"},
        {HEAD ASK "metric_list: [{metric: exact_match, ignore: true}]", "task.metric_list[0].ignore", "ignore_case"},
        {HEAD ASK "metric_list: [{metric: exact_match, regexes_to_ignore: ['(']}]", "task.metric_list[0].regexes_to_ignore",
         "regular expression"},
        {HEAD ASK "metric_list: [{metric: exact_match, hf_evaluate: true}]", "task.metric_list[0]", "evaluate"},
        {HEAD ASK "filter_list: [{name: f, filter: [{function: regx}]}]", "task.filter_list[0].filter[0].function", "regex"},
        {HEAD ASK "filter_list: [{name: f, filter: [{function: lowercase}]}]", "task.filter_list[0]", "take_first"},
        {HEAD ASK "generation_kwargs: {until: ['']}", "task.generation_kwargs.until", "not empty"},
        {HEAD ASK "generation_kwargs: {do_sample: true}", "task.generation_kwargs", "temperature"},
        {HEAD ASK "repeats: 3", "task", "equal answers"},
        {HEAD ASK "fewshot_config: {sampler: balanced}", "task.fewshot_config.sampler", "first_n"},
        {HEAD ASK "num_fewshot: -1", "task.num_fewshot", "-1"},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_error err = {0};
        struct gd_task *task = task_of(cases[i].text, &err);
        if (task != NULL || strcmp(err.param, cases[i].param) != 0 || strstr(err.message, cases[i].said) == NULL)
            fail_msg("%s\n'%s' of %s, expected '%s' of %s", cases[i].text, err.message, err.param, cases[i].said, cases[i].param);
    }
}

static void rows_that_do_not_fit_are_items_with_errors(void **state)
{
    struct gd_error err = {0};
    struct gd_task_options options = {.limit = -1, .shots = -1, .seed = GD_TASK_SEED};
    char *path = gd_format("%s/odd", folder);
    FILE *out = fopen(path, "w");
    fputs("{\"q\":\"a\",\"c\":[\"x\",\"y\"],\"a\":1}\n{\"q\":null,\"c\":[\"x\"],\"a\":0}\n{\"q\":\"b\",\"a\":0}\n"
          "{\"q\":\"b\",\"c\":[\"x\",\"y\"],\"a\":2}\n", out);
    fclose(out);
    struct gd_task *task = task_of(HEAD "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: a", &err);
    assert_true(task != NULL && gd_task_open(task, path, NULL, &options, &err));
    for (int64_t i = 0; i < 4; i++) {
        struct gd_eval_item item = {.index = i};
        gd_task_begin(task, &item);
        assert_true(item.finished == (i == 1 || i == 2));
        for (int k = 0; k < item.ask_count; k++)
            item.asks[k].answered = true;
        if (!item.finished)
            gd_task_answered(task, &item, "m");
        assert_string_equal(item.status, i == 0 ? "fail" : "error");
        gd_eval_item_release(&item);
    }
    gd_task_destroy(task);
    gd_free(path);
}

static void python_literals_are_read(void **state)
{
    static const char *const good[][2] = {{"['a', \"b's\", 'c\\n\\x41\\u00e9']", "[\"a\",\"b's\",\"c\\nAé\"]"},
                                          {"[1, -2.5, True, None, (3,)]", "[1,-2.5,true,null,[3]]"},
                                          {" [ ] ", "[]"}};
    static const char *const bad[] = {"['a'", "[a]", "['a' 'b'", "[1 2]", "'a", "[,]", "[1]]", "007", "['\\q']", "", "["};
    for (size_t i = 0; i < GD_COUNT(good); i++) {
        cJSON *json = gd_literal_read(good[i][0]);
        char *text = gd_json_print(json);
        assert_string_equal(text, good[i][1]);
        gd_free(text);
        cJSON_Delete(json);
    }
    for (size_t i = 0; i < GD_COUNT(bad); i++)
        if (gd_literal_read(bad[i]) != NULL)
            fail_msg("%s was read", bad[i]);
}

static void a_pattern_that_is_too_much_work_is_an_error(void **state)
{
    struct gd_error err = {0};
    struct gd_buf out;
    bool found;
    gd_buf_init(&out, 0);
    struct gd_pattern *pattern = gd_pattern_compile("(a+)+$", "p", &err);
    assert_false(gd_pattern_find(pattern, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", 0, &out, &found, &err));
    assert_non_null(strstr(err.message, "too much work"));
    gd_pattern_destroy(pattern);
    gd_buf_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_and_scores_are_those_of_the_harness),
        cmocka_unit_test(a_run_differs_from_itself_by_nothing),
        cmocka_unit_test(yaml_is_read_as_pyyaml_reads_it),
        cmocka_unit_test(bad_yaml_is_refused_with_its_place),
        cmocka_unit_test(bad_tasks_are_refused_by_name),
        cmocka_unit_test(rows_that_do_not_fit_are_items_with_errors),
        cmocka_unit_test(python_literals_are_read),
        cmocka_unit_test(a_pattern_that_is_too_much_work_is_an_error),
    };
    return cmocka_run_group_tests(tests, load, drop);
}
