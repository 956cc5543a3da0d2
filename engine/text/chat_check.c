/* Shape of messages and tools. */
#include "engine/text/chat.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

#define PATH_BYTES 96
#define WEIGHT_MAX 1000.0

static const char *const roles[] = {"developer", "system", "user", "assistant", "tool", "function"};

static const char *below(char out[PATH_BYTES], const char *path, const char *key)
{
    (void)snprintf(out, PATH_BYTES, "%.60s.%.30s", path, key);
    return out;
}

static const char *what(const cJSON *value)
{
    return value == NULL           ? "nothing"
         : cJSON_IsNull(value)     ? "null"
         : cJSON_IsString(value)   ? "a string"
         : cJSON_IsNumber(value)   ? "a number"
         : cJSON_IsBool(value)     ? "true or false"
         : cJSON_IsArray(value)    ? "an array"
                                   : "an object";
}

static bool present(const cJSON *value)
{
    return value != NULL && !cJSON_IsNull(value);
}

static bool fail_at(struct gd_error *err, enum gd_code code, const char *path, const char *key, const char *text)
{
    char full[PATH_BYTES];
    return gd_fail_param(err, code, below(full, path, key), "%s %s", full, text);
}

static bool check_string(const cJSON *object, const char *path, const char *key, bool required, struct gd_error *err)
{
    const cJSON *value = gd_json_find(object, key);
    char full[PATH_BYTES];
    if (!present(value))
        return !required || fail_at(err, GD_MISSING, path, key, "is missing: it must be a string");
    return cJSON_IsString(value) ||
           gd_fail_param(err, GD_INVALID, below(full, path, key), "%s must be a string, got %s", full, what(value));
}

static bool check_part(const cJSON *part, const char *path, bool assistant, struct gd_error *err)
{
    const cJSON *type = gd_json_find(part, "type");
    if (!cJSON_IsObject(part))
        return gd_fail_param(err, GD_INVALID, path, "%s must be an object {\"type\":\"text\",\"text\":...}, got %s", path,
                             what(part));
    if (cJSON_IsString(type) && strcmp(type->valuestring, "text") == 0)
        return check_string(part, path, "text", true, err);
    if (assistant && cJSON_IsString(type) && strcmp(type->valuestring, "refusal") == 0)
        return check_string(part, path, "refusal", true, err);
    if (!cJSON_IsString(type))
        return fail_at(err, GD_MISSING, path, "type", "is missing: it must be \"text\"");
    return gd_fail_param(err, GD_UNSUPPORTED, path, "%s has type \"%.40s\"; only text parts are supported", path,
                         type->valuestring);
}

static bool check_parts(const cJSON *parts, const char *path, bool assistant, struct gd_error *err)
{
    char full[PATH_BYTES];
    const cJSON *part;
    int index = 0;
    if (cJSON_GetArraySize(parts) == 0)
        return gd_fail_param(err, GD_INVALID, path, "%s is an empty array of parts", path);
    cJSON_ArrayForEach(part, parts) {
        (void)snprintf(full, sizeof full, "%.80s[%d]", path, index++);
        if (!check_part(part, full, assistant, err))
            return false;
    }
    return true;
}

static bool check_content(const cJSON *message, const char *path, bool assistant, struct gd_error *err)
{
    const cJSON *content = gd_json_find(message, "content");
    char full[PATH_BYTES];
    below(full, path, "content");
    if (cJSON_IsString(content))
        return true;
    if (cJSON_IsArray(content))
        return check_parts(content, full, assistant, err);
    bool speaks_otherwise = assistant && (present(gd_json_find(message, "tool_calls")) ||
                                          present(gd_json_find(message, "function_call")) ||
                                          present(gd_json_find(message, "refusal")));
    if (!present(content) && speaks_otherwise)
        return true;
    if (!present(content))
        return gd_fail_param(err, GD_MISSING, full, "%s is %s: it must be a string or text parts%s", full,
                             content == NULL ? "missing" : "null",
                             assistant ? " (null is possible beside tool_calls)" : "");
    return gd_fail_param(err, GD_INVALID, full, "%s must be a string or an array of text parts, got %s", full,
                         what(content));
}

static bool check_function(const cJSON *function, const char *path, struct gd_error *err)
{
    char full[PATH_BYTES];
    if (!cJSON_IsObject(function))
        return gd_fail_param(err, function == NULL ? GD_MISSING : GD_INVALID, path, "%s must be an object, got %s", path,
                             what(function));
    if (!check_string(function, path, "name", true, err))
        return false;
    const cJSON *arguments = gd_json_find(function, "arguments");
    if (cJSON_IsString(arguments) || cJSON_IsObject(arguments))
        return true;
    return gd_fail_param(err, arguments == NULL ? GD_MISSING : GD_INVALID, below(full, path, "arguments"),
                         "%s must be a string of JSON or an object, got %s", full, what(arguments));
}

static bool check_tool_call(const cJSON *call, const char *path, struct gd_error *err)
{
    const cJSON *type = gd_json_find(call, "type");
    char full[PATH_BYTES];
    if (!cJSON_IsObject(call))
        return gd_fail_param(err, GD_INVALID, path, "%s must be an object, got %s", path, what(call));
    if (present(type) && (!cJSON_IsString(type) || strcmp(type->valuestring, "function") != 0))
        return fail_at(err, GD_INVALID, path, "type", "must be \"function\"");
    return check_string(call, path, "id", false, err) &&
           check_function(gd_json_find(call, "function"), below(full, path, "function"), err);
}

static bool check_tool_calls(const cJSON *message, const char *path, bool assistant, struct gd_error *err)
{
    const cJSON *calls = gd_json_find(message, "tool_calls"), *function = gd_json_find(message, "function_call"), *call;
    char full[PATH_BYTES];
    int index = 0;
    if (!present(calls) && !present(function))
        return true;
    if (!assistant)
        return fail_at(err, GD_INVALID, path, present(calls) ? "tool_calls" : "function_call",
                       "belongs to assistant messages only");
    if (present(function) && !check_function(function, below(full, path, "function_call"), err))
        return false;
    if (!present(calls))
        return true;
    if (!cJSON_IsArray(calls) || cJSON_GetArraySize(calls) == 0)
        return fail_at(err, GD_INVALID, path, "tool_calls", "must be an array of at least one call");
    cJSON_ArrayForEach(call, calls) {
        (void)snprintf(full, sizeof full, "%.60s.tool_calls[%d]", path, index++);
        if (!check_tool_call(call, full, err))
            return false;
    }
    return true;
}

static bool check_weight(const cJSON *message, const char *path, bool assistant, struct gd_error *err)
{
    const cJSON *weight = gd_json_find(message, "weight");
    char full[PATH_BYTES];
    if (!present(weight))
        return true;
    if (!assistant)
        return fail_at(err, GD_INVALID, path, "weight", "belongs to assistant messages only");
    if (cJSON_IsNumber(weight) && weight->valuedouble >= 0 && weight->valuedouble <= WEIGHT_MAX)
        return true;
    if (cJSON_IsNumber(weight))
        return gd_fail_param(err, GD_INVALID, below(full, path, "weight"), "%s is %g; it must be between 0 and %g", full,
                             weight->valuedouble, WEIGHT_MAX);
    return gd_fail_param(err, GD_INVALID, below(full, path, "weight"), "%s must be a number, got %s", full, what(weight));
}

static bool check_role(const cJSON *message, const char *path, struct gd_error *err)
{
    const cJSON *role = gd_json_find(message, "role");
    char full[PATH_BYTES];
    if (!check_string(message, path, "role", true, err))
        return false;
    for (size_t i = 0; i < GD_COUNT(roles); i++) {
        if (strcmp(role->valuestring, roles[i]) == 0)
            return true;
    }
    return gd_fail_param(err, GD_INVALID, below(full, path, "role"),
                         "%s is \"%.40s\"; it must be developer, system, user, assistant, tool or function", full,
                         role->valuestring);
}

static bool check_message(const cJSON *message, const char *path, bool for_training, struct gd_error *err)
{
    static const char *const known[] = {"role", "content", "name", "tool_calls", "tool_call_id", "function_call",
                                        "weight", "refusal", "audio", "annotations", "reasoning_content", "reasoning",
                                        "thinking", NULL};
    static const char *const strings[] = {"name", "tool_call_id", "refusal", "reasoning_content", "reasoning",
                                          "thinking"};
    if (!cJSON_IsObject(message))
        return gd_fail_param(err, GD_INVALID, path, "%s must be an object with role and content, got %s", path,
                             what(message));
    if (for_training && !gd_json_only_known(message, path, known, err))
        return false;
    if (!check_role(message, path, err))
        return false;
    bool assistant = strcmp(gd_json_find(message, "role")->valuestring, "assistant") == 0;
    for (size_t i = 0; i < GD_COUNT(strings); i++) {
        if (!check_string(message, path, strings[i], false, err))
            return false;
    }
    if (for_training && present(gd_json_find(message, "audio")))
        return fail_at(err, GD_UNSUPPORTED, path, "audio", "is not supported: only text can be trained");
    return check_tool_calls(message, path, assistant, err) && check_content(message, path, assistant, err) &&
           check_weight(message, path, assistant, err);
}

static bool check_training(const cJSON *messages, const char *path, struct gd_error *err)
{
    const cJSON *message, *last = NULL;
    char full[PATH_BYTES];
    bool trains = false;
    int count = 0;
    cJSON_ArrayForEach(message, messages) {
        const cJSON *weight = gd_json_find(message, "weight");
        bool assistant = strcmp(gd_json_find(message, "role")->valuestring, "assistant") == 0;
        trains |= assistant && (!present(weight) || weight->valuedouble > 0);
        last = message;
        count++;
    }
    (void)snprintf(full, sizeof full, "%.60s[%d].role", path, count - 1);
    if (strcmp(gd_json_find(last, "role")->valuestring, "assistant") != 0)
        return gd_fail_param(err, GD_INVALID, full, "%s is \"%s\"; the last message of a training row must be the "
                             "assistant's", full, gd_json_find(last, "role")->valuestring);
    return trains || gd_fail_param(err, GD_INVALID, path, "%s: no assistant message has a weight above 0, so there is "
                                   "nothing to learn from this row", path);
}

bool gd_chat_check_messages(const cJSON *messages, const char *path, bool for_training, struct gd_error *err)
{
    char full[PATH_BYTES];
    const cJSON *message;
    int index = 0, count = cJSON_IsArray(messages) ? cJSON_GetArraySize(messages) : 0;
    if (!cJSON_IsArray(messages))
        return gd_fail_param(err, present(messages) ? GD_INVALID : GD_MISSING, path,
                             "%s must be an array of messages, got %s", path, what(messages));
    if (count == 0)
        return gd_fail_param(err, GD_INVALID, path, "%s is empty: at least one message is needed", path);
    if (count > GD_CHAT_MESSAGES_MAX)
        return gd_fail_param(err, GD_INVALID, path, "%s holds %d messages; at most %d are accepted", path, count,
                             GD_CHAT_MESSAGES_MAX);
    cJSON_ArrayForEach(message, messages) {
        (void)snprintf(full, sizeof full, "%.60s[%d]", path, index++);
        if (!check_message(message, full, for_training, err))
            return false;
    }
    return !for_training || check_training(messages, path, err);
}

static bool check_tool(const cJSON *tool, const char *path, struct gd_error *err)
{
    const cJSON *type = gd_json_find(tool, "type"), *function = gd_json_find(tool, "function");
    char full[PATH_BYTES];
    below(full, path, "function");
    if (!cJSON_IsObject(tool))
        return gd_fail_param(err, GD_INVALID, path, "%s must be an object, got %s", path, what(tool));
    if (!cJSON_IsString(type) || strcmp(type->valuestring, "function") != 0)
        return fail_at(err, type == NULL ? GD_MISSING : GD_INVALID, path, "type", "must be \"function\"");
    if (!cJSON_IsObject(function))
        return gd_fail_param(err, function == NULL ? GD_MISSING : GD_INVALID, full,
                             "%s must be an object with name, description and parameters, got %s", full, what(function));
    const cJSON *parameters = gd_json_find(function, "parameters");
    if (present(parameters) && !cJSON_IsObject(parameters))
        return fail_at(err, GD_INVALID, full, "parameters", "must be an object (a JSON schema)");
    return check_string(function, full, "name", true, err) && check_string(function, full, "description", false, err);
}

bool gd_chat_check_tools(const cJSON *tools, const char *path, struct gd_error *err)
{
    char full[PATH_BYTES];
    const cJSON *tool;
    int index = 0;
    if (!present(tools))
        return true;
    if (!cJSON_IsArray(tools))
        return gd_fail_param(err, GD_INVALID, path, "%s must be an array of tools, got %s", path, what(tools));
    cJSON_ArrayForEach(tool, tools) {
        (void)snprintf(full, sizeof full, "%.60s[%d]", path, index++);
        if (!check_tool(tool, full, err))
            return false;
    }
    return true;
}

bool gd_chat_check_kwargs(const cJSON *kwargs, const char *path, struct gd_error *err)
{
    if (kwargs == NULL || cJSON_IsNull(kwargs))
        return true;
    if (!cJSON_IsObject(kwargs))
        return gd_fail_param(err, GD_INVALID, path, "%s must be an object: the variables for the chat template by name", path);
    int count = cJSON_GetArraySize(kwargs);
    return count <= GD_CHAT_KWARGS_MAX ||
           gd_fail_param(err, GD_INVALID, path, "%s has %d entries; it may have up to %d", path, count, GD_CHAT_KWARGS_MAX);
}
