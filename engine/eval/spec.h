/*
 * spec.h - an eval: what its items look like and by which criteria answers are judged.
 *
 * Why      POST /v1/evals, the worker and `graftd run` read the same request by the same rules.
 * Memory   Owns everything in it.
 * Threads  Constant after parse.
 * Errors   GD_INVALID, GD_MISSING, GD_UNKNOWN_FIELD, GD_UNSUPPORTED with err->param ("testing_criteria[0].input").
 * Limits   GD_EVAL_CRITERIA_MAX criteria; schema.h for the schema.
 * Life     gd_eval_spec_parse -> read ... -> gd_eval_spec_release.
 *
 * References are checked here: {{item.x}} against item_schema, {{sample.x}} against include_sample_schema.
 */
#ifndef GD_EVAL_SPEC_H
#define GD_EVAL_SPEC_H

#include "engine/eval/grader_type.h"

#define GD_EVAL_CRITERIA_MAX 64

struct gd_eval_spec {
    cJSON *config;           /* data_source_config as answered: {type, schema, ...} */
    const cJSON *item_schema; /* in config */
    cJSON *task;             /* config.type "task": the YAML's mapping (task.h), and no graders; else NULL */
    bool include_sample;     /* items come with samples, or runs generate them */
    struct gd_grader *graders[GD_EVAL_CRITERIA_MAX];
    int grader_count;
};

/* data_source_config, testing_criteria of `body`; other members are not looked at. */
GD_MUST_CHECK bool gd_eval_spec_parse(struct gd_eval_spec *spec, const cJSON *body, struct gd_error *err);
/* The same from a stored eval, whose config is as answered (with `schema`). */
GD_MUST_CHECK bool gd_eval_spec_restore(struct gd_eval_spec *spec, const cJSON *config, const cJSON *criteria,
                                        struct gd_error *err);
/* Are the references of messages right for this eval's items? (For templates that come with a run; criteria are checked by
 * parse.) A sample's must not be among them unless `with_sample`. */
GD_MUST_CHECK bool gd_eval_spec_check_reference(const struct gd_eval_spec *spec, bool with_sample,
                                                const struct gd_grader_reference *reference, const char *param,
                                                struct gd_error *err);
void gd_eval_spec_release(struct gd_eval_spec *spec);

#endif
