/*
 * passes.h - one packed micro-batch forward (and backward): a graph and a plan for each bucket of tokens.
 *
 * Why      The trainer thinks in micro-batches; graphs, plans and the arena that they share are kept here. A loss over
 *          pairs that has a reference runs that over the same micro-batch first, unless the batch brings what it would say.
 * Memory   Owns graphs, plans, arena. Borrows model, graft, and the flat blocks.
 * Threads  engine thread
 * Errors   GD_NO_MEMORY with the sizes, GD_CANCELLED from the hook, errors of ops.
 * Limits   GD_BATCH_SEGMENTS_MAX segments in a micro-batch
 * Life     init -> run ... -> release.
 */
#ifndef GD_TRAIN_PASSES_H
#define GD_TRAIN_PASSES_H

#include "engine/adapter/adapter.h"
#include "engine/data/dataset.h"
#include "engine/objective/labels.h"
#include "engine/objective/objective.h"
#include "engine/objective/preference.h"
#include "engine/tensor/device.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/plan.h"
#include "engine/train/survey.h"

#define GD_PASS_BUCKETS_MAX 64

struct gd_pass;

struct gd_passes {
    const struct gd_model *model;
    const struct gd_graft *graft;
    const struct gd_objective *objective;
    const struct gd_preference *preference; /* with an objective over pairs; else NULL */
    const struct gd_survey *survey;         /* of the step that the next runs belong to; the trainer sets it */
    enum gd_reference reference;            /* of the losses that have one; set after init */
    float *start_block;         /* the parameters that the job started from; with GD_REFERENCE_START, and to compute others once */
    struct gd_preference_batch pairs;       /* of the newest run */
    struct gd_label_batch classes;          /* of the newest run of a classifier */
    struct gd_label_counts *label_counts;   /* [labels] to which its runs add what is so and what is said; or NULL */
    int32_t place[GD_BATCH_SEGMENTS_MAX];   /* of each segment the row that is classified; -1: there is no such segment */
    const int32_t *row_labels[GD_BATCH_SEGMENTS_MAX];
    int32_t row_label_count[GD_BATCH_SEGMENTS_MAX];
    float *recorded;                        /* where a run without a loss puts the sums */
    float *nll;                             /* [nll_capacity]: tokens whose NLL is learnt */
    int nll_capacity;
    struct gd_segment_loss segment_loss;
    struct gd_batch bare;       /* what a reference sees of a batch with virtual rows */
    int bare_capacity;
    float share;                /* of the step's loss weight that the newest run holds: as much of the graft's penalty it adds */
    double router_loss;         /* of a model with experts: coefficient of the load-balancing loss in training passes; set after init */
    enum gd_dtype act;
    bool recompute;             /* training passes make each layer again in the backward pass; before the first of them */
    bool narrow;                /* or what is wide in each (again.h) */
    float *block;               /* parameters */
    float *grad;                /* gradient of one micro-batch, same layout */
    /* Before the arena is made: others give way where they can. May be NULL. */
    void (*make_room)(void *context, size_t bytes);
    void *room_context;
    struct gd_device_block arena;
    struct gd_pass *pass[GD_PASS_BUCKETS_MAX];
    int pass_count;
};

struct gd_pass_result {
    double loss;                /* sum of weighted -log p, or of the pairs' losses, times scale */
    bool penalised;             /* there is such a term */
    double penalty;             /* the graft's own term of the loss, by its share; training passes only */
    double balance;             /* with experts: the load-balancing loss by its share, without its coefficient; training passes only */
    const float *expert_rows;   /* [experts] how many rows each got in all layers; good until the next run; NULL: none */
    int64_t labelled, correct;  /* tokens with a label; of these, argmax == label. Of a classifier: rows; those all of whose labels are right */
    struct gd_preference_sums pairs; /* zero without pairs */
};

void gd_passes_init(struct gd_passes *passes, const struct gd_model *model, const struct gd_graft *graft,
                    const struct gd_objective *objective, const struct gd_preference *preference, enum gd_dtype act,
                    float *block, float *grad);
void gd_passes_release(struct gd_passes *passes);
/* Builds the pass for `tokens` now and returns its arena need; the arena itself comes with the first run. */
GD_MUST_CHECK bool gd_passes_prepare(struct gd_passes *passes, int tokens, bool training, size_t *arena_bytes,
                                     struct gd_error *err);
/* What gd_passes_prepare would need, without making anything. */
struct gd_pass_need {
    size_t arena;               /* of it: */
    size_t head;                /* the vocabulary product and the loss, where the arena is fullest */
    struct gd_layout_cost weights; /* layouts that are not there yet */
    size_t tables;              /* of graphs and plans */
};
GD_MUST_CHECK bool gd_passes_estimate(struct gd_passes *passes, int tokens, bool training, struct gd_pass_need *need,
                                      struct gd_error *err);
/* Gives the arena back until the next run: something else needs memory now. */
void gd_passes_rest(struct gd_passes *passes);
/* log p of each segment under the reference. */
GD_MUST_CHECK bool gd_passes_reference(struct gd_passes *passes, struct gd_batch *batch, const struct gd_run_options *options,
                                       float *logps, struct gd_error *err);
/* scale: 1 / the step's divisor; without pairs the batch's weights are multiplied by it. dropout_key: i32 [4], used by
 * training passes. Gradients are written to passes->grad (training only). */
GD_MUST_CHECK bool gd_passes_run(struct gd_passes *passes, bool training, struct gd_batch *batch, double scale,
                                 int32_t *dropout_key, const struct gd_run_options *options, struct gd_pass_result *result,
                                 struct gd_error *err);
/* log p of each segment of a batch under the model and, where there is one, under the reference (else 0); no gradient, no
 * dropout. */
GD_MUST_CHECK bool gd_passes_logprobs(struct gd_passes *passes, struct gd_batch *batch, const struct gd_run_options *options,
                                      float *own, float *reference, struct gd_error *err);

/* log p of the batch's labels by what is trained, f32 [capacity]; good until the next run. NULL on error. */
const float *gd_passes_probe(struct gd_passes *passes, struct gd_batch *batch, const struct gd_run_options *options,
                             struct gd_error *err) GD_MUST_CHECK;

#endif
