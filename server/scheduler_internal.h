/*
 * scheduler_internal.h - what the scheduler's files share: the list of jobs, their places on workers, their turns.
 *
 * Why      The queue, the turns and the workers' frames act on the same jobs; each is a file of its own.
 * Memory   As in scheduler.h.
 * Threads  Loop thread.
 * Errors   as in scheduler.h
 * Limits   GD_SCHEDULER_WORKERS_MAX workers.
 * Life     that of the scheduler
 */
#ifndef GD_SERVER_SCHEDULER_INTERNAL_H
#define GD_SERVER_SCHEDULER_INTERNAL_H

#include "engine/worker/protocol.h"
#include "server/job.h"

#define GD_SCHEDULER_BUCKETS 4096
#define GD_SCHEDULER_WORKERS_MAX 64
#define GD_SCHEDULER_RETRY_MS 1000u  /* first rest of what could not be stored; it doubles */

/* Jobs that a worker is being given or runs. */
struct gd_company {
    struct gd_job *jobs[GD_WORKER_JOBS_MAX];
    int count;
};

struct gd_watch;

struct gd_scheduler {
    struct gd_app *app;
    struct gd_job *buckets[GD_SCHEDULER_BUCKETS];
    struct gd_job *first, *last;             /* oldest first */
    struct gd_company on_worker[GD_SCHEDULER_WORKERS_MAX];
    int64_t ended[GD_JOB_STATUS_COUNT];
    struct gd_watch *watches;
    int telling;                             /* watches are being called: the dead stay in the list */
    uv_timer_t flush_timer, retry_timer;
    uint64_t retry_ms;
    int open_handles, turn_count;
    bool draining;
    void (*drained)(void *context);
    void *drained_context;
};

/* ---- scheduler_list.c ---- */
struct gd_job *gd_jobs_find(const struct gd_scheduler *scheduler, const char *id); /* NULL: not active */
struct gd_job *gd_jobs_add(struct gd_scheduler *scheduler, struct gd_job_record *record_taken);
void gd_jobs_remove(struct gd_job *job); /* and frees it with its turns */

/* ---- scheduler_queue.c ---- */
bool gd_queue_holds(const struct gd_job *job);
/* Gives jobs to workers for as long as there is one that may start and a worker that takes it. */
void gd_queue_dispatch(struct gd_scheduler *scheduler);

/* ---- scheduler_turns.c ---- */
/* Runs what can run; the job may be gone afterwards. */
void gd_turns_run(struct gd_job *job);
void gd_turn_free(struct gd_turn *turn);
void gd_turns_retry(struct gd_scheduler *scheduler); /* those that rest, waiting for the disk */

/* ---- scheduler_watch.c ---- */
/* job_id NULL: all watches. */
void gd_watches_tell(struct gd_scheduler *scheduler, const char *job_id, const struct gd_event_record *event, bool ended);
void gd_watches_close(struct gd_scheduler *scheduler);

/* ---- scheduler.c ---- */
/* Looks again at what waits (a model, the disk) in `ms` at the latest. */
void gd_scheduler_look_again(struct gd_scheduler *scheduler, uint64_t ms);
void gd_scheduler_tell_when_drained(struct gd_scheduler *scheduler);

#endif
