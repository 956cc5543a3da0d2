/*
 * reward.c - reward models: the score of an answer is w . h at its last token, h the last hidden state, w a head that is
 * trained with the graft. The loss of all scores is a function that also returns its slopes (gd_preference_reward).
 */
#include "engine/objective/objective.h"
#include "engine/tensor/ops.h"

static void build(struct gd_graph *g, struct gd_value *hidden, struct gd_value *head,
                  const struct gd_objective_inputs *inputs, struct gd_objective_outputs *outputs)
{
    outputs->logprob = gd_matmul(g, hidden, false, inputs->score, true, 1.0, NULL, GD_F32);
    outputs->loss = gd_segment_loss(g, outputs->logprob, NULL, inputs->segment_loss);
}

const struct gd_objective gd_objective_reward = {
    .name = "reward",
    .paper = "Bradley & Terry 1952; Ouyang et al. 2022",
    .scores = true,
    .pairs = true,
    .build = build,
};
