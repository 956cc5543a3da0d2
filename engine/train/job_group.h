/*
 * job_group.h - jobs on one base that train side by side, their micro-batches in one pass.
 *
 * Why      Small batches leave the machine waiting for the base's weights; several jobs' rows fill it.
 * Memory   Owns what the common passes need; borrows the trainers.
 * Threads  engine thread
 * Errors   A job's own (its rows, its files, a stop) end that job alone. Where a pass cannot be made together (memory, or a
 *          processor whose products of more rows differ), its jobs have theirs one after the other.
 * Limits   GD_SPLIT_MAX jobs; GD_GROUP_TOKENS rows in a pass of several
 * Life     init -> add ... turn ... (jobs come and go between turns) -> release.
 *
 * A pass takes the micro-batch that each job is at. All else is the job's own and happens when the job comes to it: packing,
 * the step's divisor, gradient accumulation, clipping, optimiser, schedule, random numbers, evaluation, checkpoints, events.
 * So jobs differ in batch size, length, rank and steps, and each ends with the bits that it has when it trains alone.
 */
#ifndef GD_TRAIN_JOB_GROUP_H
#define GD_TRAIN_JOB_GROUP_H

#include "engine/train/group_pass.h"
#include "engine/train/trainer.h"

/* Above so many rows a pass keeps the machine busy by itself. */
#define GD_GROUP_TOKENS 2048

struct gd_job_group_observer {
    void *context;
    /* Between ops of a common pass: may serve requests, and asks the jobs' observers nothing; false: no job needs the pass any
     * more. NULL: always on. */
    bool (*between)(void *context);
    /* A job has left: done, or err. Its trainer is the caller's again. */
    void (*left)(void *context, struct gd_trainer *trainer, bool ok, const struct gd_error *err);
};

struct gd_job_group {
    struct gd_trainer *trainer[GD_SPLIT_MAX];
    int count;
    struct gd_group_passes passes;
    struct gd_job_group_observer observer;
    int most_tokens;             /* rows of a pass of several, as far as memory goes; 0: passes cannot be shared here */
    int64_t passes_made, jobs_passed; /* common passes so far, and jobs in them */
};

void gd_job_group_init(struct gd_job_group *group, const struct gd_job_group_observer *observer);
/* Whether a created trainer may train beside others at all; beside these (any may where there are none): that, room for one more,
 * the same base and dtype, and memory for the parameters, moments and gradients of all. */
bool gd_trainer_shares(const struct gd_trainer *trainer);
bool gd_job_group_takes(const struct gd_job_group *group, const struct gd_trainer *trainer);
void gd_job_group_add(struct gd_job_group *group, struct gd_trainer *trainer);
/* Gives activations back until the next turn: a job that may join needs memory. */
void gd_job_group_rest(struct gd_job_group *group);
/* Every job's next micro-batch has its pass, or the job leaves. */
void gd_job_group_turn(struct gd_job_group *group);
void gd_job_group_release(struct gd_job_group *group);

#endif
