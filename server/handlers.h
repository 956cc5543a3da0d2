/*
 * handlers.h - what answers each route.
 *
 * Why      The route table (routes.c) names them; each routes_*.c defines its own.
 * Memory   A handler borrows the request until it ends it (http.h).
 * Threads  Loop thread; a handler returns within a millisecond and answers later if it must wait.
 * Errors   Answered with gd_http_fail.
 * Limits   none
 * Life     none
 */
#ifndef GD_SERVER_HANDLERS_H
#define GD_SERVER_HANDLERS_H

struct gd_app;
struct gd_request;

/* routes_completions.c */
void gd_handle_chat_completions(struct gd_app *app, struct gd_request *request);
void gd_handle_completions(struct gd_app *app, struct gd_request *request);

/* routes_evals.c, routes_eval_create.c; events: routes_job_data.c */
void gd_handle_eval_create(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_delete(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_get(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_item_get(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_item_list(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_list(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_run_cancel(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_run_compare(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_run_create(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_run_delete(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_run_events(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_run_get(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_run_list(struct gd_app *app, struct gd_request *request);
void gd_handle_eval_update(struct gd_app *app, struct gd_request *request);

/* routes_files.c */
void gd_handle_file_content(struct gd_app *app, struct gd_request *request);
void gd_handle_file_create(struct gd_app *app, struct gd_request *request);
void gd_handle_file_delete(struct gd_app *app, struct gd_request *request);
void gd_handle_file_get(struct gd_app *app, struct gd_request *request);
void gd_handle_file_list(struct gd_app *app, struct gd_request *request);
void gd_handle_file_render(struct gd_app *app, struct gd_request *request);

/* routes_graders.c */
void gd_handle_grader_run(struct gd_app *app, struct gd_request *request);
void gd_handle_grader_validate(struct gd_app *app, struct gd_request *request);

/* routes_jobs.c */
void gd_handle_job_cancel(struct gd_app *app, struct gd_request *request);
void gd_handle_job_checkpoints(struct gd_app *app, struct gd_request *request);
void gd_handle_job_create(struct gd_app *app, struct gd_request *request);
void gd_handle_job_events(struct gd_app *app, struct gd_request *request);
void gd_handle_job_get(struct gd_app *app, struct gd_request *request);
void gd_handle_job_list(struct gd_app *app, struct gd_request *request);
void gd_handle_job_metrics(struct gd_app *app, struct gd_request *request);
void gd_handle_job_pause(struct gd_app *app, struct gd_request *request);
void gd_handle_job_resume(struct gd_app *app, struct gd_request *request);

/* routes_models.c */
void gd_handle_model_delete(struct gd_app *app, struct gd_request *request);
void gd_handle_model_get(struct gd_app *app, struct gd_request *request);
void gd_handle_model_list(struct gd_app *app, struct gd_request *request);

/* routes_rewards.c */
void gd_handle_rewards(struct gd_app *app, struct gd_request *request);
void gd_handle_embeddings(struct gd_app *app, struct gd_request *request);
void gd_handle_classifications(struct gd_app *app, struct gd_request *request);

/* routes_system.c */
void gd_handle_health(struct gd_app *app, struct gd_request *request);
void gd_handle_metrics(struct gd_app *app, struct gd_request *request);
void gd_handle_openapi(struct gd_app *app, struct gd_request *request);

/* routes_tokens.c */
void gd_handle_detokenize(struct gd_app *app, struct gd_request *request);
void gd_handle_tokenize(struct gd_app *app, struct gd_request *request);
void gd_handle_tokenizer_info(struct gd_app *app, struct gd_request *request);

/* routes_tuning.c */
void gd_handle_method_list(struct gd_app *app, struct gd_request *request);

#endif
