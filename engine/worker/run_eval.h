/*
 * run_eval.h - an eval or a task in the foreground.
 *
 * Why      `graftd run` evaluates without a server: the same request with paths in place of file ids, or a task's YAML file.
 * Memory   Borrows the options.
 * Threads  main thread
 * Errors   those of the request, the models and the files; GD_CANCELLED when `stop` was set
 * Limits   those of source.h
 * Life     one call
 *
 * Writes OUT/items.jsonl, an item a line as it is finished, and OUT/scores.json at the end.
 */
#ifndef GD_WORKER_RUN_EVAL_H
#define GD_WORKER_RUN_EVAL_H

#include "engine/base/error.h"
#include <signal.h>
#include <stdint.h>

struct gd_run_eval_options {
    const char *job, *models, *out, *device;
    const char *model, *adapter;        /* instead of the request's; what it wears; or NULL */
    bool resume;
    int threads;
    int64_t limit, shots, seed;         /* -1: as the request says */
    const volatile sig_atomic_t *stop;
};

bool gd_run_is_task(const char *path);  /* NAME.yaml or NAME.yml */
GD_MUST_CHECK bool gd_run_eval(const struct gd_run_eval_options *options, struct gd_error *err);

#endif
