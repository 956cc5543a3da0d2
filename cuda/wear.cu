/*
 * Serving of many grafts in one batch: wear, wear_input, wear_rows (engine/tensor/wear.h says what they make).
 *
 * Rows that follow each other and wear the same graft are taken in chunks of at most CHUNK; each block finds what its chunk wears,
 * so that the grid depends on shapes alone. A row's sums are the same in every chunk. Between the steps values are rounded to the
 * dtype of activations, as on the CPU.
 */
#include "cuda/activation.h"
#include "cuda/kernel.h"
extern "C" {
#include "cuda/wear.h"
}
#include <math.h>

#define CHUNK 8
#define THREADS 128
#define WARPS (THREADS / CU_WARP)
#define RANKS 4              /* dot products that a block makes at once */
#define ROW_BLOCKS 512       /* of a grid; they take turns */
#define RANK_BLOCKS 4

struct worn_rows {
    const struct gd_cuda_wear *wear;
    const int32_t *offsets, *order;  /* of an expert's rows (experts.h), or NULL */
    int index, slots, site;
    int64_t rows, in, out;
};

CU_FN const struct gd_wear_part *part_at(const struct worn_rows &w, int64_t t)
{
    if (w.order != nullptr) {
        int32_t from = w.order[w.offsets[w.index] + t];
        t = from < 0 ? -1 : from / w.slots;
    }
    return gd_worn(w.wear, t, w.site);
}

/* What a chunk that begins at t wears, and its length; NULL where none begins or nothing is worn. */
CU_FN const struct gd_wear_part *chunk_at(const struct worn_rows &w, int64_t t, int *count)
{
    const struct gd_wear_part *part = part_at(w, t);
    *count = 1;
    if (part == nullptr || (t % CHUNK != 0 && part_at(w, t - 1) == part))
        return nullptr;
    while (t + *count < w.rows && (t + *count) % CHUNK != 0 && part_at(w, t + *count) == part)
        ++*count;
    return part;
}

template <class T> CU_FN float rounded(float value)
{
    return to_f32(from_f32<T>(value));
}

/* ---- wear: s = mid * f(A x + mid_add) ---- */

/* sums[r][i]: this thread's part of row r of a times row i of x. */
template <class T> CU_FN void take_columns(float (*sums)[CHUNK], const float *a, int64_t a_row, int ranks, const T *x, int64_t in, int count)
{
    for (int64_t k = threadIdx.x; k < in; k += THREADS) {
        float values[RANKS];
#pragma unroll
        for (int r = 0; r < RANKS; r++)
            values[r] = r < ranks ? a[r * a_row + k] : 0.0f;
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            if (i >= count)
                break;
            float other = to_f32(x[i * in + k]);
#pragma unroll
            for (int r = 0; r < RANKS; r++)
                sums[r][i] += values[r] * other;
        }
    }
}

/* The same, four columns at a time. */
template <class T> CU_FN void take_fours(float (*sums)[CHUNK], const float *a, int64_t a_row, int ranks, const T *x, int64_t in, int count)
{
    for (int64_t k = 4 * threadIdx.x; k < in; k += 4 * THREADS) {
        cu_vector<float, 4> values[RANKS] = {};
#pragma unroll
        for (int r = 0; r < RANKS; r++)
            if (r < ranks)
                values[r] = *(const cu_vector<float, 4> *)(a + r * a_row + k);
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            if (i >= count)
                break;
            cu_vector<T, 4> other = *(const cu_vector<T, 4> *)(x + i * in + k);
#pragma unroll
            for (int r = 0; r < RANKS; r++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    sums[r][i] += values[r].v[j] * to_f32(other.v[j]);
        }
    }
}

CU_FN float finish_rank(const struct gd_wear_part *part, float sum, int r)
{
    sum += part->mid_add != nullptr ? part->mid_add[r] : 0.0f;
    sum = gd_cuda_activate(part->activation, sum);
    return part->mid != nullptr ? sum * part->mid[r] : sum;
}

/* s [rows, GD_WEAR_RANK_MAX] of the chunks that this block finds, RANKS at a time. `fours`: rows of x lie at multiples of four. */
template <class T> __global__ void wear_shrink(float *s, const T *x, const T *y, struct worn_rows w, bool fours)
{
    CU_SHARED(float, partial, [WARPS][RANKS][CHUNK]);
    int lane = threadIdx.x % CU_WARP, warp = threadIdx.x / CU_WARP;
    for (int64_t t = blockIdx.x; t < w.rows; t += gridDim.x) {
        int count;
        const struct gd_wear_part *part = chunk_at(w, t, &count);
        int rank = part != nullptr ? part->rank : 0;
        for (int first = (int)blockIdx.y * RANKS; first < rank; first += RANKS * gridDim.y) {
            const T *source = (part->serial ? y : x) + t * w.in;
            const float *a = part->a + first * part->a_row;
            int ranks = rank - first < RANKS ? rank - first : RANKS;
            float sums[RANKS][CHUNK] = {};
            if (fours && part->a_row % 4 == 0 && (uintptr_t)part->a % 16 == 0)
                take_fours(sums, a, part->a_row, ranks, source, w.in, count);
            else
                take_columns(sums, a, part->a_row, ranks, source, w.in, count);
#pragma unroll
            for (int i = 0; i < CHUNK; i++) {
                if (i >= count)
                    break;
#pragma unroll
                for (int r = 0; r < RANKS; r++) {
                    float sum = warp_sum(sums[r][i]);
                    if (lane == 0)
                        partial[warp][r][i] = sum;
                }
            }
            __syncthreads();
            int r = threadIdx.x / CHUNK, i = threadIdx.x % CHUNK;
            if (r < ranks && i < count) {
                float sum = partial[0][r][i];
                for (int p = 1; p < WARPS; p++)
                    sum += partial[p][r][i];
                s[(t + i) * GD_WEAR_RANK_MAX + first + r] = finish_rank(part, sum, first + r);
            }
            __syncthreads();
        }
    }
}

/* ---- wear: what follows the base's product, a thread for each output ---- */

/* y * out_scale + skip x + out_add */
template <class T> CU_FN void change_column(float *values, const struct gd_wear_part *part, const T *x, int64_t in, int64_t o, int count)
{
    float scale = part->out_scale != nullptr ? part->out_scale[o] : 1.0f, add = part->out_add != nullptr ? part->out_add[o] : 0.0f;
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        if (i >= count)
            break;
        float value = values[i] * scale;
        if (part->skip != 0)
            value += part->skip * to_f32(x[i * in + o]);
        values[i] = rounded<T>(value + add);
    }
}

/* + scale b_scale sum_r b[o][r] s[r]; s: [rank][CHUNK] */
template <class T> CU_FN void expand_column(float *values, const struct gd_wear_part *part, const float *s, int64_t o, int count)
{
    const float *b = part->b + o * part->rank;
    float scale = part->b_scale != nullptr ? part->scale * part->b_scale[o] : part->scale, sums[CHUNK] = {};
    for (int r = 0; r < part->rank; r++) {
        float factor = b[r];
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            if (i >= count)
                break;
            sums[i] += factor * s[r * CHUNK + i];
        }
    }
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
        values[i] = rounded<T>(values[i] + scale * sums[i]);
}

/* + delta x for columns [begin, end), a warp for each. */
template <class T> CU_FN void add_dense(T *y, const float *delta, const T *x, const struct worn_rows &w, int64_t begin, int64_t end, int count)
{
    int lane = threadIdx.x % CU_WARP;
    for (int64_t o = begin + threadIdx.x / CU_WARP; o < end; o += WARPS) {
        float sums[CHUNK] = {};
        for (int64_t k = lane; k < w.in; k += CU_WARP) {
            float factor = delta[o * w.in + k];
#pragma unroll
            for (int i = 0; i < CHUNK; i++) {
                if (i >= count)
                    break;
                sums[i] += factor * to_f32(x[i * w.in + k]);
            }
        }
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            if (i >= count)
                break;
            float sum = warp_sum(sums[i]);
            if (lane == i)
                y[i * w.out + o] = from_f32<T>(to_f32(y[i * w.out + o]) + sum);
        }
    }
}

template <class T> CU_FN void add_entries(T *y, const struct gd_wear_part *part, const T *x, const struct worn_rows &w, int64_t o, int count)
{
    int64_t from = gd_wear_entry_from(part, o), to = gd_wear_entry_from(part, o + 1);
    for (int i = 0; i < count && from < to; i++) {
        float sum = 0;
        for (int64_t e = from; e < to; e++)
            sum += part->entry[e] * to_f32(x[i * w.in + part->entry_column[e]]);
        y[i * w.out + o] = from_f32<T>(to_f32(y[i * w.out + o]) + sum);
    }
}

template <class T> __global__ void wear_finish(T *y, const T *x, const float *s, struct worn_rows w)
{
    CU_SHARED(float, ranks, [GD_WEAR_RANK_MAX * CHUNK]);
    int64_t begin = (int64_t)blockIdx.y * THREADS, end = begin + THREADS < w.out ? begin + THREADS : w.out, o = begin + threadIdx.x;
    for (int64_t t = blockIdx.x; t < w.rows; t += gridDim.x) {
        int count;
        const struct gd_wear_part *part = chunk_at(w, t, &count);
        if (part == nullptr)
            continue;
        T *to = y + t * w.out;
        const T *from = x + t * w.in;
        bool changes = part->out_scale != nullptr || part->out_add != nullptr || part->skip != 0;
        for (int i = threadIdx.x; i < part->rank * CHUNK; i += THREADS)
            if (i % CHUNK < count)
                ranks[i] = s[(t + i % CHUNK) * GD_WEAR_RANK_MAX + i / CHUNK];
        __syncthreads();
        if (o < end && (changes || part->rank > 0)) {
            float values[CHUNK];
#pragma unroll
            for (int i = 0; i < CHUNK; i++)
                values[i] = i < count ? to_f32(to[i * w.out + o]) : 0.0f;
            if (changes)
                change_column(values, part, from, w.in, o, count);
            if (part->rank > 0)
                expand_column<T>(values, part, ranks, o, count);
#pragma unroll
            for (int i = 0; i < CHUNK; i++)
                if (i < count)
                    to[i * w.out + o] = from_f32<T>(values[i]);
        }
        __syncthreads();
        if (part->delta != nullptr)
            add_dense(to, part->delta, from, w, begin, end, count);
        __syncthreads();
        if (part->entry_count > 0 && o < end)
            add_entries(to, part, from, w, o, count);
        __syncthreads(); /* the next turn's ranks */
    }
}

/* ---- launching ---- */

static struct worn_rows rows_of(const struct gd_kernel_args *args, int handle)
{
    const struct gd_tensor *offsets = &args->in[handle + 1], *order = &args->in[handle + 2];
    bool grouped = offsets->rank > 0;
    struct worn_rows w = {};
    w.wear = (const struct gd_cuda_wear *)args->staged;
    w.offsets = grouped ? (const int32_t *)offsets->data : NULL;
    w.order = grouped ? (const int32_t *)order->data : NULL;
    w.site = (int)args->params->i[0];
    w.index = (int)args->params->i[1];
    w.slots = (int)args->params->i[2];
    w.rows = args->out[0].shape[0];
    w.out = args->out[0].shape[1];
    w.in = w.out;
    return w;
}

static unsigned row_blocks(int64_t rows)
{
    return (unsigned)(rows < ROW_BLOCKS ? rows : ROW_BLOCKS);
}

static size_t wear_scratch_bytes(const struct gd_call *call)
{
    return (size_t)call->in[1]->shape[0] * GD_WEAR_RANK_MAX * sizeof(float);
}

static bool wear_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct worn_rows w = rows_of(args, 2);
    float *s = (float *)args->scratch;
    w.in = args->in[1].shape[1];
    if (w.rows == 0 || w.out == 0)
        return true;
    size_t bytes = gd_dtype_bytes(args->out[0].dtype, w.rows * w.out);
    if (!gd_cuda_copy(args->out[0].data, args->in[0].data, bytes, "the rows of wear", err))
        return false;
    dim3 shrink(row_blocks(w.rows), RANK_BLOCKS), finish(row_blocks(w.rows), (unsigned)((w.out + THREADS - 1) / THREADS));
    bool fours = w.in % 4 == 0 && (uintptr_t)args->in[1].data % 16 == 0 && (uintptr_t)args->out[0].data % 16 == 0;
    GD_BY_ACT(args->out[0].dtype, T,
              T *y = (T *)args->out[0].data; const T *x = (const T *)args->in[1].data;
              CU_LAUNCH((wear_shrink<T>), shrink, THREADS, 0, gd_cuda_stream(), s, x, y, w, fours);
              CU_LAUNCH((wear_finish<T>), finish, THREADS, 0, gd_cuda_stream(), y, x, s, w));
    return gd_cuda_launched(args, "wear", err);
}

GD_CUDA_STAGED_OP(wear, wear_run, wear_scratch_bytes, gd_cuda_wear_staged_bytes, gd_cuda_wear_stage)

/* ---- wear_input ---- */

/* y = in_scale * x; of rows that will be rotated into `kept`. */
template <class T> __global__ void wear_scale(T *y, T *kept, const T *x, struct worn_rows w)
{
    for (int64_t t = blockIdx.x; t < w.rows; t += gridDim.x) {
        const struct gd_wear_part *part = part_at(w, t);
        const float *scale = part != nullptr ? part->in_scale : nullptr;
        T *to = (part != nullptr && part->in_rotate != nullptr ? kept : y) + t * w.out;
        for (int64_t j = (int64_t)blockIdx.y * THREADS + threadIdx.x; j < w.out; j += (int64_t)gridDim.y * THREADS)
            to[j] = scale != nullptr ? from_f32<T>(to_f32(x[t * w.out + j]) * scale[j]) : x[t * w.out + j];
    }
}

template <class T> __global__ void wear_rotate(T *y, const T *kept, struct worn_rows w)
{
    for (int64_t t = blockIdx.x; t < w.rows; t += gridDim.x) {
        const struct gd_wear_part *part = part_at(w, t);
        if (part == nullptr || part->in_rotate == nullptr)
            continue;
        int64_t size = part->rotate_block;
        for (int64_t i = (int64_t)blockIdx.y * THREADS + threadIdx.x; i < w.out; i += (int64_t)gridDim.y * THREADS) {
            const float *square = part->in_rotate + i * size;
            const T *from = kept + t * w.out + i / size * size;
            float sum = 0.0f;
            for (int64_t j = 0; j < size; j++)
                sum += square[j] * to_f32(from[j]);
            y[t * w.out + i] = from_f32<T>(sum);
        }
    }
}

static size_t input_scratch_bytes(const struct gd_call *call)
{
    return gd_dtype_bytes(call->in[0]->dtype, call->in[0]->shape[0] * call->in[0]->shape[1]);
}

static bool input_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct worn_rows w = rows_of(args, 1);
    if (w.rows == 0 || w.out == 0)
        return true;
    dim3 grid(row_blocks(w.rows), (unsigned)((w.out + THREADS - 1) / THREADS));
    GD_BY_ACT(args->out[0].dtype, T,
              T *y = (T *)args->out[0].data; T *kept = (T *)args->scratch;
              CU_LAUNCH((wear_scale<T>), grid, THREADS, 0, gd_cuda_stream(), y, kept, (const T *)args->in[0].data, w);
              CU_LAUNCH((wear_rotate<T>), grid, THREADS, 0, gd_cuda_stream(), y, kept, w));
    return gd_cuda_launched(args, "wear_input", err);
}

GD_CUDA_STAGED_OP(wear_input, input_run, input_scratch_bytes, gd_cuda_wear_staged_bytes, gd_cuda_wear_stage)

/* ---- wear_rows ---- */

template <class T> __global__ void wear_embedded(T *y, const T *x, struct worn_rows w)
{
    const int32_t *row_index = (const int32_t *)(w.wear->sites + w.wear->room);
    const int32_t *ids = row_index + w.wear->room, *positions = ids + w.wear->room;
    for (int64_t t = blockIdx.x; t < w.rows; t += gridDim.x) {
        const struct gd_wear_part *part = part_at(w, t);
        const float *token = nullptr, *position = nullptr, *own = nullptr;
        if (part != nullptr && part->table != nullptr)
            token = part->table + ids[t] * w.out;
        if (part != nullptr && part->positions != nullptr)
            position = part->positions + (positions[t] + part->position_offset) * w.out;
        if (part != nullptr && part->rows != nullptr && row_index[t] >= 0 && row_index[t] < part->row_count)
            own = part->rows + row_index[t] * w.out;
        for (int64_t j = (int64_t)blockIdx.y * THREADS + threadIdx.x; j < w.out; j += (int64_t)gridDim.y * THREADS) {
            float value = to_f32(x[t * w.out + j]);
            if (token != nullptr)
                value = rounded<T>(value + part->table_scale * token[j]);
            if (position != nullptr)
                value = rounded<T>(value + position[j]);
            if (own != nullptr)
                value = rounded<T>(value + own[j]);
            y[t * w.out + j] = from_f32<T>(value);
        }
    }
}

static bool rows_run(const struct gd_kernel_args *args, struct gd_error *err)
{
    struct worn_rows w = rows_of(args, 1);
    if (w.rows == 0 || w.out == 0)
        return true;
    dim3 grid(row_blocks(w.rows), (unsigned)((w.out + THREADS - 1) / THREADS));
    GD_BY_ACT(args->out[0].dtype, T,
              CU_LAUNCH((wear_embedded<T>), grid, THREADS, 0, gd_cuda_stream(), (T *)args->out[0].data, (const T *)args->in[0].data, w));
    return gd_cuda_launched(args, "wear_rows", err);
}

GD_CUDA_STAGED_OP(wear_rows, rows_run, NULL, gd_cuda_wear_staged_bytes, gd_cuda_wear_stage)
