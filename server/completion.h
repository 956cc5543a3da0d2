/*
 * completion.h - a completion request: what was asked, checked; and its answer, formatted.
 *
 * Why      Chat and text completions are one mechanism with two spellings: parsing and formatting know the difference,
 *          running them (routes_completions.c) does not.
 * Memory   gd_completion_ask owns its sampling and texts and borrows the request's body.
 * Threads  Loop thread.
 * Errors   GD_INVALID, GD_MISSING, GD_UNSUPPORTED naming the field. Fields that are not known, and those that are and change
 *          nothing here, are accepted and listed in `ignored`.
 * Limits   GD_COMPLETION_CHOICES_MAX sequences a request, GD_COMPLETION_STOPS_MAX stop strings, 4096 logit_bias entries.
 * Life     gd_completion_parse -> read -> gd_completion_ask_release.
 */
#ifndef GD_SERVER_COMPLETION_H
#define GD_SERVER_COMPLETION_H

#include "engine/base/json.h"

#define GD_COMPLETION_CHOICES_MAX 2048
#define GD_COMPLETION_STOPS_MAX 4   /* this and the next two as OpenAI has them; the engine could do more */
#define GD_COMPLETION_LOGPROBS_MAX 5
#define GD_COMPLETION_TOP_LOGPROBS_MAX 20 /* of chat */

struct gd_completion_ask {
    bool chat;
    const char *model;
    char task[64];                    /* of a model that was trained by task; "": none given */
    const cJSON *messages, *tools;    /* chat; tools NULL: none */
    const cJSON *template_kwargs;     /* chat: free variables of the template; NULL: none */
    const cJSON **prompts;            /* text: a string or an array of ids each */
    int prompt_count;                 /* chat: 1 */
    int n, best_of;                   /* best_of sequences a prompt, of which n are answered */
    bool stream, include_usage, echo;
    int logprobs;                     /* alternatives to show; -1: no log-probabilities */
    cJSON *sampling;                  /* of a generate frame */
    char *ignored;                    /* names for the header, or NULL */
};

GD_MUST_CHECK bool gd_completion_parse(struct gd_completion_ask *ask, bool chat, const cJSON *body, struct gd_error *err);
void gd_completion_ask_release(struct gd_completion_ask *ask);

/* ---- answers (completion_reply.c) ---- */

struct gd_completion_usage {
    int64_t prompt_tokens, cached_tokens, completion_tokens;
};
struct gd_completion_head {
    bool chat, chunk;
    const char *id, *model;
    int64_t created;
};
/* The object around choices (taken; NULL: an empty array). usage NULL: absent, or null if null_usage. */
cJSON *gd_completion_json(const struct gd_completion_head *head, cJSON *choices_taken,
                          const struct gd_completion_usage *usage, bool null_usage);
/* One element of choices. logprobs is taken (NULL: null); finish NULL: null. For a chunk: role_first gives the first delta of
 * a chat choice; text NULL: an empty delta. */
cJSON *gd_completion_choice(const struct gd_completion_head *head, int index, const char *text, cJSON *logprobs_taken,
                            const char *finish, bool role_first);
/* Log-probabilities in the shape of the endpoint; add appends one token frame. `offset`: characters of text before it. */
cJSON *gd_completion_logprobs(bool chat);
void gd_completion_logprobs_add(cJSON *logprobs, bool chat, const cJSON *token, int alternatives, int64_t offset);
/* Characters (code points) that end in this token's piece. */
int64_t gd_completion_piece_characters(const cJSON *token);

#endif
