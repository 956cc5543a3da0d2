/*
 * attention_lanes.h - the state of one attention task: up to GD_TILE query rows against the keys of one kv head.
 *
 * Why      Query rows sit in vector lanes, so the online softmax needs no sums across lanes, and what a row gets
 *          depends only on its own query, its keys and their fixed partition into blocks, never on its neighbours.
 * Memory   Blocks of the op's scratch; gd_attention_scratch_bytes a thread.
 * Threads  One task, one thread.
 * Errors   none
 * Limits   GD_TILE lanes, GD_TILE keys a block.
 * Life     lanes filled by the op -> begin -> absorb blocks of keys in rising order -> finish.
 */
#ifndef GD_TENSOR_OPS_ATTENTION_LANES_H
#define GD_TENSOR_OPS_ATTENTION_LANES_H

#include "engine/tensor/ops/attention_bias.h"

struct gd_attention_lanes {
    int count;                      /* lanes in use, 1..GD_TILE */
    int head_dim, head_dim_padded;  /* padded to a multiple of 16 */
    bool bf16;                      /* of q and out rows */
    float scale, cap;               /* in base 2: times log2(e); cap 0: none */
    const void *q_row[GD_TILE];     /* head_dim elements each */
    void *out_row[GD_TILE];
    float *lse[GD_TILE];            /* NULL where not wanted */
    /* Keys that a lane sees: [first, end). Both rise (or stay) from lane to lane. */
    int32_t first[GD_TILE], end[GD_TILE];
    /* Lanes that are rows one after the other may have a position bias: the table of their head, or NULL, and lane 0's own
     * number among the keys. */
    const float *bias;
    int bias_distance;
    int32_t row;
    /* What will be absorbed after this block, or NULL: only so that it is fetched in time. */
    const char *next_keys, *next_values;
    size_t next_bytes;
    /* Inside. */
    float by_distance[2 * GD_TILE]; /* the bias of lane i and key j of this block at GD_TILE - 1 + i - j */
    float *q, *out;                 /* [head_dim_padded][GD_TILE]: dimension by lane; q times scale * log2(e) */
    float *score;                   /* [GD_TILE keys][GD_TILE lanes] */
    float *key, *value;             /* [GD_TILE][head_dim_padded]: bf16 blocks as f32; key also stages rows */
    float max[GD_TILE], sum[GD_TILE];
};

/* What a template instance offers. */
struct gd_attention_forward {
    void (*begin)(struct gd_attention_lanes *task);
    /* count <= GD_TILE keys and values, rows of head_dim elements `row` apart; the first is key number `first_key`. */
    void (*absorb)(struct gd_attention_lanes *task, const void *keys, const void *values, bool bf16, int64_t row,
                   int32_t first_key, int count);
    void (*finish)(struct gd_attention_lanes *task);
};

static inline size_t gd_attention_scratch_bytes(int64_t head_dim)
{
    size_t padded = (size_t)gd_round_up(head_dim, 16);
    return (4 * GD_TILE * padded + GD_TILE * GD_TILE) * sizeof(float);
}

static inline void gd_attention_lanes_init(struct gd_attention_lanes *task, const struct gd_attention_sizes *n, void *scratch)
{
    const double log2_e = 1.44269504088896340736;
    memset(task, 0, sizeof(*task));
    task->head_dim = n->head_dim;
    task->head_dim_padded = (int)gd_round_up(n->head_dim, 16);
    task->bf16 = n->bf16;
    task->scale = (float)(n->scale * log2_e);
    task->cap = (float)(n->softcap * log2_e);
    task->bias_distance = n->max_distance;
    size_t block = (size_t)GD_TILE * (size_t)task->head_dim_padded;
    task->q = scratch;
    task->out = task->q + block;
    task->key = task->out + block;
    task->value = task->key + block;
    task->score = task->value + block;
}

#endif
