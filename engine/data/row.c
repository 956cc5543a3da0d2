/* row.c - recognises a row's format by its keys, checks it, and brings it to messages or prompt + completion. */
#include "engine/data/row.h"

#include "engine/base/alloc.h"
#include "engine/text/chat.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define GD_ROW_FORMAT_NAME(name, wire) [GD_ROW_##name] = wire,
static const char *const format_names[] = {GD_ROW_FORMAT_LIST(GD_ROW_FORMAT_NAME)};

const char *gd_row_format_name(enum gd_row_format format)
{
    return format_names[format];
}

void gd_row_release(struct gd_row *row)
{
    cJSON_Delete(row->tree);
    memset(row, 0, sizeof(*row));
}

static const char *get_text(const cJSON *object, const char *key, bool required, struct gd_error *err)
{
    const char *value = NULL;
    if (!gd_json_get_string(object, "", key, required, 0, GD_ROW_BYTES_MAX, &value, err))
        return NULL;
    return value ? value : "";
}

static bool parse_chat(struct gd_row *row, struct gd_error *err)
{
    static const char *const known[] = {"messages", "tools", "functions", "parallel_tool_calls", NULL};
    bool parallel = true;
    const cJSON *functions = NULL;
    if (!gd_json_only_known(row->tree, "", known, err) ||
        !gd_json_get_bool(row->tree, "", "parallel_tool_calls", false, &parallel, err) ||
        !gd_json_get_array(row->tree, "", "tools", false, &row->tools, err) ||
        !gd_json_get_array(row->tree, "", "functions", false, &functions, err))
        return false;
    if (functions != NULL && row->tools == NULL) { /* the deprecated spelling: each function is a tool */
        cJSON *tools = cJSON_CreateArray();
        const cJSON *function;
        cJSON_ArrayForEach(function, functions)
        {
            cJSON *tool = cJSON_CreateObject();
            cJSON_AddStringToObject(tool, "type", "function");
            cJSON_AddItemToObject(tool, "function", cJSON_Duplicate(function, true));
            cJSON_AddItemToArray(tools, tool);
        }
        cJSON_AddItemToObject(row->tree, "tools", tools);
        row->tools = tools;
    }
    row->messages = gd_json_find(row->tree, "messages");
    return gd_chat_check_messages(row->messages, "messages", true, err);
}

static bool parse_pair(struct gd_row *row, struct gd_error *err)
{
    static const char *const known[] = {"prompt", "completion", NULL};
    if (!gd_json_only_known(row->tree, "", known, err))
        return false;
    row->prompt = get_text(row->tree, "prompt", true, err);
    row->completion = row->prompt ? get_text(row->tree, "completion", true, err) : NULL;
    if (row->completion != NULL && row->completion[0] == '\0')
        return gd_fail_param(err, GD_BAD_FILE, "completion", "completion is empty: there is nothing to train on");
    return row->completion != NULL;
}

static void add_message(cJSON *messages, const char *role, const char *content)
{
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "role", role);
    cJSON_AddStringToObject(message, "content", content);
    cJSON_AddItemToArray(messages, message);
}

static bool add_history(cJSON *messages, const cJSON *tree, struct gd_error *err)
{
    const cJSON *history = NULL, *turn;
    if (!gd_json_get_array(tree, "", "history", false, &history, err))
        return false;
    cJSON_ArrayForEach(turn, history)
    {
        const cJSON *question = cJSON_GetArrayItem(turn, 0), *answer = cJSON_GetArrayItem(turn, 1);
        if (!cJSON_IsArray(turn) || !cJSON_IsString(question) || !cJSON_IsString(answer))
            return gd_fail_param(err, GD_BAD_FILE, "history", "history must be a list of [question, answer] pairs");
        add_message(messages, "user", question->valuestring);
        add_message(messages, "assistant", answer->valuestring);
    }
    return true;
}

static bool parse_alpaca(struct gd_row *row, struct gd_error *err)
{
    static const char *const known[] = {"instruction", "input", "output", "system", "history", "text", NULL};
    if (!gd_json_only_known(row->tree, "", known, err))
        return false;
    const char *instruction = get_text(row->tree, "instruction", true, err);
    const char *input = instruction ? get_text(row->tree, "input", false, err) : NULL;
    const char *output = input ? get_text(row->tree, "output", true, err) : NULL;
    const char *system = output ? get_text(row->tree, "system", false, err) : NULL;
    if (system == NULL)
        return false;
    if (output[0] == '\0')
        return gd_fail_param(err, GD_BAD_FILE, "output", "output is empty: there is nothing to train on");
    cJSON *messages = cJSON_CreateArray();
    cJSON_AddItemToObject(row->tree, "messages", messages);
    row->messages = messages;
    if (system[0] != '\0')
        add_message(messages, "system", system);
    if (!add_history(messages, row->tree, err))
        return false;
    char *question = input[0] ? gd_format("%s\n\n%s", instruction, input) : gd_strdup(instruction);
    add_message(messages, "user", question);
    add_message(messages, "assistant", output);
    gd_free(question);
    return true;
}

static const struct {
    const char *from, *role;
} sharegpt_roles[] = {{"human", "user"},       {"user", "user"},        {"gpt", "assistant"},
                      {"assistant", "assistant"}, {"model", "assistant"}, {"chatgpt", "assistant"},
                      {"system", "system"},    {"tool", "tool"},        {"observation", "tool"},
                      {"function_response", "tool"}};

static bool parse_sharegpt(struct gd_row *row, struct gd_error *err)
{
    static const char *const known[] = {"conversations", "system", "tools", "id", "source", NULL};
    const cJSON *turns = NULL, *turn;
    if (!gd_json_only_known(row->tree, "", known, err) ||
        !gd_json_get_array(row->tree, "", "conversations", true, &turns, err))
        return false;
    const char *system = get_text(row->tree, "system", false, err);
    if (system == NULL)
        return false;
    const cJSON *tools = gd_json_find(row->tree, "tools");
    if (cJSON_IsArray(tools))
        row->tools = tools;
    else if (tools != NULL && !cJSON_IsNull(tools))
        return gd_fail_param(err, GD_BAD_FILE, "tools", "tools must be a list of tools in OpenAI's shape");
    cJSON *messages = cJSON_CreateArray();
    cJSON_AddItemToObject(row->tree, "messages", messages);
    row->messages = messages;
    if (system[0] != '\0')
        add_message(messages, "system", system);
    int index = 0;
    cJSON_ArrayForEach(turn, turns)
    {
        char path[48];
        const char *from = NULL, *value = NULL, *role = NULL;
        snprintf(path, sizeof(path), "conversations[%d]", index++);
        if (!cJSON_IsObject(turn))
            return gd_fail_param(err, GD_BAD_FILE, path, "%s must be an object with 'from' and 'value'", path);
        if (!gd_json_get_string(turn, path, "from", true, 1, 64, &from, err) ||
            !gd_json_get_string(turn, path, "value", true, 0, GD_ROW_BYTES_MAX, &value, err))
            return false;
        for (size_t i = 0; i < GD_COUNT(sharegpt_roles); i++)
            if (strcmp(sharegpt_roles[i].from, from) == 0)
                role = sharegpt_roles[i].role;
        if (role == NULL)
            return gd_fail_param(err, GD_BAD_FILE, path, "%s.from is '%s'; known are human, gpt, system and tool", path, from);
        add_message(messages, role, value);
        if (strcmp(role, "tool") == 0) {
            cJSON *message = cJSON_GetArrayItem(messages, cJSON_GetArraySize(messages) - 1);
            cJSON_AddStringToObject(message, "tool_call_id", "call");
        }
    }
    return gd_chat_check_messages(messages, "conversations", true, err);
}

static const struct {
    const char *key;
    enum gd_row_format format;
    bool (*parse)(struct gd_row *row, struct gd_error *err);
} formats[] = {{"messages", GD_ROW_CHAT, parse_chat},
               {"conversations", GD_ROW_SHAREGPT, parse_sharegpt},
               {"instruction", GD_ROW_ALPACA, parse_alpaca},
               {"prompt", GD_ROW_PROMPT_COMPLETION, parse_pair},
               {"completion", GD_ROW_PROMPT_COMPLETION, parse_pair}};

static bool parse(struct gd_row *row, const char *text, size_t length, struct gd_error *err)
{
    row->tree = gd_json_parse(text, length, GD_ROW_BYTES_MAX, err);
    if (row->tree == NULL)
        return false;
    if (!cJSON_IsObject(row->tree))
        return gd_fail_param(err, GD_BAD_FILE, "row", "a row must be a JSON object");
    for (size_t i = 0; i < GD_COUNT(formats); i++) {
        if (gd_json_find(row->tree, formats[i].key) != NULL) {
            row->format = formats[i].format;
            return formats[i].parse(row, err);
        }
    }
    return gd_fail_param(err, GD_BAD_FILE, "row",
                         "no known row format: give 'messages', 'prompt' and 'completion', 'instruction' and 'output', or "
                         "'conversations'");
}

bool gd_row_parse(struct gd_row *row, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct gd_error why = {0};
    memset(row, 0, sizeof(*row));
    if (parse(row, text, length, &why))
        return true;
    gd_row_release(row);
    return gd_fail_param(err, GD_BAD_FILE, why.param[0] ? why.param : "row", "line %lld: %s", (long long)line, why.message);
}
