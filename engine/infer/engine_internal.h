/*
 * engine_internal.h - the engine's state, shared by engine.c (who is in) and turn.c (what one turn does).
 *
 * Why      Admission and batches are two ideas over one state.
 * Memory   gd_infer owns all of it.
 * Threads  engine thread
 * Errors   none
 * Limits   engine.h
 * Life     gd_infer's
 *
 * Invariant: gd_kv_cache_available >= pages_promised = sum over admitted sequences of what they may still take.
 */
#ifndef GD_INFER_ENGINE_INTERNAL_H
#define GD_INFER_ENGINE_INTERNAL_H

#include "engine/infer/encode.h"
#include "engine/infer/forward.h"
#include "engine/infer/sampler.h"
#include "engine/infer/sequence.h"

_Static_assert(GD_INFER_REQUESTS_MAX + GD_INFER_PREFILL_TOKENS / 2 <= GD_FORWARD_ROWS,
               "all sequences decoding and half a slice of prefill fit one batch");

/* Rows of one sequence in this turn's batch. */
struct gd_slice {
    struct gd_sequence *sequence;
    int group, count;
};

/* A row whose logits are needed: to score prompt token `next`, or to sample it. */
struct gd_wanted_row {
    struct gd_sequence *sequence;
    int32_t row;
    int next;
};

struct gd_infer {
    struct gd_model *model;
    struct gd_forward *forward;
    struct gd_encoder *encoder;       /* of a model that has one; else NULL */
    struct gd_kv_cache *cache;
    struct gd_sequence **sequences;   /* in order of submission */
    int count, capacity, running;
    int pages_promised;
    bool in_turn;
    uint64_t next_id;
    struct gd_infer_stats stats;

    struct gd_sampler *samplers;      /* one a thread */
    int sampler_count;
    struct gd_sequence_result *results; /* [forward->logit_rows_max] */

    /* The batch. */
    struct gd_slice slices[GD_INFER_REQUESTS_MAX];
    int slice_count;
    struct gd_wanted_row wanted[GD_FORWARD_ROWS];
    int wanted_count;
    int32_t cu_seqlens[GD_INFER_REQUESTS_MAX + 1], past[GD_INFER_REQUESTS_MAX];
    int32_t encoded[GD_INFER_REQUESTS_MAX]; /* rows of the encoder that each sequence sees */
    int32_t *page_table, *cross_table;
    size_t page_table_size, cross_table_size;
    int32_t group_begin[GD_INFER_REQUESTS_MAX + 1];
    const struct gd_wear_part *group_sites[GD_INFER_REQUESTS_MAX];
    int32_t row_index[GD_FORWARD_ROWS];
};

/* Admits waiting sequences, reports what needs no model. */
void gd_infer_admit(struct gd_infer *infer);
/* Of page `page` of the sequence, whose key is that of the page before it. */
void gd_infer_page_key(const struct gd_sequence *sequence, int page, struct gd_kv_key *key);
/* Ends a sequence that has not finished yet, gives its pages back. The struct goes with gd_infer_sweep. */
void gd_infer_end(struct gd_infer *infer, struct gd_sequence *sequence, enum gd_finish finish, const struct gd_error *error);
/* Gives back the pages of a sequence that has finished. */
void gd_infer_give_back(struct gd_infer *infer, struct gd_sequence *sequence);
/* Frees finished sequences. */
void gd_infer_sweep(struct gd_infer *infer);

#endif
