/*
 * head_rows.h - the product with the vocabulary over labelled rows only, a chunk of rows at a time:
 *     z = cap(logit_scale h W^T),  cap(z) = c tanh(z / c) with softcap c,  log p = z[label] - log sum exp z,
 *     and where a gradient is wanted  dh = W^T dz,  dW = dz^T h,  dz = sign weights[t] (softmax(z) - onehot(label)).
 *
 * Why      Losses that are known before the product (cross_entropy) and those that come after it (token_logprob) are
 *          one loop; [T, V] is never kept (Wijmans et al. 2024 and Liger do the same).
 * Memory   Scratch from the plan, gd_head_rows_scratch bytes.
 * Threads  the graph's
 * Errors   GD_INTERNAL for a label outside the vocabulary
 * Limits   none
 * Life     none
 */
#ifndef GD_TENSOR_OPS_HEAD_ROWS_H
#define GD_TENSOR_OPS_HEAD_ROWS_H

#include "engine/tensor/ops/elementwise.h"
#include "engine/tensor/ops/sigmoid.h"

struct gd_head_rows {
    const char *name;              /* of the op, for errors */
    const struct gd_tensor *h;     /* [T, d] */
    int64_t vocab;                 /* V */
    struct gd_weight *head;        /* [V, d], frozen: laid out forward, and backward where dh is wanted */
    const float *table;            /* [V, d], a trained head; NULL: frozen */
    const int32_t *labels;         /* [T], -100 = none */
    const float *weights;          /* [T]; NULL without gradient */
    float sign, logit_scale, softcap;
    float *log_p;                  /* [T], 0 where no label; or NULL */
    int32_t *argmax;               /* [T], -1 where no label; or NULL */
    float *collision;              /* [T]: log sum_v p(v)^2, 0 where no label; or NULL */
    void *dh;                      /* [T, d]; NULL: not wanted */
    float *dtable;                 /* [V, d]; NULL: not wanted */
    void *scratch;
};

/* Inputs 0 h, 1 head, 2 labels and f[0] logit_scale, f[1] softcap of a call. */
bool gd_head_rows_shape(struct gd_graph *graph, struct gd_call *call);
/* A gradient for `of` as an output: [0] unless anybody wants it. */
void gd_head_rows_shape_gradient(struct gd_value *out, const struct gd_value *of);
/* The gradients that the call will ask for. */
size_t gd_head_rows_scratch(const struct gd_value *h, const struct gd_value *head, bool dh, bool dtable);
/* h and head of a call as the op was given them. */
void gd_head_rows_take(struct gd_head_rows *rows, const struct gd_kernel_args *args);
GD_MUST_CHECK bool gd_head_rows_run(const struct gd_head_rows *rows, struct gd_error *err);

#endif
