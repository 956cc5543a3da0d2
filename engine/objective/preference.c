/*
 * preference.c - losses over pairs of answers (preference.h). the loss of all log p is a function that also
 * returns its slopes; it sees log sum_v p(v)^2 as well. The reference has the sums over answers alone.
 */
#include "engine/objective/objective.h"
#include "engine/tensor/ops.h"

static void build(struct gd_graph *g, struct gd_value *hidden, struct gd_value *head,
                  const struct gd_objective_inputs *inputs, struct gd_objective_outputs *outputs)
{
    outputs->logprob = gd_token_logprob(g, hidden, head, inputs->labels, 1.0, inputs->softcap);
    outputs->argmax = gd_value_output(outputs->logprob, 1);
    outputs->segments = gd_segment_sum(g, outputs->logprob, inputs->weights, inputs->cu_seqlens, inputs->prefix);
    outputs->loss = gd_segment_loss(g, outputs->logprob, gd_value_output(outputs->logprob, 2), inputs->segment_loss);
}

const struct gd_objective gd_objective_preference = {
    .name = "preference",
    .paper = "Saeidi et al. 2024 (arXiv 2404.14723)",
    .pairs = true,
    .build = build,
};
