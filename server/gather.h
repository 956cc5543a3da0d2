/*
 * gather.h - a request that is several messages to a worker, and one answer when the last of them is back, or a stream until then.
 *
 * Why      Whoever splits a request says what its parts are and what their answers make. Finding the model, cancelling the rest when one
 *          fails or the client leaves, and how a request ends that has begun to stream are the same for all.
 * Memory   Takes the context.
 * Threads  Loop thread.
 * Errors   The first one that a part meets ends the request: as a status, or as an event where the stream has begun.
 * Limits   none
 * Life     gd_gather_create -> gd_gather_refuse -> release; or -> gd_gather_start -> ask, hear, take ... -> reply -> release
 */
#ifndef GD_SERVER_GATHER_H
#define GD_SERVER_GATHER_H

#include "server/http.h"

#define GD_GATHER_TOKENS_MAX (1 << 24) /* ids in one list */

struct gd_gather;

struct gd_gather_kind {
    const char *message, *answer;        /* types of frames: "score", "scored" */
    /* The message of a part; it gets its type and what names the model. */
    cJSON *(*ask)(void *context, int part);
    /* A frame before a part's last one (borrowed); NULL: there are none. */
    void (*hear)(void *context, int part, const cJSON *frame);
    /* The answer to a part (borrowed). False: err, and the request fails. */
    bool (*take)(void *context, int part, const cJSON *frame, struct gd_error *err);
    /* What a part's error needs to be understood; NULL: nothing. */
    void (*explain)(void *context, int part, struct gd_error *err);
    /* All are in: the answer, and how many tokens were read that nobody has counted. NULL where the last events of a stream were sent. */
    cJSON *(*reply)(void *context, double *prompt_tokens);
    void (*release)(void *context);
};

struct gd_gather *gd_gather_create(struct gd_app *app, struct gd_request *request, const struct gd_gather_kind *kind, void *context_taken);
/* A request's body: an object of `known` members (NULL-terminated), "model" among them, at a time when the server takes requests. */
GD_MUST_CHECK bool gd_gather_read(struct gd_app *app, struct gd_request *request, const char *const *known, const char **model,
                                  struct gd_error *err);
/* Ends a request that is not started. */
void gd_gather_refuse(struct gd_gather *gather, const struct gd_error *err);
/* `parts`: how many messages there are. */
void gd_gather_start(struct gd_gather *gather, const char *model, int parts);

/* From here on the answer is a stream of events; once it is, this does nothing. */
void gd_gather_stream(struct gd_gather *gather);
void gd_gather_send(struct gd_gather *gather, cJSON *event_taken);

/* A list of token ids in a request. */
GD_MUST_CHECK bool gd_gather_check_ids(const cJSON *list, const char *path, struct gd_error *err);

#endif
