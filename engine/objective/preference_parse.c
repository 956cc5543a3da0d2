/* {"loss": "simpo", "beta": 2.0, ...} to a loss with its parameters, and back. */
#include "engine/objective/preference.h"

#include <stdio.h>
#include <string.h>

#define NAMES_MAX 64

#define GD_PREFERENCE_PARAMETER_NAME(name, wire) [GD_PREFERENCE_##name] = wire,
static const char *const parameter_names[] = {GD_PREFERENCE_PARAMETER_LIST(GD_PREFERENCE_PARAMETER_NAME)};
#undef GD_PREFERENCE_PARAMETER_NAME

const char *gd_preference_parameter_name(enum gd_preference_parameter parameter)
{
    return parameter_names[parameter];
}

void gd_preference_default(struct gd_preference *preference, const struct gd_preference_loss *loss)
{
    *preference = (struct gd_preference){.loss = loss};
    for (int i = 0; i < GD_PREFERENCE_PARAMETERS; i++)
        preference->parameter[i] = loss->range[i].fallback;
}

static bool fail_unknown_loss(const char *param, const char *name, struct gd_error *err)
{
    const char *names[NAMES_MAX];
    char list[320] = "";
    size_t count = 0;
    for (int i = 0; i < gd_preference_count && count + 2 <= NAMES_MAX; i++) {
        const struct gd_preference_loss *loss = &gd_preference_table[i];
        size_t used = strlen(list);
        names[count++] = loss->name;
        if (loss->alias != NULL)
            names[count++] = loss->alias;
        snprintf(list + used, sizeof(list) - used, "%s%s", i ? ", " : "", loss->name);
    }
    const char *nearest = gd_nearest_name(name, names, count);
    return gd_fail_param(err, GD_INVALID, param, "loss '%.64s' is not known%s%s%s; there are %s", name,
                         nearest != NULL ? " (did you mean '" : "", nearest != NULL ? nearest : "", nearest != NULL ? "'?)" : "",
                         list);
}

static bool parse_parameters(struct gd_preference *preference, const cJSON *object, const char *path, struct gd_error *err)
{
    for (int i = 0; i < GD_PREFERENCE_PARAMETERS; i++) {
        const struct gd_preference_range *range = &preference->loss->range[i];
        const cJSON *value = gd_json_find(object, parameter_names[i]);
        char param[96], takes[160] = "";
        snprintf(param, sizeof param, "%s.%s", path, parameter_names[i]);
        if (value == NULL || cJSON_IsNull(value) || (cJSON_IsString(value) && strcmp(value->valuestring, "auto") == 0 && range->taken))
            continue;
        for (int k = 0; !range->taken && k < GD_PREFERENCE_PARAMETERS; k++) {
            size_t used = strlen(takes);
            if (preference->loss->range[k].taken)
                snprintf(takes + used, sizeof(takes) - used, "%s%s", used > 0 ? ", " : "", parameter_names[k]);
        }
        if (!range->taken)
            return gd_fail_param(err, GD_INVALID, param, "loss %s has no %s; it takes %s", preference->loss->name,
                                 parameter_names[i], takes);
        if (!gd_json_get_number(object, path, parameter_names[i], false, range->min, range->max, &preference->parameter[i], err))
            return false;
    }
    return true;
}

bool gd_preference_parse(struct gd_preference *preference, const cJSON *object, const char *path, struct gd_error *err)
{
    const char *known[GD_PREFERENCE_PARAMETERS + 3] = {"loss", "hyperparameters"}, *name = NULL;
    for (int i = 0; i < GD_PREFERENCE_PARAMETERS; i++)
        known[i + 2] = parameter_names[i];
    if (!gd_json_only_known(object, path, known, err) || !gd_json_get_string(object, path, "loss", true, 1, 64, &name, err))
        return false;
    const struct gd_preference_loss *loss = gd_preference_find(name);
    char param[96];
    snprintf(param, sizeof param, "%s.loss", path);
    if (loss == NULL)
        return fail_unknown_loss(param, name, err);
    gd_preference_default(preference, loss);
    return parse_parameters(preference, object, path, err);
}

void gd_preference_add_json(const struct gd_preference *preference, cJSON *object)
{
    cJSON_AddStringToObject(object, "loss", preference->loss->name);
    for (int i = 0; i < GD_PREFERENCE_PARAMETERS; i++)
        if (preference->loss->range[i].taken)
            cJSON_AddNumberToObject(object, parameter_names[i], preference->parameter[i]);
}
