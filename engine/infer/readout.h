/*
 * readout.h - whole texts through a model at once, without a cache: embeddings, and the scores of classifiers.
 *
 * Why      An encoder has no next token: a text is one pass, and what is wanted is one row of numbers.
 * Memory   Owns graphs, plans, one arena, and copies of the base's small heads; borrows model and grafts.
 * Threads  engine thread
 * Errors   GD_UNSUPPORTED with param "model" where the model has no such head; GD_CONTEXT with the numbers; GD_NO_MEMORY.
 * Limits   GD_READOUT_TOKENS tokens in a pass (one longer text is a pass of its own)
 * Life     gd_readout_create (per resident model) -> embed / classify ... -> gd_readout_destroy.
 */
#ifndef GD_INFER_READOUT_H
#define GD_INFER_READOUT_H

#include "engine/adapter/adapter.h"

#define GD_READOUT_TOKENS 2048

struct gd_readout;

/* One text as tokens; second: where its second text begins, 0: there is none. */
struct gd_readout_text {
    struct gd_tokens tokens;
    int second;
    int index;                   /* among the texts of its request, for errors; -1: it is the only one */
};

GD_MUST_CHECK bool gd_readout_create(struct gd_readout **out, struct gd_model *model, struct gd_error *err);
void gd_readout_destroy(struct gd_readout *encode);

/* Length of an embedding with `dimensions`, 0: the model's own. Others only where config.json lists them in matryoshka_dimensions. */
GD_MUST_CHECK bool gd_readout_dimensions(const struct gd_readout *encode, int dimensions, int *length, struct gd_error *err);
/* out: f32 [count, length]. The mean over tokens or the first one, as the folder's 1_Pooling says; of length 1 unless its modules.json
 * leaves that out. */
GD_MUST_CHECK bool gd_readout_embed(struct gd_readout *encode, const struct gd_graft *graft, const struct gd_readout_text *texts, int count,
                                   int length, float *out, struct gd_error *err);

/* What the classifier tells apart: the graft's head, or the model's own. */
struct gd_readout_labels {
    char *const *names;
    int count;
    bool multi;
};
GD_MUST_CHECK bool gd_readout_labels(const struct gd_readout *encode, const struct gd_graft *graft, struct gd_readout_labels *labels,
                                    struct gd_error *err);
/* logits: f32 [count, labels]. */
GD_MUST_CHECK bool gd_readout_classify(struct gd_readout *encode, const struct gd_graft *graft, const struct gd_readout_text *texts, int count,
                                      float *logits, struct gd_error *err);

#endif
