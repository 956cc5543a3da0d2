#include "engine/eval/corpus.h"

#include "engine/base/alloc.h"
#include "engine/eval/space.h"
#include "engine/eval/stats.h"
#include "engine/eval/words.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BLEU_ORDER 4
#define CHRF_ORDER 6
#define TRANSLATION_RESAMPLES 100 /* the harness's for bleu and chrf */

static void sum_rows(const double *values, int width, const uint32_t *pick, size_t n, double *sums)
{
    memset(sums, 0, (size_t)width * sizeof *sums);
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < width; k++)
            sums[k] += values[(size_t)pick[i] * (size_t)width + (size_t)k];
}

static double mean(const double *values, const uint32_t *pick, size_t n)
{
    double sum;
    sum_rows(values, 1, pick, n, &sum);
    return sum / (double)n;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* sorted[n / 2] */
static double median(const double *values, const uint32_t *pick, size_t n)
{
    double *sorted = gd_alloc_array(n, sizeof *sorted);
    for (size_t i = 0; i < n; i++)
        sorted[i] = values[pick[i]];
    qsort(sorted, n, sizeof *sorted, ascending);
    double middle = sorted[n / 2];
    gd_free(sorted);
    return middle;
}

static double perplexity(const double *values, const uint32_t *pick, size_t n)
{
    return exp(-mean(values, pick, n));
}

/* (log-likelihood, weight) */
static double weighted_perplexity(const double *values, const uint32_t *pick, size_t n)
{
    double sums[2];
    sum_rows(values, 2, pick, n, sums);
    return exp(-sums[0] / sums[1]);
}

static double bits_per_byte(const double *values, const uint32_t *pick, size_t n)
{
    double sums[2];
    sum_rows(values, 2, pick, n, sums);
    return -sums[0] / sums[1] / log(2);
}

/* (gold, predicted) of two classes, as sklearn.metrics.f1_score: of class 1; 0 where nothing is or should be 1 */
static double f1(const double *values, const uint32_t *pick, size_t n)
{
    double both = 0, golds = 0, predictions = 0;
    for (size_t i = 0; i < n; i++) {
        double gold = values[2 * (size_t)pick[i]], predicted = values[2 * (size_t)pick[i] + 1];
        if ((gold != 0 && gold != 1) || (predicted != 0 && predicted != 1))
            return NAN;
        both += gold == 1 && predicted == 1;
        golds += gold;
        predictions += predicted;
    }
    return golds + predictions > 0 ? 2 * both / (golds + predictions) : 0;
}

/* (gold, predicted), any number of classes: Gorodkin's R_K, which is Matthews' for two */
static double matthews(const double *values, const uint32_t *pick, size_t n)
{
    size_t classes = 0;
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < 2; k++) {
            double value = values[2 * (size_t)pick[i] + (size_t)k];
            if (!(value >= 0 && value < 100000))
                return NAN;
            classes = value >= (double)classes ? (size_t)value + 1 : classes;
        }
    double *golds = gd_alloc_array(2 * classes, sizeof *golds), *predictions = golds + classes;
    double right = 0, total = (double)n, both = 0, gold_squares = 0, predicted_squares = 0;
    for (size_t i = 0; i < n; i++) {
        size_t gold = (size_t)values[2 * (size_t)pick[i]], predicted = (size_t)values[2 * (size_t)pick[i] + 1];
        golds[gold]++;
        predictions[predicted]++;
        right += gold == predicted;
    }
    for (size_t c = 0; c < classes; c++) {
        both += golds[c] * predictions[c];
        gold_squares += golds[c] * golds[c];
        predicted_squares += predictions[c] * predictions[c];
    }
    gd_free(golds);
    double spread = (total * total - gold_squares) * (total * total - predicted_squares);
    return spread > 0 ? (right * total - both) / sqrt(spread) : 0;
}

/* sacrebleu.corpus_bleu with its defaults: "exp" smoothing, no effective order */
static double bleu(const double *values, const uint32_t *pick, size_t n)
{
    double sums[GD_BLEU_VALUES], logs = 0, smooth = 1;
    sum_rows(values, GD_BLEU_VALUES, pick, n, sums);
    const double *correct = sums + 2, *total = sums + 2 + BLEU_ORDER;
    if (correct[0] == 0)
        return 0;
    for (int order = 0; order < BLEU_ORDER; order++) {
        if (total[order] == 0)
            return 0;
        if (correct[order] == 0)
            smooth *= 2;
        logs += log(correct[order] == 0 ? 1 / (smooth * total[order]) : correct[order] / total[order]);
    }
    double brevity = sums[0] < sums[1] ? exp(1 - sums[1] / sums[0]) : 1;
    return 100 * brevity * exp(logs / BLEU_ORDER);
}

/* sacrebleu.corpus_chrf with its defaults: beta 2, the mean over the orders that both sides have */
static double chrf(const double *values, const uint32_t *pick, size_t n)
{
    double sums[GD_CHRF_VALUES], precision = 0, recall = 0, factor = 4;
    int orders = 0;
    sum_rows(values, GD_CHRF_VALUES, pick, n, sums);
    for (int order = 0; order < CHRF_ORDER; order++) {
        const double *counts = sums + 3 * order;
        if (counts[0] == 0 || counts[1] == 0)
            continue;
        precision += counts[2] / counts[0];
        recall += counts[2] / counts[1];
        orders++;
    }
    if (orders == 0 || precision + recall == 0)
        return 0;
    precision /= orders;
    recall /= orders;
    return 100 * (1 + factor) * precision * recall / (factor * precision + recall);
}

static const struct gd_aggregation aggregations[] = {
    {"bits_per_byte", 2, 1000, bits_per_byte},
    {"bleu", GD_BLEU_VALUES, TRANSLATION_RESAMPLES, bleu},
    {"chrf", GD_CHRF_VALUES, TRANSLATION_RESAMPLES, chrf},
    {"f1", 2, GD_STATS_RESAMPLES, f1},
    {"matthews_corrcoef", 2, GD_STATS_RESAMPLES, matthews},
    {"mean", 1, 0, mean},
    {"median", 1, GD_STATS_RESAMPLES, median},
    {"perplexity", 1, GD_STATS_RESAMPLES, perplexity},
    {"weighted_perplexity", 2, 1000, weighted_perplexity},
};

const struct gd_aggregation *gd_aggregation_find(const char *name)
{
    for (size_t i = 0; i < GD_COUNT(aggregations); i++)
        if (strcmp(aggregations[i].name, name) == 0)
            return &aggregations[i];
    return NULL;
}

int gd_aggregation_names(const char *names[], int limit)
{
    int count = 0;
    for (size_t i = 0; i < GD_COUNT(aggregations) && count < limit; i++)
        names[count++] = aggregations[i].name;
    return count;
}

/* ---- what one answer leaves ---- */

void gd_bleu_values(const char *answer, const char *reference, double values[GD_BLEU_VALUES])
{
    struct gd_words words, wanted;
    size_t shared[BLEU_ORDER];
    gd_words_13a(&words, answer, false);
    gd_words_13a(&wanted, reference, false);
    (void)gd_words_number(&words, &wanted);
    gd_words_shared(&words, &wanted, BLEU_ORDER, shared);
    values[0] = (double)words.count;
    values[1] = (double)wanted.count;
    for (int order = 0; order < BLEU_ORDER; order++) {
        values[2 + order] = (double)shared[order];
        values[2 + BLEU_ORDER + order] = (double)gd_words_grams(&words, order + 1);
    }
    gd_words_release(&words);
    gd_words_release(&wanted);
}

/* The characters without space, each a word. */
static void characters(struct gd_words *words, const char *text)
{
    size_t length = strlen(text);
    *words = (struct gd_words){.bytes = gd_strdup(text), .word = gd_alloc_array(length + 1, sizeof *words->word)};
    bool space;
    for (size_t at = 0, used; at < length; at += used) {
        used = gd_space_skip(words->bytes + at, &space);
        if (!space)
            words->word[words->count++] = (struct gd_word){.text = words->bytes + at, .length = (uint32_t)used};
    }
}

void gd_chrf_values(const char *answer, const char *reference, double values[GD_CHRF_VALUES])
{
    struct gd_words words, wanted;
    size_t shared[CHRF_ORDER];
    characters(&words, answer);
    characters(&wanted, reference);
    (void)gd_words_number(&words, &wanted);
    gd_words_shared(&words, &wanted, CHRF_ORDER, shared);
    for (int order = 0; order < CHRF_ORDER; order++) {
        double of_reference = (double)gd_words_grams(&wanted, order + 1);
        values[3 * order] = of_reference > 0 ? (double)gd_words_grams(&words, order + 1) : 0;
        values[3 * order + 1] = of_reference;
        values[3 * order + 2] = (double)shared[order];
    }
    gd_words_release(&words);
    gd_words_release(&wanted);
}
