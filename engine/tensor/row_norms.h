/*
 * row_norms.h - the lengths of the rows of a frozen matrix to which a product of thin ones is added.
 *
 * Why      Training and serving of adapters with magnitudes need the same numbers, and the sum need never exist whole.
 * Memory   scratch: a row for each thread, of the caller
 * Threads  engine thread; rows are split over a team
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_TENSOR_ROW_NORMS_H
#define GD_TENSOR_ROW_NORMS_H

#include "engine/tensor/weight.h"

static inline size_t gd_row_norms_scratch_bytes(int64_t in, int threads)
{
    return 2 * (size_t)in * (size_t)threads * sizeof(float);
}

/* out[o] = ||w[o] + scale b[o] a||; w: weight [out, in], b: [out, rank], a: [rank, in]. scratch: gd_row_norms_scratch_bytes
 * of the team's size. */
void gd_row_norms(const struct gd_weight *w, const float *b, const float *a, int64_t rank, float scale, float *out,
                  float *scratch);

#endif
