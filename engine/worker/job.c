/* job.c - one job inside the worker, and how fine-tuning is done: trainer callbacks become frames; requests are served
 * between ops. */
#include "engine/worker/attached.h"
#include "engine/worker/read_back.h"
#include "engine/worker/worker.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"

#include <stdio.h>
#include <string.h>

/* Serving comes first, but training keeps at least this share of the time while both have work. */
#define TRAIN_SHARE_MIN 0.25

struct job {
    struct gd_worker *worker;
    const struct gd_model *model; /* held while the job runs */
    struct gd_attached attached;
    struct gd_trainer *trainer;
};

cJSON *gd_worker_job_frame(const struct gd_worker *worker, const char *type)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "type", type);
    cJSON_AddStringToObject(json, "job_id", worker->job_id);
    return json;
}

static void add_metrics(cJSON *json, const struct gd_metric *metrics, int count)
{
    cJSON *object = cJSON_AddObjectToObject(json, "metrics");
    for (int i = 0; i < count; i++)
        cJSON_AddNumberToObject(object, metrics[i].name, metrics[i].value);
}

static enum gd_train_command poll_job(void *context)
{
    struct gd_worker *worker = ((struct job *)context)->worker;
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
    switch (worker->stop) {
    case GD_STOP_NONE:
        return GD_TRAIN_GO;
    case GD_STOP_CANCEL:
        return GD_TRAIN_CANCEL;
    case GD_STOP_PAUSE:
    case GD_STOP_REQUEUE:
        break;
    }
    return GD_TRAIN_PAUSE;
}

static void on_message(void *context, const char *level, const char *text)
{
    struct job *job = context;
    cJSON *json = gd_worker_job_frame(job->worker, "job_message");
    cJSON_AddStringToObject(json, "level", level);
    cJSON_AddStringToObject(json, "message", text);
    gd_channel_send(&job->worker->channel, json);
}

static void on_started(void *context, int64_t total_steps, int64_t rows, int64_t tokens, const struct gd_job_spec *spec)
{
    struct job *job = context;
    cJSON *json = gd_worker_job_frame(job->worker, "job_started");
    cJSON_AddNumberToObject(json, "total_steps", (double)total_steps);
    cJSON_AddNumberToObject(json, "rows", (double)rows);
    cJSON_AddNumberToObject(json, "tokens", (double)tokens);
    cJSON_AddItemToObject(json, "hyperparameters", gd_job_spec_hyperparameters(spec));
    cJSON_AddStringToObject(json, "precision", spec->precision);
    cJSON_AddItemToObject(json, "memory", gd_trainer_memory(job->trainer));
    cJSON_AddNumberToObject(json, "resumed_from", (double)gd_trainer_resumed_from(job->trainer));
    gd_channel_send(&job->worker->channel, json);
}

static void on_step(void *context, int64_t step, int64_t total_steps, int64_t trained_tokens, int64_t tokens, double seconds,
                    const struct gd_metric *metrics, int metric_count)
{
    struct job *job = context;
    cJSON *json = gd_worker_job_frame(job->worker, "job_step");
    cJSON_AddNumberToObject(json, "step", (double)step);
    cJSON_AddNumberToObject(json, "total_steps", (double)total_steps);
    cJSON_AddNumberToObject(json, "trained_tokens", (double)trained_tokens);
    cJSON_AddNumberToObject(json, "tokens", (double)tokens);
    cJSON_AddNumberToObject(json, "seconds", seconds);
    add_metrics(json, metrics, metric_count);
    gd_channel_send(&job->worker->channel, json);
}

/* Requests are answered while the server stores. */
static bool wait_until_stored(struct gd_worker *worker, int64_t step, struct gd_error *err)
{
    while (worker->stored_step != step) {
        if (worker->stop == GD_STOP_CANCEL)
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
    struct job *job = context;
    cJSON *json = gd_worker_job_frame(job->worker, "job_checkpoint");
    cJSON_AddNumberToObject(json, "step", (double)step);
    cJSON_AddStringToObject(json, "folder", folder);
    add_metrics(json, metrics, metric_count);
    gd_channel_send(&job->worker->channel, json);
    return wait_until_stored(job->worker, step, err);
}

/* A pause waits for the evals of this checkpoint: the next attempt does not repeat them. */
static enum gd_evaluate_command poll_evals(void *context, bool idle)
{
    struct gd_worker *worker = ((struct job *)context)->worker;
    gd_worker_answer(worker, 0);
    gd_worker_publish_stats(worker);
    return worker->stop == GD_STOP_CANCEL ? GD_EVALUATE_STOP : GD_EVALUATE_GO;
}

static bool on_evaluate(void *context, int64_t step, const char *folder, const cJSON *evals, struct gd_metric *metrics, int metric_max,
                        int *metric_count, struct gd_error *err)
{
    struct job *job = context;
    job->attached.residents = &job->worker->residents;
    job->attached.base = job->model;
    job->attached.poll = poll_evals;
    job->attached.context = job;
    return gd_attached_run(&job->attached, folder, evals, metrics, metric_max, metric_count, err);
}

static bool on_read_back(void *context, const char *folder, const struct gd_probe *probe, struct gd_error *err)
{
    struct job *job = context;
    struct gd_residents *residents = &job->worker->residents;
    struct gd_resident *resident = NULL;
    struct gd_graft *graft = NULL;
    double difference = 0;
    if (!gd_residents_model(residents, job->model->id, job->model->path, job->model->quantization, &resident, err) ||
        !gd_residents_infer(residents, resident, err) || !gd_residents_graft(residents, resident, folder, probe->task, &graft, err) ||
        !gd_read_back(resident->infer, graft, probe, &difference, err))
        return false;
    char text[160];
    snprintf(text, sizeof(text), "Read back: log-probabilities of %d tokens differ by %.1e in the mean", probe->count, difference);
    on_message(context, "info", text);
    return true;
}

static bool train(struct gd_worker *worker, const cJSON *message, struct job *job, const char *folder, struct gd_error *err)
{
    const char *model_id = NULL, *model_path = NULL, *training = NULL, *validation = NULL, *init = NULL;
    const cJSON *body = NULL;
    int64_t keep = 3, created_at = 0;
    struct gd_resident *resident = NULL;
    if (!gd_json_get_object(message, "", "spec", true, &body, err) ||
        !gd_json_get_string(message, "", "model_path", true, 1, GD_PATH_BYTES_MAX, &model_path, err) ||
        !gd_json_get_string(message, "", "training_path", true, 1, GD_PATH_BYTES_MAX, &training, err) ||
        !gd_json_get_string(message, "", "validation_path", false, 1, GD_PATH_BYTES_MAX, &validation, err) ||
        !gd_json_get_string(message, "", "init_path", false, 1, GD_PATH_BYTES_MAX, &init, err) ||
        !gd_json_get_int(message, "", "keep_checkpoints", false, 2, 1000, &keep, err) ||
        !gd_json_get_int(message, "", "created_at", false, 0, INT64_MAX >> 11, &created_at, err))
        return false;
    struct gd_job_spec spec = {0};
    if (!gd_job_spec_parse(&spec, body, err))
        return false;
    model_id = spec.model;
    bool ok = gd_residents_model(&worker->residents, model_id, model_path, spec.quantization, &resident, err);
    if (ok) {
        const struct gd_model *model = resident->model;
        struct gd_trainer_options options = {.job_id = worker->job_id, .folder = folder, .training_path = training,
                                             .validation_path = validation, .init_path = init, .keep_checkpoints = (int)keep,
                                             .created_at = created_at};
        struct gd_train_observer observer = {.context = job, .poll = poll_job, .message = on_message, .started = on_started,
                                             .step = on_step, .checkpoint = on_checkpoint, .evaluate = on_evaluate,
                                             .read_back = on_read_back};
        gd_residents_hold(&worker->residents, model, 1);
        job->model = model;
        ok = gd_trainer_create(&job->trainer, model, &spec, &options, &observer, err) && gd_trainer_run(job->trainer, err);
        gd_residents_hold(&worker->residents, model, -1);
    }
    gd_job_spec_release(&spec);
    return ok;
}

static bool tune(struct gd_worker *worker, const cJSON *message, cJSON *done, struct gd_error *err)
{
    const char *folder = NULL;
    struct job job = {.worker = worker};
    bool ok = gd_json_get_string(message, "", "folder", true, 1, GD_PATH_BYTES_MAX, &folder, err) &&
              train(worker, message, &job, folder, err);
    if (ok) {
        char *adapter = gd_format("%s/adapter", folder);
        cJSON_AddStringToObject(done, "adapter_folder", adapter);
        cJSON_AddNumberToObject(done, "trained_tokens", (double)gd_trainer_trained_tokens(job.trainer));
        gd_free(adapter);
    }
    gd_trainer_destroy(job.trainer);
    return ok;
}

/* Kinds of job, by the job_start frame's `kind`. */
static const struct kind {
    const char *name, *busy;
    bool (*run)(struct gd_worker *worker, const cJSON *message, cJSON *done, struct gd_error *err);
} kinds[] = {{"fine_tuning", "train", tune}, {"eval", "evaluate", gd_worker_evaluate}};

static const struct kind *find_kind(const cJSON *message, struct gd_error *err)
{
    const char *name = kinds[0].name;
    if (!gd_json_get_string(message, "", "kind", false, 1, 64, &name, err))
        return NULL;
    for (size_t i = 0; i < GD_COUNT(kinds); i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    gd_fail(err, GD_INTERNAL, "no job of kind '%s' is known", name);
    return NULL;
}

static void set_status(struct gd_worker *worker, const char *job_id, const char *busy)
{
    pthread_mutex_lock(&worker->status_mutex);
    strcpy(worker->status_job, job_id);
    worker->status_busy = busy;
    pthread_mutex_unlock(&worker->status_mutex);
}

static const char *stop_name(enum gd_stop stop)
{
    return stop == GD_STOP_PAUSE ? "pause" : stop == GD_STOP_REQUEUE ? "requeue" : "cancel";
}

void gd_worker_run_job(struct gd_worker *worker, const cJSON *message)
{
    const char *job_id = NULL;
    struct gd_error err = {0};
    if (!gd_json_get_string(message, "", "job_id", true, 1, 127, &job_id, &err)) {
        gd_log_error("job", "error=%s", err.message);
        return;
    }
    const struct kind *kind = find_kind(message, &err);
    worker->job_id = gd_strdup(job_id);
    worker->stored_step = -1;
    worker->last_clock = gd_time_monotonic();
    set_status(worker, job_id, kind != NULL ? kind->busy : "idle");
    cJSON *json = gd_worker_job_frame(worker, "job_done");
    if (kind == NULL || !kind->run(worker, message, json, &err)) {
        bool stopped = err.code == GD_CANCELLED && worker->stop != GD_STOP_NONE;
        cJSON_Delete(json);
        json = gd_worker_job_frame(worker, stopped ? "job_stopped" : "job_failed");
        if (stopped)
            cJSON_AddStringToObject(json, "how", stop_name(worker->stop));
        else
            cJSON_AddItemToObject(json, "error", gd_error_to_json(&err));
    }
    set_status(worker, "", "idle");
    gd_channel_send(&worker->channel, json);
    gd_free(worker->job_id);
    worker->job_id = NULL;
    worker->stop = GD_STOP_NONE;
}
