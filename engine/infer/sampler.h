/*
 * sampler.h - from logits to the next token, reproducibly.
 *
 * Why      The same (seed, position) gives the same token whatever else runs in the batch.
 * Memory   Scratch of the caller: [vocab] floats and ints inside gd_sampler.
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
};
void gd_sampler_init(struct gd_sampler *sampler, int vocab);
void gd_sampler_release(struct gd_sampler *sampler);

/* counts[vocab]: how often each id was generated (penalties; OpenAI: mu - c*frequency - (c>0)*presence), seen[vocab]:
 * nonzero where the id is in prompt or output (repetition_penalty). Order: bias, penalties, temperature, top-k, top-p,
 * min-p. Philox(seed, SAMPLE, sequence index, position). */
int32_t gd_sample(struct gd_sampler *sampler, const float *logits, const struct gd_sampling *sampling,
                  const uint16_t *counts, const uint8_t *seen, uint32_t choice, uint32_t position);

/* log softmax of raw logits: log-probability of `id` and the `top_count` largest, descending (ties: lower id first). */
void gd_logprobs(struct gd_sampler *sampler, const float *logits, int32_t id, double *logprob,
                 struct gd_token_logprob *top, int top_count);

#endif
