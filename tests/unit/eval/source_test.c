/* Evals and their sources: what is refused at creation, what an item asks, what becomes of it. */
#include "engine/eval/source.h"
#include "tests/unit/eval/eval_testing.h"

#define CONFIG(sample) "\"data_source_config\":{\"type\":\"custom\",\"include_sample_schema\":" sample ",\"item_schema\":" \
    "{\"type\":\"object\",\"properties\":{\"q\":{\"type\":\"string\"},\"a\":{\"type\":\"string\"},\"chat\":{\"type\":\"array\"}}," \
    "\"required\":[\"q\"]}}"
#define CHECK(input, reference) "{\"type\":\"string_check\",\"name\":\"exact\",\"operation\":\"eq\",\"input\":\"" input \
    "\",\"reference\":\"" reference "\"}"
#define EVAL "{" CONFIG("true") ",\"testing_criteria\":[" CHECK("{{sample.output_text}}", "{{item.a}}") "]}"
#define ROWS(rows) "\"source\":{\"type\":\"file_content\",\"content\":[" rows "]}"
#define ROW(item) "{\"item\":" item "}"
#define ASK "\"type\":\"completions\",\"model\":\"m\",\"input_messages\":{\"type\":\"template\",\"template\":[{\"role\":\"user\"," \
    "\"content\":\"{{item.q}}?\"}]}"

static void expect(const char *text, bool ok, const struct gd_error *err, enum gd_code code, const char *param,
                   const char *part)
{
    if (ok || err->code != code || strcmp(err->param, param) != 0 || strstr(err->message, part) == NULL)
        fail_msg("%s: %s (%s, %s)", text, err->message, err->param, gd_code_wire(err->code));
}

static void evals_that_cannot_work_are_refused(void **state)
{
    static const struct {
        const char *body;
        enum gd_code code;
        const char *param, *part;
    } cases[] = {
        {"{}", GD_MISSING, "data_source_config", ""},
        {"{\"data_source_config\":{\"type\":\"logs\"}}", GD_UNSUPPORTED, "data_source_config.type", "not stored here"},
        {"{\"data_source_config\":{\"type\":\"stored_completions\"}}", GD_UNSUPPORTED, "data_source_config.type", "custom"},
        {"{\"data_source_config\":{\"type\":\"custm\"}}", GD_INVALID, "data_source_config.type", "did you mean 'custom'"},
        {"{\"data_source_config\":{\"type\":\"custom\"}}", GD_MISSING, "data_source_config.item_schema", ""},
        {"{\"data_source_config\":{\"type\":\"custom\",\"item_schema\":{},\"itm\":1}}", GD_UNKNOWN_FIELD,
         "data_source_config.itm", ""},
        {"{\"data_source_config\":{\"type\":\"custom\",\"item_schema\":{\"type\":\"objct\"}}}", GD_INVALID,
         "data_source_config.item_schema.type", "object"},
        {"{" CONFIG("true") "}", GD_MISSING, "testing_criteria", "1 to"},
        {"{" CONFIG("true") ",\"testing_criteria\":[]}", GD_INVALID, "testing_criteria", "1 to"},
        {"{" CONFIG("true") ",\"testing_criteria\":[" CHECK("{{item.b}}", "x") "]}", GD_INVALID, "testing_criteria[0].input",
         "'b' is not in item_schema"},
        {"{" CONFIG("false") ",\"testing_criteria\":[" CHECK("{{sample.output_text}}", "x") "]}", GD_INVALID,
         "testing_criteria[0].input", "include_sample_schema"},
        {"{" CONFIG("true") ",\"testing_criteria\":[" CHECK("", "") "," CHECK("", "") "]}", GD_INVALID, "testing_criteria[1]",
         "two criteria named 'exact'"},
        {"{" CONFIG("true") ",\"testing_criteria\":[{\"type\":\"text_similarity\",\"name\":\"n\",\"evaluation_metric\":\"bleu\","
         "\"input\":\"\",\"reference\":\"\"}]}", GD_MISSING, "testing_criteria[0].pass_threshold", "passes"},
        {"{" CONFIG("true") ",\"testing_criteria\":[{\"type\":\"multi\",\"name\":\"n\",\"calculate_output\":\"exact\",\"graders\":["
         CHECK("{{item.z}}", "") "]}]}", GD_INVALID, "testing_criteria[0].graders[0].input", "'z'"},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_error err = {0};
        struct gd_eval_spec spec;
        cJSON *body = json_of(cases[i].body);
        expect(cases[i].body, gd_eval_spec_parse(&spec, body, &err), &err, cases[i].code, cases[i].param, cases[i].part);
        cJSON_Delete(body);
    }
}

static void data_sources_that_cannot_work_are_refused(void **state)
{
    static const struct {
        const char *source;
        enum gd_code code;
        const char *param, *part;
    } cases[] = {
        {"null", GD_MISSING, "data_source", ""},
        {"{\"type\":\"responses\"}", GD_UNSUPPORTED, "data_source.type", "completions"},
        {"{\"type\":\"json\"}", GD_INVALID, "data_source.type", "did you mean 'jsonl'"},
        {"{\"type\":\"jsonl\"}", GD_MISSING, "data_source.source", ""},
        {"{\"type\":\"jsonl\",\"model\":\"m\"}", GD_UNKNOWN_FIELD, "data_source.model", ""},
        {"{\"type\":\"jsonl\",\"source\":{\"type\":\"stored_completions\"}}", GD_UNSUPPORTED, "data_source.source.type",
         "file_id"},
        {"{\"type\":\"jsonl\",\"source\":{\"type\":\"file_id\"}}", GD_MISSING, "data_source.source.id", ""},
        {"{\"type\":\"jsonl\"," ROWS("") "}", GD_INVALID, "data_source.source.content", "empty"},
        {"{\"type\":\"jsonl\"," ROWS("3") "}", GD_INVALID, "data_source.source.content[0]", "object"},
        {"{\"type\":\"jsonl\"," ROWS(ROW("{}") ",{\"itm\":{}}") "}", GD_UNKNOWN_FIELD, "data_source.source.content[1].itm",
         "item"},
        {"{\"type\":\"jsonl\"," ROWS("{\"item\":3}") "}", GD_INVALID, "data_source.source.content[0].item", "object"},
        {"{\"type\":\"completions\"," ROWS(ROW("{}")) "}", GD_MISSING, "data_source.model", ""},
        {"{\"type\":\"completions\",\"model\":\"m\"," ROWS(ROW("{}")) "}", GD_MISSING, "data_source.input_messages", ""},
        {"{\"type\":\"completions\",\"model\":\"m\",\"input_messages\":{\"type\":\"template\",\"template\":[{\"role\":\"user\","
         "\"content\":\"{{item.qq}}\"}]}," ROWS(ROW("{}")) "}", GD_INVALID,
         "data_source.input_messages.template[0].content", "'qq' is not in item_schema"},
        {"{\"type\":\"completions\",\"model\":\"m\",\"input_messages\":{\"type\":\"template\",\"template\":[{\"role\":\"user\","
         "\"content\":\"{{sample.output_text}}\"}]}," ROWS(ROW("{}")) "}", GD_INVALID,
         "data_source.input_messages.template[0].content", "no sample yet"},
        {"{\"type\":\"completions\",\"model\":\"m\",\"input_messages\":{\"type\":\"item_reference\",\"item_reference\":"
         "\"item.nope\"}," ROWS(ROW("{}")) "}", GD_INVALID, "data_source.input_messages.item_reference", "'nope'"},
        {"{\"type\":\"completions\",\"model\":\"m\",\"input_messages\":{\"type\":\"item_reference\",\"item_reference\":"
         "\"{{item.q}}\"}," ROWS(ROW("{}")) "}", GD_INVALID, "data_source.input_messages.item_reference", "without braces"},
        {"{" ASK ",\"sampling_params\":{\"temprature\":0}," ROWS(ROW("{}")) "}", GD_UNKNOWN_FIELD,
         "data_source.sampling_params.temprature", "temperature"},
        {"{" ASK ",\"sampling_params\":{\"response_format\":{\"type\":\"json_object\"}}," ROWS(ROW("{}")) "}", GD_UNSUPPORTED,
         "data_source.sampling_params.response_format", "text"},
    };
    cJSON *body = json_of(EVAL);
    struct gd_eval_spec spec;
    struct gd_error none = {0};
    assert_true(gd_eval_spec_parse(&spec, body, &none));
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_error err = {0};
        cJSON *value = json_of(cases[i].source);
        expect(cases[i].source, gd_eval_source_parse(&spec, value, &err) != NULL, &err, cases[i].code, cases[i].param,
               cases[i].part);
        cJSON_Delete(value);
    }
    gd_eval_spec_release(&spec);
    cJSON_Delete(body);
}

/* Runs all items; the model says what `say` says. Returns the statuses, one letter each. */
static char *run(const char *eval, const char *data_source, const char *file_path, const char *(*say)(const struct gd_ask *),
                 cJSON *bodies)
{
    static char statuses[64];
    struct gd_error err = {0};
    struct gd_eval_spec spec, restored;
    cJSON *body = json_of(eval), *value = json_of(data_source);
    assert_true(gd_eval_spec_parse(&spec, body, &err));
    assert_true(gd_eval_spec_restore(&restored, spec.config, gd_json_find(body, "testing_criteria"), &err));
    gd_eval_spec_release(&spec);
    struct gd_eval_source *source = gd_eval_source_parse(&restored, value, &err);
    if (source == NULL || !gd_eval_source_open(source, file_path, &err))
        fail_msg("%s: %s", data_source, err.message);
    memset(statuses, 0, sizeof statuses);
    for (int64_t i = 0; i < source->count; i++) {
        struct gd_eval_item item = {.index = i};
        source->type->begin(source, &item);
        for (int asked = 0; !item.finished;) {
            for (; asked < item.ask_count; asked++) {
                item.asks[asked].answered = true;
                if (item.asks[asked].error.code == GD_OK)
                    item.asks[asked].text = gd_strdup(say(&item.asks[asked]));
            }
            source->type->answered(source, &item);
        }
        assert_null(item.state);
        statuses[i] = item.status[0];
        cJSON_AddItemToArray(bodies, item.body);
        item.body = NULL;
        gd_eval_item_release(&item);
    }
    gd_eval_source_destroy(source);
    gd_eval_spec_release(&restored);
    cJSON_Delete(body);
    cJSON_Delete(value);
    return statuses;
}

static const char *echo(const struct gd_ask *ask)
{
    return gd_json_find(cJSON_GetArrayItem(ask->messages, 0), "content")->valuestring;
}

static const char *message_of(const cJSON *bodies, int index)
{
    return gd_json_find(gd_json_find(cJSON_GetArrayItem(bodies, index), "error"), "message")->valuestring;
}

static void rows_become_questions_and_answers_are_graded(void **state)
{
    cJSON *bodies = cJSON_CreateArray();
    char *statuses = run(EVAL, "{" ASK "," ROWS(ROW("{\"q\":\"x\",\"a\":\"x?\"}") "," ROW("{\"q\":\"x\",\"a\":\"y\"}") ","
                         ROW("{\"q\":3}") "," ROW("{\"a\":\"\"}") "," ROW("{\"q\":\"no reference\"}")) "}", NULL, echo, bodies);
    assert_string_equal(statuses, "pfeee");
    const cJSON *first = cJSON_GetArrayItem(bodies, 0), *sample = gd_json_find(first, "sample");
    assert_string_equal(gd_json_find(cJSON_GetArrayItem(gd_json_find(sample, "output"), 0), "content")->valuestring, "x?");
    assert_true(gd_json_find(sample, "seed")->valuedouble == 42);
    assert_string_equal(message_of(bodies, 2), "row 3: item.q must be of type string");
    assert_string_equal(message_of(bodies, 3), "row 4: item.q is missing: the schema requires it");
    const cJSON *last = cJSON_GetArrayItem(gd_json_find(cJSON_GetArrayItem(bodies, 4), "results"), 0);
    assert_non_null(strstr(gd_json_find(last, "error")->valuestring, "{{item.a}}"));
    assert_true(cJSON_IsNull(gd_json_find(last, "score")));
    assert_true(cJSON_IsObject(gd_json_find(cJSON_GetArrayItem(bodies, 4), "sample"))); /* what it produced is kept */
    cJSON_Delete(bodies);
}

static void a_row_may_bring_its_conversation(void **state)
{
    cJSON *bodies = cJSON_CreateArray();
    char *statuses = run(EVAL,
        "{\"type\":\"completions\",\"model\":\"m\",\"input_messages\":{\"type\":\"item_reference\",\"item_reference\":\"item.chat\"},"
        ROWS(ROW("{\"q\":\"\",\"a\":\"hi\",\"chat\":[{\"role\":\"user\",\"content\":\"hi\"}]}") ","
             ROW("{\"q\":\"\",\"a\":\"hi\",\"chat\":[{\"role\":\"nobody\",\"content\":\"hi\"}]}") ","
             ROW("{\"q\":\"\",\"a\":\"hi\"}")) "}", NULL, echo, bodies);
    assert_string_equal(statuses, "pee");
    assert_non_null(strstr(message_of(bodies, 1), "row 2: "));
    assert_non_null(strstr(message_of(bodies, 2), "chat"));
    cJSON_Delete(bodies);
}

static void rows_of_a_file_bring_their_samples(void **state)
{
    static const char rows[] = "{\"item\":{\"q\":\"\",\"a\":\"b\"},\"sample\":{\"output_text\":\"b\"}}\n"
                               "\n{\"item\":{\"q\":\"\",\"a\":\"b\"},\"sample\":{\"output_text\":\"c\"}}\r\n"
                               "{\"item\":{\"q\":\"\",\"a\":\"b\"}}\n{\"item\":{\"q\":\"\",\"a\":\"b\"},\"sampel\":{}}\nnot json\n";
    struct gd_error err = {0};
    char *folder = scratch_new(), *path = gd_format("%s/rows.jsonl", folder);
    assert_true(gd_file_write_durable(path, rows, strlen(rows), &err));
    cJSON *bodies = cJSON_CreateArray();
    char *statuses = run(EVAL, "{\"type\":\"jsonl\",\"source\":{\"type\":\"file_id\",\"id\":\"file-1\"}}", path, echo, bodies);
    assert_string_equal(statuses, "pfeee");
    assert_non_null(strstr(message_of(bodies, 2), "'sample' is missing"));
    assert_non_null(strstr(message_of(bodies, 3), "sampel"));
    assert_non_null(strstr(message_of(bodies, 4), "row 5: "));
    cJSON_Delete(bodies);
    scratch_remove(folder);
    gd_free(path);
}

static const char *judge(const struct gd_ask *ask)
{
    return ask->choices != NULL ? cJSON_GetArrayItem(ask->choices, strstr(echo(ask), "x?") != NULL)->valuestring : echo(ask);
}

static void judges_are_asked_once_the_answer_is_there(void **state)
{
    cJSON *bodies = cJSON_CreateArray();
    char *statuses = run("{" CONFIG("true") ",\"testing_criteria\":[" CHECK("{{sample.output_text}}", "{{item.a}}") ","
        "{\"type\":\"label_model\",\"name\":\"judged\",\"model\":\"j\",\"labels\":[\"no\",\"yes\"],\"passing_labels\":[\"yes\"],"
        "\"input\":[{\"role\":\"user\",\"content\":\"is {{sample.output_text}} right?\"}]}]}",
        "{" ASK "," ROWS(ROW("{\"q\":\"x\",\"a\":\"x?\"}") "," ROW("{\"q\":\"y\",\"a\":\"y?\"}")) "}", NULL, judge, bodies);
    assert_string_equal(statuses, "pf");
    const cJSON *results = gd_json_find(cJSON_GetArrayItem(bodies, 0), "results");
    const cJSON *sample = gd_json_find(cJSON_GetArrayItem(results, 1), "sample");
    assert_string_equal(gd_json_find(sample, "model")->valuestring, "j");
    assert_string_equal(gd_json_find(cJSON_GetArrayItem(gd_json_find(sample, "output"), 0), "content")->valuestring, "yes");
    cJSON_Delete(bodies);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(evals_that_cannot_work_are_refused),
        cmocka_unit_test(data_sources_that_cannot_work_are_refused),
        cmocka_unit_test(rows_become_questions_and_answers_are_graded),
        cmocka_unit_test(a_row_may_bring_its_conversation),
        cmocka_unit_test(rows_of_a_file_bring_their_samples),
        cmocka_unit_test(judges_are_asked_once_the_answer_is_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
