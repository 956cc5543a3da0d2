/*
 * corpus.h - metrics of many answers together: each answer leaves a few numbers, and a set of answers has a score.
 *
 * Why      BLEU, chrF, perplexity, F1 and the like are no means of what single answers earn. Their numbers are kept with the
 *          items, so that a set can be scored again: after a restart, for a bootstrap, for the comparison of two runs.
 * Memory   none kept
 * Threads  Any; pure.
 * Errors   A score that is not defined (F1 of more than two classes) is NaN.
 * Limits   GD_CORPUS_VALUES_MAX numbers an answer
 * Life     none
 *
 * To add an aggregation: a line in `aggregations` in corpus.c, and the metric that leaves its numbers in task_metric.c.
 */
#ifndef GD_EVAL_CORPUS_H
#define GD_EVAL_CORPUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GD_CORPUS_VALUES_MAX 18

struct gd_aggregation {
    const char *name;
    int values;       /* numbers of an answer */
    int resamples;    /* of the bootstrap; 0: a mean, with its own standard error */
    /* rows of `values` numbers each, those of pick[0..n) */
    double (*score)(const double *values, const uint32_t *pick, size_t n);
};

const struct gd_aggregation *gd_aggregation_find(const char *name); /* NULL: there is none */
int gd_aggregation_names(const char *names[], int limit);

/* sacrebleu's statistics of one answer: lengths, matches of 1- to 4-grams, their totals. */
#define GD_BLEU_VALUES 10
void gd_bleu_values(const char *answer, const char *reference, double values[GD_BLEU_VALUES]);
/* chrF: for 1- to 6-grams of characters those of the answer, of the reference, of both. */
#define GD_CHRF_VALUES 18
void gd_chrf_values(const char *answer, const char *reference, double values[GD_CHRF_VALUES]);

#endif
