#include "server/eval_json.h"

#include "engine/eval/scores.h"
#include <math.h>
#include <string.h>

#define RESAMPLES 200 /* of a bootstrap: a run is shown often */

/* ---- statuses ---- */

static const char *const status_names[GD_JOB_STATUS_COUNT] = {
    [GD_JOB_VALIDATING_FILES] = "queued", [GD_JOB_QUEUED] = "queued",       [GD_JOB_RUNNING] = "in_progress",
    [GD_JOB_PAUSING] = "in_progress",     [GD_JOB_PAUSED] = "queued",       [GD_JOB_SUCCEEDED] = "completed",
    [GD_JOB_FAILED] = "failed",           [GD_JOB_CANCELLED] = "canceled",
};

const char *gd_run_status_name(enum gd_job_status status)
{
    return status_names[status];
}

int gd_run_statuses(const char *name, enum gd_job_status statuses[GD_JOB_STATUS_COUNT])
{
    int count = 0;
    for (int i = 0; i < GD_JOB_STATUS_COUNT; i++)
        if (strcmp(status_names[i], name) == 0)
            statuses[count++] = (enum gd_job_status)i;
    return count;
}

/* ---- parts ---- */

static void add_finite(cJSON *out, const char *name, double value)
{
    cJSON_AddItemToObject(out, name, isfinite(value) ? cJSON_CreateNumber(value) : cJSON_CreateNull());
}

static cJSON *stat_json(const struct gd_stat *stat)
{
    cJSON *out = cJSON_CreateObject();
    cJSON_AddNumberToObject(out, "n", (double)stat->n);
    add_finite(out, "value", stat->value);
    add_finite(out, "standard_error", stat->standard_error);
    add_finite(out, "low", stat->low);
    add_finite(out, "high", stat->high);
    gd_json_add_text(out, "interval", stat->interval);
    if (stat->resamples > 0)
        cJSON_AddNumberToObject(out, "resamples", stat->resamples);
    return out;
}

/* ---- evals ---- */

cJSON *gd_eval_json(const struct gd_eval_record *record)
{
    cJSON *out = cJSON_CreateObject();
    gd_json_add_text(out, "object", "eval");
    gd_json_add_text(out, "id", record->id);
    gd_json_add_text(out, "name", record->name != NULL ? record->name : record->id);
    cJSON_AddItemToObject(out, "data_source_config", gd_json_stored(record->config));
    cJSON_AddItemToObject(out, "testing_criteria", gd_json_stored(record->criteria));
    cJSON_AddNumberToObject(out, "created_at", (double)record->created_at);
    cJSON_AddNumberToObject(out, "updated_at", (double)record->updated_at);
    cJSON_AddItemToObject(out, "metadata", gd_json_stored(record->metadata));
    return out;
}

/* ---- runs ---- */

static void add_counts(cJSON *out, const struct gd_eval_results *results)
{
    cJSON *counts = cJSON_AddObjectToObject(out, "result_counts");
    cJSON_AddNumberToObject(counts, "total", (double)(results->passed + results->failed + results->errored));
    cJSON_AddNumberToObject(counts, "errored", (double)results->errored);
    cJSON_AddNumberToObject(counts, "failed", (double)results->failed);
    cJSON_AddNumberToObject(counts, "passed", (double)results->passed);
}

static void add_usage(cJSON *out, const struct gd_eval_results *results)
{
    cJSON *list = cJSON_AddArrayToObject(out, "per_model_usage");
    for (int i = 0; i < results->usage_count; i++) {
        const struct gd_eval_usage *usage = &results->usage[i];
        cJSON *json = cJSON_CreateObject();
        gd_json_add_text(json, "model_name", usage->model);
        cJSON_AddNumberToObject(json, "invocation_count", (double)usage->invocations);
        cJSON_AddNumberToObject(json, "prompt_tokens", (double)usage->prompt_tokens);
        cJSON_AddNumberToObject(json, "completion_tokens", (double)usage->completion_tokens);
        cJSON_AddNumberToObject(json, "total_tokens", (double)(usage->prompt_tokens + usage->completion_tokens));
        cJSON_AddNumberToObject(json, "cached_tokens", (double)usage->cached_tokens);
        cJSON_AddItemToArray(list, json);
    }
}

static void add_criteria(cJSON *out, const struct gd_eval_results *results)
{
    cJSON *list = cJSON_AddArrayToObject(out, "per_testing_criteria_results");
    for (int i = 0; i < results->criterion_count; i++) {
        const struct gd_eval_criterion *criterion = &results->criteria[i];
        struct gd_stat score = gd_scores_stat(criterion->aggregation,
                                              criterion->aggregation != NULL ? criterion->numbers : criterion->scores, NULL,
                                              criterion->count, RESAMPLES);
        struct gd_stat rate = gd_stats_proportion((size_t)criterion->passed, (size_t)(criterion->passed + criterion->failed));
        cJSON *json = cJSON_CreateObject();
        gd_json_add_text(json, "testing_criteria", criterion->name);
        gd_json_add_text(json, "type", criterion->type);
        cJSON_AddNumberToObject(json, "passed", (double)criterion->passed);
        cJSON_AddNumberToObject(json, "failed", (double)criterion->failed);
        cJSON_AddNumberToObject(json, "errored", (double)criterion->errored);
        cJSON_AddItemToObject(json, "score", stat_json(&score));
        cJSON_AddItemToObject(json, "pass_rate", stat_json(&rate));
        cJSON_AddItemToArray(list, json);
    }
}

static cJSON *error_json(const char *text)
{
    cJSON *error = gd_json_stored(text);
    cJSON_DeleteItemFromObjectCaseSensitive(error, "param");
    return error;
}

cJSON *gd_run_json(const struct gd_job_record *record, const struct gd_eval_results *results)
{
    cJSON *out = cJSON_CreateObject(), *body = gd_json_stored(record->body);
    cJSON *source = cJSON_DetachItemFromObjectCaseSensitive(body, "data_source");
    gd_json_add_text(out, "object", "eval.run");
    gd_json_add_text(out, "id", record->id);
    gd_json_add_text(out, "eval_id", record->eval_id);
    cJSON_AddNullToObject(out, "report_url");
    gd_json_add_text(out, "status", gd_run_status_name(record->status));
    gd_json_add_text(out, "model", record->model);
    gd_json_add_text(out, "name", record->name != NULL ? record->name : record->id);
    cJSON_AddNumberToObject(out, "created_at", (double)record->created_at);
    gd_json_add_nonzero(out, "started_at", record->started_at);
    gd_json_add_nonzero(out, "finished_at", record->finished_at);
    add_counts(out, results);
    struct gd_stat rate = gd_stats_proportion((size_t)results->passed, (size_t)(results->passed + results->failed));
    cJSON_AddItemToObject(out, "pass_rate", stat_json(&rate));
    add_usage(out, results);
    add_criteria(out, results);
    cJSON *progress = cJSON_AddObjectToObject(out, "progress");
    cJSON_AddNumberToObject(progress, "items", (double)(results->passed + results->failed + results->errored));
    gd_json_add_nonzero(progress, "total_items", record->total_steps);
    cJSON_AddNumberToObject(out, "attempt", record->attempt);
    cJSON_AddItemToObject(out, "data_source", source != NULL ? source : cJSON_CreateNull());
    cJSON_AddItemToObject(out, "error", error_json(record->error));
    cJSON_AddItemToObject(out, "metadata", gd_json_stored(record->metadata));
    cJSON_Delete(body);
    return out;
}

cJSON *gd_output_item_json(const char *eval_id, const struct gd_eval_item_record *record)
{
    static const char *const parts[] = {"datasource_item", "results", "sample", "error"};
    cJSON *out = cJSON_CreateObject(), *body = gd_json_stored(record->body);
    gd_json_add_text(out, "object", "eval.run.output_item");
    gd_json_add_text(out, "id", record->id);
    gd_json_add_text(out, "run_id", record->run_id);
    gd_json_add_text(out, "eval_id", eval_id);
    cJSON_AddNumberToObject(out, "created_at", (double)record->created_at);
    gd_json_add_text(out, "status", record->status);
    cJSON_AddNumberToObject(out, "datasource_item_id", (double)record->index);
    for (size_t i = 0; i < GD_COUNT(parts); i++) {
        cJSON *part = cJSON_DetachItemFromObjectCaseSensitive(body, parts[i]);
        cJSON_AddItemToObject(out, parts[i], part != NULL ? part : cJSON_CreateNull());
    }
    cJSON_Delete(body);
    return out;
}

cJSON *gd_run_comparison_json(const char *run_id, const char *with_run_id, const struct gd_eval_pairs *pairs)
{
    cJSON *out = cJSON_CreateObject();
    gd_json_add_text(out, "object", "eval.run.comparison");
    gd_json_add_text(out, "run_id", run_id);
    gd_json_add_text(out, "with_run_id", with_run_id);
    cJSON *items = cJSON_AddObjectToObject(out, "items");
    cJSON_AddNumberToObject(items, "shared", (double)pairs->items_shared);
    cJSON_AddNumberToObject(items, "only_in_run", (double)(pairs->items_a - pairs->items_shared));
    cJSON_AddNumberToObject(items, "only_in_with_run", (double)(pairs->items_b - pairs->items_shared));
    cJSON *list = cJSON_AddArrayToObject(out, "criteria");
    for (int i = 0; i < pairs->count; i++) {
        const struct gd_eval_pair *pair = &pairs->pairs[i];
        struct gd_stat a = gd_scores_stat(pair->aggregation, pair->a, NULL, pair->count, RESAMPLES);
        struct gd_stat b = gd_scores_stat(pair->aggregation, pair->b, NULL, pair->count, RESAMPLES);
        struct gd_stat difference = gd_scores_stat(pair->aggregation, pair->a, pair->b, pair->count, RESAMPLES);
        cJSON *json = cJSON_CreateObject();
        gd_json_add_text(json, "testing_criteria", pair->name);
        cJSON_AddNumberToObject(json, "errored", (double)pair->errored);
        cJSON_AddItemToObject(json, "run", stat_json(&a));
        cJSON_AddItemToObject(json, "with_run", stat_json(&b));
        cJSON_AddItemToObject(json, "difference", stat_json(&difference));
        cJSON_AddItemToArray(list, json);
    }
    return out;
}
