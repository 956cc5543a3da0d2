/* Every field of a completion request: taken, listed as ignored, or refused by name. */
#include "engine/base/alloc.h"
#include "server/completion.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define CHAT "\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define TEXT "\"model\":\"m\",\"prompt\":\"hi\""

static cJSON *parse_text(const char *text)
{
    struct gd_error err = {0};
    cJSON *json = gd_json_parse(text, strlen(text), 1 << 20, &err);
    if (json == NULL)
        fail_msg("%s: %s", text, err.message);
    return json;
}

static void assert_refused(bool chat, const char *members, enum gd_code code, const char *param)
{
    char *text = gd_format("{%s,%s}", chat ? CHAT : TEXT, members);
    cJSON *body = parse_text(text);
    struct gd_completion_ask ask;
    struct gd_error err = {0};
    if (gd_completion_parse(&ask, chat, body, &err))
        fail_msg("accepted: %s", members);
    if (err.code != code || strcmp(err.param, param) != 0)
        fail_msg("%s: code %s param '%s': %s", members, gd_code_wire(err.code), err.param, err.message);
    cJSON_Delete(body);
    gd_free(text);
}

static void what_is_out_of_range_is_refused_by_name(void **state)
{
    static const struct {
        const char *members, *param;
    } both[] = {
        {"\"temperature\":2.1", "temperature"},       {"\"temperature\":\"1\"", "temperature"},
        {"\"temperature\":-0.1", "temperature"},      {"\"top_p\":1.5", "top_p"},
        {"\"n\":0", "n"},                             {"\"n\":129", "n"},
        {"\"n\":1.5", "n"},                           {"\"frequency_penalty\":2.5", "frequency_penalty"},
        {"\"presence_penalty\":-3", "presence_penalty"}, {"\"seed\":\"x\"", "seed"},
        {"\"seed\":1e300", "seed"},                   {"\"stop\":5", "stop"},
        {"\"stop\":[\"a\",\"\"]", "stop[1]"},         {"\"stop\":[1]", "stop[0]"},               {"\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]", "stop"},
        {"\"logit_bias\":{\"a\":1}", "logit_bias"},   {"\"logit_bias\":{\"5\":101}", "logit_bias"},
        {"\"logit_bias\":{\"-1\":1}", "logit_bias"},  {"\"logit_bias\":[]", "logit_bias"},
        {"\"stream\":1", "stream"},                   {"\"stream_options\":{}", "stream_options"},
        {"\"max_tokens\":-1", "max_tokens"},          {"\"max_tokens\":3000000000", "max_tokens"},
        {"\"top_k\":-1", "top_k"},                    {"\"min_p\":2", "min_p"},
        {"\"repetition_penalty\":0", "repetition_penalty"}, {"\"ignore_eos\":1", "ignore_eos"},
    };
    for (size_t i = 0; i < GD_COUNT(both); i++) {
        assert_refused(true, both[i].members, GD_INVALID, both[i].param);
        assert_refused(false, both[i].members, GD_INVALID, both[i].param);
    }
    assert_refused(true, "\"logprobs\":5", GD_INVALID, "logprobs");
    assert_refused(true, "\"top_logprobs\":2", GD_INVALID, "top_logprobs");
    assert_refused(true, "\"logprobs\":true,\"top_logprobs\":21", GD_INVALID, "top_logprobs");
    assert_refused(true, "\"max_tokens\":0", GD_INVALID, "max_tokens");
    assert_refused(true, "\"max_tokens\":5,\"max_completion_tokens\":6", GD_INVALID, "max_tokens");
    assert_refused(false, "\"logprobs\":true", GD_INVALID, "logprobs");
    assert_refused(false, "\"logprobs\":6", GD_INVALID, "logprobs");
    assert_refused(false, "\"best_of\":2,\"n\":3", GD_INVALID, "best_of");
    assert_refused(false, "\"best_of\":3,\"stream\":true", GD_INVALID, "best_of");
    assert_refused(false, "\"best_of\":21", GD_INVALID, "best_of");
}

static void what_would_change_the_answer_is_refused_by_name(void **state)
{
    assert_refused(true, "\"response_format\":{\"type\":\"json_object\"}", GD_UNSUPPORTED, "response_format.type");
    assert_refused(true, "\"response_format\":{}", GD_MISSING, "response_format.type");
    assert_refused(true, "\"tool_choice\":\"required\"", GD_UNSUPPORTED, "tool_choice");
    assert_refused(true, "\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}}", GD_UNSUPPORTED, "tool_choice");
    assert_refused(true, "\"tool_choice\":\"maybe\"", GD_INVALID, "tool_choice");
    assert_refused(true, "\"tools\":[{\"type\":\"custom\",\"custom\":{\"name\":\"x\"}}]", GD_UNSUPPORTED, "tools[0].type");
    assert_refused(true, "\"tools\":[{\"type\":\"function\"}]", GD_MISSING, "tools[0].function");
    assert_refused(true, "\"tools\":[5]", GD_INVALID, "tools[0]");
    assert_refused(true, "\"audio\":{\"voice\":\"x\"}", GD_UNSUPPORTED, "audio");
    assert_refused(true, "\"modalities\":[\"text\",\"audio\"]", GD_UNSUPPORTED, "modalities");
    assert_refused(true, "\"functions\":[]", GD_UNSUPPORTED, "functions");
    assert_refused(true, "\"web_search_options\":{}", GD_UNSUPPORTED, "web_search_options");
    assert_refused(false, "\"suffix\":\"end\"", GD_UNSUPPORTED, "suffix");
}

static struct gd_completion_ask accept(bool chat, const char *text, cJSON **body)
{
    struct gd_completion_ask ask;
    struct gd_error err = {0};
    *body = parse_text(text);
    if (!gd_completion_parse(&ask, chat, *body, &err))
        fail_msg("%s: %s", text, err.message);
    return ask;
}

static void fields_without_effect_are_listed(void **state)
{
    cJSON *body;
    struct gd_completion_ask ask = accept(true, "{" CHAT ",\"user\":\"u\",\"store\":true,\"verbosity\":null,\"a\\nb\":1,"
                                                "\"tool_choice\":\"none\",\"response_format\":{\"type\":\"text\"}}", &body);
    assert_string_equal(ask.ignored, "user, store, a?b");
    gd_completion_ask_release(&ask);
    cJSON_Delete(body);

    struct gd_buf many = {0};
    gd_buf_append_text(&many, "{" TEXT);
    for (int i = 0; i < 200; i++)
        gd_buf_printf(&many, ",\"field_%d\":1", i);
    gd_buf_append_text(&many, "}");
    ask = accept(false, many.data, &body);
    assert_true(strlen(ask.ignored) < 1100);
    assert_non_null(strstr(ask.ignored, " more"));
    gd_completion_ask_release(&ask);
    cJSON_Delete(body);
    gd_buf_release(&many);
}

static void defaults_are_the_documented_ones(void **state)
{
    cJSON *body;
    struct gd_completion_ask ask = accept(true, "{" CHAT "}", &body);
    assert_true(cJSON_IsNull(gd_json_find(ask.sampling, "max_tokens")));
    assert_int_equal(gd_json_find(ask.sampling, "logprobs")->valueint, -1);
    assert_true(gd_json_find(ask.sampling, "temperature")->valuedouble == 1);
    assert_true(strlen(gd_json_find(ask.sampling, "seed")->valuestring) > 0);
    assert_int_equal(ask.best_of, 1);
    assert_null(ask.ignored);
    gd_completion_ask_release(&ask);
    cJSON_Delete(body);

    ask = accept(false, "{" TEXT ",\"best_of\":4,\"seed\":-7,\"stop\":\"x\"}", &body);
    assert_int_equal(gd_json_find(ask.sampling, "max_tokens")->valueint, 16);
    assert_int_equal(gd_json_find(ask.sampling, "logprobs")->valueint, 0); /* for the ranking */
    assert_int_equal(ask.logprobs, -1);
    assert_string_equal(gd_json_find(ask.sampling, "seed")->valuestring, "-7");
    assert_int_equal(cJSON_GetArraySize(gd_json_find(ask.sampling, "stop")), 1);
    gd_completion_ask_release(&ask);
    cJSON_Delete(body);
}

static void assert_prompts(const char *prompt, int count)
{
    cJSON *body;
    char *text = gd_format("{\"model\":\"m\",\"prompt\":%s}", prompt);
    struct gd_completion_ask ask = accept(false, text, &body);
    assert_int_equal(ask.prompt_count, count);
    gd_completion_ask_release(&ask);
    cJSON_Delete(body);
    gd_free(text);
}

static void assert_bad_prompt(const char *prompt, enum gd_code code, const char *param)
{
    char *text = gd_format("{\"model\":\"m\",\"prompt\":%s}", prompt);
    cJSON *body = parse_text(text);
    struct gd_completion_ask ask;
    struct gd_error err = {0};
    assert_false(gd_completion_parse(&ask, false, body, &err));
    assert_int_equal(err.code, code);
    assert_string_equal(err.param, param);
    cJSON_Delete(body);
    gd_free(text);
}

static void prompts_come_in_four_shapes(void **state)
{
    assert_prompts("\"a\"", 1);
    assert_prompts("[\"a\",\"b\",\"\"]", 3);
    assert_prompts("[1,2,3]", 1);
    assert_prompts("[[1],[2,3]]", 2);
    assert_bad_prompt("null", GD_MISSING, "prompt");
    assert_bad_prompt("5", GD_INVALID, "prompt");
    assert_bad_prompt("[]", GD_INVALID, "prompt");
    assert_bad_prompt("[1,-2]", GD_INVALID, "prompt");
    assert_bad_prompt("[1,2.5]", GD_INVALID, "prompt");
    assert_bad_prompt("[\"a\",1]", GD_INVALID, "prompt[1]");
    assert_bad_prompt("[[1],[]]", GD_INVALID, "prompt[1]");
    assert_bad_prompt("[[1],[3000000000]]", GD_INVALID, "prompt[1]");
    assert_bad_prompt("[{}]", GD_INVALID, "prompt[0]");
}

static void bytes_that_are_no_character_are_shown(void **state)
{
    cJSON *token = parse_text("{\"token\":3,\"piece\":[240,159],\"logprob\":-0.1,\"top\":[[3,[240,159],-0.1],[4,\"x\",-2.5]]}");
    cJSON *chat = gd_completion_logprobs(true), *text = gd_completion_logprobs(false);
    gd_completion_logprobs_add(chat, true, token, 1, 0);
    gd_completion_logprobs_add(text, false, token, 2, 9);
    char *printed = gd_json_print(chat);
    assert_string_equal(printed, "{\"content\":[{\"token\":\"\\\\xf0\\\\x9f\",\"logprob\":-0.1,\"bytes\":[240,159],\"top_logprobs\":"
                                 "[{\"token\":\"\\\\xf0\\\\x9f\",\"logprob\":-0.1,\"bytes\":[240,159]}]}],\"refusal\":null}");
    gd_free(printed);
    printed = gd_json_print(text);
    assert_string_equal(printed, "{\"tokens\":[\"bytes:\\\\xf0\\\\x9f\"],\"token_logprobs\":[-0.1],\"top_logprobs\":"
                                 "[{\"bytes:\\\\xf0\\\\x9f\":-0.1,\"x\":-2.5}],\"text_offset\":[9]}");
    gd_free(printed);
    assert_int_equal(gd_completion_piece_characters(token), 1);
    cJSON_Delete(token);
    token = parse_text("{\"token\":3,\"piece\":[152,128],\"logprob\":null,\"top\":[]}");
    assert_int_equal(gd_completion_piece_characters(token), 0);
    cJSON_Delete(token);
    cJSON_Delete(chat);
    cJSON_Delete(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_out_of_range_is_refused_by_name),
        cmocka_unit_test(what_would_change_the_answer_is_refused_by_name),
        cmocka_unit_test(fields_without_effect_are_listed),
        cmocka_unit_test(defaults_are_the_documented_ones),
        cmocka_unit_test(prompts_come_in_four_shapes),
        cmocka_unit_test(bytes_that_are_no_character_are_shown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
