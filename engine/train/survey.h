/*
 * survey.h - what losses must know of a whole optimiser step before its first gradient.
 *
 * Why      Some losses compare a row with the others of its step: KTO with the cost of mismatched answers, AOT with the
 *          pair of its rank, BCO with the mean reward so far. The step is the batch, however it is cut into micro-batches.
 * Memory   A plain structure.
 * Threads  engine thread
 * Errors   Those of passes.
 * Limits   GD_SURVEY_ROWS rows in a step
 * Life     one for each step: gd_survey_begin -> gd_survey_run where gd_survey_needed -> passes read it -> next step.
 */
#ifndef GD_TRAIN_SURVEY_H
#define GD_TRAIN_SURVEY_H

#include "engine/data/dataset.h"
#include "engine/objective/preference.h"
#include "engine/tensor/plan.h"

#define GD_SURVEY_ROWS GD_BATCH_SEGMENTS_MAX

struct gd_passes;

struct gd_survey {
    struct gd_preference_step step;
    int count;                             /* rows below; 0: nothing had to be looked at */
    int64_t rows[GD_SURVEY_ROWS];          /* of the dataset */
    float reference[3 * GD_SURVEY_ROWS];   /* of each segment of each row, where has_reference */
    float partner[GD_SURVEY_ROWS][3];
    bool has_reference;
    double running_mean, running_count;    /* BCO's, with this step in it */
};

/* What rows add to the divisors of a step. */
struct gd_step_counts {
    double rows, nll, gold;
};
void gd_step_count_row(struct gd_step_counts *counts, const struct gd_preference *preference, const struct gd_dataset *data,
                       int64_t row);
/* What is unwise about the numbers of desirable and undesirable rows and their weights; false: nothing. */
bool gd_label_advice(const struct gd_preference *preference, const struct gd_dataset *data, char *text, size_t size);
/* Empty but for the divisors, and for the running mean so far. */
void gd_survey_begin(struct gd_survey *survey, const struct gd_step_counts *counts, double running_mean, double running_count);

bool gd_survey_needed(const struct gd_preference *preference, bool training);
/* Tokens of the longest mismatched row that a survey of these data may make. */
int gd_survey_longest(const struct gd_preference *preference, const struct gd_dataset *data, int max_length);

struct gd_survey_options {
    bool training;
    const int64_t *rows;                   /* of the step, in their order */
    int count;
    int64_t before;                        /* the row before them: the partner of a row that is alone in its step */
    int tokens_per_batch, max_length;
};
/* batch: of the passes' capacity; what it holds is lost. */
GD_MUST_CHECK bool gd_survey_run(struct gd_survey *survey, struct gd_passes *passes, struct gd_batch *batch,
                                 const struct gd_dataset *data, const struct gd_survey_options *options,
                                 const struct gd_run_options *run, struct gd_error *err);
/* The index of a dataset's row among the step's, or -1. */
int gd_survey_find(const struct gd_survey *survey, int64_t row);

#endif
