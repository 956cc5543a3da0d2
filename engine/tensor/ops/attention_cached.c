/*
 * Attention for inference: stores this batch's keys and values in the pages of the cache (kv.h), then every row attends
 * to its sequence's past and its own earlier rows. Query rows of all heads that share a kv head sit in the lanes of one
 * task (attention_forward.h), or are few and have keys in lanes (attention_few.h), which gives the same bits; keys are taken
 * a page at a time from position 0, so a row's result is the same whatever else is in the batch and however its prompt was
 * cut into slices.
 * Without k and v (cross attention) nothing is stored, and every row sees all of its sequence's past.
 * Inputs: q, cache, k, v, position bias. Parameters as in attention_blocks.h, causal, and i[4] layer. Its test is in tests/unit/infer.
 */
#include "engine/tensor/crew.h"
#include "engine/tensor/kv.h"
#include "engine/tensor/ops.h"
#include "engine/tensor/ops/attention_blocks.h"
#include "engine/tensor/ops/attention_lanes.h"

#define LANES 16
#include "engine/tensor/ops/attention_forward.h"
#include "engine/tensor/ops/attention_few.h"
#undef LANES
#define LANES 8
#include "engine/tensor/ops/attention_forward.h"
#include "engine/tensor/ops/attention_few.h"
#undef LANES
#define LANES 4
#include "engine/tensor/ops/attention_forward.h"
#include "engine/tensor/ops/attention_few.h"
#undef LANES

#define COST_MAX 255
#define CREW_WORK 4000000 /* products of a task, about a millisecond */
#define COST_KEYS 64 /* keys of a unit of cost */

_Static_assert(GD_KV_PAGE_TOKENS <= GD_TILE, "a page is one block of keys");

struct row_block {
    int32_t sequence, row, count; /* rows of the sequence in this batch: [row, row + count) */
};

struct job {
    struct gd_attention_sizes n;
    const struct gd_attention_forward *isa, *few; /* few: for tasks of up to few_max rows and heads */
    int few_max;
    const struct gd_kv_batch *cache;
    int layer;
    const void *q, *k, *v; /* k and v NULL: cross attention */
    void *out;
    const float *bias;     /* table, or NULL */
    const struct row_block *blocks;
    const int32_t *order;
    int block_count, group_parts; /* a group of more than GD_TILE heads is cut into parts */
    int64_t work;                 /* products of all tasks */
    char *task_scratch;
};

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *q = call->in[0];
    if (!gd_attention_check(graph, "attention_cached", q, call->in[2], call->in[3], &call->params, call->in[2] == NULL) ||
        !gd_attention_check_bias(graph, "attention_cached", call->in[4], &call->params))
        return false;
    if (call->params.i[5] != 0)
        return gd_graph_fail(graph, "attention_cached: a cache grows row by row, so its attention is causal") != NULL;
    if (call->in[1]->dtype != GD_HANDLE || call->params.i[4] < 0)
        return gd_graph_fail(graph, "attention_cached: '%s' is no handle of a cache, or the layer is negative",
                             call->in[1]->name) != NULL;
    call->out[0]->dtype = q->dtype;
    call->out[0]->rank = 2;
    call->out[0]->shape[0] = q->shape[0];
    call->out[0]->shape[1] = q->shape[1];
    return true;
}

static size_t list_bytes(int64_t rows)
{
    return (size_t)gd_round_up((int64_t)((size_t)rows * (sizeof(struct row_block) + 2 * sizeof(int32_t)) +
                                         (COST_MAX + 2) * sizeof(int32_t)), 64);
}

static size_t scratch_bytes(const struct gd_call *call)
{
    struct gd_attention_sizes n = gd_attention_sizes(&call->params, call->in[0]->dtype, 0, 0, 0, false);
    return list_bytes(call->in[0]->shape[0]) + gd_attention_bias_bytes(&n) +
           (size_t)omp_get_max_threads() * gd_attention_scratch_bytes(call->params.i[2]);
}

static size_t page_head_bytes(const struct gd_kv_batch *cache)
{
    return GD_KV_PAGE_TOKENS * (size_t)cache->head_dim * (cache->dtype == GD_BF16 ? 2 : 4);
}

/* Where the rows of one kv head of one page lie. which: 0 keys, 1 values. */
static char *page_rows(const struct job *job, int32_t page, int which, int kv_head)
{
    const struct gd_kv_batch *cache = job->cache;
    size_t at = (((size_t)page * (size_t)cache->layer_count + (size_t)job->layer) * 2 + (size_t)which) *
                    (size_t)cache->kv_heads + (size_t)kv_head;
    return (char *)cache->pages + at * page_head_bytes(cache);
}

/* One row of k and v into the cache. `staging`: a row of f32 where the dtypes differ. */
static void store_row(const struct job *job, int sequence, int32_t row, float *staging)
{
    const struct gd_kv_batch *cache = job->cache;
    int64_t position = (int64_t)cache->past[sequence] + row - cache->cu_seqlens[sequence];
    int32_t page = cache->page_table[(int64_t)sequence * cache->page_table_stride + position / GD_KV_PAGE_TOKENS];
    enum gd_dtype act = job->n.bf16 ? GD_BF16 : GD_F32;
    size_t item = job->n.bf16 ? 2 : 4, head_dim = (size_t)job->n.head_dim, page_item = cache->dtype == GD_BF16 ? 2 : 4;
    for (int which = 0; which < 2; which++)
        for (int g = 0; g < cache->kv_heads; g++) {
            const char *from = (const char *)(which ? job->v : job->k) +
                               ((size_t)row * (size_t)cache->kv_heads + (size_t)g) * head_dim * item;
            char *to = page_rows(job, page, which, g) + (size_t)(position % GD_KV_PAGE_TOKENS) * head_dim * page_item;
            if (cache->dtype == act) {
                memcpy(to, from, head_dim * item);
            } else {
                gd_row_to_f32(staging, from, act, (int64_t)head_dim);
                gd_row_from_f32(to, cache->dtype, staging, (int64_t)head_dim);
            }
        }
}

static void store_rows(const struct job *job)
{
    const struct gd_kv_batch *cache = job->cache;
    int32_t used = cache->cu_seqlens[cache->sequence_count];
    GD_PARALLEL((int64_t)used * cache->kv_heads * cache->head_dim)
    {
        float *staging = (float *)(job->task_scratch + (size_t)omp_get_thread_num() * gd_attention_scratch_bytes(job->n.head_dim));
        struct gd_range r = gd_thread_range(used, 1);
        int sequence = 0;
        for (int64_t row = r.begin; row < r.end; row++) {
            while (cache->cu_seqlens[sequence + 1] <= row)
                sequence++;
            store_row(job, sequence, (int32_t)row, staging);
        }
    }
}

/* The rows of a block for one kv head, or for a part of its group. */
static void run_task(const struct job *job, const struct row_block *block, int kv_head, int part, void *scratch)
{
    const struct gd_attention_sizes *n = &job->n;
    const struct gd_kv_batch *cache = job->cache;
    size_t item = n->bf16 ? 2 : 4;
    int32_t past = cache->past[block->sequence], begin = cache->cu_seqlens[block->sequence];
    int head = part * GD_TILE, heads = n->group - head < GD_TILE ? n->group - head : GD_TILE;
    struct gd_attention_lanes task;
    gd_attention_lanes_init(&task, n, scratch);
    for (int32_t r = block->row; r < block->row + block->count; r++)
        for (int h = 0; h < heads; h++) {
            int lane = task.count++;
            int64_t at = ((int64_t)(begin + r) * n->heads + kv_head * n->group + head + h) * n->head_dim;
            task.q_row[lane] = (const char *)job->q + (size_t)at * item;
            task.out_row[lane] = (char *)job->out + (size_t)at * item;
            task.first[lane] = gd_attention_first_key(past + r, 0, n->window);
            task.end[lane] = n->cross ? past : past + r + 1;
        }
    task.bias = job->bias != NULL ? job->bias + (size_t)kv_head * (size_t)gd_attention_bias_width(n) : NULL;
    task.row = past + block->row;
    const struct gd_attention_forward *isa = task.count <= job->few_max ? job->few : job->isa;
    task.next_bytes = page_head_bytes(cache);
    isa->begin(&task);
    int32_t end = task.end[task.count - 1];
    const int32_t *table = cache->page_table + (int64_t)block->sequence * cache->page_table_stride;
    for (int32_t page = task.first[0] / GD_KV_PAGE_TOKENS; page * GD_KV_PAGE_TOKENS < end; page++) {
        int32_t key = page * GD_KV_PAGE_TOKENS, count = end - key < GD_KV_PAGE_TOKENS ? end - key : GD_KV_PAGE_TOKENS;
        bool more = key + GD_KV_PAGE_TOKENS < end;
        task.next_keys = more ? page_rows(job, table[page + 1], 0, kv_head) : NULL;
        task.next_values = more ? page_rows(job, table[page + 1], 1, kv_head) : NULL;
        isa->absorb(&task, page_rows(job, table[page], 0, kv_head), page_rows(job, table[page], 1, kv_head), cache->dtype == GD_BF16,
                    n->head_dim, key, count);
    }
    isa->finish(&task);
}

static void run_numbered(const struct job *job, int task, int thread)
{
    int per_block = job->n.kv_heads * job->group_parts;
    run_task(job, &job->blocks[job->order[task / per_block]], task % per_block / job->group_parts, task % per_block % job->group_parts,
             job->task_scratch + (size_t)thread * gd_attention_scratch_bytes(job->n.head_dim));
}

static void run_part(void *context, int64_t part, int thread)
{
    run_numbered(context, (int)part, thread);
}

static void run_all(struct job *job)
{
    int tasks = job->block_count * job->n.kv_heads * job->group_parts;
    if (job->work < CREW_WORK * (int64_t)tasks) {
        gd_crew_run(tasks, run_part, job);
        return;
    }
#pragma omp parallel if (tasks > 1)
    {
#pragma omp for schedule(static, 1)
        for (int t = 0; t < tasks; t++)
            run_numbered(job, t, omp_get_thread_num());
    }
}

/* Blocks of as many rows as fill the lanes of a task, longest first. */
static void make_blocks(struct job *job, void *scratch, int64_t rows)
{
    const struct gd_kv_batch *cache = job->cache;
    struct row_block *blocks = scratch;
    int32_t *order = (int32_t *)(blocks + rows), *cost = order + rows, *bins = cost + rows;
    int32_t step = job->n.group < GD_TILE ? GD_TILE / job->n.group : 1;
    for (int s = 0; s < cache->sequence_count; s++) {
        int32_t count = cache->cu_seqlens[s + 1] - cache->cu_seqlens[s];
        for (int32_t r = 0; r < count; r += step) {
            int32_t n = count - r < step ? count - r : step, units = (cache->past[s] + r + n) / COST_KEYS;
            cost[job->block_count] = units < COST_MAX ? units : COST_MAX;
            job->work += (int64_t)n * (cache->past[s] + r + n) * job->n.heads * job->n.head_dim;
            blocks[job->block_count++] = (struct row_block){s, r, n};
        }
    }
    gd_order_by_cost(order, cost, job->block_count, bins, COST_MAX);
    job->blocks = blocks;
    job->order = order;
}

static bool check_cache(const struct job *job, int64_t rows, struct gd_error *err)
{
    const struct gd_kv_batch *cache = job->cache;
    if (cache->kv_heads != job->n.kv_heads || cache->head_dim != job->n.head_dim || job->layer >= cache->layer_count ||
        (cache->dtype != GD_F32 && cache->dtype != GD_BF16))
        return gd_fail(err, GD_INTERNAL, "attention_cached: a cache of %d layers, %d kv heads of %d in %s does not fit layer "
                       "%d, %d kv heads of %d", cache->layer_count, cache->kv_heads, cache->head_dim,
                       gd_dtype_name(cache->dtype), job->layer, job->n.kv_heads, job->n.head_dim);
    if (cache->sequence_count < 0 || cache->cu_seqlens[0] != 0)
        return gd_fail(err, GD_INTERNAL, "attention_cached: %d sequences from row %d", cache->sequence_count,
                       cache->cu_seqlens[0]);
    for (int s = 0; s < cache->sequence_count; s++) {
        int32_t begin = cache->cu_seqlens[s], end = cache->cu_seqlens[s + 1];
        int64_t keys = (int64_t)cache->past[s] + (job->n.cross ? 0 : end - begin);
        int64_t pages = (keys + GD_KV_PAGE_TOKENS - 1) / GD_KV_PAGE_TOKENS;
        if (end < begin || end > rows || cache->past[s] < 0 || pages > cache->page_table_stride)
            return gd_fail(err, GD_INTERNAL, "attention_cached: sequence %d with rows %d to %d of %" PRId64 ", past %d, page "
                           "table of %d", s, begin, end, rows, cache->past[s], cache->page_table_stride);
    }
    return true;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    int64_t rows = args->in[0].shape[0];
    struct job job = {
        .n = gd_attention_sizes(args->params, args->in[0].dtype, rows, rows, 0, args->in[2].data == NULL),
        .cache = args->in[1].data, .layer = (int)args->params->i[4],
        .q = args->in[0].data, .k = args->in[2].data, .v = args->in[3].data, .out = args->out[0].data,
    };
    char *table = (char *)args->scratch + list_bytes(rows);
    job.task_scratch = table + gd_attention_bias_bytes(&job.n);
    if (job.n.buckets > 0) {
        gd_attention_bias_table((float *)table, &job.n, args->weight[4] != NULL ? gd_weight_vector(args->weight[4]) : args->in[4].data);
        job.bias = (float *)table;
    }
    job.group_parts = (job.n.group + GD_TILE - 1) / GD_TILE;
    int lanes = gd_lanes();
    job.isa = lanes == 16 ? &gd_attention_forward_16 : lanes == 8 ? &gd_attention_forward_8 : &gd_attention_forward_4;
    job.few = lanes == 16 ? &gd_attention_few_16 : lanes == 8 ? &gd_attention_few_8 : &gd_attention_few_4;
    job.few_max = lanes / 2;
    if (!check_cache(&job, rows, err))
        return false;
    size_t row_bytes = (size_t)job.n.heads * (size_t)job.n.head_dim * (job.n.bf16 ? 2 : 4);
    size_t used = (size_t)job.cache->cu_seqlens[job.cache->sequence_count];
    memset((char *)job.out + used * row_bytes, 0, ((size_t)rows - used) * row_bytes);
    make_blocks(&job, args->scratch, rows);
    if (!job.n.cross)
        store_rows(&job);
    run_all(&job);
    return true;
}

const struct gd_op gd_op_attention_cached = {
    .name = "attention_cached", .in_min = 2, .in_max = 5, .out_count = 1, .shape = shape, .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu, .inplace = -1,
};

struct gd_value *gd_attention_cached(struct gd_graph *g, struct gd_value *q, struct gd_value *k, struct gd_value *v,
                                     struct gd_value *cache, int layer, const struct gd_attention_options *options)
{
    struct gd_op_params params = gd_attention_params(options, layer);
    if (g != NULL && options->key_cu_seqlens != NULL)
        return gd_graph_fail(g, "attention_cached: the cache itself knows its sequences' keys");
    return gd_graph_call(g, &gd_op_attention_cached, (struct gd_value *[]){q, cache, k, v, options->bias}, 5, &params);
}
