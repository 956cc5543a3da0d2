/* Fine-tuning jobs: what a worker is told, and what becomes of what it tells. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/train/spec.h"
#include "server/files.h"
#include "server/job.h"
#include "server/job_attached.h"
#include "server/models.h"
#include <inttypes.h>
#include <string.h>

static void submitted(struct gd_job_change *change)
{
    const struct gd_job_record *record = &change->record;
    gd_job_change_message(change, "info", "Created fine-tuning job: %s", record->id);
    if (record->validation_file != NULL)
        gd_job_change_message(change, "info", "Validating training file: %s and validation file: %s", record->training_file,
                              record->validation_file);
    else
        gd_job_change_message(change, "info", "Validating training file: %s", record->training_file);
    gd_job_change_message(change, "info", "Files validated, moving job to queued state");
}

static const char *missing_model(struct gd_job *job)
{
    return gd_models_find(job->app->models, job->record.model) == NULL ? job->record.model : NULL;
}

static char *pass_key(const struct gd_job *job)
{
    const char *body = job->record.body != NULL ? job->record.body : "{}";
    struct gd_error ignored = {0};
    struct gd_job_spec spec = {0};
    cJSON *json = gd_json_parse(body, strlen(body), SIZE_MAX, &ignored);
    char *key = json != NULL && gd_job_spec_parse(&spec, json, &ignored) ? gd_job_spec_pass_key(&spec) : NULL;
    gd_job_spec_release(&spec);
    cJSON_Delete(json);
    return key;
}

static cJSON *start_frame(struct gd_job *job, const struct gd_job_change *stored, struct gd_error *err)
{
    const struct gd_base_model *base = gd_models_find(job->app->models, job->record.model);
    if (base == NULL) {
        gd_fail(err, GD_NOT_FOUND, "the model has just left the models folder");
        return NULL;
    }
    const struct gd_job_record *record = &job->record;
    cJSON *message = cJSON_CreateObject();
    char *training = gd_file_path(job->app, record->training_file);
    char *validation = record->validation_file != NULL ? gd_file_path(job->app, record->validation_file) : NULL;
    char *folder = gd_format("%s/jobs/%s", job->app->config.data_dir, record->id);
    struct gd_error ignored = {0};
    cJSON *spec = gd_json_parse(record->body, strlen(record->body), SIZE_MAX, &ignored);
    cJSON_AddStringToObject(message, "type", "job_start");
    cJSON_AddStringToObject(message, "job_id", record->id);
    cJSON_AddItemToObject(message, "spec", spec != NULL ? spec : cJSON_CreateObject());
    cJSON_AddStringToObject(message, "training_path", training);
    gd_json_add_text(message, "validation_path", validation);
    cJSON_AddStringToObject(message, "folder", folder);
    cJSON_AddStringToObject(message, "model_path", base->path);
    char *start = record->start_folder != NULL ? gd_format("%s/%s", job->app->config.data_dir, record->start_folder) : NULL;
    gd_json_add_text(message, "init_path", start);
    gd_free(start);
    cJSON_AddNumberToObject(message, "keep_checkpoints", job->app->config.keep_checkpoints);
    cJSON_AddNumberToObject(message, "created_at", (double)job->record.created_at);
    if (!gd_attached_place(job->app, cJSON_GetObjectItemCaseSensitive(gd_json_find(spec, "evaluation"), "evals"), err)) {
        cJSON_Delete(message);
        message = NULL;
    }
    gd_free(training);
    gd_free(validation);
    gd_free(folder);
    return message;
}

static void replace_json(char **text, const cJSON *value)
{
    if (value == NULL || cJSON_IsNull(value))
        return;
    gd_free(*text);
    *text = gd_json_print(value);
}

static enum gd_turn_result prepare_started(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    job->steps_held = false;
    if (!gd_job_on_worker(&job->record))
        return GD_TURN_NOTHING;
    int64_t resumed_from = gd_frame_int(turn->frame, "resumed_from", 0);
    change->update = true;
    change->cut_metrics = true; /* what the last attempt did after its checkpoint is done again */
    change->cut_step = resumed_from;
    change->record.total_steps = gd_frame_int(turn->frame, "total_steps", 0);
    change->record.step = resumed_from;
    const cJSON *hyperparameters = gd_json_find(turn->frame, "hyperparameters");
    const cJSON *precision = gd_json_find(turn->frame, "precision");
    if (cJSON_IsObject(hyperparameters) && cJSON_IsString(precision)) {
        cJSON *both = cJSON_Duplicate(hyperparameters, true);
        cJSON_AddStringToObject(both, "precision", precision->valuestring);
        replace_json(&change->record.hyperparameters, both);
        cJSON_Delete(both);
    } else {
        replace_json(&change->record.hyperparameters, hyperparameters);
    }
    replace_json(&change->record.memory, gd_json_find(turn->frame, "memory"));
    if (resumed_from > 0)
        gd_job_change_message(change, "info", "Continuing from the checkpoint at step %" PRId64, resumed_from);
    gd_job_change_message(change, "info", "Training %" PRId64 " steps on %" PRId64 " rows (%" PRId64 " tokens)",
                          change->record.total_steps, gd_frame_int(turn->frame, "rows", 0), gd_frame_int(turn->frame, "tokens", 0));
    return GD_TURN_STORE;
}

/* Folders are kept relative to the data folder, which may move. */
static char *relative_folder(const struct gd_job *job, const char *folder)
{
    const char *data_dir = job->app->config.data_dir;
    size_t length = strlen(data_dir);
    if (strncmp(folder, data_dir, length) == 0 && folder[length] == '/')
        return gd_strdup(folder + length + 1);
    if (folder[0] == '/')
        return gd_strdup(folder);
    return gd_format("jobs/%s/%s", job->record.id, folder);
}

static enum gd_turn_result prepare_checkpoint(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    int64_t step = gd_frame_int(turn->frame, "step", 0);
    if (!gd_job_on_worker(&job->record))
        return GD_TURN_NOTHING;
    gd_job_take_steps(job, change);
    const cJSON *metrics = gd_json_find(turn->frame, "metrics");
    change->has_checkpoint = true;
    change->checkpoint = (struct gd_checkpoint_record){
        .id = gd_job_checkpoint_id(job->record.id, step),
        .job_id = gd_strdup(job->record.id),
        .model = gd_job_checkpoint_name(&job->record, job->app->organization_id, step),
        .folder = relative_folder(job, gd_frame_text(turn->frame, "folder", "")),
        .metrics = cJSON_IsObject(metrics) ? gd_json_print(metrics) : gd_strdup("{}"),
        .step = step,
        .created_at = gd_time_unix(),
    };
    gd_job_change_message(change, "info", "Checkpoint created at step %" PRId64 " with Snapshot ID: %s", step,
                          change->checkpoint.model);
    return GD_TURN_STORE;
}

/* The worker completes the checkpoint on disk only now: a run that continues from it misses nothing here. */
static void after_checkpoint(struct gd_job *job, struct gd_turn *turn)
{
    gd_job_tell_stored(job, "job_checkpoint_stored", turn->frame, "step");
}

static enum gd_turn_result prepare_done(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    struct gd_job_record *record = &change->record;
    if (!gd_job_on_worker(&job->record))
        return GD_TURN_NOTHING;
    gd_job_take_steps(job, change);
    gd_job_move_to(change, GD_JOB_SUCCEEDED);
    record->trained_tokens = gd_frame_int(turn->frame, "trained_tokens", record->trained_tokens);
    record->step = record->total_steps;
    gd_free(record->fine_tuned_model);
    record->fine_tuned_model = gd_job_model_name(record, job->app->organization_id);
    replace_json(&record->memory, gd_json_find(turn->frame, "memory"));
    change->adapter_folder = relative_folder(job, gd_frame_text(turn->frame, "adapter_folder", "adapter"));
    char *results = gd_job_results_file_id(record->id);
    gd_free(record->result_files);
    record->result_files = gd_format("[\"%s\"]", results);
    gd_free(results);
    gd_job_change_message(change, "info", "New fine-tuned model created: %s", record->fine_tuned_model);
    gd_job_change_message(change, "info", "The job has successfully completed");
    return GD_TURN_STORE;
}

/* ---- the kind ---- */

static const struct gd_turn_kind turn_started = {.name = "job_started", .prepare = prepare_started};
static const struct gd_turn_kind turn_checkpoint = {.name = "job_checkpoint", .prepare = prepare_checkpoint,
                                                    .after = after_checkpoint};
static const struct gd_turn_kind turn_done = {.name = "job_done", .prepare = prepare_done, .after = gd_job_after_end};
static const struct gd_turn_kind *const turns[] = {&turn_started, &turn_checkpoint, &turn_done, NULL};

const struct gd_job_kind_facts gd_job_kind_tuning = {
    .noun = "Fine-tuning job",
    .goes_on = "from its last checkpoint",
    .advice = ", and try a smaller batch_size or data.max_length if memory was short",
    .turns = turns,
    .submitted = submitted,
    .missing_model = missing_model,
    .pass_key = pass_key,
    .start_frame = start_frame,
};
