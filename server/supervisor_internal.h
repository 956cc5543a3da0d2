/*
 * supervisor_internal.h - what the supervisor's files share: workers as the server sees them.
 *
 * Why      Requests on their way, the watch for workers that hang, and workers' lives act on the same workers; each is a file of its own.
 * Memory   As in supervisor.h.
 * Threads  Loop thread.
 * Errors   as in supervisor.h
 * Limits   as in supervisor.h
 * Life     that of the supervisor
 */
#ifndef GD_SERVER_SUPERVISOR_INTERNAL_H
#define GD_SERVER_SUPERVISOR_INTERNAL_H

#include "engine/worker/protocol.h"
#include "server/supervisor.h"
#include "server/worker_process.h"

#define GD_PENDING_BUCKETS 1024      /* ids are consecutive: chains stay short */
#define GD_PACE_COUNT 15

struct gd_pending;

enum gd_supervised_state {
    GD_SUPERVISED_WAITING,           /* for its restart */
    GD_SUPERVISED_STARTING,
    GD_SUPERVISED_READY,
    GD_SUPERVISED_STOPPED,
    GD_SUPERVISED_FAILED,            /* its device is out of the pool */
};

struct gd_supervised {
    struct gd_supervisor *supervisor;
    int index;
    enum gd_supervised_state state;
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
    uint64_t intervals[GD_PACE_COUNT];   /* between moves, a ring */
    int interval_count;
    struct gd_pending *first, *last;     /* oldest first */
    int in_flight;
};

struct gd_supervisor {
    struct gd_app *app;
    struct gd_supervised *workers;
    int worker_count, pending_count;
    uint64_t next_id;
    struct gd_pending *buckets[GD_PENDING_BUCKETS];
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

static inline uint64_t gd_supervisor_now(const struct gd_supervisor *supervisor)
{
    return uv_now(supervisor->app->loop);
}

/* ---- supervisor_requests.c ---- */
/* The worker became ready: what waited for it goes out. */
void gd_pending_send(struct gd_supervised *worker);
void gd_pending_answer(struct gd_supervised *worker, const cJSON *frame, bool last);
void gd_pending_fail(struct gd_supervised *worker, bool unsent_too, const struct gd_error *err);
/* A stop waits for the completions under way, but not for long ones. */
void gd_pending_give_up(struct gd_supervised *worker);
/* Nobody is told. */
void gd_pending_forget(struct gd_supervised *worker);

/* ---- supervisor_pulse.c ---- */
void gd_pulse_take(struct gd_supervised *worker, const cJSON *frame);
/* Looks at all workers now and then: those that hang are ended. */
void gd_pulse_start(struct gd_supervisor *supervisor);

#endif
