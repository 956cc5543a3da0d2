/*
 * draw.h - the tokens of a batch, drawn on the device where it can.
 *
 * Why      Logits of many sequences are megabytes; what is drawn from them is a few bytes.
 * Memory   none beside the call
 * Threads  engine thread
 * Errors   those of the device
 * Limits   as sample.h; what is beyond is the host's to draw (sampler.h)
 * Life     none
 */
#ifndef GD_INFER_DRAW_H
#define GD_INFER_DRAW_H

#include "engine/infer/engine_internal.h"

/* results[0..count) for rows of the last logits. *drawn false: nothing was drawn, the host has to: a row asks for what the device
 * does not do (a given token's log-probability, choices among few outputs), or a logit is not finite. */
GD_MUST_CHECK bool gd_draw(struct gd_infer *infer, const struct gd_wanted_row *wanted, int count, struct gd_sequence_result *results,
                           bool *drawn, struct gd_error *err);

#endif
