/*
 * picks.h - which of the base's own tensors a graft trains, and how: the part that selective methods share.
 *
 * Why      Full fine-tuning, BitFit, HFT and SPT differ in what they pick; what is picked is trained, kept and served alike.
 *          What is not picked has no parameter: no gradient, no moments and no decay can reach it.
 * Memory   Picks own their lists of entries; the graft owns the picks.
 * Threads  engine thread
 * Errors   GD_BAD_MODEL for files whose picks do not fit the base (tensor named)
 * Limits   sides of a tensor with entries below 2^24, since the block holds their places as f32
 * Life     gd_picks_create -> a method's choose fills them -> gd_picks_declare in its create -> gd_picks_destroy
 *
 * Tensors in the file, after base_model.model.MODULE:
 *     WHOLE    .weight, .bias                                 the new values
 *     ENTRIES  .shira_weight [n], .shira_indices [2, n]       additions, and their rows and columns (as PEFT's SHiRA)
 *              of a vector .shira_indices [1, n]; of a bias .bias.shira_weight, .bias.shira_indices
 *     PRODUCT  .lora_A.weight, .lora_B.weight                 an addition B A
 */
#ifndef GD_ADAPTER_PICKS_H
#define GD_ADAPTER_PICKS_H

#include "engine/adapter/build.h"

struct gd_safetensors;

enum gd_pick {
    GD_PICK_NONE,
    GD_PICK_WHOLE,           /* every number, from the base's own on */
    GD_PICK_ENTRIES,         /* additions to the numbers at some places, from zero on */
    GD_PICK_PRODUCT,         /* weights of linear modules: a low-rank addition, from zero on */
};

enum gd_picked_part { GD_PICKED_WEIGHT, GD_PICKED_BIAS, GD_PICKED_PARTS };

struct gd_picked {
    enum gd_pick pick;
    int rank;                /* PRODUCT */
    int64_t entry_count;     /* ENTRIES, sorted by row and column */
    int32_t *row, *column;   /* column NULL: a vector's */
};

struct gd_picks {
    int slots;
    bool undecayed_vectors;  /* weight decay leaves norms and biases alone */
    struct gd_picked (*tensor)[GD_PICKED_PARTS]; /* [slots] */
};

struct gd_picks *gd_picks_create(const struct gd_model *model);
void gd_picks_destroy(struct gd_picks *picks);
/* The base's tensor, or NULL where it has none: an RMSNorm's bias, most linear modules' biases. */
struct gd_weight *gd_picked_weight(const struct gd_site *site, enum gd_picked_part part);
/* Rows and columns (1: a vector). A bias that the base lacks has its module's outputs. */
int64_t gd_picked_rows(const struct gd_site *site, enum gd_picked_part part);
int64_t gd_picked_columns(const struct gd_site *site, enum gd_picked_part part);

/* Picks WHOLE: weights, biases where `biases`, of the sites that the option names, within layers first..last; a norm's bias goes
 * with its weight. False: a name
 * matches nothing. A norm after the layers counts with the last one. */
GD_MUST_CHECK bool gd_picks_choose(struct gd_graft *graft, enum gd_site_kind kind, const char *option, bool weights,
                                   bool biases, int first_layer, int last_layer, struct gd_error *err);
/* Picks WHOLE: the embedding and the head. */
void gd_picks_choose_tables(struct gd_graft *graft);
int64_t gd_picks_count(const struct gd_graft *graft, enum gd_pick pick); /* tensors picked so */
int64_t gd_picks_numbers(const struct gd_graft *graft);                  /* trained numbers that these picks make */

/* graft->picks as the tensors of a file have them. */
GD_MUST_CHECK bool gd_picks_read(struct gd_graft *graft, const struct gd_safetensors *file, struct gd_error *err);

/* The hooks of methods that go by picks. */
GD_MUST_CHECK bool gd_picks_declare(struct gd_graft *graft, struct gd_error *err);
void gd_picks_init(const struct gd_graft *graft, float *block, uint64_t seed);
struct gd_value *gd_picks_linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                 struct gd_value *x, struct gd_value *w, struct gd_value *bias,
                                 struct gd_value *const *params);
struct gd_value *gd_picks_norm(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *w, struct gd_value *bias, double eps,
                               struct gd_value *const *params);
struct gd_value *gd_picks_table(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                struct gd_value *w, struct gd_value *const *params);
void gd_picks_wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                   struct gd_wear_part *part);

#endif
