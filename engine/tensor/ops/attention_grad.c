/*
 * The backward pass of attention (formulas in attention_backward.h): q, k, v, out, lse, d_out, cu_seqlens, prefix or none,
 * offsets of the keys or none, position bias or none -> dq, dk, dv, and with i[4] the gradient of the bias, f32 [buckets, heads].
 *
 * Pairs (block of keys b, block of queries b + s) are visited step by step, s = 0, 1, ...: within a step no two tasks
 * touch the same dq, dk or dv, so all tasks of a step run at once, each product is made once, and every sum has one
 * order whatever the number of threads. A segment and its prefix follow in steps of their own: with n blocks on the longer
 * side, block i of the prefix meets block (i + s) mod n of the segment; segments of one prefix take turns. So do the segments
 * of keys and rows in cross attention. The bias' gradient is summed for each block of keys, then over these in their order.
 */
#include "engine/tensor/ops.h"
#include "engine/tensor/ops/attention_bias.h"

struct gd_attention_pair {
    int head_dim, head_dim_padded;         /* padded to a multiple of 16 */
    bool bf16;
    float scale, softcap;                  /* softcap 0: none */
    int row_count, key_count;
    const float *lse, *dot;                /* [row_count] */
    float row_lse[GD_TILE], row_dot[GD_TILE];
    int32_t first[GD_TILE], end[GD_TILE];  /* keys of this block that a row sees; both rise from row to row */
    float *q, *d_out, *key, *value;        /* [GD_TILE][head_dim_padded] */
    float *key_columns, *value_columns;    /* [head_dim_padded][GD_TILE] */
    float *p, *ds;                         /* [GD_TILE rows][GD_TILE keys] */
    bool biased, wants_bias;
    float bias[2 * GD_TILE], d_bias[2 * GD_TILE]; /* of row i and key j at GD_TILE - 1 + j - i; in base 2 */
};

struct gd_attention_backward {
    void (*load_keys)(struct gd_attention_pair *pair, const void *keys, const void *values, int64_t row, int count);
    void (*pair)(struct gd_attention_pair *pair, const void *q, const void *d_out, int64_t q_row, float *dq,
                 int64_t dq_row, bool add_dq, float *dk, float *dv, int64_t kv_row, bool add_kv);
    void (*row_dots)(float *dot, const void *a, const void *b, bool bf16, int64_t count, int head_dim);
    void (*rows_from_f32)(void *out, bool bf16, int64_t out_row, const float *in, int64_t in_row, int rows, int n);
};

#define LANES 16
#include "engine/tensor/ops/attention_backward.h"
#undef LANES
#define LANES 8
#include "engine/tensor/ops/attention_backward.h"
#undef LANES
#define LANES 4
#include "engine/tensor/ops/attention_backward.h"
#undef LANES

/* One array of gradients: f32 sums, in the output itself where its rows suit the kernel. */
struct sums {
    float *data;
    int64_t row, head;           /* strides in floats */
};

/* A segment's blocks of queries and the blocks of keys that its prefix lies in. */
struct crossing {
    int32_t keys, key_count, rows, row_count;   /* first block and number of blocks */
    int32_t step, steps;
};

struct job {
    struct gd_attention_sizes n;
    const struct gd_attention_backward *isa;
    const void *q, *k, *v, *out, *d_out;
    const float *lse;
    float *dot;                  /* [T, heads]: rowsum(d_out * out) */
    struct sums dq, dk, dv;
    const float *bias;           /* table and the distances' buckets, or NULL */
    const int32_t *bucket;
    float *d_bias;               /* [blocks of keys][heads][buckets], or NULL */
    const struct gd_attention_block *blocks, *key_blocks; /* the same unless attention is cross */
    int key_block_count;
    const int32_t *order, *reach; /* blocks by falling reach: how many blocks of queries see a block of keys */
    int block_count, step_count;
    const struct crossing *crossing;
    int crossing_count, crossing_steps;
    char *task_scratch;
};

static bool direct_sums(const struct gd_attention_sizes *n)
{
    return !n->bf16 && n->head_dim % 16 == 0;
}

/* The op's scratch: blocks, crossings, row dots, f32 sums unless direct, then one part a thread. */
struct layout {
    size_t keys, crossing, dot, dq, dk, dv, bias, d_bias, d_bias_bytes, task, task_bytes, total;
};

static struct layout scratch_layout(const struct gd_attention_sizes *n, bool wants_bias)
{
    struct layout at;
    size_t rows = (size_t)n->rows, padded = (size_t)gd_round_up(n->head_dim, 16);
    size_t row_sums = direct_sums(n) ? 0 : padded * sizeof(float), key_sums = row_sums * (size_t)n->key_rows;
    at.keys = gd_attention_blocks_bytes(n->rows, n->segments);
    at.crossing = at.keys + (n->cross ? gd_attention_blocks_bytes(n->key_rows, n->segments) : 0);
    at.dot = at.crossing + (size_t)gd_round_up(n->segments * (int64_t)sizeof(struct crossing), 64);
    at.dq = at.dot + (size_t)gd_round_up((int64_t)(rows * (size_t)n->heads * sizeof(float)), 64);
    at.dk = at.dq + row_sums * rows * (size_t)n->heads;
    at.dv = at.dk + key_sums * (size_t)n->kv_heads;
    at.bias = at.dv + key_sums * (size_t)n->kv_heads;
    at.d_bias = at.bias + gd_attention_bias_bytes(n);
    at.d_bias_bytes = !wants_bias ? 0 : (size_t)gd_attention_blocks_max(n->key_rows, n->segments) * (size_t)n->heads *
                                            (size_t)n->buckets * sizeof(float);
    at.task = at.d_bias + (size_t)gd_round_up((int64_t)at.d_bias_bytes, 64);
    at.task_bytes = (6 * GD_TILE * padded + 2 * GD_TILE * GD_TILE) * sizeof(float);
    at.total = at.task + (size_t)omp_get_max_threads() * at.task_bytes;
    return at;
}

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *q = call->in[0], *out = call->in[3], *lse = call->in[4], *d_out = call->in[5];
    if (!gd_attention_check(graph, "attention_grad", q, call->in[1], call->in[2], &call->params, call->in[8] != NULL) ||
        !gd_attention_check_bias(graph, "attention_grad", call->in[9], &call->params) ||
        !gd_attention_check_offsets(graph, "attention_grad", call->in[6], call->in[7], call->in[8]))
        return false;
    bool same = out->dtype == q->dtype && d_out->dtype == q->dtype && out->rank == 2 && d_out->rank == 2 &&
                lse->dtype == GD_F32 && lse->rank == 2 && lse->shape[0] == q->shape[0] && lse->shape[1] == call->params.i[0];
    for (int r = 0; same && r < 2; r++)
        same = out->shape[r] == q->shape[r] && d_out->shape[r] == q->shape[r];
    if (!same)
        return gd_graph_fail(graph, "attention_grad: out, lse or d_out do not fit q '%s'", q->name) != NULL;
    for (int k = 0; k < 3; k++) {
        call->out[k]->dtype = q->dtype;
        call->out[k]->rank = 2;
        call->out[k]->shape[0] = call->in[k]->shape[0];
        call->out[k]->shape[1] = call->in[k]->shape[1];
    }
    bool wants_bias = call->in[9] != NULL && call->params.i[4] != 0;
    call->out[3]->dtype = GD_F32;
    call->out[3]->rank = wants_bias ? 2 : 1;
    call->out[3]->shape[0] = wants_bias ? call->params.i[6] : 0;
    call->out[3]->shape[1] = wants_bias ? call->params.i[0] : 0;
    return true;
}

static size_t scratch_bytes(const struct gd_call *call)
{
    struct gd_attention_sizes n = gd_attention_sizes(&call->params, call->in[0]->dtype, call->in[0]->shape[0], call->in[1]->shape[0],
                                                     call->in[6]->shape[0] - 1, call->in[8] != NULL);
    return scratch_layout(&n, call->out[3]->shape[0] > 0).total;
}

static void pair_init(struct gd_attention_pair *pair, const struct gd_attention_sizes *n, void *scratch)
{
    memset(pair, 0, sizeof(*pair));
    pair->head_dim = n->head_dim;
    pair->head_dim_padded = (int)gd_round_up(n->head_dim, 16);
    pair->bf16 = n->bf16;
    pair->scale = (float)n->scale;
    pair->softcap = (float)n->softcap;
    pair->lse = pair->row_lse;
    pair->dot = pair->row_dot;
    float **const parts[] = {&pair->q, &pair->d_out, &pair->key, &pair->value, &pair->key_columns, &pair->value_columns};
    float *at = scratch;
    for (size_t i = 0; i < GD_COUNT(parts); i++, at += GD_TILE * pair->head_dim_padded)
        *parts[i] = at;
    pair->p = at;
    pair->ds = at + GD_TILE * GD_TILE;
}

/* Which keys of the block each row sees: those of the rows' own segment, or with `crosses` those of its prefix. False: none. */
static bool see_keys(struct gd_attention_pair *pair, const struct gd_attention_block *keys, const struct gd_attention_block *rows,
                     bool crosses, const struct gd_attention_sizes *n)
{
    pair->key_count = keys->end - keys->begin;
    pair->row_count = rows->end - rows->begin;
    for (int i = 0; i < pair->row_count; i++) {
        int32_t row = rows->begin + i, first, end;
        first = crosses ? gd_attention_first_prefix_key(rows, row, n->window)
                        : gd_attention_first_key(row, rows->segment_begin, n->window);
        end = (crosses ? rows->prefix_end : gd_attention_end_key(n, row, rows->segment_end)) - keys->begin;
        first -= keys->begin;
        pair->first[i] = first < 0 ? 0 : first < pair->key_count ? first : pair->key_count;
        pair->end[i] = end < 0 ? 0 : end < pair->key_count ? end : pair->key_count;
    }
    return pair->first[0] < pair->end[pair->row_count - 1];
}

/* The distance between row i of a block and key j of another is this plus i - j. */
static int64_t block_distance(const struct gd_attention_block *keys, const struct gd_attention_block *rows, bool crosses)
{
    return (crosses ? (int64_t)rows->prefix_end + rows->begin - rows->segment_begin : rows->begin) - keys->begin;
}

static void put_bias(const struct job *job, struct gd_attention_pair *pair, const struct gd_attention_block *keys,
                     const struct gd_attention_block *rows, bool crosses, int head)
{
    const struct gd_attention_sizes *n = &job->n;
    pair->biased = true;
    pair->wants_bias = job->d_bias != NULL;
    memset(pair->d_bias, 0, sizeof(pair->d_bias));
    gd_attention_bias_between(pair->bias, job->bias + (size_t)head * (size_t)gd_attention_bias_width(n), n->max_distance,
                              block_distance(keys, rows, crosses) + GD_TILE - 1, true);
}

static void take_bias(const struct job *job, const struct gd_attention_pair *pair, const struct gd_attention_block *keys,
                      const struct gd_attention_block *rows, bool crosses, int head)
{
    const struct gd_attention_sizes *n = &job->n;
    int64_t first = block_distance(keys, rows, crosses) + GD_TILE - 1;
    float *sum = job->d_bias + ((size_t)(keys - job->key_blocks) * (size_t)n->heads + (size_t)head) * (size_t)n->buckets;
    for (int u = 0; u < 2 * GD_TILE - 1; u++)
        sum[job->bucket[gd_attention_bias_place(n->max_distance, first - u)]] += pair->d_bias[u];
}

/* All query heads of one kv head, for one block of keys and one of queries. first: nothing is in their sums yet. */
static void run_pair(const struct job *job, const struct gd_attention_block *keys, const struct gd_attention_block *rows,
                     bool crosses, bool first, int kv_head, void *scratch)
{
    const struct gd_attention_sizes *n = &job->n;
    size_t item = n->bf16 ? 2 : 4;
    int64_t q_row = (int64_t)n->heads * n->head_dim, kv_row = (int64_t)n->kv_heads * n->head_dim;
    struct gd_attention_pair pair;
    pair_init(&pair, n, scratch);
    if (!see_keys(&pair, keys, rows, crosses, n) && !first)
        return;
    size_t kv_at = (size_t)(keys->begin * kv_row + (int64_t)kv_head * n->head_dim) * item;
    job->isa->load_keys(&pair, (const char *)job->k + kv_at, (const char *)job->v + kv_at, kv_row, keys->end - keys->begin);
    for (int h = kv_head * n->group; h < (kv_head + 1) * n->group; h++) {
        for (int i = 0; i < pair.row_count; i++) {
            pair.row_lse[i] = job->lse[(int64_t)(rows->begin + i) * n->heads + h];
            pair.row_dot[i] = job->dot[(int64_t)(rows->begin + i) * n->heads + h];
        }
        if (job->bias != NULL)
            put_bias(job, &pair, keys, rows, crosses, h);
        size_t q_at = (size_t)(rows->begin * q_row + (int64_t)h * n->head_dim) * item;
        job->isa->pair(&pair, (const char *)job->q + q_at, (const char *)job->d_out + q_at, q_row,
                       job->dq.data + rows->begin * job->dq.row + h * job->dq.head, job->dq.row, !first,
                       job->dk.data + keys->begin * job->dk.row + kv_head * job->dk.head,
                       job->dv.data + keys->begin * job->dv.row + kv_head * job->dv.head, job->dk.row,
                       !first || h > kv_head * n->group);
        if (job->d_bias != NULL)
            take_bias(job, &pair, keys, rows, crosses, h);
    }
}

/* One step of one crossing; threads that are done go on. */
static void cross(const struct job *job, const struct crossing *c, int32_t step, void *scratch)
{
    int kv_heads = job->n.kv_heads;
    int32_t most = c->key_count > c->row_count ? c->key_count : c->row_count;
#pragma omp for schedule(static, 1) nowait
    for (int t = 0; t < c->key_count * kv_heads; t++) {
        int32_t key = t / kv_heads, row = (key + step - c->step) % most;
        if (row < c->row_count)
            run_pair(job, &job->key_blocks[c->keys + key], &job->blocks[c->rows + row], true, false, t % kv_heads, scratch);
    }
}

/* The block of queries that a block of keys meets in a step: the next ones; where all see all, round about the segment. */
static const struct gd_attention_block *met_block(const struct gd_attention_sizes *n, const struct gd_attention_block *keys, int step)
{
    if (!n->bidirectional)
        return keys + step;
    int32_t own = (keys->begin - keys->segment_begin) / GD_TILE;
    int32_t count = (keys->segment_end - keys->segment_begin + GD_TILE - 1) / GD_TILE;
    return keys - own + (own + step) % count;
}

static void run_all(const struct job *job, size_t task_bytes, int64_t used)
{
    const struct gd_attention_sizes *n = &job->n;
    size_t item = n->bf16 ? 2 : 4;
#pragma omp parallel if (used * n->heads * n->head_dim >= GD_PARALLEL_MIN)
    {
        char *scratch = job->task_scratch + (size_t)omp_get_thread_num() * task_bytes;
        struct gd_range part = gd_thread_range(used * n->heads, 1);
        job->isa->row_dots(job->dot + part.begin, (const char *)job->out + (size_t)(part.begin * n->head_dim) * item,
                           (const char *)job->d_out + (size_t)(part.begin * n->head_dim) * item, n->bf16,
                           part.end - part.begin, n->head_dim);
#pragma omp barrier
        int active = job->block_count;
        for (int step = 0; step < job->step_count; step++) {
            while (active > 0 && job->reach[job->order[active - 1]] <= step)
                active--;
#pragma omp for schedule(static, 1)
            for (int t = 0; t < active * n->kv_heads; t++) {
                const struct gd_attention_block *keys = &job->blocks[job->order[t / n->kv_heads]];
                run_pair(job, keys, met_block(n, keys, step), false, step == 0, t % n->kv_heads, scratch);
            }
        }
        for (int32_t step = 0; step < job->crossing_steps; step++) {
            for (int c = 0; c < job->crossing_count; c++)
                if (step >= job->crossing[c].step && step < job->crossing[c].step + job->crossing[c].steps)
                    cross(job, &job->crossing[c], step, scratch);
#pragma omp barrier
        }
    }
}

/* How many blocks of queries a block of keys meets: those that see it, or all of the segment. */
static int32_t block_reach(const struct gd_attention_sizes *n, const struct gd_attention_block *keys)
{
    int32_t window = n->window;
    if (n->bidirectional)
        return (keys->segment_end - keys->segment_begin + GD_TILE - 1) / GD_TILE;
    int64_t last = keys->segment_end - 1;
    if (window > 0 && (int64_t)keys->end - 1 + window - 1 < last)
        last = (int64_t)keys->end - 1 + window - 1;
    return (int32_t)((last - keys->begin) / GD_TILE) + 1;
}

/* The crossings of all segments that have a prefix, or keys elsewhere; those that share a block of keys follow each other. */
static void find_crossings(struct job *job, struct crossing *crossing)
{
    const struct gd_attention_block *blocks = job->blocks;
    for (int b = 0, end; b < job->block_count; b = end) {
        const struct gd_attention_block *block = &blocks[b];
        for (end = b + 1; end < job->block_count && blocks[end].segment_begin == block->segment_begin;)
            end++;
        if (block->prefix_begin == block->prefix_end)
            continue;
        struct crossing c = {.rows = b, .row_count = end - b};
        while (job->key_blocks[c.keys].end <= block->prefix_begin)
            c.keys++;
        while (c.keys + c.key_count < job->key_block_count && job->key_blocks[c.keys + c.key_count].begin < block->prefix_end)
            c.key_count++;
        c.steps = c.key_count > c.row_count ? c.key_count : c.row_count;
        for (int i = 0; i < job->crossing_count; i++) {
            const struct crossing *other = &crossing[i];
            if (other->keys < c.keys + c.key_count && c.keys < other->keys + other->key_count && other->step + other->steps > c.step)
                c.step = other->step + other->steps;
        }
        if (c.step + c.steps > job->crossing_steps)
            job->crossing_steps = c.step + c.steps;
        crossing[job->crossing_count++] = c;
    }
    job->crossing = crossing;
}

/* f32 sums to the output, and zeros in its padding rows. */
static void finish(const struct job *job, const struct sums *sums, void *out, int heads, int64_t used, int64_t rows)
{
    const struct gd_attention_sizes *n = &job->n;
    size_t item = n->bf16 ? 2 : 4;
    int64_t width = (int64_t)heads * n->head_dim;
    memset((char *)out + (size_t)(used * width) * item, 0, (size_t)((rows - used) * width) * item);
    if (direct_sums(n))
        return;
    GD_PARALLEL(used * width)
    {
        struct gd_range r = gd_thread_range(used, 1);
        for (int h = 0; h < heads; h++)
            job->isa->rows_from_f32((char *)out + (size_t)(r.begin * width + (int64_t)h * n->head_dim) * item, n->bf16,
                                    width, sums->data + r.begin * sums->row + h * sums->head, sums->row,
                                    (int)(r.end - r.begin), n->head_dim);
    }
}

static void finish_bias(const struct job *job, float *out)
{
    const struct gd_attention_sizes *n = &job->n;
    for (int h = 0; h < n->heads; h++)
        for (int bucket = 0; bucket < n->buckets; bucket++) {
            float sum = 0;
            for (int b = 0; b < job->key_block_count; b++)
                sum += job->d_bias[((size_t)b * (size_t)n->heads + (size_t)h) * (size_t)n->buckets + (size_t)bucket];
            out[(size_t)bucket * (size_t)n->heads + (size_t)h] = sum;
        }
}

/* own: room for the blocks of keys where they are not those of the rows. */
static bool split_keys(struct job *job, struct gd_attention_block *own, const struct gd_attention_block *blocks, const int32_t *key_cu,
                       struct gd_error *err)
{
    job->key_blocks = blocks;
    job->key_block_count = job->block_count;
    if (!job->n.cross)
        return true;
    job->key_blocks = own;
    return gd_attention_split(own, &job->key_block_count, key_cu, NULL, NULL, job->n.segments, job->n.key_rows, 0, err);
}

static struct sums make_sums(const struct gd_attention_sizes *n, void *out, void *scratch, int heads)
{
    int64_t padded = gd_round_up(n->head_dim, 16);
    return (struct sums){direct_sums(n) ? out : scratch, heads * padded, padded};
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const int32_t *cu = args->in[6].data, *prefix = args->in[7].data, *key_cu = args->in[8].data;
    int64_t rows = args->in[0].shape[0], key_rows = args->in[1].shape[0], segments = args->in[6].shape[0] - 1;
    bool wants_bias = args->out[3].shape[0] > 0;
    struct job job = {
        .n = gd_attention_sizes(args->params, args->in[0].dtype, rows, key_rows, segments, key_cu != NULL),
        .q = args->in[0].data, .k = args->in[1].data, .v = args->in[2].data,
        .out = args->in[3].data, .lse = args->in[4].data, .d_out = args->in[5].data,
    };
    struct layout at = scratch_layout(&job.n, wants_bias);
    char *scratch = args->scratch;
    job.dot = (float *)(scratch + at.dot);
    job.task_scratch = scratch + at.task;
    job.dq = make_sums(&job.n, args->out[0].data, scratch + at.dq, job.n.heads);
    job.dk = make_sums(&job.n, args->out[1].data, scratch + at.dk, job.n.kv_heads);
    job.dv = make_sums(&job.n, args->out[2].data, scratch + at.dv, job.n.kv_heads);
    int lanes = gd_lanes();
    job.isa = lanes == 16 ? &gd_attention_backward_16 : lanes == 8 ? &gd_attention_backward_8 : &gd_attention_backward_4;

    struct gd_attention_block *blocks = (struct gd_attention_block *)scratch;
    if (!gd_attention_split(blocks, &job.block_count, cu, prefix, key_cu, segments, rows, key_rows, err) ||
        !split_keys(&job, (struct gd_attention_block *)(scratch + at.keys), blocks, key_cu, err))
        return false;
    if (job.n.buckets > 0) {
        const float *bias = args->weight[9] != NULL ? gd_weight_vector(args->weight[9]) : args->in[9].data;
        job.bucket = gd_attention_bias_table((float *)(scratch + at.bias), &job.n, bias);
        job.bias = (float *)(scratch + at.bias);
        job.d_bias = wants_bias ? (float *)(scratch + at.d_bias) : NULL;
        memset(scratch + at.d_bias, 0, at.d_bias_bytes);
    }
    int64_t most = gd_attention_blocks_max(rows, segments);
    int32_t *order = (int32_t *)(blocks + most), *reach = order + most, *bins = reach + most;
    for (int b = 0; b < job.block_count; b++) {
        reach[b] = job.n.cross ? 0 : block_reach(&job.n, &blocks[b]);
        job.step_count = reach[b] > job.step_count ? reach[b] : job.step_count;
    }
    gd_order_by_cost(order, reach, job.block_count, bins, job.step_count);
    job.blocks = blocks;
    job.order = order;
    job.reach = reach;
    find_crossings(&job, (struct crossing *)(scratch + at.crossing));

    int64_t used = cu[segments], key_used = job.n.cross ? key_cu[segments] : used;
    if (job.n.cross) { /* no first step in which all of them are written */
        memset(job.dq.data, 0, (size_t)(used * job.dq.row) * sizeof(float));
        memset(job.dk.data, 0, (size_t)(key_used * job.dk.row) * sizeof(float));
        memset(job.dv.data, 0, (size_t)(key_used * job.dv.row) * sizeof(float));
    }
    run_all(&job, at.task_bytes, used);
    finish(&job, &job.dq, args->out[0].data, job.n.heads, used, rows);
    finish(&job, &job.dk, args->out[1].data, job.n.kv_heads, key_used, key_rows);
    finish(&job, &job.dv, args->out[2].data, job.n.kv_heads, key_used, key_rows);
    if (wants_bias)
        finish_bias(&job, args->out[3].data);
    return true;
}

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], keys = op_case->in[1].shape[0], segments = op_case->in[6].shape[0] - 1, far = 0;
    struct gd_attention_sizes n = gd_attention_sizes(&op_case->params, GD_F32, rows, keys, segments, op_case->in[8].rank > 0);
    const double *prefix = op_case->in[7].rank > 0 ? in[7] : NULL, *key_cu = n.cross ? in[8] : NULL;
    int64_t q_row = (int64_t)n.heads * n.head_dim, kv_row = (int64_t)n.kv_heads * n.head_dim;
    memset(out[0], 0, (size_t)(rows * q_row) * sizeof(double));
    memset(out[1], 0, (size_t)(keys * kv_row) * sizeof(double));
    memset(out[2], 0, (size_t)(keys * kv_row) * sizeof(double));
    memset(out[3], 0, op_case->params.i[4] != 0 ? (size_t)n.buckets * (size_t)n.heads * sizeof(double) : 0);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t h = 0; h < n.heads; h++) {
            int64_t at = i * q_row + h * n.head_dim;
            double row_dot = dot(in[3] + at, in[5] + at, n.head_dim);
            for (int64_t j = 0; j < (n.bidirectional || n.cross ? keys : i + 1); j++) {
                if (!gd_attention_visible(&n, in[6], prefix, key_cu, i, j, &far))
                    continue;
                int64_t kv = j * kv_row + h / n.group * n.head_dim;
                double slope, s = gd_attention_score(&n, dot(in[0] + at, in[1] + kv, n.head_dim), &slope);
                int bucket = n.buckets > 0 ? gd_attention_bucket(&n, far) : 0;
                double p = exp(s + (n.buckets > 0 ? in[9][bucket * n.heads + h] : 0) - in[4][i * n.heads + h]);
                double ds = p * (dot(in[5] + at, in[2] + kv, n.head_dim) - row_dot);
                if (op_case->params.i[4] != 0)
                    out[3][bucket * n.heads + h] += ds;
                ds *= slope;
                for (int64_t d = 0; d < n.head_dim; d++) {
                    out[0][at + d] += ds * in[1][kv + d];
                    out[1][kv + d] += ds * in[0][at + d];
                    out[2][kv + d] += p * in[5][at + d];
                }
            }
        }
}

#define ROWS(t, width) {.dtype = GD_F32, .rank = 2, .shape = {t, width}, .fill = GD_FILL_NORMAL}
#define CASE(text, t, h, g, dh, win, segments, used)                                                                   \
    {.name = text, .in_count = 7,                                                                                      \
     .in = {ROWS(t, (h) * (dh)), ROWS(t, (g) * (dh)), ROWS(t, (g) * (dh)), ROWS(t, (h) * (dh)),                        \
            {.dtype = GD_F32, .rank = 2, .shape = {t, h}, .fill = GD_FILL_POSITIVE}, ROWS(t, (h) * (dh)),              \
            {.dtype = GD_I32, .rank = 1, .shape = {(segments) + 1}, .fill = GD_FILL_OFFSETS, .fill_limit = used}},     \
     .params = {.i = {h, g, dh, win}, .f = {0.125}}, .tolerance = 5e-5, .tolerance_bf16 = 3e-2}
#define EVERY(text, t, h, g, dh, win, segments, used, both, cap)                                                       \
    {.name = text, .in_count = 8,                                                                                      \
     .in = {ROWS(t, (h) * (dh)), ROWS(t, (g) * (dh)), ROWS(t, (g) * (dh)), ROWS(t, (h) * (dh)),                        \
            {.dtype = GD_F32, .rank = 2, .shape = {t, h}, .fill = GD_FILL_POSITIVE}, ROWS(t, (h) * (dh)),              \
            {.dtype = GD_I32, .rank = 1, .shape = {(segments) + 1}, .fill = GD_FILL_OFFSETS, .fill_limit = used},      \
            {.dtype = GD_I32, .rank = 1, .shape = {2 * (segments)}, .fill = GD_FILL_PREFIXES, .fill_limit = used}},    \
     .params = {.i = {h, g, dh, win, 0, both}, .f = {0.125, cap}}, .tolerance = 5e-5, .tolerance_bf16 = 3e-2}
#define BIAS_CASE(text, t, h, dh, win, segments, used, both, cap, buckets, reach)                                      \
    {.name = text, .in_count = 10,                                                                                     \
     .in = {ROWS(t, (h) * (dh)), ROWS(t, (h) * (dh)), ROWS(t, (h) * (dh)), ROWS(t, (h) * (dh)),                        \
            {.dtype = GD_F32, .rank = 2, .shape = {t, h}, .fill = GD_FILL_POSITIVE}, ROWS(t, (h) * (dh)),              \
            {.dtype = GD_I32, .rank = 1, .shape = {(segments) + 1}, .fill = GD_FILL_OFFSETS, .fill_limit = used},      \
            {.dtype = GD_I32, .rank = 1, .shape = {2 * (segments)}, .fill = GD_FILL_PREFIXES, .fill_limit = used},     \
            {.rank = 0}, {.dtype = GD_F32, .rank = 2, .shape = {buckets, h}, .fill = GD_FILL_SMALL}},                  \
     .params = {.i = {h, h, dh, win, 1, both, buckets, reach}, .f = {0.5, cap}}, .tolerance = 5e-5, .tolerance_bf16 = 3e-2}
#define CROSS_CASE(text, t, keys, h, g, dh, segments, used, key_used)                                                  \
    {.name = text, .in_count = 9,                                                                                      \
     .in = {ROWS(t, (h) * (dh)), ROWS(keys, (g) * (dh)), ROWS(keys, (g) * (dh)), ROWS(t, (h) * (dh)),                  \
            {.dtype = GD_F32, .rank = 2, .shape = {t, h}, .fill = GD_FILL_POSITIVE}, ROWS(t, (h) * (dh)),              \
            {.dtype = GD_I32, .rank = 1, .shape = {(segments) + 1}, .fill = GD_FILL_OFFSETS, .fill_limit = used},      \
            {.rank = 0}, {.dtype = GD_I32, .rank = 1, .shape = {(segments) + 1}, .fill = GD_FILL_OFFSETS,              \
             .fill_limit = key_used}},                                                                                 \
     .params = {.i = {h, g, dh}, .f = {0.3, 0.9}}, .tolerance = 5e-5, .tolerance_bf16 = 3e-2}
#define PREFIX_CASE(text, t, h, g, dh, win, segments, used)                                                            \
    {.name = text, .in_count = 8,                                                                                      \
     .in = {ROWS(t, (h) * (dh)), ROWS(t, (g) * (dh)), ROWS(t, (g) * (dh)), ROWS(t, (h) * (dh)),                        \
            {.dtype = GD_F32, .rank = 2, .shape = {t, h}, .fill = GD_FILL_POSITIVE}, ROWS(t, (h) * (dh)),              \
            {.dtype = GD_I32, .rank = 1, .shape = {(segments) + 1}, .fill = GD_FILL_OFFSETS, .fill_limit = used},      \
            {.dtype = GD_I32, .rank = 1, .shape = {2 * (segments)}, .fill = GD_FILL_PREFIXES, .fill_limit = used}},    \
     .params = {.i = {h, g, dh, win}, .f = {0.125}}, .tolerance = 5e-5, .tolerance_bf16 = 3e-2}

static const struct gd_op_case cases[] = {
    CASE("one row", 1, 1, 1, 1, 0, 1, 1),
    CASE("odd sizes", 7, 3, 1, 5, 0, 2, 7),
    CASE("padding rows", 9, 4, 2, 6, 0, 3, 6),
    CASE("window 3", 13, 2, 2, 4, 3, 2, 13),
    CASE("groups of 3, several blocks", 150, 3, 1, 16, 0, 2, 143),
    CASE("window across blocks", 200, 2, 1, 8, 70, 1, 200),
    CASE("window shorter than a block", 190, 1, 1, 20, 17, 1, 190),
    CASE("many short segments", 100, 2, 1, 12, 0, 17, 97),
    CASE("as in SmolLM2", 330, 9, 3, 64, 0, 3, 320),
    CASE("wide heads", 70, 2, 1, 256, 0, 1, 70),
    CASE("heads of 96, window", 150, 2, 1, 96, 75, 2, 147),
    CASE("heads of 128", 210, 4, 2, 128, 0, 2, 205),
    CASE("heads of 168", 130, 2, 2, 168, 0, 1, 129),
    CASE("heads of 300", 45, 2, 1, 300, 0, 2, 44),
    CASE("heads of 1024", 21, 1, 1, 1024, 0, 2, 20),
    PREFIX_CASE("short prefixes", 17, 2, 1, 6, 0, 3, 15),
    PREFIX_CASE("short prefixes, window 4", 21, 2, 2, 5, 4, 4, 21),
    PREFIX_CASE("prefixes of several blocks, two segments on one", 600, 3, 1, 16, 0, 6, 590),
    PREFIX_CASE("window across a prefix", 500, 2, 1, 20, 90, 5, 490),
    PREFIX_CASE("many segments with prefixes", 160, 2, 1, 12, 0, 17, 157),
    PREFIX_CASE("dozens of segments with prefixes, window", 300, 2, 1, 8, 30, 80, 290),
    PREFIX_CASE("heads of 256 in threes, prefixes, window", 120, 3, 1, 256, 40, 4, 117),
    EVERY("one row, bidirectional", 1, 1, 1, 1, 0, 1, 1, true, 0),
    EVERY("bidirectional, odd sizes, short prefixes", 17, 2, 1, 6, 0, 3, 15, true, 0),
    EVERY("bidirectional, window 4", 21, 2, 2, 5, 4, 4, 21, true, 0),
    EVERY("bidirectional, several blocks", 330, 3, 1, 16, 0, 6, 320, true, 0),
    EVERY("bidirectional, window across blocks", 300, 2, 1, 20, 70, 3, 290, true, 0),
    EVERY("softcap", 17, 2, 1, 6, 0, 3, 15, false, 0.5),
    EVERY("softcap, window 4, bidirectional", 21, 2, 2, 5, 4, 4, 21, true, 0.3),
    EVERY("softcap, wide, several blocks", 230, 4, 2, 64, 90, 3, 220, false, 2),
    EVERY("softcap of scores that it leaves as they are", 70, 2, 1, 8, 0, 2, 70, false, 1e6),
    EVERY("heads of 201, softcap, window, bidirectional", 75, 2, 1, 201, 20, 2, 71, true, 2),
    BIAS_CASE("position bias", 17, 2, 6, 0, 3, 15, false, 0, 8, 9),
    BIAS_CASE("position bias, window, softcap", 21, 2, 5, 4, 4, 21, true, 0.6, 9, 8),
    BIAS_CASE("position bias, several blocks", 330, 3, 16, 0, 6, 320, true, 0, 32, 128),
    BIAS_CASE("position bias, causal, window across blocks", 300, 2, 20, 90, 3, 290, false, 0, 32, 128),
    CROSS_CASE("cross, odd sizes", 17, 23, 4, 2, 5, 3, 15, 21),
    CROSS_CASE("cross, segments without keys and without rows", 6, 4, 2, 1, 4, 5, 5, 3),
    CROSS_CASE("cross, more keys than rows", 90, 400, 3, 1, 16, 3, 90, 390),
    CROSS_CASE("cross, more rows than keys", 400, 90, 4, 4, 64, 3, 390, 90),
};

const struct gd_op gd_op_attention_grad = {
    .name = "attention_grad", .in_min = 7, .in_max = 10, .out_count = 4, .shape = shape, .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu, .inplace = -1, .reference = reference, .cases = cases, .case_count = GD_COUNT(cases),
};
