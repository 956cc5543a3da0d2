/* Rows with answers that people prefer or reject: OpenAI's preference rows, TRL's prompt, chosen, rejected, and its prompt,
 * completion, label. */
#include "engine/data/row_format.h"
#include "engine/text/chat.h"
#include <stdio.h>
#include <string.h>

static bool has_words(const cJSON *content)
{
    const cJSON *part;
    if (cJSON_IsString(content))
        return content->valuestring[0] != '\0';
    cJSON_ArrayForEach(part, content) {
        const cJSON *text = gd_json_find(part, "text");
        if (cJSON_IsString(text) && text->valuestring[0] != '\0')
            return true;
    }
    return false;
}

/* A row that says nothing is well formed for all that: data.incomparable decides. */
static bool fail_empty(struct gd_row *row, const char *path, struct gd_error *err)
{
    row->incomparable = true;
    return gd_fail_param(err, GD_INVALID, path, "%s is empty: there is nothing to compare in this row", path);
}

/* An answer: messages that end with the assistant's and say something. */
static bool check_answer(struct gd_row *row, const cJSON *answer, const char *path, struct gd_error *err)
{
    const cJSON *message;
    if (!gd_chat_check_messages(answer, path, true, err))
        return false;
    cJSON_ArrayForEach(message, answer) {
        if (has_words(gd_json_find(message, "content")) || cJSON_IsArray(gd_json_find(message, "tool_calls")) ||
            cJSON_IsObject(gd_json_find(message, "function_call")))
            return true;
    }
    return fail_empty(row, path, err);
}

static bool fail_identical(struct gd_row *row, const char *chosen, const char *rejected, struct gd_error *err)
{
    row->incomparable = true;
    return gd_fail_param(err, GD_INVALID, rejected, "%s and %s are identical: there is nothing to prefer in this row", chosen,
                         rejected);
}

/* Copies of the messages: the loss sees the answer only, so what the assistant said before weighs nothing. */
static void append(cJSON *messages, const cJSON *list, int begin, int end, bool trained)
{
    const cJSON *message;
    int index = 0;
    cJSON_ArrayForEach(message, list) {
        if (index >= begin && index < end) {
            cJSON *copy = cJSON_Duplicate(message, true);
            const cJSON *role = gd_json_find(copy, "role");
            if (!trained && cJSON_IsString(role) && strcmp(role->valuestring, "assistant") == 0) {
                cJSON_DeleteItemFromObjectCaseSensitive(copy, "weight");
                cJSON_AddNumberToObject(copy, "weight", 0);
            }
            cJSON_AddItemToArray(messages, copy);
        }
        index++;
    }
}

/* prompt, then answer[skip...], as a member of the tree. */
static cJSON *conversation(struct gd_row *row, const char *member, const cJSON *prompt, int prompt_count, const cJSON *answer, int skip)
{
    cJSON *messages = cJSON_CreateArray();
    append(messages, prompt, 0, prompt_count, false);
    append(messages, answer, skip, cJSON_GetArraySize(answer), true);
    cJSON_AddItemToObject(row->tree, member, messages);
    return messages;
}

static bool adopt(struct gd_row *row, const cJSON *prompt, int prompt_count, const char *prompt_path, const cJSON *chosen,
                  const cJSON *rejected, int skip, struct gd_error *err)
{
    row->messages = conversation(row, "\x01" "chosen", prompt, prompt_count, chosen, skip);
    row->rejected_messages = conversation(row, "\x01" "rejected", prompt, prompt_count, rejected, skip);
    return gd_chat_check_messages(row->messages, prompt_path, true, err); /* fields of the prompt, as strict as the answers */
}

/* One of two spellings of a member. */
static bool one_of(const cJSON *tree, const char *name, const char *other, const char **key, const cJSON **value,
                   struct gd_error *err)
{
    if (gd_json_find(tree, name) != NULL && gd_json_find(tree, other) != NULL)
        return gd_fail_param(err, GD_INVALID, other, "the row has both %s and %s, which mean the same; keep one of them", name,
                             other);
    *key = gd_json_find(tree, other) != NULL ? other : name;
    return gd_json_get_array(tree, "", *key, true, value, err);
}

/* The margin; the reference's log-probabilities, both or none. */
static bool parse_numbers(struct gd_row *row, struct gd_error *err)
{
    static const char *const names[] = {"ref_chosen_logps", "ref_rejected_logps"};
    int given = 0;
    if (!gd_json_get_number(row->tree, "", "margin", false, -1e6, 1e6, &row->margin, err))
        return false;
    for (int side = 0; side < 2; side++) {
        const cJSON *value = gd_json_find(row->tree, names[side]);
        given += value != NULL && !cJSON_IsNull(value);
        if (!gd_json_get_number(row->tree, "", names[side], false, -1e9, 0.0, &row->reference[side], err))
            return false;
    }
    row->has_reference = given == 2;
    return given != 1 || gd_fail_param(err, GD_MISSING, names[gd_json_find(row->tree, names[0]) != NULL],
                                       "the row has only one of ref_chosen_logps and ref_rejected_logps: give both or none");
}

bool gd_row_parse_preference(struct gd_row *row, struct gd_error *err)
{
    static const char *const known[] = {"input", "preferred_output", "non_preferred_output", "preferred_completion",
                                        "non_preferred_completion", "margin", "ref_chosen_logps", "ref_rejected_logps", "task",
                                        NULL};
    static const char *const known_input[] = {"messages", "tools", "parallel_tool_calls", "chat_template_kwargs", NULL};
    const cJSON *input = NULL, *prompt = NULL, *chosen = NULL, *rejected = NULL;
    const char *chosen_key = NULL, *rejected_key = NULL;
    bool parallel;
    if (!gd_json_only_known(row->tree, "", known, err) || !gd_json_get_object(row->tree, "", "input", true, &input, err) ||
        !gd_json_only_known(input, "input", known_input, err) ||
        !gd_json_get_array(input, "input", "messages", true, &prompt, err) ||
        !gd_json_get_array(input, "input", "tools", false, &row->tools, err) ||
        !gd_json_get_bool(input, "input", "parallel_tool_calls", false, &parallel, err) ||
        !one_of(row->tree, "preferred_output", "preferred_completion", &chosen_key, &chosen, err) ||
        !one_of(row->tree, "non_preferred_output", "non_preferred_completion", &rejected_key, &rejected, err) ||
        !gd_chat_check_messages(prompt, "input.messages", false, err) || !gd_chat_check_tools(row->tools, "input.tools", err) ||
        !check_answer(row, chosen, chosen_key, err) || !check_answer(row, rejected, rejected_key, err))
        return false;
    if (!parse_numbers(row, err))
        return false;
    if (cJSON_Compare(chosen, rejected, true))
        return fail_identical(row, chosen_key, rejected_key, err);
    return adopt(row, prompt, cJSON_GetArraySize(prompt), "input.messages", chosen, rejected, 0, err);
}

/* Whether one of the first `count` messages says just this. */
static bool says(const cJSON *messages, int count, const char *text)
{
    for (int i = 0; i < count; i++) {
        const cJSON *content = gd_json_find(cJSON_GetArrayItem(messages, i), "content");
        if (cJSON_IsString(content) && strcmp(content->valuestring, text) == 0)
            return true;
    }
    return false;
}

/* Whole conversations on both sides: what they share at the start is the prompt. A text beside them repeats it. */
static bool parse_conversations(struct gd_row *row, const cJSON *prompt, const cJSON *chosen, const cJSON *rejected,
                                struct gd_error *err)
{
    int shared = 0, most = cJSON_GetArraySize(chosen), other = cJSON_GetArraySize(rejected);
    most = other < most ? other : most;
    while (shared < most - 1 && cJSON_Compare(cJSON_GetArrayItem(chosen, shared), cJSON_GetArrayItem(rejected, shared), true))
        shared++;
    if (shared == 0)
        return gd_fail_param(err, GD_INVALID, "rejected", "chosen and rejected do not begin with the same message; give the "
                             "prompt as a list of messages, or in both of them");
    if (cJSON_IsString(prompt) && !says(chosen, shared, prompt->valuestring))
        return gd_fail_param(err, GD_INVALID, "prompt", "prompt is a text that no message shared by chosen and rejected says; "
                             "give it as a list of messages, or leave it out");
    return adopt(row, chosen, shared, "chosen", chosen, rejected, shared, err);
}

static bool parse_lists(struct gd_row *row, const cJSON *prompt, const cJSON *chosen, const cJSON *rejected, struct gd_error *err)
{
    if (!check_answer(row, chosen, "chosen", err) || !check_answer(row, rejected, "rejected", err))
        return false;
    if (cJSON_Compare(chosen, rejected, true))
        return fail_identical(row, "chosen", "rejected", err);
    if (prompt == NULL || cJSON_IsNull(prompt) || cJSON_IsString(prompt))
        return parse_conversations(row, prompt, chosen, rejected, err);
    return gd_chat_check_messages(prompt, "prompt", false, err) &&
           adopt(row, prompt, cJSON_GetArraySize(prompt), "prompt", chosen, rejected, 0, err);
}

static bool parse_texts(struct gd_row *row, struct gd_error *err)
{
    if (!gd_row_text(row->tree, "", "prompt", true, &row->prompt, err) ||
        !gd_row_text(row->tree, "", "chosen", true, &row->completion, err) ||
        !gd_row_text(row->tree, "", "rejected", true, &row->rejected, err))
        return false;
    for (int side = 0; side < 2; side++)
        if ((side == 0 ? row->completion : row->rejected)[0] == '\0')
            return fail_empty(row, side == 0 ? "chosen" : "rejected", err);
    return strcmp(row->completion, row->rejected) != 0 || fail_identical(row, "chosen", "rejected", err);
}

bool gd_row_parse_chosen_rejected(struct gd_row *row, struct gd_error *err)
{
    static const char *const known[] = {"prompt", "chosen", "rejected", "tools", "margin", "ref_chosen_logps", "ref_rejected_logps",
                                        "chat_template_kwargs", NULL};
    const cJSON *chosen = gd_json_find(row->tree, "chosen"), *rejected = gd_json_find(row->tree, "rejected");
    if (!gd_row_no_slips(row->tree, "", known, err) || !gd_json_get_array(row->tree, "", "tools", false, &row->tools, err))
        return false;
    if (!parse_numbers(row, err))
        return false;
    const char *missing = chosen == NULL ? "chosen" : rejected == NULL ? "rejected" : NULL;
    if (missing != NULL)
        return gd_fail_param(err, GD_MISSING, missing, "%s is missing: a preference row has chosen and rejected", missing);
    if (cJSON_IsArray(chosen) != cJSON_IsArray(rejected))
        return gd_fail_param(err, GD_INVALID, "rejected", "chosen and rejected must both be text or both be lists of messages");
    if (!cJSON_IsArray(chosen)) {
        if (row->tools != NULL)
            return gd_fail_param(err, GD_INVALID, "tools", "tools belong to rows whose chosen and rejected are messages");
        return parse_texts(row, err);
    }
    return gd_chat_check_tools(row->tools, "tools", err) &&
           parse_lists(row, gd_json_find(row->tree, "prompt"), chosen, rejected, err);
}

/* ---- a third answer ---- */

static bool fail_gold(const char *what, struct gd_error *err)
{
    return gd_fail_param(err, GD_MISSING, "reference", "reference is %s: a loss over three answers needs prompt, chosen, rejected and "
                         "reference, the last one like the other two", what);
}

/* The prompt is what chosen and rejected begin with: all of `messages` but the answer's own. */
static bool parse_gold_messages(struct gd_row *row, const cJSON *gold, struct gd_error *err)
{
    const cJSON *prompt = gd_json_find(row->tree, "prompt"), *chosen = gd_json_find(row->tree, "chosen");
    int answer = cJSON_GetArraySize(chosen), shared = cJSON_GetArraySize(prompt), skip = 0;
    if (!check_answer(row, gold, "reference", err))
        return false;
    if (!cJSON_IsArray(prompt)) { /* whole conversations */
        const cJSON *rejected = gd_json_find(row->tree, "rejected");
        int most = cJSON_GetArraySize(rejected) < answer ? cJSON_GetArraySize(rejected) : answer;
        for (shared = 0; shared < most - 1 &&
                         cJSON_Compare(cJSON_GetArrayItem(chosen, shared), cJSON_GetArrayItem(rejected, shared), true);)
            shared++;
        for (skip = 0; skip < shared && cJSON_Compare(cJSON_GetArrayItem(chosen, skip), cJSON_GetArrayItem(gold, skip), true);)
            skip++;
        if (skip < shared || cJSON_GetArraySize(gold) <= shared)
            return gd_fail_param(err, GD_INVALID, "reference", "reference does not begin with the messages that chosen and rejected "
                                 "share; give the prompt as a list of messages, or in all three of them");
        prompt = chosen;
    }
    row->gold_messages = conversation(row, "\x01" "gold", prompt, shared, gold, skip);
    return true;
}

bool gd_row_parse_gold(struct gd_row *row, struct gd_error *err)
{
    const cJSON *gold = gd_json_find(row->tree, "reference");
    if (row->format != GD_ROW_CHOSEN_REJECTED || gold == NULL || cJSON_IsNull(gold))
        return fail_gold("missing", err);
    if (row->messages != NULL)
        return cJSON_IsArray(gold) ? parse_gold_messages(row, gold, err) : fail_gold("no list of messages", err);
    if (!cJSON_IsString(gold))
        return fail_gold("no text", err);
    row->gold = gold->valuestring;
    return row->gold[0] != '\0' || fail_empty(row, "reference", err);
}

/* ---- one answer with a label ---- */

bool gd_row_parse_labelled(struct gd_row *row, struct gd_error *err)
{
    static const char *const known[] = {"prompt", "completion", "label", "tools", "chat_template_kwargs", NULL};
    const cJSON *prompt = gd_json_find(row->tree, "prompt"), *answer = gd_json_find(row->tree, "completion");
    if (!gd_row_no_slips(row->tree, "", known, err) || !gd_json_get_array(row->tree, "", "tools", false, &row->tools, err) ||
        !gd_json_get_bool(row->tree, "", "label", true, &row->desirable, err))
        return false;
    const char *missing = prompt == NULL ? "prompt" : answer == NULL ? "completion" : NULL;
    if (missing != NULL)
        return gd_fail_param(err, GD_MISSING, missing, "%s is missing: a labelled row has prompt, completion and label", missing);
    if (cJSON_IsArray(prompt) != cJSON_IsArray(answer))
        return gd_fail_param(err, GD_INVALID, "completion", "prompt and completion must both be text or both be lists of messages");
    if (cJSON_IsArray(answer)) {
        if (!gd_chat_check_tools(row->tools, "tools", err) || !gd_chat_check_messages(prompt, "prompt", false, err) ||
            !check_answer(row, answer, "completion", err))
            return false;
        row->messages = conversation(row, "\x01" "answer", prompt, cJSON_GetArraySize(prompt), answer, 0);
        return gd_chat_check_messages(row->messages, "prompt", true, err);
    }
    if (row->tools != NULL)
        return gd_fail_param(err, GD_INVALID, "tools", "tools belong to rows whose prompt and completion are messages");
    if (!gd_row_text(row->tree, "", "prompt", true, &row->prompt, err) ||
        !gd_row_text(row->tree, "", "completion", true, &row->completion, err))
        return false;
    return row->completion[0] != '\0' || fail_empty(row, "completion", err);
}
