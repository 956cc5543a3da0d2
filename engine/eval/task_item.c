/* task_item.c - one row of a task: what it asks of the model, and what its answers are worth. */
#include "engine/base/alloc.h"
#include "engine/eval/task_parts.h"

#include <inttypes.h>
#include <string.h>

/* What the row says besides its prompts. */
struct parts {
    cJSON *target, *choices;
    struct gd_error error;
};

static bool read_parts(const struct gd_task *task, int64_t index, struct parts *parts)
{
    const cJSON *row = task->row[index];
    bool has_choices = gd_task_field_given(&task->turn.choice);
    *parts = (struct parts){0};
    parts->target = gd_task_target(task, &task->turn, row, task->columns, &parts->error);
    if (parts->target != NULL && has_choices)
        parts->choices = gd_task_choices(&task->turn, row, task->columns, &parts->error);
    return parts->error.code == GD_OK;
}

static void release_parts(struct parts *parts)
{
    cJSON_Delete(parts->target);
    cJSON_Delete(parts->choices);
}

static void finish_with_error(const struct gd_task *task, struct gd_eval_item *item, struct gd_error *error)
{
    gd_error_context(error, "row %" PRId64, item->index + 1);
    gd_eval_item_finish(item, cJSON_Duplicate(task->row[item->index], true), NULL, NULL, error);
}

/* ---- asking ---- */

static void ask_likelihood(struct gd_eval_item *item, const char *prompt, const char *delimiter, const char *continuation)
{
    struct gd_ask *ask = gd_eval_item_ask(item, GD_ASK_LOGLIKELIHOOD);
    ask->prompt = gd_strdup(prompt);
    ask->continuation = gd_format("%s%s", delimiter, continuation);
}

static void ask_text(const struct gd_task *task, struct gd_eval_item *item, const char *prompt)
{
    for (int64_t i = 0; i < task->repeats; i++) {
        struct gd_ask *ask = gd_eval_item_ask(item, GD_ASK_TEXT);
        ask->prompt = gd_strdup(prompt);
        ask->temperature = task->temperature;
        ask->top_p = task->top_p;
        ask->seed = GD_TASK_SEED;
        ask->max_tokens = task->max_tokens;
        ask->stops = cJSON_Duplicate(task->stops, true);
    }
}

/* A choice of each prompt, or one prompt before each choice; then the choices alone where a metric wants them. */
static bool ask_choices(const struct gd_task *task, struct gd_eval_item *item, char *const *contexts, const struct parts *parts,
                        struct gd_error *err)
{
    int count = cJSON_GetArraySize(parts->choices);
    const char *delimiter = task->turn.target_delimiter;
    if (count > GD_EVAL_ASKS_MAX / 2)
        return gd_fail(err, GD_INVALID, "%d choices; at most %d", count, GD_EVAL_ASKS_MAX / 2);
    if (task->many_texts && !cJSON_IsString(parts->target))
        return gd_fail(err, GD_INVALID, "doc_to_text is a choice's number, so doc_to_target must be a text");
    for (int i = 0; i < count; i++)
        ask_likelihood(item, contexts[task->many_texts ? i : 0], delimiter,
                       (task->many_texts ? parts->target : cJSON_GetArrayItem(parts->choices, i))->valuestring);
    for (int i = 0; task->mutual && i < count; i++)
        ask_likelihood(item, "", delimiter, cJSON_GetArrayItem(parts->choices, i)->valuestring);
    return true;
}

static bool ask(const struct gd_task *task, struct gd_eval_item *item, char *const *contexts, const struct parts *parts,
                struct gd_error *err)
{
    if (task->output == GD_TASK_CHOICE)
        return ask_choices(task, item, contexts, parts, err);
    if (task->output == GD_TASK_GENERATE) {
        ask_text(task, item, contexts[0]);
        return true;
    }
    if (!cJSON_IsString(parts->target) || parts->target->valuestring[0] == '\0')
        return gd_fail(err, GD_INVALID, "doc_to_target gives no text to score");
    if (task->output == GD_TASK_ROLLING) {
        struct gd_ask *rolling = gd_eval_item_ask(item, GD_ASK_ROLLING);
        rolling->prompt = gd_strdup("");
        rolling->continuation = gd_strdup(parts->target->valuestring);
        return true;
    }
    ask_likelihood(item, contexts[0], "", parts->target->valuestring);
    return true;
}

void gd_task_begin(struct gd_task *task, struct gd_eval_item *item)
{
    struct parts parts;
    struct gd_error err = {0};
    char **contexts = NULL;
    int count = 0;
    bool ok = read_parts(task, item->index, &parts);
    if (!ok)
        err = parts.error;
    ok = ok && (task->output == GD_TASK_ROLLING || gd_task_contexts(task, item->index, &contexts, &count, &err)) &&
         ask(task, item, contexts, &parts, &err);
    if (!ok)
        finish_with_error(task, item, &err);
    for (int i = 0; i < count; i++)
        gd_free(contexts[i]);
    gd_free(contexts);
    release_parts(&parts);
}

/* ---- judging ---- */

static void add_text(cJSON *list, const char *role, const char *text)
{
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "role", role);
    cJSON_AddStringToObject(message, "content", text != NULL ? text : "");
    cJSON_AddItemToArray(list, message);
}

static void add_likelihood(cJSON *list, const struct gd_ask *ask)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "continuation", ask->continuation);
    cJSON_AddNumberToObject(json, "loglikelihood", ask->loglikelihood);
    cJSON_AddBoolToObject(json, "greedy", ask->greedy);
    cJSON_AddNumberToObject(json, "tokens", (double)ask->token_count);
    cJSON_AddItemToArray(list, json);
}

static cJSON *usage_of(const struct gd_eval_item *item)
{
    double prompt = 0, cached = 0, completion = 0;
    for (int i = 0; i < item->ask_count; i++) {
        prompt += (double)item->asks[i].prompt_tokens;
        cached += (double)item->asks[i].cached_tokens;
        completion += (double)item->asks[i].completion_tokens;
    }
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "total_tokens", prompt + completion);
    cJSON_AddNumberToObject(json, "completion_tokens", completion);
    cJSON_AddNumberToObject(json, "prompt_tokens", prompt);
    cJSON_AddNumberToObject(json, "cached_tokens", cached);
    return json;
}

/* As OpenAI shows samples, with what was asked as one message and, for likelihoods, each continuation. */
static cJSON *sample_of(const struct gd_task *task, const struct gd_eval_item *item, const char *model)
{
    const struct gd_ask *first = &item->asks[0];
    bool text = task->output == GD_TASK_GENERATE;
    cJSON *json = cJSON_CreateObject();
    add_text(cJSON_AddArrayToObject(json, "input"), "user", first->prompt);
    cJSON *output = cJSON_AddArrayToObject(json, "output");
    for (int i = 0; text && i < item->ask_count; i++)
        add_text(output, "assistant", item->asks[i].text);
    if (text)
        cJSON_AddStringToObject(json, "finish_reason", first->truncated ? "length" : "stop");
    else
        cJSON_AddNullToObject(json, "finish_reason");
    cJSON_AddStringToObject(json, "model", model);
    cJSON_AddItemToObject(json, "usage", usage_of(item));
    cJSON_AddNullToObject(json, "error");
    cJSON_AddNumberToObject(json, "temperature", task->temperature);
    cJSON_AddNumberToObject(json, "top_p", task->top_p);
    cJSON_AddNumberToObject(json, "seed", GD_TASK_SEED);
    cJSON_AddItemToObject(json, "max_completion_tokens", text ? cJSON_CreateNumber((double)task->max_tokens) : cJSON_CreateNull());
    if (text)
        return json;
    cJSON *likelihoods = cJSON_AddArrayToObject(json, "loglikelihoods");
    for (int i = 0; i < item->ask_count; i++)
        add_likelihood(likelihoods, &item->asks[i]);
    return json;
}

static void judge_filtered(const struct gd_task *task, const struct gd_task_filter *filter, struct gd_task_outcome *outcome,
                             cJSON *results)
{
    const char *answers[GD_TASK_REPEATS_MAX];
    struct gd_error err = {0};
    char *answer = NULL;
    if (task->output == GD_TASK_GENERATE) {
        for (int i = 0; i < outcome->ask_count; i++)
            answers[i] = outcome->asks[i].text != NULL ? outcome->asks[i].text : "";
        answer = gd_task_filter_run(filter, answers, outcome->ask_count, &err);
    }
    outcome->answer = answer;
    for (int i = 0; i < task->metric_count; i++) {
        cJSON *result = NULL;
        if (err.code == GD_OK) {
            result = gd_task_judge(task, &task->metrics[i], filter->name, outcome);
            if (answer != NULL)
                cJSON_AddStringToObject(result, "answer", answer);
        } else {
            char *name = gd_task_result_name(&task->metrics[i], filter->name);
            result = gd_eval_result(name, "task", 0, false, &err, NULL);
            gd_free(name);
        }
        cJSON_AddItemToArray(results, result);
    }
    gd_free(answer);
}

void gd_task_answered(struct gd_task *task, struct gd_eval_item *item, const char *model)
{
    struct parts parts;
    struct gd_error err = {0};
    for (int i = 0; i < item->ask_count && err.code == GD_OK; i++)
        if (item->asks[i].error.code != GD_OK)
            err = item->asks[i].error;
    bool ok = read_parts(task, item->index, &parts);
    if (err.code != GD_OK || !ok) {
        finish_with_error(task, item, err.code != GD_OK ? &err : &parts.error);
        release_parts(&parts);
        return;
    }
    cJSON *text = task->many_texts ? gd_task_text(task, &task->turn, task->row[item->index], task->columns, &err) : NULL;
    struct gd_task_outcome outcome = {.asks = item->asks, .ask_count = item->ask_count, .choices = parts.choices,
                                      .target = text != NULL ? text : parts.target,
                                      .scored = cJSON_IsString(parts.target) ? parts.target->valuestring : ""};
    cJSON *results = cJSON_CreateArray();
    for (int i = 0; i < task->filter_count; i++)
        judge_filtered(task, &task->filters[i], &outcome, results);
    gd_eval_item_finish(item, cJSON_Duplicate(task->row[item->index], true), results, sample_of(task, item, model), NULL);
    cJSON_Delete(text);
    release_parts(&parts);
}
