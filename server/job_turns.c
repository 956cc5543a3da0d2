/* The turns of any job's life: for each call and each frame, what it changes, and what is done once that is stored. What
 * only fine-tuning or only a run of an eval does is in job_tuning.c and job_eval.c. */
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

void gd_job_tell_stored(struct gd_job *job, const char *type, const cJSON *frame, const char *member)
{
    if (job->worker < 0)
        return;
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "type", type);
    cJSON_AddStringToObject(message, "job_id", job->record.id);
    cJSON_AddNumberToObject(message, member, (double)gd_frame_int(frame, member, 0));
    gd_job_send(job, message);
}

/* ---- steps and speed ---- */

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
    job->live_step = gd_frame_int(frame, "resumed_from", 0);
    job->live_total_steps = gd_frame_int(frame, "total_steps", 0);
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
    struct gd_step_metrics step = {.step = gd_frame_int(frame, "step", 0), .wall = gd_time_unix_fraction()};
    double seconds = gd_frame_number(frame, "seconds", 0), tokens = gd_frame_number(frame, "tokens", 0);
    int64_t trained = gd_frame_int(frame, "trained_tokens", job->live_trained_tokens);
    gd_counters_add(job->app->counters, GD_COUNTER_JOB_STEPS, 1, NULL);
    if (trained > job->live_trained_tokens)
        gd_counters_add(job->app->counters, GD_COUNTER_TRAINED_TOKENS, (double)(trained - job->live_trained_tokens), NULL);
    job->live_step = step.step;
    job->live_total_steps = gd_frame_int(frame, "total_steps", job->live_total_steps);
    job->live_trained_tokens = trained;
    const cJSON *metrics = gd_json_find(frame, "metrics");
    job->live_train_loss = gd_frame_number(metrics, "train_loss", job->live_train_loss);
    job->live_valid_loss = gd_frame_number(metrics, "valid_loss", job->live_valid_loss);
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

void gd_job_take_steps(struct gd_job *job, struct gd_job_change *change)
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

void gd_job_move_to(struct gd_job_change *change, enum gd_job_status to)
{
    assert(gd_job_status_may(change->record.status, to));
    change->record.status = to;
    if (gd_job_status_terminal(to))
        change->record.finished_at = gd_time_unix();
    if (to != GD_JOB_RUNNING && to != GD_JOB_PAUSING)
        change->record.estimated_finish = 0;
}

bool gd_job_on_worker(const struct gd_job_record *record)
{
    return record->status == GD_JOB_RUNNING || record->status == GD_JOB_PAUSING;
}

static enum gd_turn_result refuse(const struct gd_job *job, const char *what, const char *which, struct gd_error *err)
{
    gd_fail(err, GD_CONFLICT, "job %s is %s: only a job that is %s can be %s", job->record.id,
            gd_job_status_name(job->record.status), which, what);
    return GD_TURN_REFUSE;
}

void gd_job_fail(struct gd_job_change *change, const char *code, const char *message, const char *param)
{
    cJSON *error = cJSON_CreateObject();
    cJSON_AddStringToObject(error, "code", code);
    cJSON_AddStringToObject(error, "message", message);
    cJSON_AddItemToObject(error, "param", param != NULL && *param != '\0' ? cJSON_CreateString(param) : cJSON_CreateNull());
    gd_free(change->record.error);
    change->record.error = gd_json_print(error);
    cJSON_Delete(error);
    gd_job_move_to(change, GD_JOB_FAILED);
    gd_job_change_message(change, "error", "The job failed: %s", message);
}

/* ---- asked by clients ---- */

static enum gd_turn_result prepare_submit(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    change->insert = true;
    gd_job_kinds[change->record.kind]->submitted(change);
    return GD_TURN_STORE;
}

static enum gd_turn_result prepare_cancel(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    if (gd_job_status_terminal(job->record.status))
        return refuse(job, "cancelled", "not over", err);
    gd_job_take_steps(job, &turn->change);
    gd_job_move_to(&turn->change, GD_JOB_CANCELLED);
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
    gd_job_take_steps(job, &turn->change);
    gd_job_move_to(&turn->change, running ? GD_JOB_PAUSING : GD_JOB_PAUSED);
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
    gd_job_move_to(&turn->change, GD_JOB_QUEUED);
    gd_job_change_message(&turn->change, "info", "The job is resumed, moving it to queued state");
    return GD_TURN_STORE;
}

/* ---- giving it to a worker ---- */

static enum gd_turn_result prepare_start(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    if (job->record.status != GD_JOB_QUEUED || gd_scheduler_draining(job->scheduler) || !gd_job_may_start(job))
        return GD_TURN_NOTHING;
    change->update = true;
    gd_job_move_to(change, GD_JOB_RUNNING);
    change->record.attempt++;
    if (change->record.started_at == 0)
        change->record.started_at = gd_time_unix();
    const struct gd_job_kind_facts *kind = gd_job_kinds[change->record.kind];
    change->read_done = kind->reads_done;
    if (change->record.attempt == 1)
        gd_job_change_message(change, "info", "%s started", kind->noun);
    else
        gd_job_change_message(change, "info", "%s started again (attempt %d)", kind->noun, change->record.attempt);
    return GD_TURN_STORE;
}

static void after_start(struct gd_job *job, struct gd_turn *turn)
{
    if (!turn->stored) {
        gd_job_leave_worker(job);
        return;
    }
    job->alone = false;
    job->rate_count = 0;
    job->live_step = job->record.step;
    job->live_total_steps = job->record.total_steps;
    job->live_trained_tokens = job->record.trained_tokens;
    struct gd_error err = {0};
    cJSON *message = gd_job_kinds[job->record.kind]->start_frame(job, &turn->change, &err);
    if (message != NULL && gd_job_may_start(job)) {
        gd_job_send(job, message);
        return;
    }
    struct gd_turn *lost = gd_job_push_turn(job, &gd_turn_lost, NULL);
    lost->shared_blame = true;
    snprintf(lost->why, sizeof lost->why, "%.150s", message == NULL ? err.message : "it ended before it was given the job");
    cJSON_Delete(message);
}

static enum gd_turn_result prepare_lost(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    if (!gd_job_on_worker(&job->record))
        return GD_TURN_NOTHING;
    gd_job_take_steps(job, change);
    if (!turn->blameless)
        job->crash_points += turn->shared_blame ? GD_CRASH_POINTS_SHARED : GD_CRASH_POINTS_ALONE;
    if (job->record.status == GD_JOB_PAUSING) {
        gd_job_move_to(change, GD_JOB_PAUSED);
        gd_job_change_message(change, "warn", "The worker ended while the job was pausing (%s); it is paused at its last checkpoint",
                              turn->why);
    } else if (job->crash_points >= GD_CRASH_POINTS_MAX && !gd_scheduler_draining(job->scheduler)) {
        char *message = gd_format("the worker ended again and again while it ran this job, without a new step in between "
                                  "(last: %s); look into the server's log%s", turn->why, gd_job_kinds[change->record.kind]->advice);
        gd_job_fail(change, "worker_crashed", message, NULL);
        gd_free(message);
    } else {
        gd_job_move_to(change, GD_JOB_QUEUED);
        gd_job_change_message(change, "warn", "The worker ended (%s); the job goes back to the queue and continues %s", turn->why,
                              gd_job_kinds[change->record.kind]->goes_on);
    }
    return GD_TURN_STORE;
}

void gd_job_after_end(struct gd_job *job, struct gd_turn *turn)
{
    gd_job_leave_worker(job);
}

/* ---- told by the worker ---- */

static enum gd_turn_result prepare_flush(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    job->flush_waits = false;
    if (!gd_job_on_worker(&job->record) || (job->step_count == 0 && job->steps_dropped == 0))
        return GD_TURN_NOTHING;
    gd_job_take_steps(job, &turn->change);
    return GD_TURN_STORE;
}

static enum gd_turn_result prepare_message(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    if (gd_job_status_terminal(job->record.status))
        return GD_TURN_NOTHING;
    const char *level = gd_frame_text(turn->frame, "level", "info");
    bool known = strcmp(level, "warn") == 0 || strcmp(level, "error") == 0;
    gd_job_take_steps(job, &turn->change);
    gd_job_change_message(&turn->change, known ? level : "info", "%s", gd_frame_text(turn->frame, "message", ""));
    return GD_TURN_STORE;
}

static enum gd_turn_result prepare_stopped(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    struct gd_job_change *change = &turn->change;
    if (!gd_job_on_worker(&job->record))
        return GD_TURN_NOTHING; /* cancelled: stored before the worker was told */
    gd_job_take_steps(job, change);
    bool alone = strcmp(gd_frame_text(turn->frame, "how", ""), "alone") == 0;
    if (job->record.status == GD_JOB_PAUSING) {
        gd_job_move_to(change, GD_JOB_PAUSED);
        gd_job_change_message(change, "info", "The job is paused at step %" PRId64, change->record.step);
    } else if (alone) {
        job->alone = true;
        gd_job_move_to(change, GD_JOB_QUEUED);
        gd_job_change_message(change, "info", "The job does not fit beside those that run: it waits until they are done");
    } else {
        gd_job_move_to(change, GD_JOB_QUEUED);
        gd_job_change_message(change, "info", "The server is stopping: the job goes back to the queue at step %" PRId64,
                              change->record.step);
    }
    return GD_TURN_STORE;
}

static enum gd_turn_result prepare_failed(struct gd_job *job, struct gd_turn *turn, struct gd_error *err)
{
    if (!gd_job_on_worker(&job->record))
        return GD_TURN_NOTHING;
    const cJSON *error = gd_json_find(turn->frame, "error");
    gd_job_take_steps(job, &turn->change);
    gd_job_fail(&turn->change, gd_frame_text(error, "code", gd_code_wire(GD_INTERNAL)),
             gd_frame_text(error, "message", "the worker gave no reason"), gd_frame_text(error, "param", NULL));
    return GD_TURN_STORE;
}

/* ---- the kinds ---- */

const struct gd_job_kind_facts *const gd_job_kinds[GD_JOB_KIND_COUNT] = {
    [GD_JOB_KIND_FINE_TUNING] = &gd_job_kind_tuning, [GD_JOB_KIND_EVAL] = &gd_job_kind_eval};

const struct gd_turn_kind gd_turn_submit = {.name = "submit", .asked = true, .prepare = prepare_submit};
const struct gd_turn_kind gd_turn_cancel = {.name = "cancel", .asked = true, .prepare = prepare_cancel, .after = after_cancel};
const struct gd_turn_kind gd_turn_pause = {.name = "pause", .asked = true, .prepare = prepare_pause, .after = after_pause};
const struct gd_turn_kind gd_turn_resume = {.name = "resume", .asked = true, .prepare = prepare_resume};
const struct gd_turn_kind gd_turn_start = {.name = "start", .prepare = prepare_start, .after = after_start};
const struct gd_turn_kind gd_turn_lost = {.name = "lost", .prepare = prepare_lost, .after = gd_job_after_end};
const struct gd_turn_kind gd_turn_flush = {.name = "flush", .prepare = prepare_flush};
const struct gd_turn_kind gd_turn_message = {.name = "job_message", .prepare = prepare_message};
const struct gd_turn_kind gd_turn_failed = {.name = "job_failed", .prepare = prepare_failed, .after = gd_job_after_end};
const struct gd_turn_kind gd_turn_stopped = {.name = "job_stopped", .prepare = prepare_stopped, .after = gd_job_after_end};

const struct gd_turn_kind *gd_turn_of_frame(const struct gd_job *job, const char *type)
{
    static const struct gd_turn_kind *const shared[] = {&gd_turn_stopped, &gd_turn_failed, &gd_turn_message};
    const struct gd_turn_kind *const *own = gd_job_kinds[job->record.kind]->turns;
    for (size_t i = 0; own[i] != NULL; i++)
        if (strcmp(own[i]->name, type) == 0)
            return own[i];
    for (size_t i = 0; i < GD_COUNT(shared); i++)
        if (strcmp(shared[i]->name, type) == 0)
            return shared[i];
    return NULL;
}

/* ---- recovery ---- */

bool gd_job_recover(struct gd_job_change *change)
{
    enum gd_job_status was = change->record.status;
    if (was == GD_JOB_VALIDATING_FILES) {
        gd_job_move_to(change, GD_JOB_QUEUED);
        gd_job_change_message(change, "info", "Files validated, moving job to queued state");
    } else if (was == GD_JOB_RUNNING) {
        gd_job_move_to(change, GD_JOB_QUEUED);
        gd_job_change_message(change, "warn", "The server was restarted: the job goes back to the queue and continues %s",
                              gd_job_kinds[change->record.kind]->goes_on);
    } else if (was == GD_JOB_PAUSING) {
        gd_job_move_to(change, GD_JOB_PAUSED);
        gd_job_change_message(change, "warn", "The server was restarted while the job was pausing; it is paused at its last checkpoint");
    } else {
        return false;
    }
    change->update = true;
    return true;
}
