/*
 * eval_json.h - evals, runs and output items as OpenAI's objects, with graftd's own fields beside the standard ones.
 *
 * Why      One place knows the shapes, and how uncertain a score is.
 * Memory   Results are yours to cJSON_Delete.
 * Threads  Any: they only read records.
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_SERVER_EVAL_JSON_H
#define GD_SERVER_EVAL_JSON_H

#include "storage/db.h"

cJSON *gd_eval_json(const struct gd_eval_record *record);
/* results: of a run without items, all zero. */
cJSON *gd_run_json(const struct gd_job_record *record, const struct gd_eval_results *results);
cJSON *gd_output_item_json(const char *eval_id, const struct gd_eval_item_record *record);
cJSON *gd_run_comparison_json(const char *run_id, const char *with_run_id, const struct gd_eval_pairs *pairs);
/* "queued", "in_progress", "completed", "canceled", "failed" */
const char *gd_run_status_name(enum gd_job_status status);
/* The job statuses that a run's status stands for; 0 if there is no such status. */
int gd_run_statuses(const char *name, enum gd_job_status statuses[GD_JOB_STATUS_COUNT]);

#endif
