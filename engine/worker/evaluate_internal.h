/*
 * evaluate_internal.h - one run of an eval on a worker: its items, where each is, and what it asks of the engines.
 *
 * Why      The source thinks on a thread of its own, asks fly in engines, items go between them: three ideas over one state.
 * Memory   The evaluation owns its items and flights.
 * Threads  The worker's, but for the source (evaluate_think.c).
 * Errors   An ask's are its own.
 * Limits   evaluate.h
 * Life     gd_evaluate's
 */
#ifndef GD_WORKER_EVALUATE_INTERNAL_H
#define GD_WORKER_EVALUATE_INTERNAL_H

#include "engine/worker/evaluate.h"

#include <pthread.h>

/* An item on its way: either the source looks at it on the other thread (thinking), or it is this thread's. */
struct gd_eval_running {
    struct gd_eval_item item;
    bool begun, thinking;
    int sent;                        /* asks that were given to an engine, or had an error from the start */
    struct gd_eval_running *next;
    struct gd_eval_running *next_thought;    /* in a queue of the thinker */
};

struct gd_eval_queue {
    struct gd_eval_running *first, **last;
};

/*
 * Begins and judges items beside the engine: comparing long texts takes up to a second and Python as long as the operator
 * allows, while requests want their tokens. One thread, so that a source sees one call at a time.
 */
struct gd_eval_thinker {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t come, gone;       /* something is to be thought about; something was */
    struct gd_eval_source *source;
    struct gd_eval_queue waiting, thought;
    bool ended;
};

/* One ask in an engine. */
struct gd_eval_flight {
    struct gd_evaluation *evaluation;
    struct gd_eval_running *running;
    int ask;
    struct gd_infer *infer;
    uint64_t sequence;
    struct gd_buf text;
    struct gd_eval_flight *next;
};

struct gd_evaluation {
    struct gd_eval_source *source;
    const struct gd_evaluate_options *options;
    const struct gd_evaluate_observer *observer;
    struct gd_eval_running *first, **last;
    struct gd_eval_flight *flights;
    int flight_count, thinking_count;
    struct gd_eval_thinker thinker;
    int64_t next;                    /* item to begin */
    const struct gd_model *held[GD_RESIDENT_MODELS_MAX];
    int held_count;
};

/* ---- evaluate_think.c ---- */
GD_MUST_CHECK bool gd_eval_thinker_start(struct gd_eval_thinker *thinker, struct gd_eval_source *source, struct gd_error *err);
void gd_eval_thinker_stop(struct gd_eval_thinker *thinker); /* it ends what it is at */
void gd_eval_give_to_source(struct gd_evaluation *evaluation, struct gd_eval_running *running);
/* `idle`: nothing else is to be done, so it waits a little. */
void gd_eval_take_thoughts(struct gd_evaluation *evaluation, bool idle);

/* ---- evaluate_ask.c ---- */
/* False: the engine takes no more for now. */
bool gd_eval_send_asks(struct gd_evaluation *evaluation, struct gd_eval_running *running);

#endif
