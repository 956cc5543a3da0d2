/*
 * routes.c - the route table. Sorted by path, then method. A line here needs its operation in api-spec/openapi.yaml.
 */
#include "server/handlers.h"
#include "server/http.h"

#define JSON_LARGE_BYTES (16u << 20)
#define EVAL_RUN_BYTES (8u << 20) /* rows in the request: they are stored with the run; more belong in a file */

const struct gd_route gd_routes[] = {
    {.method = "POST", .path = "/detokenize", .body = GD_BODY_JSON, .body_max = JSON_LARGE_BYTES,
     .handler = gd_handle_detokenize},
    {.method = "GET", .path = "/healthz", .open = true, .handler = gd_handle_health},
    {.method = "GET", .path = "/metrics", .handler = gd_handle_metrics},
    {.method = "GET", .path = "/openapi.yaml", .handler = gd_handle_openapi},
    {.method = "POST", .path = "/tokenize", .body = GD_BODY_JSON, .body_max = JSON_LARGE_BYTES,
     .handler = gd_handle_tokenize},
    {.method = "GET", .path = "/tokenizer_info", .handler = gd_handle_tokenizer_info},
    {.method = "POST", .path = "/v1/chat/completions", .body = GD_BODY_JSON, .body_max = JSON_LARGE_BYTES,
     .handler = gd_handle_chat_completions},
    {.method = "POST", .path = "/v1/completions", .body = GD_BODY_JSON, .body_max = JSON_LARGE_BYTES,
     .handler = gd_handle_completions},
    {.method = "GET", .path = "/v1/evals", .handler = gd_handle_eval_list},
    {.method = "POST", .path = "/v1/evals", .body = GD_BODY_JSON, .handler = gd_handle_eval_create},
    {.method = "DELETE", .path = "/v1/evals/{eval_id}", .handler = gd_handle_eval_delete},
    {.method = "GET", .path = "/v1/evals/{eval_id}", .handler = gd_handle_eval_get},
    {.method = "POST", .path = "/v1/evals/{eval_id}", .body = GD_BODY_JSON, .handler = gd_handle_eval_update},
    {.method = "GET", .path = "/v1/evals/{eval_id}/runs", .handler = gd_handle_eval_run_list},
    {.method = "POST", .path = "/v1/evals/{eval_id}/runs", .body = GD_BODY_JSON, .body_max = EVAL_RUN_BYTES,
     .handler = gd_handle_eval_run_create},
    {.method = "DELETE", .path = "/v1/evals/{eval_id}/runs/{run_id}", .handler = gd_handle_eval_run_delete},
    {.method = "GET", .path = "/v1/evals/{eval_id}/runs/{run_id}", .handler = gd_handle_eval_run_get},
    {.method = "POST", .path = "/v1/evals/{eval_id}/runs/{run_id}", .handler = gd_handle_eval_run_cancel},
    {.method = "GET", .path = "/v1/evals/{eval_id}/runs/{run_id}/compare", .handler = gd_handle_eval_run_compare},
    {.method = "GET", .path = "/v1/evals/{eval_id}/runs/{run_id}/events", .handler = gd_handle_eval_run_events},
    {.method = "GET", .path = "/v1/evals/{eval_id}/runs/{run_id}/output_items", .handler = gd_handle_eval_item_list},
    {.method = "GET", .path = "/v1/evals/{eval_id}/runs/{run_id}/output_items/{item_id}", 
     .handler = gd_handle_eval_item_get},
    {.method = "GET", .path = "/v1/files", .handler = gd_handle_file_list},
    {.method = "POST", .path = "/v1/files", .body = GD_BODY_MULTIPART, .handler = gd_handle_file_create},
    {.method = "DELETE", .path = "/v1/files/{file_id}", .handler = gd_handle_file_delete},
    {.method = "GET", .path = "/v1/files/{file_id}", .handler = gd_handle_file_get},
    {.method = "GET", .path = "/v1/files/{file_id}/content", .handler = gd_handle_file_content},
    {.method = "POST", .path = "/v1/files/{file_id}/render", .body = GD_BODY_JSON, .handler = gd_handle_file_render},
    {.method = "POST", .path = "/v1/fine_tuning/alpha/graders/run", .body = GD_BODY_JSON, .handler = gd_handle_grader_run},
    {.method = "POST", .path = "/v1/fine_tuning/alpha/graders/validate", .body = GD_BODY_JSON,
     .handler = gd_handle_grader_validate},
    {.method = "GET", .path = "/v1/fine_tuning/jobs", .handler = gd_handle_job_list},
    {.method = "POST", .path = "/v1/fine_tuning/jobs", .body = GD_BODY_JSON, .handler = gd_handle_job_create},
    {.method = "GET", .path = "/v1/fine_tuning/jobs/{job_id}", .handler = gd_handle_job_get},
    {.method = "POST", .path = "/v1/fine_tuning/jobs/{job_id}/cancel", .handler = gd_handle_job_cancel},
    {.method = "GET", .path = "/v1/fine_tuning/jobs/{job_id}/checkpoints", .handler = gd_handle_job_checkpoints},
    {.method = "GET", .path = "/v1/fine_tuning/jobs/{job_id}/events", .handler = gd_handle_job_events},
    {.method = "GET", .path = "/v1/fine_tuning/jobs/{job_id}/metrics", .handler = gd_handle_job_metrics},
    {.method = "POST", .path = "/v1/fine_tuning/jobs/{job_id}/pause", .handler = gd_handle_job_pause},
    {.method = "POST", .path = "/v1/fine_tuning/jobs/{job_id}/resume", .handler = gd_handle_job_resume},
    {.method = "GET", .path = "/v1/models", .handler = gd_handle_model_list},
    {.method = "DELETE", .path = "/v1/models/{model}", .handler = gd_handle_model_delete},
    {.method = "GET", .path = "/v1/models/{model}", .handler = gd_handle_model_get},
    {.method = "POST", .path = "/v1/rewards", .body = GD_BODY_JSON, .body_max = JSON_LARGE_BYTES, .handler = gd_handle_rewards},
    {.method = "GET", .path = "/v1/tuning/methods", .handler = gd_handle_method_list},
};
const int gd_route_count = (int)(sizeof(gd_routes) / sizeof(gd_routes[0]));
