/*
 * checkpoint.h - what a job needs to continue bit for bit, kept so that a crash leaves old or new.
 *
 * Why      A running job loses at most one checkpoint interval.
 * Memory   The caller's blocks.
 * Threads  engine thread; blocking writes.
 * Errors   GD_DISK_FULL, GD_IO, GD_BAD_FILE.
 * Limits   none
 * Life     write (adapter, then state) after a step; read the newest before the first.
 *
 * FOLDER/checkpoints/step-N  the adapter as of step N, in PEFT format: a model by itself, kept for good.
 * FOLDER/state/step-N        optimizer.safetensors (exp_avg, exp_avg_sq; parameters, where the adapter
 *                            holds others), trainer.json. Its appearance completes the
 *                            checkpoint; the newest `keep` are kept.
 */
#ifndef GD_TRAIN_CHECKPOINT_H
#define GD_TRAIN_CHECKPOINT_H

#include "engine/adapter/adapter.h"
#include "engine/train/best.h"

struct gd_checkpoint {
    int64_t step;
    int64_t trained_tokens, tokens;
    double running_mean, running_count; /* of the rewards, for losses that shift by them; 0, 0 without */
    char data_fingerprint[33];      /* xxh3 of the tokenised training set */
    struct gd_best best;            /* the best evaluation so far */
    float *block, *exp_avg, *exp_avg_sq; /* [graft->parameter_count] */
};

/* A folder that appears whole: the adapter as PEFT reads it, `extra` merged into graftd.json. One that is there already with the
 * same weights is kept (a resumed run comes to the same bits); with others it is replaced. */
GD_MUST_CHECK bool gd_adapter_publish(const char *path, const struct gd_graft *graft, const float *block,
                                      const cJSON *extra, struct gd_error *err);

/* It loads, and training would continue from it with exactly these parameters. */
GD_MUST_CHECK bool gd_adapter_verify(const char *path, const struct gd_graft *graft, const float *block, struct gd_error *err);

/* A checkpoint is written in two parts, and the observer hears of it in between: once the second stands, everything before
 * this step is known outside and will not be told again. `facts`: members for graftd.json and trainer.json (job id, spec,
 * device). *adapter_folder gets the path, gd_free it. */
GD_MUST_CHECK bool gd_checkpoint_write_adapter(const char *folder, const struct gd_graft *graft,
                                               const struct gd_checkpoint *checkpoint, const cJSON *facts,
                                               char **adapter_folder, struct gd_error *err);
/* Completes it, and removes all but the newest `keep` states. */
GD_MUST_CHECK bool gd_checkpoint_write_state(const char *folder, const struct gd_graft *graft,
                                             const struct gd_checkpoint *checkpoint, const cJSON *facts, int keep,
                                             struct gd_error *err);

/* Newest checkpoint that verifies, read into `checkpoint` (blocks are the caller's memory). step 0 when there is none. Damaged ones
 * are passed to `damaged` (or NULL) with the reason and skipped. *facts gets trainer.json (cJSON_Delete it) or NULL. */
void gd_checkpoint_read_newest(const char *folder, const struct gd_graft *graft, struct gd_checkpoint *checkpoint,
                               cJSON **facts, void (*damaged)(void *context, int64_t step, const char *why), void *context);

#endif
