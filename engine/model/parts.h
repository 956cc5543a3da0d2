/*
 * parts.h - the tensors of a decoder layer: names in both formats, shapes, and where they go.
 *
 * Why      Loading, the tensor account, sites and graph walk one table, so that they cannot disagree.
 * Memory   Constants.
 * Threads  Any.
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_MODEL_PARTS_H
#define GD_MODEL_PARTS_H

#include "engine/model/model.h"

enum gd_extent { GD_EXTENT_WIDTH, GD_EXTENT_FFN, GD_EXTENT_QUERY, GD_EXTENT_KV, GD_EXTENT_HEAD, GD_EXTENT_QKV,
                 GD_EXTENT_FFN_TWICE };
enum gd_row_kind { GD_ROWS_PLAIN, GD_ROWS_QUERY, GD_ROWS_KEY }; /* QUERY, KEY: permuted in some GGUF files */

struct gd_part {
    const char *name;        /* "self_attn.q_proj" */
    const char *gguf;        /* "attn_q" */
    enum gd_extent out, in;  /* a norm's weight is [out] */
    enum gd_row_kind rows;
    size_t weight, bias;     /* offsets into struct gd_model_layer */
    size_t has_bias;         /* offset of the flag in struct gd_model_config; 0: never */
    size_t has, lacks;       /* the same of the part itself and of what takes its place; 0: always, never */
};

enum { GD_LINEAR_QKV, GD_LINEAR_Q, GD_LINEAR_K, GD_LINEAR_V, GD_LINEAR_O, GD_LINEAR_GATE_UP, GD_LINEAR_GATE, GD_LINEAR_UP,
       GD_LINEAR_DOWN, GD_LINEAR_COUNT }; /* in graph order */
enum { GD_NORM_INPUT, GD_NORM_Q, GD_NORM_K, GD_NORM_POST, GD_NORM_COUNT }; /* in graph order */

extern const struct gd_part gd_linear_parts[GD_LINEAR_COUNT];
extern const struct gd_part gd_norm_parts[GD_NORM_COUNT];

int gd_extent_size(const struct gd_model_config *config, enum gd_extent extent);
/* Does a layer have it? */
bool gd_part_present(const struct gd_model_config *config, const struct gd_part *part);
/* How many linear modules a layer has before `linear` (GD_LINEAR_COUNT: in all). */
int gd_linears_before(const struct gd_model_config *config, int linear);
/* How many norms a layer has before `norm` (GD_NORM_COUNT: in all). */
int gd_norms_before(const struct gd_model_config *config, int norm);
bool gd_part_has_bias(const struct gd_model_config *config, const struct gd_part *part);
struct gd_weight **gd_part_weight(struct gd_model_layer *layer, const struct gd_part *part);
struct gd_weight **gd_part_bias(struct gd_model_layer *layer, const struct gd_part *part);

#endif
