/*
 * head.h - the product with the vocabulary over labelled rows, a chunk at a time (engine/tensor/ops/head_rows.h has the formulas).
 *
 * Why      Losses that are known before the product and those that come after it are one loop; [T, V] is never kept.
 * Memory   Scratch from the plan, gd_cuda_head_scratch bytes.
 * Threads  engine thread; launches on gd_cuda_stream()
 * Errors   launches; a label outside the vocabulary makes log p NaN, and so the loss
 * Limits   none
 * Life     none
 *
 * Which rows have labels is known on the device only. They are listed there, and as many chunks run as all rows would need:
 * chunks behind the last labelled row are products of zeros.
 */
#ifndef GD_CUDA_HEAD_H
#define GD_CUDA_HEAD_H

#include "cuda/map.h"

struct gd_cuda_head {
    const struct gd_kernel_args *args; /* inputs 0 h, 1 head, 2 labels; f[0] logit_scale, f[1] softcap */
    const char *name;
    const float *weights;              /* [T]; NULL without gradient */
    float sign;
    float *log_p, *collision;          /* [T] or NULL, 0 where no label */
    int32_t *argmax;                   /* [T] or NULL, -1 where no label */
    void *dh;                          /* [T, d]; NULL: not wanted */
    float *dtable;                     /* [V, d]; NULL: not wanted */
};

size_t gd_cuda_head_scratch(const struct gd_call *call, bool dh, bool dtable);
GD_MUST_CHECK bool gd_cuda_head_run(const struct gd_cuda_head *head, struct gd_error *err);

#endif
