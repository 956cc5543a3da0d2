#include "engine/data/row.h"
#include "engine/data/classes.h"
#include "engine/data/row_format.h"
#include "engine/text/chat.h"
#include <stdio.h>
#include <string.h>

#define GD_ROW_FORMAT_NAME(name, wire) [GD_ROW_##name] = wire,
static const char *const format_names[] = {GD_ROW_FORMAT_LIST(GD_ROW_FORMAT_NAME)};
#undef GD_ROW_FORMAT_NAME

const char *gd_row_format_name(enum gd_row_format format)
{
    return format_names[format];
}

void gd_row_release(struct gd_row *row)
{
    cJSON_Delete(row->tree);
    memset(row, 0, sizeof *row);
}

bool gd_row_text(const cJSON *object, const char *path, const char *key, bool required, const char **out,
                 struct gd_error *err)
{
    *out = "";
    return gd_json_get_string(object, path, key, required, 0, GD_ROW_BYTES_MAX, out, err);
}

bool gd_row_no_slips(const cJSON *object, const char *path, const char *const *known, struct gd_error *err)
{
    size_t count = 0;
    const cJSON *item;
    while (known[count] != NULL)
        count++;
    cJSON_ArrayForEach(item, object) {
        bool exact = false;
        for (size_t i = 0; i < count; i++)
            exact |= strcmp(item->string, known[i]) == 0;
        const char *nearest = exact ? NULL : gd_nearest_name(item->string, known, count);
        if (nearest == NULL || gd_json_find(object, nearest) != NULL)
            continue;
        char full[96];
        snprintf(full, sizeof full, "%.40s%s%.40s", path, path[0] != '\0' ? "." : "", item->string);
        return gd_fail_param(err, GD_UNKNOWN_FIELD, full, "'%s' is not a field of this format; did you mean '%s'?", full,
                             nearest);
    }
    return true;
}

void gd_row_add_message(cJSON *messages, const char *role, const char *content)
{
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "role", role);
    cJSON_AddStringToObject(message, "content", content);
    cJSON_AddItemToArray(messages, message);
}

void gd_row_adopt_functions(struct gd_row *row, const cJSON *functions)
{
    cJSON *tools = cJSON_CreateArray();
    const cJSON *function;
    cJSON_ArrayForEach(function, functions) {
        if (gd_json_find(function, "function") != NULL || !cJSON_IsObject(function)) {
            cJSON_AddItemToArray(tools, cJSON_Duplicate(function, true));
            continue;
        }
        cJSON *tool = cJSON_CreateObject();
        cJSON_AddStringToObject(tool, "type", "function");
        cJSON_AddItemToObject(tool, "function", cJSON_Duplicate(function, true));
        cJSON_AddItemToArray(tools, tool);
    }
    cJSON_DeleteItemFromObjectCaseSensitive(row->tree, "tools");
    cJSON_AddItemToObject(row->tree, "tools", tools);
    row->tools = tools;
}

bool gd_row_parse_chat(struct gd_row *row, struct gd_error *err)
{
    static const char *const known[] = {"messages", "tools", "functions", "parallel_tool_calls", "chat_template_kwargs", "task", NULL};
    const cJSON *functions = NULL;
    bool parallel;
    if (!gd_json_only_known(row->tree, "", known, err) ||
        !gd_json_get_bool(row->tree, "", "parallel_tool_calls", false, &parallel, err) ||
        !gd_json_get_array(row->tree, "", "tools", false, &row->tools, err) ||
        !gd_json_get_array(row->tree, "", "functions", false, &functions, err))
        return false;
    if (row->tools != NULL && functions != NULL)
        return gd_fail_param(err, GD_INVALID, "functions", "the row has both tools and functions; keep tools");
    if (functions != NULL)
        gd_row_adopt_functions(row, functions);
    row->messages = gd_json_find(row->tree, "messages");
    return gd_chat_check_messages(row->messages, "messages", true, err) &&
           gd_chat_check_tools(row->tools, functions != NULL ? "functions" : "tools", err);
}

bool gd_row_parse_pair(struct gd_row *row, struct gd_error *err)
{
    static const char *const known[] = {"prompt", "completion", "task", NULL};
    if (gd_json_find(row->tree, "label") != NULL) {
        row->format = GD_ROW_LABELLED;
        return gd_row_parse_labelled(row, err);
    }
    if (!gd_json_only_known(row->tree, "", known, err) ||
        !gd_row_text(row->tree, "", "prompt", true, &row->prompt, err) ||
        !gd_row_text(row->tree, "", "completion", true, &row->completion, err))
        return false;
    return row->completion[0] != '\0' ||
           gd_fail_param(err, GD_INVALID, "completion", "completion is empty: there is nothing to learn from this row");
}

bool gd_row_parse_classified(struct gd_row *row, struct gd_error *err)
{
    static const char *const known[] = {"text", "text_pair", "label", NULL};
    char buffer[GD_TASK_NAME_MAX + 1];
    const cJSON *item;
    const char *pair;
    int index = 0;
    row->label = gd_json_find(row->tree, "label");
    if (!gd_row_no_slips(row->tree, "", known, err) || !gd_row_text(row->tree, "", "text", true, &row->text, err) ||
        !gd_row_text(row->tree, "", "text_pair", false, &pair, err))
        return false;
    row->text_pair = cJSON_IsString(gd_json_find(row->tree, "text_pair")) ? pair : NULL;
    if (row->text[0] == '\0')
        return gd_fail_param(err, GD_INVALID, "text", "text is empty: there is nothing to classify");
    if (row->label == NULL || cJSON_IsNull(row->label))
        return gd_fail_param(err, GD_MISSING, "label", "label is missing: a row with text needs a label, a name or a whole number (or a list of "
                             "them), to learn from; to go on training on plain text give prompt \"\" and completion");
    if (!cJSON_IsArray(row->label))
        return gd_label_name(row->label, buffer) != NULL ||
               gd_fail_param(err, GD_INVALID, "label", "label must be a name of 1 to %d bytes, a whole number from 0, or a list of them",
                             GD_TASK_NAME_MAX);
    cJSON_ArrayForEach(item, row->label) {
        char path[32];
        snprintf(path, sizeof path, "label[%d]", index++);
        if (gd_label_name(item, buffer) == NULL)
            return gd_fail_param(err, GD_INVALID, path, "%s must be a name of 1 to %d bytes, or a whole number from 0", path, GD_TASK_NAME_MAX);
    }
    return true;
}

/* A row's format is the one whose key it has; `shared`: a later key that it has as well; a weak key counts where there is no other. */
static const struct format {
    const char *key;
    enum gd_row_format format;
    bool (*parse)(struct gd_row *row, struct gd_error *err);
    const char *shared;
    bool weak;
} formats[] = {
    {"chosen", GD_ROW_CHOSEN_REJECTED, gd_row_parse_chosen_rejected, "prompt", false},
    {"rejected", GD_ROW_CHOSEN_REJECTED, gd_row_parse_chosen_rejected, "prompt", false},
    {"preferred_output", GD_ROW_PREFERENCE, gd_row_parse_preference, NULL, false},
    {"non_preferred_output", GD_ROW_PREFERENCE, gd_row_parse_preference, NULL, false},
    {"preferred_completion", GD_ROW_PREFERENCE, gd_row_parse_preference, NULL, false},
    {"non_preferred_completion", GD_ROW_PREFERENCE, gd_row_parse_preference, NULL, false},
    {"messages", GD_ROW_CHAT, gd_row_parse_chat, NULL, false},
    {"conversations", GD_ROW_SHAREGPT, gd_row_parse_sharegpt, NULL, false},
    {"instruction", GD_ROW_ALPACA, gd_row_parse_alpaca, NULL, false},
    {"prompt", GD_ROW_PROMPT_COMPLETION, gd_row_parse_pair, NULL, false},
    {"completion", GD_ROW_PROMPT_COMPLETION, gd_row_parse_pair, NULL, false},
    {"text", GD_ROW_CLASSIFIED, gd_row_parse_classified, NULL, true},
};

static bool find_format(const cJSON *tree, const struct format **out, struct gd_error *err)
{
    *out = NULL;
    for (size_t i = 0; i < GD_COUNT(formats); i++) {
        bool shared = *out != NULL && (*out)->shared != NULL && strcmp((*out)->shared, formats[i].key) == 0;
        if (shared || (formats[i].weak && *out != NULL) || gd_json_find(tree, formats[i].key) == NULL)
            continue;
        if (*out != NULL && (*out)->format != formats[i].format)
            return gd_fail_param(err, GD_INVALID, formats[i].key,
                                 "the row has both '%s' and '%s', so it could be of two formats; keep one of them",
                                 (*out)->key, formats[i].key);
        if (*out == NULL)
            *out = &formats[i];
    }
    if (*out != NULL)
        return true;
    const char *keys[GD_COUNT(formats)], *nearest = NULL;
    for (size_t i = 0; i < GD_COUNT(formats); i++)
        keys[i] = formats[i].key;
    const cJSON *item;
    cJSON_ArrayForEach(item, tree) {
        if (nearest == NULL)
            nearest = gd_nearest_name(item->string, keys, GD_COUNT(keys));
    }
    return gd_fail_param(err, GD_INVALID, "row",
                         "not a known row: give messages, or prompt and completion, or instruction and output, or "
                         "conversations, or input, preferred_output and non_preferred_output, or prompt, chosen and "
                         "rejected, or prompt, completion and label, or text and label%s%s%s", nearest != NULL ? " (did you mean '" : "", nearest != NULL ? nearest : "",
                         nearest != NULL ? "'?)" : "");
}

static bool read_task(struct gd_row *row, struct gd_error *err)
{
    const cJSON *task = gd_json_find(row->tree, "task");
    size_t length = cJSON_IsString(task) ? strlen(task->valuestring) : 0;
    if (task == NULL || cJSON_IsNull(task))
        return true;
    if (cJSON_IsNumber(task) && task->valuedouble >= 0 && task->valuedouble <= INT32_MAX && task->valuedouble == task->valueint)
        snprintf(row->task, sizeof row->task, "%d", task->valueint);
    else if (length >= 1 && length <= GD_TASK_NAME_MAX)
        memcpy(row->task, task->valuestring, length);
    else
        return gd_fail_param(err, GD_INVALID, "task", "task must be a string of 1 to %d bytes, or a whole number from 0",
                             GD_TASK_NAME_MAX);
    return true;
}

static bool read_kwargs(struct gd_row *row, struct gd_error *err)
{
    bool inner = row->format == GD_ROW_PREFERENCE;
    const char *path = inner ? "input.chat_template_kwargs" : "chat_template_kwargs";
    const cJSON *kwargs = gd_json_find(inner ? gd_json_find(row->tree, "input") : row->tree, "chat_template_kwargs");
    if (kwargs == NULL || cJSON_IsNull(kwargs))
        return true;
    row->template_kwargs = kwargs;
    if (row->messages == NULL)
        return gd_fail_param(err, GD_INVALID, path, "%s belongs to rows of messages: no template renders this one", path);
    return gd_chat_check_kwargs(kwargs, path, err);
}

static bool parse(struct gd_row *row, const char *text, size_t length, struct gd_error *err)
{
    const struct format *format;
    row->tree = gd_json_parse_within(text, length, GD_ROW_BYTES_MAX, GD_JSON_FEW_VALUES, err);
    if (row->tree == NULL)
        return false;
    if (!cJSON_IsObject(row->tree))
        return gd_fail_param(err, GD_INVALID, "row", "a row must be a JSON object {...}");
    if (!find_format(row->tree, &format, err))
        return false;
    row->format = format->format;
    return format->parse(row, err) && read_task(row, err) && read_kwargs(row, err);
}

bool gd_row_parse(struct gd_row *row, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct gd_error why = {0};
    memset(row, 0, sizeof *row);
    if (parse(row, text, length, &why))
        return true;
    bool incomparable = row->incomparable;
    gd_row_release(row);
    row->incomparable = incomparable;
    return gd_fail_param(err, GD_BAD_FILE, why.param[0] != '\0' ? why.param : "row", "line %lld: %s", (long long)line,
                         why.message);
}
