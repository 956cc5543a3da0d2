#include "engine/tensor/layout.h"
#include "engine/base/alloc.h"
#include <stdlib.h>

static size_t round_up(size_t bytes)
{
    return (bytes + GD_BLOCK_ALIGN - 1) / GD_BLOCK_ALIGN * GD_BLOCK_ALIGN;
}

static int by_size(const void *a, const void *b)
{
    const struct gd_block *x = *(const struct gd_block *const *)a, *y = *(const struct gd_block *const *)b;
    if (x->size_bytes != y->size_bytes)
        return x->size_bytes > y->size_bytes ? -1 : 1;
    return x < y ? -1 : x > y; /* a total order: the same plan always gives the same layout */
}

/* Places `order` one by one at the lowest offset where it fits; `placed` is kept sorted by offset. */
static size_t first_fit(struct gd_block **order, struct gd_block **placed, int count)
{
    size_t peak = 0;
    for (int i = 0; i < count; i++) {
        struct gd_block *block = order[i];
        size_t at = 0;
        for (int j = 0; j < i; j++) {
            const struct gd_block *other = placed[j];
            if (other->last < block->first || other->first > block->last || other->size_bytes == 0)
                continue;
            if (block->size_bytes == 0 || at + block->size_bytes <= other->offset)
                break;
            size_t end = other->offset + round_up(other->size_bytes);
            if (end > at)
                at = end;
        }
        block->offset = at;
        int j = i;
        for (; j > 0 && placed[j - 1]->offset > at; j--)
            placed[j] = placed[j - 1];
        placed[j] = block;
        if (at + round_up(block->size_bytes) > peak)
            peak = at + round_up(block->size_bytes);
    }
    return peak;
}

void gd_layout_blocks(struct gd_block *blocks, int count, size_t limit_bytes, size_t *peak_bytes)
{
    struct gd_block **order = gd_alloc_array((size_t)count + 1, sizeof(struct gd_block *));
    struct gd_block **placed = gd_alloc_array((size_t)count + 1, sizeof(struct gd_block *));
    size_t *before = gd_alloc_array((size_t)count + 1, sizeof(size_t)), *timed = gd_alloc_array((size_t)count + 1, sizeof(size_t));
    for (int i = 0; i < count; i++) {
        order[i] = &blocks[i];
        before[i] = blocks[i].offset;
    }
    size_t time_peak = first_fit(order, placed, count);
    for (int i = 0; i < count; i++)
        timed[i] = blocks[i].offset;
    qsort(order, (size_t)count, sizeof(struct gd_block *), by_size);
    size_t size_peak = first_fit(order, placed, count);
    size_t peak = time_peak < size_peak ? time_peak : size_peak;
    if (peak > limit_bytes || time_peak < size_peak)
        for (int i = 0; i < count; i++)
            blocks[i].offset = peak > limit_bytes ? before[i] : timed[i];
    if (peak <= limit_bytes)
        *peak_bytes = peak;
    gd_free(timed);
    gd_free(before);
    gd_free(placed);
    gd_free(order);
}
