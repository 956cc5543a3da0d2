/* Metrics of jobs as they were reported; for charts they are reduced in metrics_reduce.c. */
#include "engine/base/alloc.h"
#include "storage/metrics_internal.h"

#include <math.h>
#include <string.h>

static const char *const kind_names[GD_METRIC_KIND_COUNT] = {"finite", "nan", "inf", "-inf"};

enum gd_metric_kind gd_metric_kind(double value)
{
    if (isnan(value))
        return GD_METRIC_NAN;
    if (isinf(value))
        return value > 0 ? GD_METRIC_INFINITY : GD_METRIC_MINUS_INFINITY;
    return GD_METRIC_FINITE;
}

const char *gd_metric_kind_name(enum gd_metric_kind kind)
{
    return kind_names[kind];
}

static void read_series(struct gd_query *query, void *out)
{
    struct gd_series *series = out;
    series->id = gd_take_int(query);
    series->name = gd_take_text(query);
}

static void release_series(void *series)
{
    gd_free(((struct gd_series *)series)->name);
}

static const struct gd_record_kind series_kind = {sizeof(struct gd_series), read_series, release_series};

bool gd_series_list(struct gd_db *db, const char *job_id, struct gd_series **out, int *count, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db, "SELECT id, name FROM metrics.series WHERE job_id = ?1 ORDER BY id");
    gd_put_text(&query, job_id);
    return gd_read_records(&query, &series_kind, 0, (void **)out, count, NULL, err);
}

void gd_series_release(struct gd_series *series, int count)
{
    for (int i = 0; i < count; i++)
        gd_free(series[i].name);
    gd_free(series);
}

/* The id of a series, which is created when it is new. */
static bool series_id(struct gd_db *db, const char *job_id, const char *name, int64_t *id, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db, "SELECT id FROM metrics.series WHERE job_id = ?1 AND name = ?2");
    gd_put_text(&query, job_id);
    gd_put_text(&query, name);
    bool found = gd_query_next(&query);
    if (found)
        *id = gd_take_int(&query);
    if (!gd_query_end(&query, err))
        return false;
    if (found)
        return true;
    struct gd_query insert = gd_query_start(db, "INSERT INTO metrics.series (job_id, name) VALUES (?1, ?2)");
    gd_put_text(&insert, job_id);
    gd_put_text(&insert, name);
    if (!gd_query_run(&insert, NULL, err))
        return false;
    *id = sqlite3_last_insert_rowid(db->sqlite);
    return true;
}

static bool put_point(struct gd_db *db, const char *job_id, double wall, const struct gd_metric_point *point,
                      struct gd_error *err)
{
    size_t length = point->name != NULL ? strlen(point->name) : 0;
    if (length == 0 || length > GD_METRIC_NAME_BYTES_MAX)
        return gd_fail(err, GD_INVALID, "the name of a metric has 1 to %d bytes, got %zu", GD_METRIC_NAME_BYTES_MAX,
                       length);
    int64_t id;
    if (!series_id(db, job_id, point->name, &id, err))
        return false;
    enum gd_metric_kind kind = gd_metric_kind(point->value);
    struct gd_query query = gd_query_start(db,
        "INSERT OR REPLACE INTO metrics.points (series_id, step, kind, value, wall) VALUES (?,?,?,?,?)");
    gd_put_int(&query, id);
    gd_put_int(&query, point->step);
    gd_put_int(&query, kind);
    if (kind == GD_METRIC_FINITE)
        gd_put_real(&query, point->value);
    else
        gd_put_null(&query);
    gd_put_real(&query, wall);
    return gd_query_run(&query, NULL, err);
}

bool gd_db_metrics_put(struct gd_db *db, const char *job_id, double wall, const struct gd_metric_point *points, int count,
                       struct gd_error *err)
{
    if (!isfinite(wall))
        return gd_fail(err, GD_INVALID, "the time of a metric must be finite");
    for (int i = 0; i < count; i++)
        if (!put_point(db, job_id, wall, &points[i], err)) {
            gd_error_context(err, "metrics of job %s", job_id);
            return false;
        }
    return true;
}

bool gd_db_metrics_cut(struct gd_db *db, const char *job_id, int64_t step, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "DELETE FROM metrics.points WHERE series_id IN (SELECT id FROM metrics.series WHERE job_id = ?1) AND step > ?2");
    gd_put_text(&query, job_id);
    gd_put_int(&query, step);
    return gd_query_run(&query, NULL, err);
}

static void append_csv_text(struct gd_buf *out, const char *text)
{
    if (strpbrk(text, ",\"\r\n") == NULL) {
        gd_buf_append_text(out, text);
        return;
    }
    gd_buf_append_char(out, '"');
    for (; *text != '\0'; text++) {
        if (*text == '"')
            gd_buf_append_char(out, '"');
        gd_buf_append_char(out, *text);
    }
    gd_buf_append_char(out, '"');
}

bool gd_db_metrics_csv(struct gd_db *db, const char *job_id, struct gd_buf *out, struct gd_error *err)
{
    gd_buf_append_text(out, "step,name,value,wall\n");
    struct gd_query query = gd_query_start(db,
        "SELECT p.step, s.name, p.kind, p.value, p.wall FROM metrics.series AS s JOIN metrics.points AS p"
        " ON p.series_id = s.id WHERE s.job_id = ?1 ORDER BY p.step, s.id");
    gd_put_text(&query, job_id);
    while (!out->overflow && gd_query_next(&query)) {
        gd_buf_printf(out, "%lld,", (long long)gd_take_int(&query));
        char *name = gd_take_text(&query);
        append_csv_text(out, name);
        gd_free(name);
        enum gd_metric_kind kind = (enum gd_metric_kind)gd_take_int(&query);
        double value = gd_take_real(&query);
        if (kind == GD_METRIC_FINITE)
            gd_buf_printf(out, ",%.17g", value);
        else
            gd_buf_printf(out, ",%s", gd_metric_kind_name(kind));
        gd_buf_printf(out, ",%.6f\n", gd_take_real(&query));
    }
    return gd_query_end(&query, err) &&
           (!out->overflow || gd_fail(err, GD_TOO_LARGE, "the metrics of job %s are more than %zu bytes as CSV", job_id,
                                      out->limit_bytes));
}
