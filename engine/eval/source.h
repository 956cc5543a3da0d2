/*
 * source.h - where the items of a run come from: what each asks of models, and what came of it.
 *
 * Why      Rows with templates, and tasks in other dialects, differ in how an item becomes questions and how answers become
 *          results. Running them (many at a time, on a worker or in the foreground, stopped and continued) is the same for
 *          all and knows no source: engine/worker/evaluate.h.
 * Memory   A source owns what it parsed and opened. An item belongs to the runner; `state` in it to the source, until the
 *          item is finished (then the source has freed it) or abandoned (release_item).
 * Threads  One call at a time; begin and answered come from another thread than parse, open and destroy.
 * Errors   parse: GD_INVALID and the like with err->param below "data_source"; open: GD_BAD_FILE, GD_IO. begin and
 *          answered cannot fail: what is wrong with an item becomes its result (gd_eval_item_fail).
 * Limits   GD_EVAL_ITEMS_MAX items, GD_EVAL_ITEM_BYTES_MAX for what is kept of one.
 * Life     gd_eval_source_parse -> gd_eval_source_open -> (begin -> answered ...) for each item, in any order ->
 *          gd_eval_source_destroy. The server stops after parse: it only wants to know whether the request is right.
 *
 * To add a source: 1 write eval/source_NAME.c with `const struct gd_eval_source_type gd_eval_source_type_NAME` 2 add its
 * name to source_names in meson.build 3 its schema in api-spec/openapi.yaml.
 */
#ifndef GD_EVAL_SOURCE_H
#define GD_EVAL_SOURCE_H

#include "engine/eval/spec.h"

#define GD_EVAL_ITEMS_MAX 10000000
#define GD_EVAL_ITEM_BYTES_MAX (16u << 20)
#define GD_EVAL_ASKS_MAX 4096

/* One item on its way. */
struct gd_eval_item {
    int64_t index;                   /* from 0; the number of the row, and of the random numbers */
    struct gd_ask *asks;             /* all that it asked so far, with the answers that are there */
    int ask_count;
    int unanswered;                  /* the runner's count */
    void *state;                     /* the source's */
    /* the result, once finished */
    bool finished;
    const char *status;              /* "pass", "fail", "error" */
    cJSON *body;                     /* {datasource_item, results[], sample, error}: see gd_eval_item_finish */
};

struct gd_eval_source {
    const struct gd_eval_source_type *type;
    const struct gd_eval_spec *spec; /* of the eval; must outlive the source */
    char *model;                     /* id of the run's model; NULL: no answers are generated */
    char *task;                      /* that the model answers for, where it was tuned by task; or NULL */
    char *file_id;                   /* the file that items are read from, or NULL */
    char *second_file_id;            /* what else they need, or NULL: a task's examples */
    const char *second_path;         /* of second_file_id: set by the host before open, borrowed */
    int64_t count;                   /* items, after open */
    void *state;
};

struct gd_eval_source_type {
    const char *name;                /* data_source.type */
    /* Checks the whole data_source, against the spec too, and sets source->model, file_id and second_file_id. */
    bool (*parse)(struct gd_eval_source *source, const cJSON *json, const char *path, struct gd_error *err);
    /* Reads the items and sets source->count. `file_path`: of file_id, or NULL. */
    bool (*open)(struct gd_eval_source *source, const char *file_path, struct gd_error *err);
    /* Looks at the item: adds asks (gd_eval_item_ask), or finishes it. */
    void (*begin)(struct gd_eval_source *source, struct gd_eval_item *item);
    /* All asks so far have answers (or errors): adds more, or finishes it. */
    void (*answered)(struct gd_eval_source *source, struct gd_eval_item *item);
    void (*release_item)(struct gd_eval_source *source, struct gd_eval_item *item); /* state != NULL; may be NULL */
    void (*release)(struct gd_eval_source *source);                                 /* also after a failed parse */
};

/* `json`: the data_source. NULL on error. */
struct gd_eval_source *gd_eval_source_parse(const struct gd_eval_spec *spec, const cJSON *json, struct gd_error *err)
    GD_MUST_CHECK;
GD_MUST_CHECK bool gd_eval_source_open(struct gd_eval_source *source, const char *file_path, struct gd_error *err);
void gd_eval_source_destroy(struct gd_eval_source *source);
/* The ids of all models that a run of it asks, each once; they are borrowed. Returns how many. */
#define GD_EVAL_MODELS_MAX 64
GD_MUST_CHECK bool gd_eval_source_models(const struct gd_eval_source *source, const char *ids[GD_EVAL_MODELS_MAX],
                                         int *count, struct gd_error *err);

/* ---- for sources ---- */
/* A new ask of the item, initialised (ask.h); fill it before the next call: it may move. */
struct gd_ask *gd_eval_item_ask(struct gd_eval_item *item, enum gd_ask_kind kind);
/* results: [{name, type, score (null: it could not be had), passed, error (null or text), sample}], one for each criterion
 * or metric. sample: what was asked and answered, or null. All three are taken and may be NULL (null, and no results).
 * The status is "error" when `error` is set or some result has one, else "pass" when all passed, else "fail". */
void gd_eval_item_finish(struct gd_eval_item *item, cJSON *datasource_item_taken, cJSON *results_taken,
                         cJSON *sample_taken, const struct gd_error *error);
/* One element of results. error NULL or GD_OK: score and passed count. sample (taken) may be NULL. */
cJSON *gd_eval_result(const char *name, const char *type, double score, bool passed, const struct gd_error *error,
                      cJSON *sample_taken);
void gd_eval_item_release(struct gd_eval_item *item); /* asks and body */

#endif
