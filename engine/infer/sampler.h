/*
 * sampler.h - from logits to the next token, reproducibly.
 *
 * Why      The same (seed, choice, position) gives the same token whatever else runs in the batch.
 * Memory   Scratch: [vocab] floats and ints inside gd_sampler.
 * Threads  One sampler, one thread.
 * Errors   none
 * Limits   none
 * Life     gd_sampler_init -> gd_sample ... -> gd_sampler_release.
 */
#ifndef GD_INFER_SAMPLER_H
#define GD_INFER_SAMPLER_H

#include "engine/infer/engine.h"

struct gd_sampler {
    int vocab;
    float *work;
    int32_t *order;
    double *block_sums;
};
void gd_sampler_init(struct gd_sampler *sampler, int vocab);
void gd_sampler_release(struct gd_sampler *sampler);

/*
 * counts[vocab]: how often each id was generated, or NULL (no frequency and presence penalty). seen[vocab]: nonzero where
 * the id is in prompt or output, or NULL (no repetition penalty). In this order, with z the logits:
 *     bias                z += bias
 *     repetition          z = z > 0 ? z / r : z * r where seen (Keskar et al. 2019)
 *     frequency, presence z -= count * frequency + (count > 0) * presence
 *     temperature         p ~ exp(z / temperature); 0: the largest z, the lowest id where equal
 *     top_k               the k largest; ties go to lower ids
 *     top_p               of what is left, the smallest set of the largest that reaches p; at least one
 *     min_p               of what is left, those with at least min_p times the largest probability
 * and a draw from what is left with Philox(seed, SAMPLE, choice, position).
 */
int32_t gd_sample(struct gd_sampler *sampler, const float *logits, const struct gd_sampling *sampling,
                  const uint16_t *counts, const uint8_t *seen, uint32_t choice, uint32_t position);

/* The same where only `ids` may come (count >= 1, each once); of top_k, top_p and min_p, top_p counts. */
int32_t gd_sample_among(struct gd_sampler *sampler, const float *logits, const struct gd_sampling *sampling,
                        const uint16_t *counts, const uint8_t *seen, int32_t *ids, int count, uint32_t choice,
                        uint32_t position);

/* log softmax of raw logits: log-probability of `id` and the `top_count` largest, descending (ties: lower id first).
 * top_count <= GD_TOP_LOGPROBS_MAX and <= vocab. */
void gd_logprobs(struct gd_sampler *sampler, const float *logits, int32_t id, double *logprob,
                 struct gd_token_logprob *top, int top_count);

#endif
