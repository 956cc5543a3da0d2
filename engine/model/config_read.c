/* config_read.c - fields of config.json that several families have. */
#include "engine/model/config_read.h"
#include "engine/model/text.h"
#include <stdio.h>

#define PATH GD_CONFIG_PATH

bool gd_config_is_null(const cJSON *json, const char *key)
{
    const cJSON *value = gd_json_find(json, key);
    return value != NULL && cJSON_IsNull(value);
}

bool gd_config_read_int(const struct gd_config_reader *r, const char *key, int64_t max, int *out)
{
    int64_t value = *out;
    if (key != NULL && !gd_json_get_int(r->json, PATH, key, false, 1, max, &value, r->err))
        return false;
    *out = (int)value;
    return true;
}

bool gd_config_read_bool(const struct gd_config_reader *r, const char *key, bool *out)
{
    return gd_json_get_bool(r->json, PATH, key, false, out, r->err);
}

bool gd_config_read_number(const struct gd_config_reader *r, const char *key, double min, double max, double *out)
{
    return key == NULL || gd_json_get_number(r->json, PATH, key, false, min, max, out, r->err);
}

bool gd_config_refuse(const struct gd_config_reader *r, const char *key, const char *value, const char *supported)
{
    char param[96];
    snprintf(param, sizeof param, PATH ".%s", key);
    return gd_fail_param(r->err, GD_UNSUPPORTED, param, "%s \"%s\" is not supported; supported is %s", param,
                         gd_show_text(value).text, supported);
}

bool gd_config_refuse_flag(const struct gd_config_reader *r, const char *key)
{
    bool value = false;
    char param[96];
    if (!gd_config_read_bool(r, key, &value))
        return false;
    snprintf(param, sizeof param, PATH ".%s", key);
    return !value || gd_fail_param(r->err, GD_UNSUPPORTED, param, "%s true is not supported for %s; false is", param,
                                   r->family->model_type);
}

bool gd_config_read_activation(const struct gd_config_reader *r, const char *key)
{
    static const struct {
        const char *name;
        enum gd_activation kind;
    } names[] = {
        {"silu", GD_ACTIVATION_SILU},         {"swish", GD_ACTIVATION_SILU},
        {"gelu", GD_ACTIVATION_GELU},         {"gelu_new", GD_ACTIVATION_GELU_NEW},
        {"relu", GD_ACTIVATION_RELU},         {"gelu_pytorch_tanh", GD_ACTIVATION_GELU_NEW},
    };
    const char *name = NULL;
    if (!gd_json_get_string(r->json, PATH, key, false, 1, 64, &name, r->err))
        return false;
    for (size_t i = 0; name != NULL && i < GD_COUNT(names); i++)
        if (strcmp(name, names[i].name) == 0) {
            r->config->activation = names[i].kind;
            return true;
        }
    return name == NULL || gd_config_refuse(r, key, name, "silu, gelu, gelu_new, gelu_pytorch_tanh, relu");
}

bool gd_config_read_window(const struct gd_config_reader *r)
{
    if (gd_config_is_null(r->json, "sliding_window"))
        r->config->sliding_window = 0;
    return gd_config_read_int(r, "sliding_window", GD_CONTEXT_MAX, &r->config->sliding_window);
}

void gd_config_slide_from(struct gd_model_config *config, int first)
{
    for (int layer = 0; layer < config->layers; layer++)
        config->slides[layer] = layer >= first;
}

bool gd_config_read_layer_types(const struct gd_config_reader *r)
{
    const cJSON *types = NULL;
    int layer = 0;
    if (!gd_json_get_array(r->json, PATH, "layer_types", false, &types, r->err))
        return false;
    if (types == NULL)
        return true;
    for (const cJSON *each = types->child; each != NULL; each = each->next, layer++) {
        bool sliding = cJSON_IsString(each) && strcmp(each->valuestring, "sliding_attention") == 0;
        if (!sliding && !(cJSON_IsString(each) && strcmp(each->valuestring, "full_attention") == 0))
            return gd_config_refuse(r, "layer_types", cJSON_IsString(each) ? each->valuestring : "(not a string)",
                                    "full_attention and sliding_attention");
        if (layer < r->config->layers)
            r->config->slides[layer] = sliding;
    }
    if (layer != r->config->layers)
        return gd_fail_param(r->err, GD_BAD_MODEL, PATH ".layer_types", PATH ".layer_types has %d entries, num_hidden_layers is %d",
                             layer, r->config->layers);
    return true;
}
