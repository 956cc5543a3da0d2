/*
 * matching.h - weights of undesirable rows by how likely their prompts are among desirable ones (objective/density.h).
 *
 * Why      Where people judged other prompts good than bad, BCO would learn the prompts instead of the answers.
 * Memory   Written into the datasets' rows.
 * Threads  engine thread
 * Errors   GD_BAD_FILE where one kind of row is missing, GD_NO_MEMORY, GD_CANCELLED from the hook.
 * Limits   none
 * Life     once, before the first step. Each attempt of a job comes to the same weights.
 *
 * A prompt is the mean of its last hidden states under the bare base.
 */
#ifndef GD_TRAIN_MATCHING_H
#define GD_TRAIN_MATCHING_H

#include "engine/data/dataset.h"
#include "engine/model/model.h"
#include "engine/objective/preference.h"
#include "engine/tensor/plan.h"

struct gd_matching_options {
    const struct gd_preference *preference;
    enum gd_dtype act;
    int tokens_per_batch;
    uint64_t seed;               /* of the sample */
};
struct gd_matching_result {
    double told_apart;           /* share of the sample that the prompt alone puts on its side */
    double least, most;          /* weights of the training rows */
};
/* valid: or NULL. batch: what it holds is lost. */
GD_MUST_CHECK bool gd_match_prompts(const struct gd_model *model, struct gd_dataset *train, struct gd_dataset *valid, struct gd_batch *batch,
                                    const struct gd_matching_options *options, const struct gd_run_options *run,
                                    struct gd_matching_result *result, struct gd_error *err);

#endif
