/*
 * rope.c - inverse frequencies inv_j = theta^(-2j/r), j < r/2, and their scalings.
 *
 * linear   inv / factor (Chen et al. 2023)
 * ntk      theta * factor^(r/(r-2)), whatever the length (bloc97 2023)
 * dynamic  theta grows with the length beyond max_position_embeddings; a model's context ends there, so never
 * llama3   by wavelength w = 2 pi / inv: kept below original/high, divided above original/low, blended between
 * yarn     inv/factor * ramp + inv * (1 - ramp), ramp over dimensions by rotations within the original context
 *          (Peng et al. 2023); cos and sin times 0.1 ln(factor) + 1
 * longrope inv / factor_j, with one list of factors up to the original context and another beyond (Ding et al. 2024);
 *          cos and sin times sqrt(1 + ln(factor) / ln(original context))
 */
#include "engine/model/rope.h"
#include <math.h>
#include <stddef.h>

struct gd_rope_scaling gd_rope_scaling_default(void)
{
    return (struct gd_rope_scaling){
        .kind = GD_ROPE_DEFAULT,
        .factor = 1,
        .low_freq_factor = 1,
        .high_freq_factor = 4,
        .beta_fast = 32,
        .beta_slow = 1,
        .attention_factor = -1,
        .truncate = true,
    };
}

static double llama3(double inv, const struct gd_rope_scaling *s)
{
    double wavelength = 2 * M_PI / inv;
    if (wavelength < s->original_context / s->high_freq_factor)
        return inv;
    if (wavelength > s->original_context / s->low_freq_factor)
        return inv / s->factor;
    double t = (s->original_context / wavelength - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
    return (1 - t) * inv / s->factor + t * inv;
}

/* The dimension that turns `rotations` times within the original context. */
static double yarn_dimension(double rotations, double rotary_dim, double theta, double original_context)
{
    return rotary_dim * log(original_context / (rotations * 2 * M_PI)) / (2 * log(theta));
}

static double yarn(double inv, int j, int rotary_dim, double theta, const struct gd_rope_scaling *s)
{
    double low = yarn_dimension(s->beta_fast, rotary_dim, theta, s->original_context);
    double high = yarn_dimension(s->beta_slow, rotary_dim, theta, s->original_context);
    if (s->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, rotary_dim - 1);
    if (high == low)
        high += 0.001;
    double ramp = fmin(fmax((j - low) / (high - low), 0), 1);
    return inv / s->factor * ramp + inv * (1 - ramp);
}

static double yarn_attention(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static double attention_factor(const struct gd_rope_scaling *s)
{
    if (s->kind != GD_ROPE_YARN && s->kind != GD_ROPE_LONG)
        return 1;
    if (s->attention_factor >= 0)
        return s->attention_factor;
    if (s->kind == GD_ROPE_LONG)
        return s->factor <= 1 ? 1 : sqrt(1 + log(s->factor) / log(s->original_context));
    if (s->mscale != 0 && s->mscale_all_dim != 0)
        return yarn_attention(s->factor, s->mscale) / yarn_attention(s->factor, s->mscale_all_dim);
    return yarn_attention(s->factor, 1);
}

double gd_rope_frequencies(float *inv_freq, int rotary_dim, double theta, const struct gd_rope_scaling *scaling)
{
    if (scaling->kind == GD_ROPE_NTK && rotary_dim > 2) /* one frequency alone does not depend on theta */
        theta *= pow(scaling->factor, rotary_dim / (rotary_dim - 2.0));
    for (int j = 0; j < rotary_dim / 2; j++) {
        double inv = pow(theta, -2.0 * j / rotary_dim);
        if (scaling->kind == GD_ROPE_LINEAR)
            inv /= scaling->factor;
        else if (scaling->kind == GD_ROPE_LLAMA3)
            inv = llama3(inv, scaling);
        else if (scaling->kind == GD_ROPE_YARN)
            inv = yarn(inv, j, rotary_dim, theta, scaling);
        if (scaling->divisors != NULL)
            inv /= (double)scaling->divisors[j];
        inv_freq[j] = (float)inv;
    }
    return attention_factor(scaling);
}
