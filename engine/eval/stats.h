/*
 * stats.h - a score and how far to trust it.
 *
 * Why      A score without its n, standard error and interval invites comparing noise.
 * Memory   none kept
 * Threads  Any; pure.
 * Errors   none; what the values do not determine (a standard error from one value) is NaN.
 * Limits   GD_STATS_DRAWS_MAX values drawn by a bootstrap: with more items it takes fewer resamples, and says how many.
 * Life     none
 *
 *   standard error of a mean   s / sqrt(n), s with n - 1, as lm-evaluation-harness
 *   interval of a mean         Student's t with n - 1 degrees of freedom: mean +- t * standard error
 *   of a proportion            (all values 0 or 1) Wilson's score interval: it stays within [0, 1], and has a width at 0 and 1
 *   of a corpus metric         bootstrap: items drawn with replacement, standard error = s of the resampled metrics, interval
 *                              from their 2.5 % to their 97.5 % quantile. The draws are those of the harness: chunks of 1000
 *                              resamples, each from Python's random.Random(chunk).choices, so its standard errors are ours.
 *   of a paired difference     t interval of the differences item by item, which is what two runs over the same items allow
 */
#ifndef GD_EVAL_STATS_H
#define GD_EVAL_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GD_STATS_DRAWS_MAX (UINT64_C(1) << 28)
#define GD_STATS_RESAMPLES 100000 /* the harness's default; it takes 100 for bleu, chrf, ter */

struct gd_stat {
    size_t n;
    double value;
    double standard_error; /* NaN: not determined */
    double low, high;      /* 95 %; NaN with the standard error */
    const char *interval;  /* "t", "wilson", "bootstrap" */
    int resamples;         /* of a bootstrap, else 0 */
};

/* Of the mean; Wilson's interval where every value is 0 or 1. n 0 gives NaN. */
struct gd_stat gd_stats_mean(const double *values, size_t n);
/* Of `passed` of n. */
struct gd_stat gd_stats_proportion(size_t passed, size_t n);
/* Of the mean of a[i] - b[i]; always the t interval. */
struct gd_stat gd_stats_paired(const double *a, const double *b, size_t n);

/* The metric of the items pick[0..n), with repetition. */
typedef double gd_stats_metric(const void *context, const uint32_t *pick, size_t n);
struct gd_stat gd_stats_bootstrap(gd_stats_metric *metric, const void *context, size_t n, int resamples);

/* t with P(T <= t) = p, for p in (0, 1) and 1 or more degrees of freedom. */
double gd_stats_t_quantile(double p, double degrees);

/* Python's random.Random(seed): the Mersenne Twister (Matsumoto and Nishimura 1998, MT19937). */
struct gd_twister {
    uint32_t state[624];
    int index;
};
void gd_twister_seed(struct gd_twister *twister, uint64_t seed);
uint32_t gd_twister_bits(struct gd_twister *twister);
double gd_twister_uniform(struct gd_twister *twister);                       /* random() */
uint64_t gd_twister_below(struct gd_twister *twister, uint64_t limit);       /* _randbelow(limit), limit > 0 */
/* random.sample(range(population), k): k different indices, k <= population < 2^32. */
void gd_twister_sample(struct gd_twister *twister, size_t population, size_t k, uint32_t *out);

#endif
