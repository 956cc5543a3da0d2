/*
 * rank.h - the largest of many numbers, without sorting them.
 *
 * Why      Selecting by sensitivity ranks every weight of a model; two histograms over their bits are enough.
 * Memory   Histograms of at most 64 MiB while a function runs.
 * Threads  engine thread
 * Errors   none
 * Limits   values are finite and not negative
 * Life     none
 */
#ifndef GD_ADAPTER_RANK_H
#define GD_ADAPTER_RANK_H

#include <stdbool.h>
#include <stdint.h>

/* The tau largest: those above `value`, and of those equal to it the first `equal` in order. */
struct gd_rank_cut {
    float value;
    int64_t equal;
};

int64_t gd_rank_positive(const float *values, int64_t count);
/* tau from 1 to gd_rank_positive. */
struct gd_rank_cut gd_rank_find(const float *values, int64_t count, int64_t tau);
/* Whether the next value in order is among them; *equal counts the equal ones so far and begins at 0. */
bool gd_rank_passes(const struct gd_rank_cut *cut, float value, int64_t *equal);
/* How many of each part are among the tau largest of all, for several taus: selected[tau][part]. Part i is
 * values[begins[i] .. begins[i + 1]]. */
void gd_rank_count(const float *values, const int64_t *begins, int part_count, const int64_t *taus, int tau_count,
                   int64_t *selected);

#endif
