/*
 * parts.h - what a body's layers are made of: shapes, where the tensors go, and what a family calls them in both formats.
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

enum gd_extent { GD_EXTENT_NONE, GD_EXTENT_WIDTH, GD_EXTENT_EMBED, GD_EXTENT_FFN, GD_EXTENT_QUERY, GD_EXTENT_KV, GD_EXTENT_HEAD, GD_EXTENT_QKV,
                 GD_EXTENT_FFN_TWICE, GD_EXTENT_VOCAB, GD_EXTENT_POSITIONS, GD_EXTENT_TYPES, GD_EXTENT_LABELS,
                 GD_EXTENT_HEADS, GD_EXTENT_BUCKETS, GD_EXTENT_EXPERTS };
enum gd_stack { GD_STACK_ANY, GD_STACK_ENCODER, GD_STACK_DECODER }; /* whose layers have a part */
enum gd_row_kind { GD_ROWS_PLAIN, GD_ROWS_QUERY, GD_ROWS_KEY }; /* QUERY, KEY: permuted in some GGUF files */

struct gd_part {
    enum gd_extent out, in;  /* in NONE: a vector [out] */
    enum gd_row_kind rows;
    size_t weight, bias;     /* offsets into struct gd_model_layer, of outer parts into struct gd_model */
    size_t has_bias;         /* offset of the flag in struct gd_model_config; 0: never */
    size_t has, lacks;       /* the same of the part itself and of what takes its place; 0: always, never */
    bool optional;           /* the flag at `has` is set where the files have the part */
    const char *tensor;      /* what its weight is called; NULL: "weight" */
    enum gd_stack stack;
    size_t copies;           /* offset of the number of them in struct gd_model_config; 0: it is one. With copies `weight` is where an array begins */
};

#define GD_OUTER_WEIGHT(field) .weight = offsetof(struct gd_model, field)
#define GD_OUTER_BIAS(field, flag) .bias = offsetof(struct gd_model, field), .has_bias = offsetof(struct gd_model_config, flag)
#define GD_PART_WEIGHT(field) .weight = offsetof(struct gd_model_layer, field)
#define GD_PART_BIAS(field, flag)                                                                                      \
    .bias = offsetof(struct gd_model_layer, field), .has_bias = offsetof(struct gd_model_config, flag)
#define GD_PART_IF(flag) .has = offsetof(struct gd_model_config, flag)
#define GD_PART_UNLESS(flag) .lacks = offsetof(struct gd_model_config, flag)

#define GD_PART_COPIES(field) .copies = offsetof(struct gd_model_config, field)

#define GD_PARTS_MAX 16 /* of one kind */

/* The parts outside layers, of all bodies. */
enum { GD_OUTER_EMBED, GD_OUTER_POSITIONS, GD_OUTER_TYPES, GD_OUTER_NORM, GD_OUTER_HEAD, GD_OUTER_POOL, GD_OUTER_LABEL_POOL,
       GD_OUTER_LABELS, GD_OUTER_MASK_DENSE, GD_OUTER_MASK_NORM, GD_OUTER_MASK_BIAS, GD_OUTER_ENCODER_NORM, GD_OUTER_ENCODER_BIAS,
       GD_OUTER_DECODER_BIAS,
       GD_OUTER_PROJECT_IN, GD_OUTER_PROJECT_OUT, GD_OUTER_COUNT };

/* How the names of a family's classes end, and what is on top of the body then. */
struct gd_class {
    const char *suffix;      /* "ForCausalLM" */
    enum gd_head_kind head;
};

/* How layers of parts become a graph. */
struct gd_body {
    const struct gd_part *linears, *norms; /* of a layer, in graph order */
    int linear_count, norm_count;
    const struct gd_part *outer;           /* [GD_OUTER_COUNT]; out NONE: it has no such part */
    const struct gd_class *classes;        /* suffix NULL at the end */
    bool encoder;                          /* gd_model_is_encoder */
    /* ids to the last hidden state: gd_model_hidden. */
    struct gd_value *(*hidden)(struct gd_graph *graph, const struct gd_model *model, const struct gd_model_inputs *inputs,
                               const struct gd_sites *sites);
};

/* The parts of gd_body_decoder, in graph order. */
enum { GD_LINEAR_QKV, GD_LINEAR_Q, GD_LINEAR_K, GD_LINEAR_V, GD_LINEAR_O, GD_LINEAR_GATE_UP, GD_LINEAR_GATE, GD_LINEAR_UP,
       GD_LINEAR_DOWN, GD_LINEAR_ROUTER, GD_LINEAR_EXPERT_GATE, GD_LINEAR_EXPERT_UP, GD_LINEAR_EXPERT_DOWN, GD_LINEAR_COUNT };
enum { GD_NORM_INPUT, GD_NORM_Q, GD_NORM_K, GD_NORM_ATTENTION_OUT, GD_NORM_POST, GD_NORM_MLP_OUT, GD_NORM_COUNT };
extern const struct gd_body gd_body_decoder;
extern const struct gd_body gd_body_experts; /* the same graph, with experts for the feed-forward part */
struct gd_value *gd_decoder_hidden(struct gd_graph *graph, const struct gd_model *model,
                                   const struct gd_model_inputs *inputs, const struct gd_sites *sites);

/* The parts of gd_body_encoder_decoder, in graph order. */
enum { GD_T5_Q, GD_T5_K, GD_T5_V, GD_T5_O, GD_T5_CROSS_Q, GD_T5_CROSS_K, GD_T5_CROSS_V, GD_T5_CROSS_O, GD_T5_ENCODER_GATE,
       GD_T5_ENCODER_UP, GD_T5_ENCODER_PLAIN, GD_T5_ENCODER_DOWN, GD_T5_DECODER_GATE, GD_T5_DECODER_UP, GD_T5_DECODER_PLAIN,
       GD_T5_DECODER_DOWN, GD_T5_LINEAR_COUNT };
enum { GD_T5_NORM_INPUT, GD_T5_NORM_CROSS, GD_T5_NORM_ENCODER_POST, GD_T5_NORM_DECODER_POST, GD_T5_NORM_COUNT };
extern const struct gd_body gd_body_encoder_decoder;
struct gd_value *gd_encoder_decoder_hidden(struct gd_graph *graph, const struct gd_model *model,
                                           const struct gd_model_inputs *inputs, const struct gd_sites *sites);

/* What a module is called: without ".weight" and ".bias". Of copies: '*' stands for the number, and a name without one is that of
 * one tensor of all, stacked. */
struct gd_name {
    const char *hf;          /* "self_attn.q_proj" */
    const char *gguf;        /* "attn_q" */
    const char *also;        /* what some Hugging Face files call it; or NULL */
    /* Of copies: the tensor [copies, rows, in] that some Hugging Face files have instead (no ".weight" behind it), or NULL; where its
     * matrices hold several parts, this one is the `share`-th of `shares` of their rows. */
    const char *stacked;
    int share, shares;
    const char *gguf_apart;  /* what old GGUF files call each copy, with a '*'; or NULL */
};
struct gd_names {
    const char *base;        /* the model without its head: "model" */
    const char *base_also;   /* what some Hugging Face files call it; or NULL */
    const char *layers;      /* "model.layers": layer i is LAYERS.i ("blk.i" in GGUF), and its parts are below it */
    struct gd_name outer[GD_OUTER_COUNT];
    const char *const *ignored;          /* tensors of Hugging Face files that hold nothing of the model, NULL at the end; or NULL */
    const char *attention, *mlp;         /* a layer's blocks */
    const char *decoder_layers, *decoder_mlp; /* the same of the decoder's layers beside an encoder; else NULL */
    struct gd_name linears[GD_PARTS_MAX], norms[GD_PARTS_MAX]; /* in the order of the body's parts */
};
extern const struct gd_names gd_names_llama;

int gd_extent_size(const struct gd_model_config *config, enum gd_extent extent);
/* Does the model have it? */
bool gd_part_present(const struct gd_model_config *config, const struct gd_part *part);
/* Does that layer? */
bool gd_part_in_layer(const struct gd_model_config *config, const struct gd_part *part, int layer);
/* Number of a linear module, and of a norm, among those of all layers; layer config->layers, part 0: how many there are. */
int gd_linear_index(const struct gd_model_config *config, int layer, int linear);
int gd_norm_index(const struct gd_model_config *config, int layer, int norm);
/* What the layer's stack is called, and its number there. */
const char *gd_layer_stack(const struct gd_model_config *config, int layer, int *number);
/* How many of it a layer has. */
int gd_part_copies(const struct gd_model_config *config, const struct gd_part *part, int layer);
/* A name with its '*' replaced. */
struct gd_part_name {
    char text[96];
};
struct gd_part_name gd_part_name(const char *name, int copy);
/* How many linear modules a layer has before `linear`, and how many in all. */
int gd_linears_before(const struct gd_model_config *config, int linear);
int gd_linears_of_layer(const struct gd_model_config *config);
/* The same of norms. */
int gd_norms_before(const struct gd_model_config *config, int norm);
int gd_norms_of_layer(const struct gd_model_config *config);
bool gd_part_has_bias(const struct gd_model_config *config, const struct gd_part *part);
/* owner: what the part's offsets count from. */
struct gd_weight **gd_part_weight(void *owner, const struct gd_part *part, int copy);
struct gd_weight **gd_part_bias(void *owner, const struct gd_part *part);

#endif
