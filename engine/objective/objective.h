/*
 * objective.h - from the last hidden state and what a batch carries to a scalar loss.
 *
 * Why      The trainer knows no loss: an objective is one file here and one line in the registry.
 * Memory   Values belong to the graph.
 * Threads  The graph's.
 * Errors   Through the graph.
 * Limits   none
 * Life     build once per plan.
 *
 * To add an objective: 1 write objective/NAME.c with `const struct gd_objective gd_objective_NAME` 2 add its name to
 * objective_names in meson.build.
 */
#ifndef GD_OBJECTIVE_OBJECTIVE_H
#define GD_OBJECTIVE_OBJECTIVE_H

#include "engine/tensor/graph.h"

/* What the batch carries, as graph inputs. */
struct gd_objective_inputs {
    struct gd_value *labels;   /* i32 [T]: the token to predict from each row, -100 = none */
    double softcap;            /* of the logits; 0: none */
    struct gd_value *weights;  /* f32 [T]: weight of each label; without pairs already divided by the step's divisor */
    struct gd_value *cu_seqlens;   /* i32 [S+1]: segments */
    struct gd_value *prefix;       /* i32 [2S]: rows that each segment continues and has in common with others; NULL without pairs */
    struct gd_value *score;        /* param f32 [1, d]: the head of a reward model; NULL without one */
    struct gd_value *segment_loss; /* handle of a struct gd_segment_loss; NULL without pairs and labels */
    struct gd_value *place;        /* i32 [S]: of each segment the row that is classified, -1: none; NULL without labels */
    struct gd_value *pool, *pool_bias; /* param f32 [d, d], [d]: the dense layer before the labels; or NULL */
    struct gd_value *label_head, *label_bias; /* param f32 [labels, d], [labels] or NULL */
};

struct gd_objective_outputs {
    struct gd_value *loss;     /* f32 [1]: the sum over the batch; gradients flow from here */
    struct gd_value *logprob;  /* f32 [T]: log p(labels[t]) */
    struct gd_value *argmax;   /* i32 [T]: most likely token, -1 where there is no label; NULL with scores */
    struct gd_value *logits;   /* f32 [S, labels]; NULL without labels */
    struct gd_value *segments; /* f32 [S]: weighted log p of each segment; NULL without pairs */
};

struct gd_objective {
    const char *name;          /* "supervised" */
    const char *paper;
    bool scores;               /* the tokens' log p are scores: the last one is its answer's */
    bool classifies;           /* a row is one segment with labels, and has no next token to predict */
    bool pairs;                /* a row is two segments: the chosen answer, then the rejected one */
    bool by_token;             /* the loss is a sum over labelled tokens of weight times -logprob: jobs may share it */
    void (*build)(struct gd_graph *g, struct gd_value *hidden, struct gd_value *head,
                  const struct gd_objective_inputs *inputs, struct gd_objective_outputs *outputs);
};

extern const struct gd_objective *const gd_objective_table[];
extern const int gd_objective_count;
const struct gd_objective *gd_objective_find(const char *name); /* or NULL */

#endif
