/*
 * export.h - a graft on its way to other programs: folded into the weights, or as a GGUF adapter; and the proof that what was
 * written is what was meant.
 *
 * Why      What a graft does at a site is stated once, in struct gd_wear_part; whether and how it merges follows from that,
 *          for every method.
 * Memory   One weight at a time.
 * Threads  engine thread
 * Errors   GD_UNSUPPORTED naming the module and what no weight can hold; those of files.
 * Limits   none
 * Life     on a loaded graft
 */
#ifndef GD_ADAPTER_EXPORT_H
#define GD_ADAPTER_EXPORT_H

#include "engine/adapter/adapter.h"

/* Whether the graft is a change of weights and biases. */
GD_MUST_CHECK bool gd_graft_mergeable(const struct gd_graft *graft, struct gd_error *err);
/* The base with the graft folded in, in the base's own format (rewrite.h). */
GD_MUST_CHECK bool gd_graft_merge(const struct gd_graft *graft, enum gd_dtype dtype, const char *path, struct gd_error *err);

/* llama.cpp's adapter format (general.type "adapter", adapter.type "lora"): tensors blk.N.NAME.weight.lora_a [r, in] and .lora_b
 * [out, r], all scales folded into lora_b. Methods whose parts are low-rank products alone. dtype: F32, F16 or BF16. */
GD_MUST_CHECK bool gd_graft_write_gguf(const struct gd_graft *graft, enum gd_dtype dtype, const char *path, struct gd_error *err);
/* Reads such a file as a LoRA; every tensor is used or named in the error. Modules must have one rank. */
GD_MUST_CHECK bool gd_graft_read_gguf(struct gd_graft **out, const struct gd_model *model, const char *path, struct gd_error *err);

/* A model with what it wears (NULL: nothing). */
struct gd_worn {
    const struct gd_model *model;
    const struct gd_graft *graft;
};
/* Relative difference ||a - b|| / ||a|| of the f32 logits of fixed texts. Both must have one vocabulary. */
GD_MUST_CHECK bool gd_worn_difference(const struct gd_worn *a, const struct gd_worn *b, double *difference, struct gd_error *err);

#endif
