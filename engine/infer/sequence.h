/*
 * sequence.h - one running or waiting generation: its tokens, its pages, its text, and what its sink is told.
 *
 * Why      The engine moves batches; what belongs to one request stands here.
 * Memory   Owns copies of prompt and sampling, its page list, its text. References to pages belong to the engine.
 * Threads  engine thread
 * Errors   GD_INVALID and GD_CONTEXT from checks, with the field.
 * Limits   engine.h
 * Life     create -> (admitted by the engine) -> accept tokens -> finish -> destroy.
 */
#ifndef GD_INFER_SEQUENCE_H
#define GD_INFER_SEQUENCE_H

#include "engine/infer/engine.h"
#include "engine/infer/kv_cache.h"
#include "engine/infer/text_hold.h"

struct gd_sequence {
    uint64_t id;
    struct gd_model *model;
    const struct gd_graft *graft;
    struct gd_sampling sampling;      /* stops are in `hold`; bias arrays are owned */
    struct gd_infer_sink sink;
    int32_t *ids;                     /* prompt, then what was generated; of a model with an encoder what is decoded: the start token,
                                         what of the prompt is given of it, then what was generated */
    int32_t *encoder_ids;             /* what the encoder reads; NULL without one */
    int encoder_count;
    int32_t *cross_pages;             /* keys and values of the encoder's rows */
    int cross_count, cross_max;       /* taken; reserved in all */
    bool encoded;                     /* they are in the pages */
    int prompt_count, count;
    uint16_t *counts;                 /* per id, generated; NULL without penalties */
    uint8_t *seen;                    /* per id; NULL without a repetition penalty */
    bool admitted, finished;          /* finished: the sink was told; the engine will free it */

    int lead;                         /* virtual rows of the graft, before the tokens in the pages */
    bool led;                         /* they are in the pages */
    int32_t long_bit;                 /* GD_POSITION_LONG where prompt and max_tokens are more than config.long_from; or 0 */
    int past;                         /* tokens whose keys and values are in pages */
    int32_t *pages;
    int page_count, pages_max;        /* taken; reserved in all */
    struct gd_kv_key root, key;       /* identity of the graft; key of the last published page */
    int64_t turn;                     /* the last one that it had rows in */
    int published;                    /* full pages that are in the prefix cache */

    struct gd_text_hold hold;
    struct gd_buf text, piece;
    struct gd_infer_usage usage;
};

struct gd_sequence_result {
    int32_t id;
    double logprob;
    struct gd_token_logprob top[GD_TOP_LOGPROBS_MAX];
    int top_count;
};

GD_MUST_CHECK bool gd_sequence_create(struct gd_sequence **out, struct gd_model *model, const struct gd_graft *graft,
                                      const int32_t *prompt, int prompt_count, const struct gd_sampling *sampling,
                                      const struct gd_infer_sink *sink, struct gd_error *err);
void gd_sequence_destroy(struct gd_sequence *sequence);

/* The prompt is reported with log-probabilities: the logits of every row from score_from - 1 on are needed. */
static inline bool gd_sequence_scores_prompt(const struct gd_sequence *sequence)
{
    return sequence->sampling.echo && sequence->sampling.logprobs >= 0;
}

/* The prompt's first rows that may come from the cache: the row before the first token that is scored may not. */
static inline int gd_sequence_cacheable(const struct gd_sequence *sequence)
{
    if (sequence->encoder_count > 0) /* the same tokens mean something else after another text */
        return 0;
    int all = sequence->prompt_count - 1, before = sequence->sampling.score_from - 1;
    return !gd_sequence_scores_prompt(sequence) || before > all ? all : before > 0 ? before : 0;
}

/* Rows of the pages that other sequences may share: a graft that changes only the prompt's tokens makes other keys and values
 * of the same tokens when they are generated. */
int gd_sequence_shared_rows(const struct gd_sequence *sequence);

/* Pages that the sequence may still take. */
static inline int gd_sequence_pages_left(const struct gd_sequence *sequence)
{
    return sequence->pages_max - sequence->page_count + sequence->cross_max - sequence->cross_count;
}

/* Tokens that must go through the model next: 0 when there is nothing to do (the last token needs no pass when nothing is
 * to be generated after it). */
int gd_sequence_pending(const struct gd_sequence *sequence);

/* Reports the prompt as far as it needs no model: all of it, or its first token when log-probabilities follow. */
void gd_sequence_report_prompt(struct gd_sequence *sequence);
/* Reports prompt token `index` (>= 1) with its log-probability. */
void gd_sequence_report_scored(struct gd_sequence *sequence, int index, const struct gd_sequence_result *result);
/* Takes the next token: reports it, finishes at an end-of-sequence token, a stop string or max_tokens. */
void gd_sequence_accept(struct gd_sequence *sequence, const struct gd_sequence_result *result);
/* Where the sampling names the outputs: the tokens that may come next, at most GD_OUTPUTS_MAX + 1, each once; an end token is
 * among them where what is there is an output and others go on. Returns how many. */
int gd_sequence_next_tokens(const struct gd_sequence *sequence, int32_t *next);
/* Tells the sink, once. error only with GD_FINISH_ERROR. */
void gd_sequence_finish(struct gd_sequence *sequence, enum gd_finish finish, const struct gd_error *error);

#endif
