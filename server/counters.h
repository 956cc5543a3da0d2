/*
 * counters.h - numbers for Prometheus: counters, gauges, histograms with bounded labels.
 *
 * Why      One table of families (name, help, labels, buckets): nothing is exported that is not declared here.
 * Memory   The registry owns its series; label values are copied.
 * Threads  Loop thread.
 * Errors   none
 * Limits   GD_COUNTER_SERIES_MAX series a family; what comes after is counted in one series whose labels are "other".
 * Life     gd_counters_create -> add / set / observe ... -> gd_counters_print -> gd_counters_destroy.
 *
 * To add a family: one line in GD_COUNTER_LIST.
 */
#ifndef GD_SERVER_COUNTERS_H
#define GD_SERVER_COUNTERS_H

#include "engine/base/buf.h"

#define GD_COUNTER_SERIES_MAX 512
#define GD_COUNTER_LABELS_MAX 3

/*    id                 kind       name                                    labels                 help */
#define GD_COUNTER_LIST(X)                                                                                               \
    X(HTTP_REQUESTS,     COUNTER,   "graftd_http_requests_total",           "route,method,status", "Requests answered.") \
    X(HTTP_SECONDS,      HISTOGRAM, "graftd_http_request_duration_seconds", "route",               "From first byte to reply sent.") \
    X(HTTP_IN_FLIGHT,    GAUGE,     "graftd_http_requests_in_flight",       "",                    "Requests being worked on.") \
    X(HTTP_STREAMS,      GAUGE,     "graftd_http_streams",                  "",                    "Open event streams.") \
    X(HTTP_CONNECTIONS,  GAUGE,     "graftd_http_connections",              "",                    "Open connections.") \
    X(HTTP_BYTES_IN,     COUNTER,   "graftd_http_received_bytes_total",     "",                    "Bytes of request bodies.") \
    X(HTTP_BYTES_OUT,    COUNTER,   "graftd_http_sent_bytes_total",         "",                    "Bytes of reply bodies.") \
    X(HTTP_CUT,          COUNTER,   "graftd_http_connections_cut_total",    "reason",              "Connections ended by a limit.") \
    X(HTTP_REFUSED,      COUNTER,   "graftd_http_refused_total",            "reason",              "Requests refused before their handler.") \
    X(FILES_CREATED,     COUNTER,   "graftd_files_created_total",           "purpose",             "Files accepted.") \
    X(FILES_REFUSED,     COUNTER,   "graftd_files_refused_total",           "purpose",             "Files refused by validation.") \
    X(JOBS,              GAUGE,     "graftd_jobs",                          "status",              "Jobs that are not over, by status.") \
    X(JOBS_ENDED,        COUNTER,   "graftd_jobs_ended_total",              "status",              "Jobs that ended since start.") \
    X(JOB_STEPS,         COUNTER,   "graftd_job_steps_total",               "",                    "Optimiser steps.") \
    X(TRAINED_TOKENS,    COUNTER,   "graftd_trained_tokens_total",          "",                    "Labelled tokens trained on.") \
    X(PROMPT_TOKENS,     COUNTER,   "graftd_prompt_tokens_total",           "",                    "Prompt tokens of completions.") \
    X(GENERATED_TOKENS,  COUNTER,   "graftd_generated_tokens_total",        "",                    "Tokens generated.") \
    X(FIRST_TOKEN,       HISTOGRAM, "graftd_time_to_first_token_seconds",   "",                    "From request to first token.") \
    X(WORKERS,           GAUGE,     "graftd_workers",                       "state",               "Worker processes by state.") \
    X(WORKER_RESTARTS,   GAUGE,     "graftd_worker_restarts",               "worker",              "Restarts since the server started.") \
    X(DEVICE_BYTES,      GAUGE,     "graftd_device_bytes",                  "worker,kind",         "Memory of a GPU: taken, limit.") \
    X(WORKER_RSS,        GAUGE,     "graftd_worker_resident_bytes",         "worker",              "Resident memory.") \
    X(INFER_RUNNING,     GAUGE,     "graftd_infer_running",                 "worker",              "Sequences being decoded.") \
    X(INFER_WAITING,     GAUGE,     "graftd_infer_waiting",                 "worker",              "Sequences waiting for memory.") \
    X(CACHE_PAGES,       GAUGE,     "graftd_cache_pages",                   "worker,state",        "Pages of the key-value cache.") \
    X(ADAPTER_BYTES,     GAUGE,     "graftd_adapter_bytes",                 "worker",              "Memory of the adapters held for serving.") \
    X(UPTIME,            GAUGE,     "graftd_uptime_seconds",                "",                    "Since the server started.") \
    X(BUILD,             GAUGE,     "graftd_build_info",                    "version",             "Always 1.")

#define GD_COUNTER_ENUM(id, kind, name, labels, help) GD_COUNTER_##id,
enum gd_counter { GD_COUNTER_LIST(GD_COUNTER_ENUM) GD_COUNTER_COUNT };
#undef GD_COUNTER_ENUM

struct gd_counters;

struct gd_counters *gd_counters_create(void);
void gd_counters_destroy(struct gd_counters *counters);
/* labels: one value for each label of the family, in its order; NULL for a family without labels. A NULL registry is
 * ignored. */
void gd_counters_add(struct gd_counters *counters, enum gd_counter counter, double amount, const char *const *labels);
void gd_counters_set(struct gd_counters *counters, enum gd_counter counter, double value, const char *const *labels);
void gd_counters_observe(struct gd_counters *counters, enum gd_counter counter, double value, const char *const *labels);
/* Drops all series of a gauge family (before it is filled anew). */
void gd_counters_clear(struct gd_counters *counters, enum gd_counter counter);
/* Text exposition format 0.0.4, appended. */
void gd_counters_print(const struct gd_counters *counters, struct gd_buf *out);

#endif
