/*
 * group.h - the grafts of several jobs in one graph, each on rows of its own.
 *
 * Why      Jobs on one base share its products: one pass over its weights for the rows of all.
 * Memory   Owns the members' training sites; borrows the grafts.
 * Threads  engine thread
 * Errors   through the graph
 * Limits   GD_SPLIT_MAX members
 * Life     gd_graft_group_sites -> graph -> gd_graft_training_bind for each member -> gd_graft_group_release after the plan.
 *
 * Row-wise results and gradients are, to the bit, those that each graft has alone on the same rows: the base's products, norms,
 * rotations and activations compute a row from that row alone (gemm.h says so of products), attention sees only the row's
 * segment, and what a graft adds is computed from its own rows as a batch of that many rows, with products that add to the
 * same sums in the same order (gd_split).
 */
#ifndef GD_ADAPTER_GROUP_H
#define GD_ADAPTER_GROUP_H

#include "engine/adapter/adapter.h"

struct gd_graft_group {
    struct gd_graft_training member[GD_SPLIT_MAX];
    int64_t rows[GD_SPLIT_MAX];  /* of each member's batch, one after the other */
    int count;
    struct gd_sites sites;
};

/* Whether it may be a member: its method says so (gd_adapter_method.shares_pass), and it makes no virtual rows. */
bool gd_graft_shares_pass(const struct gd_graft *graft);
/* Sites of a training pass. */
void gd_graft_group_sites(struct gd_graft_group *group, struct gd_graph *graph, const struct gd_graft *const *grafts,
                          const int64_t *rows, int count);
void gd_graft_group_release(struct gd_graft_group *group);

#endif
