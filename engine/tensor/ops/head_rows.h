/*
 * head_rows.h - the product with the vocabulary over labelled rows only, a chunk of rows at a time:
 *     z = cap(logit_scale h W^T),  cap(z) = c tanh(z / c) with softcap c,  log p = z[label] - log sum exp z,
 *     and where a gradient is wanted  dh = W^T dz,  dz = sign weights[t] (softmax(z) - onehot(label)).
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
    struct gd_weight *head;        /* [V, d] */
    struct gd_weight *head_back;   /* NULL: no gradient */
    const int32_t *labels;         /* [T], -100 = none */
    const float *weights;          /* [T], NULL without gradient */
    float sign, logit_scale, softcap;
    float *log_p;                  /* [T], 0 where no label; or NULL */
    int32_t *argmax;               /* [T], -1 where no label; or NULL */
    float *collision;              /* [T]: log sum_v p(v)^2, 0 where no label; or NULL */
    void *dh;                      /* [T, d], with head_back */
    void *scratch;
};

/* Inputs 0 h, 1 head, 2 labels and f[0] logit_scale, f[1] softcap of a call. */
bool gd_head_rows_shape(struct gd_graph *graph, struct gd_call *call);
size_t gd_head_rows_scratch(const struct gd_value *h, const struct gd_value *head, bool wants_gradient);
GD_MUST_CHECK bool gd_head_rows_run(const struct gd_head_rows *rows, struct gd_error *err);

#endif
