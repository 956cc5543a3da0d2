/*
 * worker.h - the state of a worker process, shared by the files that answer its messages.
 *
 * Why      One thread runs the engine: between two ops of a training step it answers requests and decodes.
 * Memory   Owns everything in it.
 * Threads  engine thread; the heartbeat thread reads the atomics only.
 * Errors   Answered as "failed" or "job_failed" frames.
 * Limits   GD_WORKER_JOBS_MAX jobs at a time, those of one base that train side by side (job_group.h); else one
 * Life     one per process
 */
#ifndef GD_WORKER_WORKER_H
#define GD_WORKER_WORKER_H

#include "engine/tensor/graph.h"
#include "engine/train/trainer.h"
#include "engine/worker/channel.h"
#include "engine/worker/protocol.h"
#include "engine/worker/resident.h"
#include <stdatomic.h>

_Static_assert(GD_WORKER_JOBS_MAX == GD_SPLIT_MAX, "a worker runs as many jobs as a pass has room for");

/* Rising: a stronger one replaces a weaker one. */
enum gd_stop { GD_STOP_NONE, GD_STOP_PAUSE, GD_STOP_REQUEUE, GD_STOP_ALONE, GD_STOP_CANCEL };

struct gd_worker;
/* A running job. */
struct gd_worker_job {
    struct gd_worker *worker;
    char *id;
    const char *busy;               /* "train", "evaluate" */
    enum gd_stop stop;
    int64_t stored_step;            /* newest checkpoint (eval: batch of items) that the server has stored; -1 = none */
};

struct gd_worker {
    struct gd_channel channel;
    struct gd_residents residents;
    bool shutting_down;
    cJSON *pending_jobs;            /* job_starts that wait, oldest first */
    struct gd_worker_job *jobs[GD_WORKER_JOBS_MAX]; /* that run, oldest first */
    int job_count;
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
struct gd_resident;
GD_MUST_CHECK bool gd_worker_find_model(struct gd_worker *worker, const cJSON *message, struct gd_resident **resident, struct gd_error *err);
GD_MUST_CHECK bool gd_worker_read_ids(const cJSON *list, struct gd_tokens *tokens, struct gd_error *err);
/* encode.c: embeddings and classes of texts */
GD_MUST_CHECK bool gd_worker_encode(struct gd_worker *worker, const cJSON *message, cJSON *result, struct gd_error *err);

/* One training row as it is used: text, tokens, weights; NULL with the row's error. */
cJSON *gd_render_row(const struct gd_model *model, const char *text, size_t length, int64_t line, struct gd_error *err);

/* job.c: runs the oldest order, and what joins it, to the end (or stop) */
void gd_worker_run_job(struct gd_worker *worker);
/* The oldest order, if it is one for a fine-tuning job: the caller's. */
cJSON *gd_worker_next_tuning(struct gd_worker *worker);
struct gd_worker_job *gd_worker_find_job(const struct gd_worker *worker, const char *id); /* that runs, or NULL */
/* From its order to its last frame: done_taken, or job_stopped or job_failed as job->stop and err say. */
GD_MUST_CHECK bool gd_worker_job_begin(struct gd_worker_job *job, struct gd_worker *worker, const cJSON *message, const char *busy,
                                       struct gd_error *err);
void gd_worker_job_end(struct gd_worker_job *job, cJSON *done_taken, const struct gd_error *err);
/* Tells the server that the device cannot be used and ends this process: the server takes it out of the pool and gives its jobs
 * to others. */
_Noreturn void gd_worker_give_up(struct gd_channel *channel, const char *why);
cJSON *gd_worker_job_frame(const struct gd_worker_job *job, const char *type); /* {type, job_id} */

/* tuning.c: a fine-tuning job, and those that join it while it runs */
void gd_worker_tune(struct gd_worker *worker, const cJSON *message);
/* eval_job.c: to its end, or GD_CANCELLED when job->stop says so */
GD_MUST_CHECK bool gd_worker_evaluate(struct gd_worker_job *job, const cJSON *message, struct gd_error *err);

/* loop.c: answers one message; a job_start waits for the loop */
void gd_worker_message(struct gd_worker *worker, const cJSON *message);
/* Answers what has come, after waiting up to wait_ms for the first message, and shows that the engine thread is alive. */
void gd_worker_answer(struct gd_worker *worker, int wait_ms);
void gd_worker_publish_stats(struct gd_worker *worker);

#endif
