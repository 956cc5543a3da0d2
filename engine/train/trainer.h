/*
 * trainer.h - owns the step loop of one job: batches, leaves, clipping, optimiser, evaluation, checkpoints.
 *
 * Why      One trainer for every method and loss; it knows neither.
 * Memory   The trainer owns dataset, plans, arenas, parameters, moments; borrows the model.
 * Threads  engine thread
 * Errors   GD_INVALID / GD_BAD_FILE from data, GD_INTERNAL "loss is not finite at step N (rows ...)",
 *          GD_DISK_FULL / GD_IO from checkpoints, GD_CANCELLED when the observer stopped it.
 * Limits   none of its own
 * Life     gd_trainer_create -> gd_trainer_run -> gd_trainer_destroy. After GD_CANCELLED from a pause the folder
 *          holds a checkpoint and create continues from it.
 */
#ifndef GD_TRAIN_TRAINER_H
#define GD_TRAIN_TRAINER_H

#include "engine/train/memory.h"

enum gd_train_command { GD_TRAIN_GO, GD_TRAIN_PAUSE, GD_TRAIN_CANCEL };

/* A row and what the graph that was trained says of it. */
struct gd_probe {
    const int32_t *ids;
    const float *logprob;        /* of ids[i] after those before it; of the first one: not set */
    int count;
    enum gd_dtype act;           /* that it was computed in */
    const int32_t *encoder_ids;  /* of a model with an encoder: what it read; ids are the decoder's, the start token first */
    int encoder_count;           /* else 0 */
    const char *task;            /* that it was computed for, with a method by task; else NULL */
};

/* What a trainer tells and asks. All calls come from gd_trainer_run, on its thread. */
struct gd_train_observer {
    void *context;
    /* Between ops and between steps: may serve requests; returns what to do. PAUSE takes effect at the next step
     * boundary (checkpoint, then GD_CANCELLED), CANCEL at once. */
    enum gd_train_command (*poll)(void *context);
    /* info | warn | error, for people. */
    void (*message)(void *context, const char *level, const char *text);
    /* Once, when data is ready: total_steps, and the resolved spec. */
    void (*started)(void *context, int64_t total_steps, int64_t rows, int64_t tokens, const struct gd_job_spec *spec);
    void (*step)(void *context, int64_t step, int64_t total_steps, int64_t trained_tokens, int64_t tokens, double seconds,
                 const struct gd_metric *metrics, int metric_count);
    /* Runs the job's attached evals with the adapter at `folder` and appends their scores ("eval/NAME") to `metrics`; names
     * are good until the next call. Called only when there are evals. */
    bool (*evaluate)(void *context, int64_t step, const char *folder, const cJSON *evals, struct gd_metric *metrics, int metric_max,
                     int *metric_count, struct gd_error *err);
    /* The adapter of this step stands at `folder` (durable); metrics as of this step, may be empty. Returns when every step so
     * far and this checkpoint are kept by whoever listens: a resumed run starts after it and does not tell them again. */
    bool (*checkpoint)(void *context, int64_t step, const char *folder, const struct gd_metric *metrics,
                       int metric_count, struct gd_error *err);
    /* So many bytes are about to be taken: caches give way where they can. May be NULL. */
    void (*make_room)(void *context, size_t bytes);
    /* The last step's adapter stands at `folder`: whoever serves it must get what the probe says, or the job fails. */
    bool (*read_back)(void *context, const char *folder, const struct gd_probe *probe, struct gd_error *err);
};

struct gd_trainer_options {
    const char *job_id;
    const char *folder;          /* the job's own folder: checkpoints/step-N/, adapter/ */
    const char *training_path, *validation_path;
    const char *init_path;       /* spec->init_from's folder; not needed once the job's own folder has a copy (start.h) */
    int keep_checkpoints;        /* newest kept; at least 2 */
    int64_t created_at;          /* Unix seconds: the date that templates see, the same in every attempt */
    struct gd_memory_room room;  /* zero: the machine's, and nothing is served */
};

/* How the job's files are read; tasks: of a method by task. */
void gd_job_dataset_options(struct gd_dataset_options *options, const struct gd_job_spec *spec, const struct gd_model *model,
                            int virtual_rows, const struct gd_tasks *tasks);

struct gd_trainer;

/* Loads data, resolves the spec (in place), builds plans; continues from the newest good checkpoint in the folder if
 * there is one (a damaged one is reported and the one before it taken). */
GD_MUST_CHECK bool gd_trainer_create(struct gd_trainer **out, const struct gd_model *model, struct gd_job_spec *spec,
                                     const struct gd_trainer_options *options,
                                     const struct gd_train_observer *observer, struct gd_error *err);
/* The same in pieces, for whoever runs several (job_group.h): begin tells the observer; advance brings the job to its next
 * micro-batch, which waits for its pass, or to its end (*over). False: it failed or was stopped. run_pass: the waiting
 * micro-batch's pass, alone. */
void gd_trainer_begin(struct gd_trainer *trainer);
GD_MUST_CHECK bool gd_trainer_advance(struct gd_trainer *trainer, bool *over, struct gd_error *err);
GD_MUST_CHECK bool gd_trainer_run_pass(struct gd_trainer *trainer, struct gd_error *err);
/* To the end, or until the evaluation stops getting better: the final adapter (the last step's, or the best one's) stands in
 * folder/adapter (PEFT format, committed). */
GD_MUST_CHECK bool gd_trainer_run(struct gd_trainer *trainer, struct gd_error *err);
void gd_trainer_destroy(struct gd_trainer *trainer);

/* The step of the checkpoint that create continued from; 0 = from the start. */
int64_t gd_trainer_resumed_from(const struct gd_trainer *trainer);
int64_t gd_trainer_trained_tokens(const struct gd_trainer *trainer);
/* The plan's account (gd_job_memory_json), known before the first step; after the last one with the peak of the process. */
cJSON *gd_trainer_memory(const struct gd_trainer *trainer);

#endif
