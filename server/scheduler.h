/*
 * scheduler.h - which job runs next, and what happens to it: the job state machine.
 *
 * Why      One place changes a job's status: it checks the table, stores, and only then tells anyone.
 * Memory   Owns a copy of each active job's record.
 * Threads  Loop thread.
 * Errors   GD_CONFLICT naming the state for calls that do not fit it.
 * Limits   none
 * Life     gd_scheduler_start (reads active jobs; running ones go back to queued) -> calls -> destroy.
 *
 * Order: priority (higher first), then age.
 */
#ifndef GD_SERVER_SCHEDULER_H
#define GD_SERVER_SCHEDULER_H

#include "server/app.h"

GD_MUST_CHECK bool gd_scheduler_start(struct gd_scheduler **out, struct gd_app *app, struct gd_error *err);
void gd_scheduler_destroy(struct gd_scheduler *scheduler);

/* From routes. `done` gets the stored job (borrowed, NULL with an error) once the change is durable. */
typedef void (*gd_job_done)(void *context, const struct gd_job_record *job, const struct gd_error *err);
void gd_scheduler_submit(struct gd_scheduler *scheduler, struct gd_job_record *job_taken, gd_job_done done, void *context);
void gd_scheduler_cancel(struct gd_scheduler *scheduler, const char *project, const char *job_id, gd_job_done done,
                         void *context);
void gd_scheduler_pause(struct gd_scheduler *scheduler, const char *project, const char *job_id, gd_job_done done,
                        void *context);
void gd_scheduler_resume(struct gd_scheduler *scheduler, const char *project, const char *job_id, gd_job_done done,
                         void *context);

/* From the supervisor. */
void gd_scheduler_worker_frame(struct gd_scheduler *scheduler, int worker, const cJSON *frame); /* job_* */
void gd_scheduler_worker_ready(struct gd_scheduler *scheduler, int worker);
void gd_scheduler_worker_lost(struct gd_scheduler *scheduler, int worker, const char *why);

/* Live subscribers of a job's events: called on the loop for each event after it was stored. */
typedef void (*gd_event_seen)(void *context, const struct gd_event_record *event, bool job_ended);
void *gd_scheduler_watch(struct gd_scheduler *scheduler, const char *job_id, gd_event_seen seen, void *context);
void gd_scheduler_unwatch(struct gd_scheduler *scheduler, void *watch);

/* Counts by status, queue position of a job (0 = not waiting). */
cJSON *gd_scheduler_describe(const struct gd_scheduler *scheduler);
int gd_scheduler_queue_position(const struct gd_scheduler *scheduler, const char *job_id);

#endif
