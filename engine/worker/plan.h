/*
 * plan.h - what a job would need, said before it is accepted.
 *
 * Why      A job that cannot fit is refused when it is submitted, with the numbers and with what would fit.
 * Memory   gd_plan_job's JSON is the caller's.
 * Threads  engine thread: graphs and shapes of layouts are the engine's. The server asks as it asks for tokens, between two ops of
 *          whatever runs, and its loop waits for nothing.
 * Errors   those of the request, the model and the file; GD_NO_ROOM where the job does not fit.
 * Limits   PLAN_ROWS rows of the file are tokenised: those with the most bytes
 * Life     one call
 */
#ifndef GD_WORKER_PLAN_H
#define GD_WORKER_PLAN_H

#include "engine/train/memory.h"
#include "engine/worker/resident.h"

/* What read-back and attached evals take beside the job. cache_bytes: bound of the key/value cache. */
void gd_plan_room(struct gd_memory_room *room, struct gd_model *model, const struct gd_job_spec *spec, size_t cache_bytes);

struct gd_plan_request {
    const char *training_path, *validation_path; /* validation: or NULL */
    const char *init_path;       /* the adapter that spec.init_from names, or NULL */
};
/* Resolves the spec. *memory: {..., "fits", "message", "advice" where it does not}. */
GD_MUST_CHECK bool gd_plan_job(struct gd_residents *residents, struct gd_job_spec *spec, const char *model_path,
                               const struct gd_plan_request *request, cJSON **memory, struct gd_error *err);

#endif
