/* Workers as the server sees them: ready, busy, hung, gone; and the requests that wait for their answers. */
#include "server/supervisor.h"

#include "engine/base/alloc.h"
#include "engine/base/log.h"
#include "server/scheduler.h"
#include "server/worker_process.h"
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define BACKOFF_FIRST_MS 100u
#define BACKOFF_MAX_MS 10000u
#define STOOD_MS 30000        /* ready for this long: the next restart is prompt again */
#define SHUTDOWN_MS 60000     /* for a checkpoint */
#define REQUESTS_END_MS 10000 /* of that, for completions under way to end by themselves */
#define TICK_MS_MAX 1000u
#define BUCKETS 1024          /* ids are consecutive: chains stay short */
#define MEDIAN_COUNT 15

enum worker_state { WORKER_WAITING, WORKER_STARTING, WORKER_READY, WORKER_STOPPED, WORKER_FAILED };
static const char *const state_names[] = {"restarting", "starting", "ready", "stopped", "failed"};

struct worker;

struct request {
    uint64_t id;
    struct worker *worker;
    gd_worker_frame on_frame;
    void *context;
    struct gd_buf unsent;                /* until the worker is ready */
    bool sent;
    struct request *bucket_next;
    struct request *previous, *next;     /* of the worker, oldest first */
};

struct worker {
    struct gd_supervisor *supervisor;
    int index;
    enum worker_state state;
    char device[GD_DEVICE_NAME_BYTES];
    char *failure;                       /* why its device cannot be used: it is out of the pool; or NULL */
    struct gd_worker_process *process;   /* STARTING, READY */
    uv_timer_t timer;                    /* restart; shutdown deadline */
    int restarts, failures;
    bool ending;                         /* told to go */
    uint64_t started_ms, ready_ms, heard_ms;
    cJSON *ready, *heartbeat;            /* last frames, or NULL */
    char *job_ids[GD_WORKER_JOBS_MAX];   /* given to it and not ended, oldest first */
    int job_count;
    bool trains;
    double watermark;
    uint64_t watermark_ms;               /* when it last moved */
    uint64_t intervals[MEDIAN_COUNT];    /* between moves, a ring */
    int interval_count;
    struct request *first, *last;
    int in_flight;
};

struct gd_supervisor {
    struct gd_app *app;
    struct worker *workers;
    int worker_count, pending_count;
    uint64_t next_id;
    struct request *buckets[BUCKETS];
    size_t unsent_bytes;
    uv_timer_t tick;
    uint64_t tick_ms;                    /* when it last came */
    uint64_t heartbeat_ms, watermark_ms, watermark_first_ms;
    bool stopping;
    uint64_t stopping_ms;
    void (*stopped)(void *context);
    void *stopped_context;
    int open_handles;
};

static uint64_t now_ms(const struct gd_supervisor *supervisor)
{
    return uv_now(supervisor->app->loop);
}

/* ---- the table of requests ---- */

static struct request **bucket_of(struct gd_supervisor *supervisor, uint64_t id)
{
    return &supervisor->buckets[id % BUCKETS];
}

static struct request *find_request(struct gd_supervisor *supervisor, uint64_t id)
{
    struct request *request = *bucket_of(supervisor, id);
    while (request != NULL && request->id != id)
        request = request->bucket_next;
    return request;
}

static void add_request(struct request *request)
{
    struct worker *worker = request->worker;
    struct request **bucket = bucket_of(worker->supervisor, request->id);
    request->bucket_next = *bucket;
    *bucket = request;
    request->previous = worker->last;
    *(worker->last != NULL ? &worker->last->next : &worker->first) = request;
    worker->last = request;
    worker->supervisor->pending_count++;
}

static void remove_request(struct request *request)
{
    struct worker *worker = request->worker;
    struct request **at = bucket_of(worker->supervisor, request->id);
    while (*at != request)
        at = &(*at)->bucket_next;
    *at = request->bucket_next;
    *(request->previous != NULL ? &request->previous->next : &worker->first) = request->next;
    *(request->next != NULL ? &request->next->previous : &worker->last) = request->previous;
    worker->supervisor->pending_count--;
    worker->in_flight -= request->sent;
    worker->supervisor->unsent_bytes -= request->unsent.length;
    gd_buf_release(&request->unsent);
    gd_free(request);
}

/* Takes it out first: the callback may cancel others, or ask anew. */
static void fail_request(struct request *request, const struct gd_error *err)
{
    gd_worker_frame on_frame = request->on_frame;
    void *context = request->context;
    cJSON *frame = cJSON_CreateObject();
    cJSON_AddStringToObject(frame, "type", "failed");
    cJSON_AddNumberToObject(frame, "id", (double)request->id);
    cJSON_AddItemToObject(frame, "error", gd_error_to_json(err));
    remove_request(request);
    on_frame(context, frame, true);
    cJSON_Delete(frame);
}

static struct request *first_to_fail(const struct worker *worker, bool unsent_too)
{
    struct request *request = worker->first;
    while (request != NULL && !request->sent && !unsent_too)
        request = request->next;
    return request;
}

static void fail_requests(struct worker *worker, bool unsent_too, const struct gd_error *err)
{
    /* Only those that are there now: a callback that asks again must not be answered by this failure. */
    uint64_t newest = worker->supervisor->next_id;
    struct request *request;
    while ((request = first_to_fail(worker, unsent_too)) != NULL && request->id < newest)
        fail_request(request, err);
}

static void send_request(struct request *request)
{
    struct worker *worker = request->worker;
    struct gd_error err = {0};
    request->sent = true;
    worker->in_flight++;
    worker->supervisor->unsent_bytes -= request->unsent.length;
    if (!gd_worker_process_write(worker->process, &request->unsent, &err))
        fail_request(request, &err);
}

static void send_cancel(struct worker *worker, uint64_t id)
{
    if (worker->state != WORKER_READY)
        return;
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "type", "generate_cancel");
    cJSON_AddNumberToObject(message, "id", (double)id);
    gd_supervisor_send(worker->supervisor, worker->index, message);
}

/* Anew after each one: a failed write calls back, and that may cancel any other. */
static struct request *first_unsent(const struct worker *worker)
{
    struct request *request = worker->first;
    while (request != NULL && request->sent)
        request = request->next;
    return request;
}

/* ---- frames from a worker ---- */

static void on_ready(struct worker *worker, const cJSON *frame)
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
    worker->ready_ms = now_ms(supervisor);
    worker->state = WORKER_READY;
    gd_log_info("worker", "worker=%d pid=%d ready after_ms=%" PRIu64, worker->index,
                gd_worker_process_pid(worker->process), worker->ready_ms - worker->started_ms);
    if (worker->ending)
        return;
    struct request *request;
    while ((request = first_unsent(worker)) != NULL)
        send_request(request);
    if (supervisor->app->scheduler != NULL)
        gd_scheduler_worker_ready(supervisor->app->scheduler, worker->index);
}

static void on_heartbeat(struct worker *worker, const cJSON *frame)
{
    cJSON_Delete(worker->heartbeat);
    worker->heartbeat = cJSON_Duplicate(frame, true);
    const cJSON *busy = gd_json_find(frame, "busy"), *mark = gd_json_find(frame, "step_watermark");
    double watermark = cJSON_IsNumber(mark) ? mark->valuedouble : 0;
    uint64_t now = now_ms(worker->supervisor);
    bool idle = !cJSON_IsString(busy) || strcmp(busy->valuestring, "idle") == 0;
    bool train = cJSON_IsString(busy) && strcmp(busy->valuestring, "train") == 0;
    if (train && !worker->trains)
        worker->interval_count = 0; /* reading a data set has another pace than the job before */
    worker->trains = train;
    if (watermark != worker->watermark && !idle && worker->watermark_ms != 0)
        worker->intervals[worker->interval_count++ % MEDIAN_COUNT] = now - worker->watermark_ms;
    if (watermark != worker->watermark || idle || worker->watermark_ms == 0)
        worker->watermark_ms = now;
    worker->watermark = watermark;
}

static void on_answer(struct worker *worker, const cJSON *frame, bool last)
{
    const cJSON *id = gd_json_find(frame, "id");
    struct request *request =
        cJSON_IsNumber(id) && id->valuedouble > 0 ? find_request(worker->supervisor, (uint64_t)id->valuedouble) : NULL;
    if (request == NULL || request->worker != worker)
        return; /* cancelled a moment ago */
    gd_worker_frame on_frame = request->on_frame;
    void *context = request->context;
    if (last)
        remove_request(request);
    on_frame(context, frame, last);
}

static void remove_job(struct worker *worker, const char *id)
{
    int kept = 0;
    for (int i = 0; i < worker->job_count; i++)
        if (strcmp(worker->job_ids[i], id) == 0)
            gd_free(worker->job_ids[i]);
        else
            worker->job_ids[kept++] = worker->job_ids[i];
    worker->job_count = kept;
}

static void on_job_frame(struct worker *worker, const char *type, const cJSON *frame)
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
static void on_device_failed(struct worker *worker, const cJSON *frame)
{
    const cJSON *message = gd_json_find(frame, "message");
    gd_free(worker->failure);
    worker->failure = gd_strdup(cJSON_IsString(message) ? message->valuestring : "no reason was given");
}

static void on_worker_frame(void *context, const cJSON *frame)
{
    struct worker *worker = context;
    worker->heard_ms = now_ms(worker->supervisor);
    const char *type = gd_json_find(frame, "type")->valuestring;
    if (strcmp(type, "token") == 0)
        on_answer(worker, frame, false);
    else if (strcmp(type, "generated") == 0 || strcmp(type, "scored") == 0 || strcmp(type, "result") == 0 || strcmp(type, "failed") == 0)
        on_answer(worker, frame, true);
    else if (strcmp(type, "heartbeat") == 0)
        on_heartbeat(worker, frame);
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

static void start_worker(struct worker *worker);

static void on_restart_time(uv_timer_t *timer)
{
    start_worker(timer->data);
}

static void forget_incarnation(struct worker *worker)
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

static void restart_later(struct worker *worker)
{
    uint64_t delay = BACKOFF_FIRST_MS << (worker->failures < 7 ? worker->failures : 7);
    worker->failures++;
    worker->restarts++;
    worker->state = WORKER_WAITING;
    uv_timer_start(&worker->timer, on_restart_time, delay < BACKOFF_MAX_MS ? delay : BACKOFF_MAX_MS, 0);
}

static void tell_when_stopped(struct gd_supervisor *supervisor)
{
    for (int i = 0; i < supervisor->worker_count; i++)
        if (supervisor->workers[i].state != WORKER_STOPPED)
            return;
    void (*stopped)(void *context) = supervisor->stopped;
    supervisor->stopped = NULL;
    if (stopped != NULL)
        stopped(supervisor->stopped_context);
}

static void on_gone(void *context, const char *why)
{
    struct worker *worker = context;
    struct gd_supervisor *supervisor = worker->supervisor;
    bool was_ready = worker->state == WORKER_READY;
    int pid = gd_worker_process_pid(worker->process);
    if (was_ready && now_ms(supervisor) - worker->ready_ms >= STOOD_MS)
        worker->failures = 0;
    if (!supervisor->stopping)
        gd_log_error("worker", "worker=%d pid=%d gone: %s in_flight=%d jobs=%d job_id=%s", worker->index, pid, why,
                     worker->in_flight, worker->job_count, worker->job_count > 0 ? worker->job_ids[0] : "-");
    uv_timer_stop(&worker->timer);
    worker->state = WORKER_STOPPED;
    if (supervisor->app->scheduler != NULL)
        gd_scheduler_worker_lost(supervisor->app->scheduler, worker->index, worker->failure != NULL ? worker->failure : why,
                                 worker->failure != NULL);
    forget_incarnation(worker);
    struct gd_error err = {0};
    if (supervisor->stopping) {
        gd_fail(&err, GD_UNAVAILABLE, "the server is shutting down: try again when it is back");
    } else if (worker->failure != NULL) {
        worker->state = WORKER_FAILED;
        gd_log_error("worker", "worker=%d device=%s is out of the pool until the server is started anew: %s", worker->index,
                     worker->device, worker->failure);
        gd_fail(&err, GD_DEVICE_LOST, "the device that served this request cannot be used any more (%s): try again", worker->failure);
    } else {
        restart_later(worker);
        gd_fail(&err, GD_UNAVAILABLE, "the worker that served this request ended (%s); a new one is being started: try again",
                why);
    }
    fail_requests(worker, supervisor->stopping || !was_ready || worker->state == WORKER_FAILED, &err);
    if (supervisor->stopping)
        tell_when_stopped(supervisor);
}

static void start_worker(struct worker *worker)
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
    worker->started_ms = worker->heard_ms = now_ms(supervisor);
    worker->state = WORKER_STARTING;
    if (!gd_worker_process_start(&worker->process, &options, &err)) {
        gd_log_error("worker", "worker=%d %s", worker->index, err.message);
        restart_later(worker);
        fail_requests(worker, true, &err);
    }
}

/* ---- hung workers ---- */

static int compare_u64(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static uint64_t watermark_patience(const struct worker *worker)
{
    if (worker->interval_count < 3)
        return worker->supervisor->watermark_first_ms;
    uint64_t sorted[MEDIAN_COUNT];
    int count = worker->interval_count < MEDIAN_COUNT ? worker->interval_count : MEDIAN_COUNT;
    memcpy(sorted, worker->intervals, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, compare_u64);
    uint64_t patience = 10 * sorted[count / 2];
    return patience > worker->supervisor->watermark_ms ? patience : worker->supervisor->watermark_ms;
}

static void end_if_hung(struct worker *worker, uint64_t now)
{
    const struct gd_supervisor *supervisor = worker->supervisor;
    if (worker->process == NULL || worker->ending)
        return;
    uint64_t silence = worker->state == WORKER_READY ? supervisor->heartbeat_ms : 6 * supervisor->heartbeat_ms;
    bool silent = now - worker->heard_ms > silence;
    bool stuck = worker->watermark_ms != 0 && now - worker->watermark_ms > watermark_patience(worker);
    if (!silent && !stuck)
        return;
    gd_log_error("worker", "worker=%d pid=%d hung: %s", worker->index, gd_worker_process_pid(worker->process),
                 silent ? "no heartbeat" : "no progress");
    worker->ending = true;
    gd_worker_process_end(worker->process);
}

/* A stop waits for the completions under way, but not for long ones. */
static void give_up_requests(struct worker *worker)
{
    struct gd_error err = {0};
    gd_fail(&err, GD_UNAVAILABLE, "the server is shutting down: try again when it is back");
    while (worker->first != NULL) {
        if (worker->first->sent)
            send_cancel(worker, worker->first->id);
        fail_request(worker->first, &err);
    }
}

/* What came in while this process slept has not been read yet. */
static void forgive(struct worker *worker, uint64_t now)
{
    worker->heard_ms = now;
    if (worker->watermark_ms != 0)
        worker->watermark_ms = now;
}

static void on_tick(uv_timer_t *timer)
{
    struct gd_supervisor *supervisor = timer->data;
    uint64_t now = now_ms(supervisor);
    bool slept = now - supervisor->tick_ms > supervisor->heartbeat_ms / 2; /* this process, not the worker */
    supervisor->tick_ms = now;
    for (int i = 0; i < supervisor->worker_count; i++) {
        if (slept)
            forgive(&supervisor->workers[i], now);
        end_if_hung(&supervisor->workers[i], now);
        if (supervisor->stopping && now - supervisor->stopping_ms > REQUESTS_END_MS)
            give_up_requests(&supervisor->workers[i]);
    }
}

static void start_tick(struct gd_supervisor *supervisor)
{
    uint64_t period = supervisor->heartbeat_ms / 4 < TICK_MS_MAX ? supervisor->heartbeat_ms / 4 + 1 : TICK_MS_MAX;
    supervisor->tick_ms = now_ms(supervisor);
    uv_timer_start(&supervisor->tick, on_tick, period, period);
}

void gd_supervisor_set_patience(struct gd_supervisor *supervisor, uint64_t heartbeat_ms, uint64_t watermark_ms)
{
    supervisor->heartbeat_ms = heartbeat_ms;
    supervisor->watermark_ms = supervisor->watermark_first_ms = watermark_ms;
    start_tick(supervisor);
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
    start_tick(supervisor);
    *out = supervisor;
    for (int i = 0; i < supervisor->worker_count; i++) {
        struct worker *worker = &supervisor->workers[i];
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
    struct worker *worker = timer->data;
    gd_log_error("worker", "worker=%d did not stop within %d ms", worker->index, SHUTDOWN_MS);
    worker->ending = true;
    gd_worker_process_end(worker->process);
}

static void stop_worker(struct worker *worker)
{
    uv_timer_stop(&worker->timer);
    if (worker->state == WORKER_WAITING || worker->state == WORKER_FAILED) {
        worker->state = WORKER_STOPPED;
        struct gd_error err = {0};
        gd_fail(&err, GD_UNAVAILABLE, "the server is shutting down: try again when it is back");
        fail_requests(worker, true, &err);
    } else if (worker->state == WORKER_STARTING) {
        worker->ending = true;
        gd_worker_process_end(worker->process);
    } else if (worker->state == WORKER_READY) {
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
    supervisor->stopping_ms = now_ms(supervisor);
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
    struct worker *worker = handle->data;
    release_when_closed(worker->supervisor);
}

void gd_supervisor_destroy(struct gd_supervisor *supervisor)
{
    if (supervisor == NULL)
        return;
    supervisor->stopping = true;
    for (int i = 0; i < supervisor->worker_count; i++) {
        struct worker *worker = &supervisor->workers[i];
        if (worker->process != NULL)
            gd_worker_process_abandon(worker->process);
        forget_incarnation(worker);
        worker->state = WORKER_STOPPED; /* what the store still delivers may want to send: there is nobody */
        while (worker->first != NULL)
            remove_request(worker->first);
        uv_close((uv_handle_t *)&worker->timer, on_worker_timer_closed);
    }
    uv_close((uv_handle_t *)&supervisor->tick, on_tick_closed);
}

/* ---- requests ---- */

static int readiness(const struct worker *worker)
{
    return worker->state == WORKER_READY ? 2 : worker->state == WORKER_FAILED ? 0 : 1;
}

/* The worker with the fewest requests; one that is ready before one that is not, and that before one whose device failed. */
static struct worker *choose_worker(struct gd_supervisor *supervisor)
{
    struct worker *best = &supervisor->workers[0];
    for (int i = 1; i < supervisor->worker_count; i++) {
        struct worker *worker = &supervisor->workers[i];
        int ready = readiness(worker), best_ready = readiness(best);
        if (ready != best_ready ? ready > best_ready : worker->in_flight < best->in_flight)
            best = worker;
    }
    return best;
}

bool gd_supervisor_request(struct gd_supervisor *supervisor, cJSON *message_taken, gd_worker_frame on_frame,
                           void *context, uint64_t *id, struct gd_error *err)
{
    struct worker *worker = choose_worker(supervisor);
    struct gd_buf bytes;
    gd_buf_init(&bytes, GD_FRAME_BYTES_MAX + 4u);
    cJSON_AddNumberToObject(message_taken, "id", (double)supervisor->next_id);
    gd_frame_write(&bytes, message_taken);
    cJSON_Delete(message_taken);
    bool ok = true;
    if (supervisor->stopping)
        ok = gd_fail(err, GD_UNAVAILABLE, "the server is shutting down: try again when it is back");
    else if (worker->state == WORKER_FAILED)
        ok = gd_fail(err, GD_DEVICE_LOST, "no device can be used (%s): the server has to be started anew", worker->failure);
    else if (bytes.overflow)
        ok = gd_fail(err, GD_TOO_LARGE, "the request is longer than the %u bytes that a worker takes at once",
                     GD_FRAME_BYTES_MAX);
    else if (supervisor->pending_count >= GD_WORKER_PENDING_MAX)
        ok = gd_fail(err, GD_BUSY, "%d requests wait already: try again later", GD_WORKER_PENDING_MAX);
    bool send_now = worker->state == WORKER_READY && !worker->ending;
    if (ok && !send_now && supervisor->unsent_bytes + bytes.length > GD_WORKER_QUEUE_BYTES_MAX)
        ok = gd_fail(err, GD_BUSY, "%zu bytes wait for the worker to start: try again later", supervisor->unsent_bytes);
    if (ok && send_now)
        ok = gd_worker_process_write(worker->process, &bytes, err);
    if (!ok) {
        gd_buf_release(&bytes);
        return false;
    }
    struct request *request = gd_alloc(sizeof *request);
    request->id = supervisor->next_id++;
    request->worker = worker;
    request->on_frame = on_frame;
    request->context = context;
    request->unsent = bytes;
    supervisor->unsent_bytes += bytes.length; /* 0 when it is sent: write took them */
    request->sent = send_now;
    worker->in_flight += send_now;
    add_request(request);
    *id = request->id;
    return true;
}

void gd_supervisor_cancel(struct gd_supervisor *supervisor, uint64_t id)
{
    struct request *request = find_request(supervisor, id);
    if (request == NULL)
        return;
    struct worker *worker = request->worker;
    bool sent = request->sent;
    remove_request(request);
    if (sent)
        send_cancel(worker, id);
}

/* ---- jobs ---- */

int gd_supervisor_worker_count(const struct gd_supervisor *supervisor)
{
    return supervisor->worker_count;
}

bool gd_supervisor_worker_free(const struct gd_supervisor *supervisor, int index)
{
    const struct worker *worker = &supervisor->workers[index];
    return gd_supervisor_worker_takes(supervisor, index) && worker->job_count == 0;
}

bool gd_supervisor_worker_takes(const struct gd_supervisor *supervisor, int index)
{
    const struct worker *worker = &supervisor->workers[index];
    return worker->state == WORKER_READY && !worker->ending && !supervisor->stopping && worker->job_count < GD_WORKER_JOBS_MAX;
}

int gd_supervisor_in_flight(const struct gd_supervisor *supervisor, int index)
{
    return supervisor->workers[index].in_flight;
}

void gd_supervisor_send(struct gd_supervisor *supervisor, int index, cJSON *message_taken)
{
    struct worker *worker = &supervisor->workers[index];
    const cJSON *type = gd_json_find(message_taken, "type"), *job_id = gd_json_find(message_taken, "job_id");
    if (worker->state == WORKER_READY) {
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

static void copy_member(cJSON *out, const cJSON *from, const char *name)
{
    const cJSON *value = from != NULL ? gd_json_find(from, name) : NULL;
    cJSON_AddItemToObject(out, name, value != NULL ? cJSON_Duplicate(value, true) : cJSON_CreateNull());
}

static cJSON *describe_worker(const struct worker *worker)
{
    cJSON *out = cJSON_CreateObject();
    cJSON_AddNumberToObject(out, "index", worker->index);
    cJSON_AddNumberToObject(out, "pid", worker->process != NULL ? gd_worker_process_pid(worker->process) : 0);
    cJSON_AddStringToObject(out, "state", worker->ending ? "ending" : state_names[worker->state]);
    const char *const of_ready[] = {"device", "isa", "compute", "threads", "build"};
    for (size_t i = 0; i < GD_COUNT(of_ready); i++)
        copy_member(out, worker->ready, of_ready[i]);
    if (worker->ready == NULL)
        cJSON_ReplaceItemInObjectCaseSensitive(out, "device", cJSON_CreateString(worker->device));
    const char *const of_heartbeat[] = {"busy", "rss_bytes", "device_bytes", "device_limit_bytes", "step_watermark", "infer"};
    for (size_t i = 0; i < GD_COUNT(of_heartbeat); i++)
        copy_member(out, worker->heartbeat, of_heartbeat[i]);
    cJSON_AddItemToObject(out, "job_id", worker->job_count > 0 ? cJSON_CreateString(worker->job_ids[0]) : cJSON_CreateNull());
    cJSON_AddItemToObject(out, "job_ids", cJSON_CreateStringArray((const char *const *)worker->job_ids, worker->job_count));
    if (worker->failure != NULL)
        cJSON_AddStringToObject(out, "failure", worker->failure);
    cJSON_AddNumberToObject(out, "restarts", worker->restarts);
    cJSON_AddNumberToObject(out, "requests", worker->in_flight);
    cJSON_AddNumberToObject(out, "heartbeat_age_ms", (double)(now_ms(worker->supervisor) - worker->heard_ms));
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
