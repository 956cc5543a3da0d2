/* One line of a training file: its format, its mistakes by name, its meaning. */
#include "engine/base/alloc.h"
#include "engine/data/row.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define CHAT(more) "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]" more "}"

static struct gd_row good(const char *text)
{
    struct gd_row row;
    struct gd_error err = {0};
    if (!gd_row_parse(&row, text, strlen(text), 1, &err))
        fail_msg("%s: %s", text, err.message);
    return row;
}

static void assert_messages(const char *text, enum gd_row_format format, const char *messages, const char *tools)
{
    struct gd_row row = good(text);
    char *got = row.messages == NULL ? gd_strdup("none") : gd_json_print(row.messages);
    char *offered = row.tools == NULL ? gd_strdup("none") : gd_json_print(row.tools);
    assert_int_equal(row.format, format);
    assert_string_equal(got, messages);
    assert_string_equal(offered, tools);
    gd_free(got);
    gd_free(offered);
    gd_row_release(&row);
}

static void chat_rows_keep_their_messages_and_tools(void **state)
{
    static const char both[] = "[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]";
    static const char tool[] = "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]";
    assert_messages(CHAT(""), GD_ROW_CHAT, both, "none");
    assert_messages(CHAT(",\"parallel_tool_calls\":false,\"tools\":null"), GD_ROW_CHAT, both, "none");
    assert_messages(CHAT(",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"), GD_ROW_CHAT, both, tool);
    assert_messages(CHAT(",\"functions\":[{\"name\":\"f\"}]"), GD_ROW_CHAT, both, tool);
}

static void rows_of_messages_bring_variables_for_the_template(void **state)
{
    static const char *const rows[] = {
        CHAT(",\"chat_template_kwargs\":{\"a\":1}"),
        "{\"instruction\":\"x\",\"output\":\"y\",\"chat_template_kwargs\":{\"a\":1}}",
        "{\"conversations\":[{\"from\":\"human\",\"value\":\"q\"},{\"from\":\"gpt\",\"value\":\"a\"}],\"chat_template_kwargs\":{\"a\":1}}",
        "{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"}],\"chosen\":[{\"role\":\"assistant\",\"content\":\"a\"}],"
        "\"rejected\":[{\"role\":\"assistant\",\"content\":\"b\"}],\"chat_template_kwargs\":{\"a\":1}}",
        "{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"}],\"completion\":[{\"role\":\"assistant\",\"content\":\"a\"}],\"label\":true,"
        "\"chat_template_kwargs\":{\"a\":1}}",
        "{\"input\":{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"chat_template_kwargs\":{\"a\":1}},"
        "\"preferred_output\":[{\"role\":\"assistant\",\"content\":\"a\"}],\"non_preferred_output\":[{\"role\":\"assistant\",\"content\":\"b\"}]}",
    };
    for (size_t i = 0; i < GD_COUNT(rows); i++) {
        struct gd_row row = good(rows[i]);
        assert_non_null(row.messages);
        assert_true(gd_json_find(row.template_kwargs, "a")->valueint == 1);
        gd_row_release(&row);
    }
    struct gd_row row = good(CHAT(",\"chat_template_kwargs\":null"));
    assert_null(row.template_kwargs);
    gd_row_release(&row);
}

static void pairs_keep_prompt_and_completion(void **state)
{
    struct gd_row row = good(" {\"prompt\":\"\",\"completion\":\" x\\n\"} ");
    assert_int_equal(row.format, GD_ROW_PROMPT_COMPLETION);
    assert_null(row.messages);
    assert_string_equal(row.prompt, "");
    assert_string_equal(row.completion, " x\n");
    gd_row_release(&row);
}

static void alpaca_rows_become_messages(void **state)
{
    assert_messages("{\"instruction\":\"Do\",\"input\":\"it\",\"output\":\"done\",\"id\":7}", GD_ROW_ALPACA,
                    "[{\"role\":\"user\",\"content\":\"Do\\n\\nit\"},{\"role\":\"assistant\",\"content\":\"done\"}]", "none");
    assert_messages("{\"instruction\":\"Do\",\"input\":\"\",\"output\":\"done\",\"system\":\"Be\",\"history\":[[\"a\",\"b\"]]}",
                    GD_ROW_ALPACA,
                    "[{\"role\":\"system\",\"content\":\"Be\"},{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\","
                    "\"content\":\"b\"},{\"role\":\"user\",\"content\":\"Do\"},{\"role\":\"assistant\",\"content\":\"done\"}]",
                    "none");
}

static void sharegpt_rows_become_messages(void **state)
{
    assert_messages("{\"conversation_id\":1,\"source\":\"x\",\"conversations\":[{\"from\":\"system\",\"value\":\"s\"},"
                    "{\"from\":\"human\",\"value\":\"q\"},{\"from\":\"gpt\",\"value\":\"a\",\"weight\":0.5},"
                    "{\"from\":\"user\",\"value\":\"r\"},{\"from\":\"model\",\"value\":\"b\"}]}", GD_ROW_SHAREGPT,
                    "[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\","
                    "\"content\":\"a\",\"weight\":0.5},{\"role\":\"user\",\"content\":\"r\"},{\"role\":\"assistant\","
                    "\"content\":\"b\"}]", "none");
    assert_messages("{\"system\":\"s\",\"tools\":\"[{\\\"name\\\":\\\"f\\\"}]\",\"conversations\":[{\"from\":\"human\",\"value\":\"q\"},"
                    "{\"from\":\"function_call\",\"value\":\"{\\\"name\\\":\\\"f\\\",\\\"arguments\\\":{}}\"},"
                    "{\"from\":\"observation\",\"value\":\"o\"},{\"from\":\"assistant\",\"value\":\"a\"}]}", GD_ROW_SHAREGPT,
                    "[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\","
                    "\"content\":null,\"tool_calls\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":{}}}]},"
                    "{\"role\":\"tool\",\"content\":\"o\"},{\"role\":\"assistant\",\"content\":\"a\"}]",
                    "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]");
    assert_messages("{\"conversations\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]}",
                    GD_ROW_SHAREGPT, "[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]", "none");
}

#define SAYS(text) "[{\"role\":\"assistant\",\"content\":\"" text "\"}]"
#define ASKS "\"input\":{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}]}"
#define PAIR(chosen, rejected) "{" ASKS ",\"preferred_output\":" chosen ",\"non_preferred_output\":" rejected "}"

static void assert_pair(const char *text, enum gd_row_format format, const char *chosen, const char *rejected)
{
    struct gd_row row = good(text);
    assert_true(gd_row_is_pair(&row));
    char *got = gd_json_print(row.messages), *other = gd_json_print(row.rejected_messages);
    assert_int_equal(row.format, format);
    assert_string_equal(got, chosen);
    assert_string_equal(other, rejected);
    gd_free(got);
    gd_free(other);
    gd_row_release(&row);
}

static void preference_rows_become_two_conversations(void **state)
{
    static const char a[] = "[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]";
    static const char b[] = "[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"b\"}]";
    assert_pair(PAIR(SAYS("a"), SAYS("b")), GD_ROW_PREFERENCE, a, b);
    assert_pair("{" ASKS ",\"preferred_completion\":" SAYS("a") ",\"non_preferred_completion\":" SAYS("b") "}", GD_ROW_PREFERENCE, a, b);
    assert_pair("{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"}],\"chosen\":" SAYS("a") ",\"rejected\":" SAYS("b") ",\"id\":3}",
                GD_ROW_CHOSEN_REJECTED, a, b);
    assert_pair("{\"prompt\":\"q\",\"chosen\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}],"
                "\"rejected\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"b\"}]}",
                GD_ROW_CHOSEN_REJECTED, a, b);
    struct gd_row row = good("{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\"}");
    assert_true(gd_row_is_pair(&row) && row.messages == NULL);
    assert_string_equal(row.prompt, "q");
    assert_string_equal(row.completion, "a");
    assert_string_equal(row.rejected, "b");
    gd_row_release(&row);
}

static void what_the_assistant_said_before_a_preference_weighs_nothing(void **state)
{
    struct gd_row row = good("{\"input\":{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"x\"},"
                             "{\"role\":\"user\",\"content\":\"r\"}]},\"preferred_output\":" SAYS("a") ",\"non_preferred_output\":" SAYS("b") "}");
    assert_true(gd_json_find(cJSON_GetArrayItem(row.messages, 1), "weight")->valuedouble == 0);
    assert_null(gd_json_find(cJSON_GetArrayItem(row.messages, 3), "weight"));
    assert_true(gd_json_find(cJSON_GetArrayItem(row.rejected_messages, 1), "weight")->valuedouble == 0);
    gd_row_release(&row);
}

static void bad_rows_are_named_by_line_and_field(void **state)
{
    static const struct {
        const char *text, *param, *part;
    } cases[] = {
        {"", "row", "line 7: "},
        {"[]", "row", "object"},
        {"3", "row", "object"},
        {"null", "row", "object"},
        {"{}", "row", "messages, or prompt"},
        {"{\"mesages\":[]}", "row", "did you mean 'messages'"},
        {"{\"text\":\"x\"}", "label", "missing"},
        {"{\"text\":\"x\",\"label\":1.5}", "label", "whole number"},
        {"{\"text\":\"x\",\"label\":[\"a\",null]}", "label[1]", "must be a name"},
        {"{\"text\":\"\",\"label\":1}", "text", "empty"},
        {"{\"txt\":\"x\",\"label\":1}", "row", "did you mean 'text'"},
        {"{\"messages\":[]}", "messages", "empty"},
        {"{\"messages\":{}}", "messages", "array"},
        {"{\"messages\":null}", "messages", "array"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}]}", "messages[0].role", "assistant"},
        {"{\"messages\":[{\"content\":\"q\"}]}", "messages[0].role", "missing"},
        {CHAT(",\"tool\":[]"), "tool", "did you mean 'tools'"},
        {CHAT(",\"id\":1"), "id", "id"},
        {CHAT(",\"tools\":{}"), "tools", "array"},
        {CHAT(",\"tools\":[{}]"), "tools[0].type", "function"},
        {CHAT(",\"tools\":[{\"type\":\"function\"}]"), "tools[0].function", "object"},
        {CHAT(",\"functions\":[3]"), "functions[0]", "object"},
        {CHAT(",\"functions\":[],\"tools\":[]"), "functions", "both"},
        {CHAT(",\"parallel_tool_calls\":1"), "parallel_tool_calls", "true or false"},
        {CHAT(",\"chat_template_kwargs\":[]"), "chat_template_kwargs", "must be an object"},
        {CHAT(",\"chat_template_kwarg\":{}"), "chat_template_kwarg", "did you mean 'chat_template_kwargs'"},
        {"{\"prompt\":\"x\",\"chosen\":\"y\",\"rejected\":\"z\",\"chat_template_kwargs\":{\"a\":1}}", "chat_template_kwargs", "rows of messages"},
        {"{\"instruction\":\"x\",\"output\":\"y\",\"chat_template_kwargs\":3}", "chat_template_kwargs", "must be an object"},
        {CHAT(",\"prompt\":\"x\""), "prompt", "both 'messages' and 'prompt'"},
        {"{\"prompt\":\"x\"}", "completion", "completion"},
        {"{\"completion\":\"x\"}", "prompt", "prompt"},
        {"{\"prompt\":\"x\",\"completion\":\"\"}", "completion", "empty"},
        {"{\"prompt\":[\"x\"],\"completion\":\"y\"}", "prompt", "string"},
        {"{\"prompt\":\"x\",\"completion\":\"y\",\"weight\":1}", "weight", "weight"},
        {"{\"instruction\":\"x\"}", "output", "output"},
        {"{\"instruction\":\"x\",\"output\":\"\"}", "output", "empty"},
        {"{\"instruction\":\"x\",\"output\":\"y\",\"inputs\":\"z\"}", "inputs", "did you mean 'input'"},
        {"{\"instruction\":\"x\",\"output\":\"y\",\"history\":[[\"a\"]]}", "history[0]", "two strings"},
        {"{\"instruction\":1,\"output\":\"y\"}", "instruction", "string"},
        {"{\"conversations\":[]}", "conversations", "empty"},
        {PAIR(SAYS("a"), SAYS("a")), "non_preferred_output", "identical"},
        {PAIR(SAYS("a"), SAYS("")), "non_preferred_output", "empty"},
        {PAIR("[]", SAYS("b")), "preferred_output", "empty"},
        {PAIR(SAYS("a"), "7"), "non_preferred_output", "array"},
        {PAIR("[{\"role\":\"user\",\"content\":\"a\"}]", SAYS("b")), "preferred_output[0].role", "assistant"},
        {"{" ASKS ",\"preferred_output\":" SAYS("a") "}", "non_preferred_output", "required"},
        {"{" ASKS ",\"preferred_output\":" SAYS("a") ",\"preferred_completion\":" SAYS("a") "}", "preferred_completion", "both"},
        {"{\"preferred_output\":" SAYS("a") ",\"non_preferred_output\":" SAYS("b") "}", "input", "required"},
        {"{\"input\":{\"messages\":[]},\"preferred_output\":" SAYS("a") ",\"non_preferred_output\":" SAYS("b") "}", "input.messages", "empty"},
        {"{\"input\":{\"messages\":[{\"role\":\"user\",\"content\":\"q\",\"mood\":1}]},\"preferred_output\":" SAYS("a")
         ",\"non_preferred_output\":" SAYS("b") "}", "input.messages[0].mood", "mood"},
        {"{\"input\":{\"message\":[]},\"preferred_output\":" SAYS("a") ",\"non_preferred_output\":" SAYS("b") "}", "input.message", "messages"},
        {"{" ASKS ",\"preferred_ouput\":[]}", "row", "did you mean 'preferred_output'"},
        {"{\"prompt\":\"q\",\"chosen\":\"a\"}", "rejected", "missing"},
        {"{\"chosen\":\"a\",\"rejected\":\"b\"}", "prompt", "required"},
        {"{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"a\"}", "rejected", "identical"},
        {"{\"prompt\":\"q\",\"chosen\":\"\",\"rejected\":\"b\"}", "chosen", "empty"},
        {"{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":" SAYS("b") "}", "rejected", "both"},
        {"{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\",\"completion\":\"c\"}", "completion", "two formats"},
        {"{\"chosen\":" SAYS("a") ",\"rejected\":" SAYS("b") "}", "rejected", "same message"},
        {"{\"prompt\":\"z\",\"chosen\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}],"
         "\"rejected\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"b\"}]}", "prompt", "no message"},
        {"{\"conversations\":[3]}", "conversations[0]", "object"},
        {"{\"conversations\":[{\"from\":\"human\"}]}", "conversations[0].value", "value"},
        {"{\"conversations\":[{\"from\":\"alien\",\"value\":\"x\"}]}", "conversations[0].from", "alien"},
        {"{\"conversations\":[{\"from\":\"human\",\"value\":\"x\"}]}", "conversations[0].role", "assistant"},
        {"{\"conversations\":[{\"from\":\"function_call\",\"value\":\"x\"}]}", "conversations[0]", "JSON"},
        {"{\"conversations\":[{\"from\":\"gpt\",\"value\":\"x\"}],\"tools\":\"x\"}", "tools", "array"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gd_row row;
        struct gd_error err = {0};
        if (gd_row_parse(&row, cases[i].text, strlen(cases[i].text), 7, &err))
            fail_msg("%s was accepted", cases[i].text);
        if (err.code != GD_BAD_FILE || strcmp(err.param, cases[i].param) != 0 || strncmp(err.message, "line 7: ", 8) != 0 ||
            strstr(err.message, cases[i].part) == NULL)
            fail_msg("%s: param %s: %s", cases[i].text, err.param, err.message);
        assert_null(row.tree);
    }
}

static void hostile_json_is_refused(void **state)
{
    static const struct {
        const char *text;
        size_t length;
    } cases[] = {
#define LITERAL(text) {text, sizeof(text) - 1}
        LITERAL("{\"messages\":[{\"role\":\"user\",\"content\":\"a\0b\"}]}"),
        LITERAL(CHAT("\0")),
        LITERAL("{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}"),
        LITERAL("{\"messages\":[{\"role\":\"user\",\"content\":\"\xed\xa0\x80\"}]}"),
        LITERAL("{\"messages\":[{\"role\":\"user\",\"content\":\"\\ud800\"}]}"),
        LITERAL("{\"messages\":[{\"role\":\"user\",\"content\":\"\\u0000\"}]}"),
        LITERAL("{\"messages\":[{\"role\":\"user\",\"content\":\"a\tb\"}]}"),
        LITERAL("{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"weight\":1e999}]}"),
        LITERAL("{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"weight\":0x10}]}"),
        LITERAL(CHAT("") " x"),
        LITERAL(CHAT("") CHAT("")),
        LITERAL(CHAT(",\"messages\":[]")),
        LITERAL("{\"prompt\":\"a\",\"prompt\":\"b\",\"completion\":\"c\"}"),
        LITERAL("{'prompt':'a'}"),
        LITERAL("{\"prompt\":\"a\",}"),
        LITERAL("{\"prompt\":NaN}"),
        LITERAL("\xef\xbb\xbf" CHAT("")),
#undef LITERAL
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gd_row row;
        struct gd_error err = {0};
        if (gd_row_parse(&row, cases[i].text, cases[i].length, 1, &err))
            fail_msg("case %zu was accepted", i);
        assert_int_equal(err.code, GD_BAD_FILE);
    }
}

static void deep_nesting_is_refused(void **state)
{
    struct gd_row row;
    struct gd_error err = {0};
    struct gd_buf text;
    gd_buf_init(&text, 0);
    gd_buf_append_text(&text, "{\"messages\":");
    for (int i = 0; i < 1000000; i++)
        gd_buf_append_char(&text, '[');
    for (int i = 0; i < 1000000; i++)
        gd_buf_append_char(&text, ']');
    gd_buf_append_char(&text, '}');
    assert_false(gd_row_parse(&row, text.data, text.length, 1, &err));
    assert_int_equal(err.code, GD_BAD_FILE);
    gd_buf_release(&text);
}

/* Whatever is cut off or changed, a row is either good or refused with a reason. */
static void mutated_rows_never_harm(void **state)
{
    static const char *const seeds[] = {
        CHAT(",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}]"),
        "{\"conversations\":[{\"from\":\"human\",\"value\":\"q\"},{\"from\":\"gpt\",\"value\":\"a\"}],\"tools\":\"[]\"}",
        "{\"instruction\":\"Do\",\"input\":\"it\",\"output\":\"done\",\"history\":[[\"a\",\"b\"]]}",
        "{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"a\",\"type\":\"function\",\"function\":"
        "{\"name\":\"f\",\"arguments\":\"{}\"}}],\"weight\":1}]}",
    };
    uint32_t random = 12345;
    for (size_t s = 0; s < sizeof seeds / sizeof seeds[0]; s++) {
        size_t length = strlen(seeds[s]);
        for (int round = 0; round < 4000; round++) {
            char *text = gd_strdup(seeds[s]);
            struct gd_row row;
            struct gd_error err = {0};
            for (int change = 0; change < 1 + round % 3; change++) {
                random = random * 1664525u + 1013904223u;
                text[(random >> 8) % length] = "{}[]\",:0n\\ \x80"[(random >> 24) % 12];
            }
            if (gd_row_parse(&row, text, length, 1, &err))
                gd_row_release(&row);
            else
                assert_true(err.message[0] != '\0');
            gd_free(text);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chat_rows_keep_their_messages_and_tools),
        cmocka_unit_test(rows_of_messages_bring_variables_for_the_template),
        cmocka_unit_test(pairs_keep_prompt_and_completion),
        cmocka_unit_test(alpaca_rows_become_messages),
        cmocka_unit_test(sharegpt_rows_become_messages),
        cmocka_unit_test(preference_rows_become_two_conversations),
        cmocka_unit_test(what_the_assistant_said_before_a_preference_weighs_nothing),
        cmocka_unit_test(bad_rows_are_named_by_line_and_field),
        cmocka_unit_test(hostile_json_is_refused),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(mutated_rows_never_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
