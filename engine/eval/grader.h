/*
 * grader.h - from a sample of a model and the row behind it to a reward.
 *
 * Why      Evaluations and reinforcement judge answers by graders that arrive as data (OpenAI's grader objects): checked
 *          once, when they arrive, then run on any number of samples.
 * Memory   A grader copies what it needs of its JSON. A grade owns its parts; gd_grade_release.
 * Threads  A grader is constant after gd_grader_parse: any thread may run it, several at once.
 * Errors   gd_grader_parse: GD_INVALID, GD_MISSING, GD_UNKNOWN_FIELD, GD_UNSUPPORTED with err->param below `path`.
 *          gd_grader_run cannot fail: what went wrong is in the grade (flags and message, reward 0).
 * Limits   GD_GRADER_TEXT_BYTES_MAX for a text with references, GD_GRADER_RENDER_BYTES_MAX for what it becomes,
 *          GD_GRADER_PARTS_MAX graders in a multi; see similarity.h and formula.h for theirs.
 * Life     gd_grader_parse -> gd_grader_run (or fill_asks, answers, run_asked) -> gd_grade_release ... ->
 *          gd_grader_destroy.
 *
 * To add a type: 1 write eval/NAME.c with `const struct gd_grader_type gd_grader_type_NAME` (grader_type.h) 2 add its name
 * to grader_names in meson.build 3 its schema in api-spec/openapi.yaml.
 */
#ifndef GD_EVAL_GRADER_H
#define GD_EVAL_GRADER_H

#include "engine/eval/ask.h"

#define GD_GRADER_TEXT_BYTES_MAX (64u << 10)
#define GD_GRADER_RENDER_BYTES_MAX (1u << 20)
#define GD_GRADER_PARTS_MAX 32

/*    name                  flag of the grader API */
#define GD_GRADE_FLAG_LIST(X)                                \
    X(FORMULA,              "formula_parse_error")           \
    X(SAMPLE_PARSE,         "sample_parse_error")            \
    X(TRUNCATED,            "truncated_observation_error")   \
    X(UNRESPONSIVE,         "unresponsive_reward_error")     \
    X(INVALID_VARIABLE,     "invalid_variable_error")        \
    X(OTHER,                "other_error")                   \
    X(PYTHON_SERVER,        "python_grader_server_error")    \
    X(PYTHON_RUNTIME,       "python_grader_runtime_error")   \
    X(MODEL_SERVER,         "model_grader_server_error")     \
    X(MODEL_REFUSAL,        "model_grader_refusal_error")    \
    X(MODEL_PARSE,          "model_grader_parse_error")

#define GD_GRADE_FLAG_ENUM(name, wire) GD_GRADE_##name,
enum gd_grade_flag { GD_GRADE_FLAG_LIST(GD_GRADE_FLAG_ENUM) GD_GRADE_FLAG_COUNT };
#undef GD_GRADE_FLAG_ENUM

struct gd_grader;

/* One grader of a multi. */
struct gd_grade_part {
    char *name;      /* as the formula calls it */
    double reward;
    bool failed;
};

struct gd_grade {
    double reward;                     /* 0 when anything failed */
    bool passed;                       /* reward >= pass_threshold (1 where the grader has none), and nothing failed */
    bool flags[GD_GRADE_FLAG_COUNT];   /* what failed */
    struct gd_error error;             /* the first failure in words; GD_OK when there was none */
    struct gd_grade_part *parts;       /* of a multi, in its order */
    int part_count;
};

/* `path` is the name of the object in the request ("grader"). NULL on error. */
struct gd_grader *gd_grader_parse(const cJSON *json, const char *path, struct gd_error *err) GD_MUST_CHECK;
void gd_grader_destroy(struct gd_grader *grader);
/* What parse leaves out because it takes a process: whether Python compiles. Blocks: not for an event loop. */
GD_MUST_CHECK bool gd_grader_check(const struct gd_grader *grader, const char *path, struct gd_error *err);
const char *gd_grader_name(const struct gd_grader *grader);
const char *gd_grader_type_name(const struct gd_grader *grader);

/* The `sample` object that templates see: output_text, and output_json where `text` is JSON. Free with cJSON_Delete. */
cJSON *gd_grader_sample(const char *text);

/* `item`: the row, or NULL. `sample`: {output_text, output_json, output_tools}, each present or not. For graders that ask
 * nobody (gd_grader_ask_count is 0). */
void gd_grader_run(const struct gd_grader *grader, const cJSON *item, const cJSON *sample, struct gd_grade *grade);

/* Graders that have a model judge: fill the asks, have them answered, then grade. The asks are the caller's
 * (gd_ask_release), ask_count of them; one that could not be filled has its error set and needs no answer. */
int gd_grader_ask_count(const struct gd_grader *grader);
const char *gd_grader_ask_model(const struct gd_grader *grader, int index); /* of ask `index` */
void gd_grader_fill_asks(const struct gd_grader *grader, const cJSON *item, const cJSON *sample, struct gd_ask *asks);
void gd_grader_run_asked(const struct gd_grader *grader, const cJSON *item, const cJSON *sample,
                         const struct gd_ask *asks, struct gd_grade *grade);
void gd_grade_release(struct gd_grade *grade);
const char *gd_grade_flag_wire(enum gd_grade_flag flag); /* "formula_parse_error" */

#endif
