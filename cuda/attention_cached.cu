/*
 * Attention for inference (engine/tensor/ops/attention_cached.c): stores the batch's keys and values in their pages, then every
 * row sees its sequence's past and its own earlier rows.
 *
 * bf16: a block has up to 64 lanes, the rows of a sequence for all heads of one kv head, and takes keys page by page. Keys are cut
 * into chunks whose ends are fixed (chunk_begin), each with a softmax of its own, and chunks are merged in their order. So
 * a row's bits are the same whether one block does all its chunks (many rows, short contexts) or each has its own block and a
 * second kernel merges them (few rows, long contexts), whatever else is in the batch and however its prompt was cut.
 * Other types: rows of one head, without chunks (attention_plain.h).
 *
 * What is staged says where sequences begin, what they have in the pages, and which are done by chunks: longest first, as many
 * as the scratch has room for. It depends on the batch alone, and the launches on shapes alone.
 */
#include "cuda/attention_plain.h"

#define LANES GD_ATTENTION_ROWS
#define SPLIT_ROWS 8                  /* sequences with more rows in a batch fill blocks without being split */
#define CHUNKS 128
#define CHUNKS_OF_A_SIZE 16           /* of 128 keys, then as many of twice as many, and so on */
#define CHUNK_KEYS 128
#define PAGE GD_KV_PAGE_TOKENS

/* Where chunk c begins; chunk CHUNKS - 1 has no end. */
#define CHUNK_BEGIN(c)                                                                             \
    (CHUNKS_OF_A_SIZE * CHUNK_KEYS * ((1 << (c) / CHUNKS_OF_A_SIZE) - 1) +                         \
     (c) % CHUNKS_OF_A_SIZE * (CHUNK_KEYS << (c) / CHUNKS_OF_A_SIZE))

/* What is staged, i32: counts, begin [T + 1], past [T], first [T], items [items][2], pages [T][stride]. */
enum { STAGED_SEQUENCES, STAGED_ITEMS, STAGED_COUNTS };

/* Pairs of a row and a chunk that scratch has room for. */
static inline long long slots_of(long long rows)
{
    return 128 + 16 * rows < 2048 ? 128 + 16 * rows : 2048;
}

struct staged {
    const int *counts;
    const int *begin;                 /* of sequences that have rows: where they begin in the batch; then the rows in use */
    const int *past;                  /* tokens in the pages before this batch */
    const int *first;                 /* slot of row 0 and chunk 0, of a sequence that is split; or -1 */
    const int *items;                 /* sequence and chunk */
    const int *table;
    int stride;
};

struct cache {
    const void *pages;
    int layers, layer;
};

struct partials {
    float *sums;                      /* [slots][heads][head_dim] */
    float *weights;                   /* [slots][heads][2]: maximum and sum */
};

template <class T> CU_FN long long page_rows(const attention_shape &n, const cache &cache, int page, int which, int kv_head)
{
    return ((((long long)page * cache.layers + cache.layer) * 2 + which) * n.kv_heads + kv_head) * PAGE * n.head_dim;
}

CU_FN int sequence_of(const staged &at, int row)
{
    int s = 0, above = at.counts[STAGED_SEQUENCES];
    while (above - s > 1) {
        int middle = s + (above - s) / 2;
        if (at.begin[middle] <= row)
            s = middle;
        else
            above = middle;
    }
    return s;
}

CU_FN int chunk_of(int key)
{
    int size = 31 - __clz(key / (CHUNKS_OF_A_SIZE * CHUNK_KEYS) + 1);
    int c = size * CHUNKS_OF_A_SIZE + (key - CHUNKS_OF_A_SIZE * CHUNK_KEYS * ((1 << size) - 1)) / (CHUNK_KEYS << size);
    return c < CHUNKS - 1 ? c : CHUNKS - 1;
}

CU_FN int chunk_end(int chunk)
{
    return chunk < CHUNKS - 1 ? CHUNK_BEGIN(chunk + 1) : GD_ATTENTION_FAR;
}

/* A block for each row. */
template <class T, class P> __global__ void store_kernel(attention_shape n, staged at, cache cache, P *pages, const T *k, const T *v)
{
    int row = (int)blockIdx.x, sequences = at.counts[STAGED_SEQUENCES], width = n.kv_heads * n.head_dim;
    if (row >= at.begin[sequences])
        return;
    int s = sequence_of(at, row), position = at.past[s] + row - at.begin[s], page = at.table[(long long)s * at.stride + position / PAGE];
    for (int which = 0; which < 2; which++)
        for (int i = (int)threadIdx.x; i < width; i += (int)blockDim.x) {
            long long to = page_rows<P>(n, cache, page, which, i / n.head_dim) + (long long)(position % PAGE) * n.head_dim + i % n.head_dim;
            pages[to] = from_f32<P>(to_f32((which ? v : k)[(long long)row * width + i]));
        }
}

/* ---- bf16 ---- */

/* Two softmaxes of a row made one: the numbers that bring both to the higher maximum. */
struct merging {
    float mine, other;
};

CU_FN merging merge_weights(float *most, float *total, float other_most, float other_total)
{
    float higher = fmaxf(*most, other_most);
    merging by = {fast_exp2(*most - higher), fast_exp2(other_most - higher)};
    *most = higher;
    *total = __fmaf_rn(*total, by.mine, __fmul_rn(other_total, by.other));
    return by;
}

CU_FN float merge_sums(float sum, const merging &by, float other)
{
    return __fmaf_rn(sum, by.mine, __fmul_rn(other, by.other));
}

/* What a block does: lanes [lane, lane_end) of sequence s (lane = row * group + head), keys [begin, end), begin a page's. */
struct cached_work {
    int s, lane, lane_end, begin, end;
    int slot, rows;                   /* of the chunk's partials for row 0, with as many for the others; -1: to the output */
};

CU_FN long long lane_offset(const attention_shape &n, int kv_head, int first_row, int lane)
{
    return ((long long)(first_row + lane / n.group) * n.heads + kv_head * n.group + lane % n.group) * n.head_dim;
}

template <int PADDED>
CU_FN void load_lanes(bf16 *tile, const attention_shape &n, const bf16 *q, int kv_head, int first_row, const cached_work &work)
{
    for (int i = (int)threadIdx.x; i < LANES * (PADDED / 8); i += (int)blockDim.x) {
        int lane = i / (PADDED / 8), c = i % (PADDED / 8) * 8;
        bool there = work.lane + lane < work.lane_end;
        const bf16 *from = q + (there ? lane_offset(n, kv_head, first_row, work.lane + lane) : 0);
        bf16 *to = tile + lane * (PADDED + 8) + c;
        if (n.vectors) {
            cp_async16(to, there && c < n.head_dim ? from + c : q, there && c < n.head_dim ? 16 : 0);
        } else {
            for (int e = 0; e < 8; e++)
                to[e] = there && c + e < n.head_dim ? from[c + e] : bf16{0};
        }
    }
}

template <int PADDED>
CU_FN void load_page(bf16 *k_tile, bf16 *v_tile, const attention_shape &n, const staged &at, const cache &cache, int kv_head, int s, int key, int end)
{
    int page = at.table[(long long)s * at.stride + key / PAGE];
    const bf16 *pages = (const bf16 *)cache.pages;
    attention_load_tile<PADDED, PAGE>(k_tile, pages + page_rows<bf16>(n, cache, page, 0, kv_head), n.head_dim, end - key, n.head_dim, n.vectors);
    attention_load_tile<PADDED, PAGE>(v_tile, pages + page_rows<bf16>(n, cache, page, 1, kv_head), n.head_dim, end - key, n.head_dim, n.vectors);
}

/* One page of keys for the warp's 16 lanes and its columns of the values. row: the position of either half's lane. */
template <int PADDED>
CU_FN void absorb(const attention_shape &n, const attention_bias &bias, const int *row, const int *head, int key, int end, const bf16 *q_tile,
                  const bf16 *k_tile, const bf16 *v_tile, float (*sum)[4], float *most, float *total)
{
    const int columns = attention_tiles<PADDED>::columns;
    float s[PAGE / 8][4];
    attention_products<PADDED, PAGE / 8>(s, q_tile, k_tile);
    attention_scores<PAGE / 8>(s, n, bias, head, row, key);
    attention_mask<PAGE / 8>(s, n, row, key, end);
    attention_soften<PAGE / 8, columns / 8>(s, sum, most, total);
    attention_add_products<PADDED, columns, PAGE / 8>(sum, s, v_tile);
}

template <int PADDED>
CU_FN void cached_rows(const attention_shape &n, const staged &at, const cache &cache, const attention_bias &bias, const bf16 *q, bf16 *out,
                       const partials &partials, const cached_work &work)
{
    const int pitch = PADDED + 8, page = PAGE * pitch, columns = attention_tiles<PADDED>::columns;
    CU_DYN_SHARED(bf16, shared);
    bf16 *q_tile = shared, *tiles = q_tile + LANES * pitch; /* two of keys, two of values */
    int kv_head = (int)blockIdx.y, lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, own = warp % 4 * 16;
    int from_column = warp / 4 * columns, first_row = at.begin[work.s];
    int mine[2] = {work.lane + own + lane / 4, work.lane + own + lane / 4 + 8};
    int row[2] = {at.past[work.s] + mine[0] / n.group, at.past[work.s] + mine[1] / n.group};
    int head[2] = {kv_head * n.group + mine[0] % n.group, kv_head * n.group + mine[1] % n.group};
    bool works = work.lane + own < work.lane_end; /* the warp has lanes */
    float sum[columns / 8][4] = {}, most[2] = {GD_ATTENTION_NOTHING, GD_ATTENTION_NOTHING}, total[2] = {};
    float all[columns / 8][4] = {}, all_most[2] = {GD_ATTENTION_NOTHING, GD_ATTENTION_NOTHING}, all_total[2] = {};
    for (int key = work.begin - PAGE, stage = 1; key < work.end; key += PAGE, stage = 1 - stage) {
        int next = key + PAGE;
        if (key >= work.begin)
            __syncthreads(); /* nobody reads the page before this one any more */
        else if (next < work.end)
            load_lanes<PADDED>(q_tile, n, q, kv_head, first_row, work);
        if (next < work.end)
            load_page<PADDED>(tiles + (1 - stage) * page, tiles + (3 - stage) * page, n, at, cache, kv_head, work.s, next, work.end);
        cp_async_commit();
        if (key < work.begin)
            continue;
        cp_async_wait<1>();
        __syncthreads(); /* this page is there */
        if (!works)
            continue;
        absorb<PADDED>(n, bias, row, head, key, work.end, q_tile + own * pitch, tiles + stage * page,
                       tiles + (2 + stage) * page + from_column, sum, most, total);
        if (next < chunk_end(chunk_of(key)) && next < work.end)
            continue;
        merging by[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            total[half] = quad_sum(total[half]);
            if (work.slot < 0)
                by[half] = merge_weights(&all_most[half], &all_total[half], most[half], total[half]);
        }
        if (work.slot >= 0)
            break; /* one chunk; the last page: no copies are under way */
#pragma unroll
        for (int i = 0; i < columns / 8; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                all[i][e] = merge_sums(all[i][e], by[e / 2], sum[i][e]);
                sum[i][e] = 0;
            }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            most[half] = GD_ATTENTION_NOTHING;
            total[half] = 0;
        }
    }
    cp_async_wait<0>();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (mine[half] >= work.lane_end)
            continue;
        if (work.slot >= 0) {
            long long slot = (long long)(work.slot + mine[half] / n.group) * n.heads + head[half];
            if (lane % 4 == 0 && from_column == 0) {
                partials.weights[slot * 2] = most[half];
                partials.weights[slot * 2 + 1] = total[half];
            }
#pragma unroll
            for (int i = 0; i < columns / 8; i++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int column = from_column + i * 8 + lane % 4 * 2 + e;
                    if (column < n.head_dim)
                        partials.sums[slot * n.head_dim + column] = sum[i][half * 2 + e];
                }
            continue;
        }
        float factor = all_total[half] != 0 ? 1 / all_total[half] : 0;
        bf16 *to = out + lane_offset(n, kv_head, first_row, mine[half]);
#pragma unroll
        for (int i = 0; i < columns / 8; i++)
            attention_store_pair(to, from_column + i * 8 + lane % 4 * 2, n.head_dim, all[i][half * 2] * factor, all[i][half * 2 + 1] * factor);
    }
}

/* Keys that some row of [row, row_end) of sequence s sees: from a page's first. */
CU_FN attention_part seen_pages(const attention_shape &n, const staged &at, int s, int row, int row_end)
{
    attention_part keys = {0, at.past[s] + (n.cross ? 0 : at.begin[s + 1] - at.begin[s]), at.past[s] - at.begin[s]};
    keys = attention_seen_keys(n, keys, at.begin[s] + row, at.begin[s] + row_end);
    keys.begin = keys.begin / PAGE * PAGE;
    return keys;
}

/* False: the block has nothing to do, or has done it. The first blocks have one chunk each, the others all of their lanes' keys. */
CU_FN bool find_work(const attention_shape &n, const staged &at, bf16 *out, const partials &partials, int items, int parts, cached_work *work)
{
    int sequences = at.counts[STAGED_SEQUENCES], kv_head = (int)blockIdx.y, item = (int)blockIdx.x / parts;
    if (item < items) {
        if (item >= at.counts[STAGED_ITEMS])
            return false;
        int s = at.items[2 * item], chunk = at.items[2 * item + 1], rows = at.begin[s + 1] - at.begin[s], lane = (int)blockIdx.x % parts * LANES;
        int lane_end = lane + LANES < rows * n.group ? lane + LANES : rows * n.group;
        attention_part keys = seen_pages(n, at, s, 0, rows);
        *work = cached_work{s, lane, lane_end, CHUNK_BEGIN(chunk), keys.end < chunk_end(chunk) ? keys.end : chunk_end(chunk),
                            at.first[s] + chunk * rows, rows};
        work->begin = work->begin > keys.begin ? work->begin : keys.begin;
        if (lane < lane_end && work->begin < work->end)
            return true;
        for (int i = lane + (int)threadIdx.x; i < lane_end; i += (int)blockDim.x) {
            long long slot = (long long)(work->slot + i / n.group) * n.heads + kv_head * n.group + i % n.group;
            partials.weights[slot * 2] = GD_ATTENTION_NOTHING;
            partials.weights[slot * 2 + 1] = 0;
        }
        return false;
    }
    attention_tile tile = attention_find_tile(at.begin, sequences, n.rows, LANES, n.group, (int)(gridDim.x - 1 - blockIdx.x));
    if (tile.begin == tile.end)
        return false;
    int s = tile.segment, begin = s < sequences ? at.begin[s] * n.group : 0;
    if (s == sequences) {
        for (int i = (int)threadIdx.x; i < (tile.end - tile.begin) * n.head_dim; i += (int)blockDim.x)
            out[lane_offset(n, kv_head, 0, tile.begin + i / n.head_dim) + i % n.head_dim] = bf16{0};
        return false;
    }
    if (at.first[s] >= 0)
        return false;
    attention_part keys = seen_pages(n, at, s, (tile.begin - begin) / n.group, (tile.end - 1 - begin) / n.group + 1);
    *work = cached_work{s, tile.begin - begin, tile.end - begin, keys.begin, keys.end, -1, 0};
    return true;
}

template <int PADDED>
__global__ __launch_bounds__(128 * attention_tiles<PADDED>::halves, 1) void cached_kernel(attention_shape n, staged at, cache cache,
                                                                                       attention_bias bias, const bf16 *q, bf16 *out,
                                                                                       partials partials, int items, int parts)
{
    cached_work work;
    if (find_work(n, at, out, partials, items, parts, &work))
        cached_rows<PADDED>(n, at, cache, bias, q, out, partials, work);
}

/* A block for each row and head: the chunks of a row that was split, in their order. */
__global__ __launch_bounds__(64) void merge_kernel(attention_shape n, staged at, bf16 *out, partials partials)
{
    const int columns = GD_ATTENTION_MMA_MAX / 64;
    int row = (int)blockIdx.x, head = (int)blockIdx.y, sequences = at.counts[STAGED_SEQUENCES];
    if (row >= at.begin[sequences])
        return;
    int s = sequence_of(at, row), rows = at.begin[s + 1] - at.begin[s], r = row - at.begin[s];
    if (at.first[s] < 0)
        return;
    attention_part keys = seen_pages(n, at, s, r, r + 1);
    float sum[columns] = {}, most = GD_ATTENTION_NOTHING, total = 0;
    for (int chunk = keys.begin < keys.end ? chunk_of(keys.begin) : CHUNKS; chunk < CHUNKS && CHUNK_BEGIN(chunk) < keys.end; chunk++) {
        long long slot = (long long)(at.first[s] + chunk * rows + r) * n.heads + head;
        float other = partials.weights[slot * 2 + 1];
        if (other == 0)
            continue; /* the row sees nothing of it, and its sums may be absent */
        merging by = merge_weights(&most, &total, partials.weights[slot * 2], other);
#pragma unroll
        for (int i = 0; i < columns; i++)
            if (i * 64 + (int)threadIdx.x < n.head_dim)
                sum[i] = merge_sums(sum[i], by, partials.sums[slot * n.head_dim + i * 64 + threadIdx.x]);
    }
    float factor = total != 0 ? 1 / total : 0;
#pragma unroll
    for (int i = 0; i < columns; i++)
        if (i * 64 + (int)threadIdx.x < n.head_dim)
            out[((long long)row * n.heads + head) * n.head_dim + i * 64 + threadIdx.x] = to_bf16(sum[i] * factor);
}

/* ---- other types ---- */

struct paged_keys {
    const int *table;
    long long page_elements;
    int head_dim;
    CU_FN long long operator()(int key) const
    {
        return table[key / PAGE] * page_elements + (long long)(key % PAGE) * head_dim;
    }
};

template <class T, class P, int VALUES>
__global__ __launch_bounds__(attention_plain<VALUES>::threads, 1) void cached_plain_kernel(attention_shape n, staged at, cache cache,
                                                                                           attention_bias bias, const T *q, T *out)
{
    using plain = attention_plain<VALUES>;
    int head = (int)blockIdx.y, kv_head = head / n.group, sequences = at.counts[STAGED_SEQUENCES];
    attention_tile tile = attention_find_tile(at.begin, sequences, n.rows, plain::rows, 1, (int)(gridDim.x - 1 - blockIdx.x));
    if (tile.begin == tile.end)
        return;
    if (tile.segment == sequences) {
        attention_zero_rows(out + head * n.head_dim, (long long)n.heads * n.head_dim, tile.begin, tile.end, n.head_dim);
        return;
    }
    int first = at.begin[tile.segment];
    attention_part parts[2] = {{0, 0, 0}, seen_pages(n, at, tile.segment, tile.begin - first, tile.end - first)};
    const P *pages = (const P *)cache.pages;
    paged_keys place = {at.table + (long long)tile.segment * at.stride, (long long)cache.layers * 2 * n.kv_heads * PAGE * n.head_dim, n.head_dim};
    attention_plain_rows<T, P, VALUES>(n, bias, head, q + head * n.head_dim, pages + page_rows<P>(n, cache, 0, 0, kv_head),
                                       pages + page_rows<P>(n, cache, 0, 1, kv_head), out + head * n.head_dim, (float *)NULL, place, parts,
                                       tile.begin, tile.end);
}

/* ---- on the host ---- */

static size_t staged_ints(long long rows, long long stride)
{
    return (size_t)(STAGED_COUNTS + (rows + 1) + 2 * rows + 2 * slots_of(rows) + rows * stride);
}

static size_t staged_bytes(const struct gd_kernel_args *args)
{
    const struct gd_kv_batch *batch = (const struct gd_kv_batch *)args->in[1].data;
    return staged_ints(args->in[0].shape[0], batch->page_table_stride) * sizeof(int);
}

/* The parts of what is staged. */
static struct staged staged_at(const int *base, long long rows, int stride)
{
    struct staged at = {};
    at.counts = base;
    at.begin = at.counts + STAGED_COUNTS;
    at.past = at.begin + rows + 1;
    at.first = at.past + rows;
    at.items = at.first + rows;
    at.table = at.items + 2 * slots_of(rows);
    at.stride = stride;
    return at;
}

static int chunks_of(long long keys)
{
    int chunks = 0;
    while (chunks < CHUNKS && CHUNK_BEGIN(chunks) < keys)
        chunks++;
    return chunks;
}

/* From how many chunks on sequences are split: as few as there is room for. */
static int least_chunks(const int *begin, const int *past, int sequences, long long slots)
{
    int least = 2;
    for (; least <= CHUNKS; least *= 2) {
        long long wanted = 0;
        for (int s = 0; s < sequences; s++) {
            int rows = begin[s + 1] - begin[s], chunks = chunks_of((long long)past[s] + rows);
            wanted += rows <= SPLIT_ROWS && chunks >= least ? (long long)rows * chunks : 0;
        }
        if (wanted <= slots)
            break;
    }
    return least;
}

/* Pages that hold the past and the rows; in cross attention, which stores no rows, there may be fewer. */
static long long pages_of(const struct gd_kv_batch *batch, int s, bool cross)
{
    long long keys = (long long)batch->past[s] + (cross ? 0 : batch->cu_seqlens[s + 1] - batch->cu_seqlens[s]);
    return (keys + PAGE - 1) / PAGE;
}

static bool check_sequence(const struct gd_kv_batch *batch, int s, long long rows, bool cross, struct gd_error *err)
{
    int begin = batch->cu_seqlens[s], end = batch->cu_seqlens[s + 1], past = batch->past[s];
    if (begin >= 0 && end >= begin && end <= rows && past >= 0 && pages_of(batch, s, cross) <= batch->page_table_stride)
        return true;
    return gd_fail(err, GD_INTERNAL, "attention_cached: sequence %d with rows %d to %d of %lld, past %d, page table of %d", s, begin, end, rows, past,
                   batch->page_table_stride);
}

static bool stage(const struct gd_kernel_args *args, void *out, struct gd_error *err)
{
    const struct gd_kv_batch *batch = (const struct gd_kv_batch *)args->in[1].data;
    long long rows = args->in[0].shape[0], slots = slots_of(rows);
    struct staged at = staged_at((const int *)out, rows, batch->page_table_stride);
    int *counts = (int *)at.counts, *begin = (int *)at.begin, *past = (int *)at.past, *first = (int *)at.first, *items = (int *)at.items;
    int sequences = 0, item = 0, slot = 0;
    if (batch->sequence_count < 0 || (batch->sequence_count > 0 && batch->cu_seqlens[0] != 0))
        return gd_fail(err, GD_INTERNAL, "attention_cached: %d sequences that do not begin at row 0", batch->sequence_count);
    begin[0] = 0;
    for (int s = 0; s < batch->sequence_count; s++) {
        if (!check_sequence(batch, s, rows, args->in[2].rank == 0, err))
            return false;
        long long pages = pages_of(batch, s, false);
        int taken = batch->cu_seqlens[s + 1] - batch->cu_seqlens[s];
        if (taken == 0)
            continue;
        past[sequences] = batch->past[s];
        memcpy((int *)at.table + (size_t)sequences * (size_t)at.stride, batch->page_table + (size_t)s * (size_t)batch->page_table_stride,
               (size_t)(pages < at.stride ? pages : at.stride) * sizeof(int));
        begin[++sequences] = batch->cu_seqlens[s + 1];
    }
    int least = least_chunks(begin, past, sequences, slots);
    for (int s = 0; s < sequences; s++) {
        int taken = begin[s + 1] - begin[s], chunks = chunks_of((long long)past[s] + taken);
        first[s] = taken <= SPLIT_ROWS && chunks >= least ? slot : -1;
        for (int c = 0; first[s] >= 0 && c < chunks; c++) {
            items[2 * item] = s;
            items[2 * item++ + 1] = c;
        }
        slot += first[s] >= 0 ? taken * chunks : 0;
    }
    counts[STAGED_SEQUENCES] = sequences;
    counts[STAGED_ITEMS] = item;
    return true;
}

static size_t scratch_bytes(const struct gd_call *call)
{
    size_t slots = (size_t)slots_of(call->in[0]->shape[0]), heads = (size_t)call->params.i[0], head_dim = (size_t)call->params.i[2];
    bool split = call->in[0]->dtype == GD_BF16 && head_dim <= GD_ATTENTION_MMA_MAX;
    return attention_bias_bytes(&call->params) + (split ? slots * heads * (head_dim + 2) * sizeof(float) : 0);
}

static bool check_cache(const struct gd_kv_batch *batch, const struct gd_op_params *params, struct gd_error *err)
{
    if (batch->kv_heads == params->i[1] && batch->head_dim == params->i[2] && params->i[4] < batch->layer_count &&
        (batch->dtype == GD_F32 || batch->dtype == GD_BF16))
        return true;
    return gd_fail(err, GD_INTERNAL, "attention_cached: a cache of %d layers, %d kv heads of %d in %s does not fit layer %d, %d kv heads of %d",
                   batch->layer_count, batch->kv_heads, batch->head_dim, gd_dtype_name(batch->dtype), (int)params->i[4], (int)params->i[1],
                   (int)params->i[2]);
}

template <class T, class P>
static bool run_plain(const struct gd_kernel_args *args, const attention_shape &n, const staged &at, const cache &cache, const attention_bias &bias,
                      struct gd_error *err)
{
    GD_BY_VALUES(n.head_dim, VALUES, {
        using plain = attention_plain<VALUES>;
        const size_t bytes = attention_plain_bytes(ATTENTION_CACHED, n.head_dim);
        dim3 grid((unsigned)(n.rows / plain::rows + n.rows + 1), (unsigned)n.heads);
        if (!attention_allow_shared((const void *)cached_plain_kernel<T, P, VALUES>, bytes, "attention_cached", err))
            return false;
        CU_LAUNCH((cached_plain_kernel<T, P, VALUES>), grid, plain::threads, bytes, gd_cuda_stream(), n, at, cache, bias, (const T *)args->in[0].data,
                  (T *)args->out[0].data);
    });
    return true;
}

static bool run_mma(const struct gd_kernel_args *args, const attention_shape &n, const staged &at, const cache &cache, const attention_bias &bias,
                    float *scratch, struct gd_error *err)
{
    const bf16 *q = (const bf16 *)args->in[0].data;
    bf16 *out = (bf16 *)args->out[0].data;
    int items = (int)slots_of(n.rows), parts = (SPLIT_ROWS * n.group + LANES - 1) / LANES;
    partials partials = {scratch, scratch + (size_t)items * (size_t)n.heads * (size_t)n.head_dim};
    dim3 grid((unsigned)(items * parts + (long long)n.rows * n.group / LANES + n.rows + 1), (unsigned)n.kv_heads);
    GD_BY_HEAD_DIM(n.head_dim, PADDED, {
        const size_t bytes = attention_mma_bytes(ATTENTION_CACHED, n.head_dim);
        if (!attention_allow_shared((const void *)cached_kernel<PADDED>, bytes, "attention_cached", err))
            return false;
        CU_LAUNCH((cached_kernel<PADDED>), grid, 128 * attention_tiles<PADDED>::halves, bytes, gd_cuda_stream(), n, at, cache, bias, q, out,
                  partials, items, parts);
    });
    CU_LAUNCH(merge_kernel, dim3((unsigned)n.rows, (unsigned)n.heads), 64, 0, gd_cuda_stream(), n, at, out, partials);
    return true;
}

template <class T, class P> static void run_store(const struct gd_kernel_args *args, const attention_shape &n, const staged &at, const cache &cache)
{
    CU_LAUNCH((store_kernel<T, P>), (unsigned)n.rows, 128, 0, gd_cuda_stream(), n, at, cache, (P *)cache.pages, (const T *)args->in[2].data,
              (const T *)args->in[3].data);
}

static bool run(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_kv_batch *batch = (const struct gd_kv_batch *)args->in[1].data;
    const struct gd_tensor *q = &args->in[0];
    bool cross = args->in[2].rank == 0, ok = true;
    attention_shape n = attention_shape_of(args->params, q->shape[0], q->shape[0], 0, cross);
    if (!check_cache(batch, args->params, err))
        return false;
    if (n.rows == 0)
        return true;
    struct staged at = staged_at((const int *)args->staged, n.rows, batch->page_table_stride);
    struct cache cache = {batch->pages, batch->layer_count, (int)args->params->i[4]};
    attention_bias bias = gd_cuda_attention_bias(args->scratch, args->params,
                                                 args->weight[4] != NULL ? gd_weight_vector(args->weight[4]) : (const float *)args->in[4].data);
    float *rest = (float *)((char *)args->scratch + attention_bias_bytes(args->params));
    n.vectors = n.head_dim % 8 == 0 && attention_is_aligned(q->data, 16) && attention_is_aligned(batch->pages, 16);
    if (!cross)
        GD_BY_ACT(q->dtype, T, GD_BY_ACT(batch->dtype, P, run_store<T, P>(args, n, at, cache)));
    if (q->dtype == GD_BF16 && batch->dtype == GD_BF16 && n.head_dim <= GD_ATTENTION_MMA_MAX)
        ok = run_mma(args, n, at, cache, bias, rest, err);
    else
        GD_BY_ACT(q->dtype, T, GD_BY_ACT(batch->dtype, P, ok = run_plain<T, P>(args, n, at, cache, bias, err)));
    return ok && gd_cuda_launched(args, "attention_cached", err);
}

GD_CUDA_STAGED_OP(attention_cached, run, scratch_bytes, staged_bytes, stage)
