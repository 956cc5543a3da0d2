/*
 * job_change.h - everything that one turn of a job's life writes, applied in one transaction.
 *
 * Why      A status, its events, its metrics and what it publishes become durable together or not at all; applying a
 *          change twice (after a failed commit, or a crash before the row) gives the same state.
 * Memory   A change owns all it holds; release with gd_job_change_release.
 * Threads  Filled and read on the loop; apply runs on the store thread, while the loop leaves it alone.
 * Errors   apply: what db.h reports; GD_IO, GD_DISK_FULL from the results file.
 * Limits   none
 * Life     gd_job_change_init -> add ... -> gd_job_change_apply -> gd_job_change_release.
 */
#ifndef GD_SERVER_JOB_CHANGE_H
#define GD_SERVER_JOB_CHANGE_H

#include "storage/db.h"

struct gd_step_metrics {            /* one step's points */
    int64_t step;
    double wall;
    struct gd_metric_point *points; /* names owned */
    int point_count;
};

struct gd_job_change {
    char *data_dir;
    bool insert;                    /* the job is new */
    bool update;                    /* write `record` */
    struct gd_job_record record;    /* as it will be; always filled */
    bool cut_metrics;               /* drop points after cut_step, before adding any */
    int64_t cut_step;
    struct gd_step_metrics *steps;
    int step_count, step_capacity;
    struct gd_event_record *events; /* in order; sequences are set by apply */
    int event_count, event_capacity;
    bool has_checkpoint;            /* put, published as a model; models of checkpoints that are gone are unpublished */
    struct gd_checkpoint_record checkpoint;
    struct gd_eval_item_record *items; /* of a run: put */
    int item_count;
    bool read_done;                 /* apply fills `done` and done_count: the items of the run that are stored */
    cJSON *done;
    int64_t done_count;
    char *adapter_folder;           /* succeeded: publish this folder (relative) as record.fine_tuned_model, and write the
                                     * results file, whose id is in record.result_files */
};

/* Starts as `record` stands now. */
void gd_job_change_init(struct gd_job_change *change, const char *data_dir, const struct gd_job_record *record);
void gd_job_change_release(struct gd_job_change *change);

/* type "message", or "metrics" with data (taken; NULL otherwise). */
void gd_job_change_message(struct gd_job_change *change, const char *level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void gd_job_change_metrics_event(struct gd_job_change *change, const char *message, cJSON *data_taken);
/* The points become the change's. */
void gd_job_change_add_step(struct gd_job_change *change, const struct gd_step_metrics *step_taken);
void gd_step_metrics_release(struct gd_step_metrics *step);

GD_MUST_CHECK bool gd_job_change_apply(struct gd_db *db, struct gd_job_change *change, struct gd_error *err);

void gd_job_record_copy(struct gd_job_record *out, const struct gd_job_record *record);

/* Names that are the same however often a step is done again: ft:BASE:ORG:SUFFIX:8CHARS (the characters from the job's
 * id), the same with :ckpt-step-N, ftckpt_..., file-... of the results. Yours to free. */
char *gd_job_model_name(const struct gd_job_record *record, const char *organization_id);
char *gd_job_checkpoint_name(const struct gd_job_record *record, const char *organization_id, int64_t step);
char *gd_job_checkpoint_id(const char *job_id, int64_t step);
char *gd_job_results_file_id(const char *job_id);

#endif
