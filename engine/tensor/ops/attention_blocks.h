/*
 * attention_blocks.h - packed segments cut into blocks of GD_TILE rows, and what both directions of attention check.
 *
 * Why      The forward and the backward pass split the work alike.
 * Memory   Blocks of the op's scratch.
 * Threads  none
 * Errors   GD_INTERNAL for offsets that do not rise or leave the batch, prefixes that are not before their segment.
 * Limits   none
 * Life     one run
 *
 * Parameters of the ops: i[0] heads, i[1] kv heads, i[2] head size, i[3] window, i[5] bidirectional, i[6] buckets and i[7]
 * largest distance of a position bias (attention_bias.h); f[0] scale, f[1] softcap.
 *
 * A segment may continue a prefix: rows [prefix[2s], prefix[2s + 1]) of the batch, before the segment's own. Its rows see
 * the prefix and themselves, as if the prefix stood right before them; the window counts so too. Equal ends: no prefix.
 * Cross attention: rows of segment s see segment s of other rows, the keys, and none of their own. A block's prefix is then
 * that segment of keys.
 */
#ifndef GD_TENSOR_OPS_ATTENTION_BLOCKS_H
#define GD_TENSOR_OPS_ATTENTION_BLOCKS_H

#include "engine/tensor/ops.h"
#include "engine/tensor/ops/lanes.h"
#include <inttypes.h>
#include <math.h>

struct gd_attention_block {
    int32_t begin, end;                   /* rows of the batch */
    int32_t segment_begin, segment_end;
    int32_t prefix_begin, prefix_end;     /* of the segment */
};

struct gd_attention_sizes {
    int64_t rows, key_rows, segments;     /* T, T or that of the keys, S */
    bool cross;
    int heads, kv_heads, group, head_dim;
    int32_t window;
    bool bidirectional;
    int buckets, max_distance;            /* buckets 0: no position bias */
    double scale, softcap;
    bool bf16;
};

/* key_rows: as many as rows unless attention is cross. */
static inline struct gd_attention_sizes gd_attention_sizes(const struct gd_op_params *params, enum gd_dtype dtype,
                                                           int64_t rows, int64_t key_rows, int64_t segments, bool cross)
{
    return (struct gd_attention_sizes){
        .rows = rows, .key_rows = key_rows, .segments = segments, .cross = cross, .heads = (int)params->i[0], .kv_heads = (int)params->i[1],
        .group = (int)(params->i[0] / params->i[1]), .head_dim = (int)params->i[2], .window = (int32_t)params->i[3],
        .bidirectional = params->i[5] != 0, .buckets = (int)params->i[6], .max_distance = (int)params->i[7], .scale = params->f[0], .softcap = params->f[1], .bf16 = dtype == GD_BF16,
    };
}

static inline struct gd_op_params gd_attention_params(const struct gd_attention_options *o, int layer)
{
    int64_t buckets = o->bias != NULL && o->bias->rank == 2 ? o->bias->shape[0] : 0;
    return (struct gd_op_params){.i = {o->heads, o->kv_heads, o->head_dim, o->window, layer, o->bidirectional, buckets,
                                       buckets > 0 ? o->bias_distance : 0},
                                 .f = {o->scale, o->softcap}};
}

static inline int64_t gd_attention_blocks_max(int64_t rows, int64_t segments)
{
    return rows / GD_TILE + segments + 1;
}

/* blocks, order and bins for gd_order_by_cost */
static inline size_t gd_attention_blocks_bytes(int64_t rows, int64_t segments)
{
    size_t count = (size_t)gd_attention_blocks_max(rows, segments);
    return (size_t)gd_round_up((int64_t)(count * (sizeof(struct gd_attention_block) + 3 * sizeof(int32_t)) + 64), 64);
}

static inline bool gd_attention_check_rise(const int32_t *cu, int64_t s, int64_t rows, struct gd_error *err)
{
    if (cu[s] >= 0 && cu[s + 1] >= cu[s] && cu[s + 1] <= rows)
        return true;
    return gd_fail(err, GD_INTERNAL, "cu_seqlens[%" PRId64 "] = %d and [%" PRId64 "] = %d: offsets must rise and stay within %" PRId64
                   " rows", s, cu[s], s + 1, cu[s + 1], rows);
}

/* prefix: [2 segments] or NULL; key_cu: offsets of the keys of cross attention, or NULL. */
static inline bool gd_attention_split(struct gd_attention_block *blocks, int *count, const int32_t *cu, const int32_t *prefix,
                                      const int32_t *key_cu, int64_t segments, int64_t rows, int64_t key_rows, struct gd_error *err)
{
    *count = 0;
    for (int64_t s = 0; s < segments; s++) {
        if (!gd_attention_check_rise(cu, s, rows, err) || (key_cu != NULL && !gd_attention_check_rise(key_cu, s, key_rows, err)))
            return false;
        int32_t first = prefix != NULL ? prefix[2 * s] : 0, last = prefix != NULL ? prefix[2 * s + 1] : 0;
        if (key_cu != NULL) {
            first = key_cu[s];
            last = key_cu[s + 1];
        } else if (first < 0 || last < first || last > cu[s])
            return gd_fail(err, GD_INTERNAL, "segment %" PRId64 " begins at row %d and has the rows %d to %d as its prefix: they "
                           "must lie before it", s, cu[s], first, last);
        for (int32_t begin = cu[s]; begin < cu[s + 1]; begin += GD_TILE) {
            int32_t end = begin + GD_TILE < cu[s + 1] ? begin + GD_TILE : cu[s + 1];
            blocks[(*count)++] = (struct gd_attention_block){begin, end, cu[s], cu[s + 1], first, last};
        }
    }
    if (segments > 0 && cu[0] != 0)
        return gd_fail(err, GD_INTERNAL, "cu_seqlens[0] is %d, must be 0", cu[0]);
    return true;
}

/* First key (batch row) of its own segment that row `row` sees. */
static inline int32_t gd_attention_first_key(int32_t row, int32_t segment_begin, int32_t window)
{
    return window > 0 && row - window + 1 > segment_begin ? row - window + 1 : segment_begin;
}

/* Behind the last key of its own segment that row `row` sees. */
static inline int32_t gd_attention_end_key(const struct gd_attention_sizes *n, int32_t row, int32_t segment_end)
{
    if (!n->bidirectional)
        return row + 1;
    return n->window > 0 && segment_end - row > n->window ? row + n->window : segment_end;
}

/* First key of its segment's prefix that row `row` sees; prefix_end: none. */
static inline int32_t gd_attention_first_prefix_key(const struct gd_attention_block *block, int32_t row, int32_t window)
{
    int64_t from = (int64_t)block->prefix_end + row - block->segment_begin - window + 1;
    if (window == 0 || from < block->prefix_begin)
        return block->prefix_begin;
    return from < block->prefix_end ? (int32_t)from : block->prefix_end;
}

/* Checks q, k, v (NULL: they are in a cache) and the parameters; `what` names the op. */
static inline bool gd_attention_check(struct gd_graph *graph, const char *what, const struct gd_value *q,
                                      const struct gd_value *k, const struct gd_value *v, const struct gd_op_params *params, bool cross)
{
    int64_t heads = params->i[0], kv_heads = params->i[1], head_dim = params->i[2], window = params->i[3];
    if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0 || heads > 65536 || head_dim < 1 || head_dim > 1024 ||
        window < 0 || window > INT32_MAX)
        return gd_graph_fail(graph, "%s: %" PRId64 " heads, %" PRId64 " kv heads, head size %" PRId64 ", window %" PRId64
                             ": heads must be a multiple of kv heads, the head size within [1, 1024]",
                             what, heads, kv_heads, head_dim, window) != NULL;
    if (!(params->f[1] >= 0) || !isfinite(params->f[1]))
        return gd_graph_fail(graph, "%s: a softcap of %g, must be 0 for none or positive", what, params->f[1]) != NULL;
    if (cross && (params->i[5] != 0 || params->i[6] != 0 || window != 0))
        return gd_graph_fail(graph, "%s: cross attention has no order, so no window, direction or position bias", what) != NULL;
    if (q->rank != 2 || q->shape[1] != heads * head_dim || (q->dtype != GD_F32 && q->dtype != GD_BF16))
        return gd_graph_fail(graph, "%s: q '%s' must be F32 or BF16 [T, %" PRId64 "]", what, q->name, heads * head_dim) != NULL;
    if (k == NULL && v == NULL)
        return true;
    if (k == NULL || v == NULL || k->rank != 2 || v->rank != 2 || k->shape[1] != kv_heads * head_dim ||
        v->shape[1] != kv_heads * head_dim || (k->shape[0] != q->shape[0] && !cross) || v->shape[0] != k->shape[0])
        return gd_graph_fail(graph, "%s: q '%s', k '%s', v '%s' do not have the shapes [T, %" PRId64 "], [T, %" PRId64
                             "], [T, %" PRId64 "]", what, q->name, k != NULL ? k->name : "", v != NULL ? v->name : "",
                             heads * head_dim, kv_heads * head_dim, kv_heads * head_dim) != NULL;
    if (k->dtype != q->dtype || v->dtype != q->dtype)
        return gd_graph_fail(graph, "%s: q, k and v must all be F32 or all BF16", what) != NULL;
    if (q->shape[0] > INT32_MAX || k->shape[0] > INT32_MAX)
        return gd_graph_fail(graph, "%s: %" PRId64 " rows and %" PRId64 " keys do not fit 32 bits", what, q->shape[0], k->shape[0]) != NULL;
    return true;
}

/* prefix, key_cu: or NULL */
static inline bool gd_attention_check_offsets(struct gd_graph *graph, const char *what, const struct gd_value *cu,
                                              const struct gd_value *prefix, const struct gd_value *key_cu)
{
    if (key_cu != NULL && (prefix != NULL || key_cu->dtype != GD_I32 || key_cu->rank != 1 || key_cu->shape[0] != cu->shape[0]))
        return gd_graph_fail(graph, "%s: the keys' offsets '%s' must be i32 [S+1] like those of the rows, without a prefix", what,
                             key_cu->name) != NULL;
    if (cu->dtype != GD_I32 || cu->rank != 1 || cu->shape[0] < 2)
        return gd_graph_fail(graph, "%s: cu_seqlens '%s' must be i32 [S+1]", what, cu->name) != NULL;
    if (prefix != NULL && (prefix->dtype != GD_I32 || prefix->rank != 1 || prefix->shape[0] != 2 * (cu->shape[0] - 1)))
        return gd_graph_fail(graph, "%s: prefix '%s' must be i32 [2S], two for each segment of '%s'", what, prefix->name,
                             cu->name) != NULL;
    return true;
}

/* For the shared op test, in its own words: whether `row` sees `key`, and how far it is. prefix, key_cu: or NULL. */
static inline bool gd_attention_visible(const struct gd_attention_sizes *n, const double *cu, const double *prefix,
                                        const double *key_cu, int64_t row, int64_t key, int64_t *far)
{
    for (int64_t s = 0; s < n->segments; s++) {
        int64_t begin = (int64_t)cu[s], distance = row - key;
        if (row < begin || row >= (int64_t)cu[s + 1])
            continue;
        if (key_cu != NULL)
            return key >= (int64_t)key_cu[s] && key < (int64_t)key_cu[s + 1];
        if (prefix != NULL && key >= (int64_t)prefix[2 * s] && key < (int64_t)prefix[2 * s + 1])
            distance = row - begin + (int64_t)prefix[2 * s + 1] - key;
        else if (key < begin || key >= (int64_t)cu[s + 1] || (key > row && !n->bidirectional))
            return false;
        *far = distance;
        return n->window == 0 || (distance < n->window && -distance < n->window);
    }
    return false;
}

/* For the shared op test: the score of a product q.k, and its slope. */
static inline double gd_attention_score(const struct gd_attention_sizes *n, double product, double *slope)
{
    double t = n->softcap > 0 ? tanh(n->scale * product / n->softcap) : 0;
    *slope = n->scale * (1 - t * t);
    return n->softcap > 0 ? n->softcap * t : n->scale * product;
}

#endif
