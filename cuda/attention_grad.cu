/*
 * The backward pass of attention (engine/tensor/ops/attention_grad.c; formulas in attention_backward.h). Probabilities come
 * back from the log-sum-exp; nothing of size T x T is kept and no sum has more than one order:
 * dots     rowsum(d_out * out), a warp for each row and head
 * rows     dq: a block has a tile of rows of one head and takes the keys that they see
 * keys     dk, dv: a block has a tile of keys of one kv head and takes the rows that see them: those of its own segment, then
 *          those of segments that continue it, of each all heads of the group one after another
 * bias     a block sums what one tile of rows gives each bucket, along the diagonals; a second kernel sums these
 * In rows and keys each score is made anew (five products in two passes of seven): no sums of several blocks are needed.
 */
#include "cuda/attention_plain.h"

#define ROWS GD_ATTENTION_ROWS

struct backward {
    const float *lse, *dot;        /* [T, heads] */
};

template <class T> __global__ void dots_kernel(float *dot, const T *out, const T *d_out, const int *used, int heads, int head_dim)
{
    long long count = (long long)*used * heads, step = (long long)gridDim.x * (blockDim.x / 32);
    int lane = (int)threadIdx.x % 32;
    for (long long i = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; i < count; i += step) {
        float sum = 0;
        for (int d = lane; d < head_dim; d += 32)
            sum += to_f32(out[i * head_dim + d]) * to_f32(d_out[i * head_dim + d]);
        sum = warp_sum(sum);
        if (lane == 0)
            dot[i] = sum;
    }
}

/* p becomes P, dp becomes dS, of a product and its P's gradient; unseen: 0. `of_product` false: dS of the score itself. */
CU_FN void weigh(const attention_shape &n, const attention_bias &bias, int head, int distance, bool seen, float lse_log2, float dot, float *p, float *dp,
                 bool of_product = true)
{
    float slope, x = attention_exponent_slope(n, *p, &slope);
    if (n.bias_distance > 0)
        x += attention_bias_of(n, bias, head, distance);
    float weight = seen ? exp2f(x - lse_log2) : 0;
    *p = weight;
    *dp = seen ? weight * (*dp - dot) * (of_product ? slope : 1.0f) : 0;
}

/* The same where everything is seen and nothing changes the score. */
CU_FN void weigh_plainly(const attention_shape &n, float lse_log2, float dot, float *p, float *dp)
{
    *p = fast_exp2(*p * (n.scale * GD_ATTENTION_LOG2_E) - lse_log2);
    *dp = *p * (*dp - dot) * n.scale;
}

template <int PADDED>
CU_FN void rows_of(const attention_shape &n, const attention_bias &bias, const backward &at, int head, const bf16 *q, const bf16 *k, const bf16 *v,
                   const bf16 *d_out, bf16 *dq, const attention_part *parts, int begin, int end)
{
    const int keys = attention_tiles<PADDED>::backward_keys, pitch = PADDED + 8, tile = keys * pitch;
    CU_DYN_SHARED(bf16, shared);
    bf16 *q_tile = shared, *d_tile = q_tile + ROWS * pitch, *kv_tiles = d_tile + ROWS * pitch; /* two of keys, two of values */
    int lane = (int)threadIdx.x % 32, row = (int)threadIdx.x / 32 * 16, mine = begin + row + lane / 4;
    long long q_row = (long long)n.heads * n.head_dim, kv_row = (long long)n.kv_heads * n.head_dim;
    int first_tiles = (parts[0].end - parts[0].begin + keys - 1) / keys, tiles = first_tiles + (parts[1].end - parts[1].begin + keys - 1) / keys;
    float sum[PADDED / 8][4] = {}, lse[2] = {}, dot[2] = {};
#pragma unroll
    for (int half = 0; half < 2; half++)
        if (mine + half * 8 < end) {
            lse[half] = at.lse[(long long)(mine + half * 8) * n.heads + head] * GD_ATTENTION_LOG2_E;
            dot[half] = at.dot[(long long)(mine + half * 8) * n.heads + head];
        }
    for (int t = -1; t < tiles; t++) {
        if (t >= 0)
            __syncthreads(); /* nobody reads the tile before t any more */
        if (t + 1 < tiles) {
            bool second = t + 1 >= first_tiles;
            int next = second ? parts[1].begin + (t + 1 - first_tiles) * keys : parts[0].begin + (t + 1) * keys;
            int count = (second ? parts[1].end : parts[0].end) - next, stage = (t + 1) % 2;
            attention_load_tile<PADDED, keys>(kv_tiles + stage * tile, k + next * kv_row, kv_row, count, n.head_dim, n.vectors);
            attention_load_tile<PADDED, keys>(kv_tiles + (2 + stage) * tile, v + next * kv_row, kv_row, count, n.head_dim, n.vectors);
        }
        if (t < 0 && tiles > 0) {
            attention_load_tile<PADDED, ROWS>(q_tile, q + begin * q_row, q_row, end - begin, n.head_dim, n.vectors);
            attention_load_tile<PADDED, ROWS>(d_tile, d_out + begin * q_row, q_row, end - begin, n.head_dim, n.vectors);
        }
        cp_async_commit();
        if (t < 0)
            continue;
        cp_async_wait<1>();
        __syncthreads(); /* tile t is there */
        bool second = t >= first_tiles;
        int shift = second ? parts[1].shift : parts[0].shift, key_end = second ? parts[1].end : parts[0].end;
        int key = second ? parts[1].begin + (t - first_tiles) * keys : parts[0].begin + t * keys;
        const bf16 *k_tile = kv_tiles + t % 2 * tile, *v_tile = kv_tiles + (2 + t % 2) * tile;
        float p[keys / 8][4], ds[keys / 8][4];
        attention_two_products<PADDED, keys / 8>(p, q_tile + row * pitch, k_tile, ds, d_tile + row * pitch, v_tile);
        int column = key + lane % 4 * 2, first = begin + row;
        bool whole = key + keys <= key_end && attention_sees_all(n, first, first + 15, key, key + keys - 1, shift);
        if (whole && n.softcap == 0 && n.bias_distance == 0) {
#pragma unroll
            for (int i = 0; i < keys / 8; i++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    weigh_plainly(n, lse[e / 2], dot[e / 2], &p[i][e], &ds[i][e]);
        } else {
#pragma unroll
            for (int i = 0; i < keys / 8; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int j = column + i * 8 + e % 2, distance = mine + e / 2 * 8 - j + shift;
                    weigh(n, bias, head, distance, j < key_end && attention_sees(n, distance), lse[e / 2], dot[e / 2], &p[i][e], &ds[i][e]);
                }
        }
        attention_add_products<PADDED, PADDED, keys / 8>(sum, ds, k_tile);
    }
    cp_async_wait<0>();
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int i = 0; i < PADDED / 8; i++)
            if (mine + half * 8 < end)
                attention_store_pair(dq + (mine + half * 8) * q_row, i * 8 + lane % 4 * 2, n.head_dim, sum[i][half * 2], sum[i][half * 2 + 1]);
}

template <int PADDED>
__global__ __launch_bounds__(128, 1) void rows_kernel(attention_shape n, attention_offsets at, attention_bias bias, backward backward, const bf16 *q,
                                                   const bf16 *k, const bf16 *v, const bf16 *d_out, bf16 *dq)
{
    attention_tile tile;
    attention_part parts[2];
    int head = (int)blockIdx.y, at_q = head * n.head_dim, at_kv = head / n.group * n.head_dim;
    if (attention_find_rows<bf16, ROWS>(n, at, dq, &tile, parts))
        rows_of<PADDED>(n, bias, backward, head, q + at_q, k + at_kv, v + at_kv, d_out + at_q, dq + at_q, parts, tile.begin, tile.end);
}

/* ---- the rows that see a tile of keys ---- */

/* Which rows come by next: tiles of a segment's rows for each head of the group, then those of the next segment. */
struct row_cursor {
    int segment;                   /* n.segments: done */
    int own;                       /* the tile's own segment comes first; then those after it with a prefix here */
    int head, row;
    attention_part rows;           /* of this segment that see the tile */
};

CU_FN void next_segment(const attention_shape &n, const attention_offsets &at, int own, int key, int key_end, int begin_at, row_cursor *cursor)
{
    int s = begin_at;
    for (bool more = true; more;) {
        cursor->segment = n.segments;
        cursor->rows.begin = cursor->rows.end = 0;
        if (s == own) {
            cursor->segment = s;
        } else if (at.prefix != NULL) {
            for (; s < n.segments && cursor->segment == n.segments; s += 32) {
                int mine = s + (int)threadIdx.x % 32;
                bool meets = mine < n.segments && at.cu[mine] < at.cu[mine + 1] && at.prefix[2 * mine] < key_end && at.prefix[2 * mine + 1] > key &&
                             at.prefix[2 * mine] < at.prefix[2 * mine + 1];
                unsigned found = __ballot_sync(~0u, meets);
                if (found != 0)
                    cursor->segment = s + __ffs((int)found) - 1;
            }
        }
        more = cursor->segment < n.segments;
        if (more) {
            s = cursor->segment;
            int shift = s == own || n.cross ? 0 : at.prefix[2 * s + 1] - at.cu[s], from = key, to = key_end;
            if (s != own) {
                from = from > at.prefix[2 * s] ? from : at.prefix[2 * s];
                to = to < at.prefix[2 * s + 1] ? to : at.prefix[2 * s + 1];
            }
            cursor->rows = attention_seeing_rows(n, at.cu[s], at.cu[s + 1], shift, from, to);
            more = cursor->rows.begin >= cursor->rows.end;
            s++;
        }
    }
}

template <int STEP>
CU_FN void next_rows(const attention_shape &n, const attention_offsets &at, int own, int key, int key_end, int kv_head, row_cursor *cursor)
{
    cursor->row += STEP;
    if (cursor->row < cursor->rows.end)
        return;
    if (++cursor->head == (kv_head + 1) * n.group) {
        cursor->head = kv_head * n.group;
        next_segment(n, at, own, key, key_end, cursor->segment + 1, cursor);
    }
    cursor->row = cursor->rows.begin;
}

CU_FN row_cursor first_rows(const attention_shape &n, const attention_offsets &at, int own, int key, int key_end, int kv_head)
{
    row_cursor cursor = {};
    next_segment(n, at, own, key, key_end, own, &cursor);
    cursor.head = kv_head * n.group;
    cursor.row = cursor.rows.begin;
    return cursor;
}

/* The keys of the tile that rows of the cursor's segment see at all: its own, or those in the prefix. */
CU_FN void seen_range(const attention_offsets &at, int own, const row_cursor &cursor, int key, int key_end, int *from, int *to)
{
    *from = key;
    *to = key_end;
    if (cursor.segment != own) {
        *from = key > at.prefix[2 * cursor.segment] ? key : at.prefix[2 * cursor.segment];
        *to = key_end < at.prefix[2 * cursor.segment + 1] ? key_end : at.prefix[2 * cursor.segment + 1];
    }
}

/* What stands with a row of q in a tile, in the room between it and the next row. */
struct __align__(8) numbers {
    float lse, dot;                /* lse times log2(e) */
};

template <int PADDED> CU_FN numbers *row_numbers(bf16 *tile, int row)
{
    return reinterpret_cast<numbers *>(tile + row * (PADDED + 8) + PADDED);
}

template <int PADDED>
CU_FN void keys_of(const attention_shape &n, const attention_offsets &at, const attention_bias &bias, const backward &sums, const bf16 *q,
                   const bf16 *k, const bf16 *v, const bf16 *d_out, bf16 *dk, bf16 *dv, const attention_tile &tile)
{
    const int rows = attention_tiles<PADDED>::backward_rows, pitch = PADDED + 8, step = rows * pitch, columns = attention_tiles<PADDED>::columns;
    CU_DYN_SHARED(bf16, shared);
    bf16 *k_tile = shared, *v_tile = k_tile + ROWS * pitch, *tiles = v_tile + ROWS * pitch; /* two of q, two of d_out */
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, own = warp % 4 * 16, from_column = warp / 4 * columns;
    int kv_head = (int)blockIdx.y, mine = tile.begin + own + lane / 4;
    long long q_row = (long long)n.heads * n.head_dim, kv_row = (long long)n.kv_heads * n.head_dim;
    float k_sum[columns / 8][4] = {}, v_sum[columns / 8][4] = {};
    row_cursor now = first_rows(n, at, tile.segment, tile.begin, tile.end, kv_head), next = now;
    attention_load_tile<PADDED, ROWS>(k_tile, k + tile.begin * kv_row, kv_row, tile.end - tile.begin, n.head_dim, n.vectors);
    attention_load_tile<PADDED, ROWS>(v_tile, v + tile.begin * kv_row, kv_row, tile.end - tile.begin, n.head_dim, n.vectors);
    for (int t = -1; t < 0 || now.segment < n.segments; t++) {
        if (t >= 0)
            __syncthreads(); /* nobody reads the rows before these any more */
        if (next.segment < n.segments) {
            int stage = (t + 1) % 2, count = next.rows.end - next.row;
            const bf16 *from = q + (long long)next.head * n.head_dim + next.row * q_row, *from_d = d_out + (long long)next.head * n.head_dim + next.row * q_row;
            attention_load_tile<PADDED, rows>(tiles + stage * step, from, q_row, count, n.head_dim, n.vectors);
            attention_load_tile<PADDED, rows>(tiles + (2 + stage) * step, from_d, q_row, count, n.head_dim, n.vectors);
            for (int r = (int)threadIdx.x; r < rows; r += (int)blockDim.x) {
                long long at_row = (long long)(next.row + r) * n.heads + next.head;
                bool there = r < count;
                *row_numbers<PADDED>(tiles + stage * step, r) =
                    numbers{there ? sums.lse[at_row] * GD_ATTENTION_LOG2_E : 0.0f, there ? sums.dot[at_row] : 0.0f};
            }
        }
        cp_async_commit();
        if (t >= 0) {
            cp_async_wait<1>();
            __syncthreads(); /* the rows are there */
            bf16 *q_tile = tiles + t % 2 * step, *d_tile = tiles + (2 + t % 2) * step;
            int from, to;
            seen_range(at, tile.segment, now, tile.begin, tile.end, &from, &to);
            float p[rows / 8][4], ds[rows / 8][4];
            attention_two_products<PADDED, rows / 8>(p, k_tile + own * pitch, q_tile, ds, v_tile + own * pitch, d_tile);
            int first = tile.begin + own;
            bool whole = now.row + rows <= now.rows.end && first >= from && first + 16 <= to &&
                         attention_sees_all(n, now.row, now.row + rows - 1, first, first + 15, now.rows.shift);
            if (whole && n.softcap == 0 && n.bias_distance == 0) {
#pragma unroll
                for (int i = 0; i < rows / 8; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        numbers of = *row_numbers<PADDED>(q_tile, i * 8 + lane % 4 * 2 + e % 2);
                        weigh_plainly(n, of.lse, of.dot, &p[i][e], &ds[i][e]);
                    }
            } else {
#pragma unroll
                for (int i = 0; i < rows / 8; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int r = i * 8 + lane % 4 * 2 + e % 2, row = now.row + r, key = mine + e / 2 * 8, distance = row - key + now.rows.shift;
                        bool seen = row < now.rows.end && key >= from && key < to && attention_sees(n, distance);
                        numbers of = *row_numbers<PADDED>(q_tile, r);
                        weigh(n, bias, now.head, distance, seen, of.lse, of.dot, &p[i][e], &ds[i][e]);
                    }
            }
            attention_add_products<PADDED, columns, rows / 8>(v_sum, p, d_tile + from_column);
            attention_add_products<PADDED, columns, rows / 8>(k_sum, ds, q_tile + from_column);
        }
        now = next;
        if (next.segment < n.segments)
            next_rows<rows>(n, at, tile.segment, tile.begin, tile.end, kv_head, &next);
    }
    cp_async_wait<0>();
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int i = 0; i < columns / 8; i++)
            if (mine + half * 8 < tile.end) {
                int column = from_column + i * 8 + lane % 4 * 2;
                attention_store_pair(dk + (mine + half * 8) * kv_row, column, n.head_dim, k_sum[i][half * 2], k_sum[i][half * 2 + 1]);
                attention_store_pair(dv + (mine + half * 8) * kv_row, column, n.head_dim, v_sum[i][half * 2], v_sum[i][half * 2 + 1]);
            }
}

/* A tile of keys, or false where there are none; those behind the last segment get 0. */
template <class T, int KEYS_A_TILE>
CU_FN bool find_keys(const attention_shape &n, const attention_offsets &at, T *dk, T *dv, attention_tile *tile)
{
    *tile = attention_find_tile(n.cross ? at.key_cu : at.cu, n.segments, n.key_rows, KEYS_A_TILE, 1, (int)blockIdx.x);
    if (tile->begin == tile->end)
        return false;
    if (tile->segment == n.segments) {
        long long row = (long long)n.kv_heads * n.head_dim;
        attention_zero_rows(dk + (int)blockIdx.y * n.head_dim, row, tile->begin, tile->end, n.head_dim);
        attention_zero_rows(dv + (int)blockIdx.y * n.head_dim, row, tile->begin, tile->end, n.head_dim);
        return false;
    }
    return true;
}

template <int PADDED>
__global__ __launch_bounds__(128 * attention_tiles<PADDED>::halves, 1) void keys_kernel(attention_shape n, attention_offsets at, attention_bias bias,
                                                                                   backward backward, const bf16 *q, const bf16 *k, const bf16 *v,
                                                                                   const bf16 *d_out, bf16 *dk, bf16 *dv)
{
    attention_tile tile;
    int at_kv = (int)blockIdx.y * n.head_dim;
    if (find_keys<bf16, ROWS>(n, at, dk, dv, &tile))
        keys_of<PADDED>(n, at, bias, backward, q, k + at_kv, v + at_kv, d_out, dk + at_kv, dv + at_kv, tile);
}

/* ---- without tensor cores ---- */

/* dS of the warp's rows and one key a lane, as weigh makes it. */
template <int VALUES>
CU_FN void plain_weights(const attention_shape &n, const attention_bias &bias, const backward &at, int head, const float *q, const float *d_out,
                         const float *k_tile, const float *v_tile, int row, int end, int key, int key_end, int shift, bool of_product, float *ds)
{
    using plain = attention_plain<VALUES>;
    const int mine = plain::rows_a_warp;
    int lane = (int)threadIdx.x % 32;
    float p[mine];
    attention_plain_dots<VALUES>(p, q, k_tile, n.head_dim);
    attention_plain_dots<VALUES>(ds, d_out, v_tile, n.head_dim);
#pragma unroll
    for (int r = 0; r < mine; r++) {
        int distance = row + r - (key + lane) + shift;
        bool there = row + r < end, seen = lane < plain::keys && there && key + lane < key_end && attention_sees(n, distance);
        long long number = (long long)(row + r) * n.heads + head;
        float lse = there ? at.lse[number] * GD_ATTENTION_LOG2_E : 0.0f, dot = there ? at.dot[number] : 0.0f;
        weigh(n, bias, head, distance, seen, lse, dot, &p[r], &ds[r], of_product);
    }
}

template <class T, int VALUES>
CU_FN void rows_of_plain(const attention_shape &n, const attention_bias &bias, const backward &at, int head, const T *q, const T *k, const T *v,
                         const T *d_out, T *dq, const attention_part *parts, int begin, int end)
{
    using plain = attention_plain<VALUES>;
    CU_DYN_SHARED(float, shared);
    int first = (int)threadIdx.x / 32 * plain::rows_a_warp;
    long long q_row = (long long)n.heads * n.head_dim;
    attention_packed_keys place = {(long long)n.kv_heads * n.head_dim};
    float *q_tile = shared, *d_tile = q_tile + plain::rows * n.head_dim, *k_tile = d_tile + plain::rows * n.head_dim;
    float *v_tile = k_tile + plain::keys * (n.head_dim + 1), *weight = v_tile + plain::keys * (n.head_dim + 1) + first * 32;
    float sum[plain::rows_a_warp][VALUES] = {}, ds[plain::rows_a_warp], one[plain::rows_a_warp];
    attention_plain_load(q_tile, n.head_dim, q + begin * q_row, q_row, end - begin, plain::rows, n.head_dim);
    attention_plain_load(d_tile, n.head_dim, d_out + begin * q_row, q_row, end - begin, plain::rows, n.head_dim);
    for (int part = 0; part < 2; part++) {
        attention_part keys = part == 0 ? parts[0] : parts[1];
        for (int key = keys.begin; key < keys.end; key += plain::keys) {
            __syncthreads();
            attention_plain_load_keys(k_tile, v_tile, k, v, place, key, keys.end, plain::keys, n.head_dim);
            __syncthreads();
            plain_weights<VALUES>(n, bias, at, head, q_tile + first * n.head_dim, d_tile + first * n.head_dim, k_tile, v_tile, begin + first, end,
                                  key, keys.end, keys.shift, true, ds);
            attention_plain_add<VALUES>(sum, weight, ds, k_tile, n.head_dim);
        }
    }
#pragma unroll
    for (int r = 0; r < plain::rows_a_warp; r++)
        one[r] = 1;
    attention_plain_store(dq + (begin + first) * q_row, q_row, sum, one, end - begin - first, n.head_dim);
}

template <class T, int VALUES>
__global__ __launch_bounds__(attention_plain<VALUES>::threads, 1) void rows_plain_kernel(attention_shape n, attention_offsets at, attention_bias bias,
                                                                                        backward backward, const T *q, const T *k, const T *v,
                                                                                        const T *d_out, T *dq)
{
    attention_tile tile;
    attention_part parts[2];
    int head = (int)blockIdx.y, at_q = head * n.head_dim, at_kv = head / n.group * n.head_dim;
    if (attention_find_rows<T, attention_plain<VALUES>::rows>(n, at, dq, &tile, parts))
        rows_of_plain<T, VALUES>(n, bias, backward, head, q + at_q, k + at_kv, v + at_kv, d_out + at_q, dq + at_q, parts, tile.begin, tile.end);
}

/* A tile of keys; lanes are rows. */
template <class T, int VALUES>
CU_FN void keys_of_plain(const attention_shape &n, const attention_offsets &at, const attention_bias &bias, const backward &sums, const T *q,
                         const T *k, const T *v, const T *d_out, T *dk, T *dv, const attention_tile &tile)
{
    using plain = attention_plain<VALUES>;
    const int mine = plain::rows_a_warp;
    CU_DYN_SHARED(float, shared);
    int lane = (int)threadIdx.x % 32, first = (int)threadIdx.x / 32 * mine, kv_head = (int)blockIdx.y;
    long long q_row = (long long)n.heads * n.head_dim, kv_row = (long long)n.kv_heads * n.head_dim;
    float *k_tile = shared, *v_tile = k_tile + plain::rows * n.head_dim, *q_tile = v_tile + plain::rows * n.head_dim;
    float *d_tile = q_tile + plain::keys * (n.head_dim + 1), *weight = d_tile + plain::keys * (n.head_dim + 1) + first * 32;
    float k_sum[mine][VALUES] = {}, v_sum[mine][VALUES] = {}, p[mine], ds[mine], one[mine];
    attention_plain_load(k_tile, n.head_dim, k + tile.begin * kv_row, kv_row, tile.end - tile.begin, plain::rows, n.head_dim);
    attention_plain_load(v_tile, n.head_dim, v + tile.begin * kv_row, kv_row, tile.end - tile.begin, plain::rows, n.head_dim);
    row_cursor now = first_rows(n, at, tile.segment, tile.begin, tile.end, kv_head);
    while (now.segment < n.segments) {
        int count = now.rows.end - now.row, row = now.row + lane, from, to;
        long long from_row = now.row * q_row + (long long)now.head * n.head_dim;
        seen_range(at, tile.segment, now, tile.begin, tile.end, &from, &to);
        __syncthreads();
        attention_plain_load(q_tile, n.head_dim + 1, q + from_row, q_row, count, plain::keys, n.head_dim);
        attention_plain_load(d_tile, n.head_dim + 1, d_out + from_row, q_row, count, plain::keys, n.head_dim);
        __syncthreads();
        attention_plain_dots<VALUES>(p, k_tile + first * n.head_dim, q_tile, n.head_dim);
        attention_plain_dots<VALUES>(ds, v_tile + first * n.head_dim, d_tile, n.head_dim);
        bool there = lane < plain::keys && row < now.rows.end;
        float lse = there ? sums.lse[(long long)row * n.heads + now.head] * GD_ATTENTION_LOG2_E : 0.0f;
        float dot = there ? sums.dot[(long long)row * n.heads + now.head] : 0.0f;
#pragma unroll
        for (int r = 0; r < mine; r++) {
            int key = tile.begin + first + r, distance = row - key + now.rows.shift;
            weigh(n, bias, now.head, distance, there && key >= from && key < to && attention_sees(n, distance), lse, dot, &p[r], &ds[r]);
        }
        attention_plain_add<VALUES>(v_sum, weight, p, d_tile, n.head_dim);
        attention_plain_add<VALUES>(k_sum, weight, ds, q_tile, n.head_dim);
        next_rows<plain::keys>(n, at, tile.segment, tile.begin, tile.end, kv_head, &now);
    }
#pragma unroll
    for (int r = 0; r < mine; r++)
        one[r] = 1;
    attention_plain_store(dk + (tile.begin + first) * kv_row, kv_row, k_sum, one, tile.end - tile.begin - first, n.head_dim);
    attention_plain_store(dv + (tile.begin + first) * kv_row, kv_row, v_sum, one, tile.end - tile.begin - first, n.head_dim);
}

template <class T, int VALUES>
__global__ __launch_bounds__(attention_plain<VALUES>::threads, 1) void keys_plain_kernel(attention_shape n, attention_offsets at, attention_bias bias,
                                                                                        backward backward, const T *q, const T *k, const T *v,
                                                                                        const T *d_out, T *dk, T *dv)
{
    attention_tile tile;
    int at_kv = (int)blockIdx.y * n.head_dim;
    if (find_keys<T, attention_plain<VALUES>::rows>(n, at, dk, dv, &tile))
        keys_of_plain<T, VALUES>(n, at, bias, backward, q, k + at_kv, v + at_kv, d_out, dk + at_kv, dv + at_kv, tile);
}

/* ---- the bias' gradient ---- */

/* What the rows of one tile give each bucket: partial [places][buckets][heads]. */
template <class T, int VALUES>
__global__ __launch_bounds__(attention_plain<VALUES>::threads, 1) void bias_grad_kernel(attention_shape n, attention_offsets at, attention_bias bias,
                                                                                       backward backward, const T *q, const T *k, const T *v,
                                                                                       const T *d_out, float *partial, int buckets)
{
    using plain = attention_plain<VALUES>;
    const int diagonals = plain::diagonals;
    CU_DYN_SHARED(float, shared);
    int lane = (int)threadIdx.x % 32, first = (int)threadIdx.x / 32 * plain::rows_a_warp, head = (int)blockIdx.y;
    long long q_row = (long long)n.heads * n.head_dim;
    attention_packed_keys place = {q_row};
    float *q_tile = shared, *d_tile = q_tile + plain::rows * n.head_dim, *k_tile = d_tile + plain::rows * n.head_dim;
    float *v_tile = k_tile + plain::keys * (n.head_dim + 1), *weight = v_tile + plain::keys * (n.head_dim + 1);
    float *diagonal = weight + plain::rows * 32;
    int *diagonal_bucket = reinterpret_cast<int *>(diagonal + diagonals);
    float *mine = partial + (long long)blockIdx.x * buckets * n.heads + head;
    for (int b = (int)threadIdx.x; b < buckets; b += (int)blockDim.x)
        mine[(long long)b * n.heads] = 0;
    attention_tile tile = attention_find_tile(at.cu, n.segments, n.rows, plain::rows, 1, (int)blockIdx.x);
    if (tile.begin == tile.end || tile.segment == n.segments)
        return;
    attention_part parts[2];
    attention_keys_of(n, at, tile, parts);
    q += head * n.head_dim, k += head * n.head_dim, v += head * n.head_dim, d_out += head * n.head_dim;
    attention_plain_load(q_tile, n.head_dim, q + tile.begin * q_row, q_row, tile.end - tile.begin, plain::rows, n.head_dim);
    attention_plain_load(d_tile, n.head_dim, d_out + tile.begin * q_row, q_row, tile.end - tile.begin, plain::rows, n.head_dim);
    for (int part = 0; part < 2; part++) {
        attention_part keys = part == 0 ? parts[0] : parts[1];
        for (int key = keys.begin; key < keys.end; key += plain::keys) {
            float ds[plain::rows_a_warp];
            __syncthreads();
            attention_plain_load_keys(k_tile, v_tile, k, v, place, key, keys.end, plain::keys, n.head_dim);
            __syncthreads();
            plain_weights<VALUES>(n, bias, backward, head, q_tile + first * n.head_dim, d_tile + first * n.head_dim, k_tile, v_tile,
                                  tile.begin + first, tile.end, key, keys.end, keys.shift, false, ds);
#pragma unroll
            for (int r = 0; r < plain::rows_a_warp; r++)
                weight[(first + r) * 32 + lane] = ds[r];
            __syncthreads();
            for (int u = (int)threadIdx.x; u < diagonals; u += (int)blockDim.x) {
                int apart = u - (plain::keys - 1); /* row - key within the tile */
                float sum = 0;
                for (int r = apart > 0 ? apart : 0; r < plain::rows && r - apart < plain::keys; r++)
                    sum += weight[r * 32 + r - apart];
                diagonal[u] = sum;
                diagonal_bucket[u] = bias.bucket[attention_bias_place(n, tile.begin - key + keys.shift + apart)];
            }
            __syncthreads();
            for (int b = (int)threadIdx.x; b < buckets; b += (int)blockDim.x) {
                float sum = 0;
                for (int u = 0; u < diagonals; u++)
                    if (diagonal_bucket[u] == b)
                        sum += diagonal[u];
                mine[(long long)b * n.heads] += sum;
            }
        }
    }
}

__global__ void bias_sum_kernel(float *out, const float *partial, int places, int count)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count)
        return;
    float sum = 0;
    for (int place = 0; place < places; place++)
        sum += partial[(long long)place * count + i];
    out[i] = sum;
}

/* ---- on the host ---- */

struct layout {
    size_t dot, bias, partial, total;
    int places;
};

/* Places of tiles of rows without tensor cores. */
static int plain_rows(long long head_dim)
{
    int rows = 0;
    GD_BY_VALUES(head_dim, VALUES, rows = attention_plain<VALUES>::rows);
    return rows;
}

static struct layout layout_of(const struct gd_op_params *params, long long rows, long long segments, bool wants_bias)
{
    struct layout at = {};
    at.bias = attention_round((size_t)rows * (size_t)params->i[0] * sizeof(float));
    at.partial = at.bias + attention_bias_bytes(params);
    at.places = wants_bias ? (int)(rows / plain_rows(params->i[2]) + segments) : 0;
    at.total = at.partial + (size_t)at.places * (size_t)params->i[6] * (size_t)params->i[0] * sizeof(float);
    return at;
}

static size_t scratch_bytes(const struct gd_call *call)
{
    return layout_of(&call->params, call->in[0]->shape[0], call->in[6]->shape[0] - 1, call->out[3]->shape[0] > 0).total;
}

struct operands {
    const void *q, *k, *v, *out, *d_out;
    void *dq, *dk, *dv;
};

static bool run_mma(const attention_shape &n, const attention_offsets &at, const attention_bias &bias, const backward &sums, const operands &o,
                    struct gd_error *err)
{
    dim3 grid((unsigned)(n.rows / ROWS + n.segments + 1), (unsigned)n.heads), key_grid((unsigned)(n.key_rows / ROWS + n.segments + 1), (unsigned)n.kv_heads);
    GD_BY_HEAD_DIM(n.head_dim, PADDED, {
        const size_t rows_bytes = attention_mma_bytes(ATTENTION_ROWS, n.head_dim), keys_bytes = attention_mma_bytes(ATTENTION_KEYS, n.head_dim);
        if (!attention_allow_shared((const void *)rows_kernel<PADDED>, rows_bytes, "attention_grad", err) ||
            !attention_allow_shared((const void *)keys_kernel<PADDED>, keys_bytes, "attention_grad", err))
            return false;
        if (n.rows > 0)
            CU_LAUNCH((rows_kernel<PADDED>), grid, 128, rows_bytes, gd_cuda_stream(), n, at, bias, sums, (const bf16 *)o.q, (const bf16 *)o.k,
                      (const bf16 *)o.v, (const bf16 *)o.d_out, (bf16 *)o.dq);
        if (n.key_rows > 0)
            CU_LAUNCH((keys_kernel<PADDED>), key_grid, 128 * attention_tiles<PADDED>::halves, keys_bytes, gd_cuda_stream(), n, at, bias, sums, (const bf16 *)o.q,
                      (const bf16 *)o.k, (const bf16 *)o.v, (const bf16 *)o.d_out, (bf16 *)o.dk, (bf16 *)o.dv);
    });
    return true;
}

template <class T>
static bool run_plain(const attention_shape &n, const attention_offsets &at, const attention_bias &bias, const backward &sums, const operands &o,
                      struct gd_error *err)
{
    GD_BY_VALUES(n.head_dim, VALUES, {
        using plain = attention_plain<VALUES>;
        const size_t rows_bytes = attention_plain_bytes(ATTENTION_ROWS, n.head_dim), keys_bytes = attention_plain_bytes(ATTENTION_KEYS, n.head_dim);
        dim3 grid((unsigned)(n.rows / plain::rows + n.segments + 1), (unsigned)n.heads);
        dim3 key_grid((unsigned)(n.key_rows / plain::rows + n.segments + 1), (unsigned)n.kv_heads);
        if (!attention_allow_shared((const void *)rows_plain_kernel<T, VALUES>, rows_bytes, "attention_grad", err) ||
            !attention_allow_shared((const void *)keys_plain_kernel<T, VALUES>, keys_bytes, "attention_grad", err))
            return false;
        if (n.rows > 0)
            CU_LAUNCH((rows_plain_kernel<T, VALUES>), grid, plain::threads, rows_bytes, gd_cuda_stream(), n, at, bias, sums, (const T *)o.q,
                      (const T *)o.k, (const T *)o.v, (const T *)o.d_out, (T *)o.dq);
        if (n.key_rows > 0)
            CU_LAUNCH((keys_plain_kernel<T, VALUES>), key_grid, plain::threads, keys_bytes, gd_cuda_stream(), n, at, bias, sums, (const T *)o.q,
                      (const T *)o.k, (const T *)o.v, (const T *)o.d_out, (T *)o.dk, (T *)o.dv);
    });
    return true;
}

template <class T>
static bool run_bias(const attention_shape &n, const attention_offsets &at, const attention_bias &bias, const backward &sums, const operands &o,
                     float *partial, int places, int buckets, float *out, struct gd_error *err)
{
    int count = buckets * n.heads;
    GD_BY_VALUES(n.head_dim, VALUES, {
        using plain = attention_plain<VALUES>;
        const size_t bytes = attention_plain_bytes(ATTENTION_BIAS, n.head_dim);
        if (!attention_allow_shared((const void *)bias_grad_kernel<T, VALUES>, bytes, "attention_grad", err))
            return false;
        CU_LAUNCH((bias_grad_kernel<T, VALUES>), dim3((unsigned)places, (unsigned)n.heads), plain::threads, bytes, gd_cuda_stream(), n, at, bias,
                  sums, (const T *)o.q, (const T *)o.k, (const T *)o.v, (const T *)o.d_out, partial, buckets);
    });
    CU_LAUNCH(bias_sum_kernel, gd_cuda_blocks(count, 128), 128, 0, gd_cuda_stream(), out, (const float *)partial, places, count);
    return true;
}

static bool run(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *in = args->in, *out = args->out;
    attention_offsets at = {(const int *)in[6].data, (const int *)in[7].data, (const int *)in[8].data};
    attention_shape n = attention_shape_of(args->params, in[0].shape[0], in[1].shape[0], in[6].shape[0] - 1, at.key_cu != NULL);
    operands o = {in[0].data, in[1].data, in[2].data, in[3].data, in[5].data, out[0].data, out[1].data, out[2].data};
    bool wants_bias = out[3].shape[0] > 0, is_bf16 = in[0].dtype == GD_BF16, ok = true;
    struct layout where = layout_of(args->params, n.rows, n.segments, wants_bias);
    char *scratch = (char *)args->scratch;
    float *dot = (float *)scratch, *partial = (float *)(scratch + where.partial);
    backward sums = {(const float *)in[4].data, dot};
    attention_bias bias = gd_cuda_attention_bias(scratch + where.bias, args->params,
                                                 args->weight[9] != NULL ? gd_weight_vector(args->weight[9]) : (const float *)in[9].data);
    n.vectors = n.head_dim % 8 == 0 && attention_is_aligned(o.q, 16) && attention_is_aligned(o.k, 16) && attention_is_aligned(o.v, 16) &&
                attention_is_aligned(o.d_out, 16);
    if (n.rows > 0)
        GD_BY_ACT(in[0].dtype, T, CU_LAUNCH((dots_kernel<T>), gd_cuda_blocks((long long)n.rows * n.heads, 4), 128, 0, gd_cuda_stream(), dot,
                                            (const T *)o.out, (const T *)o.d_out, at.cu + n.segments, n.heads, n.head_dim));
    if (is_bf16 && n.head_dim <= GD_ATTENTION_MMA_MAX)
        ok = run_mma(n, at, bias, sums, o, err);
    else
        GD_BY_ACT(in[0].dtype, T, ok = run_plain<T>(n, at, bias, sums, o, err));
    if (ok && wants_bias)
        GD_BY_ACT(in[0].dtype, T,
                  ok = run_bias<T>(n, at, bias, sums, o, partial, where.places, (int)args->params->i[6], (float *)out[3].data, err));
    return ok && gd_cuda_launched(args, "attention_grad", err);
}

GD_CUDA_OP(attention_grad, run, scratch_bytes)
