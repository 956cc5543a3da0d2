/* Alpaca and ShareGPT rows as OpenAI messages. */
#include "engine/base/alloc.h"
#include "engine/data/row_format.h"
#include "engine/text/chat.h"
#include <stdio.h>
#include <string.h>

static cJSON *begin_messages(struct gd_row *row, const char *system)
{
    cJSON *messages = cJSON_CreateArray();
    cJSON_AddItemToObject(row->tree, "messages", messages);
    row->messages = messages;
    if (system[0] != '\0')
        gd_row_add_message(messages, "system", system);
    return messages;
}

static bool add_history(cJSON *messages, const cJSON *tree, struct gd_error *err)
{
    const cJSON *history = NULL, *turn;
    char path[32];
    int index = 0;
    if (!gd_json_get_array(tree, "", "history", false, &history, err))
        return false;
    cJSON_ArrayForEach(turn, history) {
        const cJSON *question = cJSON_GetArrayItem(turn, 0), *answer = cJSON_GetArrayItem(turn, 1);
        snprintf(path, sizeof path, "history[%d]", index++);
        if (!cJSON_IsArray(turn) || cJSON_GetArraySize(turn) != 2 || !cJSON_IsString(question) || !cJSON_IsString(answer))
            return gd_fail_param(err, GD_INVALID, path, "%s must be [question, answer], two strings", path);
        gd_row_add_message(messages, "user", question->valuestring);
        gd_row_add_message(messages, "assistant", answer->valuestring);
    }
    return true;
}

bool gd_row_parse_alpaca(struct gd_row *row, struct gd_error *err)
{
    static const char *const known[] = {"instruction", "input", "output", "system", "history", "chat_template_kwargs", NULL};
    const char *instruction, *input, *output, *system;
    if (!gd_row_no_slips(row->tree, "", known, err) ||
        !gd_row_text(row->tree, "", "instruction", true, &instruction, err) ||
        !gd_row_text(row->tree, "", "input", false, &input, err) ||
        !gd_row_text(row->tree, "", "output", true, &output, err) ||
        !gd_row_text(row->tree, "", "system", false, &system, err))
        return false;
    if (output[0] == '\0')
        return gd_fail_param(err, GD_INVALID, "output", "output is empty: there is nothing to learn from this row");
    cJSON *messages = begin_messages(row, system);
    if (!add_history(messages, row->tree, err))
        return false;
    char *question = input[0] != '\0' ? gd_format("%s\n\n%s", instruction, input) : gd_strdup(instruction);
    gd_row_add_message(messages, "user", question);
    gd_row_add_message(messages, "assistant", output);
    gd_free(question);
    return gd_chat_check_messages(messages, "history", true, err);
}

static const char *role_of(const char *from)
{
    static const struct {
        const char *from, *role;
    } roles[] = {
        {"human", "user"},       {"user", "user"},         {"gpt", "assistant"},      {"assistant", "assistant"},
        {"model", "assistant"},  {"chatgpt", "assistant"}, {"bot", "assistant"},      {"system", "system"},
        {"tool", "tool"},        {"observation", "tool"},  {"function_response", "tool"},
        {"function_call", "function_call"},
    };
    for (size_t i = 0; i < GD_COUNT(roles); i++) {
        if (strcmp(roles[i].from, from) == 0)
            return roles[i].role;
    }
    return NULL;
}

/* {"from":"function_call","value":"{\"name\":..,\"arguments\":{..}}"} is an assistant's tool call. */
static bool add_function_call(cJSON *messages, const char *value, const char *path, struct gd_error *err)
{
    struct gd_error why = {0};
    cJSON *function = gd_json_parse(value, strlen(value), GD_ROW_BYTES_MAX, &why);
    const cJSON *arguments = gd_json_find(function, "arguments");
    if (!cJSON_IsString(gd_json_find(function, "name")) || !(cJSON_IsObject(arguments) || cJSON_IsString(arguments))) {
        cJSON_Delete(function);
        return gd_fail_param(err, GD_INVALID, path,
                             "%s: the value of a function_call must be JSON with name and arguments", path);
    }
    cJSON *message = cJSON_CreateObject(), *calls = cJSON_CreateArray(), *call = cJSON_CreateObject();
    cJSON_AddStringToObject(call, "type", "function");
    cJSON_AddItemToObject(call, "function", function);
    cJSON_AddItemToArray(calls, call);
    cJSON_AddStringToObject(message, "role", "assistant");
    cJSON_AddNullToObject(message, "content");
    cJSON_AddItemToObject(message, "tool_calls", calls);
    cJSON_AddItemToArray(messages, message);
    return true;
}

static bool add_turn(cJSON *messages, const cJSON *turn, const char *path, struct gd_error *err)
{
    static const char *const known[] = {"from", "value", "weight", NULL};
    const char *from = NULL, *value = NULL;
    if (!cJSON_IsObject(turn))
        return gd_fail_param(err, GD_INVALID, path, "%s must be an object with from and value", path);
    if (gd_json_find(turn, "role") != NULL && gd_json_find(turn, "from") == NULL) { /* OpenAI's message under another key */
        cJSON_AddItemToArray(messages, cJSON_Duplicate(turn, true));
        return true;
    }
    if (!gd_row_no_slips(turn, path, known, err) || !gd_json_get_string(turn, path, "from", true, 1, 64, &from, err) ||
        !gd_json_get_string(turn, path, "value", true, 0, GD_ROW_BYTES_MAX, &value, err))
        return false;
    const char *role = role_of(from);
    char full[64];
    snprintf(full, sizeof full, "%.40s.from", path);
    if (role == NULL)
        return gd_fail_param(err, GD_INVALID, full, "%s is \"%s\"; it must be human, gpt, system, tool or a synonym", full,
                             from);
    if (strcmp(role, "function_call") == 0)
        return add_function_call(messages, value, path, err);
    gd_row_add_message(messages, role, value);
    const cJSON *weight = gd_json_find(turn, "weight");
    if (weight != NULL)
        cJSON_AddItemToObject(cJSON_GetArrayItem(messages, cJSON_GetArraySize(messages) - 1), "weight",
                              cJSON_Duplicate(weight, true));
    return true;
}

/* Tools are an array, or a string that holds one; functions without OpenAI's wrapper get it. */
static bool adopt_tools(struct gd_row *row, struct gd_error *err)
{
    const cJSON *tools = gd_json_find(row->tree, "tools");
    struct gd_error why = {0};
    if (tools == NULL || cJSON_IsNull(tools) || (cJSON_IsString(tools) && tools->valuestring[0] == '\0'))
        return true;
    cJSON *parsed = cJSON_IsString(tools) ? gd_json_parse(tools->valuestring, strlen(tools->valuestring), GD_ROW_BYTES_MAX, &why)
                                          : cJSON_Duplicate(tools, true);
    bool is_array = cJSON_IsArray(parsed);
    if (is_array)
        gd_row_adopt_functions(row, parsed);
    cJSON_Delete(parsed);
    if (!is_array)
        return gd_fail_param(err, GD_INVALID, "tools", "tools must be an array of tools, or a string that holds one");
    return gd_chat_check_tools(row->tools, "tools", err);
}

bool gd_row_parse_sharegpt(struct gd_row *row, struct gd_error *err)
{
    static const char *const known[] = {"conversations", "system", "tools", "chat_template_kwargs", NULL};
    const cJSON *turns = NULL, *turn;
    const char *system;
    char path[48];
    int index = 0;
    if (!gd_row_no_slips(row->tree, "", known, err) ||
        !gd_json_get_array(row->tree, "", "conversations", true, &turns, err) ||
        !gd_row_text(row->tree, "", "system", false, &system, err) || !adopt_tools(row, err))
        return false;
    cJSON *messages = begin_messages(row, system);
    cJSON_ArrayForEach(turn, turns) {
        snprintf(path, sizeof path, "conversations[%d]", index++);
        if (!add_turn(messages, turn, path, err))
            return false;
    }
    if (index == 0)
        return gd_fail_param(err, GD_INVALID, "conversations", "conversations is empty: at least one turn is needed");
    return gd_chat_check_messages(messages, "conversations", true, err);
}
