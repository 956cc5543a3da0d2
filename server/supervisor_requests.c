/* Requests on their way: they wait until a worker is ready, go to it, and end with its answer, its death or a cancel. */
#include "server/supervisor_internal.h"

#include "engine/base/alloc.h"

struct gd_pending {
    uint64_t id;
    struct gd_supervised *worker;
    gd_worker_frame on_frame;
    void *context;
    struct gd_buf unsent;                /* until the worker is ready */
    bool sent;
    struct gd_pending *bucket_next;
    struct gd_pending *previous, *next;     /* of the worker, oldest first */
};

/* ---- the table of requests ---- */

static struct gd_pending **bucket_of(struct gd_supervisor *supervisor, uint64_t id)
{
    return &supervisor->buckets[id % GD_PENDING_BUCKETS];
}

static struct gd_pending *find_request(struct gd_supervisor *supervisor, uint64_t id)
{
    struct gd_pending *request = *bucket_of(supervisor, id);
    while (request != NULL && request->id != id)
        request = request->bucket_next;
    return request;
}

static void add_request(struct gd_pending *request)
{
    struct gd_supervised *worker = request->worker;
    struct gd_pending **bucket = bucket_of(worker->supervisor, request->id);
    request->bucket_next = *bucket;
    *bucket = request;
    request->previous = worker->last;
    *(worker->last != NULL ? &worker->last->next : &worker->first) = request;
    worker->last = request;
    worker->supervisor->pending_count++;
}

static void remove_request(struct gd_pending *request)
{
    struct gd_supervised *worker = request->worker;
    struct gd_pending **at = bucket_of(worker->supervisor, request->id);
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
static void fail_request(struct gd_pending *request, const struct gd_error *err)
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

static struct gd_pending *first_to_fail(const struct gd_supervised *worker, bool unsent_too)
{
    struct gd_pending *request = worker->first;
    while (request != NULL && !request->sent && !unsent_too)
        request = request->next;
    return request;
}

void gd_pending_fail(struct gd_supervised *worker, bool unsent_too, const struct gd_error *err)
{
    /* Only those that are there now: a callback that asks again must not be answered by this failure. */
    uint64_t newest = worker->supervisor->next_id;
    struct gd_pending *request;
    while ((request = first_to_fail(worker, unsent_too)) != NULL && request->id < newest)
        fail_request(request, err);
}

static void send_request(struct gd_pending *request)
{
    struct gd_supervised *worker = request->worker;
    struct gd_error err = {0};
    request->sent = true;
    worker->in_flight++;
    worker->supervisor->unsent_bytes -= request->unsent.length;
    if (!gd_worker_process_write(worker->process, &request->unsent, &err))
        fail_request(request, &err);
}

static void send_cancel(struct gd_supervised *worker, uint64_t id)
{
    if (worker->state != GD_SUPERVISED_READY)
        return;
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "type", "generate_cancel");
    cJSON_AddNumberToObject(message, "id", (double)id);
    gd_supervisor_send(worker->supervisor, worker->index, message);
}

/* Anew after each one: a failed write calls back, and that may cancel any other. */
static struct gd_pending *first_unsent(const struct gd_supervised *worker)
{
    struct gd_pending *request = worker->first;
    while (request != NULL && request->sent)
        request = request->next;
    return request;
}

void gd_pending_send(struct gd_supervised *worker)
{
    struct gd_pending *request;
    while ((request = first_unsent(worker)) != NULL)
        send_request(request);
}

void gd_pending_answer(struct gd_supervised *worker, const cJSON *frame, bool last)
{
    const cJSON *id = gd_json_find(frame, "id");
    struct gd_pending *request =
        cJSON_IsNumber(id) && id->valuedouble > 0 ? find_request(worker->supervisor, (uint64_t)id->valuedouble) : NULL;
    if (request == NULL || request->worker != worker)
        return; /* cancelled a moment ago */
    gd_worker_frame on_frame = request->on_frame;
    void *context = request->context;
    if (last)
        remove_request(request);
    on_frame(context, frame, last);
}

void gd_pending_give_up(struct gd_supervised *worker)
{
    struct gd_error err = {0};
    gd_fail_stopping(&err);
    while (worker->first != NULL) {
        if (worker->first->sent)
            send_cancel(worker, worker->first->id);
        fail_request(worker->first, &err);
    }
}

void gd_pending_forget(struct gd_supervised *worker)
{
    while (worker->first != NULL)
        remove_request(worker->first);
}

/* ---- asking ---- */

static int readiness(const struct gd_supervised *worker)
{
    return worker->state == GD_SUPERVISED_READY ? 2 : worker->state == GD_SUPERVISED_FAILED ? 0 : 1;
}

/* The worker with the fewest requests; one that is ready before one that is not, and that before one whose device failed. */
static struct gd_supervised *choose_worker(struct gd_supervisor *supervisor)
{
    struct gd_supervised *best = &supervisor->workers[0];
    for (int i = 1; i < supervisor->worker_count; i++) {
        struct gd_supervised *worker = &supervisor->workers[i];
        int ready = readiness(worker), best_ready = readiness(best);
        if (ready != best_ready ? ready > best_ready : worker->in_flight < best->in_flight)
            best = worker;
    }
    return best;
}

bool gd_supervisor_request(struct gd_supervisor *supervisor, cJSON *message_taken, gd_worker_frame on_frame,
                           void *context, uint64_t *id, struct gd_error *err)
{
    struct gd_supervised *worker = choose_worker(supervisor);
    struct gd_buf bytes;
    gd_buf_init(&bytes, GD_FRAME_BYTES_MAX + 4u);
    cJSON_AddNumberToObject(message_taken, "id", (double)supervisor->next_id);
    gd_frame_write(&bytes, message_taken);
    cJSON_Delete(message_taken);
    bool ok = true;
    if (supervisor->stopping)
        ok = gd_fail_stopping(err);
    else if (worker->state == GD_SUPERVISED_FAILED)
        ok = gd_fail(err, GD_DEVICE_LOST, "no device can be used (%s): the server has to be started anew", worker->failure);
    else if (bytes.overflow)
        ok = gd_fail(err, GD_TOO_LARGE, "the request is longer than the %u bytes that a worker takes at once",
                     GD_FRAME_BYTES_MAX);
    else if (supervisor->pending_count >= GD_WORKER_PENDING_MAX)
        ok = gd_fail(err, GD_BUSY, "%d requests wait already: try again later", GD_WORKER_PENDING_MAX);
    bool send_now = worker->state == GD_SUPERVISED_READY && !worker->ending;
    if (ok && !send_now && supervisor->unsent_bytes + bytes.length > GD_WORKER_QUEUE_BYTES_MAX)
        ok = gd_fail(err, GD_BUSY, "%zu bytes wait for the worker to start: try again later", supervisor->unsent_bytes);
    if (ok && send_now)
        ok = gd_worker_process_write(worker->process, &bytes, err);
    if (!ok) {
        gd_buf_release(&bytes);
        return false;
    }
    struct gd_pending *request = gd_alloc(sizeof *request);
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
    struct gd_pending *request = find_request(supervisor, id);
    if (request == NULL)
        return;
    struct gd_supervised *worker = request->worker;
    bool sent = request->sent;
    remove_request(request);
    if (sent)
        send_cancel(worker, id);
}
