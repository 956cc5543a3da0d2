/*
 * config_hf.c - config.json of a Hugging Face folder: what families share. Absent fields mean their family's default, as in
 * transformers: published files leave them out. Absent and null differ where transformers lets them differ.
 */
#include "engine/model/config_read.h"
#include "engine/model/text.h"
#include <math.h>
#include <stdio.h>

#define PATH GD_CONFIG_PATH

const struct gd_size_fields gd_size_fields_llama = {
    .width = "hidden_size",
    .layers = "num_hidden_layers",
    .heads = "num_attention_heads",
    .kv_heads = "num_key_value_heads",
    .head_dim = "head_dim",
    .ffn_width = "intermediate_size",
    .vocab = "vocab_size",
    .context = "max_position_embeddings",
    .norm_eps = "rms_norm_eps",
    .theta = "rope_theta",
    .partial_rotary = "partial_rotary_factor",
};

static bool refuse_quantised(const struct gd_config_reader *r)
{
    if (gd_json_find(r->json, "quantization_config") != NULL && !gd_config_is_null(r->json, "quantization_config"))
        return gd_fail_param(r->err, GD_UNSUPPORTED, PATH ".quantization_config",
                             PATH ".quantization_config: quantised safetensors are not supported; use the original "
                                  "weights or a GGUF file");
    return true;
}

static bool read_heads(const struct gd_config_reader *r)
{
    const struct gd_size_fields *fields = r->family->fields;
    struct gd_model_config *config = r->config;
    if (fields->kv_heads == NULL || config->kv_heads == 0 || gd_config_is_null(r->json, fields->kv_heads))
        config->kv_heads = config->heads;
    if (fields->head_dim != NULL && gd_config_is_null(r->json, fields->head_dim))
        config->head_dim = 0;
    if (!gd_config_read_int(r, fields->kv_heads, GD_HEADS_MAX, &config->kv_heads) ||
        !gd_config_read_int(r, fields->head_dim, GD_HEAD_DIM_MAX, &config->head_dim))
        return false;
    if (config->head_dim != 0)
        return true;
    if (config->width % config->heads != 0)
        return gd_fail_param(r->err, GD_BAD_MODEL, PATH ".num_attention_heads", PATH ".%s %d is not a divisor of %s %d, and there is "
                             "no head_dim", fields->heads, config->heads, fields->width, config->width);
    config->head_dim = config->width / config->heads;
    return true;
}

static bool read_sizes(const struct gd_config_reader *r)
{
    const struct gd_size_fields *fields = r->family->fields;
    struct gd_model_config *config = r->config;
    return gd_config_read_int(r, fields->width, GD_WIDTH_MAX, &config->width) &&
           gd_config_read_int(r, fields->layers, GD_LAYERS_MAX, &config->layers) &&
           gd_config_read_int(r, fields->heads, GD_HEADS_MAX, &config->heads) &&
           gd_config_read_int(r, fields->ffn_width, GD_FFN_WIDTH_MAX, &config->ffn_width) &&
           gd_config_read_int(r, fields->vocab, GD_TOKENIZER_VOCAB_MAX, &config->vocab) &&
           gd_config_read_int(r, fields->context, GD_CONTEXT_MAX, &config->context) &&
           (fields->norm_eps == NULL || gd_config_read_number(r, fields->norm_eps, 1e-12, 1, &config->norm_eps)) &&
           (config->classifies || gd_config_read_bool(r, "tie_word_embeddings", &config->tied)) && read_heads(r);
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

/* Defaults that the vocabulary is too small for, and an explicit null, mean none. whole: config.json, of which r->json may be a part. */
static bool read_ids(const struct gd_config_reader *r, const cJSON *whole, const cJSON *generation)
{
    struct gd_model_config *config = r->config;
    const cJSON *json = r->json;
    int64_t bos = gd_config_is_null(json, "bos_token_id") || config->bos_id >= config->vocab ? -1 : config->bos_id;
    if (!gd_json_get_int(json, PATH, "bos_token_id", false, 0, config->vocab - 1, &bos, r->err))
        return false;
    config->bos_id = (int32_t)bos;
    if (gd_json_find(json, "eos_token_id") != NULL || (config->eos_count > 0 && config->eos_ids[0] >= config->vocab))
        config->eos_count = 0;
    return read_eos(config, json, PATH, r->err) && (whole == json || read_eos(config, whole, PATH, r->err)) &&
           (generation == NULL || read_eos(config, generation, "generation_config.json", r->err));
}

/* The part of config.json that describes the language model becomes the reader's. */
static bool enter_nested(struct gd_config_reader *r)
{
    const char *model_type = NULL;
    char path[64];
    if (r->family->nested == NULL)
        return true;
    snprintf(path, sizeof path, PATH ".%s", r->family->nested);
    if (!gd_json_get_object(r->json, PATH, r->family->nested, true, &r->json, r->err) ||
        !gd_json_get_string(r->json, path, "model_type", false, 1, 64, &model_type, r->err))
        return false;
    char own[64];
    snprintf(own, sizeof own, "%s_text", r->family->model_type);
    return model_type == NULL || strcmp(model_type, own) == 0 ||
           gd_fail_param(r->err, GD_UNSUPPORTED, path, "%s.model_type \"%s\" is not supported for %s; %s is", path,
                         gd_show_text(model_type).text, r->family->model_type, own);
}

/* Of a nested description, what the whole says is so. */
static bool read_tied(const struct gd_config_reader *r, const cJSON *whole)
{
    return whole == r->json || r->config->classifies ||
           gd_json_get_bool(whole, PATH, "tie_word_embeddings", false, &r->config->tied, r->err);
}

static bool read_all(struct gd_model_config *config, const cJSON *json, const cJSON *generation, struct gd_error *err)
{
    static const struct gd_model_config_names names = {PATH ".num_attention_heads", PATH ".num_key_value_heads",
                                                       PATH ".head_dim", PATH ".rope_theta"};
    const char *model_type = NULL;
    struct gd_config_reader r = {config, NULL, json, err};
    struct gd_config_ropes ropes = {0};
    if (!cJSON_IsObject(json) || (generation != NULL && !cJSON_IsObject(generation)))
        return gd_fail(err, GD_BAD_MODEL, "%s is not a JSON object",
                       cJSON_IsObject(json) ? "generation_config.json" : PATH);
    if (!gd_json_get_string(json, PATH, "model_type", true, 1, 64, &model_type, err) ||
        !gd_family_find(&r.family, model_type, err))
        return false;
    gd_model_config_begin(config, r.family);
    if (!gd_config_read_class(&r) || !refuse_quantised(&r) || !enter_nested(&r))
        return false;
    if (refuse_quantised(&r) && read_sizes(&r) && read_tied(&r, json) && (r.family->read_hf == NULL || r.family->read_hf(&r)) &&
        gd_config_read_rope(&r, &ropes) && read_ids(&r, json, generation) && gd_model_config_finish(config, ropes.table, &names, err))
        return true;
    if (r.family->nested != NULL)
        gd_error_context(err, "%s", r.family->nested);
    return false;
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
