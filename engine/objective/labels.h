/*
 * labels.h - the loss of a classifier's logits, and what they say: how many rows are right, and which label takes which for its own.
 *
 * Why      Softmax over a few labels needs no chunks of a vocabulary; the loss is a function that also returns its slopes.
 * Memory   Borrows everything.
 * Threads  engine thread
 * Errors   none
 * Limits   none
 * Life     filled for each micro-batch
 */
#ifndef GD_OBJECTIVE_LABELS_H
#define GD_OBJECTIVE_LABELS_H

#include <stdbool.h>
#include <stdint.h>

/* Of one label, over rows. */
struct gd_label_counts {
    int64_t actual, predicted, both;
};

struct gd_label_batch {
    int rows, labels;
    bool multi;                    /* any number of labels for a row: a sigmoid each; else one: a softmax */
    const int32_t *const *row_labels; /* [rows]: lists of labels */
    const int32_t *row_label_count;   /* [rows] */
    const double *weights;         /* [labels] of a row with that label, or NULL: 1 */
    double scale;                  /* of the sum over rows */
    int64_t correct;               /* rows whose labels are all right */
    struct gd_label_counts *counts; /* [labels], added to; or NULL */
};

/* Sum over rows of -log p(label), by weight, or of the mean over labels of their binary cross-entropy; times scale. logits: f32
 * [>= rows, labels]; slopes likewise, 0 beyond the rows. struct gd_segment_loss's evaluate. */
double gd_label_loss(void *context, const float *logits, const float *aside, int64_t count, float *slopes);

/* logits as scores: a softmax over them, or a sigmoid of each. */
void gd_label_scores(const float *logits, int labels, bool multi, double *scores);

/* Mean over the labels that occur, in rows or in predictions, of 2 both / (actual + predicted). 0 without any. */
double gd_macro_f1(const struct gd_label_counts *counts, int labels);

#endif
