/* supervised.c - maximum likelihood of the labelled tokens: L = sum_t w_t (-log p(label_t | earlier tokens)). */
#include "engine/objective/objective.h"
#include "engine/tensor/ops.h"

static void build(struct gd_graph *g, struct gd_value *hidden, struct gd_value *head,
                  const struct gd_objective_inputs *inputs, struct gd_objective_outputs *outputs)
{
    outputs->loss = gd_cross_entropy(g, hidden, head, inputs->labels, inputs->weights, 1.0, inputs->softcap);
    outputs->logprob = gd_value_output(outputs->loss, 1);
    outputs->argmax = gd_value_output(outputs->loss, 2);
}

const struct gd_objective gd_objective_supervised = {
    .name = "supervised",
    .paper = "maximum likelihood over the assistant's tokens",
    .by_token = true,
    .build = build,
};
