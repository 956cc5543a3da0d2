#include "engine/eval/scores.h"

#include "engine/base/alloc.h"
#include "engine/eval/corpus.h"
#include "engine/eval/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct score {
    char *name;
    const struct gd_aggregation *aggregation;
    bool has_higher, is_higher;
    double *values;          /* aggregation->values of each item */
    int64_t *index;
    size_t count, capacity;
    int64_t errored;
};

struct gd_scores {
    struct score *list;
    size_t count;
};

struct gd_scores *gd_scores_create(void)
{
    return gd_alloc(sizeof(struct gd_scores));
}

void gd_scores_destroy(struct gd_scores *scores)
{
    if (scores == NULL)
        return;
    for (size_t i = 0; i < scores->count; i++) {
        gd_free(scores->list[i].name);
        gd_free(scores->list[i].values);
        gd_free(scores->list[i].index);
    }
    gd_free(scores->list);
    gd_free(scores);
}

static struct score *find(const struct gd_scores *scores, const char *name)
{
    for (size_t i = 0; i < scores->count; i++)
        if (strcmp(scores->list[i].name, name) == 0)
            return &scores->list[i];
    return NULL;
}

static struct score *find_or_add(struct gd_scores *scores, const char *name, const cJSON *result)
{
    struct score *score = find(scores, name);
    if (score != NULL)
        return score;
    const cJSON *aggregation = gd_json_find(result, "aggregation"), *higher = gd_json_find(result, "higher_is_better");
    scores->list = gd_realloc_array(scores->list, scores->count + 1, sizeof *scores->list);
    score = &scores->list[scores->count++];
    *score = (struct score){.name = gd_strdup(name), .has_higher = cJSON_IsBool(higher), .is_higher = cJSON_IsTrue(higher)};
    if (cJSON_IsString(aggregation))
        score->aggregation = gd_aggregation_find(aggregation->valuestring);
    if (score->aggregation == NULL)
        score->aggregation = gd_aggregation_find("mean");
    return score;
}

/* The numbers of a result; false: it has none. */
static bool read_values(const struct score *score, const cJSON *result, double *values)
{
    const cJSON *error = gd_json_find(result, "error"), *list = gd_json_find(result, "values"), *number;
    int count = 0;
    if (error != NULL && !cJSON_IsNull(error))
        return false;
    if (list == NULL) {
        number = gd_json_find(result, "score");
        values[0] = cJSON_IsNumber(number) ? number->valuedouble : 0;
        return cJSON_IsNumber(number) && score->aggregation->values == 1;
    }
    cJSON_ArrayForEach(number, list)
    {
        if (!cJSON_IsNumber(number) || count == score->aggregation->values)
            return false;
        values[count++] = number->valuedouble;
    }
    return count == score->aggregation->values;
}

static void add_one(struct gd_scores *scores, int64_t index, const cJSON *result)
{
    const cJSON *name = gd_json_find(result, "name");
    double values[GD_CORPUS_VALUES_MAX];
    if (!cJSON_IsString(name))
        return;
    struct score *score = find_or_add(scores, name->valuestring, result);
    if (!read_values(score, result, values)) {
        score->errored++;
        return;
    }
    size_t width = (size_t)score->aggregation->values;
    if (score->count == score->capacity) {
        score->capacity = score->capacity < 64 ? 64 : score->capacity * 2;
        score->values = gd_realloc_array(score->values, score->capacity * width, sizeof *score->values);
        score->index = gd_realloc_array(score->index, score->capacity, sizeof *score->index);
    }
    memcpy(score->values + score->count * width, values, width * sizeof *values);
    score->index[score->count++] = index;
}

void gd_scores_add(struct gd_scores *scores, int64_t index, const cJSON *results)
{
    const cJSON *result;
    if (cJSON_IsArray(results))
        cJSON_ArrayForEach(result, results)
            add_one(scores, index, result);
}

/* ---- scores ---- */

static void add_number(cJSON *json, const char *key, double value)
{
    cJSON_AddItemToObject(json, key, isfinite(value) ? cJSON_CreateNumber(value) : cJSON_CreateNull());
}

static void add_stat(cJSON *json, const char *key, const struct gd_stat *stat)
{
    cJSON_AddNumberToObject(json, "n", (double)stat->n);
    add_number(json, key, stat->value);
    add_number(json, "standard_error", stat->standard_error);
    cJSON *interval = cJSON_AddObjectToObject(json, "interval");
    cJSON_AddNumberToObject(interval, "level", 0.95);
    add_number(interval, "low", stat->low);
    add_number(interval, "high", stat->high);
    cJSON_AddStringToObject(interval, "method", stat->interval);
    cJSON_AddItemToObject(json, "resamples", stat->resamples > 0 ? cJSON_CreateNumber(stat->resamples) : cJSON_CreateNull());
}

/* Items in their order, whatever the order in which they were finished: a bootstrap's draws are then the same. */
static int by_index(const void *a, const void *b, void *context)
{
    const struct score *score = context;
    int64_t x = score->index[*(const uint32_t *)a], y = score->index[*(const uint32_t *)b];
    return (x > y) - (x < y);
}

static double *sorted_values(const struct score *score, int64_t **index)
{
    size_t width = (size_t)score->aggregation->values;
    uint32_t *order = gd_alloc_array(score->count + 1, sizeof *order);
    double *values = gd_alloc_array(score->count * width + 1, sizeof *values);
    if (index != NULL)
        *index = gd_alloc_array(score->count + 1, sizeof **index);
    for (size_t i = 0; i < score->count; i++)
        order[i] = (uint32_t)i;
    qsort_r(order, score->count, sizeof *order, by_index, (void *)score);
    for (size_t i = 0; i < score->count; i++) {
        memcpy(values + i * width, score->values + order[i] * width, width * sizeof *values);
        if (index != NULL)
            (*index)[i] = score->index[order[i]];
    }
    gd_free(order);
    return values;
}

struct side {
    const struct gd_aggregation *aggregation;
    const double *a, *b; /* b NULL: a alone */
};

static double score_of(const void *context, const uint32_t *pick, size_t n)
{
    const struct side *side = context;
    double a = side->aggregation->score(side->a, pick, n);
    return side->b != NULL ? a - side->aggregation->score(side->b, pick, n) : a;
}

static struct gd_stat stat_of(const struct gd_aggregation *aggregation, const double *a, const double *b, size_t n, int resamples)
{
    struct side side = {.aggregation = aggregation, .a = a, .b = b};
    if (aggregation->resamples == 0)
        return b != NULL ? gd_stats_paired(a, b, n) : gd_stats_mean(a, n);
    return gd_stats_bootstrap(score_of, &side, n, aggregation->resamples < resamples ? aggregation->resamples : resamples);
}

struct gd_stat gd_scores_stat(const char *aggregation, const double *a, const double *b, size_t n, int resamples)
{
    const struct gd_aggregation *found = aggregation != NULL ? gd_aggregation_find(aggregation) : NULL;
    return stat_of(found != NULL ? found : gd_aggregation_find("mean"), a, b, n, resamples);
}

cJSON *gd_scores_json(const struct gd_scores *scores)
{
    cJSON *list = cJSON_CreateArray();
    for (size_t i = 0; i < scores->count; i++) {
        const struct score *score = &scores->list[i];
        double *values = sorted_values(score, NULL);
        struct gd_stat stat = stat_of(score->aggregation, values, NULL, score->count, GD_STATS_RESAMPLES);
        cJSON *json = cJSON_CreateObject();
        cJSON_AddStringToObject(json, "name", score->name);
        add_stat(json, "score", &stat);
        cJSON_AddNumberToObject(json, "errored", (double)score->errored);
        cJSON_AddStringToObject(json, "aggregation", score->aggregation->name);
        cJSON_AddItemToObject(json, "higher_is_better",
                              score->has_higher ? cJSON_CreateBool(score->is_higher) : cJSON_CreateNull());
        cJSON_AddItemToArray(list, json);
        gd_free(values);
    }
    return list;
}

/* Keeps of both the rows of items that both have; returns how many. */
static size_t pair(double *a, const int64_t *a_index, size_t a_count, double *b, const int64_t *b_index, size_t b_count, size_t width)
{
    size_t i = 0, k = 0, n = 0;
    while (i < a_count && k < b_count) {
        if (a_index[i] == b_index[k]) {
            memmove(a + n * width, a + i * width, width * sizeof *a);
            memmove(b + n * width, b + k * width, width * sizeof *b);
            n++;
        }
        bool step_a = a_index[i] <= b_index[k], step_b = b_index[k] <= a_index[i];
        i += step_a;
        k += step_b;
    }
    return n;
}

cJSON *gd_scores_compare(const struct gd_scores *a, const struct gd_scores *b)
{
    cJSON *list = cJSON_CreateArray();
    for (size_t i = 0; i < a->count; i++) {
        const struct score *x = &a->list[i], *y = find(b, x->name);
        if (y == NULL || y->aggregation != x->aggregation)
            continue;
        int64_t *x_index, *y_index;
        double *of_a = sorted_values(x, &x_index), *of_b = sorted_values(y, &y_index);
        size_t n = pair(of_a, x_index, x->count, of_b, y_index, y->count, (size_t)x->aggregation->values);
        struct gd_stat stat = stat_of(x->aggregation, of_a, of_b, n, GD_STATS_RESAMPLES);
        cJSON *json = cJSON_CreateObject();
        cJSON_AddStringToObject(json, "name", x->name);
        add_stat(json, "difference", &stat);
        cJSON_AddItemToArray(list, json);
        gd_free(of_a);
        gd_free(of_b);
        gd_free(x_index);
        gd_free(y_index);
    }
    return list;
}
