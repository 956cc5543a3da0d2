/*
 * trainer_internal.h - the state of a trainer, shared by the files that make its steps.
 *
 * Why      Set-up, a step, and what is left behind are three ideas over one state.
 * Memory   The trainer owns everything in it but the model and the options' paths.
 * Threads  engine thread
 * Errors   as trainer.h
 * Limits   none
 * Life     trainer.h
 */
#ifndef GD_TRAIN_TRAINER_INTERNAL_H
#define GD_TRAIN_TRAINER_INTERNAL_H

#include "engine/train/checkpoint.h"
#include "engine/train/leaves.h"
#include "engine/train/memory.h"
#include "engine/train/passes.h"
#include "engine/train/reference.h"
#include "engine/train/start.h"
#include "engine/train/trainer.h"

/* Of an optimiser step, or of the validation file. */
struct gd_step_result {
    double loss, penalty, grad_norm, learning_rate;
    double balance;             /* of a model with experts: the load-balancing loss */
    bool penalised;
    double kl, shift;           /* of losses that need them */
    int64_t labelled, correct, tokens;
    double macro_f1;            /* of a classifier, over the validation file */
    struct gd_preference_sums pairs;
};

/* An optimiser step on its way: some of its micro-batches have had their pass. */
struct gd_step_run {
    bool open;
    int64_t step;
    const int64_t *rows;
    int row_count, micro_count;
    int micro, leaf, part;       /* the micro-batch at hand, its leaf, and its place in that */
    double total_weight;         /* what the loss is divided by */
    double started;
    int32_t key[4];              /* of the micro-batch's random numbers */
    struct gd_step_result result;
};

struct gd_trainer {
    const struct gd_model *model;
    struct gd_job_spec *spec;
    char *job_id, *folder;
    const char *training_path, *validation_path; /* the caller's, while it sets up */
    int keep_checkpoints;
    struct gd_train_observer observer;
    void (*make_room)(void *context); /* of whoever else holds activations, before this job needs memory for something; or NULL */
    void *room_context;
    enum gd_train_command command;

    struct gd_chat *chat;            /* the model's template with the job's own clock */
    struct gd_dataset *train, *valid;
    struct gd_tasks tasks;           /* of the training file, for a method by task */
    struct gd_tasks labels;          /* of a classifier's rows */
    double *class_weights;           /* [labels.count] or NULL */
    struct gd_graft *graft, *start;  /* start: what the job goes on from, or NULL */
    float *start_block;              /* parameters before the first step, where the reference needs them */
    struct gd_passes passes;
    struct gd_survey survey;         /* of the step at hand */
    struct gd_leaves leaves;
    struct gd_batch batch;
    struct gd_checkpoint state;      /* step, counters, and the flat blocks */
    float *grad;
    size_t block_bytes, activation_bytes;
    struct gd_memory_room room;
    struct gd_job_memory memory;     /* as planned */
    int largest, longest_valid, surveyed; /* rows of the largest micro-batch, of the longest row of each kind */

    int64_t total_steps, steps_per_epoch, resumed_from;
    int64_t checkpointed_step;
    bool sensed;                     /* the graft was chosen by gradients of rows */
    int epoch;                       /* whose order is in `order`; -1 = none */
    int64_t *order;
    int64_t *packed_rows;            /* the step's rows, by leaf */
    int *micro_begin, *leaf_of;
    struct gd_step_run run;
    double *expert_rows;             /* [experts] of the newest step, in all layers; NULL: the model has none */
};

/* ---- the observer (trainer.c) ---- */
void gd_trainer_say(struct gd_trainer *trainer, const char *level, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* gd_run_options.between, and the data's progress: whether to go on. */
bool gd_trainer_between_ops(void *context);
bool gd_trainer_dataset_progress(void *context, int64_t rows_done, int64_t rows_total);

/* Activations make room for copies of results, and for evals. */
void gd_trainer_rest(struct gd_trainer *trainer);

/* ---- rows (trainer_data.c) ---- */
/* Whether rows are answers that are compared or labelled. */
bool gd_trainer_has_answers(const struct gd_trainer *trainer);
GD_MUST_CHECK bool gd_trainer_open_data(struct gd_trainer *trainer, struct gd_dataset **out, const char *path, const char *param,
                                        struct gd_error *err);
void gd_trainer_fingerprint(const struct gd_dataset *data, char out[33]);

/* ---- set-up (trainer_setup.c) ---- */
/* Files, and what a step of batch_size rows is packed in; the second can be released and made anew. */
GD_MUST_CHECK bool gd_trainer_make_data(struct gd_trainer *trainer, struct gd_error *err);
GD_MUST_CHECK bool gd_trainer_make_steps(struct gd_trainer *trainer, int batch_size, struct gd_error *err);
void gd_trainer_release_steps(struct gd_trainer *trainer);
/* Parameters, moments, gradients; the base's weights as they are prepared. */
size_t gd_trainer_held_bytes(const struct gd_trainer *trainer);
size_t gd_trainer_weight_bytes(const struct gd_trainer *trainer);
void gd_trainer_report_quantisation(struct gd_trainer *trainer);

/* ---- labels (trainer_labels.c) ---- */
/* What a classifier tells apart, as the job names it or its rows do; before the graft is made. */
GD_MUST_CHECK bool gd_trainer_read_labels(struct gd_trainer *trainer, struct gd_error *err);
/* Once the rows are read: how many have which label, and what they count. */
GD_MUST_CHECK bool gd_trainer_weigh_labels(struct gd_trainer *trainer, struct gd_error *err);

/* ---- the graft (trainer_graft.c) ---- */
GD_MUST_CHECK bool gd_trainer_make_graft(struct gd_trainer *trainer, const char *init_path, struct gd_error *err);

/* ---- models with experts (trainer_experts.c) ---- */
GD_MUST_CHECK bool gd_trainer_choose_experts(struct gd_trainer *trainer, struct gd_error *err);
void gd_trainer_begin_experts(struct gd_trainer *trainer);
void gd_trainer_add_experts(struct gd_trainer *trainer, const struct gd_pass_result *pass, struct gd_step_result *result);
int gd_trainer_expert_metrics(const struct gd_trainer *trainer, const struct gd_step_result *result, struct gd_metric *metrics);

/* ---- steps (trainer_step.c) ---- */
const int64_t *gd_trainer_step_rows(struct gd_trainer *trainer, int64_t step, int *count);
GD_MUST_CHECK bool gd_trainer_run_rows(struct gd_trainer *trainer, int64_t step, const int64_t *rows, int row_count,
                                       struct gd_error *err);
/* The next step: packed, at its first micro-batch; then for each micro-batch fill (trainer->batch, run.key), a pass of whoever
 * makes it, take (what the pass says, and trainer->grad); then close: clipping and the optimiser. */
GD_MUST_CHECK bool gd_trainer_open_step(struct gd_trainer *trainer, struct gd_error *err);
void gd_trainer_fill(struct gd_trainer *trainer);
GD_MUST_CHECK bool gd_trainer_take(struct gd_trainer *trainer, const struct gd_pass_result *pass, struct gd_error *err);
GD_MUST_CHECK bool gd_trainer_close_step(struct gd_trainer *trainer, struct gd_error *err);
GD_MUST_CHECK bool gd_trainer_evaluate(struct gd_trainer *trainer, struct gd_step_result *result, struct gd_error *err);

/* ---- what is left behind (trainer_result.c) ---- */
/* Members of graftd.json and trainer.json. */
cJSON *gd_trainer_facts(const struct gd_trainer *trainer);
/* The adapter of this step, whole and durable (*folder: gd_free it); then, once it is known outside, what a resume needs. */
GD_MUST_CHECK bool gd_trainer_begin_checkpoint(struct gd_trainer *trainer, char **folder, struct gd_error *err);
GD_MUST_CHECK bool gd_trainer_end_checkpoint(struct gd_trainer *trainer, const char *folder, const struct gd_metric *metrics, int metric_count,
                                             struct gd_error *err);
/* Both, unless this step has one. */
GD_MUST_CHECK bool gd_trainer_write_checkpoint(struct gd_trainer *trainer, struct gd_error *err);
GD_MUST_CHECK bool gd_trainer_write_result(struct gd_trainer *trainer, struct gd_error *err);

#endif
