/*
 * start.h - jobs that go on from a tuned model: the graft that they start from, kept with the job.
 *
 * Why      The model that a job starts from may be deleted while the job runs or waits to be resumed, and it may be the
 *          reference of a loss until the end: the job's folder has a copy of its own.
 * Memory   A loaded graft is the caller's.
 * Threads  engine thread; blocking writes.
 * Errors   those of gd_graft_load; GD_NOT_FOUND where the model is gone; GD_INVALID with param "adapter" where the job asks
 *          for another graft than it starts from.
 * Limits   none
 * Life     open -> adopt or check -> copy its block -> gd_graft_destroy.
 *
 * FOLDER/start  the adapter, in PEFT format, made when the job first runs.
 */
#ifndef GD_TRAIN_START_H
#define GD_TRAIN_START_H

#include "engine/train/spec.h"

/* Parameters before the first step, for a graft that gd_start_make_graft accepted; start: not NULL. */
void gd_start_fill(const struct gd_graft *graft, struct gd_graft *start, uint64_t seed, float *block);
/* path: the adapter's folder. Nothing of it is needed once FOLDER/start stands. */
GD_MUST_CHECK bool gd_start_open(struct gd_graft **out, const struct gd_model *model, const char *folder, const char *path,
                                 struct gd_error *err);
/* The spec's adapter becomes the start's where the request had none. */
GD_MUST_CHECK bool gd_start_adopt(struct gd_job_spec *spec, const struct gd_graft *start, struct gd_error *err);
/* The job's graft, as the spec has it after gd_start_adopt: like `start`, or one that its method makes of it. start: NULL
 * without one; what a method chooses it then takes from FOLDER/start, else from `source`. */
GD_MUST_CHECK bool gd_start_make_graft(struct gd_graft **out, const struct gd_model *model, const struct gd_job_spec *spec,
                                       struct gd_graft *start, const char *folder, const struct gd_graft_source *source,
                                       struct gd_error *err);

#endif
