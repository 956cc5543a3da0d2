/*
 * slabs.h - memory for values that have a group's rows: one slab for all groups.
 *
 * Why      How many rows each expert gets is known only when the graph runs, but how many all get together is known
 *          before. So values that stand for the same thing in different groups lie in one block, each where its group
 *          begins, and no memory is planned for rows that cannot be.
 * Memory   Its own table; the blocks are the plan's.
 * Threads  engine thread
 * Errors   none
 * Limits   none
 * Life     create -> find ... -> destroy, inside gd_plan_create
 */
#ifndef GD_TENSOR_SLABS_H
#define GD_TENSOR_SLABS_H

#include "engine/tensor/graph_internal.h"

struct gd_slabs;
struct gd_slabs *gd_slabs_create(int value_count);
void gd_slabs_destroy(struct gd_slabs *slabs);

/* Where the number of the block of a value's slab is kept, -1 until it has one. The n-th value of a group that is output
 * `output` of an op shares its slab with the n-th such values of the other groups, if their rows are as long. */
int *gd_slabs_find(struct gd_slabs *slabs, const struct gd_value *value, int output);

size_t gd_slab_row_bytes(const struct gd_value *value); /* of what the value has for a row of its group */
size_t gd_slab_bytes(const struct gd_value *value); /* of the rows of all groups */

#endif
