#include "engine/infer/sampler.h"
#include "engine/base/alloc.h"
#include "engine/base/philox.h"
#include "engine/tensor/ops/sigmoid.h"
#include <assert.h>
#include <math.h>

#define BLOCK 256 /* weights summed in f32 before they go into a double */

void gd_sampler_init(struct gd_sampler *sampler, int vocab)
{
    assert(vocab > 0);
    sampler->vocab = vocab;
    sampler->work = gd_alloc_array((size_t)vocab, sizeof(float));
    sampler->order = gd_alloc_array((size_t)vocab, sizeof(int32_t));
    sampler->block_sums = gd_alloc_array((size_t)(vocab + BLOCK - 1) / BLOCK, sizeof(double));
}

void gd_sampler_release(struct gd_sampler *sampler)
{
    gd_free(sampler->work);
    gd_free(sampler->order);
    gd_free(sampler->block_sums);
    memset(sampler, 0, sizeof(*sampler));
}

GD_KERNEL static float largest(const float *x, int count)
{
    float max = x[0];
#pragma omp simd reduction(max : max)
    for (int i = 0; i < count; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

/* weight[i] = exp((x[i] - max) * inverse_temperature) in place when `keep`; sums by block; the total. */
GD_KERNEL static double exponentials(float *x, float max, float inverse_temperature, int count, double *sums)
{
    double total = 0;
    for (int at = 0; at < count; at += BLOCK) {
        int end = count - at < BLOCK ? count : at + BLOCK;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int i = at; i < end; i++) {
            float weight = gd_exp((x[i] - max) * inverse_temperature);
            x[i] = weight;
            sum += weight;
        }
        sums[at / BLOCK] = (double)sum;
        total += (double)sum;
    }
    return total;
}

GD_KERNEL static double exponential_sum(const float *x, float max, int count)
{
    double total = 0;
    for (int at = 0; at < count; at += BLOCK) {
        int end = count - at < BLOCK ? count : at + BLOCK;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int i = at; i < end; i++)
            sum += gd_exp(x[i] - max);
        total += (double)sum;
    }
    return total;
}

static int32_t first_equal(const float *x, float value, int count)
{
    for (int i = 0; i < count; i++)
        if (x[i] == value)
            return i;
    return 0; /* no number among them */
}

static void adjust(float *z, int vocab, const struct gd_sampling *sampling, const uint16_t *counts, const uint8_t *seen)
{
    for (int i = 0; i < sampling->bias_count; i++)
        if (sampling->bias_ids[i] >= 0 && sampling->bias_ids[i] < vocab)
            z[sampling->bias_ids[i]] += sampling->bias_values[i];
    if (seen != NULL && sampling->repetition_penalty != 1.0) {
        float penalty = (float)sampling->repetition_penalty;
        for (int i = 0; i < vocab; i++)
            if (seen[i])
                z[i] = z[i] > 0 ? z[i] / penalty : z[i] * penalty;
    }
    if (counts != NULL && (sampling->frequency_penalty != 0 || sampling->presence_penalty != 0))
        for (int i = 0; i < vocab; i++)
            if (counts[i] > 0)
                z[i] -= (float)(counts[i] * sampling->frequency_penalty + sampling->presence_penalty);
}

/* ---- the largest weights first: a heap of ids, by weight, then by lower id ---- */

static bool before(const float *weight, int32_t a, int32_t b)
{
    return weight[a] > weight[b] || (weight[a] == weight[b] && a < b);
}

static void sift_down(int32_t *heap, int count, int at, const float *weight)
{
    int32_t id = heap[at];
    for (int child = 2 * at + 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && before(weight, heap[child + 1], heap[child]))
            child++;
        if (!before(weight, heap[child], id))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = id;
}

/* Ids of at least `floor` weight; returns how many, as a heap. */
static int make_heap(int32_t *heap, const float *weight, int vocab, double floor)
{
    int count = 0;
    for (int i = 0; i < vocab; i++)
        if ((double)weight[i] >= floor)
            heap[count++] = i;
    for (int at = count / 2 - 1; at >= 0; at--)
        sift_down(heap, count, at, weight);
    return count;
}

/* Puts the ids that top_k, top_p and min_p keep at the end of `order`, the largest last; returns how many, *mass theirs. */
static int filter(struct gd_sampler *sampler, const struct gd_sampling *sampling, double total, double *mass)
{
    const float *weight = sampler->work;
    int32_t *order = sampler->order;
    int vocab = sampler->vocab, k = sampling->top_k > 0 && sampling->top_k < vocab ? sampling->top_k : vocab;
    /* The largest weight is 1. What lies below (1 - p) / vocab of the mass cannot be needed to reach p. */
    double floor = sampling->min_p;
    if (k == vocab && (1 - sampling->top_p) * total / vocab > floor)
        floor = (1 - sampling->top_p) * total / vocab;
    floor = floor < 1 ? floor : 1;
    int count = make_heap(order, weight, vocab, k < vocab ? 0 : floor), left = count, kept = 0;
    double sum = 0, target = sampling->top_p * total;
    while (left > 0 && kept < k && (k < vocab || kept == 0 || sum < target)) {
        int32_t id = order[0];
        order[0] = order[--left];
        sift_down(order, left, 0, weight);
        order[left] = id;
        sum += (double)weight[id];
        kept++;
    }
    /* order[count - 1] is the largest, order[count - kept] the smallest that is kept. Move them to the array's end. */
    memmove(order + vocab - kept, order + count - kept, (size_t)kept * sizeof(*order));
    target = sampling->top_p * (k < vocab ? sum : total);
    int final = 0;
    double reached = 0;
    while (final < kept && (final == 0 || (reached < target && (double)weight[order[vocab - 1 - final]] >= sampling->min_p)))
        reached += (double)weight[order[vocab - 1 - final++]];
    *mass = reached;
    return final;
}

static int32_t draw_any(const struct gd_sampler *sampler, double target)
{
    int block = 0, blocks = (sampler->vocab + BLOCK - 1) / BLOCK;
    while (block + 1 < blocks && target >= sampler->block_sums[block])
        target -= sampler->block_sums[block++];
    int32_t last = -1;
    for (int i = block * BLOCK; i < sampler->vocab; i++) {
        if (!(sampler->work[i] > 0))
            continue;
        last = i;
        target -= (double)sampler->work[i];
        if (target < 0)
            return i;
    }
    if (last < 0) /* rounding carried the target past the end */
        for (int i = 0; i < sampler->vocab; i++)
            last = sampler->work[i] > 0 ? i : last;
    return last < 0 ? 0 : last;
}

static double uniform(uint64_t seed, uint32_t choice, uint32_t position)
{
    struct gd_philox bits = gd_philox4(seed, gd_philox_stream(GD_RANDOM_SAMPLE, choice, 0), position);
    return gd_uniform_from_bits64(bits.v[0], bits.v[1]);
}

int32_t gd_sample(struct gd_sampler *sampler, const float *logits, const struct gd_sampling *sampling,
                  const uint16_t *counts, const uint8_t *seen, uint32_t choice, uint32_t position)
{
    int vocab = sampler->vocab;
    memcpy(sampler->work, logits, (size_t)vocab * sizeof(float));
    adjust(sampler->work, vocab, sampling, counts, seen);
    float max = largest(sampler->work, vocab);
    float inverse = (float)(1 / sampling->temperature);
    if (sampling->temperature <= 0 || !isfinite(inverse))
        return first_equal(sampler->work, max, vocab);
    double total = exponentials(sampler->work, max, inverse, vocab, sampler->block_sums);
    double u = uniform(sampling->seed, choice, position);
    bool filtered = (sampling->top_k > 0 && sampling->top_k < vocab) || sampling->top_p < 1 || sampling->min_p > 0;
    if (!filtered)
        return draw_any(sampler, u * total);
    double mass = 0;
    int kept = filter(sampler, sampling, total, &mass);
    const int32_t *top = sampler->order + vocab - 1;
    double target = u * mass;
    for (int i = 0; i < kept; i++) {
        target -= (double)sampler->work[top[-i]];
        if (target < 0)
            return top[-i];
    }
    return top[kept > 0 ? -(kept - 1) : 0];
}

/* Largest first, lower ids first where equal: there are few. */
static void sort_by_weight(int32_t *ids, int count, const float *weight)
{
    for (int i = 1; i < count; i++) {
        int32_t id = ids[i];
        int at = i;
        for (; at > 0 && before(weight, id, ids[at - 1]); at--)
            ids[at] = ids[at - 1];
        ids[at] = id;
    }
}

int32_t gd_sample_among(struct gd_sampler *sampler, const float *logits, const struct gd_sampling *sampling,
                        const uint16_t *counts, const uint8_t *seen, int32_t *ids, int count, uint32_t choice,
                        uint32_t position)
{
    float *z = sampler->work;
    memcpy(z, logits, (size_t)sampler->vocab * sizeof(float));
    adjust(z, sampler->vocab, sampling, counts, seen);
    sort_by_weight(ids, count, z);
    double inverse = 1 / sampling->temperature, total = 0, mass = 0;
    if (sampling->temperature <= 0 || !isfinite(inverse))
        return ids[0];
    for (int i = 0; i < count; i++)
        total += exp(((double)z[ids[i]] - (double)z[ids[0]]) * inverse);
    int kept = 0;
    while (kept < count && (kept == 0 || mass < sampling->top_p * total))
        mass += exp(((double)z[ids[kept++]] - (double)z[ids[0]]) * inverse);
    double first = (double)z[ids[0]], target = uniform(sampling->seed, choice, position) * mass;
    for (int i = 0; i < kept; i++) {
        target -= exp(((double)z[ids[i]] - first) * inverse);
        if (target < 0)
            return ids[i];
    }
    return ids[kept - 1];
}

void gd_logprobs(struct gd_sampler *sampler, const float *logits, int32_t id, double *logprob,
                 struct gd_token_logprob *top, int top_count)
{
    int vocab = sampler->vocab, held = 0;
    assert(id >= 0);
    assert(id < vocab);
    assert(top_count <= vocab);
    float max = largest(logits, vocab);
    double shift = (double)max + log(exponential_sum(logits, max, vocab));
    *logprob = (double)logits[id] - shift;
    for (int i = 0; top_count > 0 && i < vocab; i++) {
        double value = (double)logits[i] - shift;
        if (held == top_count && !(value > top[held - 1].logprob))
            continue;
        int at = held < top_count ? held++ : held - 1;
        for (; at > 0 && value > top[at - 1].logprob; at--)
            top[at] = top[at - 1];
        top[at] = (struct gd_token_logprob){i, value};
    }
}
