/*
 * Reduction of a series to at most 1,000 buckets for a chart: minimum, maximum, last value and number of rows of each
 * bucket, so that no spike vanishes; smoothing over all rows before bucketing; marks for what cannot be drawn.
 */
#include "engine/base/alloc.h"
#include "storage/metrics_internal.h"

#include <math.h>
#include <string.h>

#define BUCKET_COUNT_MAX 1000
#define SMOOTH_MAX 0.999

/* The steps that are shown: [first, last], cut into `buckets` parts of equal width in step or in log(step). */
struct window {
    int64_t first, last;
    int buckets;
    bool log_scale;
};

static int bucket_of(const struct window *window, int64_t step)
{
    if (window->log_scale) { /* edges log(first) ... log(last + 1); steps below 1 have no logarithm: first bucket */
        double low = log(fmax((double)window->first, 1.0)), high = log(fmax((double)window->last, 1.0) + 1.0);
        double part = (log(fmax((double)step, 1.0)) - low) / (high - low) * window->buckets;
        return part < 0 ? 0 : part >= window->buckets ? window->buckets - 1 : (int)part;
    }
    unsigned __int128 offset = (uint64_t)step - (uint64_t)window->first;
    unsigned __int128 width = (unsigned __int128)((uint64_t)window->last - (uint64_t)window->first) + 1;
    return (int)(offset * (unsigned)window->buckets / width);
}

/* s <- s + (v - s) (1 - w) / W with W <- w W + (1 - w): the exponential average divided by its own weight W, in a form
 * that leaves a constant exactly constant. */
struct average {
    double value, weight, decay;
};

static void average_add(struct average *average, double value)
{
    average->weight = average->decay * average->weight + (1.0 - average->decay);
    average->value += (value - average->value) * ((1.0 - average->decay) / average->weight);
}

struct bucket {
    int index;
    int64_t x, count, finite_count;
    double last, min, max;
    int64_t odd_count[GD_METRIC_KIND_COUNT], odd_x[GD_METRIC_KIND_COUNT]; /* by kind: how many, the first step */
};

struct columns {
    cJSON *x, *last, *min, *max, *count, *smooth, *nonfinite;
    int64_t nonpositive, rows;
    struct average average;
    bool smoothed;
};

static void add_number(cJSON *array, bool known, double value)
{
    cJSON_AddItemToArray(array, known ? cJSON_CreateNumber(value) : cJSON_CreateNull());
}

static void flush(struct columns *columns, const struct bucket *bucket)
{
    if (bucket->count == 0)
        return;
    bool known = bucket->finite_count > 0;
    add_number(columns->x, true, (double)bucket->x);
    add_number(columns->last, known, bucket->last);
    add_number(columns->min, known, bucket->min);
    add_number(columns->max, known, bucket->max);
    add_number(columns->count, true, (double)bucket->count);
    if (columns->smoothed)
        add_number(columns->smooth, columns->average.weight > 0, columns->average.value);
    for (int kind = GD_METRIC_NAN; kind < GD_METRIC_KIND_COUNT; kind++) {
        if (bucket->odd_count[kind] == 0)
            continue;
        cJSON *mark = cJSON_CreateObject();
        cJSON_AddNumberToObject(mark, "x", (double)bucket->odd_x[kind]);
        cJSON_AddStringToObject(mark, "kind", gd_metric_kind_name((enum gd_metric_kind)kind));
        cJSON_AddNumberToObject(mark, "count", (double)bucket->odd_count[kind]);
        cJSON_AddItemToArray(columns->nonfinite, mark);
    }
}

static void add_to_bucket(struct bucket *bucket, int64_t step, enum gd_metric_kind kind, double value)
{
    bucket->x = step;
    bucket->count++;
    if (kind != GD_METRIC_FINITE) {
        if (bucket->odd_count[kind]++ == 0)
            bucket->odd_x[kind] = step;
        return;
    }
    bool first = bucket->finite_count++ == 0;
    bucket->last = value;
    bucket->min = first || value < bucket->min ? value : bucket->min;
    bucket->max = first || value > bucket->max ? value : bucket->max;
}

/* All rows of the series up to the window's end, in order of steps: those before the window only feed the average. */
static bool reduce_rows(struct gd_db *db, int64_t series_id, const struct window *window, struct columns *columns,
                        struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT step, kind, value FROM metrics.points WHERE series_id = ?1 AND step <= ?2 ORDER BY step");
    gd_put_int(&query, series_id);
    gd_put_int(&query, window->last);
    struct bucket bucket = {.index = -1};
    while (gd_query_next(&query)) {
        int64_t step = gd_take_int(&query);
        enum gd_metric_kind kind = (enum gd_metric_kind)gd_take_int(&query);
        double value = gd_take_real(&query);
        bool shown = step >= window->first;
        int index = shown ? bucket_of(window, step) : -1;
        if (index != bucket.index) {
            flush(columns, &bucket); /* before this row moves the average on */
            bucket = (struct bucket){.index = index};
        }
        if (kind == GD_METRIC_FINITE)
            average_add(&columns->average, value);
        if (!shown)
            continue;
        add_to_bucket(&bucket, step, kind, value);
        columns->rows++;
        columns->nonpositive += kind == GD_METRIC_FINITE && value <= 0;
    }
    flush(columns, &bucket);
    return gd_query_end(&query, err);
}

/* One entry of "series": columns instead of objects, as they parse ten times faster. */
static bool reduce_series(struct gd_db *db, const char *name, int64_t series_id, const struct window *window, double smooth,
                          cJSON *list, int64_t *rows, struct gd_error *err)
{
    cJSON *entry = cJSON_CreateObject();
    cJSON_AddStringToObject(entry, "name", name);
    struct columns columns = {.average.decay = smooth, .smoothed = smooth > 0};
    columns.x = cJSON_AddArrayToObject(entry, "x");
    columns.last = cJSON_AddArrayToObject(entry, "last");
    columns.min = cJSON_AddArrayToObject(entry, "min");
    columns.max = cJSON_AddArrayToObject(entry, "max");
    columns.count = cJSON_AddArrayToObject(entry, "count");
    columns.smooth = columns.smoothed ? cJSON_AddArrayToObject(entry, "smooth") : cJSON_AddNullToObject(entry, "smooth");
    cJSON *ema = columns.smoothed ? cJSON_AddObjectToObject(entry, "ema") : cJSON_AddNullToObject(entry, "ema");
    columns.nonfinite = cJSON_AddArrayToObject(entry, "nonfinite");
    bool ok = series_id == 0 || reduce_rows(db, series_id, window, &columns, err);
    if (columns.smoothed) {
        bool known = columns.average.weight > 0;
        cJSON_AddItemToObject(ema, "value", known ? cJSON_CreateNumber(columns.average.value) : cJSON_CreateNull());
        cJSON_AddNumberToObject(ema, "weight", columns.average.weight);
    }
    cJSON_AddNumberToObject(entry, "nonpositive", (double)columns.nonpositive);
    *rows += columns.rows;
    cJSON_AddItemToArray(list, entry);
    return ok;
}

static bool check_query(const struct gd_metric_query *query, struct gd_error *err)
{
    if (query->buckets < 1 || query->buckets > BUCKET_COUNT_MAX)
        return gd_fail_param(err, GD_INVALID, "buckets", "'buckets' must be from 1 to %d, got %d", BUCKET_COUNT_MAX,
                             query->buckets);
    if (!(query->smooth >= 0 && query->smooth <= SMOOTH_MAX))
        return gd_fail_param(err, GD_INVALID, "smooth", "'smooth' must be from 0 to %g, got %g", SMOOTH_MAX, query->smooth);
    if (query->to != 0 && query->to < query->from)
        return gd_fail_param(err, GD_INVALID, "to", "'to' (%lld) must not be below 'from' (%lld)", (long long)query->to,
                             (long long)query->from);
    return true;
}

/* The window is the asked one without the empty ends, so that all buckets lie where rows are. The same for all series of
 * the answer: their charts share a crosshair. */
static bool find_window(struct gd_db *db, const struct gd_series *series, int count, const struct gd_metric_query *query,
                        struct window *out, struct gd_error *err)
{
    *out = (struct window){.first = INT64_MAX, .last = INT64_MIN, .buckets = query->buckets, .log_scale = query->log_scale};
    for (int i = 0; i < count; i++) {
        struct gd_query ends = gd_query_start(db,
            "SELECT min(step), max(step), count(*) FROM metrics.points WHERE series_id = ?1 AND step >= ?2 AND step <= ?3");
        gd_put_int(&ends, series[i].id);
        gd_put_int(&ends, query->from != 0 ? query->from : INT64_MIN);
        gd_put_int(&ends, query->to != 0 ? query->to : INT64_MAX);
        if (gd_query_next(&ends)) {
            int64_t first = gd_take_int(&ends), last = gd_take_int(&ends), rows = gd_take_int(&ends);
            out->first = rows > 0 && first < out->first ? first : out->first;
            out->last = rows > 0 && last > out->last ? last : out->last;
        }
        if (!gd_query_end(&ends, err))
            return false;
    }
    return true;
}

/* The asked series in the asked order; a name without rows stays, with id 0. */
static bool choose(struct gd_db *db, const char *job_id, const struct gd_metric_query *query, struct gd_series **out,
                   int *count, struct gd_error *err)
{
    struct gd_series *all;
    int all_count;
    if (!gd_series_list(db, job_id, &all, &all_count, err))
        return false;
    if (query->names == NULL) {
        *out = all;
        *count = all_count;
        return true;
    }
    *count = query->name_count;
    *out = gd_alloc_array((size_t)query->name_count, sizeof(struct gd_series));
    for (int i = 0; i < query->name_count; i++) {
        (*out)[i].name = gd_strdup(query->names[i]);
        for (int j = 0; j < all_count; j++)
            if (strcmp(all[j].name, query->names[i]) == 0)
                (*out)[i].id = all[j].id;
    }
    gd_series_release(all, all_count);
    return true;
}

bool gd_db_metrics_reduce(struct gd_db *db, const char *job_id, const struct gd_metric_query *query, cJSON **series,
                          int64_t *rows, struct gd_error *err)
{
    *series = NULL;
    *rows = 0;
    struct gd_series *chosen = NULL;
    int count = 0;
    if (!check_query(query, err) || !choose(db, job_id, query, &chosen, &count, err))
        return false;
    struct window window;
    bool ok = find_window(db, chosen, count, query, &window, err);
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; ok && i < count; i++)
        ok = reduce_series(db, chosen[i].name, chosen[i].id, &window, query->smooth, list, rows, err);
    gd_series_release(chosen, count);
    if (!ok) {
        cJSON_Delete(list);
        return false;
    }
    *series = list;
    return true;
}
