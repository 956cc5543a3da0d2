#include "engine/adapter/group.h"

#include "engine/adapter/build.h"
#include "engine/tensor/ops.h"

#include <assert.h>
#include <string.h>

bool gd_graft_shares_pass(const struct gd_graft *graft)
{
    return graft->method->shares_pass && graft->virtual_rows.count == 0 && !graft->config.score;
}

static struct gd_value *member_linear(struct gd_graft_training *member, struct gd_graph *g, const struct gd_site *site,
                                      struct gd_value *x, struct gd_value *w, struct gd_value *bias, struct gd_value *y)
{
    int first = member->graft->site_param[site->index];
    if (first < 0)
        return y;
    member->base_x = x;
    member->base_y = y;
    struct gd_value *out = member->graft->method->linear(member, g, site, x, w, bias, member->params + first);
    member->base_x = member->base_y = NULL;
    return out;
}

static struct gd_value *group_linear(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                                     struct gd_value *w, struct gd_value *bias)
{
    struct gd_graft_group *group = context;
    struct gd_value *y = gd_site_linear_base(g, x, w, bias), *out[GD_SPLIT_MAX];
    bool touched = false;
    for (int k = 0; k < group->count; k++)
        touched |= group->member[k].graft->site_param[site->index] >= 0;
    if (!touched || y == NULL)
        return y;
    if (x->group != NULL)
        return gd_graph_fail(g, "'%s': rows that are sorted by expert are not a job's own", site->name);
    struct gd_value *xs = gd_split(g, x, group->rows, group->count), *ys = gd_split(g, y, group->rows, group->count);
    for (int k = 0; k < group->count; k++)
        out[k] = member_linear(&group->member[k], g, site, gd_value_output(xs, k), w, bias, gd_value_output(ys, k));
    return gd_join(g, out, group->rows, group->count);
}

void gd_graft_group_sites(struct gd_graft_group *group, struct gd_graph *graph, const struct gd_graft *const *grafts,
                          const int64_t *rows, int count)
{
    assert(count <= GD_SPLIT_MAX);
    memset(group, 0, sizeof(*group));
    group->count = count;
    for (int k = 0; k < count; k++) {
        assert(gd_graft_shares_pass(grafts[k]));
        group->rows[k] = rows[k];
        gd_graft_training_sites(&group->member[k], graph, grafts[k], true);
    }
    group->sites.context = group;
    group->sites.linear = group_linear;
}

void gd_graft_group_release(struct gd_graft_group *group)
{
    for (int k = 0; k < group->count; k++)
        gd_graft_training_release(&group->member[k]);
    memset(group, 0, sizeof(*group));
}
