/*
 * rope.h - the inverse frequencies of rotary position embedding, with the scalings that published models use.
 *
 * Why      One table of angles per model, computed once in double precision; kernels only multiply by positions.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   none (the values are checked by whoever read them)
 * Limits   none
 * Life     none
 */
#ifndef GD_MODEL_ROPE_H
#define GD_MODEL_ROPE_H

#include <stdbool.h>

enum gd_rope_kind { GD_ROPE_DEFAULT, GD_ROPE_LINEAR, GD_ROPE_NTK, GD_ROPE_DYNAMIC, GD_ROPE_LLAMA3, GD_ROPE_YARN, GD_ROPE_LONG };

struct gd_rope_scaling {
    enum gd_rope_kind kind;
    double factor;                /* >= 1 */
    double original_context;      /* llama3, yarn, longrope */
    double low_freq_factor, high_freq_factor;  /* llama3 */
    double beta_fast, beta_slow;  /* yarn */
    double attention_factor;      /* yarn, longrope; < 0: from factor (and mscale, mscale_all_dim) */
    double mscale, mscale_all_dim;/* yarn; 0: absent */
    bool truncate;                /* yarn: bounds of the ramp are whole dimensions */
    const float *divisors;        /* GGUF, longrope: inv_freq_j / divisors[j]; or NULL */
};

/* What a missing field means. */
struct gd_rope_scaling gd_rope_scaling_default(void);

/* inv_freq: [rotary_dim / 2]. Returns what cos and sin are multiplied by. */
double gd_rope_frequencies(float *inv_freq, int rotary_dim, double theta, const struct gd_rope_scaling *scaling);

#endif
