#include "tests/unit/storage/db_testing.h"

#include <math.h>

static void put(const char *name, int64_t step, double value)
{
    struct gd_metric_point point = {.name = name, .step = step, .value = value};
    assert_ok(gd_db_metrics_put(db, "job", 1000.5 + (double)step, &point, 1, &err), &err);
}

/* The series array; *rows as given. */
static cJSON *reduce(const struct gd_metric_query *query, int64_t *rows)
{
    cJSON *series;
    assert_ok(gd_db_metrics_reduce(db, "job", query, &series, rows, &err), &err);
    return series;
}

static double at(const cJSON *entry, const char *column, int index)
{
    const cJSON *item = cJSON_GetArrayItem(gd_json_find(entry, column), index);
    assert_non_null(item);
    return cJSON_IsNull(item) ? NAN : item->valuedouble;
}

static int length(const cJSON *entry, const char *column)
{
    return cJSON_GetArraySize(gd_json_find(entry, column));
}

static void no_spike_vanishes_in_100000_rows(void **state)
{
    int64_t rows;
    for (int step = 1; step <= 100000; step++)
        put("train_loss", step, step == 54321 ? 97.5 : step == 777 ? -3.0 : 2.0 + 0.1 * sin(step));
    static const int bucket_counts[] = {1, 7, 800, 1000};
    for (size_t i = 0; i < GD_COUNT(bucket_counts); i++)
        for (int log_scale = 0; log_scale < 2; log_scale++) {
            struct gd_metric_query query = {.buckets = bucket_counts[i], .smooth = 0.9, .log_scale = log_scale};
            double start = gd_time_monotonic();
            cJSON *series = reduce(&query, &rows), *entry = cJSON_GetArrayItem(series, 0);
            assert_true(gd_time_monotonic() - start < 5.0);
            assert_int_equal(rows, 100000);
            assert_string_equal(gd_json_find(entry, "name")->valuestring, "train_loss");
            int count = length(entry, "x");
            assert_in_range(count, 1, bucket_counts[i]);
            static const char *const columns[] = {"last", "min", "max", "count", "smooth"};
            for (size_t c = 0; c < GD_COUNT(columns); c++)
                assert_int_equal(length(entry, columns[c]), count);
            double max = -INFINITY, min = INFINITY, all = 0;
            for (int b = 0; b < count; b++) {
                max = fmax(max, at(entry, "max", b));
                min = fmin(min, at(entry, "min", b));
                all += at(entry, "count", b);
                assert_true(b == 0 || at(entry, "x", b) > at(entry, "x", b - 1));
                assert_true(at(entry, "min", b) <= at(entry, "last", b) && at(entry, "last", b) <= at(entry, "max", b));
            }
            assert_true(max == 97.5 && min == -3.0 && all == 100000);
            assert_true(at(entry, "x", count - 1) == 100000);
            assert_int_equal(gd_json_find(entry, "nonpositive")->valueint, 1);
            if (bucket_counts[i] == 800 && !log_scale) { /* the example of the interface */
                assert_int_equal(count, 800);
                assert_true(at(entry, "x", 0) == 125 && at(entry, "x", 1) == 250 && at(entry, "count", 1) == 125);
            }
            cJSON_Delete(series);
        }
}

static void values_that_are_no_numbers_are_kept_and_marked(void **state)
{
    for (int step = 1; step <= 100; step++)
        put("loss", step, step == 12 || step == 13 ? NAN : step == 55 ? INFINITY : step == 56 ? -INFINITY : 1.0);
    struct gd_metric_query query = {.buckets = 10, .smooth = 0.5};
    int64_t rows;
    cJSON *series = reduce(&query, &rows), *entry = cJSON_GetArrayItem(series, 0), *marks = gd_json_find(entry, "nonfinite");
    assert_int_equal(cJSON_GetArraySize(marks), 3);
    static const struct {
        const char *kind;
        int x, count;
    } expected[] = {{"nan", 12, 2}, {"inf", 55, 1}, {"-inf", 56, 1}};
    for (int i = 0; i < 3; i++) {
        cJSON *mark = cJSON_GetArrayItem(marks, i);
        assert_string_equal(gd_json_find(mark, "kind")->valuestring, expected[i].kind);
        assert_int_equal(gd_json_find(mark, "x")->valueint, expected[i].x);
        assert_int_equal(gd_json_find(mark, "count")->valueint, expected[i].count);
    }
    for (int b = 0; b < 10; b++) { /* the numbers between them are not spoilt, and a constant stays constant */
        assert_true(at(entry, "count", b) == 10);
        assert_true(at(entry, "smooth", b) == 1.0 && at(entry, "max", b) == 1.0);
    }
    cJSON_Delete(series);
    query.buckets = 100;
    series = reduce(&query, &rows);
    entry = cJSON_GetArrayItem(series, 0);
    assert_true(isnan(at(entry, "last", 11)) && isnan(at(entry, "min", 11)) && isnan(at(entry, "max", 11)));
    assert_true(at(entry, "smooth", 11) == 1.0 && at(entry, "count", 11) == 1);
    char *text = gd_json_print(series); /* what is sent is JSON */
    cJSON *again = gd_json_parse(text, strlen(text), 1 << 20, &err);
    assert_non_null(again);
    cJSON_Delete(again);
    gd_free(text);
    cJSON_Delete(series);
}

static void smoothing_covers_all_rows_whatever_the_window(void **state)
{
    double w = 0.97, sum = 0, weight = 0, expected[501];
    for (int step = 1; step <= 500; step++) {
        double value = 3.0 + cos(step * 0.7) + step * 0.01;
        put("loss", step, value);
        sum = w * sum + (1 - w) * value; /* the textbook form: biased sum over 1 - w^n */
        weight = w * weight + (1 - w);
        expected[step] = sum / weight;
    }
    struct gd_metric_query query = {.from = 301, .to = 400, .buckets = 10, .smooth = w};
    int64_t rows;
    cJSON *series = reduce(&query, &rows), *entry = cJSON_GetArrayItem(series, 0);
    assert_int_equal(rows, 100);
    assert_int_equal(length(entry, "x"), 10);
    for (int b = 0; b < 10; b++) {
        assert_true(at(entry, "x", b) == 310 + 10 * b);
        assert_true(fabs(at(entry, "smooth", b) - expected[310 + 10 * b]) < 1e-9);
    }
    cJSON *ema = gd_json_find(entry, "ema");
    assert_true(fabs(gd_json_find(ema, "value")->valuedouble - expected[400]) < 1e-9);
    assert_true(fabs(gd_json_find(ema, "weight")->valuedouble - (1 - pow(w, 400))) < 1e-9);
    cJSON_Delete(series);
    query.smooth = 0;
    series = reduce(&query, &rows);
    entry = cJSON_GetArrayItem(series, 0);
    assert_true(cJSON_IsNull(gd_json_find(entry, "smooth")) && cJSON_IsNull(gd_json_find(entry, "ema")));
    cJSON_Delete(series);
}

static void sparse_series_share_the_window_and_keep_their_steps(void **state)
{
    for (int step = 1; step <= 1000; step++)
        put("train_loss", step, 1);
    for (int step = 250; step <= 1000; step += 250)
        put("valid_loss", step, step);
    static const char *const names[] = {"valid_loss", "absent", "train_loss"};
    struct gd_metric_query query = {.names = names, .name_count = 3, .buckets = 100};
    int64_t rows;
    cJSON *series = reduce(&query, &rows);
    assert_int_equal(rows, 1004);
    assert_int_equal(cJSON_GetArraySize(series), 3);
    cJSON *entry = cJSON_GetArrayItem(series, 0);
    assert_int_equal(length(entry, "x"), 4); /* empty buckets stay gaps */
    for (int i = 0; i < 4; i++)
        assert_true(at(entry, "x", i) == 250 * (i + 1) && at(entry, "last", i) == 250 * (i + 1));
    entry = cJSON_GetArrayItem(series, 1);
    assert_string_equal(gd_json_find(entry, "name")->valuestring, "absent");
    assert_int_equal(length(entry, "x"), 0);
    assert_int_equal(length(cJSON_GetArrayItem(series, 2), "x"), 100);
    cJSON_Delete(series);
}

static void logarithmic_buckets_are_even_in_the_logarithm(void **state)
{
    for (int step = 0; step <= 1023; step++)
        put("loss", step, 1);
    struct gd_metric_query query = {.buckets = 10, .log_scale = true};
    int64_t rows;
    cJSON *series = reduce(&query, &rows), *entry = cJSON_GetArrayItem(series, 0);
    assert_int_equal(rows, 1024);
    assert_int_equal(length(entry, "x"), 10);
    for (int b = 0; b < 10; b++) /* step 0 has no logarithm and goes to the first one */
        assert_true(fabs(at(entry, "count", b) - (pow(2, b) + (b == 0))) <= 1);
    cJSON_Delete(series);
}

static void few_rows_are_not_merged(void **state)
{
    put("loss", 5, 1);
    struct gd_metric_query query = {.buckets = 1000, .smooth = 0.999};
    int64_t rows;
    cJSON *series = reduce(&query, &rows);
    assert_int_equal(length(cJSON_GetArrayItem(series, 0), "x"), 1);
    cJSON_Delete(series);
    put("loss", INT64_C(1) << 52, 2);
    put("loss", (INT64_C(1) << 52) + 1, 3);
    query.log_scale = true;
    series = reduce(&query, &rows);
    assert_int_equal(length(cJSON_GetArrayItem(series, 0), "x"), 2);
    cJSON_Delete(series);
    query.log_scale = false;
    query.from = INT64_C(1) << 52;
    series = reduce(&query, &rows);
    assert_int_equal(length(cJSON_GetArrayItem(series, 0), "x"), 2);
    assert_int_equal(rows, 2);
    cJSON_Delete(series);
    query.to = query.from + 1;
    query.from = query.to + 1;
    assert_fails(gd_db_metrics_reduce(db, "job", &query, &series, &rows, &err), &err, GD_INVALID, "'to'");
    query.buckets = 0;
    assert_fails(gd_db_metrics_reduce(db, "job", &query, &series, &rows, &err), &err, GD_INVALID, "'buckets'");
    query.buckets = 1001;
    assert_fails(gd_db_metrics_reduce(db, "job", &query, &series, &rows, &err), &err, GD_INVALID, "1 to 1000");
    query = (struct gd_metric_query){.buckets = 5, .smooth = NAN};
    assert_fails(gd_db_metrics_reduce(db, "job", &query, &series, &rows, &err), &err, GD_INVALID, "'smooth'");
}

static void a_resume_replaces_and_cuts(void **state)
{
    for (int step = 1; step <= 20; step++)
        put("loss", step, 1);
    assert_ok(gd_db_metrics_cut(db, "job", 10, &err), &err);
    for (int step = 8; step <= 12; step++)
        put("loss", step, 2);
    struct gd_metric_query query = {.buckets = 100};
    int64_t rows;
    cJSON *series = reduce(&query, &rows), *entry = cJSON_GetArrayItem(series, 0);
    assert_int_equal(rows, 12);
    for (int i = 0; i < 12; i++)
        assert_true(at(entry, "x", i) == i + 1 && at(entry, "last", i) == (i + 1 < 8 ? 1 : 2));
    cJSON_Delete(series);
    assert_ok(gd_db_metrics_reduce(db, "other job", &query, &series, &rows, &err), &err);
    assert_int_equal(cJSON_GetArraySize(series), 0);
    assert_int_equal(rows, 0);
    cJSON_Delete(series);
}

static void csv_has_every_row_with_all_digits(void **state)
{
    put("loss", 1, 0.1);
    put("a,\"b\"", 1, NAN);
    put("loss", 2, -INFINITY);
    struct gd_buf out = {0};
    assert_ok(gd_db_metrics_csv(db, "job", &out, &err), &err);
    assert_string_equal(out.data, "step,name,value,wall\n"
                                  "1,loss,0.10000000000000001,1001.500000\n"
                                  "1,\"a,\"\"b\"\"\",nan,1001.500000\n"
                                  "2,loss,-inf,1002.500000\n");
    gd_buf_release(&out);
    gd_buf_init(&out, 30);
    assert_fails(gd_db_metrics_csv(db, "job", &out, &err), &err, GD_TOO_LARGE, "30 bytes");
    gd_buf_release(&out);
}

static void bad_points_are_refused(void **state)
{
    char *name = gd_alloc(200);
    struct gd_metric_point point = {.name = name, .step = 1, .value = 1};
    assert_fails(gd_db_metrics_put(db, "job", 1, &point, 1, &err), &err, GD_INVALID, "1 to 128 bytes, got 0");
    memset(name, 'n', 129);
    assert_fails(gd_db_metrics_put(db, "job", 1, &point, 1, &err), &err, GD_INVALID, "got 129");
    assert_fails(gd_db_metrics_put(db, "job", NAN, &point, 1, &err), &err, GD_INVALID, "time");
    gd_free(name);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_db, close_db)
    const struct CMUnitTest tests[] = {
        CASE(no_spike_vanishes_in_100000_rows),
        CASE(values_that_are_no_numbers_are_kept_and_marked),
        CASE(smoothing_covers_all_rows_whatever_the_window),
        CASE(sparse_series_share_the_window_and_keep_their_steps),
        CASE(logarithmic_buckets_are_even_in_the_logarithm),
        CASE(few_rows_are_not_merged),
        CASE(a_resume_replaces_and_cuts),
        CASE(csv_has_every_row_with_all_digits),
        CASE(bad_points_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
