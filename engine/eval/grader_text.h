/*
 * grader_text.h - text with references to the row and the sample: "{{item.answer}}", "{{ sample.output_json.x[0] }}".
 *
 * Why      Graders are written once and filled in for each sample.
 * Memory   A text owns its pieces.
 * Threads  Rendering reads only.
 * Errors   Parsing: GD_INVALID with the position. Rendering: what is missing is named, in the grade.
 * Limits   GD_GRADER_TEXT_BYTES_MAX, GD_GRADER_RENDER_BYTES_MAX.
 * Life     parse -> render ... -> release.
 *
 * A reference is item or sample, then .name, [3] or ["name"]. Strings go in as they are, everything else as JSON.
 */
#ifndef GD_EVAL_GRADER_TEXT_H
#define GD_EVAL_GRADER_TEXT_H

#include "engine/base/arena.h"
#include "engine/eval/grader_type.h"

struct gd_grader_piece;
struct gd_grader_text {
    struct gd_arena arena;
    struct gd_grader_piece *pieces;
    size_t piece_count;
};

/* Reads the required string path.key. */
GD_MUST_CHECK bool gd_grader_text_parse(struct gd_grader_text *text, const cJSON *json, const char *path,
                                        const char *key, struct gd_error *err);
/* From a string; messages of errors start with "PARAM: ". */
GD_MUST_CHECK bool gd_grader_text_parse_string(struct gd_grader_text *text, const char *source, const char *param,
                                               struct gd_error *err);
/* `out` must be initialised. False: the grade says why. */
GD_MUST_CHECK bool gd_grader_text_render(const struct gd_grader_text *text, const cJSON *item, const cJSON *sample,
                                         struct gd_buf *out, struct gd_grade *grade);
/* Visits each reference; params are path.key. */
GD_MUST_CHECK bool gd_grader_text_references(const struct gd_grader_text *text, const char *path, const char *key,
                                             gd_reference_seen seen, void *context, struct gd_error *err);
void gd_grader_text_release(struct gd_grader_text *text);

/* The state of a type that compares "input" with "reference" begins with these. */
struct gd_grader_pair {
    struct gd_grader_text input, reference;
};
GD_MUST_CHECK bool gd_grader_pair_parse(struct gd_grader_pair *pair, const cJSON *json, const char *path, struct gd_error *err);
/* Fills both in; `compare` has the reward, or false and the grade says why. */
typedef bool (*gd_grader_compare)(const void *state, const char *input, const char *reference, struct gd_grade *grade);
GD_MUST_CHECK bool gd_grader_pair_grade(const struct gd_grader *grader, const struct gd_grade_input *from, gd_grader_compare compare,
                                        struct gd_grade *grade);
GD_MUST_CHECK bool gd_grader_pair_references(const struct gd_grader *grader, const char *path, gd_reference_seen seen, void *context,
                                             struct gd_error *err);
void gd_grader_pair_release(struct gd_grader *grader);

#endif
