/*
 * optimizer.h - the schedules of the optimiser's rate.
 *
 * Why      AdamW itself is a vector of the device's (device.h); how fast it goes is the job's.
 * Memory   none
 * Threads  Any; a pure function.
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_TRAIN_OPTIMIZER_H
#define GD_TRAIN_OPTIMIZER_H

#include "engine/train/spec.h"

/* Rate of step 1..total: warm-up to the base rate over ceil(warmup_ratio total) steps, then constant, linear to 0, or
 * half a cosine to 0. */
double gd_learning_rate(const struct gd_job_spec *spec, int64_t step, int64_t total);

#endif
