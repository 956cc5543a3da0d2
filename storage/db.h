/*
 * db.h - the state database: typed reads and writes on one SQLite connection.
 *
 * Why      What the API lists survives kill -9 and power loss. One connection, one thread (the WAL of Debian 12's
 *          SQLite corrupts when two connections write or checkpoint).
 * Memory   Records own their strings; release with gd_X_release. Lists are the caller's.
 * Threads  The store thread only (store.h runs closures there).
 * Errors   GD_NOT_FOUND (foreign project too), GD_CONFLICT, GD_DISK_FULL, GD_IO.
 * Limits   page sizes as given by callers; 256 MiB a text
 * Life     gd_db_open (locks the folder, migrates, checks) -> calls inside gd_db_begin/commit -> gd_db_close.
 *
 * DATA_DIR/state.db    journal_mode=WAL synchronous=FULL foreign_keys=ON
 * DATA_DIR/metrics.db  journal_mode=WAL synchronous=NORMAL
 * DATA_DIR/ballast     room kept back for the moment when the disk is full (ballast.h)
 */
#ifndef GD_STORAGE_DB_H
#define GD_STORAGE_DB_H

#include "engine/base/json.h"
#include <stdint.h>

struct gd_db;

GD_MUST_CHECK bool gd_db_open(struct gd_db **out, const char *data_dir, struct gd_error *err);
void gd_db_close(struct gd_db *db);
GD_MUST_CHECK bool gd_db_begin(struct gd_db *db, struct gd_error *err);
GD_MUST_CHECK bool gd_db_commit(struct gd_db *db, struct gd_error *err);
void gd_db_rollback(struct gd_db *db);
/* Savepoint around one closure of a grouped transaction: a failed closure leaves nothing behind. */
GD_MUST_CHECK bool gd_db_savepoint(struct gd_db *db, struct gd_error *err);
void gd_db_savepoint_end(struct gd_db *db, bool keep);

/* ---- files ---- */
struct gd_file_record {
    char *id, *project, *filename, *purpose, *status;   /* status: "processed" | "error" */
    char *status_details;                               /* or NULL */
    char *report;                                       /* JSON of gd_file_report_json, or NULL */
    char *xxh3;
    int64_t bytes, created_at, expires_at;              /* expires_at 0 = never */
};
void gd_file_record_release(struct gd_file_record *record);
GD_MUST_CHECK bool gd_db_file_insert(struct gd_db *db, const struct gd_file_record *record, struct gd_error *err);
GD_MUST_CHECK bool gd_db_file_get(struct gd_db *db, const char *project, const char *id, struct gd_file_record *out,
                                  struct gd_error *err);
/* Deletes the row; GD_CONFLICT naming the job if a job that is not terminal uses it. */
GD_MUST_CHECK bool gd_db_file_delete(struct gd_db *db, const char *project, const char *id, struct gd_error *err);

/* One page of a list, newest first unless ascending; `after` is the id of the last element seen (NULL: start;
 * unknown: GD_INVALID param "after"). Ties in created_at are broken by insertion order. */
struct gd_page {
    const char *after;
    int limit;
    bool ascending;
};
GD_MUST_CHECK bool gd_db_file_list(struct gd_db *db, const char *project, const char *purpose, const struct gd_page *page,
                                   struct gd_file_record **out, int *count, bool *has_more, struct gd_error *err);
/* Files past expires_at, of all projects. */
GD_MUST_CHECK bool gd_db_file_expired(struct gd_db *db, int64_t now, struct gd_file_record **out, int *count,
                                      struct gd_error *err);

/* ---- jobs ---- */
/*    name              wire                    terminal */
#define GD_JOB_STATUS_LIST(X)                        \
    X(VALIDATING_FILES, "validating_files", false)   \
    X(QUEUED,           "queued",           false)   \
    X(RUNNING,          "running",          false)   \
    X(PAUSING,          "pausing",          false)   \
    X(PAUSED,           "paused",           false)   \
    X(SUCCEEDED,        "succeeded",        true)    \
    X(FAILED,           "failed",           true)    \
    X(CANCELLED,        "cancelled",        true)
#define GD_JOB_STATUS_ENUM(name, wire, terminal) GD_JOB_##name,
enum gd_job_status { GD_JOB_STATUS_LIST(GD_JOB_STATUS_ENUM) GD_JOB_STATUS_COUNT };
#undef GD_JOB_STATUS_ENUM
const char *gd_job_status_name(enum gd_job_status status);
bool gd_job_status_terminal(enum gd_job_status status);
/* The table of allowed transitions (style-anchors 7): validating_files -> queued|failed|cancelled; queued -> running|
 * paused|failed|cancelled; running -> pausing|queued|succeeded|failed|cancelled; pausing -> paused|queued|running|
 * succeeded|failed|cancelled; paused -> queued|cancelled; terminal -> nothing. */
bool gd_job_status_may(enum gd_job_status from, enum gd_job_status to);

/* What a job does, as stored. All kinds wait in one queue and run on the same workers. */
#define GD_JOB_KIND_LIST(X)          \
    X(FINE_TUNING, "fine_tuning")    \
    X(EVAL,        "eval") /* a run of an eval */
#define GD_JOB_KIND_ENUM(name, wire) GD_JOB_KIND_##name,
enum gd_job_kind { GD_JOB_KIND_LIST(GD_JOB_KIND_ENUM) GD_JOB_KIND_COUNT };
#undef GD_JOB_KIND_ENUM
const char *gd_job_kind_name(enum gd_job_kind kind);

struct gd_job_record {
    /* nullable: validation_file, suffix. Of a run: model "" if nothing is generated, training_file the file of its items
     * or "". */
    char *id, *project, *model, *training_file, *validation_file, *suffix;
    char *body;              /* the validated request, JSON: gd_job_spec_parse reads it (a run: {data_source_config,
                              * testing_criteria, data_source}) */
    char *hyperparameters;   /* JSON as echoed; replaced by the resolved values (a run: its models [{id, base_id, folder}]) */
    char *metadata, *integrations; /* JSON or NULL */
    char *error;             /* JSON {code,message,param} or NULL */
    char *fine_tuned_model;  /* NULL until succeeded */
    char *result_files;      /* JSON array of file ids */
    char *idempotency_key;   /* or NULL; unique per project */
    char *memory;            /* JSON account of the plan or NULL */
    char *eval_id, *name;    /* of a run; NULL otherwise (name may be) */
    enum gd_job_kind kind;
    char *start_folder;      /* adapter that the job goes on from, relative to the data dir; NULL: none (body: init_from) */
    enum gd_job_status status;
    int64_t created_at, started_at, finished_at, estimated_finish; /* 0 = null */
    int64_t seed, trained_tokens, step, total_steps;
    int attempt;             /* times it was given to a worker */
    int priority;            /* higher first; default 0 */
};
void gd_job_record_release(struct gd_job_record *record);
GD_MUST_CHECK bool gd_db_job_insert(struct gd_db *db, const struct gd_job_record *record, struct gd_error *err);
/* Of any kind. project NULL: any (scheduler, recovery). */
GD_MUST_CHECK bool gd_db_job_get(struct gd_db *db, const char *project, const char *id, struct gd_job_record *out,
                                 struct gd_error *err);
GD_MUST_CHECK bool gd_db_job_by_idempotency(struct gd_db *db, const char *project, const char *key,
                                            struct gd_job_record *out, bool *found, struct gd_error *err);
/* Writes every mutable column of `record`; the status change is checked against the table (GD_CONFLICT naming both). */
GD_MUST_CHECK bool gd_db_job_update(struct gd_db *db, const struct gd_job_record *record, struct gd_error *err);
/* The same, of this kind only. */
GD_MUST_CHECK bool gd_db_job_get_kind(struct gd_db *db, enum gd_job_kind kind, const char *project, const char *id,
                                      struct gd_job_record *out, struct gd_error *err);
/* Fine-tuning jobs. metadata_filter: JSON object of exact matches or NULL. */
GD_MUST_CHECK bool gd_db_job_list(struct gd_db *db, const char *project, const cJSON *metadata_filter,
                                  const struct gd_page *page, struct gd_job_record **out, int *count, bool *has_more,
                                  struct gd_error *err);
/* All jobs that are not terminal, oldest first (recovery at start). */
GD_MUST_CHECK bool gd_db_job_active(struct gd_db *db, struct gd_job_record **out, int *count, struct gd_error *err);

/* ---- evals, their runs (jobs of kind EVAL), and what the runs found ---- */
struct gd_eval_record {
    char *id, *project, *name;           /* name may be NULL */
    char *config, *criteria, *metadata;  /* JSON: as answered; metadata may be NULL */
    int64_t created_at, updated_at;
};
void gd_eval_record_release(struct gd_eval_record *record);
GD_MUST_CHECK bool gd_db_eval_insert(struct gd_db *db, const struct gd_eval_record *record, struct gd_error *err);
GD_MUST_CHECK bool gd_db_eval_get(struct gd_db *db, const char *project, const char *id, struct gd_eval_record *out,
                                  struct gd_error *err);
/* Writes name, metadata, updated_at. */
GD_MUST_CHECK bool gd_db_eval_update(struct gd_db *db, const struct gd_eval_record *record, struct gd_error *err);
/* With its runs; GD_CONFLICT naming one that is not over. */
GD_MUST_CHECK bool gd_db_eval_delete(struct gd_db *db, const char *project, const char *id, struct gd_error *err);
GD_MUST_CHECK bool gd_db_eval_list(struct gd_db *db, const char *project, bool by_update, const struct gd_page *page,
                                   struct gd_eval_record **out, int *count, bool *has_more, struct gd_error *err);
GD_MUST_CHECK bool gd_db_run_get(struct gd_db *db, const char *project, const char *eval_id, const char *id,
                                 struct gd_job_record *out, struct gd_error *err);
/* wanted_count 0: all. */
GD_MUST_CHECK bool gd_db_run_list(struct gd_db *db, const char *project, const char *eval_id,
                                  const enum gd_job_status *wanted, int wanted_count, const struct gd_page *page,
                                  struct gd_job_record **out, int *count, bool *has_more, struct gd_error *err);
GD_MUST_CHECK bool gd_db_run_delete(struct gd_db *db, const char *project, const char *eval_id, const char *id,
                                    struct gd_error *err);

struct gd_eval_score {
    char *name, *type;
    double score;
    bool passed, failed;                 /* failed: there is no score */
    char *aggregation, *numbers;         /* engine/eval/corpus.h; a JSON list; NULL: scores have a mean */
};
struct gd_eval_usage {
    char *model;
    int64_t invocations, prompt_tokens, completion_tokens, cached_tokens;
};
struct gd_eval_item_record {
    char *id, *run_id;
    char *status;                        /* "pass", "fail", "error" */
    char *digest;                        /* of the data set's item: equal items have equal ones */
    char *body;                          /* JSON {datasource_item, results, sample, error} */
    int64_t index, created_at;
    struct gd_eval_score *scores;        /* written; not read back */
    int score_count;
    struct gd_eval_usage *usage;
    int usage_count;
};
void gd_eval_item_record_release(struct gd_eval_item_record *record);
/* An item that is there already stays as it is. */
GD_MUST_CHECK bool gd_db_eval_item_put(struct gd_db *db, const struct gd_eval_item_record *record, bool *is_new,
                                       struct gd_error *err);
GD_MUST_CHECK bool gd_db_eval_item_get(struct gd_db *db, const char *run_id, const char *id,
                                       struct gd_eval_item_record *out, struct gd_error *err);
/* status NULL: all. */
GD_MUST_CHECK bool gd_db_eval_item_list(struct gd_db *db, const char *run_id, const char *status,
                                        const struct gd_page *page, struct gd_eval_item_record **out, int *count,
                                        bool *has_more, struct gd_error *err);
/* The indices of the items that are there: [[first, last], ...], and how many they are. cJSON_Delete(*ranges). */
GD_MUST_CHECK bool gd_db_eval_done(struct gd_db *db, const char *run_id, cJSON **ranges, int64_t *count,
                                   struct gd_error *err);

struct gd_eval_criterion {
    char *name, *type;
    int64_t passed, failed, errored;
    double *scores;                      /* of the items that have one, by index */
    size_t count;
    char *aggregation;                   /* NULL: the mean of scores; else what adds up numbers, */
    double *numbers;                     /* ... `width` of each item of `count` */
    size_t width;
};
struct gd_eval_results {
    int64_t passed, failed, errored;     /* items */
    struct gd_eval_criterion *criteria;  /* by name */
    int criterion_count;
    struct gd_eval_usage *usage;         /* by model */
    int usage_count;
};
GD_MUST_CHECK bool gd_db_eval_results(struct gd_db *db, const char *run_id, struct gd_eval_results *out,
                                      struct gd_error *err);
void gd_eval_results_release(struct gd_eval_results *results);

struct gd_eval_pair {
    char *name;                          /* of a criterion that both runs have */
    double *a, *b;                       /* scores of the items that both have scored */
    size_t count, capacity;
    char *aggregation;                   /* as a criterion's; then a and b have `width` numbers of each item */
    size_t width;
    int64_t errored;                     /* shared items without a score in one of them */
};
struct gd_eval_pairs {
    int64_t items_a, items_b, items_shared; /* shared: same index, same item */
    struct gd_eval_pair *pairs;
    int count;
};
GD_MUST_CHECK bool gd_db_eval_pairs(struct gd_db *db, const char *a, const char *b, struct gd_eval_pairs *out,
                                    struct gd_error *err);
void gd_eval_pairs_release(struct gd_eval_pairs *pairs);

/* ---- events (append-only, sequence per database) ---- */
struct gd_event_record {
    int64_t sequence;        /* assigned; Last-Event-ID */
    char *id, *job_id, *level, *message, *type, *data; /* data: JSON or NULL; type: "message" | "metrics" */
    int64_t created_at;
};
void gd_event_record_release(struct gd_event_record *record);
GD_MUST_CHECK bool gd_db_event_append(struct gd_db *db, struct gd_event_record *record, struct gd_error *err);
GD_MUST_CHECK bool gd_db_event_list(struct gd_db *db, const char *job_id, const struct gd_page *page,
                                    struct gd_event_record **out, int *count, bool *has_more, struct gd_error *err);
/* Oldest first, sequence > after_sequence. */
GD_MUST_CHECK bool gd_db_event_since(struct gd_db *db, const char *job_id, int64_t after_sequence, int limit,
                                     struct gd_event_record **out, int *count, struct gd_error *err);

/* ---- checkpoints and tuned models ---- */
struct gd_checkpoint_record {
    char *id, *job_id, *model, *folder, *metrics; /* model: "ft:...:ckpt-step-N"; folder relative to the data dir */
    int64_t step, created_at;
};
void gd_checkpoint_record_release(struct gd_checkpoint_record *record);
/* Replaces a checkpoint of the same (job, step): a resumed run writes it again. */
GD_MUST_CHECK bool gd_db_checkpoint_put(struct gd_db *db, const struct gd_checkpoint_record *record,
                                        struct gd_error *err);
GD_MUST_CHECK bool gd_db_checkpoint_list(struct gd_db *db, const char *job_id, const struct gd_page *page,
                                         struct gd_checkpoint_record **out, int *count, bool *has_more,
                                         struct gd_error *err);

struct gd_model_record {
    char *id, *project, *job_id, *base_model, *folder; /* folder relative to the data dir */
    char *parent;            /* the tuned model that its job went on from, or NULL */
    bool is_checkpoint;
    int64_t created_at;
};
void gd_model_record_release(struct gd_model_record *record);
/* Publishing the same id twice is GD_CONFLICT unless job and folder are the same (then it is a no-op). */
GD_MUST_CHECK bool gd_db_model_publish(struct gd_db *db, const struct gd_model_record *record, struct gd_error *err);
GD_MUST_CHECK bool gd_db_model_get(struct gd_db *db, const char *project, const char *id, struct gd_model_record *out,
                                   struct gd_error *err);
GD_MUST_CHECK bool gd_db_model_list(struct gd_db *db, const char *project, struct gd_model_record **out, int *count,
                                    struct gd_error *err);
GD_MUST_CHECK bool gd_db_model_delete(struct gd_db *db, const char *project, const char *id, struct gd_error *err);

/* ---- metrics (metrics.db) ---- */
struct gd_metric_point {
    const char *name;
    int64_t step;
    double value;            /* NaN and infinities are kept */
};
/* Points of a step that is there already are replaced (a resumed run). */
GD_MUST_CHECK bool gd_db_metrics_put(struct gd_db *db, const char *job_id, double wall,
                                     const struct gd_metric_point *points, int count, struct gd_error *err);
/* Drops points after `step` (a resume from a checkpoint at `step`). */
GD_MUST_CHECK bool gd_db_metrics_cut(struct gd_db *db, const char *job_id, int64_t step, struct gd_error *err);

struct gd_metric_query {
    const char *const *names; /* NULL: every series of the job */
    int name_count;
    int64_t from, to;         /* steps; to 0 = all */
    int buckets;              /* 1..1000 */
    double smooth;            /* 0 = none; exponential weight 0..0.999 over all rows, debiased */
    bool log_scale;           /* buckets evenly spaced in log(step) */
};
/* The "series" array of the metrics answer, as columns with one element per bucket that has rows:
 *   name; x (step of the bucket's last row); last, min, max (of the finite rows, null if there is none); count (all rows);
 *   smooth (average at the bucket's end) and ema {value, weight} to go on with it, both null without smoothing;
 *   nonfinite [{x, kind: "nan" | "inf" | "-inf", count}], one per bucket and kind, x its first step;
 *   nonpositive (finite rows that a log axis cannot show).
 * A name without rows gives empty columns. *rows: the rows in the window, of all series of the answer. Every row is looked
 * at: no spike vanishes. cJSON_Delete(*series). */
GD_MUST_CHECK bool gd_db_metrics_reduce(struct gd_db *db, const char *job_id, const struct gd_metric_query *query,
                                        cJSON **series, int64_t *rows, struct gd_error *err);
/* All rows as CSV "step,name,value,wall", appended. */
GD_MUST_CHECK bool gd_db_metrics_csv(struct gd_db *db, const char *job_id, struct gd_buf *out, struct gd_error *err);

#endif
