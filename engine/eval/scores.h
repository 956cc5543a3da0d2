/*
 * scores.h - the scores of a run from the results of its items, and the difference of two runs.
 *
 * Why      Results are stored item by item and say themselves how they add up ("aggregation" and "values"; else the mean of
 *          "score"), so that any set of them has scores: after a restart, half way, or beside another run's.
 * Memory   Owns the numbers, not the items.
 * Threads  One thread at a time; a bootstrap takes up to seconds, so not an event loop.
 * Errors   none; results with an error are counted as such.
 * Limits   those of memory: some numbers for each item and score
 * Life     create -> add ... -> json, compare -> destroy.
 */
#ifndef GD_EVAL_SCORES_H
#define GD_EVAL_SCORES_H

#include "engine/base/json.h"
#include "engine/eval/stats.h"

/* One score of n items, in their order: `aggregation` of rows of numbers (NULL: the mean of one each), with a bootstrap of at
 * most `resamples`. b not NULL: the difference a - b over the same items. */
struct gd_stat gd_scores_stat(const char *aggregation, const double *a, const double *b, size_t n, int resamples);

struct gd_scores;

struct gd_scores *gd_scores_create(void);
void gd_scores_destroy(struct gd_scores *scores);
/* `results`: of one item, each {name, score, error, ...}; not an array: none. index tells items apart. */
void gd_scores_add(struct gd_scores *scores, int64_t index, const cJSON *results);

/* [{name, n, errored, score, standard_error, interval: {level, low, high, method}, resamples, aggregation,
 * higher_is_better}], in the order in which the names came. What is not determined is null. */
cJSON *gd_scores_json(const struct gd_scores *scores);
/* Of the names that both have, over the items that both have: [{name, n, difference (a - b), standard_error, interval,
 * resamples}]. */
cJSON *gd_scores_compare(const struct gd_scores *a, const struct gd_scores *b);

#endif
