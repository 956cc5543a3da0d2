/* tuning.c - fine-tuning jobs inside the worker, several side by side: trainer callbacks become frames; requests are served
 * between ops. */
#include "engine/worker/attached.h"
#include "engine/worker/plan.h"
#include "engine/worker/read_back.h"
#include "engine/worker/worker.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/train/job_group.h"

#include <stdio.h>
#include <string.h>

/* Serving comes first, but training keeps at least this share of the time while both have work. */
#define TRAIN_SHARE_MIN 0.25

/* One job and what it trains with. */
struct tuning {
    struct gd_worker_job job;     /* first */
    struct gd_job_spec spec;
    char *folder;
    const struct gd_model *model; /* held while the job runs */
    struct gd_attached attached;
    struct gd_trainer *trainer;
};

static void add_metrics(cJSON *json, const struct gd_metric *metrics, int count)
{
    cJSON *object = cJSON_AddObjectToObject(json, "metrics");
    for (int i = 0; i < count; i++)
        cJSON_AddNumberToObject(object, metrics[i].name, metrics[i].value);
}

/* Answers and decodes, as far as serving has its share. */
static void serve(struct gd_worker *worker)
{
    gd_worker_answer(worker, 0);
    double now = gd_time_monotonic();
    worker->train_seconds += now - worker->last_clock;
    worker->last_clock = now;
    if (!gd_residents_busy(&worker->residents)) {
        worker->serve_seconds = worker->train_seconds = 0;
    } else if (worker->train_seconds >= TRAIN_SHARE_MIN * (worker->serve_seconds + worker->train_seconds)) {
        gd_residents_turn(&worker->residents);
        now = gd_time_monotonic();
        worker->serve_seconds += now - worker->last_clock;
        worker->last_clock = now;
        gd_worker_publish_stats(worker);
    }
}

static enum gd_train_command poll_job(void *context)
{
    const struct tuning *tuning = context;
    serve(tuning->job.worker);
    switch (tuning->job.stop) {
    case GD_STOP_NONE:
        return GD_TRAIN_GO;
    case GD_STOP_CANCEL:
        return GD_TRAIN_CANCEL;
    case GD_STOP_PAUSE:
    case GD_STOP_REQUEUE:
    case GD_STOP_ALONE:
        break;
    }
    return GD_TRAIN_PAUSE;
}

/* A pass of several goes on while one of them wants it. */
static bool between_ops(void *context)
{
    const struct gd_worker *worker = context;
    bool wanted = false;
    serve(context);
    for (int i = 0; i < worker->job_count; i++)
        wanted |= worker->jobs[i]->stop != GD_STOP_CANCEL;
    return wanted;
}

static void on_message(void *context, const char *level, const char *text)
{
    struct tuning *tuning = context;
    cJSON *json = gd_worker_job_frame(&tuning->job, "job_message");
    cJSON_AddStringToObject(json, "level", level);
    cJSON_AddStringToObject(json, "message", text);
    gd_channel_send(&tuning->job.worker->channel, json);
}

static void on_started(void *context, int64_t total_steps, int64_t rows, int64_t tokens, const struct gd_job_spec *spec)
{
    struct tuning *tuning = context;
    cJSON *json = gd_worker_job_frame(&tuning->job, "job_started");
    cJSON_AddNumberToObject(json, "total_steps", (double)total_steps);
    cJSON_AddNumberToObject(json, "rows", (double)rows);
    cJSON_AddNumberToObject(json, "tokens", (double)tokens);
    cJSON_AddItemToObject(json, "hyperparameters", gd_job_spec_hyperparameters(spec));
    cJSON_AddStringToObject(json, "precision", spec->precision);
    cJSON_AddItemToObject(json, "memory", gd_trainer_memory(tuning->trainer));
    cJSON_AddNumberToObject(json, "resumed_from", (double)gd_trainer_resumed_from(tuning->trainer));
    gd_channel_send(&tuning->job.worker->channel, json);
}

static void on_step(void *context, int64_t step, int64_t total_steps, int64_t trained_tokens, int64_t tokens, double seconds,
                    const struct gd_metric *metrics, int metric_count)
{
    struct tuning *tuning = context;
    cJSON *json = gd_worker_job_frame(&tuning->job, "job_step");
    cJSON_AddNumberToObject(json, "step", (double)step);
    cJSON_AddNumberToObject(json, "total_steps", (double)total_steps);
    cJSON_AddNumberToObject(json, "trained_tokens", (double)trained_tokens);
    cJSON_AddNumberToObject(json, "tokens", (double)tokens);
    cJSON_AddNumberToObject(json, "seconds", seconds);
    add_metrics(json, metrics, metric_count);
    gd_channel_send(&tuning->job.worker->channel, json);
}

/* Requests are answered while the server stores. */
static bool wait_until_stored(const struct gd_worker_job *job, int64_t step, struct gd_error *err)
{
    struct gd_worker *worker = job->worker;
    while (job->stored_step != step) {
        if (job->stop == GD_STOP_CANCEL)
            return gd_fail(err, GD_CANCELLED, "cancelled at step %lld", (long long)step);
        bool busy = gd_residents_busy(&worker->residents);
        cJSON *message = gd_channel_receive(&worker->channel, busy ? 0 : -1);
        atomic_fetch_add(&worker->watermark, 1);
        if (message != NULL)
            gd_worker_message(worker, message);
        else
            gd_residents_turn(&worker->residents);
        cJSON_Delete(message);
    }
    return true;
}

static bool on_checkpoint(void *context, int64_t step, const char *folder, const struct gd_metric *metrics,
                          int metric_count, struct gd_error *err)
{
    struct tuning *tuning = context;
    cJSON *json = gd_worker_job_frame(&tuning->job, "job_checkpoint");
    cJSON_AddNumberToObject(json, "step", (double)step);
    cJSON_AddStringToObject(json, "folder", folder);
    add_metrics(json, metrics, metric_count);
    gd_channel_send(&tuning->job.worker->channel, json);
    return wait_until_stored(&tuning->job, step, err);
}

/* A pause waits for the evals of this checkpoint: the next attempt does not repeat them. */
static enum gd_evaluate_command poll_evals(void *context, bool idle)
{
    const struct tuning *tuning = context;
    gd_worker_answer(tuning->job.worker, 0);
    gd_worker_publish_stats(tuning->job.worker);
    return tuning->job.stop == GD_STOP_CANCEL ? GD_EVALUATE_STOP : GD_EVALUATE_GO;
}

static bool on_evaluate(void *context, int64_t step, const char *folder, const cJSON *evals, struct gd_metric *metrics, int metric_max,
                        int *metric_count, struct gd_error *err)
{
    struct tuning *tuning = context;
    tuning->attached.residents = &tuning->job.worker->residents;
    tuning->attached.base = tuning->model;
    tuning->attached.poll = poll_evals;
    tuning->attached.context = tuning;
    return gd_attached_run(&tuning->attached, folder, evals, metrics, metric_max, metric_count, err);
}

static bool on_read_back(void *context, const char *folder, const struct gd_probe *probe, struct gd_error *err)
{
    struct tuning *tuning = context;
    struct gd_residents *residents = &tuning->job.worker->residents;
    struct gd_resident *resident = NULL;
    struct gd_graft *graft = NULL;
    double difference = 0;
    if (!gd_residents_model(residents, tuning->model->id, tuning->model->path, tuning->model->quantization, &resident, err) ||
        !gd_residents_infer(residents, resident, err) || !gd_residents_graft(residents, resident, folder, probe->task, &graft, err) ||
        !gd_read_back(resident->infer, graft, probe, &difference, err))
        return false;
    char text[160];
    snprintf(text, sizeof(text), "Read back: log-probabilities of %d tokens differ by %.1e in the mean", probe->count, difference);
    on_message(context, "info", text);
    return true;
}

/* Requests that are under way are answered first. */
static void make_room(void *context, size_t bytes)
{
    struct tuning *tuning = context;
    struct gd_worker *worker = tuning->job.worker;
    while (!gd_residents_make_room(&worker->residents, tuning->model, bytes) && gd_residents_busy(&worker->residents) &&
           tuning->job.stop == GD_STOP_NONE) {
        gd_residents_turn(&worker->residents);
        atomic_fetch_add(&worker->watermark, 1);
    }
}

static bool begin_training(struct tuning *tuning, const cJSON *message, struct gd_error *err)
{
    const char *folder = NULL, *model_path = NULL, *training = NULL, *validation = NULL, *init = NULL;
    const cJSON *body = NULL;
    int64_t keep = 3, created_at = 0;
    struct gd_resident *resident = NULL;
    struct gd_residents *residents = &tuning->job.worker->residents;
    if (!gd_json_get_string(message, "", "folder", true, 1, GD_PATH_BYTES_MAX, &folder, err) ||
        !gd_json_get_object(message, "", "spec", true, &body, err) ||
        !gd_json_get_string(message, "", "model_path", true, 1, GD_PATH_BYTES_MAX, &model_path, err) ||
        !gd_json_get_string(message, "", "training_path", true, 1, GD_PATH_BYTES_MAX, &training, err) ||
        !gd_json_get_string(message, "", "validation_path", false, 1, GD_PATH_BYTES_MAX, &validation, err) ||
        !gd_json_get_string(message, "", "init_path", false, 1, GD_PATH_BYTES_MAX, &init, err) ||
        !gd_json_get_int(message, "", "keep_checkpoints", false, 2, 1000, &keep, err) ||
        !gd_json_get_int(message, "", "created_at", false, 0, INT64_MAX >> 11, &created_at, err) ||
        !gd_job_spec_parse(&tuning->spec, body, err) ||
        !gd_residents_model(residents, tuning->spec.model, model_path, tuning->spec.quantization, &resident, err))
        return false;
    tuning->folder = gd_strdup(folder);
    tuning->model = resident->model;
    gd_residents_hold(residents, tuning->model, 1);
    struct gd_trainer_options options = {.job_id = tuning->job.id, .folder = folder, .training_path = training,
                                         .validation_path = validation, .init_path = init, .keep_checkpoints = (int)keep,
                                         .created_at = created_at};
    struct gd_train_observer observer = {.context = tuning, .poll = poll_job, .message = on_message, .started = on_started,
                                         .step = on_step, .checkpoint = on_checkpoint, .evaluate = on_evaluate,
                                         .read_back = on_read_back, .make_room = make_room};
    gd_plan_room(&options.room, resident->model, &tuning->spec, residents->cache_bytes);
    return gd_trainer_create(&tuning->trainer, tuning->model, &tuning->spec, &options, &observer, err);
}

static void end_tuning(struct tuning *tuning, bool ok, const struct gd_error *err)
{
    cJSON *json = NULL;
    if (ok) {
        char *adapter = gd_format("%s/adapter", tuning->folder);
        json = gd_worker_job_frame(&tuning->job, "job_done");
        cJSON_AddStringToObject(json, "adapter_folder", adapter);
        cJSON_AddNumberToObject(json, "trained_tokens", (double)gd_trainer_trained_tokens(tuning->trainer));
        cJSON_AddItemToObject(json, "memory", gd_trainer_memory(tuning->trainer));
        gd_free(adapter);
    }
    gd_trainer_destroy(tuning->trainer);
    if (tuning->model != NULL)
        gd_residents_hold(&tuning->job.worker->residents, tuning->model, -1);
    gd_job_spec_release(&tuning->spec);
    gd_free(tuning->folder);
    gd_worker_job_end(&tuning->job, json, err);
    gd_free(tuning);
}

static void on_left(void *context, struct gd_trainer *trainer, bool ok, const struct gd_error *err)
{
    struct gd_worker *worker = context;
    for (int i = 0; i < worker->job_count; i++) {
        struct tuning *tuning = (struct tuning *)worker->jobs[i];
        if (tuning->trainer == trainer) {
            end_tuning(tuning, ok, err);
            return;
        }
    }
}

/* The job joins, or it is over already. */
static void begin_tuning(struct gd_worker *worker, struct gd_job_group *group, const cJSON *message)
{
    struct gd_error err = {0};
    struct tuning *tuning = gd_alloc(sizeof(*tuning));
    bool ok = gd_worker_job_begin(&tuning->job, worker, message, "train", &err);
    if (!ok) {
        gd_free(tuning);
        return;
    }
    bool begun = begin_training(tuning, message, &err), crowded = !begun && err.code == GD_NO_MEMORY && group->count > 0;
    if (!begun && !crowded) {
        end_tuning(tuning, false, &err);
    } else if (crowded || !gd_job_group_takes(group, tuning->trainer)) {
        gd_error_clear(&err);
        tuning->job.stop = tuning->job.stop == GD_STOP_NONE ? GD_STOP_ALONE : tuning->job.stop;
        gd_fail(&err, GD_CANCELLED, "it cannot train beside the others");
        end_tuning(tuning, false, &err);
    } else {
        gd_job_group_add(group, tuning->trainer);
    }
}

void gd_worker_tune(struct gd_worker *worker, const cJSON *message)
{
    struct gd_job_group group;
    struct gd_job_group_observer observer = {.context = worker, .between = between_ops, .left = on_left};
    gd_job_group_init(&group, &observer);
    begin_tuning(worker, &group, message);
    while (group.count > 0) {
        gd_job_group_turn(&group);
        while (group.count > 0 && worker->job_count < GD_WORKER_JOBS_MAX && !worker->shutting_down) {
            cJSON *next = gd_worker_next_tuning(worker);
            if (next == NULL)
                break;
            gd_job_group_rest(&group);
            begin_tuning(worker, &group, next);
            cJSON_Delete(next);
        }
    }
    gd_job_group_release(&group);
}
