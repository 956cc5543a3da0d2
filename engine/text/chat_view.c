#include "engine/text/chat_view.h"
#include "engine/base/alloc.h"
#include "engine/base/buf.h"
#include <string.h>

/* Text parts (and an assistant's refusals) one after another. */
static cJSON *joined_parts(const cJSON *parts)
{
    struct gd_buf text;
    const cJSON *part;
    gd_buf_init(&text, 0);
    cJSON_ArrayForEach(part, parts) {
        const cJSON *value = gd_json_find(part, "text");
        if (value == NULL)
            value = gd_json_find(part, "refusal");
        gd_buf_append_text(&text, value->valuestring);
    }
    cJSON *joined = cJSON_CreateString(text.data == NULL ? "" : text.data);
    gd_buf_release(&text);
    return joined;
}

static cJSON *view_content(const cJSON *message, const struct gd_chat_habits *habits)
{
    const cJSON *content = gd_json_find(message, "content"), *refusal = gd_json_find(message, "refusal");
    if (cJSON_IsArray(content))
        return joined_parts(content);
    if (cJSON_IsString(content))
        return cJSON_CreateString(content->valuestring);
    if (cJSON_IsString(refusal))
        return cJSON_CreateString(refusal->valuestring);
    return habits->empty_for_null ? cJSON_CreateString("") : cJSON_CreateNull();
}

static cJSON *view_arguments(const cJSON *arguments, const struct gd_chat_habits *habits)
{
    if (cJSON_IsString(arguments) && !habits->arguments_as_text) {
        struct gd_error ignored = {0};
        size_t length = strlen(arguments->valuestring);
        cJSON *parsed = gd_json_parse(arguments->valuestring, length, length, &ignored);
        return parsed != NULL ? parsed : cJSON_CreateString(arguments->valuestring);
    }
    if (cJSON_IsObject(arguments) && habits->arguments_as_text) {
        char *text = gd_json_print(arguments);
        cJSON *string = cJSON_CreateString(text);
        gd_free(text);
        return string;
    }
    return cJSON_Duplicate(arguments, true);
}

static cJSON *view_function(const cJSON *function, const struct gd_chat_habits *habits)
{
    cJSON *view = cJSON_CreateObject();
    const cJSON *item;
    cJSON_ArrayForEach(item, function) {
        bool arguments = strcmp(item->string, "arguments") == 0;
        cJSON_AddItemToObject(view, item->string,
                              arguments ? view_arguments(item, habits) : cJSON_Duplicate(item, true));
    }
    return view;
}

static cJSON *view_tool_calls(const cJSON *calls, const struct gd_chat_habits *habits)
{
    cJSON *view = cJSON_CreateArray();
    const cJSON *call, *item;
    cJSON_ArrayForEach(call, calls) {
        cJSON *one = cJSON_CreateObject();
        cJSON_ArrayForEach(item, call) {
            bool function = strcmp(item->string, "function") == 0;
            cJSON_AddItemToObject(one, item->string,
                                  function ? view_function(item, habits) : cJSON_Duplicate(item, true));
        }
        cJSON_AddItemToArray(view, one);
    }
    return view;
}

/* The deprecated function_call as the one tool call that it means. */
static cJSON *view_function_call(const cJSON *function, const struct gd_chat_habits *habits)
{
    cJSON *calls = cJSON_CreateArray(), *call = cJSON_CreateObject();
    cJSON_AddStringToObject(call, "type", "function");
    cJSON_AddItemToObject(call, "function", view_function(function, habits));
    cJSON_AddItemToArray(calls, call);
    return calls;
}

/* Reasoning goes by three names; templates read the first or the second. */
static void add_reasoning(cJSON *view, const cJSON *message)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        const cJSON *reasoning = gd_json_find(message, names[i]);
        if (!cJSON_IsString(reasoning))
            continue;
        cJSON_AddStringToObject(view, "reasoning_content", reasoning->valuestring);
        const cJSON *thinking = gd_json_find(message, "thinking");
        cJSON_AddStringToObject(view, "thinking",
                                cJSON_IsString(thinking) ? thinking->valuestring : reasoning->valuestring);
        return;
    }
}

static const char *view_role(const char *role, const struct gd_chat_habits *habits)
{
    if (strcmp(role, "developer") == 0 && !habits->keeps_developer)
        return "system";
    return strcmp(role, "function") == 0 ? "tool" : role;
}

static cJSON *view_message(const cJSON *message, const struct gd_chat_habits *habits)
{
    static const char *const kept[] = {"name", "tool_call_id"};
    cJSON *view = cJSON_CreateObject();
    cJSON_AddStringToObject(view, "role", view_role(gd_json_find(message, "role")->valuestring, habits));
    cJSON_AddItemToObject(view, "content", view_content(message, habits));
    for (size_t i = 0; i < GD_COUNT(kept); i++) {
        const cJSON *value = gd_json_find(message, kept[i]);
        if (cJSON_IsString(value))
            cJSON_AddStringToObject(view, kept[i], value->valuestring);
    }
    const cJSON *calls = gd_json_find(message, "tool_calls"), *call = gd_json_find(message, "function_call");
    if (cJSON_IsArray(calls))
        cJSON_AddItemToObject(view, "tool_calls", view_tool_calls(calls, habits));
    else if (cJSON_IsObject(call))
        cJSON_AddItemToObject(view, "tool_calls", view_function_call(call, habits));
    add_reasoning(view, message);
    return view;
}

cJSON *gd_chat_view(const cJSON *messages, const struct gd_chat_habits *habits)
{
    cJSON *view = cJSON_CreateArray();
    const cJSON *message;
    cJSON_ArrayForEach(message, messages)
        cJSON_AddItemToArray(view, view_message(message, habits));
    return view;
}
