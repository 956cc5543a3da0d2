/*
 * classification.c - one of a closed set of labels for a text, or any number of them: the logits are a head on one row of each
 * segment, of an encoder the first through a dense layer and tanh (its pooler), of a decoder the last. Softmax or sigmoid
 * cross-entropy (gd_label_loss).
 */
#include "engine/objective/objective.h"
#include "engine/tensor/ops.h"

static void build(struct gd_graph *g, struct gd_value *hidden, struct gd_value *head,
                  const struct gd_objective_inputs *inputs, struct gd_objective_outputs *outputs)
{
    struct gd_value *rows = gd_gather_rows(g, hidden, inputs->place);
    if (inputs->pool != NULL)
        rows = gd_activation(g, gd_add_row(g, gd_linear(g, rows, inputs->pool), inputs->pool_bias), GD_ACTIVATION_TANH);
    struct gd_value *logits = gd_matmul(g, rows, false, inputs->label_head, true, 1.0, NULL, GD_F32);
    if (inputs->label_bias != NULL)
        logits = gd_add_row(g, logits, inputs->label_bias);
    outputs->logits = logits;
    if (logits != NULL)
        outputs->loss = gd_segment_loss(g, gd_reshape(g, logits, logits->shape[0] * logits->shape[1], 0), NULL, inputs->segment_loss);
}

const struct gd_objective gd_objective_classification = {
    .name = "classification",
    .paper = "maximum likelihood of labels",
    .classifies = true,
    .build = build,
};
