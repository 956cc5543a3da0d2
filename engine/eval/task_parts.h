/*
 * task_parts.h - what the files of task.h share.
 *
 * Why      Reading the configuration, filling templates, filtering and judging are one idea each.
 * Memory   All of it lies in struct gd_task.
 * Threads  as task.h
 * Errors   as task.h
 * Limits   as task.h
 * Life     as task.h
 */
#ifndef GD_EVAL_TASK_PARTS_H
#define GD_EVAL_TASK_PARTS_H

#include "engine/eval/pattern.h"
#include "engine/eval/task.h"
#include "engine/text/template.h"

enum gd_task_output { GD_TASK_GENERATE, GD_TASK_LOGLIKELIHOOD, GD_TASK_ROLLING, GD_TASK_CHOICE, GD_TASK_OUTPUT_COUNT };
extern const char *const gd_task_outputs[GD_TASK_OUTPUT_COUNT]; /* "generate_until", ... */

/* doc_to_text and its like: a column's name or a template, or what the YAML gives as it is. */
struct gd_task_field {
    const char *name;            /* a text: is there a column of this name? Borrowed from the configuration. */
    struct gd_template *tmpl;    /* ... else this */
    const cJSON *value;          /* a number or a list; a mapping became the list of its values */
    cJSON *owned;                /* that list */
};

/* How an example or the question itself is put together. */
struct gd_task_turn {
    struct gd_task_field text, target, choice;
    struct gd_task_field prefix; /* gen_prefix */
    const char *target_delimiter, *delimiter;
};

enum gd_task_step_kind {
    GD_STEP_LOWER, GD_STEP_MAP, GD_STEP_MAJORITY, GD_STEP_REGEX, GD_STEP_STRIP, GD_STEP_FIRST, GD_STEP_FIRST_K,
    GD_STEP_UPPER, GD_STEP_COUNT,
};
struct gd_task_step {
    enum gd_task_step_kind kind;
    struct gd_pattern *pattern;
    int select;                  /* REGEX: group_select; FIRST_K: k */
    const char *fallback;        /* REGEX */
    const cJSON *map, *otherwise;
};
#define GD_TASK_STEPS_MAX 16
struct gd_task_filter {
    const char *name;
    struct gd_task_step steps[GD_TASK_STEPS_MAX];
    int step_count;
};

struct gd_task_metric_type;
struct gd_task_metric {
    const struct gd_task_metric_type *type;
    const char *aggregation;
    bool higher_is_better;
    struct gd_pattern *ignored[16]; /* regexes_to_ignore */
    int ignored_count;
    bool ignore_case, ignore_punctuation, ignore_numbers;
};

struct gd_task {
    cJSON *config;
    const char *name;
    enum gd_task_output output;
    const char *rows_file, *shots_file;
    struct gd_task_turn turn, shot; /* of the question; of the examples */
    struct gd_task_field description;
    int64_t shots;
    bool first_shots;               /* sampler first_n */
    bool never_itself;              /* examples come from the rows that are asked */
    const cJSON *samples;           /* fewshot_config.samples */
    struct gd_task_filter filters[GD_TASK_FILTERS_MAX];
    int filter_count;
    struct gd_task_metric metrics[GD_TASK_METRICS_MAX];
    int metric_count;
    int64_t repeats, max_tokens;
    double temperature, top_p;
    cJSON *stops;
    bool mutual;                    /* some metric needs the choices without the question */
    /* after open */
    cJSON *rows, *pool;             /* arrays; pool NULL: the rows */
    const cJSON **row, **shot_row;  /* their elements */
    int64_t count, pool_count;
    uint32_t *chosen;               /* shots of item i at [i * shots] */
    cJSON *columns, *shot_columns;  /* objects with the names as keys */
    bool many_texts, many_targets;  /* the first row's text is a choice's number; its target is a list */
};

/* task_field.c */
GD_MUST_CHECK bool gd_task_field_parse(struct gd_task_field *field, const cJSON *config, const char *path, const char *key,
                                       struct gd_error *err);
void gd_task_field_release(struct gd_task_field *field);
bool gd_task_field_given(const struct gd_task_field *field);
/* The value for a row: a text, a number or a list (yours); NULL with the error. `columns`: those of the row's file. */
cJSON *gd_task_text(const struct gd_task *task, const struct gd_task_turn *turn, const cJSON *row, const cJSON *columns,
                    struct gd_error *err);
cJSON *gd_task_target(const struct gd_task *task, const struct gd_task_turn *turn, const cJSON *row, const cJSON *columns,
                      struct gd_error *err);
cJSON *gd_task_choices(const struct gd_task_turn *turn, const cJSON *row, const cJSON *columns, struct gd_error *err);
/* description and gen_prefix: "" where it is not given. */
GD_MUST_CHECK bool gd_task_plain(const struct gd_task_field *field, const cJSON *row, const cJSON *columns,
                                 struct gd_buf *out, struct gd_error *err);

/* task_context.c: the prompt, once for each of `choices` when the task has many texts (count 1 else). Yours. */
GD_MUST_CHECK bool gd_task_contexts(const struct gd_task *task, int64_t index, char ***contexts, int *count,
                                    struct gd_error *err);

/* task_filter.c */
GD_MUST_CHECK bool gd_task_filters_parse(struct gd_task *task, const char *path, struct gd_error *err);
void gd_task_filters_release(struct gd_task *task);
/* One answer out of `count`; a text (yours), or NULL with the error. */
char *gd_task_filter_run(const struct gd_task_filter *filter, const char *const *answers, int count, struct gd_error *err);

/* task_metric.c */
GD_MUST_CHECK bool gd_task_metrics_parse(struct gd_task *task, const char *path, struct gd_error *err);
void gd_task_metrics_release(struct gd_task *task);
/* What a metric sees of one row. */
struct gd_task_outcome {
    const struct gd_ask *asks;
    int ask_count;
    const cJSON *choices, *target; /* choices NULL: there are none; target: text, number or list */
    const char *scored;            /* ROLLING: the text */
    const char *answer;            /* GENERATE, after the filter */
};
/* "exact_match,none", as the harness names it; yours. */
char *gd_task_result_name(const struct gd_task_metric *metric, const char *filter);
/* One element of an item's results, with the values that its aggregation adds up. */
cJSON *gd_task_judge(const struct gd_task *task, const struct gd_task_metric *metric, const char *filter,
                     const struct gd_task_outcome *outcome);

#endif
