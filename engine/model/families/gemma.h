/*
 * gemma.h - what the files of the Gemma families share.
 *
 * Why      Gemma 3 alone and Gemma 3 inside a model with eyes differ in where its config and tensors lie, and in nothing else.
 * Memory   Constants.
 * Threads  Any.
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_MODEL_FAMILIES_GEMMA_H
#define GD_MODEL_FAMILIES_GEMMA_H

#include "engine/model/config_read.h"

/* The names below a base, and what else files call the base. */
#define GD_GEMMA_NAMES(BASE, ALSO)                                                                                     \
    {                                                                                                                  \
        .base = BASE,                                                                                                  \
        .base_also = ALSO,                                                                                             \
        .layers = BASE ".layers",                                                                                      \
        .outer = {                                                                                                     \
            [GD_OUTER_EMBED] = {BASE ".embed_tokens", "token_embd"},                                                   \
            [GD_OUTER_NORM] = {BASE ".norm", "output_norm"},                                                           \
            [GD_OUTER_HEAD] = {"lm_head", "output"},                                                                   \
            [GD_OUTER_LABELS] = {"score"},                                                                             \
        },                                                                                                             \
        .attention = "self_attn",                                                                                      \
        .mlp = "mlp",                                                                                                  \
        .linears = {                                                                                                   \
            [GD_LINEAR_Q] = {"self_attn.q_proj", "attn_q"},                                                            \
            [GD_LINEAR_K] = {"self_attn.k_proj", "attn_k"},                                                            \
            [GD_LINEAR_V] = {"self_attn.v_proj", "attn_v"},                                                            \
            [GD_LINEAR_O] = {"self_attn.o_proj", "attn_output"},                                                       \
            [GD_LINEAR_GATE] = {"mlp.gate_proj", "ffn_gate"},                                                          \
            [GD_LINEAR_UP] = {"mlp.up_proj", "ffn_up"},                                                                \
            [GD_LINEAR_DOWN] = {"mlp.down_proj", "ffn_down"},                                                          \
        },                                                                                                             \
        .norms = {                                                                                                     \
            [GD_NORM_INPUT] = {"input_layernorm", "attn_norm"},                                                        \
            [GD_NORM_Q] = {"self_attn.q_norm", "attn_q_norm"},                                                         \
            [GD_NORM_K] = {"self_attn.k_norm", "attn_k_norm"},                                                         \
            [GD_NORM_ATTENTION_OUT] = {"post_attention_layernorm", "post_attention_norm"},                             \
            [GD_NORM_POST] = {"pre_feedforward_layernorm", "ffn_norm"},                                                \
            [GD_NORM_MLP_OUT] = {"post_feedforward_layernorm", "post_ffw_norm"},                                       \
        },                                                                                                             \
    }

/* Gemma 3, text: sizes and flags where its config says nothing. */
#define GD_GEMMA3_DEFAULTS                                                                                             \
    {                                                                                                                  \
        .vocab = 262208,                                                                                               \
        .width = 2304,                                                                                                 \
        .ffn_width = 9216,                                                                                             \
        .layers = 26,                                                                                                  \
        .heads = 8,                                                                                                    \
        .kv_heads = 4,                                                                                                 \
        .head_dim = 256,                                                                                               \
        .context = 131072,                                                                                             \
        .norm_eps = 1e-6,                                                                                              \
        .norm_offset = 1,                                                                                              \
        .output_norms = true,                                                                                          \
        .qk_norm = true,                                                                                               \
        .rope_theta = 1000000,                                                                                         \
        .local_rope = true,                                                                                            \
        .local_rope_theta = 10000,                                                                                     \
        .sliding_window = 4096,                                                                                        \
        .scaled_embed = true,                                                                                          \
        .tied = true,                                                                                                  \
        .gated = true,                                                                                                 \
        .activation = GD_ACTIVATION_GELU_NEW,                                                                          \
        .bos_id = 2,                                                                                                   \
        .eos_ids = {1},                                                                                                \
        .eos_count = 1,                                                                                                \
    }

GD_MUST_CHECK bool gd_gemma3_read(const struct gd_config_reader *r);

#endif
