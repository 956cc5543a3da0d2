#include "engine/eval/stats.h"

#include "engine/base/alloc.h"

#include <math.h>
#include <stdlib.h>

#define Z 1.959963984540054 /* the normal's 97.5 % quantile */
#define CHUNK 1000          /* resamples of one seed, in the harness */

/* Lentz's continued fraction of the incomplete beta function. */
static double beta_fraction(double a, double b, double x)
{
    double c = 1, d = 1 / (1 - (a + b) * x / (a + 1)), result = d;
    for (int m = 1; m < 10000; m++) {
        double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
        double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        d = 1 / (1 + even * d);
        c = 1 + even / c;
        result *= c * d;
        d = 1 / (1 + odd * d);
        c = 1 + odd / c;
        result *= c * d;
        if (fabs(c * d - 1) < 1e-16)
            break;
    }
    return result;
}

static double beta(double a, double b, double x)
{
    if (x <= 0 || x >= 1)
        return x <= 0 ? 0 : 1;
    double front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x));
    return x < (a + 1) / (a + b + 2) ? front * beta_fraction(a, b, x) / a : 1 - front * beta_fraction(b, a, 1 - x) / b;
}

/* P(T > t) for t >= 0 */
static double t_tail(double t, double degrees)
{
    return 0.5 * beta(degrees / 2, 0.5, degrees / (degrees + t * t));
}

double gd_stats_t_quantile(double p, double degrees)
{
    if (p == 0.5)
        return 0;
    double tail = p < 0.5 ? p : 1 - p, low = 0, high = 1;
    while (t_tail(high, degrees) > tail && high < 1e300)
        high *= 2;
    for (int i = 0; i < 200 && high - low > 1e-15 * high; i++) {
        double middle = low + (high - low) / 2;
        if (t_tail(middle, degrees) > tail)
            low = middle;
        else
            high = middle;
    }
    return p < 0.5 ? -high : high;
}

static void wilson(struct gd_stat *stat, double p)
{
    double n = (double)stat->n, centre = p + Z * Z / (2 * n), half = Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n));
    stat->low = fmax(0, (centre - half) / (1 + Z * Z / n));
    stat->high = fmin(1, (centre + half) / (1 + Z * Z / n));
    stat->interval = "wilson";
}

static struct gd_stat undetermined(size_t n, const char *interval)
{
    return (struct gd_stat){.n = n, .value = NAN, .standard_error = NAN, .low = NAN, .high = NAN, .interval = interval};
}

/* b NULL: zeroes. */
static struct gd_stat mean_of(const double *a, const double *b, size_t n)
{
    struct gd_stat stat = undetermined(n, "t");
    double mean = 0, squares = 0;
    for (size_t i = 0; i < n; i++) { /* Welford */
        double value = a[i] - (b != NULL ? b[i] : 0), delta = value - mean;
        mean += delta / (double)(i + 1);
        squares += delta * (value - mean);
    }
    if (n > 0)
        stat.value = mean;
    if (n < 2)
        return stat;
    stat.standard_error = sqrt(squares / (double)(n - 1) / (double)n);
    double half = gd_stats_t_quantile(0.975, (double)(n - 1)) * stat.standard_error;
    stat.low = mean - half;
    stat.high = mean + half;
    return stat;
}

struct gd_stat gd_stats_mean(const double *values, size_t n)
{
    struct gd_stat stat = mean_of(values, NULL, n);
    size_t ones = 0;
    for (size_t i = 0; i < n; i++) {
        if (values[i] != 0 && values[i] != 1)
            return stat;
        ones += values[i] == 1;
    }
    if (n > 0) {
        stat.value = (double)ones / (double)n;
        wilson(&stat, stat.value);
    }
    return stat;
}

struct gd_stat gd_stats_proportion(size_t passed, size_t n)
{
    struct gd_stat stat = undetermined(n, "wilson");
    if (n == 0)
        return stat;
    stat.value = (double)passed / (double)n;
    if (n > 1)
        stat.standard_error = sqrt(stat.value * (1 - stat.value) / (double)(n - 1));
    wilson(&stat, stat.value);
    return stat;
}

struct gd_stat gd_stats_paired(const double *a, const double *b, size_t n)
{
    return mean_of(a, b, n);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Linear between the two neighbours, as numpy. */
static double quantile(const double *sorted, size_t count, double p)
{
    double at = p * (double)(count - 1);
    size_t below = (size_t)at;
    return below + 1 < count ? sorted[below] + (at - (double)below) * (sorted[below + 1] - sorted[below]) : sorted[below];
}

struct gd_stat gd_stats_bootstrap(gd_stats_metric *metric, const void *context, size_t n, int resamples)
{
    struct gd_stat stat = undetermined(n, "bootstrap");
    if (n == 0 || n > UINT32_MAX)
        return stat;
    uint32_t *pick = gd_alloc_array(n, sizeof *pick);
    for (size_t i = 0; i < n; i++)
        pick[i] = (uint32_t)i;
    stat.value = metric(context, pick, n);
    if ((uint64_t)resamples > GD_STATS_DRAWS_MAX / n)
        resamples = (int)(GD_STATS_DRAWS_MAX / n);
    stat.resamples = resamples;
    if (n > 1 && resamples > 1) {
        struct gd_twister twister;
        double *found = gd_alloc_array((size_t)resamples, sizeof *found);
        for (int i = 0; i < resamples; i++) {
            if (i % CHUNK == 0)
                gd_twister_seed(&twister, (uint64_t)(i / CHUNK));
            for (size_t j = 0; j < n; j++)
                pick[j] = (uint32_t)(gd_twister_uniform(&twister) * (double)n);
            found[i] = metric(context, pick, n);
        }
        struct gd_stat spread = mean_of(found, NULL, (size_t)resamples);
        stat.standard_error = spread.standard_error * sqrt(resamples);
        if (isfinite(stat.standard_error)) {
            qsort(found, (size_t)resamples, sizeof *found, ascending);
            stat.low = quantile(found, (size_t)resamples, 0.025);
            stat.high = quantile(found, (size_t)resamples, 0.975);
        } else {
            stat.standard_error = NAN;
        }
        gd_free(found);
    }
    gd_free(pick);
    return stat;
}
