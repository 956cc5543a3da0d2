/*
 * plan_internal.h - what a plan knows: where each value lies (plan.c) and what each step needs to run (plan_run.c).
 *
 * Why      Deciding where things live and running them are two ideas over the same tables.
 * Memory   The plan's.
 * Threads  engine thread
 * Errors   none of its own
 * Limits   none
 * Life     the plan's
 */
#ifndef GD_TENSOR_PLAN_INTERNAL_H
#define GD_TENSOR_PLAN_INTERNAL_H

#include "engine/tensor/backend.h"
#include "engine/tensor/layout.h"
#include "engine/tensor/plan.h"

struct slot {           /* what the plan knows of one value */
    int block;          /* of the arena; -1: lives outside */
    size_t offset;      /* in the block; of a part, in what it is a part of */
    int next;           /* another value that lies in the block, or has; -1: none */
    int last_direct;    /* the last step that reads it, not counting its parts; -1: none */
    int last_use;       /* counting them */
    bool is_output;
    void *bound;        /* by the caller: memory of the host or the device */
    void *address;      /* where kernels find what is bound; NULL: the device cannot reach it */
    size_t staged;      /* then of an input: where it waits to be copied there */
    void *read;         /* what gd_plan_read gave after the run */
    unsigned read_run;  /* with this number */
};

struct step {
    const struct gd_call *call;
    struct gd_backend_op op;
    gd_pair_fn pair;    /* runs this step and the next; NULL: this alone */
    bool paired;        /* runs with the step before */
    int scratch_block;  /* -1: none */
    size_t staged;      /* of what the kernel reads of handles; SIZE_MAX: nothing */
    size_t staged_bytes; /* of it */
    bool stages;        /* this step packs it; others share it */
    bool grouped;       /* some of its values have a group's rows */
    struct gd_kernel_args args;
};

struct gd_plan {
    struct gd_graph *graph;
    struct slot *slots;             /* [value_count] */
    int value_count;
    struct step *steps;
    int step_count;
    struct gd_block *blocks;        /* of the arena, offsets filled by gd_layout_blocks */
    int block_count;
    int *first_in_block;            /* values that lie in it, newest first */
    struct gd_slabs *slabs;         /* while blocks are assigned */
    size_t arena_bytes;
    struct gd_layout_cost layouts;
    char *arena;
    unsigned runs;
    bool dry, layout_is_old, args_are_old;
    bool grouped;                   /* the launches depend on the data */
    char *staged_host, *staged_device;
    size_t staged_bytes, staged_room;
    struct gd_recording *recording;
};

/* What a value is a part of, or NULL. */
static inline const struct gd_value *gd_plan_whole(const struct gd_value *value)
{
    return value->producer != NULL && value->producer->op->views ? value->producer->in[0] : NULL;
}

void gd_plan_refresh_layout(struct gd_plan *plan);
void gd_plan_forget(struct gd_plan *plan);        /* the recording of a device */
void gd_plan_free_staging(struct gd_plan *plan);

#endif
