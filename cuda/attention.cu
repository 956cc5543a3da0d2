/*
 * Attention over packed segments (engine/tensor/ops/attention.c). A block has a tile of rows of one head and takes the keys
 * tile by tile with an online softmax (Dao et al. 2022); the exponent is in base 2. bf16: the scores' product, the softmax and
 * the product with the values stay in the registers of the warp that has the 16 rows; the values come in during the first
 * product, the next keys during the second.
 */
#include "cuda/attention_plain.h"

#define ROWS GD_ATTENTION_ROWS

/* Products of a warp's 16 rows to weights, and these into the rows' sums. Tiles that all rows see whole are the most: no masks there. */
template <int PADDED, int NT>
CU_FN void soften(const attention_shape &n, const attention_bias &bias, int head, float (*s)[4], float (*sum)[4], float *most, float *total,
                  int row, int key, int end, int shift)
{
    int mine = row + (int)threadIdx.x % 32 / 4 + shift, heads[2] = {head, head}, apart[2] = {mine, mine + 8};
    bool whole = key + 8 * NT <= end && attention_sees_all(n, row, row + 15, key, key + 8 * NT - 1, shift);
    if (whole && n.softcap == 0 && n.bias_distance == 0) {
        attention_scale<NT>(s, n);
    } else {
        attention_scores<NT>(s, n, bias, heads, apart, key);
        attention_mask<NT>(s, n, apart, key, end);
    }
    attention_soften<NT, PADDED / 8>(s, sum, most, total);
}

template <int PADDED>
CU_FN void forward_rows(const attention_shape &n, const attention_bias &bias, int head, const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out,
                        float *lse, const attention_part *parts, int begin, int end)
{
    const int keys = attention_tiles<PADDED>::forward_keys, pitch = PADDED + 8;
    CU_DYN_SHARED(bf16, shared);
    bf16 *q_tile = shared, *k_tile = q_tile + ROWS * pitch, *v_tile = k_tile + keys * pitch;
    int lane = (int)threadIdx.x % 32, row = (int)threadIdx.x / 32 * 16;
    long long q_row = (long long)n.heads * n.head_dim, kv_row = (long long)n.kv_heads * n.head_dim;
    int first_tiles = (parts[0].end - parts[0].begin + keys - 1) / keys, tiles = first_tiles + (parts[1].end - parts[1].begin + keys - 1) / keys;
    float sum[PADDED / 8][4] = {}, most[2] = {GD_ATTENTION_NOTHING, GD_ATTENTION_NOTHING}, total[2] = {};
    for (int t = 0; t < tiles; t++) {
        bool second = t >= first_tiles;
        int shift = second ? parts[1].shift : parts[0].shift, key_end = second ? parts[1].end : parts[0].end;
        int key = second ? parts[1].begin + (t - first_tiles) * keys : parts[0].begin + t * keys;
        if (t == 0) {
            attention_load_tile<PADDED, ROWS>(q_tile, q + begin * q_row, q_row, end - begin, n.head_dim, n.vectors);
            attention_load_tile<PADDED, keys>(k_tile, k + key * kv_row, kv_row, key_end - key, n.head_dim, n.vectors);
            cp_async_commit();
        }
        cp_async_wait<0>();
        __syncthreads(); /* keys are there; nobody reads values any more */
        attention_load_tile<PADDED, keys>(v_tile, v + key * kv_row, kv_row, key_end - key, n.head_dim, n.vectors);
        cp_async_commit();
        float s[keys / 8][4];
        attention_products<PADDED, keys / 8>(s, q_tile + row * pitch, k_tile);
        soften<PADDED, keys / 8>(n, bias, head, s, sum, most, total, begin + row, key, key_end, shift);
        cp_async_wait<0>();
        __syncthreads(); /* values are there; nobody reads keys any more */
        if (t + 1 < tiles) {
            bool later = t + 1 >= first_tiles;
            int next = later ? parts[1].begin + (t + 1 - first_tiles) * keys : key + keys, next_end = later ? parts[1].end : key_end;
            attention_load_tile<PADDED, keys>(k_tile, k + next * kv_row, kv_row, next_end - next, n.head_dim, n.vectors);
            cp_async_commit();
        }
        attention_add_products<PADDED, PADDED, keys / 8>(sum, s, v_tile);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int at = begin + row + lane / 4 + half * 8;
        float all = quad_sum(total[half]), factor = all != 0 ? 1 / all : 0;
        if (at >= end)
            continue;
        if (lane % 4 == 0)
            lse[(long long)at * n.heads + head] = all != 0 ? (most[half] + log2f(all)) * GD_ATTENTION_LN_2 : 0;
#pragma unroll
        for (int i = 0; i < PADDED / 8; i++)
            attention_store_pair(out + at * q_row, i * 8 + lane % 4 * 2, n.head_dim, sum[i][half * 2] * factor, sum[i][half * 2 + 1] * factor);
    }
}

/* What both forms do around their rows. */
template <class T, int ROWS_A_TILE>
CU_FN bool find_rows(const attention_shape &n, const attention_offsets &at, T *out, float *lse, attention_tile *tile, attention_part *parts)
{
    if (attention_find_rows<T, ROWS_A_TILE>(n, at, out, tile, parts))
        return true;
    for (int row = tile->begin + (int)threadIdx.x; row < tile->end; row += (int)blockDim.x)
        lse[(long long)row * n.heads + (int)blockIdx.y] = 0;
    return false;
}

template <int PADDED>
__global__ __launch_bounds__(128) void forward_kernel(attention_shape n, attention_offsets at, attention_bias bias, const bf16 *q, const bf16 *k,
                                                      const bf16 *v, bf16 *out, float *lse)
{
    attention_tile tile;
    attention_part parts[2];
    int head = (int)blockIdx.y, kv = head / n.group * n.head_dim;
    if (find_rows<bf16, ROWS>(n, at, out, lse, &tile, parts))
        forward_rows<PADDED>(n, bias, head, q + head * n.head_dim, k + kv, v + kv, out + head * n.head_dim, lse, parts, tile.begin, tile.end);
}

template <class T, int VALUES>
__global__ __launch_bounds__(attention_plain<VALUES>::threads, 1) void forward_plain_kernel(attention_shape n, attention_offsets at, attention_bias bias, const T *q, const T *k,
                                                            const T *v, T *out, float *lse)
{
    attention_tile tile;
    attention_part parts[2];
    int head = (int)blockIdx.y, kv = head / n.group * n.head_dim;
    attention_packed_keys place = {(long long)n.kv_heads * n.head_dim};
    if (find_rows<T, attention_plain<VALUES>::rows>(n, at, out, lse, &tile, parts))
        attention_plain_rows<T, T, VALUES>(n, bias, head, q + head * n.head_dim, k + kv, v + kv, out + head * n.head_dim, lse, place, parts,
                                           tile.begin, tile.end);
}

/* Of a distance (attention_bias.h). The logarithm in double and rounded: the bits of a correctly rounded one in f32. */
CU_FN int bucket_of(int distance, int buckets, bool both, int max_distance, float log_range)
{
    int side = both ? buckets / 2 : buckets, first = both && distance < 0 ? side : 0;
    int d = distance < 0 ? (both ? -distance : 0) : distance, exact = side / 2;
    if (d < exact)
        return first + d;
    if (d >= max_distance)
        return first + side - 1;
    float step = __fmul_rn(__fdiv_rn((float)log((double)__fdiv_rn((float)d, (float)exact)), log_range), (float)(side - exact));
    int bucket = exact + (int)step;
    return first + (bucket < side - 1 ? bucket : side - 1);
}

__global__ void bias_kernel(float *table, int *bucket, const float *bias, int heads, int buckets, bool both, int max_distance, float log_range)
{
    int width = 2 * max_distance + 1, u = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (u >= width)
        return;
    int b = bucket_of(u - max_distance, buckets, both, max_distance, log_range);
    bucket[u] = b;
    for (int h = 0; h < heads; h++)
        table[(long long)h * width + u] = bias[(long long)b * heads + h] * GD_ATTENTION_LOG2_E;
}

attention_bias gd_cuda_attention_bias(void *scratch, const struct gd_op_params *params, const float *bias)
{
    int heads = (int)params->i[0], buckets = (int)params->i[6], far = (int)params->i[7], width = 2 * far + 1;
    bool both = params->i[5] != 0;
    float *table = (float *)scratch;
    int *bucket = (int *)(table + (size_t)heads * (size_t)width);
    if (buckets == 0)
        return attention_bias{NULL, NULL};
    float log_range = (float)log((double)far / ((both ? buckets / 2 : buckets) / 2));
    CU_LAUNCH(bias_kernel, gd_cuda_blocks(width, 128), 128, 0, gd_cuda_stream(), table, bucket, bias, heads, buckets, both, far, log_range);
    return attention_bias{table, bucket};
}

static size_t scratch_bytes(const struct gd_call *call)
{
    return attention_bias_bytes(&call->params);
}

static bool run(const struct gd_kernel_args *args, struct gd_error *err)
{
    const struct gd_tensor *in = args->in, *out = args->out;
    attention_offsets at = {(const int *)in[3].data, (const int *)in[4].data, (const int *)in[5].data};
    attention_shape n = attention_shape_of(args->params, in[0].shape[0], in[1].shape[0], in[3].shape[0] - 1, at.key_cu != NULL);
    if (n.rows == 0)
        return true;
    attention_bias bias = gd_cuda_attention_bias(args->scratch, args->params,
                                                 args->weight[6] != NULL ? gd_weight_vector(args->weight[6]) : (const float *)in[6].data);
    n.vectors = n.head_dim % 8 == 0 && attention_is_aligned(in[0].data, 16) && attention_is_aligned(in[1].data, 16) && attention_is_aligned(in[2].data, 16);
    float *lse = (float *)out[1].data;
    if (out[0].dtype == GD_BF16 && n.head_dim <= GD_ATTENTION_MMA_MAX) {
        dim3 grid((unsigned)(n.rows / ROWS + n.segments + 1), (unsigned)n.heads);
        GD_BY_HEAD_DIM(n.head_dim, PADDED, {
            const size_t bytes = attention_mma_bytes(ATTENTION_FORWARD, n.head_dim);
            if (!attention_allow_shared((const void *)forward_kernel<PADDED>, bytes, "attention", err))
                return false;
            CU_LAUNCH((forward_kernel<PADDED>), grid, 128, bytes, gd_cuda_stream(), n, at, bias, (const bf16 *)in[0].data,
                      (const bf16 *)in[1].data, (const bf16 *)in[2].data, (bf16 *)out[0].data, lse);
        });
        return gd_cuda_launched(args, "attention", err);
    }
    GD_BY_VALUES(n.head_dim, VALUES, {
        using plain = attention_plain<VALUES>;
        const size_t bytes = attention_plain_bytes(ATTENTION_FORWARD, n.head_dim);
        dim3 grid((unsigned)(n.rows / plain::rows + n.segments + 1), (unsigned)n.heads);
        GD_BY_ACT(out[0].dtype, T, {
            if (!attention_allow_shared((const void *)forward_plain_kernel<T, VALUES>, bytes, "attention", err))
                return false;
            CU_LAUNCH((forward_plain_kernel<T, VALUES>), grid, plain::threads, bytes, gd_cuda_stream(), n, at, bias, (const T *)in[0].data,
                      (const T *)in[1].data, (const T *)in[2].data, (T *)out[0].data, lse);
        });
    });
    return gd_cuda_launched(args, "attention", err);
}

GD_CUDA_OP(attention, run, scratch_bytes)
