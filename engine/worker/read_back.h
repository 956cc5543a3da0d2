/*
 * read_back.h - is the adapter that was written the one that was trained?
 *
 * Why      A file that loads may still mean something else: it is served once before its job counts as done.
 * Memory   none kept
 * Threads  engine thread
 * Errors   GD_INTERNAL with the difference; those of serving.
 * Limits   none
 * Life     one call
 */
#ifndef GD_WORKER_READ_BACK_H
#define GD_WORKER_READ_BACK_H

#include "engine/infer/engine.h"
#include "engine/train/trainer.h"

/* Serves the probe's row with the graft and compares log-probabilities. *difference: their mean difference. */
GD_MUST_CHECK bool gd_read_back(struct gd_infer *infer, const struct gd_graft *graft, const struct gd_probe *probe,
                                double *difference, struct gd_error *err);

#endif
