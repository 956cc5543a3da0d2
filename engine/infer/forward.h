/*
 * forward.h - one mixed batch through the model: cached plans for a few sizes; logits of chosen rows by logits.h.
 *
 * Why      Building and planning a graph costs milliseconds; a decode step is a few. Rows are rounded up to a bucket, and
 *          each bucket's plan is kept. A row's result does not depend on the bucket (see attention_cached, wear).
 * Memory   Owns graphs, plans, one arena for all of them, and the buffers below.
 * Threads  engine thread
 * Errors   GD_NO_MEMORY; what plans report.
 * Limits   GD_FORWARD_ROWS rows a batch.
 * Life     create -> fill ids, positions, kv, wear -> run -> logits ... -> destroy.
 */
#ifndef GD_INFER_FORWARD_H
#define GD_INFER_FORWARD_H

#include "engine/infer/logits.h"
#include "engine/model/model.h"
#include "engine/tensor/device.h"
#include "engine/tensor/kv.h"
#include "engine/tensor/wear.h"

/* Rows of a batch's plan; every batch is rounded up to one. */
extern const int gd_forward_buckets[GD_FORWARD_BUCKETS];

struct gd_forward_plan;

struct gd_forward {
    struct gd_model *model;
    enum gd_dtype act;
    struct gd_forward_plan *plans[GD_FORWARD_BUCKETS][GD_WEAR_DEPTHS];
    struct gd_device_block arena;
    /* The batch: rows [0, used) of ids and positions; kv and wear describe the same rows. */
    int32_t ids[GD_FORWARD_ROWS], positions[GD_FORWARD_ROWS];
    struct gd_kv_batch kv;
    struct gd_kv_batch cross;     /* of a model with an encoder: the pages of its rows, as many as kv's past counts there */
    struct gd_wear wear;
    /* Results. */
    const void *hidden;           /* [used, width] in act, an address of the device, valid until the next run */
    struct gd_logits *head;
};

/* kv's shape and pages are the caller's to fill. */
GD_MUST_CHECK bool gd_forward_create(struct gd_forward **out, struct gd_model *model, enum gd_dtype act, struct gd_error *err);
/* Bytes of activations and logits that batches of `rows` rows touch, `logits` of them at a time; layouts that are not there yet,
 * `few` with those that batches of few rows need besides. Nothing is made. */
struct gd_forward_need {
    size_t bytes;
    struct gd_layout_cost layouts, few;
};
GD_MUST_CHECK bool gd_forward_estimate(struct gd_model *model, enum gd_dtype act, int rows, int logits, struct gd_forward_need *need,
                                       struct gd_error *err);
void gd_forward_destroy(struct gd_forward *forward);

/* `depth`: the most that a graft of the batch does (each depth has plans of its own, without what it does not need). All grafts of a
 * batch have the same gd_graft_tables_key. */
GD_MUST_CHECK bool gd_forward_run(struct gd_forward *forward, int used, enum gd_wear_depth depth, struct gd_error *err);
/* Row `row` of the last run's hidden states, as f32 into out[width]. */
GD_MUST_CHECK bool gd_forward_row(const struct gd_forward *forward, int row, float *out, struct gd_error *err);
/* f32 logits of the given rows of the last run, ascending: forward->head->logits, at most head->rows_max at a time. */
GD_MUST_CHECK bool gd_forward_logits(struct gd_forward *forward, const int32_t *rows, int count, struct gd_error *err);

#endif
