/*
 * engine.h - generates for all running requests together: one batch a turn, whatever graft each wears.
 *
 * Why      Sixteen rows cost little more than one; requests come and go between turns.
 * Memory   The engine owns cache pages, plans, arenas, running requests; borrows model and grafts.
 * Threads  engine thread; gd_infer_turn may be called between two ops of a training step.
 * Errors   Per request through the sink; GD_NO_MEMORY at creation.
 * Limits   GD_INFER_REQUESTS_MAX running sequences, GD_INFER_WAITING_MAX waiting ones; prefill in slices of
 *          GD_INFER_PREFILL_TOKENS.
 * Life     gd_infer_create (per resident model) -> submit / cancel / turn ... -> gd_infer_destroy.
 */
#ifndef GD_INFER_ENGINE_H
#define GD_INFER_ENGINE_H

#include "engine/adapter/adapter.h"

#define GD_INFER_REQUESTS_MAX 256
#define GD_INFER_WAITING_MAX 4096
#define GD_INFER_PREFILL_TOKENS 256
#define GD_INFER_ENCODED_TOKENS 1024 /* of texts, after which the next ones are encoded in the next turn */
#define GD_STOPS_MAX 16
#define GD_TOP_LOGPROBS_MAX 20
#define GD_OUTPUTS_MAX 256

struct gd_sampling {
    double temperature;          /* 0 = greedy */
    double top_p;                /* (0, 1] */
    int top_k;                   /* 0 = all (extension) */
    double min_p;                /* 0 = off (extension) */
    double frequency_penalty, presence_penalty;
    double repetition_penalty;   /* 1 = off (extension) */
    uint64_t seed;
    int choice;                  /* which of n choices this is: part of the key of its random numbers */
    int max_tokens;              /* new tokens; >= 0 */
    char *stops[GD_STOPS_MAX];   /* borrowed until submit returns */
    int stop_count;
    bool ignore_eos;             /* extension */
    int32_t *bias_ids;           /* logit_bias, borrowed until submit returns */
    float *bias_values;
    int bias_count;
    /* The output is one of these and nothing else (extension): output i is output_ids[output_begin[i] .. output_begin[i + 1]).
     * Borrowed until submit returns. output_count 0: anything. */
    int32_t *output_ids;
    int *output_begin;           /* output_count + 1 */
    int output_count;
    int logprobs;                /* -1: none; 0..20: chosen token and that many alternatives */
    bool score;                  /* the score of a reward model's head for the prompt, and nothing else (max_tokens 0) */
    bool echo;                   /* report prompt tokens too (with log-probabilities if logprobs >= 0) */
    int encoded;                 /* of a model with an encoder: the prompt's tokens that the encoder reads; those behind them have been
                                    decoded. 0: all of it */
    int score_from;              /* echo with log-probabilities: not the prompt tokens before this one, whose rows may then
                                    come from the cache */
};

struct gd_token_logprob {
    int32_t id;
    double logprob;
};

/* One reported token. text is whole UTF-8 characters: bytes of an unfinished character, and text that may be the start
 * of a stop string, are held back and come with a later token (text_length 0 until then). */
struct gd_infer_token {
    int32_t id;
    bool from_prompt;            /* echo */
    const char *text;            /* text that became ready, valid during the call */
    size_t text_length;
    const char *piece;           /* this token's own bytes */
    size_t piece_length;
    bool has_logprob;            /* false for the first prompt token, and when not asked */
    double logprob;
    const struct gd_token_logprob *top; /* descending, top_count entries; contains the argmax when >= 1 */
    int top_count;
};

enum gd_finish { GD_FINISH_STOP, GD_FINISH_LENGTH, GD_FINISH_CANCELLED, GD_FINISH_ERROR };

/* An end-of-sequence token ends the sequence and is neither reported nor counted (unless ignore_eos); with echo and
 * log-probabilities it is reported, without text: who scores a prompt with max_tokens 1 takes the last entry for the
 * generated one. */
struct gd_infer_usage {
    int prompt_tokens, cached_tokens, completion_tokens;
};

struct gd_infer_sink {
    void *context;
    void (*token)(void *context, const struct gd_infer_token *token);
    /* Exactly once, last. tail: text that was held back and is now known to be output. error set for GD_FINISH_ERROR. */
    void (*finish)(void *context, enum gd_finish finish, const char *tail, size_t tail_length,
                   const struct gd_infer_usage *usage, const struct gd_error *error);
    void (*score)(void *context, double score); /* with sampling.score, once, before finish; else NULL */
};

struct gd_infer;

/* cache_bytes: bound of KV pages (taken as needed). */
GD_MUST_CHECK bool gd_infer_create(struct gd_infer **out, struct gd_model *model, size_t cache_bytes,
                                   struct gd_error *err);
void gd_infer_destroy(struct gd_infer *infer);

/* What an engine is asked for at its busiest. */
struct gd_infer_load {
    int rows;                    /* of a batch, at most GD_INFER_ROWS_MAX */
    int logits;                  /* of them whose logits are read */
    int64_t tokens;              /* that the cache holds */
};
#define GD_INFER_ROWS_MAX 384

/* What an engine on this model takes for that, without making anything. */
struct gd_infer_need {
    size_t forward;              /* activations, logits */
    size_t kv;                   /* pages of the tokens, at most cache_bytes */
    struct gd_layout_cost weights; /* layouts that are not there yet, while only prompts are read */
    struct gd_layout_cost few;   /* and when tokens are generated, or prompts of GD_FEW_ROWS tokens read */
};
GD_MUST_CHECK bool gd_infer_estimate(struct gd_model *model, size_t cache_bytes, const struct gd_infer_load *load,
                                     struct gd_infer_need *need, struct gd_error *err);

/* Queues a sequence. It is admitted, in order of submission, when pages for its prompt and all of max_tokens are free or
 * promised to nobody, so that a running sequence never waits for memory. A prompt whose beginning is just being computed
 * for another one waits for it and then takes its pages; so n choices of one prompt are n cheap submits. prompt is copied. graft NULL = base; it must outlive the sequence. Refused: prompt + max_tokens
 * beyond the context or the whole cache (GD_CONTEXT, with the numbers), empty prompt, ids outside the vocabulary, sampling
 * fields out of range (err->param names them), tokens of a reward model or scores of another one ("model"), GD_BUSY when too many wait. *id identifies it. */
GD_MUST_CHECK bool gd_infer_submit(struct gd_infer *infer, const struct gd_graft *graft, const int32_t *prompt,
                                   int prompt_count, const struct gd_sampling *sampling,
                                   const struct gd_infer_sink *sink, uint64_t *id, struct gd_error *err);
/* finish(GD_FINISH_CANCELLED) comes before this returns; unknown ids are ignored. */
void gd_infer_cancel(struct gd_infer *infer, uint64_t id);
bool gd_infer_busy(const struct gd_infer *infer);
/* Sequences (running or waiting) that wear this graft. */
int gd_infer_graft_users(const struct gd_infer *infer, const struct gd_graft *graft);

/* One turn: admit, one mixed batch (decode rows of all, one slice of prefill), sample, report. False only when the
 * engine itself is broken (all requests were finished with the error). */
GD_MUST_CHECK bool gd_infer_turn(struct gd_infer *infer, struct gd_error *err);

struct gd_infer_stats {
    int running, waiting;
    int64_t pages_used, pages_total;
    int64_t prompt_tokens, completion_tokens, turns;
    int64_t cached_tokens;
    int64_t adapter_bytes;       /* of the adapters that a worker holds, which it fills in */
};
void gd_infer_get_stats(const struct gd_infer *infer, struct gd_infer_stats *stats);

#endif
