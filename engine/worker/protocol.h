/*
 * protocol.h - frames between the server and its workers, over one socket pair.
 *
 * Why      A worker that dies takes nobody with it; the server sees messages, never tensors.
 * Memory   Frames are copied out of the receive buffer; gd_frame_reader owns that buffer.
 * Threads  One reader and one writer per side.
 * Errors   GD_INVALID for a bad length or bad JSON (the peer is then ended, not trusted).
 * Limits   GD_FRAME_BYTES_MAX a frame.
 * Life     reader_init -> feed / next ... -> reader_release.
 *
 * A frame is a u32 little-endian length and that many bytes of JSON: {"type": ..., ...}. Version 1.
 *
 * server -> worker
 *   job_start   {job_id, spec{..}, training_path, validation_path|null, folder, model_path, keep_checkpoints, created_at,
 *                init_path|null}                            (the adapter that spec.init_from names)
 *               an eval's run: {job_id, kind: "eval", data_source_config, testing_criteria, data_source, file_path|null,
 *               models[{id, base_id, base_path, adapter_path|null}], done[[first, last]..]}  (items that are stored)
 *   job_items_stored {job_id, sequence}                       (the batch is durable)
 *               Fine-tuning jobs that can share a pass with those that run (train/job_group.h) may follow while they do.
 *   job_stop    {job_id, how: "pause"|"cancel"|"requeue"}     (pause, requeue: checkpoint first)
 *   job_checkpoint_stored {job_id, step}                      (all steps so far and this checkpoint are durable)
 *   generate    {id, model_id, model_path, adapter_path|null, task|null, kind: "chat"|"text",
 *                messages[], tools[]|null             (chat)
 *                prompt: string | [ids]               (text; exactly one sequence)
 *                choice, sampling{temperature, top_p, top_k, min_p, frequency_penalty, presence_penalty,
 *                repetition_penalty, seed (string of decimal digits), max_tokens|null, stop[], ignore_eos,
 *                logit_bias{"id": v}, choices[] (the answer is one of them), logprobs: -1..20, echo}}
 *   score       {id, model_id, model_path, adapter_path|null, messages[] or prompt: string | [ids]}  (generate_cancel ends it)
 *   generate_cancel {id}
 *   render      {id, model_path, row_text, line}              (preview of one training row)
 *   tokenize    {id, model_path, text, add_special_tokens} ; detokenize {id, model_path, tokens[]}
 *   encode      {id, model_id, model_path, adapter_path|null, kind: "embed"|"classify", inputs[{text, text_pair|null} or [ids]], first
 *               (the place of inputs[0] in its request; -1: it is the only one), dimensions|null, base64}
 *   describe    {id, model_path}                              (gd_model_describe)
 *   plan        {id, spec{..}, model_path, training_path, validation_path|null, init_path|null}  (what a job would need)
 *   release_adapter {adapter_path}                            (deleted: forget it when unused)
 *   shutdown    {}                                            (running job: checkpoint, report "requeue", exit 0)
 *
 * worker -> server
 *   ready       {version: 1, pid, device, isa, compute, threads, build}
 *   device_failed {message}  (its device cannot be opened, or not be used any more: the process ends, and its jobs go to others)
 *   heartbeat   {busy: "idle"|"train"|"evaluate"|"generate", job_id|null, rss_bytes, device_bytes, device_limit_bytes (of a GPU), step_watermark, infer{running, waiting,
 *                prompt_tokens, completion_tokens, pages_used, pages_total, cached_tokens}}   (every second, own thread)
 *   job_started {job_id, total_steps, rows, tokens, hyperparameters{..}, precision, memory{..},
 *                resumed_from: step|0}
 *   job_step    {job_id, step, total_steps, trained_tokens, tokens, seconds, metrics{name: value}}  (tokens: of the run so
 *                far, seconds: of this step; non-finite values: null)
 *   job_items   {job_id, sequence, items[{index, status, body{..}, usage[{model, invocations, prompt_tokens,
 *                completion_tokens, cached_tokens}]}]}         (an eval's; sequence 1, 2, ... in this attempt)
 *   job_message {job_id, level, message}
 *   job_checkpoint {job_id, step, folder, metrics{}}          (folder is durable; the worker
 *                waits for job_checkpoint_stored before it completes the checkpoint)
 *   job_done    {job_id, adapter_folder, trained_tokens, memory{..}}  (with the measured peak)
 *   job_stopped {job_id, how}                                 (after job_stop or shutdown; pause/requeue: checkpoint is there;
 *                how "alone": it cannot train beside the jobs that run, and did nothing)
 *   job_failed  {job_id, error{code, message, param}}
 *   token       {id, token, text, piece (bytes as [ints] only when not valid UTF-8, else string), logprob|null, top[[id, piece, logprob]..], prompt: bool}
 *   generated   {id, finish: "stop"|"length"|"cancelled", tail, usage{prompt_tokens, cached_tokens, completion_tokens}}
 *   scored      {id, score, usage{prompt_tokens, cached_tokens}}
 *   result      {id, ...}                                     (render, tokenize, detokenize, describe, plan)
 *               encode: {tokens[], vectors[[numbers] or base64 of f32]} or {tokens[], labels[], multi, scores[[numbers]]}
 *   failed      {id, error{code, message, param}}             (generate, render, ...: the only and last answer)
 */
#ifndef GD_WORKER_PROTOCOL_H
#define GD_WORKER_PROTOCOL_H

#include "engine/base/buf.h"
#include "engine/base/json.h"

#define GD_WORKER_EXIT_DEVICE 4 /* after device_failed */
#define GD_PROTOCOL_VERSION 1
#define GD_WORKER_JOBS_MAX 8 /* that a worker is given at a time */
#define GD_FRAME_BYTES_MAX (64u << 20)

struct gd_frame_reader {
    struct gd_buf buf;
    size_t consumed;
};
void gd_frame_reader_init(struct gd_frame_reader *reader);
void gd_frame_reader_feed(struct gd_frame_reader *reader, const void *bytes, size_t length);
/* true: *out is a message (yours, cJSON_Delete) or NULL when no whole frame is there yet. */
GD_MUST_CHECK bool gd_frame_next(struct gd_frame_reader *reader, cJSON **out, struct gd_error *err);
void gd_frame_reader_release(struct gd_frame_reader *reader);

/* Length prefix and compact JSON, appended to `out`. Consumes nothing. */
void gd_frame_write(struct gd_buf *out, const cJSON *message);

/* Members of frames, `otherwise` where they are not of the type. */
int64_t gd_frame_int(const cJSON *frame, const char *name, int64_t otherwise);
double gd_frame_number(const cJSON *frame, const char *name, double otherwise);
const char *gd_frame_text(const cJSON *frame, const char *name, const char *otherwise);

/* {code, message, param} both ways; the code travels as its wire name. */
cJSON *gd_error_to_json(const struct gd_error *err);
void gd_error_from_json(const cJSON *json, struct gd_error *err);

#endif
