/*
 * gather.h - a request that is several messages to a worker, and one answer when the last of them is back.
 *
 * Why      Others' tokens come between the parts of a long request. Whoever splits one says what its parts are and what their answers
 *          make; finding the model, cancelling the rest when one fails or the client leaves, and counting are the same for all.
 * Memory   Takes the messages and the context.
 * Threads  Loop thread.
 * Errors   The first one that a part meets ends the request.
 * Limits   none
 * Life     gd_gather_start -> take ... -> reply -> release; or -> release
 */
#ifndef GD_SERVER_GATHER_H
#define GD_SERVER_GATHER_H

#include "server/http.h"

#define GD_GATHER_TOKENS_MAX (1 << 24) /* ids in one list */

struct gd_gather_kind {
    const char *message, *answer;        /* types of frames: "score", "scored" */
    /* The answer to a part (borrowed). False: err, and the request fails. */
    bool (*take)(void *context, int part, const cJSON *frame, struct gd_error *err);
    /* What a part's error needs to be understood; NULL: nothing. */
    void (*explain)(void *context, int part, struct gd_error *err);
    /* All are in: the answer, and how many tokens were read. */
    cJSON *(*reply)(void *context, double *prompt_tokens);
    void (*release)(void *context);
};

/* A request's body: an object of `known` members (NULL-terminated), "model" among them, at a time when the server takes requests. */
GD_MUST_CHECK bool gd_gather_read(struct gd_app *app, struct gd_request *request, const char *const *known, const char **model,
                                  struct gd_error *err);
/* Ends a request that is not started. */
void gd_gather_refuse(struct gd_request *request, const struct gd_gather_kind *kind, void *context_taken, const struct gd_error *err);
/* messages_taken: an array; each gets its type and what names the model. */
void gd_gather_start(struct gd_app *app, struct gd_request *request, const char *model, cJSON *messages_taken,
                     const struct gd_gather_kind *kind, void *context_taken);

/* A list of token ids in a request. */
GD_MUST_CHECK bool gd_gather_check_ids(const cJSON *list, const char *path, struct gd_error *err);

#endif
