/*
 * http_request.c - the life of a request, and what handlers may ask of it.
 */
#include "server/http_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "server/counters.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct gd_request *gd_request_create(struct connection *connection, struct MHD_Connection *mhd, const char *target)
{
    struct gd_http *http = connection->http;
    struct gd_request *request = gd_alloc(sizeof(*request));
    request->http = http;
    request->mhd = mhd;
    request->connection = connection;
    memcpy(request->id, "req_", 4);
    gd_random_id(request->id + 4, 24);
    request->raw_target = gd_strdup(target);
    request->project = "default";
    request->method = "?";
    request->watch_fd = -1;
    request->started = gd_time_monotonic();
    request->next = http->requests;
    if (http->requests != NULL)
        http->requests->previous = request;
    http->requests = request;
    http->request_count++;
    connection->request = request;
    return request;
}

static void log_access(const struct gd_request *request, double seconds)
{
    const char *route = request->route != NULL ? request->route->path : "-";
    char status[8] = "cut";
    if (request->status != 0)
        snprintf(status, sizeof(status), "%d", request->status);
    gd_log_info("http", "method=%s route=%s status=%s ms=%.2f bytes=%llu received=%llu request_id=%s", request->method,
                route, status, seconds * 1000.0, (unsigned long long)request->bytes_out,
                (unsigned long long)request->bytes_in, request->id);
    struct gd_counters *counters = request->http->app->counters;
    gd_counters_add(counters, GD_COUNTER_HTTP_REQUESTS, 1, (const char *[]){route, request->method, status});
    gd_counters_observe(counters, GD_COUNTER_HTTP_SECONDS, seconds, (const char *[]){route});
    gd_counters_add(counters, GD_COUNTER_HTTP_BYTES_IN, (double)request->bytes_in, NULL);
    gd_counters_add(counters, GD_COUNTER_HTTP_BYTES_OUT, (double)request->bytes_out, NULL);
}

void gd_request_completed(struct gd_request *request)
{
    struct gd_http *http = request->http;
    double now = gd_time_monotonic();
    gd_request_unwatch(request);
    if (request->suspended) { /* only while the daemon is being stopped */
        request->suspended = false;
        http->suspended_count--;
    }
    if (request->stream != NULL) {
        request->bytes_out += gd_stream_bytes(request->stream);
        gd_stream_completed(request->stream);
        request->stream = NULL;
    }
    if (request->phase != PHASE_HEADERS)
        log_access(request, now - request->started);
    if (request->previous != NULL)
        request->previous->next = request->next;
    else
        http->requests = request->next;
    if (request->next != NULL)
        request->next->previous = request->previous;
    http->request_count--;
    request->connection->request = NULL;
    request->connection->idle_since = now;
    request->connection = NULL;
    request->mhd = NULL;
    request->http = NULL;
    if (request->phase != PHASE_HANDLED)
        request->ended = true;
    gd_request_settle(request);
}

void gd_request_settle(struct gd_request *request)
{
    if (request->mhd != NULL || !request->ended)
        return;
    gd_http_body_release(request);
    for (int i = 0; i < request->header_count; i++) {
        gd_free(request->headers[i].name);
        gd_free(request->headers[i].value);
    }
    gd_free(request->headers);
    gd_target_release(&request->target);
    gd_free(request->raw_target);
    gd_free(request);
}

/* ---- the client's disconnect ---- */

static void on_watch_closed(uv_handle_t *handle)
{
    gd_free(handle);
}

void gd_request_unwatch(struct gd_request *request)
{
    if (request->watch == NULL)
        return;
    uv_close((uv_handle_t *)request->watch, on_watch_closed);
    request->watch = NULL;
    close(request->watch_fd);
    request->watch_fd = -1;
}

/* A reset arrives as an error status with no events: both mean gone. */
static void on_disconnect(uv_poll_t *poll, int status, int events)
{
    struct gd_request *request = poll->data;
    if (status == 0 && (events & UV_DISCONNECT) == 0)
        return;
    gd_request_unwatch(request);
    if (request->stream != NULL) {
        gd_stream_client_gone(request->stream);
    } else if (request->gone != NULL) {
        void (*gone)(void *context) = request->gone;
        request->gone = NULL;
        gone(request->gone_context);
    }
}

void gd_request_watch(struct gd_request *request)
{
    if (request->watch != NULL || request->mhd == NULL)
        return;
    request->watch_fd = fcntl(request->connection->fd, F_DUPFD_CLOEXEC, 3);
    if (request->watch_fd < 0) {
        gd_log_warn("http", "watch=failed errno=%d request_id=%s", errno, request->id);
        return;
    }
    request->watch = gd_alloc(sizeof(*request->watch));
    if (uv_poll_init(request->http->loop, request->watch, request->watch_fd) != 0) {
        gd_free(request->watch);
        request->watch = NULL;
        close(request->watch_fd);
        request->watch_fd = -1;
        return;
    }
    request->watch->data = request;
    uv_poll_start(request->watch, UV_DISCONNECT, on_disconnect);
}

void gd_request_on_gone(struct gd_request *request, void (*gone)(void *context), void *context)
{
    request->gone = gone;
    request->gone_context = context;
    gd_request_watch(request);
}

/* ---- what was asked ---- */

const char *gd_request_id(const struct gd_request *request)
{
    return request->id;
}

const char *gd_request_project(const struct gd_request *request)
{
    return request->project;
}

const char *gd_request_param(const struct gd_request *request, int index)
{
    return request->params[index];
}

const char *gd_request_query(const struct gd_request *request, const char *name)
{
    for (int i = 0; i < request->target.pair_count; i++)
        if (strcmp(request->target.pairs[i].name, name) == 0)
            return request->target.pairs[i].value;
    return NULL;
}

void gd_request_query_each(const struct gd_request *request, const char *name,
                           void (*visit)(void *context, const char *key, const char *value), void *context)
{
    size_t length = strlen(name);
    for (int i = 0; i < request->target.pair_count; i++) {
        const char *given = request->target.pairs[i].name;
        size_t given_length = strlen(given);
        if (given_length < length + 2 || strncmp(given, name, length) != 0 || given[length] != '[' ||
            given[given_length - 1] != ']')
            continue;
        char *key = gd_strndup(given + length + 1, given_length - length - 2);
        visit(context, key, request->target.pairs[i].value);
        gd_free(key);
    }
}

bool gd_request_query_int(const struct gd_request *request, const char *name, int64_t min, int64_t max, int64_t *out,
                          struct gd_error *err)
{
    const char *text = gd_request_query(request, name);
    if (text == NULL)
        return true;
    size_t digits = strspn(text + (text[0] == '-'), "0123456789");
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (digits == 0 || *end != 0 || errno != 0 || value < min || value > max)
        return gd_fail_param(err, GD_INVALID, name, "%s: \"%.64s\" is not a whole number from %lld to %lld", name, text,
                             (long long)min, (long long)max);
    *out = value;
    return true;
}

const char *gd_request_header(const struct gd_request *request, const char *name)
{
    return request->mhd != NULL ? MHD_lookup_connection_value(request->mhd, MHD_HEADER_KIND, name) : NULL;
}

const cJSON *gd_request_json(const struct gd_request *request)
{
    return request->json;
}

const char *gd_request_field(const struct gd_request *request, const char *name)
{
    for (int i = 0; i < request->field_count; i++)
        if (strcmp(request->fields[i].name, name) == 0)
            return request->fields[i].value.data != NULL ? request->fields[i].value.data : "";
    return NULL;
}

bool gd_request_only_fields(const struct gd_request *request, const char *const *known, struct gd_error *err)
{
    size_t count = 0;
    while (known[count] != NULL)
        count++;
    for (int i = 0; i < request->field_count; i++) {
        const char *name = request->fields[i].name;
        bool found = false;
        for (size_t k = 0; k < count; k++)
            found = found || strcmp(name, known[k]) == 0;
        if (found)
            continue;
        const char *near = gd_nearest_name(name, known, count);
        return gd_fail_param(err, GD_UNKNOWN_FIELD, name, "%s: there is no such field%s%s%s", name,
                             near != NULL ? "; did you mean \"" : "", near != NULL ? near : "", near != NULL ? "\"?" : "");
    }
    return true;
}

const struct gd_upload *gd_request_upload(const struct gd_request *request)
{
    return request->upload.temporary_path != NULL ? &request->upload : NULL;
}

void gd_request_upload_taken(struct gd_request *request)
{
    gd_spool_take(request->spool);
}
