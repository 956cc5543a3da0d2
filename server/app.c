/* Start and stop of the server, in order. */
#include "server/app.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "server/counters.h"
#include "server/files.h"
#include "server/keys.h"
#include "server/models.h"
#include "server/scheduler.h"
#include "server/supervisor.h"
#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DRAIN_MS 75000u      /* replies may take as long as the worker has for its checkpoint, and a little more */
#define LINGER_MS 10000u     /* after the worker has stopped, for slow readers and a slow disk */

/* One installation is one organization; keys divide it into projects. */
#define ORGANIZATION_ID "org-graftd"

struct server {
    struct gd_app app;
    uv_loop_t loop;
    uv_signal_t terminate, interrupt;
    uv_timer_t deadline;
    bool signals_open, workers_stopped, jobs_drained, http_drained;
};

/* ---- stop ---- */

bool gd_fail_stopping(struct gd_error *err)
{
    return gd_fail(err, GD_UNAVAILABLE, "the server is shutting down: try again when it is back");
}

static void stop_when_drained(struct server *server)
{
    if (server->workers_stopped && server->jobs_drained && server->http_drained)
        uv_stop(&server->loop);
}

static void on_deadline(uv_timer_t *timer)
{
    struct server *server = timer->data;
    gd_log_warn("server", "stopping without jobs_drained=%d http_drained=%d", server->jobs_drained, server->http_drained);
    uv_stop(&server->loop);
}

static void on_workers_stopped(void *context)
{
    struct server *server = context;
    server->workers_stopped = true;
    uv_timer_start(&server->deadline, on_deadline, LINGER_MS, 0);
    stop_when_drained(server);
}

static void on_jobs_drained(void *context)
{
    struct server *server = context;
    server->jobs_drained = true;
    stop_when_drained(server);
}

static void on_http_drained(void *context)
{
    struct server *server = context;
    server->http_drained = true;
    stop_when_drained(server);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct server *server = handle->data;
    if (server->app.draining) {
        gd_log_warn("server", "signal=%d for the second time: stopping at once", number);
        _exit(128 + number); /* workers see the socket close, and the kernel's parent-death signal */
    }
    gd_log_info("server", "signal=%d stopping", number);
    server->app.draining = true;
    gd_http_drain(server->app.http, DRAIN_MS, on_http_drained, server);
    gd_scheduler_drain(server->app.scheduler, on_jobs_drained, server);
    gd_supervisor_stop(server->app.supervisor, on_workers_stopped, server);
}

/* Nothing may be acknowledged after a failed fsync: leave, and recover from what the disk has at the next start. */
static void on_store_broken(void *context, const struct gd_error *err)
{
    gd_log_error("server", "the database cannot be written any more: %s", err->message);
    fprintf(stderr, "graftd: the database cannot be written any more: %s\n", err->message);
    _exit(1);
}

/* ---- start ---- */

static bool make_folders(const char *data_dir, struct gd_error *err)
{
    static const char *const folders[] = {"files", "jobs", "tmp"};
    bool ok = true;
    for (size_t i = 0; ok && i < GD_COUNT(folders); i++) {
        char *path = gd_format("%s/%s", data_dir, folders[i]);
        ok = gd_mkdirs(path, err);
        gd_free(path);
    }
    return ok;
}

static bool watch_signals(struct server *server, struct gd_error *err)
{
    uv_timer_init(&server->loop, &server->deadline);
    uv_signal_init(&server->loop, &server->terminate);
    uv_signal_init(&server->loop, &server->interrupt);
    server->deadline.data = server->terminate.data = server->interrupt.data = server;
    server->signals_open = true;
    if (uv_signal_start(&server->terminate, on_signal, SIGTERM) != 0 ||
        uv_signal_start(&server->interrupt, on_signal, SIGINT) != 0)
        return gd_fail(err, GD_INTERNAL, "cannot watch for SIGTERM and SIGINT");
    return true;
}

static void say_listening(const struct gd_app *app)
{
    const char *host = gd_http_host(app->http);
    bool v6 = strchr(host, ':') != NULL && host[0] != '[';
    printf("listening on http://%s%s%s:%d\n", v6 ? "[" : "", host, v6 ? "]" : "", gd_http_port(app->http));
    fflush(stdout);
    gd_log_info("server", "listening on %s port %d version=%s data_dir=%s", host, gd_http_port(app->http), GD_VERSION,
                app->config.data_dir);
}

static bool start(struct server *server, struct gd_error *err)
{
    struct gd_app *app = &server->app;
    const struct gd_config *config = &app->config;
    bool ok = watch_signals(server, err) &&
              gd_store_open(&app->store, app->loop, config->data_dir, on_store_broken, server, err) &&
              make_folders(config->data_dir, err) && gd_models_open(&app->models, config->models_dir, err);
    if (ok && config->api_key_file != NULL)
        ok = gd_keys_load(&app->keys, config->api_key_file, err);
    if (ok)
        app->counters = gd_counters_create();
    ok = ok && gd_files_start(&app->files, app, err) && gd_scheduler_start(&app->scheduler, app, err) &&
         gd_http_start(&app->http, app, err);
    if (!ok)
        return false;
    say_listening(app);
    return gd_supervisor_start(&app->supervisor, app, err);
}

static void release(struct server *server)
{
    struct gd_app *app = &server->app;
    gd_http_stop(app->http);
    if (app->files != NULL)
        gd_files_stop(app->files);
    gd_supervisor_destroy(app->supervisor);
    gd_store_close(app->store); /* its last closures tell the scheduler */
    gd_scheduler_destroy(app->scheduler);
    if (server->signals_open) {
        uv_close((uv_handle_t *)&server->terminate, NULL);
        uv_close((uv_handle_t *)&server->interrupt, NULL);
        uv_close((uv_handle_t *)&server->deadline, NULL);
    }
    uv_run(&server->loop, UV_RUN_DEFAULT);
    uv_loop_close(&server->loop);
    gd_models_destroy(app->models);
    gd_keys_destroy(app->keys);
    gd_counters_destroy(app->counters);
}

int gd_app_run(const struct gd_config *config)
{
    struct server *server = gd_alloc(sizeof *server);
    struct gd_error err = {0};
    server->app.config = *config; /* the strings stay the caller's */
    server->app.loop = &server->loop;
    server->app.started_at = gd_time_unix();
    snprintf(server->app.organization_id, sizeof server->app.organization_id, "%s", ORGANIZATION_ID);
    signal(SIGPIPE, SIG_IGN);
    (void)setenv("UV_THREADPOOL_SIZE", "16", 0); /* graders sleep in some while files need others */
    bool ok = uv_loop_init(&server->loop) == 0 || gd_fail(&err, GD_INTERNAL, "cannot create the event loop");
    if (ok) {
        ok = start(server, &err);
        if (ok)
            uv_run(&server->loop, UV_RUN_DEFAULT);
        release(server);
    }
    if (!ok)
        fprintf(stderr, "graftd: %s\n", err.message);
    gd_log_info("server", "stopped");
    gd_free(server);
    return ok ? 0 : 1;
}
