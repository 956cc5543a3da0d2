/*
 * layout.h - offsets in one arena for blocks that live between two steps.
 *
 * Why      Blocks that never live together share memory; the peak is known before anything runs.
 * Memory   Writes into the caller's blocks.
 * Threads  Any; a pure function.
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_TENSOR_LAYOUT_H
#define GD_TENSOR_LAYOUT_H

#include <stddef.h>

#define GD_BLOCK_ALIGN 64

struct gd_block {
    size_t size_bytes;
    int first, last;     /* steps, both included */
    size_t offset;
};

/* Offsets at multiples of GD_BLOCK_ALIGN such that blocks that live at the same step do not overlap. Tries first fit by
 * size and by time and keeps the better, unless both need more than `limit_bytes`: then the blocks stay as they are.
 * *peak_bytes is set to the peak when the offsets were set. */
void gd_layout_blocks(struct gd_block *blocks, int count, size_t limit_bytes, size_t *peak_bytes);

#endif
