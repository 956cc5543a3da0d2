/*
 * worker.h - the state of a worker process, shared by the files that answer its messages.
 *
 * Why      One thread runs the engine: between two ops of a training step it answers requests and decodes.
 * Memory   Owns everything in it.
 * Threads  engine thread; the heartbeat thread reads the atomics only.
 * Errors   Answered as "failed" or "job_failed" frames.
 * Limits   one job at a time
 * Life     one per process
 */
#ifndef GD_WORKER_WORKER_H
#define GD_WORKER_WORKER_H

#include "engine/train/trainer.h"
#include "engine/worker/channel.h"
#include "engine/worker/resident.h"
#include <stdatomic.h>

enum gd_stop { GD_STOP_NONE, GD_STOP_PAUSE, GD_STOP_REQUEUE, GD_STOP_CANCEL };

struct gd_worker {
    struct gd_channel channel;
    struct gd_residents residents;
    bool shutting_down;
    cJSON *pending_job;             /* a job_start that waits for the loop */
    /* the running job */
    char *job_id;
    enum gd_stop stop;
    int64_t stored_step;            /* newest checkpoint (eval: batch of items) that the server has stored; -1 = none */
    double serve_seconds, train_seconds, last_clock; /* since serving and training last met */
    /* heartbeat */
    pthread_t heartbeat;
    pthread_mutex_t status_mutex;
    char status_job[128];
    const char *status_busy;        /* while there is a job: "train", "evaluate" */
    struct gd_infer_stats stats;
    atomic_llong watermark;
    atomic_bool ended;
};

/* requests.c: generate, generate_cancel, render, tokenize, detokenize, describe */
void gd_worker_request(struct gd_worker *worker, const char *type, const cJSON *message);
void gd_worker_fail(struct gd_worker *worker, const cJSON *id, const struct gd_error *err);

/* One training row as it is used: text, tokens, weights; NULL with the row's error. */
cJSON *gd_render_row(const struct gd_model *model, const char *text, size_t length, int64_t line, struct gd_error *err);

/* job.c: runs one job to its end (or stop) and reports */
void gd_worker_run_job(struct gd_worker *worker, const cJSON *message);
cJSON *gd_worker_job_frame(const struct gd_worker *worker, const char *type); /* {type, job_id} of the running job */

/* What a kind of job does: to its end, or GD_CANCELLED when worker->stop says so. `done`: the job_done frame to fill. */
/* eval_job.c */
GD_MUST_CHECK bool gd_worker_evaluate(struct gd_worker *worker, const cJSON *message, cJSON *done, struct gd_error *err);

/* loop.c: answers one message; a job_start waits for the loop */
void gd_worker_message(struct gd_worker *worker, const cJSON *message);
/* Answers what has come, after waiting up to wait_ms for the first message, and shows that the engine thread is alive. */
void gd_worker_answer(struct gd_worker *worker, int wait_ms);
void gd_worker_publish_stats(struct gd_worker *worker);

#endif
