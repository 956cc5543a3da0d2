/* rank.c - the bits of floats that are not negative rise with them: a histogram over the upper half finds the bucket of a
 * rank, one over the lower half of that bucket the number itself. */
#include "engine/adapter/rank.h"

#include "engine/base/alloc.h"

#include <string.h>

#define HALF 65536

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return value > 0 ? bits : 0; /* -0 as well */
}

int64_t gd_rank_positive(const float *values, int64_t count)
{
    int64_t positive = 0;
    for (int64_t i = 0; i < count; i++)
        positive += values[i] > 0;
    return positive;
}

/* The bucket that holds the tau-th largest; *above gets how many lie in higher ones. */
static uint32_t bucket_of(const int64_t *histogram, int64_t tau, int64_t *above)
{
    int64_t seen = 0;
    uint32_t bucket = HALF - 1;
    while (bucket > 0 && seen + histogram[bucket] < tau)
        seen += histogram[bucket--];
    *above = seen;
    return bucket;
}

struct gd_rank_cut gd_rank_find(const float *values, int64_t count, int64_t tau)
{
    int64_t *histogram = gd_alloc_array(HALF, sizeof(int64_t)), above, above_low;
    for (int64_t i = 0; i < count; i++)
        histogram[bits_of(values[i]) >> 16]++;
    uint32_t high = bucket_of(histogram, tau, &above);
    memset(histogram, 0, HALF * sizeof(int64_t));
    for (int64_t i = 0; i < count; i++)
        if (bits_of(values[i]) >> 16 == high)
            histogram[bits_of(values[i]) & (HALF - 1)]++;
    uint32_t low = bucket_of(histogram, tau - above, &above_low), bits = high << 16 | low;
    struct gd_rank_cut cut = {.equal = tau - above - above_low};
    memcpy(&cut.value, &bits, sizeof(bits));
    gd_free(histogram);
    return cut;
}

bool gd_rank_passes(const struct gd_rank_cut *cut, float value, int64_t *equal)
{
    if (value != cut->value)
        return value > cut->value;
    return (*equal)++ < cut->equal;
}

/* The cuts of rising taus: one histogram of the upper halves, one for each bucket that a tau falls in. */
static void find_cuts(const float *values, int64_t count, const int64_t *taus, int tau_count, struct gd_rank_cut *cuts)
{
    int64_t *upper = gd_alloc_array(HALF, sizeof(int64_t)), *above = gd_alloc_array((size_t)tau_count, sizeof(int64_t));
    uint32_t *high = gd_alloc_array((size_t)tau_count, sizeof(uint32_t));
    int *table = gd_alloc_array(HALF, sizeof(int)), tables = 0; /* number of a bucket's own histogram, from 1 */
    for (int64_t i = 0; i < count; i++)
        upper[bits_of(values[i]) >> 16]++;
    for (int k = 0; k < tau_count; k++) {
        high[k] = bucket_of(upper, taus[k], &above[k]);
        if (table[high[k]] == 0)
            table[high[k]] = ++tables;
    }
    uint32_t *lower = gd_alloc_array((size_t)tables * HALF, sizeof(uint32_t));
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = bits_of(values[i]);
        if (table[bits >> 16] > 0)
            lower[(size_t)(table[bits >> 16] - 1) * HALF + (bits & (HALF - 1))]++;
    }
    for (int k = 0; k < tau_count; k++) {
        const uint32_t *of = lower + (size_t)(table[high[k]] - 1) * HALF;
        int64_t seen = above[k];
        uint32_t low = HALF - 1;
        while (low > 0 && seen + of[low] < taus[k])
            seen += of[low--];
        uint32_t bits = high[k] << 16 | low;
        memcpy(&cuts[k].value, &bits, sizeof(bits));
        cuts[k].equal = taus[k] - seen;
    }
    gd_free(upper);
    gd_free(above);
    gd_free(high);
    gd_free(table);
    gd_free(lower);
}

/* The first cut that the value lies above; cuts fall as taus rise. */
static int first_below(const struct gd_rank_cut *cuts, int count, float value)
{
    int low = 0, high = count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (cuts[middle].value < value)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

void gd_rank_count(const float *values, const int64_t *begins, int part_count, const int64_t *taus, int tau_count,
                   int64_t *selected)
{
    struct gd_rank_cut *cuts = gd_alloc_array((size_t)tau_count, sizeof(*cuts));
    int64_t *equal = gd_alloc_array((size_t)tau_count, sizeof(int64_t)); /* passed so far */
    find_cuts(values, begins[part_count], taus, tau_count, cuts);
    memset(selected, 0, (size_t)tau_count * (size_t)part_count * sizeof(int64_t));
    for (int part = 0; part < part_count; part++) {
        int64_t *first = gd_alloc_array((size_t)tau_count + 1, sizeof(int64_t)), sum = 0;
        for (int64_t i = begins[part]; i < begins[part + 1]; i++) {
            int k = first_below(cuts, tau_count, values[i]);
            first[k]++;
            for (k--; k >= 0 && cuts[k].value == values[i]; k--)
                selected[(int64_t)k * part_count + part] += equal[k]++ < cuts[k].equal;
        }
        for (int k = 0; k < tau_count; k++)
            selected[(int64_t)k * part_count + part] += sum += first[k];
        gd_free(first);
    }
    gd_free(cuts);
    gd_free(equal);
}
