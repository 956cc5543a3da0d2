/* parts.c - the table of a decoder layer's tensors. */
#include "engine/model/parts.h"

#define WEIGHT(field) .weight = offsetof(struct gd_model_layer, field)
#define BIAS(field, flag)                                                                                              \
    .bias = offsetof(struct gd_model_layer, field), .has_bias = offsetof(struct gd_model_config, flag)
#define UNLESS(flag) .lacks = offsetof(struct gd_model_config, flag)
#define PRESENT(flag) .has = offsetof(struct gd_model_config, flag)

const struct gd_part gd_linear_parts[GD_LINEAR_COUNT] = {
    [GD_LINEAR_QKV] = {"self_attn.qkv_proj", "attn_qkv", GD_EXTENT_QKV, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, WEIGHT(qkv),
                       PRESENT(fused)},
    [GD_LINEAR_Q] = {"self_attn.q_proj", "attn_q", GD_EXTENT_QUERY, GD_EXTENT_WIDTH, GD_ROWS_QUERY, WEIGHT(q),
                     BIAS(q_bias, qkv_bias), UNLESS(fused)},
    [GD_LINEAR_K] = {"self_attn.k_proj", "attn_k", GD_EXTENT_KV, GD_EXTENT_WIDTH, GD_ROWS_KEY, WEIGHT(k),
                     BIAS(k_bias, qkv_bias), UNLESS(fused)},
    [GD_LINEAR_V] = {"self_attn.v_proj", "attn_v", GD_EXTENT_KV, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, WEIGHT(v),
                     BIAS(v_bias, qkv_bias), UNLESS(fused)},
    [GD_LINEAR_O] = {"self_attn.o_proj", "attn_output", GD_EXTENT_WIDTH, GD_EXTENT_QUERY, GD_ROWS_PLAIN, WEIGHT(o),
                     BIAS(o_bias, o_bias)},
    [GD_LINEAR_GATE_UP] = {"mlp.gate_up_proj", "ffn_up", GD_EXTENT_FFN_TWICE, GD_EXTENT_WIDTH, GD_ROWS_PLAIN,
                           WEIGHT(gate_up), PRESENT(fused)},
    [GD_LINEAR_GATE] = {"mlp.gate_proj", "ffn_gate", GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, WEIGHT(gate),
                        BIAS(gate_bias, mlp_bias), UNLESS(fused)},
    [GD_LINEAR_UP] = {"mlp.up_proj", "ffn_up", GD_EXTENT_FFN, GD_EXTENT_WIDTH, GD_ROWS_PLAIN, WEIGHT(up),
                      BIAS(up_bias, mlp_bias), UNLESS(fused)},
    [GD_LINEAR_DOWN] = {"mlp.down_proj", "ffn_down", GD_EXTENT_WIDTH, GD_EXTENT_FFN, GD_ROWS_PLAIN, WEIGHT(down),
                        BIAS(down_bias, mlp_bias)},
};

const struct gd_part gd_norm_parts[GD_NORM_COUNT] = {
    [GD_NORM_INPUT] = {"input_layernorm", "attn_norm", GD_EXTENT_WIDTH, GD_EXTENT_WIDTH, GD_ROWS_PLAIN,
                       WEIGHT(input_norm)},
    [GD_NORM_Q] = {"self_attn.q_norm", "attn_q_norm", GD_EXTENT_HEAD, GD_EXTENT_HEAD, GD_ROWS_PLAIN, WEIGHT(q_norm),
                   PRESENT(qk_norm)},
    [GD_NORM_K] = {"self_attn.k_norm", "attn_k_norm", GD_EXTENT_HEAD, GD_EXTENT_HEAD, GD_ROWS_PLAIN, WEIGHT(k_norm),
                   PRESENT(qk_norm)},
    [GD_NORM_POST] = {"post_attention_layernorm", "ffn_norm", GD_EXTENT_WIDTH, GD_EXTENT_WIDTH, GD_ROWS_PLAIN,
                      WEIGHT(post_norm)},
};

int gd_extent_size(const struct gd_model_config *config, enum gd_extent extent)
{
    switch (extent) {
    case GD_EXTENT_WIDTH:
        return config->width;
    case GD_EXTENT_FFN:
        return config->ffn_width;
    case GD_EXTENT_QUERY:
        return config->heads * config->head_dim;
    case GD_EXTENT_KV:
        return config->kv_heads * config->head_dim;
    case GD_EXTENT_HEAD:
        return config->head_dim;
    case GD_EXTENT_QKV:
        return (config->heads + 2 * config->kv_heads) * config->head_dim;
    case GD_EXTENT_FFN_TWICE:
        return 2 * config->ffn_width;
    }
    return 0;
}

static bool flag_at(const struct gd_model_config *config, size_t offset)
{
    return *(const bool *)((const char *)config + offset);
}

bool gd_part_present(const struct gd_model_config *config, const struct gd_part *part)
{
    return (part->has == 0 || flag_at(config, part->has)) && (part->lacks == 0 || !flag_at(config, part->lacks));
}

static int present_before(const struct gd_model_config *config, const struct gd_part *parts, int end)
{
    int count = 0;
    for (int i = 0; i < end; i++)
        count += gd_part_present(config, &parts[i]);
    return count;
}

int gd_linears_before(const struct gd_model_config *config, int linear)
{
    return present_before(config, gd_linear_parts, linear);
}

int gd_norms_before(const struct gd_model_config *config, int norm)
{
    return present_before(config, gd_norm_parts, norm);
}

bool gd_part_has_bias(const struct gd_model_config *config, const struct gd_part *part)
{
    return part->has_bias != 0 && flag_at(config, part->has_bias);
}

struct gd_weight **gd_part_weight(struct gd_model_layer *layer, const struct gd_part *part)
{
    return (struct gd_weight **)((char *)layer + part->weight);
}

struct gd_weight **gd_part_bias(struct gd_model_layer *layer, const struct gd_part *part)
{
    return (struct gd_weight **)((char *)layer + part->bias);
}
