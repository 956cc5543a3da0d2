#include "engine/tensor/slabs.h"
#include "engine/base/alloc.h"

struct slab {
    const struct gd_value *first; /* what it was made for */
    int output;
    int block;
    bool *taken;                  /* [groups] */
    struct slab *next;            /* in order of creation */
};

struct gd_slabs {
    int value_count;
    struct slab **of;             /* [value_count]: by the offsets of the groups */
};

struct gd_slabs *gd_slabs_create(int value_count)
{
    struct gd_slabs *slabs = gd_alloc(sizeof(*slabs));
    slabs->value_count = value_count;
    slabs->of = gd_alloc_array((size_t)value_count + 1, sizeof(struct slab *));
    return slabs;
}

void gd_slabs_destroy(struct gd_slabs *slabs)
{
    for (int i = 0; i < slabs->value_count; i++)
        for (struct slab *slab = slabs->of[i], *next; slab != NULL; slab = next) {
            next = slab->next;
            gd_free(slab->taken);
            gd_free(slab);
        }
    gd_free(slabs->of);
    gd_free(slabs);
}

size_t gd_slab_row_bytes(const struct gd_value *value)
{
    return value->group->rows_max > 0 ? gd_value_bytes(value) / (size_t)value->group->rows_max : 0;
}

size_t gd_slab_bytes(const struct gd_value *value)
{
    return gd_slab_row_bytes(value) * (size_t)value->group->order->shape[0];
}

int *gd_slabs_find(struct gd_slabs *slabs, const struct gd_value *value, int output)
{
    struct slab **at = &slabs->of[value->group->offsets->index];
    for (; *at != NULL; at = &(*at)->next) {
        struct slab *slab = *at;
        if (slab->first->producer->op == value->producer->op && slab->output == output && !slab->taken[value->group->index] &&
            gd_slab_row_bytes(slab->first) == gd_slab_row_bytes(value)) {
            slab->taken[value->group->index] = true;
            return &slab->block;
        }
    }
    struct slab *slab = gd_alloc(sizeof(*slab));
    *slab = (struct slab){.first = value, .output = output, .block = -1};
    slab->taken = gd_alloc_array((size_t)value->group->offsets->shape[0], sizeof(bool));
    slab->taken[value->group->index] = true;
    *at = slab;
    return &slab->block;
}
