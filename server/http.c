/*
 * http.c - libmicrohttpd inside the libuv loop: the daemon, its timers, its end.
 *
 * The library's epoll descriptor is watched by the loop. Its sockets are edge-triggered inside, so data may wait in its
 * buffers with nothing to wake the descriptor: before each poll the library is asked when it wants to run next. That
 * answer leaves out connections that were resumed since its last run (and with an outside loop it has no channel to wake
 * its descriptor), so these are remembered here.
 */
#include "server/http_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "server/counters.h"

#include <dirent.h>
#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define SWEEP_MS 1000
#define DRAIN_SWEEP_MS 50
#define CONNECTION_MEMORY_BYTES (64u << 10)
#define FORCED_SECONDS 2.0

void gd_http_suspend(struct gd_request *request)
{
    MHD_suspend_connection(request->mhd);
    request->suspended = true;
    request->http->suspended_count++;
}

void gd_http_resume(struct gd_request *request)
{
    request->suspended = false;
    request->http->suspended_count--;
    request->http->resumed = true;
    MHD_resume_connection(request->mhd);
}

void gd_http_cut(struct connection *connection, const char *reason)
{
    if (connection->cut)
        return;
    connection->cut = true;
    gd_counters_add(connection->http->app->counters, GD_COUNTER_HTTP_CUT, 1, (const char *[]){reason});
    shutdown(connection->fd, SHUT_RDWR);
}

void gd_http_refused_count(struct gd_http *http, const char *reason)
{
    gd_counters_add(http->app->counters, GD_COUNTER_HTTP_REFUSED, 1, (const char *[]){reason});
}

/* ---- callbacks of libmicrohttpd ---- */

static struct connection *connection_of(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info->socket_context;
}

static void on_connection(void *context, struct MHD_Connection *mhd, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct gd_http *http = context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        struct connection *connection = gd_alloc(sizeof(*connection));
        connection->http = http;
        connection->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        connection->idle_since = gd_time_monotonic();
        connection->next = http->connections;
        if (http->connections != NULL)
            http->connections->previous = connection;
        http->connections = connection;
        http->connection_count++;
        *socket_context = connection;
        return;
    }
    struct connection *connection = *socket_context;
    if (connection->linger && !http->stopping)
        gd_linger_start(http, connection->fd);
    if (connection->previous != NULL)
        connection->previous->next = connection->next;
    else
        http->connections = connection->next;
    if (connection->next != NULL)
        connection->next->previous = connection->previous;
    http->connection_count--;
    gd_free(connection);
}

static void *on_uri(void *context, const char *uri, struct MHD_Connection *mhd)
{
    return gd_request_create(connection_of(mhd), mhd, uri);
}

/* Gives a whole request to its handler, which may answer now or later. */
static void dispatch(struct gd_request *request)
{
    request->phase = PHASE_HANDLED;
    if (request->refused.code != GD_OK)
        gd_http_fail(request, &request->refused);
    else if (request->options)
        gd_http_reply(request, 204, NULL);
    else
        request->route->handler(request->http->app, request);
    if (!request->answered)
        gd_http_suspend(request);
}

static enum MHD_Result on_request(void *context, struct MHD_Connection *mhd, const char *url, const char *method,
                                  const char *version, const char *data, size_t *length, void **request_context)
{
    struct gd_request *request = *request_context;
    if (request == NULL || request->http->stopping)
        return MHD_NO;
    if (request->phase == PHASE_HEADERS) {
        request->phase = PHASE_BODY;
        request->body_since = gd_time_monotonic();
        gd_http_intake(request, method);
        return MHD_YES;
    }
    if (*length > 0)
        return gd_http_body_data(request, data, length);
    if (request->answered)
        return MHD_YES;
    if (request->phase == PHASE_BODY || request->phase == PHASE_BODY_CLOSING) {
        if (!gd_http_body_end(request))
            return MHD_YES;
        request->phase = PHASE_READY;
    }
    if (request->phase == PHASE_READY)
        dispatch(request);
    else if (!request->suspended)
        gd_http_suspend(request);
    return MHD_YES;
}

static void on_completed(void *context, struct MHD_Connection *mhd, void **request_context,
                         enum MHD_RequestTerminationCode code)
{
    struct gd_request *request = *request_context;
    *request_context = NULL;
    if (request == NULL)
        return;
    gd_request_completed(request);
}

__attribute__((format(printf, 2, 0)))
static void on_library_log(void *context, const char *format, va_list arguments)
{
    char text[512];
    vsnprintf(text, sizeof(text), format, arguments);
    text[strcspn(text, "\r\n")] = 0;
    gd_log_debug("http", "library=\"%s\"", text);
}

/* ---- the loop ---- */

static void check_drained(struct gd_http *http)
{
    if (!http->draining || http->drained == NULL)
        return;
    bool late = http->forced && gd_time_monotonic() > http->drain_deadline + FORCED_SECONDS;
    if (http->request_count > 0 && !late)
        return;
    void (*drained)(void *context) = http->drained;
    http->drained = NULL;
    drained(http->drained_context);
}

static void run_library(struct gd_http *http)
{
    http->resumed = false;
    enum MHD_Result result = MHD_run(http->daemon);
    if (result != MHD_YES)
        gd_log_error("http", "run=failed errno=%d", errno);
}

static void on_ready(uv_poll_t *poll, int status, int events)
{
    run_library(poll->data);
}

static void on_timeout(uv_timer_t *timer)
{
    run_library(timer->data);
}

static void on_prepare(uv_prepare_t *prepare)
{
    struct gd_http *http = prepare->data;
    MHD_UNSIGNED_LONG_LONG timeout;
    if (http->resumed)
        uv_timer_start(&http->timeout, on_timeout, 0, 0);
    else if (MHD_get_timeout(http->daemon, &timeout) == MHD_YES)
        uv_timer_start(&http->timeout, on_timeout, timeout > 60000 ? 60000 : (uint64_t)timeout, 0);
    else
        uv_timer_stop(&http->timeout);
}

static void sweep_connection(struct gd_http *http, struct connection *connection, double now)
{
    const struct gd_request *request = connection->request;
    double limit = http->app->config.request_timeout_seconds;
    if (request == NULL || request->phase == PHASE_HEADERS) {
        if (http->draining && request == NULL)
            gd_http_cut(connection, "draining");
        else if (now - connection->idle_since > limit)
            gd_http_cut(connection, request == NULL ? "idle" : "slow_headers");
    } else if (request->phase == PHASE_BODY && !request->suspended) {
        double late = now - request->body_since - limit;
        if (late > 0 && (double)request->bytes_in < late * BODY_BYTES_PER_SECOND + 1)
            gd_http_cut(connection, "slow_body");
    }
}

/* Everybody who is still here is told to go: streams end, waiting requests get a 503. */
static void force_out(struct gd_http *http)
{
    http->forced = true;
    for (struct gd_request *request = http->requests, *next; request != NULL; request = next) {
        next = request->next;
        if (request->stream != NULL)
            gd_stream_finish(request->stream);
        else if (request->phase == PHASE_HANDLED && !request->answered)
            gd_http_abandon(request);
        else
            gd_http_cut(request->connection, "draining");
    }
}

static void on_sweep(uv_timer_t *timer)
{
    struct gd_http *http = timer->data;
    double now = gd_time_monotonic();
    for (struct connection *connection = http->connections, *next; connection != NULL; connection = next) {
        next = connection->next;
        sweep_connection(http, connection, now);
    }
    for (struct gd_request *request = http->requests, *next; request != NULL; request = next) {
        next = request->next;
        if (request->stream != NULL)
            gd_stream_sweep(request->stream, now);
    }
    gd_linger_sweep(http, now);
    if (http->draining && !http->forced && now > http->drain_deadline)
        force_out(http);
    struct gd_counters *counters = http->app->counters;
    gd_counters_set(counters, GD_COUNTER_HTTP_CONNECTIONS, http->connection_count, NULL);
    gd_counters_set(counters, GD_COUNTER_HTTP_STREAMS, http->stream_count, NULL);
    gd_counters_set(counters, GD_COUNTER_HTTP_IN_FLIGHT, http->request_count, NULL);
    check_drained(http); /* last: it may stop http */
}

/* ---- start ---- */

static bool listen_on(struct gd_http *http, int *fd, struct gd_error *err)
{
    const struct gd_config *config = &http->app->config;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *list = NULL;
    char port[8];
    snprintf(port, sizeof(port), "%d", config->listen_port);
    int failed = getaddrinfo(config->listen_host, port, &hints, &list);
    if (failed != 0)
        return gd_fail_param(err, GD_INVALID, "server.listen", "listen on %s: %s", config->listen_host,
                             gai_strerror(failed));
    *fd = socket(list->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    bool ok = *fd >= 0 && setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) == 0 &&
              bind(*fd, list->ai_addr, list->ai_addrlen) == 0 && listen(*fd, 511) == 0;
    struct sockaddr_storage bound;
    socklen_t length = sizeof(bound);
    ok = ok && getsockname(*fd, (struct sockaddr *)&bound, &length) == 0;
    if (!ok) {
        int code = errno;
        gd_fail_errno(err, code, "listen on %s:%s", config->listen_host, port);
        if (*fd >= 0)
            close(*fd);
    } else {
        http->port = bound.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)&bound)->sin6_port)
                                                 : ntohs(((struct sockaddr_in *)&bound)->sin_port);
    }
    freeaddrinfo(list);
    return ok;
}

/* What an earlier process left half-uploaded. */
static bool empty_folder(const char *folder, struct gd_error *err)
{
    DIR *stream = opendir(folder);
    if (stream == NULL)
        return gd_fail_errno(err, errno, "open %s", folder);
    bool ok = true;
    for (struct dirent *entry; ok && (entry = readdir(stream)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        char *path = gd_format("%s/%s", folder, entry->d_name);
        ok = gd_remove_tree(path, err);
        gd_free(path);
    }
    closedir(stream);
    return ok;
}

static void raise_descriptor_limit(int connections)
{
    struct rlimit limit;
    rlim_t wanted = (rlim_t)connections * 2 + 256;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted)
        return;
    limit.rlim_cur = limit.rlim_max == RLIM_INFINITY || limit.rlim_max > wanted ? wanted : limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < wanted)
        gd_log_warn("http", "open_files_limit=%llu wanted=%llu", (unsigned long long)limit.rlim_cur,
                    (unsigned long long)wanted);
}

static bool start_daemon(struct gd_http *http, int fd, struct gd_error *err)
{
    const struct gd_config *config = &http->app->config;
    http->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_TURBO | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_request, http,
        MHD_OPTION_EXTERNAL_LOGGER, on_library_log, NULL, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_URI_LOG_CALLBACK, on_uri, http, MHD_OPTION_NOTIFY_COMPLETED, on_completed, http,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, http, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_CONNECTION_LIMIT, (unsigned)config->connection_limit,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)config->request_timeout_seconds,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY_BYTES, MHD_OPTION_END);
    if (http->daemon == NULL) {
        close(fd);
        return gd_fail(err, GD_INTERNAL, "start the HTTP daemon on %s:%d: %s", config->listen_host, http->port,
                       strerror(errno));
    }
    return true;
}

static void start_handles(struct gd_http *http)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    uv_poll_init(http->loop, &http->poll, info->epoll_fd);
    uv_prepare_init(http->loop, &http->prepare);
    uv_timer_init(http->loop, &http->timeout);
    uv_timer_init(http->loop, &http->sweep);
    http->poll.data = http->prepare.data = http->timeout.data = http->sweep.data = http;
    uv_poll_start(&http->poll, UV_READABLE, on_ready);
    uv_prepare_start(&http->prepare, on_prepare);
    uv_timer_start(&http->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
}

bool gd_http_start(struct gd_http **out, struct gd_app *app, struct gd_error *err)
{
    struct gd_http *http = gd_alloc(sizeof(*http));
    http->app = app;
    http->loop = app->loop;
    http->temporary_folder = gd_format("%s/tmp", app->config.data_dir);
    snprintf(http->host, sizeof(http->host), "%s", app->config.listen_host);
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit(app->config.connection_limit);
    int fd = -1;
    if (!gd_mkdirs(http->temporary_folder, err) || !empty_folder(http->temporary_folder, err) ||
        !listen_on(http, &fd, err) || !start_daemon(http, fd, err)) {
        gd_free(http->temporary_folder);
        gd_free(http);
        return false;
    }
    start_handles(http);
    *out = http;
    return true;
}

int gd_http_port(const struct gd_http *http)
{
    return http->port;
}

const char *gd_http_host(const struct gd_http *http)
{
    return http->host;
}

/* ---- end ---- */

static void close_listener(struct gd_http *http)
{
    MHD_socket fd = MHD_quiesce_daemon(http->daemon);
    if (fd != MHD_INVALID_SOCKET)
        close(fd);
}

void gd_http_drain(struct gd_http *http, uint64_t grace_ms, void (*drained)(void *context), void *context)
{
    http->draining = true;
    http->drained = drained;
    http->drained_context = context;
    http->drain_deadline = gd_time_monotonic() + (double)grace_ms / 1000.0;
    close_listener(http);
    for (struct gd_request *request = http->requests, *next; request != NULL; request = next) {
        next = request->next;
        request->close = true;
        if (request->stream != NULL && strcmp(request->method, "GET") == 0)
            gd_stream_finish(request->stream);
    }
    uv_timer_start(&http->sweep, on_sweep, 0, DRAIN_SWEEP_MS);
}

static void on_closed(uv_handle_t *handle)
{
    struct gd_http *http = handle->data;
    if (--http->open_handles > 0)
        return;
    gd_free(http->temporary_folder);
    gd_free(http);
}

void gd_http_stop(struct gd_http *http)
{
    if (http == NULL)
        return;
    http->stopping = true;
    http->drained = NULL;
    if (!http->draining)
        close_listener(http);
    force_out(http);
    /* The library aborts the process if it is stopped with a suspended connection. */
    for (struct gd_request *request = http->requests; request != NULL; request = request->next)
        if (request->suspended)
            gd_http_resume(request);
    run_library(http);
    gd_linger_stop(http);
    uv_poll_stop(&http->poll);
    MHD_stop_daemon(http->daemon);
    uv_handle_t *handles[] = {(uv_handle_t *)&http->poll, (uv_handle_t *)&http->prepare, (uv_handle_t *)&http->timeout,
                              (uv_handle_t *)&http->sweep};
    http->open_handles = (int)GD_COUNT(handles);
    for (size_t i = 0; i < GD_COUNT(handles); i++)
        uv_close(handles[i], on_closed);
}
