/*
 * config_hf.c - config.json of a Hugging Face folder. Absent fields mean their family's default, as in transformers:
 * published files leave them out. Absent and null differ where transformers lets them differ.
 */
#include "engine/model/config.h"
#include "engine/model/text.h"
#include <math.h>
#include <stdio.h>

#define PATH "config.json"

/* For fields where null is a value of its own. */
static bool is_null(const cJSON *json, const char *key)
{
    const cJSON *value = gd_json_find(json, key);
    return value != NULL && cJSON_IsNull(value);
}

static bool get_int(const cJSON *json, const char *key, int missing, int64_t max, int *out, struct gd_error *err)
{
    int64_t value = missing;
    if (!gd_json_get_int(json, PATH, key, false, 1, max, &value, err))
        return false;
    *out = (int)value;
    return true;
}

static bool refuse_value(const char *key, const char *value, const char *supported, struct gd_error *err)
{
    char param[96];
    snprintf(param, sizeof param, PATH ".%s", key);
    return gd_fail_param(err, GD_UNSUPPORTED, param, "%s \"%s\" is not supported; supported is %s", param,
                         gd_show_text(value).text, supported);
}

static bool read_class(const cJSON *json, const struct gd_family *family, struct gd_error *err)
{
    const cJSON *classes = NULL;
    if (!gd_json_get_array(json, PATH, "architectures", false, &classes, err))
        return false;
    for (const cJSON *each = classes != NULL ? classes->child : NULL; each != NULL; each = each->next)
        if (!cJSON_IsString(each) || strcmp(each->valuestring, family->class_name) != 0)
            return refuse_value("architectures", cJSON_IsString(each) ? each->valuestring : "(not a string)",
                                family->class_name, err);
    if (gd_json_find(json, "quantization_config") != NULL && !is_null(json, "quantization_config"))
        return gd_fail_param(err, GD_UNSUPPORTED, PATH ".quantization_config",
                             PATH ".quantization_config: quantised safetensors are not supported; use the original "
                                  "weights or a GGUF file");
    return true;
}

static bool read_sizes(struct gd_model_config *config, const cJSON *json, const struct gd_family *family,
                       struct gd_error *err)
{
    int kv_missing = family->kv_heads;
    if (!get_int(json, "hidden_size", family->width, GD_WIDTH_MAX, &config->width, err) ||
        !get_int(json, "num_hidden_layers", family->layers, GD_LAYERS_MAX, &config->layers, err) ||
        !get_int(json, "num_attention_heads", family->heads, GD_HEADS_MAX, &config->heads, err) ||
        !get_int(json, "intermediate_size", family->ffn_width, GD_FFN_WIDTH_MAX, &config->ffn_width, err) ||
        !get_int(json, "vocab_size", family->vocab, GD_TOKENIZER_VOCAB_MAX, &config->vocab, err) ||
        !get_int(json, "max_position_embeddings", family->context, GD_CONTEXT_MAX, &config->context, err))
        return false;
    if (kv_missing == 0 || is_null(json, "num_key_value_heads"))
        kv_missing = config->heads;
    if (!get_int(json, "num_key_value_heads", kv_missing, GD_HEADS_MAX, &config->kv_heads, err) ||
        !get_int(json, "head_dim", is_null(json, "head_dim") ? 0 : family->head_dim, GD_HEAD_DIM_MAX, &config->head_dim, err))
        return false;
    if (config->head_dim == 0) {
        if (config->width % config->heads != 0)
            return gd_fail_param(err, GD_BAD_MODEL, PATH ".num_attention_heads",
                                 PATH
                                 ".num_attention_heads %d is not a divisor of hidden_size %d, and there is no head_dim",
                                 config->heads, config->width);
        config->head_dim = config->width / config->heads;
    }
    return true;
}

/* transformers makes biases of it; no published model has them. */
static bool refuse_biases(const cJSON *json, const struct gd_family *family, struct gd_error *err)
{
    bool biases = false;
    if (!gd_json_get_bool(json, PATH, "attention_bias", false, &biases, err))
        return false;
    if (biases)
        return gd_fail_param(err, GD_UNSUPPORTED, PATH ".attention_bias",
                             PATH ".attention_bias true is not supported for %s; false is", family->model_type);
    return true;
}

static bool read_flags(struct gd_model_config *config, const cJSON *json, const struct gd_family *family,
                       struct gd_error *err)
{
    const char *activation = "silu";
    config->norm_eps = family->fused ? 1e-5 : 1e-6;
    config->qkv_bias = family->qkv_bias;
    config->qk_norm = family->qk_norm;
    config->fused = family->fused;
    if (!gd_json_get_number(json, PATH, "rms_norm_eps", false, 1e-12, 1, &config->norm_eps, err) ||
        !gd_json_get_bool(json, PATH, "tie_word_embeddings", false, &config->tied, err) ||
        !gd_json_get_string(json, PATH, "hidden_act", false, 1, 64, &activation, err))
        return false;
    if (strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0)
        return refuse_value("hidden_act", activation, "silu", err);
    if (family->bias_options) {
        if (!gd_json_get_bool(json, PATH, "attention_bias", false, &config->qkv_bias, err) ||
            !gd_json_get_bool(json, PATH, "mlp_bias", false, &config->mlp_bias, err))
            return false;
        config->o_bias = config->qkv_bias;
    }
    if (family->qk_norm && !refuse_biases(json, family, err))
        return false;
    return true;
}

/* layer_types overrides max_window_layers; what the graph can do is full layers first, sliding ones after them. */
static bool read_layer_types(struct gd_model_config *config, const cJSON *json, struct gd_error *err)
{
    const cJSON *types = NULL;
    if (!gd_json_get_array(json, PATH, "layer_types", false, &types, err))
        return false;
    if (types == NULL)
        return true;
    int layer = 0, from = config->layers;
    for (const cJSON *each = types->child; each != NULL; each = each->next, layer++) {
        bool sliding = cJSON_IsString(each) && strcmp(each->valuestring, "sliding_attention") == 0;
        if (!sliding && !(cJSON_IsString(each) && strcmp(each->valuestring, "full_attention") == 0))
            return refuse_value("layer_types", cJSON_IsString(each) ? each->valuestring : "(not a string)",
                                "full_attention and sliding_attention", err);
        if (sliding && layer < from)
            from = layer;
        if (!sliding && layer > from)
            return gd_fail_param(err, GD_UNSUPPORTED, PATH ".layer_types",
                                 PATH ".layer_types[%d]: a full_attention layer after a sliding_attention layer is not "
                                      "supported",
                                 layer);
    }
    if (layer != config->layers)
        return gd_fail_param(err, GD_BAD_MODEL, PATH ".layer_types",
                             PATH ".layer_types has %d entries, num_hidden_layers is %d", layer, config->layers);
    config->sliding_from_layer = from;
    return true;
}

static bool read_window(struct gd_model_config *config, const cJSON *json, const struct gd_family *family,
                        struct gd_error *err)
{
    bool use = true;
    int64_t window = is_null(json, "sliding_window") ? 0 : family->sliding_window, from = 0;
    if (family->sliding_window < 0)
        return true;
    if (family->window_option) {
        use = false;
        from = 28;
        if (!gd_json_get_bool(json, PATH, "use_sliding_window", false, &use, err) ||
            !gd_json_get_int(json, PATH, "max_window_layers", false, 0, INT32_MAX, &from, err))
            return false;
    }
    if (!gd_json_get_int(json, PATH, "sliding_window", false, 1, GD_CONTEXT_MAX, &window, err))
        return false;
    config->sliding_from_layer = (int)from;
    if (family->window_option && !read_layer_types(config, json, err))
        return false;
    if (!use || window == 0 || config->sliding_from_layer >= config->layers) {
        config->sliding_from_layer = 0;
        return true;
    }
    config->sliding_window = (int)window;
    return true;
}

struct rope_name {
    const char *name;
    enum gd_rope_kind kind;
};
static const struct rope_name rope_names[] = {
    {"default", GD_ROPE_DEFAULT}, {"linear", GD_ROPE_LINEAR}, {"dynamic", GD_ROPE_DYNAMIC},
    {"llama3", GD_ROPE_LLAMA3},   {"yarn", GD_ROPE_YARN},
};

static bool read_scaling_kind(struct gd_rope_scaling *scaling, const cJSON *json, const char *path,
                              struct gd_error *err)
{
    const char *kind = "default";
    if (!gd_json_get_string(json, path, "type", false, 1, 64, &kind, err) ||
        !gd_json_get_string(json, path, "rope_type", false, 1, 64, &kind, err))
        return false;
    for (size_t i = 0; i < GD_COUNT(rope_names); i++)
        if (strcmp(kind, rope_names[i].name) == 0) {
            scaling->kind = rope_names[i].kind;
            return true;
        }
    return gd_fail_param(err, GD_UNSUPPORTED, path,
                         "%s.rope_type \"%s\" is not supported; supported are default, linear, dynamic, llama3, yarn",
                         path, gd_show_text(kind).text);
}

static bool read_yarn(struct gd_rope_scaling *scaling, const cJSON *json, const char *path, double context,
                      struct gd_error *err)
{
    scaling->factor = context / scaling->original_context; /* what an absent factor means */
    return gd_json_get_number(json, path, "factor", false, 1, 1e6, &scaling->factor, err) &&
           gd_json_get_number(json, path, "beta_fast", false, 1e-3, 1e6, &scaling->beta_fast, err) &&
           gd_json_get_number(json, path, "beta_slow", false, 1e-3, 1e6, &scaling->beta_slow, err) &&
           gd_json_get_number(json, path, "attention_factor", false, 1e-3, 1e3, &scaling->attention_factor, err) &&
           gd_json_get_number(json, path, "mscale", false, 0, 1e3, &scaling->mscale, err) &&
           gd_json_get_number(json, path, "mscale_all_dim", false, 0, 1e3, &scaling->mscale_all_dim, err) &&
           gd_json_get_bool(json, path, "truncate", false, &scaling->truncate, err);
}

static bool read_llama3(struct gd_rope_scaling *scaling, const cJSON *json, const char *path, struct gd_error *err)
{
    if (!gd_json_get_number(json, path, "factor", true, 1, 1e6, &scaling->factor, err) ||
        !gd_json_get_number(json, path, "low_freq_factor", false, 1e-3, 1e6, &scaling->low_freq_factor, err) ||
        !gd_json_get_number(json, path, "high_freq_factor", false, 1e-3, 1e6, &scaling->high_freq_factor, err))
        return false;
    if (scaling->high_freq_factor <= scaling->low_freq_factor)
        return gd_fail_param(err, GD_BAD_MODEL, path, "%s.high_freq_factor %g is not above low_freq_factor %g", path,
                             scaling->high_freq_factor, scaling->low_freq_factor);
    return true;
}

static bool read_scaling(struct gd_rope_scaling *scaling, const struct gd_model_config *config, const cJSON *top,
                         const cJSON *json, const char *path, struct gd_error *err)
{
    for (const cJSON *each = json->child; each != NULL; each = each->next)
        if (cJSON_IsObject(each))
            return gd_fail_param(err, GD_UNSUPPORTED, path, "%s.%s: rope parameters by kind of layer are not supported",
                                 path, gd_show_text(each->string).text);
    scaling->original_context = config->context;
    if (!read_scaling_kind(scaling, json, path, err) ||
        !gd_json_get_number(json, path, "original_max_position_embeddings", false, 1, GD_CONTEXT_MAX,
                            &scaling->original_context, err) ||
        !gd_json_get_number(top, PATH, "original_max_position_embeddings", false, 1, GD_CONTEXT_MAX,
                            &scaling->original_context, err))
        return false;
    switch (scaling->kind) {
    case GD_ROPE_DEFAULT:
        return true;
    case GD_ROPE_LINEAR:
    case GD_ROPE_DYNAMIC:
        return gd_json_get_number(json, path, "factor", true, 1, 1e6, &scaling->factor, err);
    case GD_ROPE_LLAMA3:
        return read_llama3(scaling, json, path, err);
    case GD_ROPE_YARN:
        return read_yarn(scaling, json, path, config->context, err);
    }
    return false;
}

/* How much of a head is rotated: the factor at the top, or the one of rope_parameters. */
static bool read_rotary(struct gd_model_config *config, const cJSON *json, const struct gd_family *family,
                        const cJSON *object, const char *path, struct gd_error *err)
{
    double partial = 1;
    if (!gd_json_get_number(json, PATH, "partial_rotary_factor", false, 0, 1, &partial, err) ||
        (object != NULL && !gd_json_get_number(object, path, "partial_rotary_factor", false, 0, 1, &partial, err)))
        return false;
    if (partial != 1 && !family->partial_rotary)
        return gd_fail_param(err, GD_UNSUPPORTED, PATH ".partial_rotary_factor",
                             PATH ".partial_rotary_factor %g is not supported for %s; 1 is", partial,
                             family->model_type);
    config->rotary_dim = (int)(config->head_dim * partial);
    if (partial != 1 && (config->rotary_dim < 2 || config->rotary_dim % 2 != 0))
        return gd_fail_param(err, GD_BAD_MODEL, PATH ".partial_rotary_factor",
                             PATH ".partial_rotary_factor %g rotates %d of a head's %d dimensions; an even number of them is "
                                  "wanted", partial, config->rotary_dim, config->head_dim);
    return true;
}

/* Old files: rope_theta and rope_scaling; newer ones: rope_parameters with both. */
static bool read_rope(struct gd_model_config *config, struct gd_rope_scaling *scaling, const cJSON *json,
                      const struct gd_family *family, struct gd_error *err)
{
    const cJSON *object = NULL, *parameters = NULL;
    const char *path = PATH ".rope_scaling";
    config->rope_theta = 10000;
    *scaling = gd_rope_scaling_default();
    if (!gd_json_get_number(json, PATH, "rope_theta", false, 2, 1e15, &config->rope_theta, err) ||
        !gd_json_get_object(json, PATH, "rope_scaling", false, &object, err) ||
        !gd_json_get_object(json, PATH, "rope_parameters", false, &parameters, err))
        return false;
    if (object == NULL || object->child == NULL) {
        object = parameters;
        path = PATH ".rope_parameters";
    }
    if (!read_rotary(config, json, family, object, path, err))
        return false;
    if (object == NULL)
        return true;
    return read_scaling(scaling, config, json, object, path, err) &&
           gd_json_get_number(object, path, "rope_theta", false, 2, 1e15, &config->rope_theta, err);
}

/* An id or a list of ids; absent and null leave things as they are. */
static bool read_eos(struct gd_model_config *config, const cJSON *json, const char *path, struct gd_error *err)
{
    char field[96];
    snprintf(field, sizeof field, "%s.eos_token_id", path);
    const cJSON *value = gd_json_find(json, "eos_token_id");
    if (value == NULL || cJSON_IsNull(value))
        return true;
    config->eos_count = 0;
    for (const cJSON *each = cJSON_IsArray(value) ? value->child : value; each != NULL; each = each->next) {
        if (!cJSON_IsNumber(each) || each->valuedouble != floor(each->valuedouble) || fabs(each->valuedouble) > 1e9)
            return gd_fail_param(err, GD_BAD_MODEL, field, "%s is neither an id nor a list of ids", field);
        if (!gd_model_config_add_eos(config, (int64_t)each->valuedouble, field, err))
            return false;
        if (!cJSON_IsArray(value))
            break;
    }
    return true;
}

static bool read_ids(struct gd_model_config *config, const cJSON *json, const cJSON *generation,
                     const struct gd_family *family, struct gd_error *err)
{
    int64_t bos = is_null(json, "bos_token_id") || family->bos_id >= config->vocab ? -1 : family->bos_id;
    if (!gd_json_get_int(json, PATH, "bos_token_id", false, 0, config->vocab - 1, &bos, err))
        return false;
    config->bos_id = (int32_t)bos;
    if (gd_json_find(json, "eos_token_id") == NULL && family->eos_id >= 0 && family->eos_id < config->vocab)
        config->eos_ids[config->eos_count++] = family->eos_id;
    return read_eos(config, json, PATH, err) &&
           (generation == NULL || read_eos(config, generation, "generation_config.json", err));
}

static bool read_all(struct gd_model_config *config, const cJSON *json, const cJSON *generation, struct gd_error *err)
{
    static const struct gd_model_config_names names = {PATH ".num_attention_heads", PATH ".num_key_value_heads",
                                                       PATH ".head_dim", PATH ".rope_theta"};
    const char *model_type = NULL;
    const struct gd_family *family = NULL;
    struct gd_rope_scaling scaling;
    if (!cJSON_IsObject(json) || (generation != NULL && !cJSON_IsObject(generation)))
        return gd_fail(err, GD_BAD_MODEL, "%s is not a JSON object",
                       cJSON_IsObject(json) ? "generation_config.json" : PATH);
    if (!gd_json_get_string(json, PATH, "model_type", true, 1, 64, &model_type, err) ||
        !gd_family_find(&family, model_type, err))
        return false;
    snprintf(config->architecture, sizeof config->architecture, "%s", family->model_type);
    return read_class(json, family, err) && read_sizes(config, json, family, err) &&
           read_flags(config, json, family, err) && read_window(config, json, family, err) &&
           read_rope(config, &scaling, json, family, err) && read_ids(config, json, generation, family, err) &&
           gd_model_config_finish(config, &scaling, &names, err);
}

bool gd_model_config_from_json(struct gd_model_config *config, const cJSON *json, const cJSON *generation,
                               struct gd_error *err)
{
    memset(config, 0, sizeof *config);
    if (read_all(config, json, generation, err))
        return true;
    gd_model_config_release(config);
    return gd_bad_model(err);
}
