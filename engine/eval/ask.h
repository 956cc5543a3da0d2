/*
 * ask.h - one question to a model, and its answer.
 *
 * Why      Sources of items and graders say what they want to know; whoever holds the models (a worker, `graftd run`, the
 *          server for a single grade) finds it out, many at a time. Neither knows the other.
 * Memory   An ask owns its strings and JSON; gd_ask_release.
 * Threads  One thread at a time.
 * Errors   An answer that could not be had is in `error` (GD_OK: it is there).
 * Limits   none
 * Life     gd_ask_init -> filled -> answered by the host -> read -> gd_ask_release.
 */
#ifndef GD_EVAL_ASK_H
#define GD_EVAL_ASK_H

#include "engine/base/json.h"

enum gd_ask_kind {
    GD_ASK_CHAT,          /* messages (and tools): what does the assistant say? */
    GD_ASK_TEXT,          /* prompt: how does it go on? */
    GD_ASK_LOGLIKELIHOOD, /* prompt (may be ""), continuation: how likely is it after the prompt? */
    GD_ASK_ROLLING,       /* continuation: how likely is it as a whole text? One that is longer than the context is scored
                             window by window, each after the last token of the one before */
};

struct gd_ask {
    enum gd_ask_kind kind;
    char *model;                     /* id; NULL: the run's model */
    cJSON *messages, *tools;         /* CHAT; tools may be NULL */
    char *prompt, *continuation;
    double temperature, top_p;       /* CHAT, TEXT */
    int64_t seed;
    int64_t max_tokens;              /* -1: as many as there is room for */
    cJSON *stops;                    /* strings, or NULL */
    cJSON *choices;                  /* strings: the answer is one of them, nothing else can be said; NULL: free */
    /* the answer */
    int parts;                       /* the runner's: windows of a ROLLING ask that are still unanswered */
    bool answered;
    struct gd_error error;
    char *text;                      /* CHAT, TEXT; "" at least unless there is an error */
    bool truncated;                  /* it ended at max_tokens, not by itself */
    double loglikelihood;            /* LOGLIKELIHOOD: sum over the continuation's tokens, natural logarithm */
    bool greedy;                     /* ... each of them was the likeliest */
    int64_t token_count;             /* ... how many they are */
    int64_t prompt_tokens, cached_tokens, completion_tokens;
};

/* temperature 1, top_p 1, seed 0, no bound on tokens. */
void gd_ask_init(struct gd_ask *ask, enum gd_ask_kind kind);
void gd_ask_release(struct gd_ask *ask);

#endif
