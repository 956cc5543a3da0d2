/*
 * grader_type.h - what a type of grader implements.
 *
 * Why      grader.c checks what all graders share (object, type, name, unknown fields) and knows no type.
 * Memory   `state` belongs to the type: made by parse, ended by release (also after a parse that failed half way).
 * Threads  grade reads only.
 * Errors   parse: err->param is path.field. grade: gd_grade_fail.
 * Limits   none
 * Life     parse -> grade ... -> release.
 */
#ifndef GD_EVAL_GRADER_TYPE_H
#define GD_EVAL_GRADER_TYPE_H

#include "engine/eval/grader.h"

struct gd_grader_type {
    const char *name;
    const char *const *fields; /* all that the object may hold, NULL-terminated */
    bool (*parse)(struct gd_grader *grader, const cJSON *json, const char *path, struct gd_error *err);
    bool (*grade)(const struct gd_grader *grader, const cJSON *item, const cJSON *sample, struct gd_grade *grade);
    void (*release)(struct gd_grader *grader);
};

struct gd_grader {
    const struct gd_grader_type *type;
    char *name;
    double pass_threshold; /* 1 unless the type has it as a field */
    void *state;
};

extern const struct gd_grader_type *const gd_grader_types[];
extern const int gd_grader_type_count;

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
