/*
 * job_attached.h - the evals that a fine-tuning job brings: looked up when it is submitted, given paths when it starts.
 *
 * Why      What a checkpoint's evals need is checked before the job waits in the queue, and kept with it: deleting or changing
 *          the eval later changes nothing.
 * Memory   Changes the JSON in place (evaluation.evals of a job's body).
 * Threads  gd_attached_resolve on a store thread; the others on the loop.
 * Errors   GD_INVALID, GD_NOT_FOUND with param "evaluation.evals[i]..."
 * Limits   GD_ATTACHED_EVALS_MAX evals
 * Life     resolve -> check_bases -> (the job is stored) -> place in its start frame.
 */
#ifndef GD_SERVER_JOB_ATTACHED_H
#define GD_SERVER_JOB_ATTACHED_H

#include "engine/base/json.h"
#include "server/app.h"
#include "storage/db.h"

/* Stored evals by eval_id, files by their purpose, judges by their ids: adds data_source_config, testing_criteria, models. */
GD_MUST_CHECK bool gd_attached_resolve(struct gd_db *db, const char *project, cJSON *evals, struct gd_error *err);
/* Are the judges' bases in the models folder? */
GD_MUST_CHECK bool gd_attached_check_bases(const struct gd_app *app, const cJSON *evals, struct gd_error *err);
/* Paths for the worker. */
GD_MUST_CHECK bool gd_attached_place(const struct gd_app *app, cJSON *evals, struct gd_error *err);

#endif
