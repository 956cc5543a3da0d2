/*
 * encoder.h - the graph of an encoder, and what stands on top of it.
 *
 * Why      Classification jobs, embeddings and parity tests lay the same heads on the same hidden states.
 * Memory   The graph's.
 * Threads  The graph's.
 * Errors   Through the graph.
 * Limits   none
 * Life     after gd_model_hidden, in the same graph
 */
#ifndef GD_MODEL_ENCODER_H
#define GD_MODEL_ENCODER_H

#include "engine/model/family.h"

/* Its parts have a decoder's numbers (parts.h), as far as it has them; the norms stand behind attention and feed-forward part. */
extern const struct gd_body gd_body_encoder;

/* tanh(W h + b) of each row: the pooler, or what a classifier has in its place. rows: act [S, d], those of the first tokens. */
struct gd_value *gd_encoder_pooled(struct gd_graph *graph, const struct gd_model *model, struct gd_value *rows);
/* The logits of the model's own labels of pooled rows (an encoder's) or last rows (a decoder's), act [S, labels]. */
struct gd_value *gd_model_label_logits(struct gd_graph *graph, const struct gd_model *model, struct gd_value *rows);
/* Of a masked-LM: logits of each token's place, act [T, V]. */
struct gd_value *gd_encoder_mask_logits(struct gd_graph *graph, const struct gd_model *model, struct gd_value *hidden);

#endif
