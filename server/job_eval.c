/* Runs of evals: what a worker is told, and what becomes of the items that it has finished. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "server/files.h"
#include "server/job.h"
#include "server/models.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define REPORTS 20 /* events of progress in a run, at most */

static void submitted(struct gd_job_change *change)
{
    gd_job_change_message(change, "info", "Created run: %s", change->record.id);
}

/* record.hyperparameters: [{id, base_id, folder}] */
static cJSON *models_of(const struct gd_job_record *record)
{
    struct gd_error ignored = {0};
    const char *text = record->hyperparameters != NULL ? record->hyperparameters : "[]";
    return gd_json_parse(text, strlen(text), SIZE_MAX, &ignored);
}

static const char *missing_model(struct gd_job *job)
{
    cJSON *models = models_of(&job->record), *model;
    const char *missing = NULL;
    cJSON_ArrayForEach(model, models)
    {
        const char *base = gd_frame_text(model, "base_id", "");
        if (missing == NULL && gd_models_find(job->app->models, base) == NULL) {
            snprintf(job->missing, sizeof job->missing, "%s", base);
            missing = job->missing;
        }
    }
    cJSON_Delete(models);
    return missing;
}

static cJSON *start_frame(struct gd_job *job, const struct gd_job_change *stored, struct gd_error *err)
{
    static const char *const parts[] = {"data_source_config", "testing_criteria", "data_source"};
    const struct gd_job_record *record = &job->record;
    cJSON *body = gd_json_parse(record->body, strlen(record->body), SIZE_MAX, err), *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "type", "job_start");
    cJSON_AddStringToObject(message, "kind", gd_job_kind_name(record->kind));
    cJSON_AddStringToObject(message, "job_id", record->id);
    for (size_t i = 0; body != NULL && i < GD_COUNT(parts); i++)
        cJSON_AddItemToObject(message, parts[i], cJSON_DetachItemFromObjectCaseSensitive(body, parts[i]));
    char *path = record->training_file[0] != '\0' ? gd_file_path(job->app, record->training_file) : NULL;
    gd_json_add_text(message, "file_path", path);
    char *second = record->validation_file != NULL && record->validation_file[0] != '\0'
                       ? gd_file_path(job->app, record->validation_file)
                       : NULL;
    gd_json_add_text(message, "second_file_path", second);
    gd_free(second);
    cJSON_AddItemToObject(message, "done", cJSON_Duplicate(stored->done, true));
    cJSON *models = models_of(record);
    cJSON_AddItemToObject(message, "models", models);
    gd_free(path);
    cJSON_Delete(body);
    if (body != NULL && gd_models_place(job->app, models, err))
        return message;
    cJSON_Delete(message);
    return NULL;
}

/* ---- told by the worker ---- */

static enum gd_turn_result prepare_started(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    job->steps_held = false;
    if (!gd_job_on_worker(&job->record))
        return GD_TURN_NOTHING;
    change->update = true;
    change->record.total_steps = gd_frame_int(turn->frame, "total_steps", 0);
    change->record.step = gd_frame_int(turn->frame, "resumed_from", 0);
    if (change->record.step > 0)
        gd_job_change_message(change, "info", "Continuing: %" PRId64 " of %" PRId64 " items are finished",
                              change->record.step, change->record.total_steps);
    else
        gd_job_change_message(change, "info", "Evaluating %" PRId64 " items", change->record.total_steps);
    return GD_TURN_STORE;
}

static char *item_id(const char *run_id, int64_t index)
{
    char *text = gd_format("item:%s:%" PRId64, run_id, index);
    char digest[65];
    gd_hash_sha256(text, strlen(text), digest);
    gd_free(text);
    digest[24] = '\0';
    return gd_format("outputitem_%s", digest);
}

static char *digest_of(const cJSON *datasource_item)
{
    char *text = datasource_item != NULL ? gd_json_print(datasource_item) : gd_strdup("null");
    char digest[33];
    gd_hash_xxh3(text, strlen(text), digest);
    gd_free(text);
    return gd_strdup(digest);
}

/* What adds up to the run's score where that is not the mean of scores. */
static void add_numbers(struct gd_eval_score *score, const cJSON *result)
{
    const char *aggregation = gd_frame_text(result, "aggregation", NULL);
    const cJSON *values = gd_json_find(result, "values");
    if (aggregation == NULL || strcmp(aggregation, "mean") == 0 || !cJSON_IsArray(values))
        return;
    score->aggregation = gd_strdup(aggregation);
    score->numbers = gd_json_print(values);
}

static void add_scores(struct gd_eval_item_record *record, const cJSON *results)
{
    const cJSON *result;
    record->scores = gd_alloc_array((size_t)cJSON_GetArraySize(results) + 1, sizeof *record->scores);
    cJSON_ArrayForEach(result, results)
    {
        const cJSON *score = gd_json_find(result, "score");
        record->scores[record->score_count++] = (struct gd_eval_score){
            .name = gd_strdup(gd_frame_text(result, "name", "")),
            .type = gd_strdup(gd_frame_text(result, "type", "")),
            .score = cJSON_IsNumber(score) ? score->valuedouble : 0,
            .passed = cJSON_IsTrue(gd_json_find(result, "passed")),
            .failed = !cJSON_IsNumber(score),
        };
        add_numbers(&record->scores[record->score_count - 1], result);
    }
}

static void add_usage(struct gd_eval_item_record *record, const cJSON *list)
{
    const cJSON *usage;
    record->usage = gd_alloc_array((size_t)cJSON_GetArraySize(list) + 1, sizeof *record->usage);
    cJSON_ArrayForEach(usage, list) record->usage[record->usage_count++] = (struct gd_eval_usage){
        .model = gd_strdup(gd_frame_text(usage, "model", "")),
        .invocations = gd_frame_int(usage, "invocations", 0),
        .prompt_tokens = gd_frame_int(usage, "prompt_tokens", 0),
        .completion_tokens = gd_frame_int(usage, "completion_tokens", 0),
        .cached_tokens = gd_frame_int(usage, "cached_tokens", 0),
    };
}

static void add_item(struct gd_job_change *change, const cJSON *item)
{
    const cJSON *body = gd_json_find(item, "body");
    int64_t index = gd_frame_int(item, "index", -1);
    if (!cJSON_IsObject(body) || index < 0)
        return;
    struct gd_eval_item_record *record = &change->items[change->item_count++];
    record->id = item_id(change->record.id, index);
    record->run_id = gd_strdup(change->record.id);
    record->index = index;
    record->status = gd_strdup(gd_frame_text(item, "status", "error"));
    record->digest = digest_of(gd_json_find(body, "datasource_item"));
    record->body = gd_json_print(body);
    record->created_at = gd_time_unix();
    add_scores(record, gd_json_find(body, "results"));
    add_usage(record, gd_json_find(item, "usage"));
}

static void report_progress(struct gd_job_change *change, int64_t before)
{
    int64_t now = change->record.step, total = change->record.total_steps;
    if (total <= 0 || (now != total && before * REPORTS / total == now * REPORTS / total))
        return;
    char *message = gd_format("%" PRId64 " of %" PRId64 " items finished", now, total);
    cJSON *data = cJSON_CreateObject();
    cJSON_AddNumberToObject(data, "step", (double)now);
    cJSON_AddNumberToObject(data, "total_steps", (double)total);
    gd_job_change_metrics_event(change, message, data);
    gd_free(message);
}

static enum gd_turn_result prepare_items(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    const cJSON *items = gd_json_find(turn->frame, "items"), *item;
    if (!gd_job_on_worker(&job->record) || cJSON_GetArraySize(items) == 0)
        return GD_TURN_NOTHING;
    change->update = true;
    change->items = gd_alloc_array((size_t)cJSON_GetArraySize(items), sizeof *change->items);
    cJSON_ArrayForEach(item, items) add_item(change, item);
    change->record.step += change->item_count;
    report_progress(change, job->record.step);
    job->crash_points = 0;
    return GD_TURN_STORE;
}

/* The worker goes on finishing items while some batches are on their way, but not too many. */
static void after_items(struct gd_job *job, struct gd_turn *turn)
{
    gd_job_tell_stored(job, "job_items_stored", turn->frame, "sequence");
}

static enum gd_turn_result prepare_done(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    if (!gd_job_on_worker(&job->record))
        return GD_TURN_NOTHING;
    change->update = true;
    if (change->record.step != change->record.total_steps) {
        gd_job_fail(change, gd_code_wire(GD_INTERNAL), "some items could not be stored: look into the server's log", NULL);
        return GD_TURN_STORE;
    }
    gd_job_move_to(change, GD_JOB_SUCCEEDED);
    gd_job_change_message(change, "info", "The run has completed");
    return GD_TURN_STORE;
}

/* ---- the kind ---- */

static const struct gd_turn_kind turn_started = {.name = "job_started", .prepare = prepare_started};
static const struct gd_turn_kind turn_items = {.name = "job_items", .prepare = prepare_items, .after = after_items};
static const struct gd_turn_kind turn_done = {.name = "job_done", .prepare = prepare_done, .after = gd_job_after_end};
static const struct gd_turn_kind *const turns[] = {&turn_started, &turn_items, &turn_done, NULL};

const struct gd_job_kind_facts gd_job_kind_eval = {
    .noun = "Run",
    .goes_on = "with the items that are not finished",
    .advice = "",
    .reads_done = true,
    .turns = turns,
    .submitted = submitted,
    .missing_model = missing_model,
    .start_frame = start_frame,
};
