/*
 * leaves.h - adds the gradients of a step's leaves in a fixed binary tree.
 *
 * Why      The sum does not depend on who computed which leaf, nor on how many did: accumulation, data parallelism and
 *          a resume on other devices give the same bits.
 * Memory   Owns log2(leaf_count) + 1 flat blocks, twins (device.h); gradients that are added are twins too.
 * Threads  engine thread
 * Errors   GD_NO_MEMORY; those of the device
 * Limits   leaf_count is a power of two
 * Life     init -> (begin, add micro-batches, end) for each leaf in order -> sum -> release.
 */
#ifndef GD_TRAIN_LEAVES_H
#define GD_TRAIN_LEAVES_H

#include "engine/base/error.h"
#include <stddef.h>
#include <stdint.h>

struct gd_leaves {
    int64_t count;       /* floats of a gradient */
    int leaf_count;
    int done;            /* leaves finished in this step */
    int depth;           /* blocks in use */
    float *block[10];    /* a stack of partial sums; block[depth] is the leaf being filled */
    int block_count;
};

GD_MUST_CHECK bool gd_leaves_init(struct gd_leaves *leaves, int64_t count, int leaf_count, struct gd_error *err);
void gd_leaves_release(struct gd_leaves *leaves);
void gd_leaves_begin_step(struct gd_leaves *leaves);
/* The next leaf starts at zero; one micro-batch of it; its end. */
GD_MUST_CHECK bool gd_leaves_begin(struct gd_leaves *leaves, struct gd_error *err);
GD_MUST_CHECK bool gd_leaves_add(struct gd_leaves *leaves, const float *grad, struct gd_error *err);
GD_MUST_CHECK bool gd_leaves_end(struct gd_leaves *leaves, struct gd_error *err);
float *gd_leaves_sum(struct gd_leaves *leaves);                   /* after leaf_count leaves; valid until the next step */
size_t gd_leaves_bytes(int64_t count, int leaf_count);

#endif
