/*
 * grader_type.h - what a type of grader implements.
 *
 * Why      grader.c checks what all graders share (object, type, name, unknown fields) and knows no type.
 * Memory   `state` belongs to the type: made by parse, ended by release (also after a parse that failed half way).
 * Threads  grade reads only.
 * Errors   parse: err->param is path.field. grade, fill_ask: gd_grade_fail.
 * Limits   none
 * Life     parse -> grade ... -> release.
 */
#ifndef GD_EVAL_GRADER_TYPE_H
#define GD_EVAL_GRADER_TYPE_H

#include "engine/eval/grader.h"

/* What a grade is made from. */
struct gd_grade_input {
    const cJSON *item, *sample; /* item may be NULL */
    const struct gd_ask *asks;  /* the grader's asks with their answers, ask_count of them */
};

/* A reference in a text: {{item.a.b[0]}} is of_sample false, steps "a", "b", NULL (an index). */
struct gd_grader_reference {
    const char *text;           /* as written, without braces */
    bool of_sample;
    const char *const *steps;   /* names; NULL for an index */
    int step_count;
};
typedef bool (*gd_reference_seen)(void *context, const struct gd_grader_reference *reference, const char *param,
                                  struct gd_error *err);

struct gd_grader_type {
    const char *name;
    const char *const *fields; /* all that the object may hold, NULL-terminated */
    bool threshold_required;   /* as a criterion of an eval it must say pass_threshold */
    bool (*parse)(struct gd_grader *grader, const cJSON *json, const char *path, struct gd_error *err);
    bool (*grade)(const struct gd_grader *grader, const struct gd_grade_input *input, struct gd_grade *grade);
    void (*release)(struct gd_grader *grader);
    /* What is too slow for parse; may block. NULL: nothing. */
    bool (*check)(const struct gd_grader *grader, const char *path, struct gd_error *err);
    /* Each reference of its texts; false stops. NULL: it has no texts. */
    bool (*references)(const struct gd_grader *grader, const char *path, gd_reference_seen seen, void *context,
                       struct gd_error *err);
    /* For types that ask a model (NULL: none): how many asks there are, the model of each, and each one filled. False: the
     * grade says why. */
    int (*ask_count)(const struct gd_grader *grader);
    const char *(*ask_model)(const struct gd_grader *grader, int index);
    bool (*fill_ask)(const struct gd_grader *grader, int index, const struct gd_grade_input *input, struct gd_ask *ask,
                     struct gd_grade *grade);
};

struct gd_grader {
    const struct gd_grader_type *type;
    char *name;
    double pass_threshold; /* 1 unless the type has it as a field */
    void *state;
};

extern const struct gd_grader_type *const gd_grader_types[];
extern const int gd_grader_type_count;

/* Visits the references of all texts in the grader; `path` is where it stands in the request. */
GD_MUST_CHECK bool gd_grader_references(const struct gd_grader *grader, const char *path, gd_reference_seen seen,
                                        void *context, struct gd_error *err);

/* A member of a multi: `name` stands in for the object's own where that is absent (NULL: it must be there). */
struct gd_grader *gd_grader_parse_named(const cJSON *json, const char *path, const char *name,
                                        struct gd_error *err) GD_MUST_CHECK;

/* Sets the flag, and the message unless there is one; returns false. */
bool gd_grade_fail(struct gd_grade *grade, enum gd_grade_flag flag, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The required member path.key must be one of `names`; its index. The error lists them and names the nearest. */
GD_MUST_CHECK bool gd_grader_choice(const cJSON *json, const char *path, const char *key, const char *const *names,
                                    int count, int *out, struct gd_error *err);

#endif
