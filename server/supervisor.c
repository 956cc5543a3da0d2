/* Lives of workers: started, heard, lost, started anew, stopped; and the jobs that they have. */
#include "server/supervisor_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/log.h"
#include "server/scheduler.h"
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define BACKOFF_FIRST_MS 100u
#define BACKOFF_MAX_MS 10000u
#define STOOD_MS 30000        /* ready for this long: the next restart is prompt again */
#define SHUTDOWN_MS 60000     /* for a checkpoint */

static const char *const state_names[] = {"restarting", "starting", "ready", "stopped", "failed"};

/* ---- frames from a worker ---- */

static void on_ready(struct gd_supervised *worker, const cJSON *frame)
{
    struct gd_supervisor *supervisor = worker->supervisor;
    const cJSON *version = gd_json_find(frame, "version");
    if (!cJSON_IsNumber(version) || version->valuedouble != GD_PROTOCOL_VERSION) {
        gd_log_error("worker", "worker=%d protocol version is not %d", worker->index, GD_PROTOCOL_VERSION);
        gd_worker_process_kill(worker->process);
        return;
    }
    cJSON_Delete(worker->ready);
    worker->ready = cJSON_Duplicate(frame, true);
    worker->ready_ms = gd_supervisor_now(supervisor);
    worker->state = GD_SUPERVISED_READY;
    gd_log_info("worker", "worker=%d pid=%d ready after_ms=%" PRIu64, worker->index,
                gd_worker_process_pid(worker->process), worker->ready_ms - worker->started_ms);
    if (worker->ending)
        return;
    gd_pending_send(worker);
    if (supervisor->app->scheduler != NULL)
        gd_scheduler_worker_ready(supervisor->app->scheduler, worker->index);
}

static void remove_job(struct gd_supervised *worker, const char *id)
{
    int kept = 0;
    for (int i = 0; i < worker->job_count; i++)
        if (strcmp(worker->job_ids[i], id) == 0)
            gd_free(worker->job_ids[i]);
        else
            worker->job_ids[kept++] = worker->job_ids[i];
    worker->job_count = kept;
}

static void on_job_frame(struct gd_supervised *worker, const char *type, const cJSON *frame)
{
    const cJSON *job_id = gd_json_find(frame, "job_id");
    if (!cJSON_IsString(job_id))
        return;
    bool ended = strcmp(type, "job_done") == 0 || strcmp(type, "job_stopped") == 0 || strcmp(type, "job_failed") == 0;
    if (ended)
        remove_job(worker, job_id->valuestring);
    if (worker->supervisor->app->scheduler != NULL)
        gd_scheduler_worker_frame(worker->supervisor->app->scheduler, worker->index, frame);
}

/* The process ends by itself. */
static void on_device_failed(struct gd_supervised *worker, const cJSON *frame)
{
    const cJSON *message = gd_json_find(frame, "message");
    gd_free(worker->failure);
    worker->failure = gd_strdup(cJSON_IsString(message) ? message->valuestring : "no reason was given");
}

static void on_worker_frame(void *context, const cJSON *frame)
{
    struct gd_supervised *worker = context;
    worker->heard_ms = gd_supervisor_now(worker->supervisor);
    const char *type = gd_json_find(frame, "type")->valuestring;
    if (strcmp(type, "token") == 0)
        gd_pending_answer(worker, frame, false);
    else if (strcmp(type, "generated") == 0 || strcmp(type, "scored") == 0 || strcmp(type, "result") == 0 || strcmp(type, "failed") == 0)
        gd_pending_answer(worker, frame, true);
    else if (strcmp(type, "heartbeat") == 0)
        gd_pulse_take(worker, frame);
    else if (strcmp(type, "ready") == 0)
        on_ready(worker, frame);
    else if (strcmp(type, "device_failed") == 0)
        on_device_failed(worker, frame);
    else if (strncmp(type, "job_", 4) == 0)
        on_job_frame(worker, type, frame);
    else
        gd_log_warn("worker", "worker=%d unknown frame type=%s", worker->index, type);
}

/* ---- life of a worker ---- */

static void start_worker(struct gd_supervised *worker);

static void on_restart_time(uv_timer_t *timer)
{
    start_worker(timer->data);
}

static void forget_incarnation(struct gd_supervised *worker)
{
    cJSON_Delete(worker->ready);
    cJSON_Delete(worker->heartbeat);
    worker->ready = worker->heartbeat = NULL;
    while (worker->job_count > 0)
        gd_free(worker->job_ids[--worker->job_count]);
    worker->process = NULL;
    worker->watermark = 0;
    worker->watermark_ms = 0;
    worker->interval_count = 0;
    worker->ending = false;
}

static void restart_later(struct gd_supervised *worker)
{
    uint64_t delay = BACKOFF_FIRST_MS << (worker->failures < 7 ? worker->failures : 7);
    worker->failures++;
    worker->restarts++;
    worker->state = GD_SUPERVISED_WAITING;
    uv_timer_start(&worker->timer, on_restart_time, delay < BACKOFF_MAX_MS ? delay : BACKOFF_MAX_MS, 0);
}

static void tell_when_stopped(struct gd_supervisor *supervisor)
{
    for (int i = 0; i < supervisor->worker_count; i++)
        if (supervisor->workers[i].state != GD_SUPERVISED_STOPPED)
            return;
    void (*stopped)(void *context) = supervisor->stopped;
    supervisor->stopped = NULL;
    if (stopped != NULL)
        stopped(supervisor->stopped_context);
}

static void on_gone(void *context, const char *why)
{
    struct gd_supervised *worker = context;
    struct gd_supervisor *supervisor = worker->supervisor;
    bool was_ready = worker->state == GD_SUPERVISED_READY;
    int pid = gd_worker_process_pid(worker->process);
    if (was_ready && gd_supervisor_now(supervisor) - worker->ready_ms >= STOOD_MS)
        worker->failures = 0;
    if (!supervisor->stopping)
        gd_log_error("worker", "worker=%d pid=%d gone: %s in_flight=%d jobs=%d job_id=%s", worker->index, pid, why,
                     worker->in_flight, worker->job_count, worker->job_count > 0 ? worker->job_ids[0] : "-");
    uv_timer_stop(&worker->timer);
    worker->state = GD_SUPERVISED_STOPPED;
    if (supervisor->app->scheduler != NULL)
        gd_scheduler_worker_lost(supervisor->app->scheduler, worker->index, worker->failure != NULL ? worker->failure : why,
                                 worker->failure != NULL);
    forget_incarnation(worker);
    struct gd_error err = {0};
    if (supervisor->stopping) {
        gd_fail_stopping(&err);
    } else if (worker->failure != NULL) {
        worker->state = GD_SUPERVISED_FAILED;
        gd_log_error("worker", "worker=%d device=%s is out of the pool until the server is started anew: %s", worker->index,
                     worker->device, worker->failure);
        gd_fail(&err, GD_DEVICE_LOST, "the device that served this request cannot be used any more (%s): try again", worker->failure);
    } else {
        restart_later(worker);
        gd_fail(&err, GD_UNAVAILABLE, "the worker that served this request ended (%s); a new one is being started: try again",
                why);
    }
    gd_pending_fail(worker, supervisor->stopping || !was_ready || worker->state == GD_SUPERVISED_FAILED, &err);
    if (supervisor->stopping)
        tell_when_stopped(supervisor);
}

static void start_worker(struct gd_supervised *worker)
{
    struct gd_supervisor *supervisor = worker->supervisor;
    const struct gd_config *config = &supervisor->app->config;
    struct gd_worker_process_options options = {
        .loop = supervisor->app->loop,
        .device = worker->device,
        .threads = gd_config_worker_threads(config),
        .cache_bytes = config->cache_bytes,
        .memory_bytes = gd_config_worker_bytes(config),
        .data_dir = config->data_dir,
        .packed_cache_bytes = config->packed_cache_bytes,
        .context = worker,
        .frame = on_worker_frame,
        .gone = on_gone,
    };
    struct gd_error err = {0};
    worker->started_ms = worker->heard_ms = gd_supervisor_now(supervisor);
    worker->state = GD_SUPERVISED_STARTING;
    if (!gd_worker_process_start(&worker->process, &options, &err)) {
        gd_log_error("worker", "worker=%d %s", worker->index, err.message);
        restart_later(worker);
        gd_pending_fail(worker, true, &err);
    }
}

/* ---- start and stop ---- */

bool gd_supervisor_start(struct gd_supervisor **out, struct gd_app *app, struct gd_error *err)
{
    struct gd_supervisor *supervisor = gd_alloc(sizeof *supervisor);
    supervisor->app = app;
    supervisor->next_id = 1;
    supervisor->heartbeat_ms = GD_HEARTBEAT_SILENCE_MS;
    supervisor->watermark_ms = GD_WATERMARK_SILENCE_MS;
    supervisor->watermark_first_ms = GD_WATERMARK_FIRST_MS;
    char names[GD_DEVICES_MAX][GD_DEVICE_NAME_BYTES];
    supervisor->worker_count = gd_config_devices(&app->config, names);
    supervisor->workers = gd_alloc_array((size_t)supervisor->worker_count, sizeof *supervisor->workers);
    supervisor->open_handles = 1 + supervisor->worker_count;
    uv_update_time(app->loop);
    uv_timer_init(app->loop, &supervisor->tick);
    supervisor->tick.data = supervisor;
    gd_pulse_start(supervisor);
    *out = supervisor;
    for (int i = 0; i < supervisor->worker_count; i++) {
        struct gd_supervised *worker = &supervisor->workers[i];
        worker->supervisor = supervisor;
        worker->index = i;
        memcpy(worker->device, names[i], sizeof(worker->device));
        uv_timer_init(app->loop, &worker->timer);
        worker->timer.data = worker;
        start_worker(worker);
    }
    return true;
}

static void on_shutdown_deadline(uv_timer_t *timer)
{
    struct gd_supervised *worker = timer->data;
    gd_log_error("worker", "worker=%d did not stop within %d ms", worker->index, SHUTDOWN_MS);
    worker->ending = true;
    gd_worker_process_end(worker->process);
}

static void stop_worker(struct gd_supervised *worker)
{
    uv_timer_stop(&worker->timer);
    if (worker->state == GD_SUPERVISED_WAITING || worker->state == GD_SUPERVISED_FAILED) {
        worker->state = GD_SUPERVISED_STOPPED;
        struct gd_error err = {0};
        gd_fail_stopping(&err);
        gd_pending_fail(worker, true, &err);
    } else if (worker->state == GD_SUPERVISED_STARTING) {
        worker->ending = true;
        gd_worker_process_end(worker->process);
    } else if (worker->state == GD_SUPERVISED_READY) {
        cJSON *message = cJSON_CreateObject();
        cJSON_AddStringToObject(message, "type", "shutdown");
        gd_supervisor_send(worker->supervisor, worker->index, message);
        uv_timer_start(&worker->timer, on_shutdown_deadline, SHUTDOWN_MS, 0);
    }
}

void gd_supervisor_stop(struct gd_supervisor *supervisor, void (*stopped)(void *context), void *context)
{
    assert(!supervisor->stopping);
    supervisor->stopping = true;
    supervisor->stopping_ms = gd_supervisor_now(supervisor);
    supervisor->stopped = stopped;
    supervisor->stopped_context = context;
    for (int i = 0; i < supervisor->worker_count; i++)
        stop_worker(&supervisor->workers[i]);
    tell_when_stopped(supervisor);
}

static void release_when_closed(struct gd_supervisor *supervisor)
{
    if (--supervisor->open_handles > 0)
        return;
    for (int i = 0; i < supervisor->worker_count; i++)
        gd_free(supervisor->workers[i].failure);
    gd_free(supervisor->workers);
    gd_free(supervisor);
}

static void on_tick_closed(uv_handle_t *handle)
{
    release_when_closed(handle->data);
}

static void on_worker_timer_closed(uv_handle_t *handle)
{
    struct gd_supervised *worker = handle->data;
    release_when_closed(worker->supervisor);
}

void gd_supervisor_destroy(struct gd_supervisor *supervisor)
{
    if (supervisor == NULL)
        return;
    supervisor->stopping = true;
    for (int i = 0; i < supervisor->worker_count; i++) {
        struct gd_supervised *worker = &supervisor->workers[i];
        if (worker->process != NULL)
            gd_worker_process_abandon(worker->process);
        forget_incarnation(worker);
        worker->state = GD_SUPERVISED_STOPPED; /* what the store still delivers may want to send: there is nobody */
        gd_pending_forget(worker);
        uv_close((uv_handle_t *)&worker->timer, on_worker_timer_closed);
    }
    uv_close((uv_handle_t *)&supervisor->tick, on_tick_closed);
}

/* ---- jobs ---- */

int gd_supervisor_worker_count(const struct gd_supervisor *supervisor)
{
    return supervisor->worker_count;
}

bool gd_supervisor_worker_free(const struct gd_supervisor *supervisor, int index)
{
    const struct gd_supervised *worker = &supervisor->workers[index];
    return gd_supervisor_worker_takes(supervisor, index) && worker->job_count == 0;
}

bool gd_supervisor_worker_takes(const struct gd_supervisor *supervisor, int index)
{
    const struct gd_supervised *worker = &supervisor->workers[index];
    return worker->state == GD_SUPERVISED_READY && !worker->ending && !supervisor->stopping && worker->job_count < GD_WORKER_JOBS_MAX;
}

int gd_supervisor_in_flight(const struct gd_supervisor *supervisor, int index)
{
    return supervisor->workers[index].in_flight;
}

void gd_supervisor_send(struct gd_supervisor *supervisor, int index, cJSON *message_taken)
{
    struct gd_supervised *worker = &supervisor->workers[index];
    const cJSON *type = gd_json_find(message_taken, "type"), *job_id = gd_json_find(message_taken, "job_id");
    if (worker->state == GD_SUPERVISED_READY) {
        if (strcmp(type->valuestring, "job_start") == 0) {
            assert(worker->job_count < GD_WORKER_JOBS_MAX);
            worker->job_ids[worker->job_count++] = gd_strdup(job_id->valuestring);
        }
        struct gd_buf bytes;
        gd_buf_init(&bytes, GD_FRAME_BYTES_MAX + 4u);
        gd_frame_write(&bytes, message_taken);
        struct gd_error err = {0};
        if (!gd_worker_process_write(worker->process, &bytes, &err)) {
            gd_log_error("worker", "worker=%d does not read its orders: %s", index, err.message);
            worker->ending = true;
            gd_worker_process_kill(worker->process);
        }
    }
    cJSON_Delete(message_taken);
}

/* ---- what /healthz and /metrics show ---- */

static cJSON *describe_worker(const struct gd_supervised *worker)
{
    cJSON *out = cJSON_CreateObject();
    cJSON_AddNumberToObject(out, "index", worker->index);
    cJSON_AddNumberToObject(out, "pid", worker->process != NULL ? gd_worker_process_pid(worker->process) : 0);
    cJSON_AddStringToObject(out, "state", worker->ending ? "ending" : state_names[worker->state]);
    const char *const of_ready[] = {"device", "isa", "compute", "threads", "build"};
    for (size_t i = 0; i < GD_COUNT(of_ready); i++)
        gd_json_copy(out, of_ready[i], worker->ready, of_ready[i]);
    if (worker->ready == NULL)
        cJSON_ReplaceItemInObjectCaseSensitive(out, "device", cJSON_CreateString(worker->device));
    const char *const of_heartbeat[] = {"busy", "rss_bytes", "device_bytes", "device_limit_bytes", "step_watermark", "infer"};
    for (size_t i = 0; i < GD_COUNT(of_heartbeat); i++)
        gd_json_copy(out, of_heartbeat[i], worker->heartbeat, of_heartbeat[i]);
    cJSON_AddItemToObject(out, "job_id", worker->job_count > 0 ? cJSON_CreateString(worker->job_ids[0]) : cJSON_CreateNull());
    cJSON_AddItemToObject(out, "job_ids", cJSON_CreateStringArray((const char *const *)worker->job_ids, worker->job_count));
    if (worker->failure != NULL)
        cJSON_AddStringToObject(out, "failure", worker->failure);
    cJSON_AddNumberToObject(out, "restarts", worker->restarts);
    cJSON_AddNumberToObject(out, "requests", worker->in_flight);
    cJSON_AddNumberToObject(out, "heartbeat_age_ms", (double)(gd_supervisor_now(worker->supervisor) - worker->heard_ms));
    return out;
}

cJSON *gd_supervisor_describe(const struct gd_supervisor *supervisor)
{
    cJSON *out = cJSON_CreateObject();
    cJSON *workers = cJSON_AddArrayToObject(out, "workers");
    for (int i = 0; i < supervisor->worker_count; i++)
        cJSON_AddItemToArray(workers, describe_worker(&supervisor->workers[i]));
    cJSON_AddNumberToObject(out, "pending", supervisor->pending_count);
    return out;
}
