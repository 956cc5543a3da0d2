/*
 * mixtral.c - Mixtral (Jiang et al. 2024): Mistral with a router and experts in each layer. A layer's output is the sum of the
 * num_experts_per_tok experts that the router likes most, weighed by the softmax over these. Its GGUF files call themselves
 * Llama, and hold a layer's experts as one tensor, old ones as one each; its folders the other way round: those that newer
 * transformers writes in its own layout hold them as one.
 */
#include "engine/model/config_read.h"

static const struct gd_names names = {
    .base = "model",
    .layers = "model.layers",
    .outer = {
        [GD_OUTER_EMBED] = {"model.embed_tokens", "token_embd"},
        [GD_OUTER_NORM] = {"model.norm", "output_norm"},
        [GD_OUTER_HEAD] = {"lm_head", "output"},
    },
    .attention = "self_attn",
    .mlp = "mlp", /* as newer transformers call it */
    .linears = {
        [GD_LINEAR_Q] = {"self_attn.q_proj", "attn_q"},
        [GD_LINEAR_K] = {"self_attn.k_proj", "attn_k"},
        [GD_LINEAR_V] = {"self_attn.v_proj", "attn_v"},
        [GD_LINEAR_O] = {"self_attn.o_proj", "attn_output"},
        [GD_LINEAR_ROUTER] = {"block_sparse_moe.gate", "ffn_gate_inp", "mlp.gate"},
        [GD_LINEAR_EXPERT_GATE] = {"block_sparse_moe.experts.*.w1", "ffn_gate_exps", .stacked = "mlp.experts.gate_up_proj", .share = 0,
                                   .shares = 2, .gguf_apart = "ffn_gate.*"},
        [GD_LINEAR_EXPERT_UP] = {"block_sparse_moe.experts.*.w3", "ffn_up_exps", .stacked = "mlp.experts.gate_up_proj", .share = 1,
                                 .shares = 2, .gguf_apart = "ffn_up.*"},
        [GD_LINEAR_EXPERT_DOWN] = {"block_sparse_moe.experts.*.w2", "ffn_down_exps", .stacked = "mlp.experts.down_proj",
                                   .gguf_apart = "ffn_down.*"},
    },
    .norms = {
        [GD_NORM_INPUT] = {"input_layernorm", "attn_norm"},
        [GD_NORM_POST] = {"post_attention_layernorm", "ffn_norm"},
    },
};

static bool check_chosen(const struct gd_model_config *config, const char *chosen, const char *experts, struct gd_error *err)
{
    return config->experts_chosen <= config->experts ||
           gd_fail_param(err, GD_BAD_MODEL, chosen, "%s is %d, but %s is %d: a token cannot go to more experts than there are", chosen,
                         config->experts_chosen, experts, config->experts);
}

static bool read_hf(const struct gd_config_reader *r)
{
    double noise = 0;
    bool balanced = false;
    gd_config_slide_from(r->config, 0);
    if (!gd_config_read_activation(r, "hidden_act") || !gd_config_read_window(r) ||
        !gd_config_read_int(r, "num_local_experts", GD_EXPERTS_MAX, &r->config->experts) ||
        !gd_config_read_int(r, "num_experts_per_tok", GD_EXPERTS_MAX, &r->config->experts_chosen) ||
        !gd_config_read_number(r, "router_aux_loss_coef", 0, GD_ROUTER_LOSS_MAX, &r->config->router_loss_coefficient) ||
        !gd_config_read_number(r, "router_jitter_noise", 0, 1, &noise) || !gd_config_read_bool(r, "output_router_logits", &balanced))
        return false;
    if (!balanced)
        r->config->router_loss_coefficient = 0; /* transformers adds the loss only with the logits at hand */
    if (noise != 0)
        return gd_fail_param(r->err, GD_UNSUPPORTED, GD_CONFIG_PATH ".router_jitter_noise",
                             GD_CONFIG_PATH ".router_jitter_noise %g is not supported; 0 is", noise);
    return check_chosen(r->config, GD_CONFIG_PATH ".num_experts_per_tok", GD_CONFIG_PATH ".num_local_experts", r->err);
}

static bool read_gguf(struct gd_model_config *config, const struct gd_gguf *file, struct gd_error *err)
{
    config->router_loss_coefficient = 0; /* these files do not say */
    int64_t experts = 0, chosen = 0;
    if (!gd_gguf_get_int(file, "llama.expert_count", true, 1, GD_EXPERTS_MAX, &experts, err) ||
        !gd_gguf_get_int(file, "llama.expert_used_count", true, 1, GD_EXPERTS_MAX, &chosen, err))
        return false;
    config->experts = (int)experts;
    config->experts_chosen = (int)chosen;
    return check_chosen(config, "llama.expert_used_count", "llama.expert_count", err);
}

const struct gd_family gd_family_mixtral = {
    .model_type = "mixtral",
    .class_name = "MixtralForCausalLM",
    .gguf = "llama",
    .gguf_permuted = true,
    .body = &gd_body_experts,
    .names = &names,
    .fields = &gd_size_fields_llama,
    .read_hf = read_hf,
    .read_gguf = read_gguf,
    .defaults = {
        .vocab = 32000,
        .width = 4096,
        .ffn_width = 14336,
        .layers = 32,
        .heads = 32,
        .kv_heads = 8,
        .context = 131072,
        .norm_eps = 1e-5,
        .rope_theta = 1e6,
        .gated = true,
        .activation = GD_ACTIVATION_SILU,
        .experts = 8,
        .experts_chosen = 2,
        .router_loss_coefficient = 0.001,
        .bos_id = 1,
        .eos_ids = {2},
        .eos_count = 1,
    },
};
