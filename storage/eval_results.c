/* What the items of a run come to: counts, scores by criterion, tokens by model; and two runs side by side. */
#include "engine/base/alloc.h"
#include "engine/base/json.h"
#include "storage/db_internal.h"

#include <string.h>

#define NUMBERS_MAX 64

/* A JSON list of numbers; 0: it is none, or not `width` of them (0: any number). */
static size_t read_numbers(const char *text, size_t width, double out[NUMBERS_MAX])
{
    struct gd_error ignored = {0};
    cJSON *list = text != NULL ? gd_json_parse(text, strlen(text), SIZE_MAX, &ignored) : NULL, *number;
    size_t count = 0;
    cJSON_ArrayForEach(number, list)
    {
        if (!cJSON_IsNumber(number) || count == NUMBERS_MAX) {
            count = 0;
            break;
        }
        out[count++] = number->valuedouble;
    }
    cJSON_Delete(list);
    return width == 0 || count == width ? count : 0;
}

/* The numbers of an item beside its score; false: they do not fit those of the others. */
static bool add_numbers(struct gd_eval_criterion *criterion, size_t capacity, const char *text)
{
    double numbers[NUMBERS_MAX];
    size_t width = read_numbers(text, criterion->width, numbers);
    if (width == 0)
        return false;
    criterion->width = width;
    criterion->numbers = gd_realloc_array(criterion->numbers, capacity * width, sizeof *criterion->numbers);
    memcpy(criterion->numbers + criterion->count * width, numbers, width * sizeof *numbers);
    return true;
}

static void add_value(struct gd_eval_criterion *criterion, size_t *capacity, double value, const char *numbers)
{
    if (criterion->count == *capacity) {
        *capacity = *capacity > 0 ? *capacity * 2 : 64;
        criterion->scores = gd_realloc_array(criterion->scores, *capacity, sizeof *criterion->scores);
    }
    if (criterion->aggregation != NULL && !add_numbers(criterion, *capacity, numbers)) {
        criterion->errored++;
        return;
    }
    criterion->scores[criterion->count++] = value;
}

static struct gd_eval_criterion *add_criterion(struct gd_eval_results *results, char *name_taken, char *type_taken)
{
    results->criteria =
        gd_realloc_array(results->criteria, (size_t)results->criterion_count + 1, sizeof *results->criteria);
    struct gd_eval_criterion *criterion = &results->criteria[results->criterion_count++];
    *criterion = (struct gd_eval_criterion){.name = name_taken, .type = type_taken};
    return criterion;
}

static bool read_counts(struct gd_db *db, const char *run_id, struct gd_eval_results *results, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT status, count(*) FROM main.eval_items WHERE run_id = ?1 GROUP BY status");
    gd_put_text(&query, run_id);
    while (gd_query_next(&query)) {
        char *status = gd_take_text(&query);
        int64_t count = gd_take_int(&query);
        if (strcmp(status, "pass") == 0)
            results->passed = count;
        else if (strcmp(status, "fail") == 0)
            results->failed = count;
        else
            results->errored += count;
        gd_free(status);
    }
    return gd_query_end(&query, err);
}

static bool read_criteria(struct gd_db *db, const char *run_id, struct gd_eval_results *results, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT name, type, score IS NULL, score, passed, aggregation, numbers FROM main.eval_scores WHERE run_id = ?1"
        " ORDER BY name, item_index");
    gd_put_text(&query, run_id);
    struct gd_eval_criterion *criterion = NULL;
    size_t capacity = 0;
    while (gd_query_next(&query)) {
        char *name = gd_take_text(&query), *type = gd_take_text(&query);
        if (criterion == NULL || strcmp(criterion->name, name) != 0) {
            criterion = add_criterion(results, name, type);
            capacity = 0;
        } else {
            gd_free(name);
            gd_free(type);
        }
        bool missing = gd_take_int(&query) != 0;
        double score = gd_take_real(&query);
        bool passed = gd_take_int(&query) != 0;
        char *aggregation = gd_take_text(&query), *numbers = gd_take_text(&query);
        if (criterion->aggregation == NULL && criterion->count == 0)
            criterion->aggregation = gd_strdup(aggregation);
        criterion->errored += missing;
        criterion->passed += !missing && passed;
        criterion->failed += !missing && !passed;
        if (!missing)
            add_value(criterion, &capacity, score, numbers);
        gd_free(aggregation);
        gd_free(numbers);
    }
    return gd_query_end(&query, err);
}

static bool read_usage(struct gd_db *db, const char *run_id, struct gd_eval_results *results, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT model, sum(invocations), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens)"
        " FROM main.eval_usage WHERE run_id = ?1 GROUP BY model ORDER BY model");
    gd_put_text(&query, run_id);
    while (gd_query_next(&query)) {
        results->usage = gd_realloc_array(results->usage, (size_t)results->usage_count + 1, sizeof *results->usage);
        struct gd_eval_usage *usage = &results->usage[results->usage_count++];
        usage->model = gd_take_text(&query);
        usage->invocations = gd_take_int(&query);
        usage->prompt_tokens = gd_take_int(&query);
        usage->completion_tokens = gd_take_int(&query);
        usage->cached_tokens = gd_take_int(&query);
    }
    return gd_query_end(&query, err);
}

bool gd_db_eval_results(struct gd_db *db, const char *run_id, struct gd_eval_results *out, struct gd_error *err)
{
    *out = (struct gd_eval_results){0};
    if (read_counts(db, run_id, out, err) && read_criteria(db, run_id, out, err) && read_usage(db, run_id, out, err))
        return true;
    gd_eval_results_release(out);
    return false;
}

static void release_criteria(struct gd_eval_criterion *criteria, int count)
{
    for (int i = 0; i < count; i++) {
        gd_free(criteria[i].name);
        gd_free(criteria[i].type);
        gd_free(criteria[i].scores);
        gd_free(criteria[i].aggregation);
        gd_free(criteria[i].numbers);
    }
    gd_free(criteria);
}

void gd_eval_results_release(struct gd_eval_results *results)
{
    release_criteria(results->criteria, results->criterion_count);
    for (int i = 0; i < results->usage_count; i++)
        gd_free(results->usage[i].model);
    gd_free(results->usage);
    *results = (struct gd_eval_results){0};
}

/* ---- two runs ---- */

static struct gd_eval_pair *pair_of(struct gd_eval_pairs *pairs, char *name_taken)
{
    struct gd_eval_pair *last = pairs->count > 0 ? &pairs->pairs[pairs->count - 1] : NULL;
    if (last != NULL && strcmp(last->name, name_taken) == 0) {
        gd_free(name_taken);
        return last;
    }
    pairs->pairs = gd_realloc_array(pairs->pairs, (size_t)pairs->count + 1, sizeof *pairs->pairs);
    last = &pairs->pairs[pairs->count++];
    *last = (struct gd_eval_pair){.name = name_taken};
    return last;
}

static void add_pair(struct gd_eval_pair *pair, const double *a, const double *b)
{
    if (pair->count == pair->capacity) {
        pair->capacity = pair->capacity > 0 ? pair->capacity * 2 : 64;
        pair->a = gd_realloc_array(pair->a, pair->capacity * pair->width, sizeof *pair->a);
        pair->b = gd_realloc_array(pair->b, pair->capacity * pair->width, sizeof *pair->b);
    }
    memcpy(pair->a + pair->count * pair->width, a, pair->width * sizeof *a);
    memcpy(pair->b + pair->count * pair->width, b, pair->width * sizeof *b);
    pair->count++;
}

/* Scores, or what they add up from where that is not a mean. */
static void add_scores(struct gd_eval_pair *pair, double left, double right, const char *aggregation, const char *left_numbers,
                       const char *right_numbers)
{
    double a[NUMBERS_MAX] = {left}, b[NUMBERS_MAX] = {right};
    size_t width = aggregation != NULL ? read_numbers(left_numbers, pair->width, a) : 1;
    if (width == 0 || (aggregation != NULL && read_numbers(right_numbers, width, b) == 0)) {
        pair->errored++;
        return;
    }
    if (pair->width == 0) {
        pair->width = width;
        pair->aggregation = gd_strdup(aggregation);
    }
    add_pair(pair, a, b);
}

static bool count_items(struct gd_db *db, const char *a, const char *b, struct gd_eval_pairs *pairs, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT (SELECT count(*) FROM main.eval_items WHERE run_id = ?1), (SELECT count(*) FROM main.eval_items WHERE run_id"
        " = ?2), (SELECT count(*) FROM main.eval_items AS x JOIN main.eval_items AS y ON y.run_id = ?2 AND y.item_index ="
        " x.item_index AND y.digest = x.digest WHERE x.run_id = ?1)");
    gd_put_text(&query, a);
    gd_put_text(&query, b);
    if (gd_query_next(&query)) {
        pairs->items_a = gd_take_int(&query);
        pairs->items_b = gd_take_int(&query);
        pairs->items_shared = gd_take_int(&query);
    }
    return gd_query_end(&query, err);
}

bool gd_db_eval_pairs(struct gd_db *db, const char *a, const char *b, struct gd_eval_pairs *out, struct gd_error *err)
{
    *out = (struct gd_eval_pairs){0};
    if (!count_items(db, a, b, out, err))
        return false;
    struct gd_query query = gd_query_start(db,
        "SELECT s.name, s.score IS NULL OR t.score IS NULL, s.score, t.score, s.aggregation, s.numbers, t.numbers"
        " FROM main.eval_scores AS s"
        " JOIN main.eval_scores AS t ON t.run_id = ?2 AND t.item_index = s.item_index AND t.name = s.name"
        " AND t.aggregation IS s.aggregation"
        " JOIN main.eval_items AS x ON x.run_id = s.run_id AND x.item_index = s.item_index"
        " JOIN main.eval_items AS y ON y.run_id = t.run_id AND y.item_index = t.item_index AND y.digest = x.digest"
        " WHERE s.run_id = ?1 ORDER BY s.name, s.item_index");
    gd_put_text(&query, a);
    gd_put_text(&query, b);
    while (gd_query_next(&query)) {
        struct gd_eval_pair *pair = pair_of(out, gd_take_text(&query));
        bool missing = gd_take_int(&query) != 0;
        double left = gd_take_real(&query), right = gd_take_real(&query);
        pair->errored += missing;
        char *aggregation = gd_take_text(&query), *left_numbers = gd_take_text(&query), *right_numbers = gd_take_text(&query);
        if (!missing)
            add_scores(pair, left, right, aggregation, left_numbers, right_numbers);
        gd_free(aggregation);
        gd_free(left_numbers);
        gd_free(right_numbers);
    }
    if (gd_query_end(&query, err))
        return true;
    gd_eval_pairs_release(out);
    return false;
}

void gd_eval_pairs_release(struct gd_eval_pairs *pairs)
{
    for (int i = 0; i < pairs->count; i++) {
        gd_free(pairs->pairs[i].name);
        gd_free(pairs->pairs[i].a);
        gd_free(pairs->pairs[i].b);
        gd_free(pairs->pairs[i].aggregation);
    }
    gd_free(pairs->pairs);
    *pairs = (struct gd_eval_pairs){0};
}
