/*
 * task.h - tasks in the dialect of lm-evaluation-harness: rows, templates, few-shot examples, filters, metrics.
 *
 * Why      Most benchmarks exist as such YAML files. A task here asks the same questions of the same rows in the same words
 *          and judges the answers by the same rules, so that scores compare with the harness's.
 * Memory   A task owns its configuration, its rows (all in memory) and the order of its examples.
 * Threads  One thread at a time.
 * Errors   gd_task_parse: GD_INVALID, GD_UNKNOWN_FIELD, GD_UNSUPPORTED, GD_MISSING with err->param below `path`. gd_task_open:
 *          GD_BAD_FILE with the line. What is wrong with one row is its item's error.
 * Limits   GD_TASK_METRICS_MAX, GD_TASK_FILTERS_MAX, GD_TASK_REPEATS_MAX, GD_TASK_ROWS_BYTES_MAX for a file of rows.
 * Life     gd_task_parse -> gd_task_open -> begin, answered ... -> gd_task_destroy.
 *
 * Where it is strict and the harness is not: an unknown key, a file that is not local, Python (!function, process_docs,
 * process_results) and a prompt longer than the model's context are errors instead of warnings, downloads or silent cuts.
 */
#ifndef GD_EVAL_TASK_H
#define GD_EVAL_TASK_H

#include "engine/eval/source.h"

#define GD_TASK_METRICS_MAX 32
#define GD_TASK_FILTERS_MAX 16
#define GD_TASK_REPEATS_MAX 64
#define GD_TASK_SHOTS_MAX 1024
#define GD_TASK_ROWS_BYTES_MAX (256u << 20)
#define GD_TASK_SEED 1234 /* the harness's, for the choice of examples */

struct gd_task;

struct gd_task_options {
    int64_t limit;     /* rows from the first; -1: all */
    int64_t shots;     /* instead of num_fewshot; -1: the task's */
    uint64_t seed;     /* of the choice of examples */
};

/* `config`: the YAML's mapping. NULL on error. */
struct gd_task *gd_task_parse(const cJSON *config, const char *path, struct gd_error *err) GD_MUST_CHECK;
void gd_task_destroy(struct gd_task *task);
const char *gd_task_name(const struct gd_task *task);
/* What data_files says of the rows, and of the examples where they are of another file (else NULL). */
const char *gd_task_rows_file(const struct gd_task *task);
const char *gd_task_shots_file(const struct gd_task *task);
/* Are examples of another file needed, with that many (-1: the task's) examples? */
bool gd_task_needs_shots(const struct gd_task *task, int64_t shots);

/* Reads the rows and chooses every item's examples. shots_path NULL: there is no such file. */
GD_MUST_CHECK bool gd_task_open(struct gd_task *task, const char *rows_path, const char *shots_path,
                                const struct gd_task_options *options, struct gd_error *err);
int64_t gd_task_count(const struct gd_task *task);
/* As a source's (source.h). model: its id, for the record. */
void gd_task_begin(struct gd_task *task, struct gd_eval_item *item);
void gd_task_answered(struct gd_task *task, struct gd_eval_item *item, const char *model);

#endif
