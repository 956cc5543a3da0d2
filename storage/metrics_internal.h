/*
 * metrics_internal.h - how a double is stored: SQLite has no NaN, so the kind stands beside the value.
 *
 * Why      A NaN loss is the most important number of a broken run: it must come back as it went in.
 * Memory   none
 * Threads  Any
 * Errors   none
 * Limits   GD_METRIC_NAME_BYTES_MAX
 * Life     none
 */
#ifndef GD_STORAGE_METRICS_INTERNAL_H
#define GD_STORAGE_METRICS_INTERNAL_H

#include "storage/db_internal.h"

#define GD_METRIC_NAME_BYTES_MAX 128

enum gd_metric_kind { GD_METRIC_FINITE, GD_METRIC_NAN, GD_METRIC_INFINITY, GD_METRIC_MINUS_INFINITY, GD_METRIC_KIND_COUNT };

enum gd_metric_kind gd_metric_kind(double value);
const char *gd_metric_kind_name(enum gd_metric_kind kind); /* "nan", "inf", "-inf" */

/* One series of a job. */
struct gd_series {
    int64_t id;
    char *name;
};
GD_MUST_CHECK bool gd_series_list(struct gd_db *db, const char *job_id, struct gd_series **out, int *count,
                                  struct gd_error *err);
void gd_series_release(struct gd_series *series, int count);

#endif
