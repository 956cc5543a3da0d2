/*
 * ops.h - building functions: each adds one call to the graph and returns its (first) output.
 *
 * Why      Model and objective code reads like the formula.
 * Memory   Values belong to the graph.
 * Threads  The graph's.
 * Errors   See graph.h: NULL in, NULL out.
 * Limits   none
 * Life     none
 *
 * T tokens (packed), d width, h heads, g key/value heads, dh head size, r rank, V vocabulary, S segments.
 * "act" is the graph's activation dtype.
 */
#ifndef GD_TENSOR_OPS_H
#define GD_TENSOR_OPS_H

#include "engine/tensor/activation.h"
#include "engine/tensor/graph.h"

/* table: weight [V, d]; ids: i32 [T], -1: a row of zeros -> act [T, d]. A trained table, f32, may stand for the weight. */
struct gd_value *gd_embed(struct gd_graph *g, struct gd_value *table, struct gd_value *ids);
/* The same with rows ids + offset: tables of positions. */
struct gd_value *gd_embed_from(struct gd_graph *g, struct gd_value *table, struct gd_value *ids, int offset);

/* x: act [T, in]; w: weight or param [out, in] -> act [T, out]. */
struct gd_value *gd_linear(struct gd_graph *g, struct gd_value *x, struct gd_value *w);
/* The same in f32 (logits); w: weight. Not differentiable. */
struct gd_value *gd_linear_f32(struct gd_graph *g, struct gd_value *x, struct gd_value *w);
/* y: act [T, out]; w: weight [out, in] -> act [T, in]: the backward of linear. */
struct gd_value *gd_linear_back(struct gd_graph *g, struct gd_value *y, struct gd_value *w);

/* x w^T + scale (x a^T) b^T, or c + that with w NULL: a frozen product and a low-rank one, whose rows pass through the cache
 * together. x: act [T, in]; w: weight [out, in]; a: f32 [r, in]; b: f32 [out, r]; c: act [T, out] or NULL. */
struct gd_value *gd_low_rank_linear(struct gd_graph *g, struct gd_value *x, struct gd_value *w, struct gd_value *a, struct gd_value *b,
                                    double scale, struct gd_value *c);

/* alpha * op(a) op(b) + c.  op(a): [M, K], op(b): [K, N], c: [M, N] or NULL; F32 or BF16 (params are f32 and are
 * converted when the other operand is bf16); out in out_dtype; sums in f32. */
struct gd_value *gd_matmul(struct gd_graph *g, struct gd_value *a, bool transpose_a, struct gd_value *b, bool transpose_b,
                           double alpha, struct gd_value *c, enum gd_dtype out_dtype);

struct gd_value *gd_add(struct gd_graph *g, struct gd_value *a, struct gd_value *b);       /* same shape */
struct gd_value *gd_mul(struct gd_graph *g, struct gd_value *a, struct gd_value *b);       /* same shape */
struct gd_value *gd_scale(struct gd_graph *g, struct gd_value *a, double factor);
struct gd_value *gd_mul_scalar(struct gd_graph *g, struct gd_value *a, struct gd_value *s);  /* a * s[0]; s: f32 [1] */
struct gd_value *gd_dot(struct gd_graph *g, struct gd_value *a, struct gd_value *b);       /* same shape -> f32 [1] */
struct gd_value *gd_add_row(struct gd_graph *g, struct gd_value *x, struct gd_value *b);   /* x [T,n] + b [n] (weight/param) */
struct gd_value *gd_mul_row(struct gd_graph *g, struct gd_value *x, struct gd_value *b);   /* x [T,n] * b f32 [n] (not a weight) */
struct gd_value *gd_sum_rows(struct gd_graph *g, struct gd_value *x);                      /* [T,n] -> f32 [n], fixed order */
struct gd_value *gd_spread_rows(struct gd_graph *g, struct gd_value *v, int64_t rows, enum gd_dtype dtype); /* f32 [n] -> [rows,n] */
struct gd_value *gd_cast(struct gd_graph *g, struct gd_value *x, enum gd_dtype dtype);
struct gd_value *gd_detach(struct gd_graph *g, struct gd_value *x);                        /* stop-gradient */

struct gd_value *gd_reshape(struct gd_graph *g, struct gd_value *x, int64_t rows, int64_t columns); /* columns 0: to a vector */

struct gd_value *gd_columns(struct gd_graph *g, struct gd_value *x, int64_t from, int64_t count); /* of [T,n]: [T,count] */

/* x: act [T, in] -> x D^T: act [T, out], D = scale (a1 b1) * (a2 b2) by element; a1, a2: f32 [out, r], b1, b2: f32 [r, in]. */
struct gd_value *gd_hadamard_linear(struct gd_graph *g, struct gd_value *x, struct gd_value *a1, struct gd_value *b1,
                                    struct gd_value *a2, struct gd_value *b2, double scale);

/* Rows of x as matrices [m, p], mixed: y[t][i] = sum_j w[i][j] x[t][j]; w: f32 [l, m], [m, l] transposed. [T, m p] -> [T, l p] */
struct gd_value *gd_mix_middle(struct gd_graph *g, struct gd_value *x, struct gd_value *w, bool transpose);
/* sum over t and p of a[t][i][p] b[t][j][p], f32 [rows, m]: the backward of mix_middle for w. a: [T, rows p], b: [T, m p] */
struct gd_value *gd_outer_middle(struct gd_graph *g, struct gd_value *a, struct gd_value *b, int64_t rows);

struct gd_value *gd_identity_distance(struct gd_graph *g, struct gd_value *x);             /* ||x - I||_F, f32 [n, n] -> [1] */

/* Rotations from skew-symmetric matrices (cayley.h): x f32 [n, size (size - 1) / 2] -> f32 [n size, size]. terms 0: exact. */
struct gd_value *gd_cayley_rotation(struct gd_graph *g, struct gd_value *x, int64_t size, int terms);
struct gd_value *gd_cayley_grad(struct gd_graph *g, struct gd_value *x, struct gd_value *dy, int64_t size, int terms);

/* Rows of x as n rows of b, each times its square of r f32 [n b, b], or times the one of r [b, b]; or times its transpose. */
struct gd_value *gd_block_rotate(struct gd_graph *g, struct gd_value *x, struct gd_value *r, bool transpose);
/* The backward of block_rotate for r: sums of outer products of parts of `size`; shared: of all parts. */
struct gd_value *gd_block_outer(struct gd_graph *g, struct gd_value *a, struct gd_value *b, int64_t size, bool shared);

/* m[o] / ||w[o] + scale b[o] a||, 0 for a row of zeros; w: weight [out, in], b: f32 [out, r], a: f32 [r, in], m: f32 [out] ->
 * f32 [out]. Differentiable in m; the norm counts as a constant. */
struct gd_value *gd_row_norm_ratio(struct gd_graph *g, struct gd_value *w, struct gd_value *b, struct gd_value *a, double scale,
                                   struct gd_value *m);

/* x: act [T, n], w: weight/param [n] -> x / sqrt(mean(x^2) + eps) * (w + offset), statistics in f32 (Zhang & Sennrich 2019).
 * w may be [n/h]: each of the h parts of a row is then normalised on its own. Output 1: 1/rms, f32 [T h]. */
struct gd_value *gd_rms_norm(struct gd_graph *g, struct gd_value *x, struct gd_value *w, double eps, double offset);
/* Serving: the same with the weight of each row's graft at `site` where it has one (wear.h); wear: handle. */
struct gd_value *gd_rms_norm_worn(struct gd_graph *g, struct gd_value *x, struct gd_value *w, double eps, double offset,
                                  struct gd_value *wear, int site);

/* (x - mean(x)) / sqrt(var(x) + eps) * w + b, statistics in f32 (Ba et al. 2016). x: act [T, n]; w, b: weight/param [n]; b may be
 * NULL. Outputs 1, 2: mean and 1/deviation, f32 [T]. */
struct gd_value *gd_layer_norm(struct gd_graph *g, struct gd_value *x, struct gd_value *w, struct gd_value *b, double eps);
/* Serving: the same with weight and bias of each row's graft at `site` where it has them. */
struct gd_value *gd_layer_norm_worn(struct gd_graph *g, struct gd_value *x, struct gd_value *w, struct gd_value *b, double eps,
                                    struct gd_value *wear, int site);

struct gd_rope_options {
    int head_dim, rotary_dim; /* rotary_dim <= head_dim dimensions are rotated, the rest passes */
    int table;                /* rows go by this table of inv_freq, those at positions with GD_POSITION_LONG by the next */
    double attention_factor;  /* multiplies what is rotated */
};
/* Half-split rotation (Su et al. 2021) of x: act [T, heads*dh] by positions i32 [T] and inv_freq f32 [tables * rotary_dim/2].
 * sign -1 rotates back (the gradient). */
struct gd_value *gd_rope(struct gd_graph *g, struct gd_value *x, struct gd_value *positions, struct gd_value *inv_freq,
                         const struct gd_rope_options *options, int sign);

struct gd_attention_options {
    int heads, kv_heads, head_dim;
    int window;          /* 0: all keys; w: keys i-w+1..i, and to i+w-1 where bidirectional */
    bool bidirectional;  /* rows see the later rows of their segment too */
    double scale;        /* of the scores */
    double softcap;      /* 0: none; c: scores become c tanh(s / c) before they are masked */
    struct gd_value *bias;           /* weight or param f32 [buckets, heads], added to scores by the bucket of their distance
                                        (attention_bias.h), or NULL */
    int bias_distance;               /* from where on all distances share a bucket */
    struct gd_value *key_cu_seqlens; /* i32 [S+1]: cross attention: rows of segment s see these rows of k and v; or NULL */
};

/* Attention over packed segments. q: act [T, h*dh], k, v: act [T, g*dh] (cross: as many rows as there are keys),
 * cu_seqlens: i32 [S+1] (entries after the last segment repeat T_used; rows >= T_used give 0).
 * prefix: i32 [2S], or NULL: rows of the batch, before the segment, that it continues: its rows see them too, and the window
 * counts as if they stood right before it (attention_blocks.h). Softmax in f32, online.
 * Output 0: act [T, h*dh]; output 1: log-sum-exp f32 [T, h] (kept for the backward pass). */
struct gd_value *gd_attention(struct gd_graph *g, struct gd_value *q, struct gd_value *k, struct gd_value *v,
                              struct gd_value *cu_seqlens, struct gd_value *prefix, const struct gd_attention_options *options);

/* The same for inference, causal: first stores this batch's k and v rows in the cache pages, then lets every query row see
 * its sequence's past and its own earlier rows. cache: handle of struct gd_kv_batch (kv.h). k and v NULL: cross attention,
 * every row sees all of its sequence's past, and nothing is stored. */
struct gd_value *gd_attention_cached(struct gd_graph *g, struct gd_value *q, struct gd_value *k, struct gd_value *v,
                                     struct gd_value *cache, int layer, const struct gd_attention_options *options);

struct gd_value *gd_swiglu(struct gd_graph *g, struct gd_value *gate, struct gd_value *up); /* silu(gate) * up */

struct gd_value *gd_softmax(struct gd_graph *g, struct gd_value *x);                       /* f32 [T,n], each row */
struct gd_value *gd_activation(struct gd_graph *g, struct gd_value *x, enum gd_activation kind); /* by element */

/* x * mask / (1-p), mask from Philox (key i32 [4] = seed lo, seed hi, step, leaf) at counter (site, element). p = 0: x. */
struct gd_value *gd_dropout(struct gd_graph *g, struct gd_value *x, struct gd_value *key, double p, int site);

/* x: act [T, in] times a matrix of its segment's own, mixed of factors (ops/mix.h): f: f32, skills of them for each of
 * `splits` parts of the inputs or outputs; w: f32 [S, splits * skills]; cu_seqlens: i32 [S+1] -> act [T, out]. */
struct gd_value *gd_mix_linear(struct gd_graph *g, struct gd_value *x, struct gd_value *f, struct gd_value *w,
                               struct gd_value *cu_seqlens, int splits, int skills, bool by_output);
/* Mixing weights from logits z: f32 [S, splits * skills]. A key (as dropout's) adds noise, the same to segments of one
 * owner: i32 [S] (ops/route.h). */
struct gd_value *gd_route(struct gd_graph *g, struct gd_value *z, struct gd_value *key, struct gd_value *owner, int splits,
                          int skills, int site);

/* Parts of x by rows, at most GD_SPLIT_MAX, as outputs 0, 1, ... that lie in x's own memory; rows add up to x's. The
 * gradient of a part goes on from what x has so far: products that add to it give the bits that they give where there is one
 * part. join: the way back; an absent part (NULL) is zeros. */
struct gd_value *gd_split(struct gd_graph *g, struct gd_value *x, const int64_t *rows, int count);
struct gd_value *gd_join(struct gd_graph *g, struct gd_value *const *parts, const int64_t *rows, int count);
/* Mixture of experts. Logits act [T, E] -> output 0: weights of the `chosen` largest, f32 [T, chosen], which sum to 1; 1: the
 * choice, i32 [T, chosen]; 2: all probabilities, f32 [T, E]. Equal logits: the lower expert first. */
struct gd_value *gd_expert_route(struct gd_graph *g, struct gd_value *logits, int chosen);
/* Which rows go to which expert (ops/experts.h): offsets i32 [E + 1]; output 1: order. used: cu_seqlens or the cache's handle;
 * rows behind the last segment go nowhere. */
struct gd_value *gd_expert_dispatch(struct gd_graph *g, struct gd_value *choice, struct gd_value *used, int experts);
/* The rows of x: act [T, d] that go to an expert, a group (graph.h); weights: f32 [T, slots] of them, or NULL. */
struct gd_value *gd_expert_rows(struct gd_graph *g, struct gd_value *x, struct gd_value *offsets, int expert, int slots,
                                struct gd_value *weights);
/* c + the rows x of an expert, times their weights (or NULL: 1), where they came from: act [rows, d]. c: the same, or NULL. */
struct gd_value *gd_expert_sum(struct gd_graph *g, struct gd_value *x, struct gd_value *weights, struct gd_value *c, int64_t rows);
/* Rows of each expert, and sums of its probabilities: f32 [2, E]. Layers' loads are added up. */
struct gd_value *gd_expert_load(struct gd_graph *g, struct gd_value *probabilities, struct gd_value *choice, struct gd_value *used);
/* The load-balancing loss, f32 [1]. */
struct gd_value *gd_expert_balance(struct gd_graph *g, struct gd_value *load, int chosen);

/* x + by: i32 [n]. */
struct gd_value *gd_shift(struct gd_graph *g, struct gd_value *x, int by);

/* Rows x[index[i]]; index: i32 [n]; a negative index gives a zero row. -> [n, d] */
struct gd_value *gd_gather_rows(struct gd_graph *g, struct gd_value *x, struct gd_value *index);

/* c + x S^T for a sparse S [out, in] of values f32 [n] at rows and columns, i32 [n]. x: act [T, in]; c: act [T, out] or NULL. */
struct gd_value *gd_sparse_linear(struct gd_graph *g, struct gd_value *x, struct gd_value *values, struct gd_value *rows,
                                  struct gd_value *columns, int64_t out, struct gd_value *c);
/* d values of sparse_linear: sum_t dy[t, rows[i]] x[t, columns[i]] -> f32 [n]. */
struct gd_value *gd_sparse_grad(struct gd_graph *g, struct gd_value *dy, struct gd_value *x, struct gd_value *rows,
                                struct gd_value *columns);
/* y[places[i]] += values[i], from zeros: f32 [n], i32 [n] -> f32 [length]. gd_pick: the way back, y[i] = x[places[i]]. */
struct gd_value *gd_scatter(struct gd_graph *g, struct gd_value *values, struct gd_value *places, int64_t length);
struct gd_value *gd_pick(struct gd_graph *g, struct gd_value *x, struct gd_value *places);

/* The head and the loss over labelled rows only, in chunks; the [T, V] logits never exist.
 * h: act [T, d]; w: weight, or f32 where the head is trained, [V, d]; labels: i32 [T] (already shifted: labels[t] is the token to predict from row t;
 * -100 = none); weights: f32 [T]. logit_scale multiplies, softcap 0 = none.
 * Output 0: sum_t weights[t] * -log p(labels[t]), f32 [1]. Output 1: log p per row f32 [T] (0 where none).
 * Output 2: argmax id per row i32 [T] (-1 where none). Output 3: d loss / d h for a loss gradient of 1, act [T, d]
 * (made in the forward pass when h needs a gradient, else shape [0]). Output 4: the same for a trained w, f32 [V, d]. */
struct gd_value *gd_cross_entropy(struct gd_graph *g, struct gd_value *h, struct gd_value *w, struct gd_value *labels,
                                  struct gd_value *weights, double logit_scale, double softcap);

/* Output 0 of the rows that are given, from their labels, weights and output 1. */
float gd_cross_entropy_loss(const int32_t *labels, const float *weights, const float *log_p, int64_t rows);

/* log p(labels[t]) of each row, for losses whose weights are known only afterwards; inputs as above.
 * Output 0: f32 [T] (0 where no label), differentiable in h and a trained w by making the logits again. Output 1: argmax, i32 [T]. Output 2:
 * log sum_v p(v)^2, f32 [T]. */
struct gd_value *gd_token_logprob(struct gd_graph *g, struct gd_value *h, struct gd_value *w, struct gd_value *labels,
                                  double logit_scale, double softcap);
/* dlogprob: f32 [T] -> dh: act [T, d], and as output 1 dw: f32 [V, d] for a trained w: the backward of token_logprob. */
struct gd_value *gd_token_logprob_grad(struct gd_graph *g, struct gd_value *h, struct gd_value *w, struct gd_value *labels,
                                       struct gd_value *dlogprob, double logit_scale, double softcap);

/* y[s] = sum_t weights[t] x[t] over each segment and its prefix (as of attention; or NULL); x, weights: f32 [T],
 * cu_seqlens: i32 [S+1] -> f32 [S]. */
struct gd_value *gd_segment_sum(struct gd_graph *g, struct gd_value *x, struct gd_value *weights, struct gd_value *cu_seqlens,
                                struct gd_value *prefix);
/* y[t] = weights[t] times the sum of v over the segments that row t belongs to, v: f32 [S] -> f32 [T]: the backward of segment_sum. */
struct gd_value *gd_segment_spread(struct gd_graph *g, struct gd_value *v, struct gd_value *weights, struct gd_value *cu_seqlens,
                                   struct gd_value *prefix);

/* A loss of the numbers x: f32 [N] -> loss f32 [1], gradient with respect to x as output 1, f32 [N]. aside: f32 [N] or NULL,
 * numbers that the loss may look at. `loss`: handle of a struct gd_segment_loss. */
struct gd_segment_loss {
    void *context;
    double (*evaluate)(void *context, const float *x, const float *aside, int64_t count, float *gradient);
};
struct gd_value *gd_segment_loss(struct gd_graph *g, struct gd_value *x, struct gd_value *aside, struct gd_value *loss);

/* Serving: what each row's graft does at `site` (wear.h) to x before the base's product, and to y after it.
 * x: act [T, in], y: act [T, out], wear: handle. */
struct gd_value *gd_wear_input(struct gd_graph *g, struct gd_value *x, struct gd_value *wear, int site);
/* At the embedded tokens: x act [T, width]. */
struct gd_value *gd_wear_rows(struct gd_graph *g, struct gd_value *x, struct gd_value *wear, int site);
struct gd_value *gd_wear(struct gd_graph *g, struct gd_value *y, struct gd_value *x, struct gd_value *wear, int site);

#endif
