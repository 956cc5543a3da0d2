/*
 * wear.h - grafts in the device's memory, and which row of a batch wears which.
 *
 * Why      A batch's rows find what they wear by one look-up each: kernels need neither groups nor their sizes.
 * Memory   One block for each adopted graft, freed by drop; what is staged is the plan's.
 * Threads  engine thread
 * Errors   GD_INTERNAL for parts that do not fit or were not adopted; GD_NO_MEMORY
 * Limits   GD_WEAR_RANK_MAX
 * Life     adopt -> batches that wear it -> drop
 *
 * For a norm of a batch in which rows wear grafts (k rows of it for each row of the batch):
 *
 *     const struct gd_wear_part *part = gd_worn(staged, row / k, site);
 *     const float *weight = part != NULL && part->norm != NULL ? part->norm : of the base;
 *
 * with GD_CUDA_STAGED_OP(rms_norm, run, NULL, staged_bytes, gd_cuda_wear_stage), where staged_bytes is gd_cuda_wear_bytes of the
 * batch's rows; gd_cuda_wear_staged_bytes takes the first input's.
 */
#ifndef GD_CUDA_WEAR_H
#define GD_CUDA_WEAR_H

#include "engine/tensor/op.h"
#include "engine/tensor/wear.h"

/* What a graft was when it was adopted before is forgotten. */
bool gd_cuda_wear_adopt(const struct gd_wear_part *sites, const struct gd_wear_shape *shapes, int count, struct gd_error *err);
void gd_cuda_wear_drop(const struct gd_wear_part *sites);
/* The sites of an adopted graft as kernels see them; NULL: it was not adopted. */
const struct gd_wear_part *gd_cuda_wear_find(const struct gd_wear_part *sites);

/* A gd_wear as staged: this, then room entries for each of the arrays. */
struct gd_cuda_wear {
    int64_t room;            /* rows that there may be */
    int64_t rows;            /* rows that there are; later ones are padding */
    const struct gd_wear_part *sites[];
    /* int32_t row_index[room], ids[room], positions[room]; */
};

size_t gd_cuda_wear_bytes(int64_t room);
/* The handle is the first input that is one. Without: nothing. */
size_t gd_cuda_wear_staged_bytes(const struct gd_kernel_args *args);
bool gd_cuda_wear_stage(const struct gd_kernel_args *args, void *out, struct gd_error *err);

#ifdef CU_FN
/* What a row wears at a site; NULL: nothing. */
CU_FN const struct gd_wear_part *gd_worn(const struct gd_cuda_wear *wear, int64_t row, int site)
{
    const struct gd_wear_part *sites = row >= 0 && row < wear->rows ? wear->sites[row] : nullptr;
    return sites != nullptr ? sites + site : nullptr;
}
#endif

#endif
