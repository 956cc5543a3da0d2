/*
 * evaluate.h - runs the items of a source through models: many at a time, stopped and continued, on a worker or in the
 * foreground.
 *
 * Why      A source knows what an item asks and what answers mean; this knows the models and keeps their batches full.
 * Memory   Borrows everything for the call. What the observer gets of an item is its to keep.
 * Threads  engine thread; the source is called from a thread of its own, one call at a time, from begin to the end.
 * Errors   GD_CANCELLED when poll says stop; what concerns one item becomes the item's result.
 * Limits   GD_EVALUATE_ASKS_MAX asks at a time
 * Life     one call of gd_evaluate
 *
 * Items begin in order and finish in any. A random number is named by seed, item and ask, so that an answer does not
 * depend on what runs beside it.
 */
#ifndef GD_WORKER_EVALUATE_H
#define GD_WORKER_EVALUATE_H

#include "engine/eval/source.h"
#include "engine/worker/resident.h"

#define GD_EVALUATE_ASKS_MAX 64

/* What a model id means here. */
struct gd_evaluate_model {
    const char *id, *base_id, *base_path;
    const char *adapter_path; /* NULL: the base itself */
    enum gd_quantization quantization; /* of the base */
};

/* Appends a list of {id, base_id, base_path, adapter_path or null} to models[*count], which borrow from it; at most
 * GD_EVAL_MODELS_MAX in all. */
GD_MUST_CHECK bool gd_evaluate_models(const cJSON *list, struct gd_evaluate_model *models, int *count, struct gd_error *err);

/* One finished item. */
struct gd_evaluated {
    int64_t index;
    const char *status;  /* "pass", "fail", "error" */
    cJSON *body;         /* taken by the observer: {datasource_item, results, sample, error} */
    cJSON *usage;        /* taken: [{model, invocations, prompt_tokens, completion_tokens, cached_tokens}] */
};

enum gd_evaluate_command { GD_EVALUATE_GO, GD_EVALUATE_WAIT, GD_EVALUATE_STOP };

struct gd_evaluate_observer {
    void *context;
    /* Before each turn of the engines; `idle`: there is nothing to turn, it may wait. WAIT: begin no further items now. */
    enum gd_evaluate_command (*poll)(void *context, bool idle);
    void (*item)(void *context, const struct gd_evaluated *item);
};

struct gd_evaluate_options {
    struct gd_residents *residents;
    const struct gd_evaluate_model *models;
    int model_count;
    const unsigned char *done; /* a bit for each item: finished in an earlier run (NULL: none) */
};

/* `source` is open. */
GD_MUST_CHECK bool gd_evaluate(struct gd_eval_source *source, const struct gd_evaluate_options *options,
                               const struct gd_evaluate_observer *observer, struct gd_error *err);

#endif
