#include "engine/train/leaves.h"

#include "engine/base/alloc.h"
#include "engine/tensor/device.h"

#include <assert.h>
#include <string.h>

static int blocks_for(int leaf_count)
{
    int blocks = 1;
    while ((1 << (blocks - 1)) < leaf_count)
        blocks++;
    return blocks;
}

size_t gd_leaves_bytes(int64_t count, int leaf_count)
{
    return (size_t)blocks_for(leaf_count) * (size_t)count * sizeof(float);
}

bool gd_leaves_init(struct gd_leaves *leaves, int64_t count, int leaf_count, struct gd_error *err)
{
    memset(leaves, 0, sizeof(*leaves));
    leaves->count = count;
    leaves->leaf_count = leaf_count;
    int blocks = blocks_for(leaf_count);
    assert(blocks <= (int)GD_COUNT(leaves->block));
    for (int i = 0; i < blocks; i++) {
        void *memory = NULL;
        if (!gd_twin_alloc(&memory, (size_t)count * sizeof(float), "gradients", err)) {
            gd_leaves_release(leaves);
            return false;
        }
        leaves->block[leaves->block_count++] = memory;
    }
    return true;
}

void gd_leaves_release(struct gd_leaves *leaves)
{
    for (int i = 0; i < leaves->block_count; i++)
        gd_twin_free(leaves->block[i], (size_t)leaves->count * sizeof(float));
    memset(leaves, 0, sizeof(*leaves));
}

void gd_leaves_begin_step(struct gd_leaves *leaves)
{
    leaves->done = 0;
    leaves->depth = 0;
}

bool gd_leaves_begin(struct gd_leaves *leaves, struct gd_error *err)
{
    assert(leaves->done < leaves->leaf_count && leaves->depth < leaves->block_count);
    return gd_vector_zero(leaves->block[leaves->depth], leaves->count, err);
}

bool gd_leaves_add(struct gd_leaves *leaves, const float *grad, struct gd_error *err)
{
    return gd_vector_add(leaves->block[leaves->depth], grad, leaves->count, err);
}

/* Like a binary counter: a finished leaf is added to its sibling, that pair to its sibling, and so on. */
bool gd_leaves_end(struct gd_leaves *leaves, struct gd_error *err)
{
    leaves->done++;
    int top = leaves->depth;
    bool ok = true;
    for (int pairs = leaves->done; ok && (pairs & 1) == 0; pairs >>= 1) {
        ok = gd_vector_add(leaves->block[top - 1], leaves->block[top], leaves->count, err);
        top--;
    }
    leaves->depth = top + 1;
    return ok;
}

float *gd_leaves_sum(struct gd_leaves *leaves)
{
    assert(leaves->done == leaves->leaf_count && leaves->depth == 1);
    return leaves->block[0];
}
