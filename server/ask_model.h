/*
 * ask_model.h - one ask (engine/eval/ask.h) answered by a worker.
 *
 * Why      A single grade may need a judge; a whole run has a worker of its own for that (engine/worker/evaluate.h).
 * Memory   Borrows the ask until `done`.
 * Threads  Loop thread.
 * Errors   In the ask: a model that is not there, a worker that ended, what the engine refuses.
 * Limits   CHAT asks only; GD_ASK_ANSWER_BYTES_MAX bytes of answer
 * Life     one call; `done` exactly once, perhaps before it returns.
 */
#ifndef GD_SERVER_ASK_MODEL_H
#define GD_SERVER_ASK_MODEL_H

#include "engine/eval/ask.h"
#include "server/app.h"

#define GD_ASK_ANSWER_BYTES_MAX (8u << 20)

void gd_ask_model(struct gd_app *app, const char *project, struct gd_ask *ask, void (*done)(void *context), void *context);

#endif
