/*
 * messages.h - a conversation with references to fill in, and how it is to be answered.
 *
 * Why      What an eval asks of its model and what a grader asks of its judge have one shape in OpenAI's API.
 * Memory   Owns its texts; results are the caller's.
 * Threads  Rendering reads only.
 * Errors   Parsing: err->param is path[i].content and the like. Rendering: the grade says what is missing.
 * Limits   GD_EVAL_MESSAGES_MAX messages, those of grader_text.h for each text.
 * Life     parse -> render ... -> release.
 *
 * A message is {role, content, type: "message"}; content is a string, a text part, or a list of text parts (input_text,
 * output_text, text), which are joined.
 */
#ifndef GD_EVAL_MESSAGES_H
#define GD_EVAL_MESSAGES_H

#include "engine/eval/grader_text.h"

#define GD_EVAL_MESSAGES_MAX 256

struct gd_eval_message;
struct gd_eval_messages {
    struct gd_eval_message *message;
    int count;
};

/* `list` must be an array of at least one message. */
GD_MUST_CHECK bool gd_eval_messages_parse(struct gd_eval_messages *messages, const cJSON *list, const char *path,
                                          struct gd_error *err);
/* [{role, content}], or NULL: the grade says why. */
cJSON *gd_eval_messages_render(const struct gd_eval_messages *messages, const cJSON *item, const cJSON *sample,
                               struct gd_grade *grade);
GD_MUST_CHECK bool gd_eval_messages_references(const struct gd_eval_messages *messages, const char *path,
                                               gd_reference_seen seen, void *context, struct gd_error *err);
void gd_eval_messages_release(struct gd_eval_messages *messages);

/* OpenAI's sampling_params. */
struct gd_eval_sampling {
    double temperature, top_p;
    int64_t seed, max_tokens;    /* max_tokens -1: as many as there is room for */
    cJSON *tools;                /* or NULL */
};
/* `json` may be NULL: then what `sampling` holds stays. with_tools: tools and response_format are known fields. */
GD_MUST_CHECK bool gd_eval_sampling_parse(struct gd_eval_sampling *sampling, const cJSON *json, const char *path,
                                          bool with_tools, struct gd_error *err);
void gd_eval_sampling_release(struct gd_eval_sampling *sampling);
/* Sets the ask's sampling; tools are copied. */
void gd_eval_sampling_apply(const struct gd_eval_sampling *sampling, struct gd_ask *ask);

#endif
