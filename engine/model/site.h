/*
 * site.h - the named places of a model that a tuning method may touch.
 *
 * Why      The model's graph-building code calls its sites and knows nothing else about tuning.
 * Memory   Borrowed by the builder.
 * Threads  The graph's.
 * Errors   Through the graph (NULL in, NULL out).
 * Limits   none
 * Life     filled by engine/adapter (training: one graft; serving: a wear table), used while building a graph.
 */
#ifndef GD_MODEL_SITE_H
#define GD_MODEL_SITE_H

#include "engine/tensor/graph.h"

enum gd_site_kind {
    GD_SITE_EMBED,      /* embedded tokens, before layer 0 */
    GD_SITE_LINEAR,     /* a linear map: x, W -> y */
    GD_SITE_KV,         /* keys (after rope) and values of a layer's attention */
    GD_SITE_BLOCK,      /* attention or MLP output, before it is added to the residual stream */
    GD_SITE_NORM,       /* a norm's weight, and its bias */
    GD_SITE_HIDDEN,     /* the last hidden state before the head */
    GD_SITE_TABLE,      /* the matrix of the embedding or of the head, both of them where they are tied; of learned positions; of token
                           types; of what attention adds for a distance */
};

struct gd_part;
struct gd_site {
    enum gd_site_kind kind;
    int layer;                  /* -1 outside layers */
    int index;                  /* dense number of the site in the model: gd_model_linear_sites order for LINEAR */
    const char *name;           /* Hugging Face module path: "model.layers.3.self_attn.q_proj" */
    const char *gguf;           /* the same in GGUF: "blk.3.attn_q"; LINEAR, NORM; NULL: its files do not have it */
    int in, out;                /* LINEAR: features; TABLE: width, rows; NORM, BLOCK: its width, twice; of heads: a head's */
    struct gd_weight *weight;   /* LINEAR, NORM, TABLE; else NULL */
    struct gd_weight *bias;     /* LINEAR, NORM; or NULL */
    const struct gd_part *part; /* LINEAR, NORM in a layer: its row of the body's parts (parts.h); else NULL */
    bool router, expert;        /* LINEAR: chooses experts; is part of one */
    bool small;                 /* TABLE: of a few rows, all of which a serving graph takes at once (types, distances) */
    bool centred;               /* NORM: a LayerNorm, else an RMSNorm, which has no bias */
    double offset;              /* NORM: is added to the weight (1 + w: Gemma) */
};

/* A NULL member leaves its sites alone. Each gets what the bare model would have computed from, and returns what is
 * used instead. */
struct gd_sites {
    void *context;
    /* x: act [T, in], of an expert a group's rows (graph.h); w: the weight's value; bias: or NULL. Returns y: act [T, out]. */
    struct gd_value *(*linear)(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                               struct gd_value *w, struct gd_value *bias);
    struct gd_value *(*embed)(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *rows);
    /* May replace *k and *v. */
    void (*kv)(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value **k, struct gd_value **v);
    /* input: what entered the block (after its norm); output: what the block made. */
    struct gd_value *(*block)(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *input,
                              struct gd_value *output);
    /* x: act [T, n in], n heads for a norm of heads and 1 otherwise; w: the weight's value; bias: or NULL. Returns the
     * normalised rows. */
    struct gd_value *(*norm)(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *x,
                             struct gd_value *w, struct gd_value *bias, double eps);
    struct gd_value *(*hidden)(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *h);
    /* w: the weight's value. Returns it, or a trained f32 [rows, width] instead. */
    struct gd_value *(*table)(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *w);
    /* The rows that positions of a width of their own will be added to; site: that of their table. */
    struct gd_value *(*place)(void *context, struct gd_graph *g, const struct gd_site *site, struct gd_value *rows);
};

/* y = x W^T (+ bias): what a linear site does when nobody answers; grafts call it for the base part. */
struct gd_value *gd_site_linear_base(struct gd_graph *g, struct gd_value *x, struct gd_value *w, struct gd_value *bias);

/* What a norm site does when nobody answers. */
struct gd_value *gd_site_norm_base(struct gd_graph *g, const struct gd_site *site, struct gd_value *x, struct gd_value *w,
                                   struct gd_value *bias, double eps);

struct gd_model;
/* The model's linear sites in graph order, 7 a layer for Llama (q, k, v, o, gate, up, down), 4 for Phi-3 (qkv, o, gate_up,
 * down), 5 and 3 for each expert for Mixtral (q, k, v, o, router, gates, ups, downs); the head is not among
 * them. `sites` is owned by the model's description and lives as long as it. */
int gd_model_linear_sites(const struct gd_model *model, const struct gd_site **sites);
/* The norms: each layer's in graph order (those of the heads of q and k among them, where the model has them), then the
 * last. */
int gd_model_norm_sites(const struct gd_model *model, const struct gd_site **sites);
/* Each layer's attention and MLP. */
int gd_model_block_sites(const struct gd_model *model, const struct gd_site **sites);
/* The embedded tokens. */
const struct gd_site *gd_model_embed_site(const struct gd_model *model);
/* The matrix of the embedding; of those that the model has: learned positions, token types, the head unless it is tied, an encoder's and
 * a decoder's distances. */
int gd_model_table_sites(const struct gd_model *model, const struct gd_site **sites);
/* The one of a weight, which is among them. */
const struct gd_site *gd_model_table_site(const struct gd_model *model, const struct gd_weight *weight);

#endif
