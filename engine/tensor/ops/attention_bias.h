/*
 * attention_bias.h - what attention adds to the score of a row and a key because of the distance between them (T5's buckets).
 *
 * Why      Forward, backward and serving read one table, and none of them keeps T x T numbers.
 * Memory   Tables of the op's scratch: one number for each head and distance up to the reach.
 * Threads  Pure functions.
 * Errors   Through the graph: a table that does not fit.
 * Limits   GD_BIAS_BUCKETS_MAX, GD_BIAS_DISTANCE_MAX
 * Life     gd_attention_bias_table once a run -> gd_attention_bias_between for each block of rows and keys.
 *
 * Raffel et al. 2020: of n buckets for distances d = row - key >= 0, n/2 hold one distance each, and the others ever more:
 *     bucket(d) = d if d < n/2, else min(n - 1, n/2 + floor(ln(d / (n/2)) / ln(max / (n/2)) (n - n/2)))
 * Where rows see later keys too, these have the second half of the buckets, by -d.
 */
#ifndef GD_TENSOR_OPS_ATTENTION_BIAS_H
#define GD_TENSOR_OPS_ATTENTION_BIAS_H

#include "engine/tensor/ops/attention_blocks.h"

#define GD_BIAS_BUCKETS_MAX 4096
#define GD_BIAS_DISTANCE_MAX 65536

/* Distances beyond the reach share the buckets of those at it. */
static inline int gd_attention_bucket(const struct gd_attention_sizes *n, int64_t distance)
{
    int buckets = n->bidirectional ? n->buckets / 2 : n->buckets, first = n->bidirectional && distance < 0 ? buckets : 0;
    int64_t d = distance < 0 ? (n->bidirectional ? -distance : 0) : distance;
    int exact = buckets / 2;
    if (d < exact)
        return first + (int)d;
    if (d >= n->max_distance)
        return first + buckets - 1;
    /* In f32, as models were trained with it. */
    float step = logf((float)d / (float)exact) / (float)log((double)n->max_distance / exact) * (float)(buckets - exact);
    int bucket = exact + (int)step;
    return first + (bucket < buckets - 1 ? bucket : buckets - 1);
}

/* bias: or NULL */
static inline bool gd_attention_check_bias(struct gd_graph *graph, const char *what, const struct gd_value *bias,
                                           const struct gd_op_params *params)
{
    int64_t buckets = params->i[6], max_distance = params->i[7], side = params->i[5] != 0 ? buckets / 2 : buckets;
    if (bias == NULL)
        return true;
    if (bias->rank != 2 || bias->shape[0] != buckets || bias->shape[1] != params->i[0] ||
        (bias->kind != GD_VALUE_WEIGHT && bias->dtype != GD_F32))
        return gd_graph_fail(graph, "%s: position bias '%s' must be f32 [%" PRId64 ", %" PRId64 "]", what, bias->name, buckets,
                             params->i[0]) != NULL;
    if (params->i[0] != params->i[1])
        return gd_graph_fail(graph, "%s: position bias '%s' needs as many kv heads as heads", what, bias->name) != NULL;
    if (side < 2 || buckets > GD_BIAS_BUCKETS_MAX || max_distance <= side / 2 || max_distance > GD_BIAS_DISTANCE_MAX)
        return gd_graph_fail(graph, "%s: %" PRId64 " buckets up to a distance of %" PRId64, what, buckets, max_distance) != NULL;
    return true;
}

/* Distances in a table of one head: from -max_distance to max_distance. */
static inline int gd_attention_bias_width(const struct gd_attention_sizes *n)
{
    return 2 * n->max_distance + 1;
}

/* Of all heads, and the bucket of each distance. */
static inline size_t gd_attention_bias_bytes(const struct gd_attention_sizes *n)
{
    if (n->buckets == 0)
        return 0;
    size_t width = (size_t)gd_attention_bias_width(n);
    return (size_t)gd_round_up((int64_t)(((size_t)n->heads + 1) * width * sizeof(float)), 64);
}

/* table: [heads][width] in base 2, that is times log2(e); then the buckets, i32 [width]. bias: f32 [buckets, heads]. */
static inline const int32_t *gd_attention_bias_table(float *table, const struct gd_attention_sizes *n, const float *bias)
{
    int width = gd_attention_bias_width(n);
    int32_t *bucket = (int32_t *)(table + (size_t)n->heads * (size_t)width);
    for (int u = 0; u < width; u++) {
        bucket[u] = gd_attention_bucket(n, u - n->max_distance);
        for (int h = 0; h < n->heads; h++)
            table[(size_t)h * (size_t)width + (size_t)u] = bias[(size_t)bucket[u] * (size_t)n->heads + (size_t)h] * 1.44269504088896340736f;
    }
    return bucket;
}

/* Where a distance stands in a table. */
static inline int gd_attention_bias_place(int max_distance, int64_t distance)
{
    return (int)(distance < -max_distance ? 0 : distance > max_distance ? 2 * max_distance : distance + max_distance);
}

/* out[u] for u in [0, 2 GD_TILE - 1): of the distance `first` + u, or first - u where `falling`. table: of one head. */
static inline void gd_attention_bias_between(float *out, const float *table, int max_distance, int64_t first, bool falling)
{
    for (int u = 0; u < 2 * GD_TILE - 1; u++)
        out[u] = table[gd_attention_bias_place(max_distance, falling ? first - u : first + u)];
}

#endif
