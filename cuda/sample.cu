/*
 * A block for each row. Weights are e^((z - max) / temperature); what they add up to is counted in integers of 2^-42, whose sums do
 * not depend on the order. top_k, top_p, min_p and the draw among what they leave all end at a place in the order of falling
 * weights, then rising ids: select() finds the weight at such a place by its bits, three at a time, and ties by their ids.
 */
#include "cuda/kernel.h"
extern "C" {
#include "cuda/sample.h"
}
#include <math.h>
#include <stdio.h>

#define THREADS 512
#define WARPS (THREADS / CU_WARP)
#define TILE 256             /* elements whose sum is kept, to find a place among all */
#define DIGITS 7             /* thresholds that are tried at once */
#define UNIT 4398046511104.0f /* 2^42 */

struct samples {
    const float *logits;
    const struct gd_sample_row *rows;
    const struct gd_sample_edit *edits;
    struct gd_sampled *out;
    float *work;             /* [row][vocab] */
    uint64_t *tiles;         /* [row][tile_count] */
    int vocab, tile_count;
};

/* What one block works on. */
struct one {
    float *weight;
    uint64_t *tiles;
    int vocab, tile_count;
};

/* gd_exp of engine/tensor/ops/sigmoid.h */
CU_FN float exponential(float x)
{
    const float magic = 12582912.0f;
    float bounded = x < -100.0f ? -100.0f : x > 100.0f ? 100.0f : x;
    float shifted = bounded * 1.44269504088896341f + magic, n = shifted - magic;
    float r = bounded - n * 0.693359375f + n * 2.12194440e-4f, f = r * 1.44269504088896341f;
    float p = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
    float result = __uint_as_float(__float_as_uint(p) + ((__float_as_uint(shifted) - 0x4B400000u) << 23));
    result = x < -87.3f ? 0.0f : result;
    result = x > 88.7f ? INFINITY : result;
    return x != x ? x : result;
}

CU_FN uint64_t mass_of(float weight)
{
    return weight > 0.0f ? (uint64_t)((weight < 2.0f ? weight : 2.0f) * UNIT) : 0;
}

/* Larger logits, then lower ids, have larger keys. */
CU_FN uint64_t key_of(float logit, int id)
{
    uint32_t bits = __float_as_uint(logit + 0.0f);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (0xFFFFFFFFu - (uint32_t)id);
}

CU_FN int id_of(uint64_t key)
{
    return (int)(0xFFFFFFFFu - (uint32_t)key);
}

/* The largest key of x that is below `limit`; 0 where none is. Numbers only. */
CU_FN uint64_t largest_key(const float *x, int count, uint64_t limit)
{
    uint64_t best = 0;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        uint64_t key = x[i] == x[i] ? key_of(x[i], i) : 0;
        best = key < limit && key > best ? key : best;
    }
    return block_max(best);
}

CU_FN void adjust(float *z, const struct gd_sample_row &row, const struct gd_sample_edit *edits, int vocab)
{
    float penalty = (float)row.repetition_penalty;
    for (int i = threadIdx.x; i < row.edit_count; i += THREADS) {
        struct gd_sample_edit edit = edits[row.edit_begin + i];
        if (edit.id < 0 || edit.id >= vocab)
            continue;
        float value = z[edit.id] + edit.bias;
        if (edit.seen && row.repetition_penalty != 1.0)
            value = value > 0 ? value / penalty : value * penalty;
        if (edit.count > 0 && (row.frequency_penalty != 0 || row.presence_penalty != 0))
            value -= (float)(edit.count * row.frequency_penalty + row.presence_penalty);
        z[edit.id] = value;
    }
}

/* ---- places in the order of ids ---- */

/* What an element adds up: its mass, or one where its bits are these. */
struct measure {
    bool ties;
    uint32_t bits;
};

CU_FN uint64_t measured(struct measure m, float weight)
{
    return m.ties ? __float_as_uint(weight) == m.bits : mass_of(weight);
}

/* The first of 32 values, one in each lane, at which the sum passes *rest; the sum before it is taken off *rest. */
CU_FN int first_lane(uint64_t value, uint64_t *rest)
{
    for (int lane = 0; lane < CU_WARP; lane++) {
        uint64_t here = __shfl_sync(~0u, value, lane);
        if (*rest < here)
            return lane;
        *rest -= here;
    }
    return CU_WARP;
}

/* The id at which the sum over ids passes `rest`; -1: it does not reach so far. */
CU_FN int place_of(const struct one &o, struct measure m, uint64_t rest)
{
    CU_SHARED(int, found, [1]);
    int lane = threadIdx.x % CU_WARP, warp = threadIdx.x / CU_WARP;
    for (int tile = warp; tile < o.tile_count; tile += WARPS) {
        uint64_t sum = 0;
        for (int i = tile * TILE + lane; i < (tile + 1) * TILE && i < o.vocab; i += CU_WARP)
            sum += measured(m, o.weight[i]);
        sum = warp_sum(sum);
        if (lane == 0)
            o.tiles[tile] = sum;
    }
    __syncthreads();
    if (warp == 0) {
        int tile = -1, id = -1;
        for (int at = 0; at < o.tile_count && tile < 0; at += CU_WARP) {
            uint64_t here = at + lane < o.tile_count ? o.tiles[at + lane] : 0;
            int step = first_lane(here, &rest);
            tile = step < CU_WARP ? at + step : -1;
        }
        for (int at = 0; tile >= 0 && at < TILE && id < 0; at += CU_WARP) {
            int i = tile * TILE + at + lane;
            int step = first_lane(i < o.vocab ? measured(m, o.weight[i]) : 0, &rest);
            id = step < CU_WARP ? tile * TILE + at + step : -1;
        }
        if (lane == 0)
            found[0] = id;
    }
    __syncthreads();
    int id = found[0];
    __syncthreads();
    return id;
}

/* ---- places in the order of weights ---- */

/* sums[j] over the block, in all threads. */
CU_FN void block_sums(uint64_t *sums)
{
    CU_SHARED(uint64_t, partial, [WARPS][DIGITS]);
    int lane = threadIdx.x % CU_WARP, warp = threadIdx.x / CU_WARP;
#pragma unroll
    for (int j = 0; j < DIGITS; j++) {
        uint64_t sum = warp_sum(sums[j]);
        if (lane == 0)
            partial[warp][j] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < DIGITS; j++) {
        sums[j] = 0;
        for (int w = 0; w < WARPS; w++)
            sums[j] += partial[w][j];
    }
    __syncthreads();
}

/* The bits of the weight at which the sum over falling weights reaches `need` (within what there is). Weights count by mass, or
 * each with mass as one. */
CU_FN uint32_t select(const struct one &o, uint64_t need, bool by_count)
{
    uint32_t chosen = 0;
    for (int shift = 27; shift >= 0; shift -= 3) {
        uint64_t sums[DIGITS] = {};
        for (int i = threadIdx.x; i < o.vocab; i += THREADS) {
            float weight = o.weight[i];
            uint64_t mass = mass_of(weight), value = by_count ? mass > 0 : mass;
            uint32_t bits = mass > 0 ? __float_as_uint(weight) : 0;
#pragma unroll
            for (int j = 0; j < DIGITS; j++)
                sums[j] += bits >= (chosen | (uint32_t)(j + 1) << shift) ? value : 0;
        }
        block_sums(sums);
        uint32_t digit = 0;
#pragma unroll
        for (int j = 0; j < DIGITS; j++)
            digit = sums[j] >= need ? (uint32_t)(j + 1) : digit;
        chosen |= digit << shift;
    }
    return chosen;
}

/* What weights of at least these bits come to, by mass and by number. */
CU_FN void total_from(const struct one &o, uint32_t bits, uint64_t *mass, uint64_t *count)
{
    uint64_t all = 0, number = 0;
    for (int i = threadIdx.x; i < o.vocab; i += THREADS) {
        uint64_t here = mass_of(o.weight[i]);
        if (here > 0 && __float_as_uint(o.weight[i]) >= bits) {
            all += here;
            number++;
        }
    }
    *mass = block_sum(all);
    *count = block_sum(number);
}

/* How many weights of these bits it takes to come from `before` to `need`. */
CU_FN uint64_t ties_for(uint64_t need, uint64_t before, uint32_t bits)
{
    uint64_t each = mass_of(__uint_as_float(bits));
    return each > 0 && need > before ? (need - before + each - 1) / each : 1;
}

/* A part of a mass, rounded up or down and at least one. */
CU_FN uint64_t part_of(double part, uint64_t mass, bool up)
{
    double value = part * (double)mass;
    uint64_t whole = (uint64_t)(up ? ceil(value) : value);
    return whole < 1 ? 1 : whole < mass ? whole : mass;
}

/* The mass of what top_k, top_p and min_p leave. */
CU_FN uint64_t mass_left(const struct one &o, const struct gd_sample_row &row)
{
    uint64_t mass, count, above, number;
    total_from(o, 0, &mass, &count);
    if (row.top_k > 0 && (uint64_t)row.top_k < count) {
        uint32_t bits = select(o, (uint64_t)row.top_k, true);
        total_from(o, bits + 1, &above, &number);
        mass = above + ((uint64_t)row.top_k - number) * mass_of(__uint_as_float(bits));
    }
    if (row.top_p < 1) {
        uint64_t need = part_of(row.top_p, mass, true);
        uint32_t bits = select(o, need, false);
        total_from(o, bits + 1, &above, &number);
        mass = above + ties_for(need, above, bits) * mass_of(__uint_as_float(bits));
    }
    if (row.min_p > 0) {
        float least = (float)row.min_p;
        uint32_t bits = __float_as_uint(least) + ((double)least < row.min_p ? 1u : 0u);
        total_from(o, bits, &above, &number);
        above = above > 0 ? above : mass_of(1.0f);
        mass = above < mass ? above : mass;
    }
    return mass;
}

/* The token at `uniform` of what is left, largest first. */
CU_FN int draw_sorted(const struct one &o, const struct gd_sample_row &row)
{
    uint64_t mass = mass_left(o, row), above, number;
    if (mass == 0)
        return -1;
    uint64_t drawn = (uint64_t)(row.uniform * (double)mass), need = drawn < mass ? drawn + 1 : mass;
    uint32_t bits = select(o, need, false);
    total_from(o, bits + 1, &above, &number);
    struct measure ties = {true, bits};
    return place_of(o, ties, ties_for(need, above, bits) - 1);
}

CU_FN int draw_any(const struct one &o, const struct gd_sample_row &row)
{
    uint64_t mass, count;
    total_from(o, 0, &mass, &count);
    if (mass == 0)
        return -1;
    uint64_t drawn = (uint64_t)(row.uniform * (double)mass);
    struct measure masses = {false, 0};
    return place_of(o, masses, drawn < mass ? drawn : mass - 1);
}

CU_FN int choose(const struct one &o, const struct gd_sample_row &row)
{
    uint64_t key = largest_key(o.weight, o.vocab, ~(uint64_t)0);
    int greedy = key != 0 ? id_of(key) : 0, token;
    float inverse = (float)(1 / row.temperature), most = o.weight[greedy];
    if (row.temperature <= 0 || !isfinite(inverse))
        return greedy;
    __syncthreads();
    for (int i = threadIdx.x; i < o.vocab; i += THREADS)
        o.weight[i] = exponential((o.weight[i] - most) * inverse);
    __syncthreads();
    bool filtered = (row.top_k > 0 && row.top_k < o.vocab) || row.top_p < 1 || row.min_p > 0;
    token = filtered ? draw_sorted(o, row) : draw_any(o, row);
    return token >= 0 ? token : greedy;
}

CU_FN void tell(struct gd_sampled *out, const float *logits, int vocab, int token, int top_count)
{
    uint64_t key = largest_key(logits, vocab, ~(uint64_t)0);
    float most = logits[key != 0 ? id_of(key) : 0];
    double sum = 0;
    for (int i = threadIdx.x; i < vocab; i += THREADS)
        sum += (double)exponential(logits[i] - most);
    double shift = (double)most + log(block_sum(sum));
    if (threadIdx.x == 0)
        out->logprob = (double)logits[token] - shift;
    for (int n = 0; n < top_count && key != 0; n++) {
        if (threadIdx.x == 0) {
            out->top_ids[n] = id_of(key);
            out->top_logprobs[n] = (double)logits[id_of(key)] - shift;
        }
        key = largest_key(logits, vocab, key);
    }
}

__global__ void __launch_bounds__(THREADS) sample(struct samples s)
{
    int64_t at = blockIdx.x;
    const struct gd_sample_row &row = s.rows[at];
    const float *logits = s.logits + at * s.vocab;
    struct one o = {s.work + at * s.vocab, s.tiles + at * s.tile_count, s.vocab, s.tile_count};
    for (int i = threadIdx.x; i < s.vocab; i += THREADS)
        o.weight[i] = logits[i];
    __syncthreads();
    adjust(o.weight, row, s.edits, s.vocab);
    __syncthreads();
    int token = choose(o, row);
    if (threadIdx.x == 0)
        s.out[at].token = token;
    if (row.top_count >= 0)
        tell(&s.out[at], logits, s.vocab, token, row.top_count);
}

/* ---- launching ---- */

struct layout {
    size_t rows, edits, out, tiles, work, end;
};

static size_t after(size_t at, size_t bytes)
{
    return (at + bytes + 255) / 256 * 256;
}

static struct layout layout_of(int64_t rows, int64_t vocab, int64_t edits)
{
    struct layout l = {};
    l.edits = after(0, (size_t)rows * sizeof(struct gd_sample_row));
    l.out = after(l.edits, (size_t)edits * sizeof(struct gd_sample_edit));
    l.tiles = after(l.out, (size_t)rows * sizeof(struct gd_sampled));
    l.work = after(l.tiles, (size_t)(rows * ((vocab + TILE - 1) / TILE)) * sizeof(uint64_t));
    l.end = after(l.work, (size_t)(rows * vocab) * sizeof(float));
    return l;
}

size_t gd_cuda_sample_bytes(int64_t rows, int64_t vocab, int64_t edits)
{
    return layout_of(rows, vocab, edits).end;
}

static bool transfer(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, struct gd_error *err)
{
    return bytes == 0 || gd_cuda_check(cudaMemcpyAsync(to, from, bytes, kind, gd_cuda_stream()), "cudaMemcpyAsync", "a batch to sample", err);
}

bool gd_cuda_sample(const struct gd_sample_batch *batch, void *scratch, struct gd_sampled *out, struct gd_error *err)
{
    struct layout l = layout_of(batch->row_count, batch->vocab, batch->edit_count);
    char *memory = (char *)scratch, what[64];
    struct samples s = {batch->logits, (const struct gd_sample_row *)(memory + l.rows), (const struct gd_sample_edit *)(memory + l.edits),
                        (struct gd_sampled *)(memory + l.out), (float *)(memory + l.work), (uint64_t *)(memory + l.tiles), batch->vocab,
                        (batch->vocab + TILE - 1) / TILE};
    if (batch->vocab < 1 || batch->vocab > GD_SAMPLE_VOCAB_MAX)
        return gd_fail(err, GD_UNSUPPORTED, "sampling on the device: a vocabulary of %d tokens, at most %d", batch->vocab, GD_SAMPLE_VOCAB_MAX);
    if (batch->row_count == 0)
        return true;
    for (int i = 0; i < batch->row_count; i++)
        if (batch->rows[i].top_count > GD_SAMPLE_TOP_MAX || batch->rows[i].top_count > batch->vocab ||
            batch->rows[i].edit_begin < 0 || batch->rows[i].edit_count < 0 || batch->rows[i].edit_begin > batch->edit_count - batch->rows[i].edit_count)
            return gd_fail(err, GD_INTERNAL, "sampling: row %d wants %d log-probabilities and edits %d + %d of %d", i,
                           batch->rows[i].top_count, batch->rows[i].edit_begin, batch->rows[i].edit_count, batch->edit_count);
    snprintf(what, sizeof(what), "%d rows of %d", batch->row_count, batch->vocab);
    if (!transfer(memory + l.rows, batch->rows, (size_t)batch->row_count * sizeof(*batch->rows), cudaMemcpyHostToDevice, err) ||
        !transfer(memory + l.edits, batch->edits, (size_t)batch->edit_count * sizeof(*batch->edits), cudaMemcpyHostToDevice, err) ||
        !gd_cuda_check(cudaMemsetAsync(memory + l.out, 0, (size_t)batch->row_count * sizeof(*out), gd_cuda_stream()), "cudaMemsetAsync",
                       what, err))
        return false;
    CU_LAUNCH(sample, (unsigned)batch->row_count, THREADS, 0, gd_cuda_stream(), s);
    return gd_cuda_check(cudaGetLastError(), "sample", what, err) &&
           transfer(out, memory + l.out, (size_t)batch->row_count * sizeof(*out), cudaMemcpyDeviceToHost, err) &&
           gd_cuda_check(cudaStreamSynchronize(gd_cuda_stream()), "cudaStreamSynchronize", what, err);
}
