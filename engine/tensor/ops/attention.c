/*
 * Attention over packed segments, each with the prefix that it continues (attention_blocks.h), for training and scoring:
 *     o[i] = sum_j softmax_j(cap(scale * q[i] . k[j])) v[j],  j in the prefix of i's segment or in the segment, i - window < j <= i,
 * or i - window < j < i + window where it is bidirectional; cap(s) = c tanh(s / c) with a softcap of c. A position bias adds a
 * number by i - j (attention_bias.h). Cross attention: j in i's segment of other rows. Inputs 4 to 6: prefix, offsets of the
 * keys, bias. Online over blocks of keys (attention_forward.h), one task for each block of rows and head.
 */
#include "engine/tensor/ops.h"
#include "engine/tensor/ops/attention_blocks.h"
#include "engine/tensor/ops/attention_lanes.h"

#define LANES 16
#include "engine/tensor/ops/attention_forward.h"
#undef LANES
#define LANES 8
#include "engine/tensor/ops/attention_forward.h"
#undef LANES
#define LANES 4
#include "engine/tensor/ops/attention_forward.h"
#undef LANES

struct job {
    struct gd_attention_sizes n;
    const struct gd_attention_forward *isa;
    const void *q, *k, *v;
    void *out;
    float *lse;                          /* [T, heads] */
    const float *bias;                   /* table, or NULL */
    const struct gd_attention_block *blocks;
    const int32_t *order;
    int block_count;
    char *task_scratch;                  /* one block a thread */
};

static bool shape(struct gd_graph *graph, struct gd_call *call)
{
    const struct gd_value *q = call->in[0];
    if (!gd_attention_check(graph, "attention", q, call->in[1], call->in[2], &call->params, call->in[5] != NULL) ||
        call->in[1] == NULL || !gd_attention_check_bias(graph, "attention", call->in[6], &call->params) ||
        !gd_attention_check_offsets(graph, "attention", call->in[3], call->in[4], call->in[5]))
        return false;
    call->out[0]->dtype = q->dtype;
    call->out[0]->rank = 2;
    call->out[0]->shape[0] = q->shape[0];
    call->out[0]->shape[1] = q->shape[1];
    call->out[1]->dtype = GD_F32;
    call->out[1]->rank = 2;
    call->out[1]->shape[0] = q->shape[0];
    call->out[1]->shape[1] = call->params.i[0];
    return true;
}

static size_t scratch_bytes(const struct gd_call *call)
{
    struct gd_attention_sizes n = gd_attention_sizes(&call->params, call->in[0]->dtype, 0, 0, 0, false);
    return gd_attention_blocks_bytes(call->in[0]->shape[0], call->in[3]->shape[0] - 1) + gd_attention_bias_bytes(&n) +
           (size_t)omp_get_max_threads() * gd_attention_scratch_bytes(call->params.i[2]);
}

/* The keys [key, end), in blocks. */
static void absorb(const struct job *job, struct gd_attention_lanes *task, int head, int32_t key, int32_t end)
{
    const struct gd_attention_sizes *n = &job->n;
    int64_t kv_row = (int64_t)n->kv_heads * n->head_dim;
    for (; key < end; key += GD_TILE) {
        int32_t count = end - key < GD_TILE ? end - key : GD_TILE;
        size_t at = ((size_t)key * (size_t)kv_row + (size_t)(head / n->group) * (size_t)n->head_dim) * (n->bf16 ? 2 : 4);
        job->isa->absorb(task, (const char *)job->k + at, (const char *)job->v + at, n->bf16, kv_row, key, count);
    }
}

static void run_task(const struct job *job, const struct gd_attention_block *block, int head, void *scratch)
{
    const struct gd_attention_sizes *n = &job->n;
    size_t item = n->bf16 ? 2 : 4;
    int64_t q_row = (int64_t)n->heads * n->head_dim;
    struct gd_attention_lanes task;
    gd_attention_lanes_init(&task, n, scratch);
    task.count = block->end - block->begin;
    for (int i = 0; i < task.count; i++) {
        int64_t row = block->begin + i, at = row * q_row + (int64_t)head * n->head_dim;
        task.q_row[i] = (const char *)job->q + (size_t)at * item;
        task.out_row[i] = (char *)job->out + (size_t)at * item;
        task.lse[i] = job->lse + row * n->heads + head;
        task.first[i] = gd_attention_first_prefix_key(block, (int32_t)row, n->window);
        task.end[i] = block->prefix_end;
    }
    task.bias = job->bias != NULL ? job->bias + (size_t)head * (size_t)gd_attention_bias_width(n) : NULL;
    task.row = block->prefix_end + block->begin - block->segment_begin;
    job->isa->begin(&task);
    int32_t key = task.first[0] - (task.first[0] - block->prefix_begin) % GD_TILE;
    absorb(job, &task, head, key, block->prefix_end);
    if (n->cross) {
        job->isa->finish(&task);
        return;
    }
    task.row = block->begin;
    for (int i = 0; i < GD_TILE; i++) { /* lanes beyond the last row repeat it */
        int32_t row = block->begin + (i < task.count ? i : task.count - 1);
        task.first[i] = gd_attention_first_key(row, block->segment_begin, n->window);
        task.end[i] = gd_attention_end_key(n, row, block->segment_end);
    }
    key = task.first[0] - (task.first[0] - block->segment_begin) % GD_TILE;
    absorb(job, &task, head, key, task.end[task.count - 1]);
    job->isa->finish(&task);
}

static void run_all(const struct job *job)
{
    const struct gd_attention_sizes *n = &job->n;
    int64_t tasks = (int64_t)job->block_count * n->heads;
#pragma omp parallel if (tasks > 1 && n->rows * n->heads * n->head_dim >= GD_PARALLEL_MIN)
    {
        char *scratch = job->task_scratch + (size_t)omp_get_thread_num() * gd_attention_scratch_bytes(n->head_dim);
#pragma omp for schedule(static, 1)
        for (int64_t t = 0; t < tasks; t++)
            run_task(job, &job->blocks[job->order[t / n->heads]], (int)(t % n->heads), scratch);
    }
}

/* Blocks of keys that a block of rows sees, as far as they can be counted apart. */
static int32_t block_cost(const struct gd_attention_sizes *n, const struct gd_attention_block *block)
{
    int32_t keys = block->prefix_end - gd_attention_first_prefix_key(block, block->begin, n->window);
    if (!n->cross)
        keys += gd_attention_end_key(n, block->begin, block->segment_end) - 1 -
                gd_attention_first_key(block->begin, block->segment_begin, n->window);
    int64_t most = n->rows / GD_TILE;
    return keys / GD_TILE < most ? keys / GD_TILE : (int32_t)most;
}

static bool run_cpu(const struct gd_kernel_args *args, struct gd_error *err)
{
    const int32_t *cu = args->in[3].data, *prefix = args->in[4].data, *key_cu = args->in[5].data;
    int64_t rows = args->in[0].shape[0], key_rows = args->in[1].shape[0], segments = args->in[3].shape[0] - 1;
    struct job job = {
        .n = gd_attention_sizes(args->params, args->in[0].dtype, rows, key_rows, segments, key_cu != NULL),
        .q = args->in[0].data, .k = args->in[1].data, .v = args->in[2].data,
        .out = args->out[0].data, .lse = args->out[1].data,
    };
    char *table = (char *)args->scratch + gd_attention_blocks_bytes(rows, segments);
    job.task_scratch = table + gd_attention_bias_bytes(&job.n);
    if (job.n.buckets > 0) {
        gd_attention_bias_table((float *)table, &job.n, args->weight[6] != NULL ? gd_weight_vector(args->weight[6]) : args->in[6].data);
        job.bias = (float *)table;
    }
    int lanes = gd_lanes();
    job.isa = lanes == 16 ? &gd_attention_forward_16 : lanes == 8 ? &gd_attention_forward_8 : &gd_attention_forward_4;

    struct gd_attention_block *blocks = args->scratch;
    if (!gd_attention_split(blocks, &job.block_count, cu, prefix, key_cu, segments, rows, key_rows, err))
        return false;
    /* Longest tasks first: equal shares for all threads although causal blocks differ in length. */
    int64_t most = gd_attention_blocks_max(rows, segments);
    int32_t *order = (int32_t *)(blocks + most), *cost = order + most, *bins = cost + most;
    for (int b = 0; b < job.block_count; b++)
        cost[b] = block_cost(&job.n, &blocks[b]);
    gd_order_by_cost(order, cost, job.block_count, bins, (int)(rows / GD_TILE));
    job.blocks = blocks;
    job.order = order;

    size_t used = (size_t)cu[segments], unused = (size_t)rows - used, item = job.n.bf16 ? 2 : 4;
    size_t width = (size_t)job.n.heads * (size_t)job.n.head_dim;
    memset((char *)job.out + used * width * item, 0, unused * width * item);
    memset(job.lse + used * (size_t)job.n.heads, 0, unused * (size_t)job.n.heads * sizeof(float));
    run_all(&job);
    return true;
}

static bool gradient(struct gd_graph *graph, const struct gd_call *call, struct gd_value *const *out_grad,
                     struct gd_value **in_grad)
{
    extern const struct gd_op gd_op_attention_grad;
    if (out_grad[1] != NULL)
        return gd_graph_fail(graph, "attention: its log-sum-exp is not differentiable") != NULL;
    struct gd_value *in[] = {call->in[0], call->in[1], call->in[2], call->out[0], call->out[1], out_grad[0], call->in[3],
                             call->in[4], call->in[5], call->in[6]};
    struct gd_op_params params = call->params;
    params.i[4] = call->in[6] != NULL && call->in[6]->needs_gradient;
    struct gd_value *dq = gd_graph_call(graph, &gd_op_attention_grad, in, GD_COUNT(in), &params);
    for (int i = 0; i < 3; i++)
        in_grad[i] = call->in[i]->needs_gradient ? gd_value_output(dq, i) : NULL;
    if (params.i[4] != 0)
        in_grad[6] = gd_value_output(dq, 3);
    return dq != NULL;
}

static void reference(const struct gd_op_case *op_case, double *const *in, double **out)
{
    int64_t rows = op_case->in[0].shape[0], keys = op_case->in[1].shape[0], segments = op_case->in[3].shape[0] - 1, far = 0;
    struct gd_attention_sizes n = gd_attention_sizes(&op_case->params, GD_F32, rows, keys, segments, op_case->in[5].rank > 0);
    const double *prefix = op_case->in[4].rank > 0 ? in[4] : NULL, *key_cu = n.cross ? in[5] : NULL;
    int64_t q_row = (int64_t)n.heads * n.head_dim, kv_row = (int64_t)n.kv_heads * n.head_dim;
    memset(out[0], 0, (size_t)(rows * q_row) * sizeof(double));
    memset(out[1], 0, (size_t)(rows * n.heads) * sizeof(double));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t h = 0; h < n.heads; h++) {
            double sum = 0, *o = out[0] + i * q_row + h * n.head_dim;
            for (int64_t j = 0; j < (n.bidirectional || n.cross ? keys : i + 1); j++) {
                if (!gd_attention_visible(&n, in[3], prefix, key_cu, i, j, &far))
                    continue;
                double s = 0, slope;
                for (int64_t d = 0; d < n.head_dim; d++)
                    s += in[0][i * q_row + h * n.head_dim + d] * in[1][j * kv_row + h / n.group * n.head_dim + d];
                double bias = n.buckets > 0 ? in[6][gd_attention_bucket(&n, far) * n.heads + h] : 0;
                double p = exp(gd_attention_score(&n, s, &slope) + bias);
                sum += p;
                for (int64_t d = 0; d < n.head_dim; d++)
                    o[d] += p * in[2][j * kv_row + h / n.group * n.head_dim + d];
            }
            for (int64_t d = 0; sum > 0 && d < n.head_dim; d++)
                o[d] /= sum;
            out[1][i * n.heads + h] = sum > 0 ? log(sum) : 0;
        }
}

#define QKV(t, heads, kv_heads, dh, wanted)                                                                            \
    {.dtype = GD_F32, .rank = 2, .shape = {t, (heads) * (dh)}, .fill = GD_FILL_NORMAL, .gradient = wanted},            \
        {.dtype = GD_F32, .rank = 2, .shape = {t, (kv_heads) * (dh)}, .fill = GD_FILL_NORMAL, .gradient = wanted},     \
        {.dtype = GD_F32, .rank = 2, .shape = {t, (kv_heads) * (dh)}, .fill = GD_FILL_NORMAL, .gradient = wanted}
#define OFFSETS(segments, used) \
    {.dtype = GD_I32, .rank = 1, .shape = {(segments) + 1}, .fill = GD_FILL_OFFSETS, .fill_limit = used}
#define CASE(text, t, h, g, dh, win, segments, used, wanted)                                                           \
    {.name = text, .in_count = 4, .in = {QKV(t, h, g, dh, wanted), OFFSETS(segments, used)},                           \
     .params = {.i = {h, g, dh, win}, .f = {0.125}}, .tolerance = 2e-5, .tolerance_bf16 = 2e-2}
#define EVERY(text, t, h, g, dh, win, segments, used, both, cap, wanted)                                               \
    {.name = text, .in_count = 5, .in = {QKV(t, h, g, dh, wanted), OFFSETS(segments, used),                            \
     {.dtype = GD_I32, .rank = 1, .shape = {2 * (segments)}, .fill = GD_FILL_PREFIXES, .fill_limit = used}},           \
     .params = {.i = {h, g, dh, win, 0, both}, .f = {0.125, cap}}, .tolerance = 2e-5, .tolerance_bf16 = 2e-2}
#define TABLE(h, buckets, wanted) {.dtype = GD_F32, .rank = 2, .shape = {buckets, h}, .fill = GD_FILL_SMALL, .gradient = wanted, .as_weight = !(wanted)}
#define BIAS_CASE(text, t, h, dh, win, segments, used, both, cap, buckets, reach, wanted)                              \
    {.name = text, .in_count = 7, .in = {QKV(t, h, h, dh, wanted), OFFSETS(segments, used),                            \
     {.dtype = GD_I32, .rank = 1, .shape = {2 * (segments)}, .fill = GD_FILL_PREFIXES, .fill_limit = used}, {.rank = 0}, \
     TABLE(h, buckets, wanted)}, .params = {.i = {h, h, dh, win, 0, both, buckets, reach}, .f = {0.5, cap}},            \
     .tolerance = 2e-5, .tolerance_bf16 = 2e-2}
#define CROSS_CASE(text, t, keys, h, g, dh, segments, used, key_used, wanted)                                          \
    {.name = text, .in_count = 6, .in = {                                                                              \
        {.dtype = GD_F32, .rank = 2, .shape = {t, (h) * (dh)}, .fill = GD_FILL_NORMAL, .gradient = wanted},            \
        {.dtype = GD_F32, .rank = 2, .shape = {keys, (g) * (dh)}, .fill = GD_FILL_NORMAL, .gradient = wanted},         \
        {.dtype = GD_F32, .rank = 2, .shape = {keys, (g) * (dh)}, .fill = GD_FILL_NORMAL, .gradient = wanted},         \
        OFFSETS(segments, used), {.rank = 0}, OFFSETS(segments, key_used)},                                           \
     .params = {.i = {h, g, dh}, .f = {0.3, 0.9}}, .tolerance = 2e-5, .tolerance_bf16 = 2e-2}
#define PREFIX_CASE(text, t, h, g, dh, win, segments, used, wanted)                                                    \
    {.name = text, .in_count = 5, .in = {QKV(t, h, g, dh, wanted), OFFSETS(segments, used),                            \
     {.dtype = GD_I32, .rank = 1, .shape = {2 * (segments)}, .fill = GD_FILL_PREFIXES, .fill_limit = used}},           \
     .params = {.i = {h, g, dh, win}, .f = {0.125}}, .tolerance = 2e-5, .tolerance_bf16 = 2e-2}

static const struct gd_op_case cases[] = {
    CASE("one row", 1, 1, 1, 1, 0, 1, 1, true),
    CASE("odd sizes", 7, 3, 1, 5, 0, 2, 7, true),
    CASE("padding rows", 9, 4, 2, 6, 0, 3, 6, true),
    CASE("window 3", 13, 2, 2, 4, 3, 2, 13, true),
    CASE("groups of 3, several blocks", 150, 3, 1, 16, 0, 2, 143, false),
    CASE("window across blocks", 200, 2, 1, 8, 70, 1, 200, false),
    CASE("window shorter than a block", 190, 1, 1, 20, 17, 1, 190, false),
    CASE("many short segments", 100, 2, 1, 12, 0, 17, 97, false),
    CASE("as in SmolLM2", 330, 9, 3, 64, 0, 3, 320, false),
    CASE("wide heads", 70, 2, 1, 256, 0, 1, 70, false),
    CASE("heads of 96, window", 150, 2, 1, 96, 75, 2, 147, false),
    CASE("heads of 128", 210, 4, 2, 128, 0, 2, 205, false),
    CASE("heads of 168", 130, 2, 2, 168, 0, 1, 129, false),
    CASE("heads of 300", 45, 2, 1, 300, 0, 2, 44, false),
    CASE("heads of 1024", 21, 1, 1, 1024, 0, 2, 20, false),
    PREFIX_CASE("short prefixes", 17, 2, 1, 6, 0, 3, 15, true),
    PREFIX_CASE("short prefixes, window 4", 21, 2, 2, 5, 4, 4, 21, true),
    PREFIX_CASE("prefixes of several blocks, two segments on one", 600, 3, 1, 16, 0, 6, 590, false),
    PREFIX_CASE("window across a prefix", 500, 2, 1, 20, 90, 5, 490, false),
    PREFIX_CASE("many segments with prefixes", 160, 2, 1, 12, 0, 17, 157, false),
    PREFIX_CASE("dozens of segments with prefixes, window", 300, 2, 1, 8, 30, 80, 290, false),
    PREFIX_CASE("heads of 256 in threes, prefixes, window", 120, 3, 1, 256, 40, 4, 117, false),
    EVERY("one row, bidirectional", 1, 1, 1, 1, 0, 1, 1, true, 0, true),
    EVERY("bidirectional, odd sizes, short prefixes", 17, 2, 1, 6, 0, 3, 15, true, 0, true),
    EVERY("bidirectional, window 4", 21, 2, 2, 5, 4, 4, 21, true, 0, true),
    EVERY("bidirectional, several blocks", 330, 3, 1, 16, 0, 6, 320, true, 0, false),
    EVERY("bidirectional, window across blocks", 300, 2, 1, 20, 70, 3, 290, true, 0, false),
    EVERY("softcap", 17, 2, 1, 6, 0, 3, 15, false, 0.5, true),
    EVERY("softcap, window 4, bidirectional", 21, 2, 2, 5, 4, 4, 21, true, 0.3, true),
    EVERY("softcap, wide, several blocks", 230, 4, 2, 64, 90, 3, 220, false, 2, false),
    EVERY("softcap of scores that it leaves as they are", 70, 2, 1, 8, 0, 2, 70, false, 1e6, false),
    EVERY("heads of 201, softcap, window, bidirectional", 75, 2, 1, 201, 20, 2, 71, true, 2, false),
    BIAS_CASE("position bias", 17, 2, 6, 0, 3, 15, false, 0, 8, 9, true),
    BIAS_CASE("position bias, bidirectional", 18, 3, 5, 0, 3, 18, true, 0, 8, 7, true),
    BIAS_CASE("position bias, window, softcap", 21, 2, 5, 4, 4, 21, true, 0.6, 9, 8, true),
    BIAS_CASE("frozen position bias, several blocks", 330, 3, 16, 0, 6, 320, true, 0, 32, 128, false),
    BIAS_CASE("frozen position bias, causal, window across blocks", 300, 2, 20, 90, 3, 290, false, 0, 32, 128, false),
    CROSS_CASE("cross, odd sizes", 17, 23, 4, 2, 5, 3, 15, 21, true),
    CROSS_CASE("cross, one key", 5, 1, 1, 1, 3, 1, 5, 1, true),
    CROSS_CASE("cross, segments without keys and without rows", 6, 4, 2, 1, 4, 5, 5, 3, false),
    CROSS_CASE("cross, more keys than rows", 90, 400, 3, 1, 16, 3, 90, 390, false),
    CROSS_CASE("cross, more rows than keys", 400, 90, 4, 4, 64, 3, 390, 90, false),
};

const struct gd_op gd_op_attention = {
    .name = "attention", .in_min = 4, .in_max = 7, .out_count = 2, .shape = shape, .scratch_bytes = scratch_bytes,
    .run_cpu = run_cpu, .gradient = gradient, .inplace = -1, .reference = reference, .cases = cases,
    .case_count = GD_COUNT(cases),
};

struct gd_value *gd_attention(struct gd_graph *g, struct gd_value *q, struct gd_value *k, struct gd_value *v,
                              struct gd_value *cu_seqlens, struct gd_value *prefix, const struct gd_attention_options *options)
{
    struct gd_op_params params = gd_attention_params(options, 0);
    struct gd_value *in[] = {q, k, v, cu_seqlens, prefix, options->key_cu_seqlens, options->bias};
    return gd_graph_call(g, &gd_op_attention, in, GD_COUNT(in), &params);
}
