/*
 * app.h - the parts of the server in one place, and how they start and stop.
 *
 * Why      Handlers get one pointer; start-up and shutdown have one order.
 * Memory   Owns every part.
 * Threads  Loop thread.
 * Errors   gd_app_run prints what failed and returns the exit code.
 * Limits   none
 * Life     gd_app_run from main: config -> store -> recovery -> http ("listening on") -> workers -> loop -> drain.
 */
#ifndef GD_SERVER_APP_H
#define GD_SERVER_APP_H

#include "server/config.h"
#include "server/http.h"
#include "storage/store.h"
#include <uv.h>

struct gd_supervisor;  /* supervisor.h: worker processes */
struct gd_scheduler;   /* scheduler.h: which job runs where */
struct gd_keys;        /* keys.h: bearer keys */
struct gd_models;      /* models.h: bases in the models folder */
struct gd_counters;    /* counters.h: Prometheus */
struct gd_files;       /* files.h: uploads and their expiry */

struct gd_app {
    struct gd_config config;
    uv_loop_t *loop;
    struct gd_store *store;
    struct gd_http *http;
    struct gd_keys *keys;           /* NULL: no key needed */
    struct gd_models *models;
    struct gd_supervisor *supervisor;
    struct gd_scheduler *scheduler;
    struct gd_counters *counters;
    struct gd_files *files;
    bool draining;
    int64_t started_at;
    char organization_id[40];
};

/* What is asked of a server that stops gets GD_UNAVAILABLE; returns false. */
bool gd_fail_stopping(struct gd_error *err);

/* Runs until SIGTERM/SIGINT. Returns the process's exit code. */
int gd_app_run(const struct gd_config *config);

#endif
