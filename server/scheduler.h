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
 * Order: priority (higher first), then age. Jobs that can share their passes (gd_job_spec_pass_key) run side by side, as many
 * as jobs.jobs_per_pass says: the first of the queue joins those that run if it can. Where it cannot, nobody does, so that it
 * is next; and it goes alone after two of its workers have ended without a step of its own in between.
 *
 * Recovery: a job that was running goes back to the queue and continues from its last checkpoint; one that was pausing is
 * paused (its last checkpoint stands, which is what was asked for). A job during which its worker ended three times without
 * a new step in between fails with code worker_crashed; an end with requests in flight or other jobs beside it counts a third,
 * because the blame may be theirs.
 *
 * Metrics are stored every GD_METRICS_FLUSH_MS, and before each checkpoint and end. Each step has its point in the metrics
 * store; the event log is thinned: every step up to 100, every 10th up to 1,000, every 100th up to 10,000, and so on, and
 * each step with a validation loss, and the last.
 */
#ifndef GD_SERVER_SCHEDULER_H
#define GD_SERVER_SCHEDULER_H

#include "server/app.h"

#define GD_METRICS_FLUSH_MS 200

/* Runs the loop until the stored jobs are read and recovered. app->supervisor may follow later. */
GD_MUST_CHECK bool gd_scheduler_start(struct gd_scheduler **out, struct gd_app *app, struct gd_error *err);
/* Hands out no job any more, tells all watchers (event NULL), and calls `drained` once no job is on a worker and all that
 * happened is stored. The supervisor is stopped meanwhile. */
void gd_scheduler_drain(struct gd_scheduler *scheduler, void (*drained)(void *context), void *context);
/* Drops what is in memory; the store keeps its part. Closes its timers on the loop. */
void gd_scheduler_destroy(struct gd_scheduler *scheduler);

/* From routes; cancel, pause and resume are for fine-tuning jobs, cancel_run for runs of evals. `done` gets the stored job (borrowed, NULL with an error) once the change is durable. */
typedef void (*gd_job_done)(void *context, const struct gd_job_record *job, const struct gd_error *err);
void gd_scheduler_submit(struct gd_scheduler *scheduler, struct gd_job_record *job_taken, gd_job_done done, void *context);
void gd_scheduler_cancel(struct gd_scheduler *scheduler, const char *project, const char *job_id, gd_job_done done,
                         void *context);
void gd_scheduler_cancel_run(struct gd_scheduler *scheduler, const char *project, const char *eval_id, const char *run_id,
                             gd_job_done done, void *context);
void gd_scheduler_pause(struct gd_scheduler *scheduler, const char *project, const char *job_id, gd_job_done done,
                        void *context);
void gd_scheduler_resume(struct gd_scheduler *scheduler, const char *project, const char *job_id, gd_job_done done,
                         void *context);

/* From the supervisor. */
void gd_scheduler_worker_frame(struct gd_scheduler *scheduler, int worker, const cJSON *frame); /* job_* */
void gd_scheduler_worker_ready(struct gd_scheduler *scheduler, int worker);
/* `blameless`: its device failed, not what it did. */
void gd_scheduler_worker_lost(struct gd_scheduler *scheduler, int worker, const char *why, bool blameless);

/* Live subscribers of a job's events: called on the loop for each event after it was stored. event NULL: the server is
 * going. job_ended: with the last event of a job. unwatch is allowed inside the call. */
typedef void (*gd_event_seen)(void *context, const struct gd_event_record *event, bool job_ended);
void *gd_scheduler_watch(struct gd_scheduler *scheduler, const char *job_id, gd_event_seen seen, void *context);
void gd_scheduler_unwatch(struct gd_scheduler *scheduler, void *watch);

/* {"counts":{status: n, ...}, "ended":{status: n since start, ...}, "running":[job ids]}. Position of a job in the queue:
 * 1 is next, 0 is not waiting. */
cJSON *gd_scheduler_describe(const struct gd_scheduler *scheduler);
int gd_scheduler_queue_position(const struct gd_scheduler *scheduler, const char *job_id);
/* {step, total_steps, epoch, trained_tokens, tokens_per_second, seconds_remaining} of a job, as of now: null where not
 * known. Ahead of the stored record by at most one flush. */
cJSON *gd_scheduler_progress(const struct gd_scheduler *scheduler, const struct gd_job_record *record);

#endif
