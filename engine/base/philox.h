/*
 * philox.h - Philox4x32-10 (Salmon et al. 2011), keyed by what the number is for.
 *
 * Why      (seed, purpose, step, leaf, position) names every random number: no state to save, the
 *          same numbers for any number of threads, any neighbours in the batch, CPU and GPU.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_BASE_PHILOX_H
#define GD_BASE_PHILOX_H

#include "engine/base/anywhere.h"
#include <math.h>
#include <stdint.h>

enum gd_random_purpose {
    GD_RANDOM_INIT = 1,     /* adapter initialisation */
    GD_RANDOM_SHUFFLE = 2,  /* order of rows in an epoch */
    GD_RANDOM_DROPOUT = 3,
    GD_RANDOM_SAMPLE = 4,   /* sampling of tokens */
    GD_RANDOM_EVAL = 5,
    GD_RANDOM_TEST = 6,
    GD_RANDOM_CHOICE = 7,   /* which tensors are trained */
    GD_RANDOM_ROUTE = 8,    /* noise of routing weights */
};

struct gd_philox {
    uint32_t v[4];
};

static GD_ANYWHERE inline struct gd_philox gd_philox4(uint64_t key, uint64_t counter_hi, uint64_t counter_lo)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)counter_lo, c1 = (uint32_t)(counter_lo >> 32);
    uint32_t c2 = (uint32_t)counter_hi, c3 = (uint32_t)(counter_hi >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    struct gd_philox out = {{c0, c1, c2, c3}};
    return out;
}

/* Counter's high half: purpose (8 bits), step (32), leaf (24). The low half is the position. */
static GD_ANYWHERE inline uint64_t gd_philox_stream(enum gd_random_purpose purpose, uint32_t step, uint32_t leaf)
{
    return ((uint64_t)purpose << 56) | ((uint64_t)step << 24) | (leaf & 0xFFFFFFu);
}

static GD_ANYWHERE inline float gd_uniform_from_bits(uint32_t bits) /* [0, 1), 24 bits */
{
    return (float)(bits >> 8) * (1.0f / 16777216.0f);
}

static GD_ANYWHERE inline double gd_uniform_from_bits64(uint32_t hi, uint32_t lo) /* [0, 1), 53 bits */
{
    return (double)((((uint64_t)hi << 32) | lo) >> 11) * (1.0 / 9007199254740992.0);
}

static GD_ANYWHERE inline float gd_normal_from_bits(uint32_t a, uint32_t b) /* Box-Muller, one of the pair */
{
    float u = ((float)(a >> 8) + 1.0f) * (1.0f / 16777216.0f);
    return sqrtf(-2.0f * logf(u)) * cosf(6.283185307179586f * gd_uniform_from_bits(b));
}

#endif
