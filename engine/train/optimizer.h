/*
 * optimizer.h - AdamW over one flat block, and the schedules of its rate.
 *
 * Why      Parameters, gradients and moments are flat f32 blocks: one pass, a fixed order, easy to save.
 * Memory   The caller's blocks.
 * Threads  engine thread (OpenMP inside, elementwise: the same bits for any number of threads)
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_TRAIN_OPTIMIZER_H
#define GD_TRAIN_OPTIMIZER_H

#include "engine/train/spec.h"

/* Loshchilov & Hutter 2019, as PyTorch's AdamW: p -= lr wd p; m, v with decay beta1, beta2; p -= lr mhat / (sqrt(vhat) + eps).
 * gradients are multiplied by grad_scale first (clipping). step counts from 1. */
void gd_adamw(float *param, float *m, float *v, const float *grad, int64_t count, int64_t step, double learning_rate,
              double beta1, double beta2, double eps, double weight_decay, double grad_scale);

/* Rate of step 1..total: warm-up to the base rate over ceil(warmup_ratio total) steps, then constant, linear to 0, or
 * half a cosine to 0. */
double gd_learning_rate(const struct gd_job_spec *spec, int64_t step, int64_t total);

#endif
