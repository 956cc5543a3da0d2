/*
 * twister.c - Python's random.Random in the few calls that lm-evaluation-harness makes, number for number: its seeds then
 * draw the same few-shot examples and the same resamples here.
 */
#include "engine/base/alloc.h"
#include "engine/eval/stats.h"

#include <math.h>
#include <string.h>

#define WORDS 624

static void init(struct gd_twister *twister, uint32_t seed)
{
    uint32_t *state = twister->state;
    state[0] = seed;
    for (uint32_t i = 1; i < WORDS; i++)
        state[i] = 1812433253u * (state[i - 1] ^ (state[i - 1] >> 30)) + i;
}

/* init_by_array with the seed's 32-bit words, which is what Python makes of an integer. */
void gd_twister_seed(struct gd_twister *twister, uint64_t seed)
{
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, *state = twister->state;
    uint32_t length = key[1] != 0 ? 2 : 1, i = 1, j = 0;
    init(twister, 19650218u);
    for (int k = WORDS; k > 0; k--) {
        state[i] = (state[i] ^ ((state[i - 1] ^ (state[i - 1] >> 30)) * 1664525u)) + key[j] + j;
        j = (j + 1) % length;
        if (++i == WORDS) {
            state[0] = state[WORDS - 1];
            i = 1;
        }
    }
    for (int k = WORDS - 1; k > 0; k--) {
        state[i] = (state[i] ^ ((state[i - 1] ^ (state[i - 1] >> 30)) * 1566083941u)) - i;
        if (++i == WORDS) {
            state[0] = state[WORDS - 1];
            i = 1;
        }
    }
    state[0] = 0x80000000u;
    twister->index = WORDS;
}

static void refill(struct gd_twister *twister)
{
    uint32_t *state = twister->state;
    for (int i = 0; i < WORDS; i++) {
        uint32_t y = (state[i] & 0x80000000u) | (state[(i + 1) % WORDS] & 0x7fffffffu);
        state[i] = state[(i + 397) % WORDS] ^ (y >> 1) ^ ((y & 1) != 0 ? 0x9908b0dfu : 0);
    }
    twister->index = 0;
}

uint32_t gd_twister_bits(struct gd_twister *twister)
{
    if (twister->index == WORDS)
        refill(twister);
    uint32_t y = twister->state[twister->index++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

double gd_twister_uniform(struct gd_twister *twister)
{
    uint32_t a = gd_twister_bits(twister) >> 5, b = gd_twister_bits(twister) >> 6;
    return (a * 67108864.0 + b) * (1.0 / 9007199254740992.0);
}

/* As many bits as `limit` has, again until they are below it. */
uint64_t gd_twister_below(struct gd_twister *twister, uint64_t limit)
{
    int bits = 64 - __builtin_clzll(limit);
    for (;;) {
        uint64_t value;
        if (bits <= 32) {
            value = gd_twister_bits(twister) >> (32 - bits);
        } else {
            value = gd_twister_bits(twister);
            value |= (uint64_t)(gd_twister_bits(twister) >> (64 - bits)) << 32;
        }
        if (value < limit)
            return value;
    }
}

static bool is_in(const uint32_t *list, size_t count, uint32_t value)
{
    for (size_t i = 0; i < count; i++)
        if (list[i] == value)
            return true;
    return false;
}

/* Python picks from a shrinking pool where that is smaller than the set of what was picked, else draws again. */
void gd_twister_sample(struct gd_twister *twister, size_t population, size_t k, uint32_t *out)
{
    size_t set_size = 21;
    if (k > 5)
        set_size += (size_t)pow(4, ceil(log((double)(k * 3)) / log(4)));
    if (population > set_size) {
        for (size_t i = 0; i < k; i++) {
            do
                out[i] = (uint32_t)gd_twister_below(twister, population);
            while (is_in(out, i, out[i]));
        }
        return;
    }
    uint32_t *pool = gd_alloc_array(population, sizeof *pool);
    for (size_t i = 0; i < population; i++)
        pool[i] = (uint32_t)i;
    for (size_t i = 0; i < k; i++) {
        size_t j = gd_twister_below(twister, population - i);
        out[i] = pool[j];
        pool[j] = pool[population - i - 1];
    }
    gd_free(pool);
}
