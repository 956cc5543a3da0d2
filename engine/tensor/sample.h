/*
 * sample.h - tokens from logits that lie on a device, without bringing the logits over.
 *
 * Why      A batch's logits are megabytes, its tokens a few bytes.
 * Memory   The caller's: logits and scratch on the device, everything else on the host.
 * Threads  engine thread; waits for the tokens.
 * Errors   GD_UNSUPPORTED for vocabularies beyond the limit; those of the device.
 * Limits   GD_SAMPLE_VOCAB_MAX, GD_SAMPLE_TOP_MAX
 * Life     filled for each batch
 *
 * The rules are those of infer/sampler.h, the token is the same: for the largest logit and for ties exactly. A drawn token may
 * differ where the random number lies within 3e-7 of the border between two tokens: weights are added up as integers of 2^-42 here,
 * exactly and in any order, and in f32 and double there. Weights below 2^-42 of the largest are never drawn.
 */
#ifndef GD_TENSOR_SAMPLE_H
#define GD_TENSOR_SAMPLE_H

#include "engine/base/error.h"
#include "engine/base/philox.h"
#include <stddef.h>
#include <stdint.h>

#define GD_SAMPLE_VOCAB_MAX (1 << 20)
#define GD_SAMPLE_TOP_MAX 20

/* What changes one logit of a row; each id at most once. */
struct gd_sample_edit {
    int32_t id;
    float bias;
    int32_t count;               /* how often it was generated */
    int32_t seen;                /* nonzero: it is in prompt or output */
};

struct gd_sample_row {
    double temperature, top_p, min_p, frequency_penalty, presence_penalty, repetition_penalty; /* struct gd_sampling */
    double uniform;              /* gd_sample_uniform */
    int32_t top_k;
    int32_t top_count;           /* -1: no log-probabilities; else the token's, and of so many with the largest logits */
    int32_t edit_begin, edit_count;
};

struct gd_sample_batch {
    const float *logits;         /* on the device: [row_count, vocab] */
    int row_count, vocab;
    const struct gd_sample_row *rows;
    const struct gd_sample_edit *edits; /* of all rows */
    int edit_count;
};

/* The number in [0, 1) that draws. */
static inline double gd_sample_uniform(uint64_t seed, uint32_t choice, uint32_t position)
{
    struct gd_philox bits = gd_philox4(seed, gd_philox_stream(GD_RANDOM_SAMPLE, choice, 0), position);
    return gd_uniform_from_bits64(bits.v[0], bits.v[1]);
}

struct gd_sampled {
    int32_t token;
    int32_t top_ids[GD_SAMPLE_TOP_MAX];      /* the largest first, lower ids first where equal */
    double logprob, top_logprobs[GD_SAMPLE_TOP_MAX];
};

#endif
