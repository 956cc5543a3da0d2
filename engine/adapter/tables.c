/* tables.c - small tables in serving (token types, what attention adds for a distance): too few numbers to be worn row by row, so that
 * a graph takes them whole, those of the base or of one graft. */
#include "engine/adapter/adapter.h"

#include "engine/base/alloc.h"
#include "engine/tensor/plan.h"

#include <assert.h>
#include <string.h>

struct gd_value *gd_graft_tables_value(struct gd_graft_tables *tables, struct gd_graph *graph, const struct gd_site *site)
{
    for (int i = 0; i < tables->count; i++)
        if (tables->table[i].site == site)
            return tables->table[i].value;
    assert(tables->count < GD_GRAFT_TABLES_MAX);
    struct gd_value *value = gd_graph_input(graph, site->name, GD_F32, 2, (int64_t[]){site->out, site->in});
    tables->table[tables->count].site = site;
    tables->table[tables->count++].value = value;
    return value;
}

void gd_graft_tables_bind(struct gd_graft_tables *tables, struct gd_plan *plan)
{
    for (int i = 0; i < tables->count; i++) {
        const struct gd_site *site = tables->table[i].site;
        tables->table[i].data = gd_alloc_array((size_t)site->out * (size_t)site->in, sizeof(float));
        gd_plan_bind(plan, tables->table[i].value, tables->table[i].data);
    }
}

void gd_graft_tables_fill(const struct gd_graft_tables *tables, const struct gd_model *model, const struct gd_wear_part *wear)
{
    for (int i = 0; i < tables->count; i++) {
        const struct gd_site *site = tables->table[i].site;
        const float *delta = wear != NULL ? wear[gd_slot_of(model, site)].delta : NULL;
        float *data = tables->table[i].data;
        gd_weight_to_f32(site->weight, data);
        for (int64_t k = 0; delta != NULL && k < (int64_t)site->out * site->in; k++)
            data[k] += delta[k];
    }
}

void gd_graft_tables_release(struct gd_graft_tables *tables)
{
    for (int i = 0; i < tables->count; i++)
        gd_free(tables->table[i].data);
    memset(tables, 0, sizeof(*tables));
}

const void *gd_graft_tables_key(const struct gd_graft *graft)
{
    const struct gd_site *sites;
    int count = graft != NULL ? gd_model_table_sites(graft->model, &sites) : 0;
    for (int i = 0; i < count; i++)
        if (sites[i].small && graft->wear[gd_slot_of(graft->model, &sites[i])].delta != NULL)
            return graft;
    return NULL;
}
