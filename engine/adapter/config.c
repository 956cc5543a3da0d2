#include "engine/adapter/adapter.h"

#include "engine/base/alloc.h"

#include <assert.h>
#include <string.h>

static void add_target(struct gd_adapter_config *config, const char *name)
{
    config->targets = gd_realloc_array(config->targets, (size_t)config->target_count + 1, sizeof(char *));
    config->targets[config->target_count++] = gd_strdup(name);
}

void gd_adapter_config_release(struct gd_adapter_config *config)
{
    for (int i = 0; i < config->target_count; i++)
        gd_free(config->targets[i]);
    gd_free(config->targets);
    memset(config, 0, sizeof(*config));
}

static bool parse_targets(struct gd_adapter_config *config, const cJSON *value, struct gd_error *err)
{
    const char *param = "adapter.target_modules";
    if (value == NULL || cJSON_IsNull(value)) {
        add_target(config, "all-linear");
        return true;
    }
    if (cJSON_IsString(value)) {
        if (value->valuestring[0] == '\0')
            return gd_fail_param(err, GD_INVALID, param,
                                 "target_modules is an empty string: give \"all-linear\", a module name or a list of names");
        add_target(config, value->valuestring);
        return true;
    }
    if (!cJSON_IsArray(value))
        return gd_fail_param(err, GD_INVALID, param, "target_modules must be a string or a list of strings");
    int count = cJSON_GetArraySize(value);
    if (count < 1 || count > GD_TARGETS_MAX)
        return gd_fail_param(err, GD_INVALID, param, "target_modules has %d entries; give 1 to %d", count, GD_TARGETS_MAX);
    const cJSON *item;
    cJSON_ArrayForEach(item, value)
    {
        if (!cJSON_IsString(item) || item->valuestring[0] == '\0')
            return gd_fail_param(err, GD_INVALID, param, "target_modules must hold non-empty strings only");
        add_target(config, item->valuestring);
    }
    return true;
}

static bool parse_fields(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err)
{
    static const char *const known[] = {"type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", NULL};
    if (!gd_json_only_known(json, "adapter", known, err))
        return false;
    const char *type = "lora";
    if (!gd_json_get_string(json, "adapter", "type", false, 1, 31, &type, err))
        return false;
    const char *names[64];
    int found = -1;
    for (int i = 0; i < gd_adapter_count && i < 64; i++) {
        names[i] = gd_adapter_table[i]->name;
        if (strcmp(names[i], type) == 0)
            found = i;
    }
    if (found < 0) {
        const char *near = gd_nearest_name(type, names, (size_t)gd_adapter_count);
        return gd_fail_param(err, GD_UNSUPPORTED, "adapter.type", "adapter type '%s' is unknown; did you mean '%s'?", type,
                             near ? near : names[0]);
    }
    strcpy(config->type, gd_adapter_table[found]->name);

    int64_t r = 16;
    if (!gd_json_get_int(json, "adapter", "r", false, 1, GD_LORA_RANK_MAX, &r, err))
        return false;
    config->r = (int)r;
    config->lora_alpha = 2.0 * (double)r;
    return gd_json_get_number(json, "adapter", "lora_alpha", false, 1e-6, 1e6, &config->lora_alpha, err) &&
           gd_json_get_number(json, "adapter", "lora_dropout", false, 0.0, 0.95, &config->lora_dropout, err) &&
           gd_json_get_bool(json, "adapter", "use_rslora", false, &config->use_rslora, err) &&
           parse_targets(config, gd_json_find(json, "target_modules"), err);
}

bool gd_adapter_config_parse(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err)
{
    memset(config, 0, sizeof(*config));
    if (json != NULL && !cJSON_IsNull(json) && !cJSON_IsObject(json))
        return gd_fail_param(err, GD_INVALID, "adapter", "adapter must be an object");
    cJSON *empty = cJSON_CreateObject();
    bool ok = parse_fields(config, cJSON_IsObject(json) ? json : empty, err);
    cJSON_Delete(empty);
    if (!ok)
        gd_adapter_config_release(config);
    return ok;
}

cJSON *gd_adapter_config_json(const struct gd_adapter_config *config)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "type", config->type);
    cJSON_AddNumberToObject(json, "r", config->r);
    cJSON_AddNumberToObject(json, "lora_alpha", config->lora_alpha);
    cJSON_AddNumberToObject(json, "lora_dropout", config->lora_dropout);
    cJSON_AddBoolToObject(json, "use_rslora", config->use_rslora);
    if (config->target_count == 1 && strcmp(config->targets[0], "all-linear") == 0) {
        cJSON_AddStringToObject(json, "target_modules", "all-linear");
    } else {
        cJSON *list = cJSON_AddArrayToObject(json, "target_modules");
        for (int i = 0; i < config->target_count; i++)
            cJSON_AddItemToArray(list, cJSON_CreateString(config->targets[i]));
    }
    return json;
}
