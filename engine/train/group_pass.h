/*
 * group_pass.h - micro-batches of several jobs, forward and backward in one pass over their base.
 *
 * Why      What a small micro-batch waits for is the base's weights: four jobs that read them together wait once.
 * Memory   Owns graphs, plans and an arena. Borrows the jobs' passes and batches.
 * Threads  engine thread
 * Errors   those of passes.h; one of a pass is no job's own. GD_UNSUPPORTED where a row's products depend on the rows beside it
 *          (tensor/rows_alone.h), which is looked at when a pass is made.
 * Limits   GD_SPLIT_MAX jobs; GD_GROUP_PASSES_MAX passes are kept, the longest unused one makes room
 * Life     init -> run ... (forget a job before its passes are released) -> release.
 *
 * Each job's rows stand beside the others', padding and all, as they would be alone; a job's padding is a segment of its own
 * here, which nothing reads. The result, and what is written to passes->grad, are bit for bit those of gd_passes_run
 * (adapter/group.h).
 */
#ifndef GD_TRAIN_GROUP_PASS_H
#define GD_TRAIN_GROUP_PASS_H

#include "engine/train/passes.h"

#define GD_GROUP_PASSES_MAX 32

/* One job's micro-batch, and what came of it. */
struct gd_group_part {
    struct gd_passes *passes;    /* its graft, parameters, gradient */
    struct gd_batch *batch;
    double scale;                /* as of gd_passes_run */
    int32_t *dropout_key;
    struct gd_pass_result result;
};

struct gd_group_pass;
struct gd_group_passes {
    struct gd_group_pass *pass[GD_GROUP_PASSES_MAX]; /* newest use first */
    int pass_count;
    struct gd_device_block arena;
    bool head_checked;           /* its products stand alone */
};

/* Whether a job's training passes may be made together with others': what its graft does (adapter/group.h), that its loss is a sum over tokens, and that
 * no rows go to experts, where jobs' rows would mix. */
bool gd_passes_share(const struct gd_passes *passes);
/* Whether these two may be in one pass: same base, same dtype. */
bool gd_passes_alike(const struct gd_passes *one, const struct gd_passes *other);

void gd_group_passes_init(struct gd_group_passes *group);
/* arena_limit: more is GD_NO_MEMORY. */
GD_MUST_CHECK bool gd_group_passes_run(struct gd_group_passes *group, struct gd_group_part *parts, int count, size_t arena_limit,
                                       const struct gd_run_options *options, struct gd_error *err);
void gd_group_passes_forget(struct gd_group_passes *group, const struct gd_passes *passes);
/* Gives the arena back until the next run. */
void gd_group_passes_rest(struct gd_group_passes *group);
void gd_group_passes_release(struct gd_group_passes *group);

#endif
