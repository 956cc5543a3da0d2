/*
 * best.h - the evaluation that was best so far, and when to stop for want of a better one.
 *
 * Why      Held-out loss turns before training ends; what was best is kept, and time is not spent behind it.
 * Memory   gd_evaluation owns its eval requests.
 * Threads  engine thread
 * Errors   GD_INVALID, GD_UNKNOWN_FIELD with param "evaluation.FIELD"
 * Limits   GD_ATTACHED_EVALS_MAX
 * Life     gd_evaluation_parse -> gd_best_consider at each evaluation -> gd_evaluation_release.
 *
 * The names are those of transformers' TrainingArguments and EarlyStoppingCallback.
 */
#ifndef GD_TRAIN_BEST_H
#define GD_TRAIN_BEST_H

#include "engine/base/json.h"
#include <stdint.h>

#define GD_ATTACHED_EVALS_MAX 8
#define GD_METRIC_NAME_BYTES 96

struct gd_metric {
    const char *name;            /* "train_loss", "train_mean_token_accuracy", "valid_loss", "learning_rate", "grad_norm", ... */
    double value;
};

struct gd_evaluation {
    char metric_for_best_model[GD_METRIC_NAME_BYTES]; /* "valid_loss", or "eval/NAME" of an attached eval */
    bool greater_is_better;      /* unless given: false for names that end in "loss", else true */
    bool load_best_model_at_end; /* the result is the best evaluation's adapter, not the last step's */
    int early_stopping_patience; /* evaluations without improvement; 0 = never stop */
    double early_stopping_threshold; /* what counts as improvement: more than this */
    cJSON *evals;                /* array, or NULL: evals that run at each checkpoint (attached.h of engine/worker reads them) */
};

/* body.evaluation, which may be absent. has_validation: the job has a validation file. */
GD_MUST_CHECK bool gd_evaluation_parse(struct gd_evaluation *evaluation, const cJSON *body, bool has_validation, struct gd_error *err);
void gd_evaluation_release(struct gd_evaluation *evaluation);
/* As it was asked for; NULL when it was not. */
cJSON *gd_evaluation_json(const struct gd_evaluation *evaluation);

struct gd_best {
    int64_t step;                /* 0: no evaluation yet */
    double value;
    int since;                   /* evaluations after it */
};
/* `metrics` of an evaluation at `step`; those without the metric leave everything as it is. Returns whether it is the best. A
 * value that is not a number is never the best. */
bool gd_best_consider(struct gd_best *best, const struct gd_evaluation *evaluation, int64_t step, const struct gd_metric *metrics,
                      int metric_count);
bool gd_best_stops(const struct gd_best *best, const struct gd_evaluation *evaluation);

#endif
