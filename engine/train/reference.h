/*
 * reference.h - the log-probabilities of a reference model, computed once for all rows and kept with the job.
 *
 * Why      A frozen reference says the same of a row in every epoch: one pass before training replaces one in every step.
 * Memory   Written into the dataset's rows.
 * Threads  engine thread; blocking writes.
 * Errors   GD_CANCELLED from the hook, GD_INVALID naming the lines where only some rows bring theirs, GD_IO, GD_DISK_FULL.
 * Limits   none
 * Life     once for each dataset, before the first step.
 *
 * FOLDER/reference-NAME  logps.safetensors (f32 [rows, answers of a row]) and reference.json, which says of what data and
 *                        of which model; what is of another is made again.
 */
#ifndef GD_TRAIN_REFERENCE_H
#define GD_TRAIN_REFERENCE_H

#include "engine/train/passes.h"

struct gd_reference_facts {
    const char *name;            /* "training", "validation": of the dataset */
    const char *data, *model;    /* fingerprints */
};
/* Rows that bring their values (ref_chosen_logps) keep them, all or none. *computed: a pass was run, not read back. */
GD_MUST_CHECK bool gd_reference_prepare(struct gd_passes *passes, struct gd_dataset *data, struct gd_batch *batch, int token_budget,
                                        const char *folder, const struct gd_reference_facts *facts,
                                        const struct gd_run_options *options, bool *computed, struct gd_error *err);

#endif
