/* decoder_parts.c - the parts of a decoder's layers. */
#include "engine/model/parts.h"

static const struct gd_part linears[GD_LINEAR_COUNT] = {
    [GD_LINEAR_QKV] = {GD_EXTENT_QKV, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(qkv),
                       GD_PART_BIAS(qkv_bias, qkv_bias), GD_PART_IF(fused_qkv)},
    [GD_LINEAR_Q] = {GD_EXTENT_QUERY, GD_EXTENT_WIDTH, GD_ROWS_QUERY, GD_PART_WEIGHT(q), GD_PART_BIAS(q_bias, qkv_bias),
                     GD_PART_UNLESS(fused_qkv)},
    [GD_LINEAR_K] = {GD_EXTENT_KV, GD_EXTENT_WIDTH, GD_ROWS_KEY, GD_PART_WEIGHT(k), GD_PART_BIAS(k_bias, qkv_bias),
                     GD_PART_UNLESS(fused_qkv)},
    [GD_LINEAR_V] = {GD_EXTENT_KV, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(v), GD_PART_BIAS(v_bias, qkv_bias),
                     GD_PART_UNLESS(fused_qkv)},
    [GD_LINEAR_O] = {GD_EXTENT_WIDTH, GD_EXTENT_QUERY, GD_ROWS_PLAIN, GD_PART_WEIGHT(o), GD_PART_BIAS(o_bias, o_bias)},
    [GD_LINEAR_GATE_UP] = {GD_EXTENT_FFN_TWICE, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(gate_up),
                           GD_PART_IF(fused_mlp)},
    [GD_LINEAR_GATE] = {GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(gate),
                        GD_PART_BIAS(gate_bias, mlp_bias), GD_PART_IF(gated), GD_PART_UNLESS(fused_mlp)},
    [GD_LINEAR_UP] = {GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(up), GD_PART_BIAS(up_bias, mlp_bias),
                      GD_PART_UNLESS(fused_mlp)},
    [GD_LINEAR_DOWN] = {GD_EXTENT_WIDTH, GD_EXTENT_FFN, GD_ROWS_PLAIN, GD_PART_WEIGHT(down),
                        GD_PART_BIAS(down_bias, mlp_bias)},
};

static const struct gd_part expert_linears[GD_LINEAR_COUNT] = {
    [GD_LINEAR_Q] = {GD_EXTENT_QUERY, GD_EXTENT_WIDTH, GD_ROWS_QUERY, GD_PART_WEIGHT(q)},
    [GD_LINEAR_K] = {GD_EXTENT_KV, GD_EXTENT_WIDTH, GD_ROWS_KEY, GD_PART_WEIGHT(k)},
    [GD_LINEAR_V] = {GD_EXTENT_KV, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(v)},
    [GD_LINEAR_O] = {GD_EXTENT_WIDTH, GD_EXTENT_QUERY, GD_ROWS_PLAIN, GD_PART_WEIGHT(o)},
    [GD_LINEAR_ROUTER] = {GD_EXTENT_EXPERTS, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(router)},
    [GD_LINEAR_EXPERT_GATE] = {GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(expert_gate), GD_PART_COPIES(experts)},
    [GD_LINEAR_EXPERT_UP] = {GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_PART_WEIGHT(expert_up), GD_PART_COPIES(experts)},
    [GD_LINEAR_EXPERT_DOWN] = {GD_EXTENT_WIDTH, GD_EXTENT_FFN, GD_ROWS_PLAIN, GD_PART_WEIGHT(expert_down), GD_PART_COPIES(experts)},
};

static const struct gd_part norms[GD_NORM_COUNT] = {
    [GD_NORM_INPUT] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_PART_WEIGHT(input_norm),
                       GD_PART_BIAS(input_norm_bias, layer_norm)},
    [GD_NORM_Q] = {GD_EXTENT_HEAD, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_PART_WEIGHT(q_norm), GD_PART_IF(qk_norm)},
    [GD_NORM_K] = {GD_EXTENT_HEAD, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_PART_WEIGHT(k_norm), GD_PART_IF(qk_norm)},
    [GD_NORM_ATTENTION_OUT] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_PART_WEIGHT(attention_out_norm),
                               GD_PART_IF(output_norms)},
    [GD_NORM_POST] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_PART_WEIGHT(post_norm),
                      GD_PART_BIAS(post_norm_bias, layer_norm)},
    [GD_NORM_MLP_OUT] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_PART_WEIGHT(mlp_out_norm), GD_PART_IF(output_norms)},
};

static const struct gd_part outer[GD_OUTER_COUNT] = {
    [GD_OUTER_EMBED] = {GD_EXTENT_VOCAB, GD_EXTENT_EMBED, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(embed)},
    [GD_OUTER_POSITIONS] = {GD_EXTENT_POSITIONS, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(positions),
                            GD_PART_IF(learned_positions)},
    [GD_OUTER_NORM] = {GD_EXTENT_WIDTH, GD_EXTENT_NONE, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(final_norm),
                       GD_OUTER_BIAS(final_norm_bias, layer_norm), GD_PART_UNLESS(norm_after)},
    [GD_OUTER_LABELS] = {GD_EXTENT_LABELS, GD_EXTENT_EMBED, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(label_head), GD_PART_IF(classifies)},
    [GD_OUTER_HEAD] = {GD_EXTENT_VOCAB, GD_EXTENT_EMBED, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(head), GD_PART_UNLESS(tied)},
    [GD_OUTER_PROJECT_IN] = {GD_EXTENT_WIDTH, GD_EXTENT_EMBED, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(project_in), GD_PART_IF(projects)},
    [GD_OUTER_PROJECT_OUT] = {GD_EXTENT_EMBED, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, GD_OUTER_WEIGHT(project_out), GD_PART_IF(projects)},
};

static const struct gd_class classes[] = {
    {"ForCausalLM", GD_HEAD_VOCABULARY}, {"ForSequenceClassification", GD_HEAD_LABELS}, {NULL, GD_HEAD_NONE}};

const struct gd_body gd_body_decoder = {
    .linears = linears,
    .norms = norms,
    .linear_count = GD_LINEAR_COUNT,
    .norm_count = GD_NORM_COUNT,
    .outer = outer,
    .classes = classes,
    .hidden = gd_decoder_hidden,
};

const struct gd_body gd_body_experts = {
    .linears = expert_linears,
    .norms = norms,
    .linear_count = GD_LINEAR_COUNT,
    .norm_count = GD_NORM_COUNT,
    .outer = outer,
    .classes = classes,
    .hidden = gd_decoder_hidden,
};
