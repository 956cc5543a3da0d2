/*
 * choices.h - strings that an answer is to be one of, as the engine takes them.
 *
 * Why      Judges and others choose; the engine knows tokens.
 * Memory   gd_choices owns its arrays until gd_choices_release; the sampling points into them until submit.
 * Threads  engine thread
 * Errors   GD_INVALID, err->param "choices"
 * Limits   GD_OUTPUTS_MAX
 * Life     encode -> gd_infer_submit -> release
 */
#ifndef GD_WORKER_CHOICES_H
#define GD_WORKER_CHOICES_H

#include "engine/base/json.h"
#include "engine/infer/engine.h"

struct gd_choices {
    struct gd_tokens tokens;
    int begin[GD_OUTPUTS_MAX + 1];
};

/* `list`: strings, or NULL (nothing is set). Sets the sampling's outputs, and max_tokens to what the longest needs. */
GD_MUST_CHECK bool gd_choices_encode(struct gd_choices *choices, const struct gd_tokenizer *tokenizer, const cJSON *list,
                                     struct gd_sampling *sampling, struct gd_error *err);
void gd_choices_release(struct gd_choices *choices);

#endif
