/* The turns of a job's life: for each call and each frame, what it changes, and what is done once that is stored. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "server/counters.h"
#include "server/files.h"
#include "server/job.h"
#include "server/models.h"
#include "server/supervisor.h"
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- steps and speed ---- */

static int64_t int_of(const cJSON *frame, const char *name, int64_t otherwise)
{
    const cJSON *value = gd_json_find(frame, name);
    return cJSON_IsNumber(value) && fabs(value->valuedouble) < 9e15 ? (int64_t)value->valuedouble : otherwise;
}

static double number_of(const cJSON *frame, const char *name, double otherwise)
{
    const cJSON *value = gd_json_find(frame, name);
    return cJSON_IsNumber(value) ? value->valuedouble : otherwise;
}

static const char *text_of(const cJSON *frame, const char *name, const char *otherwise)
{
    const cJSON *value = gd_json_find(frame, name);
    return cJSON_IsString(value) ? value->valuestring : otherwise;
}

double gd_job_tokens_per_second(const struct gd_job *job)
{
    double tokens = 0, seconds = 0;
    for (int i = 0; i < job->rate_count && i < GD_RATE_WINDOW; i++) {
        if (job->rate_tokens[i] < 0)
            continue;
        tokens += job->rate_tokens[i];
        seconds += job->rate_seconds[i];
    }
    return seconds > 0 ? tokens / seconds : 0;
}

double gd_job_seconds_remaining(const struct gd_job *job)
{
    double seconds = 0;
    int count = job->rate_count < GD_RATE_WINDOW ? job->rate_count : GD_RATE_WINDOW;
    for (int i = 0; i < count; i++)
        seconds += job->rate_seconds[i];
    if (count == 0 || job->live_total_steps <= 0)
        return -1;
    return seconds / count * (double)(job->live_total_steps - job->live_step);
}

void gd_job_take_started(struct gd_job *job, const cJSON *frame)
{
    job->steps_held = true;
    job->live_step = int_of(frame, "resumed_from", 0);
    job->live_total_steps = int_of(frame, "total_steps", 0);
    job->live_tokens = job->live_step == 0 ? 0 : -1;
    job->live_train_loss = job->live_valid_loss = (double)NAN;
    job->rate_count = 0;
}

/* Points of a frame's metrics; null is a value that was not finite. */
static void read_points(struct gd_step_metrics *step, const cJSON *metrics)
{
    int count = cJSON_GetArraySize(metrics);
    step->points = gd_alloc_array((size_t)count, sizeof *step->points);
    const cJSON *metric;
    cJSON_ArrayForEach(metric, metrics) {
        if (!cJSON_IsNumber(metric) && !cJSON_IsNull(metric))
            continue;
        step->points[step->point_count++] = (struct gd_metric_point){
            .name = gd_strdup(metric->string),
            .step = step->step,
            .value = cJSON_IsNumber(metric) ? metric->valuedouble : (double)NAN,
        };
    }
}

void gd_job_take_step(struct gd_job *job, const cJSON *frame)
{
    struct gd_step_metrics step = {.step = int_of(frame, "step", 0), .wall = gd_time_unix_fraction()};
    double seconds = number_of(frame, "seconds", 0), tokens = number_of(frame, "tokens", 0);
    int64_t trained = int_of(frame, "trained_tokens", job->live_trained_tokens);
    gd_counters_add(job->app->counters, GD_COUNTER_JOB_STEPS, 1, NULL);
    if (trained > job->live_trained_tokens)
        gd_counters_add(job->app->counters, GD_COUNTER_TRAINED_TOKENS, (double)(trained - job->live_trained_tokens), NULL);
    job->live_step = step.step;
    job->live_total_steps = int_of(frame, "total_steps", job->live_total_steps);
    job->live_trained_tokens = trained;
    const cJSON *metrics = gd_json_find(frame, "metrics");
    job->live_train_loss = number_of(metrics, "train_loss", job->live_train_loss);
    job->live_valid_loss = number_of(metrics, "valid_loss", job->live_valid_loss);
    bool counted = job->live_tokens >= 0 && tokens >= job->live_tokens; /* not the first step after a resume */
    job->rate_tokens[job->rate_count % GD_RATE_WINDOW] = counted ? tokens - job->live_tokens : -1;
    job->live_tokens = tokens;
    job->rate_seconds[job->rate_count % GD_RATE_WINDOW] = seconds;
    job->rate_count++;
    if (step.step > job->step_high) {
        job->step_high = step.step;
        job->crash_points = 0;
    }
    if (job->step_count >= GD_STEPS_WAITING_MAX) {
        job->steps_dropped++;
        return;
    }
    if (cJSON_IsObject(metrics))
        read_points(&step, metrics);
    if (job->step_count == job->step_capacity) {
        job->step_capacity = job->step_capacity > 0 ? job->step_capacity * 2 : 16;
        job->steps = gd_realloc_array(job->steps, (size_t)job->step_capacity, sizeof *job->steps);
    }
    job->steps[job->step_count++] = step;
}

bool gd_job_reports_step(int64_t step, int64_t total_steps, bool validated)
{
    int64_t every = 1;
    while (step > every * 100)
        every *= 10;
    return validated || step == total_steps || step % every == 0;
}

static const struct gd_metric_point *find_point(const struct gd_step_metrics *step, const char *name)
{
    for (int i = 0; i < step->point_count; i++)
        if (strcmp(step->points[i].name, name) == 0)
            return &step->points[i];
    return NULL;
}

static void report_step(struct gd_job_change *change, const struct gd_step_metrics *step, int64_t total_steps)
{
    const struct gd_metric_point *train = find_point(step, "train_loss"), *valid = find_point(step, "valid_loss");
    if (!gd_job_reports_step(step->step, total_steps, valid != NULL))
        return;
    char message[160];
    int length = snprintf(message, sizeof message, "Step %" PRId64 "/%" PRId64, step->step, total_steps);
    if (train != NULL)
        length += snprintf(message + length, sizeof message - (size_t)length, ": training loss=%.2f", train->value);
    if (valid != NULL)
        snprintf(message + length, sizeof message - (size_t)length, "%svalidation loss=%.2f", train != NULL ? ", " : ": ",
                 valid->value);
    cJSON *data = cJSON_CreateObject();
    cJSON_AddNumberToObject(data, "step", (double)step->step);
    cJSON_AddNumberToObject(data, "total_steps", (double)total_steps);
    for (int i = 0; i < step->point_count; i++)
        if (gd_json_find(data, step->points[i].name) == NULL)
            cJSON_AddItemToObject(data, step->points[i].name, isfinite(step->points[i].value)
                                                                  ? cJSON_CreateNumber(step->points[i].value)
                                                                  : cJSON_CreateNull());
    gd_job_change_metrics_event(change, message, data);
}

/* Moves the waiting steps into the change: every turn that stores something begins with this, so that metrics never come
 * after what followed them. */
static void take_steps(struct gd_job *job, struct gd_job_change *change)
{
    struct gd_job_record *record = &change->record;
    change->update = true;
    if (job->steps_dropped > 0)
        gd_job_change_message(change, "warn", "The metrics of %" PRId64 " steps were not kept: the store could not keep up",
                              job->steps_dropped);
    job->steps_dropped = 0;
    if (job->step_count == 0 || job->steps_held)
        return;
    record->step = job->live_step;
    record->total_steps = job->live_total_steps;
    record->trained_tokens = job->live_trained_tokens;
    double remaining = gd_job_seconds_remaining(job);
    record->estimated_finish = remaining >= 0 ? gd_time_unix() + (int64_t)ceil(remaining) : 0;
    for (int i = 0; i < job->step_count; i++) {
        report_step(change, &job->steps[i], job->live_total_steps);
        gd_job_change_add_step(change, &job->steps[i]);
    }
    job->step_count = 0;
}

/* ---- status ---- */

static void move_to(struct gd_job_change *change, enum gd_job_status to)
{
    assert(gd_job_status_may(change->record.status, to));
    change->record.status = to;
    if (gd_job_status_terminal(to))
        change->record.finished_at = gd_time_unix();
    if (to != GD_JOB_RUNNING && to != GD_JOB_PAUSING)
        change->record.estimated_finish = 0;
}

static bool on_worker(const struct gd_job_record *record)
{
    return record->status == GD_JOB_RUNNING || record->status == GD_JOB_PAUSING;
}

static enum gd_turn_result refuse(const struct gd_job *job, const char *what, const char *which, struct gd_error *err)
{
    gd_fail(err, GD_CONFLICT, "job %s is %s: only a job that is %s can be %s", job->record.id,
            gd_job_status_name(job->record.status), which, what);
    return GD_TURN_REFUSE;
}

static void fail_job(struct gd_job_change *change, const char *code, const char *message, const char *param)
{
    cJSON *error = cJSON_CreateObject();
    cJSON_AddStringToObject(error, "code", code);
    cJSON_AddStringToObject(error, "message", message);
    cJSON_AddItemToObject(error, "param", param != NULL && *param != '\0' ? cJSON_CreateString(param) : cJSON_CreateNull());
    gd_free(change->record.error);
    change->record.error = gd_json_print(error);
    cJSON_Delete(error);
    move_to(change, GD_JOB_FAILED);
    gd_job_change_message(change, "error", "The job failed: %s", message);
}

/* ---- asked by clients ---- */

static enum gd_turn_result prepare_submit(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    const struct gd_job_record *record = &change->record;
    change->insert = true;
    gd_job_change_message(change, "info", "Created fine-tuning job: %s", record->id);
    if (record->validation_file != NULL)
        gd_job_change_message(change, "info", "Validating training file: %s and validation file: %s", record->training_file,
                              record->validation_file);
    else
        gd_job_change_message(change, "info", "Validating training file: %s", record->training_file);
    gd_job_change_message(change, "info", "Files validated, moving job to queued state");
    return GD_TURN_STORE;
}

static enum gd_turn_result prepare_cancel(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    if (gd_job_status_terminal(job->record.status))
        return refuse(job, "cancelled", "not over", err);
    take_steps(job, &turn->change);
    move_to(&turn->change, GD_JOB_CANCELLED);
    gd_job_change_message(&turn->change, "info", "The job has been cancelled");
    return GD_TURN_STORE;
}

static void send_stop(struct gd_job *job, const char *how)
{
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "type", "job_stop");
    cJSON_AddStringToObject(message, "job_id", job->record.id);
    cJSON_AddStringToObject(message, "how", how);
    gd_job_send(job, message);
}

static void after_cancel(struct gd_job *job, struct gd_turn *turn)
{
    if (!turn->stored)
        return;
    if (job->worker >= 0)
        send_stop(job, "cancel");
    gd_job_leave_worker(job);
}

static enum gd_turn_result prepare_pause(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    bool running = job->record.status == GD_JOB_RUNNING;
    if (!running && job->record.status != GD_JOB_QUEUED)
        return refuse(job, "paused", "queued or running", err);
    take_steps(job, &turn->change);
    move_to(&turn->change, running ? GD_JOB_PAUSING : GD_JOB_PAUSED);
    gd_job_change_message(&turn->change, "info", running ? "Pausing: a checkpoint is written first" : "The job is paused");
    return GD_TURN_STORE;
}

static void after_pause(struct gd_job *job, struct gd_turn *turn)
{
    if (turn->stored && job->record.status == GD_JOB_PAUSING && job->worker >= 0)
        send_stop(job, "pause");
}

static enum gd_turn_result prepare_resume(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    if (job->record.status != GD_JOB_PAUSED)
        return refuse(job, "resumed", "paused", err);
    turn->change.update = true;
    move_to(&turn->change, GD_JOB_QUEUED);
    gd_job_change_message(&turn->change, "info", "The job is resumed, moving it to queued state");
    return GD_TURN_STORE;
}

/* ---- giving it to a worker ---- */

static enum gd_turn_result prepare_start(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    if (job->worker < 0 || job->record.status != GD_JOB_QUEUED || gd_scheduler_draining(job->scheduler) ||
        !gd_supervisor_worker_free(job->app->supervisor, job->worker))
        return GD_TURN_NOTHING;
    change->update = true;
    move_to(change, GD_JOB_RUNNING);
    change->record.attempt++;
    if (change->record.started_at == 0)
        change->record.started_at = gd_time_unix();
    if (change->record.attempt == 1)
        gd_job_change_message(change, "info", "Fine-tuning job started");
    else
        gd_job_change_message(change, "info", "Fine-tuning job started again (attempt %d)", change->record.attempt);
    return GD_TURN_STORE;
}

static void send_start(struct gd_job *job, const struct gd_base_model *base)
{
    const struct gd_job_record *record = &job->record;
    cJSON *message = cJSON_CreateObject();
    char *training = gd_file_path(job->app, record->training_file);
    char *validation = record->validation_file != NULL ? gd_file_path(job->app, record->validation_file) : NULL;
    char *folder = gd_format("%s/jobs/%s", job->app->config.data_dir, record->id);
    struct gd_error err = {0};
    cJSON *spec = gd_json_parse(record->body, strlen(record->body), SIZE_MAX, &err);
    cJSON_AddStringToObject(message, "type", "job_start");
    cJSON_AddStringToObject(message, "job_id", record->id);
    cJSON_AddItemToObject(message, "spec", spec != NULL ? spec : cJSON_CreateObject());
    cJSON_AddStringToObject(message, "training_path", training);
    cJSON_AddItemToObject(message, "validation_path",
                          validation != NULL ? cJSON_CreateString(validation) : cJSON_CreateNull());
    cJSON_AddStringToObject(message, "folder", folder);
    cJSON_AddStringToObject(message, "model_path", base->path);
    cJSON_AddNumberToObject(message, "keep_checkpoints", job->app->config.keep_checkpoints);
    cJSON_AddNumberToObject(message, "created_at", (double)job->record.created_at);
    gd_job_send(job, message);
    gd_free(training);
    gd_free(validation);
    gd_free(folder);
}

static void after_start(struct gd_job *job, struct gd_turn *turn)
{
    if (!turn->stored) {
        gd_job_leave_worker(job);
        return;
    }
    job->rate_count = 0;
    job->live_step = job->record.step;
    job->live_total_steps = job->record.total_steps;
    job->live_trained_tokens = job->record.trained_tokens;
    const struct gd_base_model *base = gd_models_find(job->app->models, job->record.model);
    if (base != NULL && job->worker >= 0 && gd_supervisor_worker_free(job->app->supervisor, job->worker)) {
        send_start(job, base);
        return;
    }
    struct gd_turn *lost = gd_job_push_turn(job, &gd_turn_lost, NULL);
    lost->shared_blame = true;
    snprintf(lost->why, sizeof lost->why, "%s", base == NULL ? "the model has just left the models folder"
                                                             : "it ended before it was given the job");
}

static enum gd_turn_result prepare_lost(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    if (!on_worker(&job->record))
        return GD_TURN_NOTHING;
    take_steps(job, change);
    job->crash_points += turn->shared_blame ? GD_CRASH_POINTS_SHARED : GD_CRASH_POINTS_ALONE;
    if (job->record.status == GD_JOB_PAUSING) {
        move_to(change, GD_JOB_PAUSED);
        gd_job_change_message(change, "warn", "The worker ended while the job was pausing (%s); it is paused at its last checkpoint",
                              turn->why);
    } else if (job->crash_points >= GD_CRASH_POINTS_MAX && !gd_scheduler_draining(job->scheduler)) {
        char *message = gd_format("the worker ended again and again while it ran this job, without a new step in between "
                                  "(last: %s); look into the server's log, and try a smaller batch_size or data.max_length "
                                  "if memory was short", turn->why);
        fail_job(change, "worker_crashed", message, NULL);
        gd_free(message);
    } else {
        move_to(change, GD_JOB_QUEUED);
        gd_job_change_message(change, "warn", "The worker ended (%s); the job goes back to the queue and continues from its last checkpoint",
                              turn->why);
    }
    return GD_TURN_STORE;
}

static void after_end(struct gd_job *job, struct gd_turn *turn)
{
    gd_job_leave_worker(job);
}

/* ---- told by the worker ---- */

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
    if (!on_worker(&job->record))
        return GD_TURN_NOTHING;
    int64_t resumed_from = int_of(turn->frame, "resumed_from", 0);
    change->update = true;
    change->cut_metrics = true; /* what the last attempt did after its checkpoint is done again */
    change->cut_step = resumed_from;
    change->record.total_steps = int_of(turn->frame, "total_steps", 0);
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
                          change->record.total_steps, int_of(turn->frame, "rows", 0), int_of(turn->frame, "tokens", 0));
    return GD_TURN_STORE;
}

static enum gd_turn_result prepare_flush(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    job->flush_waits = false;
    if (!on_worker(&job->record) || (job->step_count == 0 && job->steps_dropped == 0))
        return GD_TURN_NOTHING;
    take_steps(job, &turn->change);
    return GD_TURN_STORE;
}

static enum gd_turn_result prepare_message(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    if (gd_job_status_terminal(job->record.status))
        return GD_TURN_NOTHING;
    const char *level = text_of(turn->frame, "level", "info");
    bool known = strcmp(level, "warn") == 0 || strcmp(level, "error") == 0;
    take_steps(job, &turn->change);
    gd_job_change_message(&turn->change, known ? level : "info", "%s", text_of(turn->frame, "message", ""));
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
    int64_t step = int_of(turn->frame, "step", 0);
    if (!on_worker(&job->record))
        return GD_TURN_NOTHING;
    take_steps(job, change);
    const cJSON *metrics = gd_json_find(turn->frame, "metrics");
    change->has_checkpoint = true;
    change->checkpoint = (struct gd_checkpoint_record){
        .id = gd_job_checkpoint_id(job->record.id, step),
        .job_id = gd_strdup(job->record.id),
        .model = gd_job_checkpoint_name(&job->record, job->app->organization_id, step),
        .folder = relative_folder(job, text_of(turn->frame, "folder", "")),
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
    if (job->worker < 0)
        return;
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "type", "job_checkpoint_stored");
    cJSON_AddStringToObject(message, "job_id", job->record.id);
    cJSON_AddNumberToObject(message, "step", (double)int_of(turn->frame, "step", 0));
    gd_job_send(job, message);
}

static enum gd_turn_result prepare_done(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    struct gd_job_record *record = &change->record;
    if (!on_worker(&job->record))
        return GD_TURN_NOTHING;
    take_steps(job, change);
    move_to(change, GD_JOB_SUCCEEDED);
    record->trained_tokens = int_of(turn->frame, "trained_tokens", record->trained_tokens);
    record->step = record->total_steps;
    gd_free(record->fine_tuned_model);
    record->fine_tuned_model = gd_job_model_name(record, job->app->organization_id);
    change->adapter_folder = relative_folder(job, text_of(turn->frame, "adapter_folder", "adapter"));
    char *results = gd_job_results_file_id(record->id);
    gd_free(record->result_files);
    record->result_files = gd_format("[\"%s\"]", results);
    gd_free(results);
    gd_job_change_message(change, "info", "New fine-tuned model created: %s", record->fine_tuned_model);
    gd_job_change_message(change, "info", "The job has successfully completed");
    return GD_TURN_STORE;
}

static enum gd_turn_result prepare_stopped(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    if (!on_worker(&job->record))
        return GD_TURN_NOTHING; /* cancelled: stored before the worker was told */
    take_steps(job, change);
    if (job->record.status == GD_JOB_PAUSING) {
        move_to(change, GD_JOB_PAUSED);
        gd_job_change_message(change, "info", "The job is paused at step %" PRId64, change->record.step);
    } else {
        move_to(change, GD_JOB_QUEUED);
        gd_job_change_message(change, "info", "The server is stopping: the job goes back to the queue at step %" PRId64,
                              change->record.step);
    }
    return GD_TURN_STORE;
}

static enum gd_turn_result prepare_failed(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    if (!on_worker(&job->record))
        return GD_TURN_NOTHING;
    const cJSON *error = gd_json_find(turn->frame, "error");
    take_steps(job, &turn->change);
    fail_job(&turn->change, text_of(error, "code", gd_code_wire(GD_INTERNAL)),
             text_of(error, "message", "the worker gave no reason"), text_of(error, "param", NULL));
    return GD_TURN_STORE;
}

/* ---- the kinds ---- */

const struct gd_turn_kind gd_turn_submit = {.name = "submit", .asked = true, .prepare = prepare_submit};
const struct gd_turn_kind gd_turn_cancel = {.name = "cancel", .asked = true, .prepare = prepare_cancel, .after = after_cancel};
const struct gd_turn_kind gd_turn_pause = {.name = "pause", .asked = true, .prepare = prepare_pause, .after = after_pause};
const struct gd_turn_kind gd_turn_resume = {.name = "resume", .asked = true, .prepare = prepare_resume};
const struct gd_turn_kind gd_turn_start = {.name = "start", .prepare = prepare_start, .after = after_start};
const struct gd_turn_kind gd_turn_lost = {.name = "lost", .prepare = prepare_lost, .after = after_end};
const struct gd_turn_kind gd_turn_flush = {.name = "flush", .prepare = prepare_flush};
const struct gd_turn_kind gd_turn_message = {.name = "job_message", .prepare = prepare_message};
const struct gd_turn_kind gd_turn_failed = {.name = "job_failed", .prepare = prepare_failed, .after = after_end};
static const struct gd_turn_kind turn_started = {.name = "job_started", .prepare = prepare_started};
static const struct gd_turn_kind turn_checkpoint = {.name = "job_checkpoint", .prepare = prepare_checkpoint,
                                                    .after = after_checkpoint};
static const struct gd_turn_kind turn_done = {.name = "job_done", .prepare = prepare_done, .after = after_end};
static const struct gd_turn_kind turn_stopped = {.name = "job_stopped", .prepare = prepare_stopped, .after = after_end};

const struct gd_turn_kind *gd_turn_of_frame(const char *type)
{
    static const struct gd_turn_kind *const kinds[] = {&turn_started, &turn_checkpoint, &turn_done, &turn_stopped,
                                                       &gd_turn_failed, &gd_turn_message};
    for (size_t i = 0; i < GD_COUNT(kinds); i++)
        if (strcmp(kinds[i]->name, type) == 0)
            return kinds[i];
    return NULL;
}

/* ---- recovery ---- */

bool gd_job_recover(struct gd_job_change *change)
{
    enum gd_job_status was = change->record.status;
    if (was == GD_JOB_VALIDATING_FILES) {
        move_to(change, GD_JOB_QUEUED);
        gd_job_change_message(change, "info", "Files validated, moving job to queued state");
    } else if (was == GD_JOB_RUNNING) {
        move_to(change, GD_JOB_QUEUED);
        gd_job_change_message(change, "warn", "The server was restarted: the job goes back to the queue and continues from its last checkpoint");
    } else if (was == GD_JOB_PAUSING) {
        move_to(change, GD_JOB_PAUSED);
        gd_job_change_message(change, "warn", "The server was restarted while the job was pausing; it is paused at its last checkpoint");
    } else {
        return false;
    }
    change->update = true;
    return true;
}
