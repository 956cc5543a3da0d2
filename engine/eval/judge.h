/*
 * judge.h - what score_model and label_model share: a model that is asked, and its answer read.
 *
 * Why      Both send a conversation to a model and read a word from its answer; only the word differs.
 * Memory   Owned by the grader's state.
 * Threads  Reads only after parse.
 * Errors   parse: err->param is path.field. What the judge said and could not be read is in the grade.
 * Limits   GD_JUDGE_TOKENS_MAX tokens of a free answer unless sampling_params says otherwise
 * Life     with the grader
 *
 * The answer is constrained unless `output` is "free": the judge can say nothing but one of the choices. Without
 * sampling_params the judge is greedy (temperature 0), so that the same answer earns the same.
 */
#ifndef GD_EVAL_JUDGE_H
#define GD_EVAL_JUDGE_H

#include "engine/eval/grader_type.h"
#include "engine/eval/messages.h"

#define GD_JUDGE_TOKENS_MAX 256

struct gd_judge {
    char *model;
    bool free_output;
    struct gd_eval_messages input;
    struct gd_eval_sampling sampling;
    cJSON *choices; /* filled by the type */
};

GD_MUST_CHECK bool gd_judge_parse(struct gd_judge *judge, const cJSON *json, const char *path, struct gd_error *err);
/* What a type whose state begins with its judge has for functions. */
GD_MUST_CHECK bool gd_judge_references(const struct gd_grader *grader, const char *path, gd_reference_seen seen, void *context,
                                       struct gd_error *err);
int gd_judge_ask_count(const struct gd_grader *grader);
const char *gd_judge_ask_model(const struct gd_grader *grader, int index);
GD_MUST_CHECK bool gd_judge_fill_ask(const struct gd_grader *grader, int index, const struct gd_grade_input *input, struct gd_ask *ask,
                                     struct gd_grade *grade);
void gd_judge_release(struct gd_grader *grader);
/* The answer without white space around it, yours to free; NULL: the grade says why there is none. */
char *gd_judge_text(const struct gd_grade_input *input, struct gd_grade *grade);
/* The member "result" where `text` is a JSON object with one (yours), else NULL. */
cJSON *gd_judge_result(const char *text);

#endif
