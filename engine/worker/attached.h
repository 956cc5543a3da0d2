/*
 * attached.h - the evals of a fine-tuning job, run with the adapter of a checkpoint.
 *
 * Why      Loss on held-out rows is not what people want of a model; what they want can be measured while it trains.
 * Memory   Names of metrics belong to struct gd_attached and are good until its next run.
 * Threads  engine thread
 * Errors   GD_INVALID with param "evaluation.evals[i]..."; files; GD_CANCELLED when poll says stop. What concerns one item is
 *          counted in eval/NAME_errors.
 * Limits   GD_ATTACHED_EVALS_MAX evals
 * Life     one call for each checkpoint
 *
 * The evals are as engine/eval/attached.h has them; the server adds file_path, second_file_path and models [{id, base_id, base_path,
 * adapter_path}]. Without file_path, file ids are paths; without models, judges are models in `models_dir`.
 */
#ifndef GD_WORKER_ATTACHED_H
#define GD_WORKER_ATTACHED_H

#include "engine/eval/attached.h"
#include "engine/train/best.h"
#include "engine/worker/evaluate.h"

struct gd_attached {
    struct gd_residents *residents;
    const struct gd_model *base;
    const char *models_dir;      /* or NULL */
    enum gd_evaluate_command (*poll)(void *context, bool idle);
    void *context;
    char names[3 * GD_ATTACHED_EVALS_MAX][GD_METRIC_NAME_BYTES];
};

/* Appends, for each eval, eval/NAME: the mean of the criteria's mean scores over its items; eval/NAME_passed: the share of items that
 * passed; eval/NAME_errors: items with an error, which count in neither. */
GD_MUST_CHECK bool gd_attached_run(struct gd_attached *attached, const char *adapter_folder, const cJSON *evals,
                                   struct gd_metric *metrics, int metric_max, int *metric_count, struct gd_error *err);

#endif
