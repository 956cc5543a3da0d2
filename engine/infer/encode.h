/*
 * encode.h - an encoder's pass over one text, and the keys and values that each layer of the decoder sees of it.
 *
 * Why      A text is encoded once; what is decoded after it only reads. Alone in its pass, its rows do not depend on others.
 * Memory   Owns graphs, plans, one arena for all of them.
 * Threads  engine thread
 * Errors   GD_NO_MEMORY; what plans report.
 * Limits   GD_ENCODER_PLANS plans are kept; a text is within the model's context.
 * Life     create -> run -> store ... -> destroy.
 */
#ifndef GD_INFER_ENCODE_H
#define GD_INFER_ENCODE_H

#include "engine/adapter/adapter.h"
#include "engine/tensor/kv.h"

#define GD_ENCODER_PLANS 16

struct gd_encoder;

void gd_encoder_create(struct gd_encoder **out, struct gd_model *model, enum gd_dtype act);
void gd_encoder_destroy(struct gd_encoder *encoder);

/* What encoding `rows` rows takes, without making anything: activations, and layouts of weights that are not there yet. */
GD_MUST_CHECK bool gd_encoder_estimate(struct gd_model *model, enum gd_dtype act, int rows, size_t *bytes, struct gd_layout_cost *layouts,
                                       struct gd_error *err);

/* graft: or NULL */
GD_MUST_CHECK bool gd_encoder_run(struct gd_encoder *encoder, const int32_t *ids, int count, const struct gd_graft *graft,
                                  struct gd_error *err);
/* Keys and values of the last run into `pages`, whose shape and memory kv tells; as many as hold its rows. */
GD_MUST_CHECK bool gd_encoder_store(const struct gd_encoder *encoder, const struct gd_kv_batch *kv, const int32_t *pages, struct gd_error *err);

#endif
