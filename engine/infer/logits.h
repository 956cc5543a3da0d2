/*
 * logits.h - the vocabulary product for chosen rows of a batch, worn and capped as the model says.
 *
 * Why      Of a batch's rows few are asked for their next token: only these meet the largest of the weights.
 * Memory   Owns plans for a few sizes, their arena, and the logits.
 * Threads  engine thread
 * Errors   GD_NO_MEMORY; what plans report.
 * Limits   rows_max rows at a time.
 * Life     create -> run ... -> destroy.
 */
#ifndef GD_INFER_LOGITS_H
#define GD_INFER_LOGITS_H

#include "engine/infer/engine.h"
#include "engine/model/model.h"
#include "engine/tensor/device.h"
#include "engine/tensor/wear.h"

#define GD_FORWARD_ROWS GD_INFER_ROWS_MAX
#define GD_FORWARD_BUCKETS 12

struct gd_logits_plan;

struct gd_logits {
    struct gd_model *model;
    enum gd_dtype act;
    int rows_max;
    float *logits;               /* [rows_max, vocab], of the last run; where the device samples, once gd_logits_fetch brought them */
    const float *there;          /* the same on the device */
    size_t logits_bytes;
    struct gd_device_block arena;
    struct gd_logits_plan *plans[GD_FORWARD_BUCKETS][2]; /* bare, worn */
    int32_t index[GD_FORWARD_ROWS], row_begin[GD_FORWARD_ROWS + 2];
    struct gd_wear wear;         /* of the chosen rows */
};

GD_MUST_CHECK bool gd_logits_create(struct gd_logits **out, struct gd_model *model, enum gd_dtype act, struct gd_error *err);
/* Bytes that `count` rows at a time touch, without layouts of the head. */
GD_MUST_CHECK bool gd_logits_estimate(struct gd_model *model, enum gd_dtype act, int count, size_t *bytes, struct gd_error *err);
void gd_logits_destroy(struct gd_logits *logits);

/* hidden: act [GD_FORWARD_ROWS, width] on the device, of which rows[0..count) are there; ascending, as wear's rows are. */
GD_MUST_CHECK bool gd_logits_run(struct gd_logits *logits, const void *hidden, const struct gd_wear *wear, const int32_t *rows,
                                 int count, struct gd_error *err);
/* The last run's `count` rows, for the host to read. */
GD_MUST_CHECK bool gd_logits_fetch(struct gd_logits *logits, int count, struct gd_error *err);

#endif
