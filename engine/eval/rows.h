/*
 * rows.h - items as rows {"item": {...}, "sample": {...}}, from a file or from the request, and their grading.
 *
 * Why      OpenAI's two sources, jsonl and completions, differ in where the sample comes from and in nothing else.
 * Memory   Owns the rows: all of a file is held in memory.
 * Threads  One thread at a time.
 * Errors   parse: err->param below `path`; open: GD_BAD_FILE. A row that is wrong becomes an item with an error.
 * Limits   GD_EVAL_ITEMS_MAX rows
 * Life     parse -> open -> begin ... -> release.
 */
#ifndef GD_EVAL_ROWS_H
#define GD_EVAL_ROWS_H

#include "engine/eval/source.h"

struct gd_eval_rows {
    cJSON *content;      /* of file_content, or NULL */
    const cJSON **given; /* content's elements */
    char **lines;        /* of a file */
    int64_t count, capacity;
};

/* source->file_id is set from path.source. */
GD_MUST_CHECK bool gd_eval_rows_parse(struct gd_eval_rows *rows, struct gd_eval_source *source, const cJSON *json,
                                      const char *path, struct gd_error *err);
GD_MUST_CHECK bool gd_eval_rows_open(struct gd_eval_rows *rows, const char *file_path, struct gd_error *err);
void gd_eval_rows_release(struct gd_eval_rows *rows);

/* An item on its way: the row, and the sample that is graded. */
struct gd_eval_row {
    cJSON *row;            /* or NULL */
    const cJSON *item;     /* in row */
    cJSON *sample;         /* what templates see, or NULL */
    cJSON *shown;          /* what the output item shows as sample, or NULL */
    int judge_first;       /* of item->asks; -1: not asked yet */
};

/* Reads row item->index and checks it against the schema. NULL: the item is finished with the error. */
struct gd_eval_row *gd_eval_row_begin(const struct gd_eval_rows *rows, const struct gd_eval_source *source,
                                      struct gd_eval_item *item);
/* The sample is there: asks the judges, or finishes the item when there are none or all have answered. */
void gd_eval_row_grade(const struct gd_eval_source *source, struct gd_eval_item *item);
/* Finishes it with an error; keeps what there is. */
void gd_eval_row_fail(struct gd_eval_item *item, const struct gd_error *error);
void gd_eval_row_release(struct gd_eval_item *item);

/* An ask and its answer as OpenAI shows samples. */
cJSON *gd_eval_ask_shown(const struct gd_ask *ask, const char *model);

#endif
