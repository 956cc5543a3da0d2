/*
 * job_json.h - records as OpenAI's objects, with graftd's own fields beside the standard ones.
 *
 * Why      The jobs routes answer with the same objects everywhere.
 * Memory   Results are yours to cJSON_Delete.
 * Threads  Loop thread.
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_SERVER_JOB_JSON_H
#define GD_SERVER_JOB_JSON_H

#include "server/app.h"

cJSON *gd_job_json(const struct gd_app *app, const struct gd_job_record *record);
cJSON *gd_event_json(const struct gd_event_record *record, bool of_run);
cJSON *gd_checkpoint_json(const struct gd_app *app, const struct gd_checkpoint_record *record);
/* Adds unit, better and definition to each series of a metrics answer, where the name is known. */
void gd_metrics_explain(cJSON *series);

/* Ends the request like gd_http_fail; a model that is not there has the code model_not_found. */
void gd_http_fail_model(struct gd_request *request, const struct gd_error *err);

#endif
