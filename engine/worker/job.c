/* job.c - jobs inside the worker: which run, how each is stopped, and how it reports its end. */
#include "engine/worker/worker.h"

#include "engine/tensor/device.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

cJSON *gd_worker_job_frame(const struct gd_worker_job *job, const char *type)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "type", type);
    cJSON_AddStringToObject(json, "job_id", job->id);
    return json;
}

struct gd_worker_job *gd_worker_find_job(const struct gd_worker *worker, const char *id)
{
    for (int i = 0; i < worker->job_count; i++)
        if (strcmp(worker->jobs[i]->id, id) == 0)
            return worker->jobs[i];
    return NULL;
}

/* The heartbeat names the oldest. */
static void set_status(struct gd_worker *worker)
{
    const struct gd_worker_job *first = worker->job_count > 0 ? worker->jobs[0] : NULL;
    pthread_mutex_lock(&worker->status_mutex);
    snprintf(worker->status_job, sizeof(worker->status_job), "%s", first != NULL ? first->id : "");
    worker->status_busy = first != NULL ? first->busy : "idle";
    pthread_mutex_unlock(&worker->status_mutex);
}

bool gd_worker_job_begin(struct gd_worker_job *job, struct gd_worker *worker, const cJSON *message, const char *busy,
                         struct gd_error *err)
{
    const char *id = NULL;
    if (!gd_json_get_string(message, "", "job_id", true, 1, 127, &id, err)) {
        gd_log_error("job", "error=%s", err->message);
        return false;
    }
    assert(worker->job_count < GD_WORKER_JOBS_MAX);
    *job = (struct gd_worker_job){.worker = worker, .id = gd_strdup(id), .busy = busy, .stored_step = -1};
    if (worker->shutting_down)
        job->stop = GD_STOP_REQUEUE;
    if (worker->job_count == 0)
        worker->last_clock = gd_time_monotonic();
    worker->jobs[worker->job_count++] = job;
    set_status(worker);
    return true;
}

static const char *stop_name(enum gd_stop stop)
{
    static const char *const names[] = {[GD_STOP_PAUSE] = "pause", [GD_STOP_REQUEUE] = "requeue", [GD_STOP_ALONE] = "alone",
                                        [GD_STOP_CANCEL] = "cancel"};
    return names[stop];
}

void gd_worker_job_end(struct gd_worker_job *job, cJSON *done_taken, const struct gd_error *err)
{
    struct gd_worker *worker = job->worker;
    cJSON *json = done_taken;
    if (json == NULL && gd_device_lost() != NULL) /* not the job's fault */
        gd_worker_give_up(&worker->channel, gd_device_lost());
    if (json == NULL) {
        bool stopped = err->code == GD_CANCELLED && job->stop != GD_STOP_NONE;
        json = gd_worker_job_frame(job, stopped ? "job_stopped" : "job_failed");
        if (stopped)
            cJSON_AddStringToObject(json, "how", stop_name(job->stop));
        else
            cJSON_AddItemToObject(json, "error", gd_error_to_json(err));
    }
    int at = 0;
    while (worker->jobs[at] != job)
        at++;
    memmove(worker->jobs + at, worker->jobs + at + 1, sizeof(worker->jobs[0]) * (size_t)(--worker->job_count - at));
    set_status(worker);
    gd_channel_send(&worker->channel, json);
    gd_free(job->id);
}

/* ---- orders that wait ---- */

static const char *kind_of(const cJSON *message)
{
    const cJSON *kind = gd_json_find(message, "kind");
    return cJSON_IsString(kind) ? kind->valuestring : "fine_tuning";
}

cJSON *gd_worker_next_tuning(struct gd_worker *worker)
{
    const cJSON *first = cJSON_GetArrayItem(worker->pending_jobs, 0);
    return first != NULL && strcmp(kind_of(first), "fine_tuning") == 0 ? cJSON_DetachItemFromArray(worker->pending_jobs, 0) : NULL;
}

void gd_worker_run_job(struct gd_worker *worker)
{
    cJSON *message = cJSON_DetachItemFromArray(worker->pending_jobs, 0);
    struct gd_worker_job job;
    struct gd_error err = {0};
    if (strcmp(kind_of(message), "fine_tuning") == 0) {
        gd_worker_tune(worker, message);
    } else if (gd_worker_job_begin(&job, worker, message, "evaluate", &err)) {
        bool known = strcmp(kind_of(message), "eval") == 0;
        bool ok = known ? gd_worker_evaluate(&job, message, &err)
                        : gd_fail(&err, GD_INTERNAL, "no job of kind '%s' is known", kind_of(message));
        gd_worker_job_end(&job, ok ? gd_worker_job_frame(&job, "job_done") : NULL, &err);
    }
    cJSON_Delete(message);
}
