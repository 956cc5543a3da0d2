/*
 * wear.h - which rows of a mixed batch wear which graft, for wear_lowrank.
 *
 * Why      Requests of different grafts share one pass; the products are grouped by graft.
 * Memory   Borrowed by the kernel.
 * Threads  engine thread
 * Errors   none
 * Limits   none
 * Life     filled for each run
 */
#ifndef GD_TENSOR_WEAR_H
#define GD_TENSOR_WEAR_H

#include "engine/tensor/tensor.h"

struct gd_wear_lowrank {     /* one graft at one site */
    int rank;                /* 0: this graft does not touch the site */
    float scale;
    const float *a;          /* [rank, in] */
    const float *b;          /* [out, rank] */
};

struct gd_wear {
    int group_count;                         /* rows are sorted by graft */
    const int32_t *row_begin;                /* [group_count + 1] */
    const struct gd_wear_lowrank *const *sites; /* sites[group][site]; sites[group] NULL: base rows */
};

#endif
