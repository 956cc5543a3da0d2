/*
 * supervisor.h - worker processes: spawn, listen, watch, restart.
 *
 * Why      A worker that dies or hangs takes nobody with it: jobs are requeued, requests get a retryable error.
 * Memory   Owns worker processes and pending requests.
 * Threads  Loop thread.
 * Errors   Requests: GD_UNAVAILABLE (503, retry) when the worker died.
 * Limits   restarts back off 0.1 s doubling to 10 s, from the start again after a worker stood for 30 s;
 *          GD_WORKER_PENDING_MAX requests waiting (GD_BUSY).
 * Life     gd_supervisor_start -> send / request ... -> gd_supervisor_stop.
 */
#ifndef GD_SERVER_SUPERVISOR_H
#define GD_SERVER_SUPERVISOR_H

#include "server/app.h"

#define GD_WORKER_PENDING_MAX 4096
#define GD_HEARTBEAT_SILENCE_MS 10000   /* then SIGTERM, 5 s, SIGKILL; six times that until "ready" */
/* A busy worker whose step_watermark stands still for the longer of this and 10 times its median is hung as well. The
 * watermark must rise with everything that the engine finishes (a micro-step, a decode turn, a slice of tokenising); before
 * a median is known, GD_WATERMARK_FIRST_MS. */
#define GD_WATERMARK_SILENCE_MS 120000
#define GD_WATERMARK_FIRST_MS 1800000

GD_MUST_CHECK bool gd_supervisor_start(struct gd_supervisor **out, struct gd_app *app, struct gd_error *err);
/* shutdown frame, 60 s for a checkpoint, SIGTERM, SIGKILL; `stopped` on the loop. */
void gd_supervisor_stop(struct gd_supervisor *supervisor, void (*stopped)(void *context), void *context);
void gd_supervisor_destroy(struct gd_supervisor *supervisor);

/* ---- requests (generate, render, tokenize, ...) ---- */
/* `message` is the frame without "id" (taken). Each frame of the answer ("token", then one of "generated", "scored", "result",
 * "failed") is given to on_frame (borrowed); the last one is followed by nothing. If the worker dies: a "failed" frame with
 * GD_UNAVAILABLE. *id cancels. Waits for the worker to become ready if it is (re)starting. */
typedef void (*gd_worker_frame)(void *context, const cJSON *frame, bool last);
GD_MUST_CHECK bool gd_supervisor_request(struct gd_supervisor *supervisor, cJSON *message_taken, gd_worker_frame on_frame,
                                         void *context, uint64_t *id, struct gd_error *err);
/* No more frames for `id` after this returns; unknown ids are ignored. */
void gd_supervisor_cancel(struct gd_supervisor *supervisor, uint64_t id);

/* ---- jobs ---- */
int gd_supervisor_worker_count(const struct gd_supervisor *supervisor);
bool gd_supervisor_worker_free(const struct gd_supervisor *supervisor, int worker);  /* ready and without a job */
bool gd_supervisor_worker_takes(const struct gd_supervisor *supervisor, int worker); /* ready, and there is room beside its jobs */
void gd_supervisor_send(struct gd_supervisor *supervisor, int worker, cJSON *message_taken);
/* Requests that the worker has been given and has not answered. */
int gd_supervisor_in_flight(const struct gd_supervisor *supervisor, int worker);
/* Shorter silences, for tests. */
void gd_supervisor_set_patience(struct gd_supervisor *supervisor, uint64_t heartbeat_ms, uint64_t watermark_ms);

/* {"workers":[{index,pid,state,device,isa,compute,threads,job_id,job_ids[],rss_bytes,device_bytes,device_limit_bytes,restarts,infer{..},heartbeat_age_ms}]} */
cJSON *gd_supervisor_describe(const struct gd_supervisor *supervisor);

#endif
