/*
 * job_plan.h - asks a worker what a job would need, before the job is stored.
 *
 * Why      A job that cannot fit is refused at once. The plan is the engine's own, made dry from shapes and the file's longest
 *          rows, in the process that has the graphs; the loop only waits for a message.
 * Memory   Borrows `spec` and `record` for the call.
 * Threads  Loop thread.
 * Errors   A worker that is not there, or busy for longer than GD_JOB_PLAN_MS, leaves the job unplanned: it is planned again
 *          when it starts, and fails then if it does not fit. So does a request whose model or file cannot be read: the job says why.
 * Limits   none
 * Life     one call; `done` exactly once, perhaps before it returns.
 */
#ifndef GD_SERVER_JOB_PLAN_H
#define GD_SERVER_JOB_PLAN_H

#include "engine/base/json.h"
#include "server/app.h"
#include "storage/db.h"

#define GD_JOB_PLAN_MS 8000

/* memory: borrowed; {"weights_bytes", ..., "fits", and where it does not "message", "param", "advice"}; NULL: unplanned. */
typedef void (*gd_job_planned)(void *context, const cJSON *memory);
void gd_job_plan(struct gd_app *app, const cJSON *spec, const struct gd_job_record *record, gd_job_planned done, void *context);

#endif
