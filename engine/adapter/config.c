/* config.c - a graft's options: read by the method's table, echoed, and listed for whoever asks. */
#include "engine/adapter/build.h"

#include "engine/base/alloc.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define METHODS_MAX 64

static void add_module(struct gd_modules *modules, const char *name, size_t length)
{
    modules->names = gd_realloc_array(modules->names, (size_t)modules->count + 1, sizeof(char *));
    modules->names[modules->count++] = gd_strndup(name, length);
}

static void drop_names(struct gd_modules *modules)
{
    for (int i = 0; i < modules->count; i++)
        gd_free(modules->names[i]);
    gd_free(modules->names);
    *modules = (struct gd_modules){0};
}

void gd_adapter_set_tasks(struct gd_adapter_config *config, char *const *names, int count)
{
    drop_names(&config->tasks);
    for (int i = 0; i < count; i++)
        add_module(&config->tasks, names[i], strlen(names[i]));
}

void gd_adapter_set_labels(struct gd_adapter_config *config, char *const *names, int count, bool multi)
{
    drop_names(&config->labels);
    for (int i = 0; i < count; i++)
        add_module(&config->labels, names[i], strlen(names[i]));
    config->multi_label = multi;
}

void gd_adapter_config_release(struct gd_adapter_config *config)
{
    for (int i = 0; i < GD_ADAPTER_OPTIONS_MAX; i++) {
        for (int j = 0; j < config->modules[i].count; j++)
            gd_free(config->modules[i].names[j]);
        gd_free(config->modules[i].names);
        gd_free(config->texts[i]);
        gd_free(config->ints[i].values);
    }
    drop_names(&config->tasks);
    drop_names(&config->labels);
    memset(config, 0, sizeof(*config));
}

static int option_index(const struct gd_adapter_config *config, const char *name)
{
    int i = 0;
    while (strcmp(config->method->options[i].name, name) != 0) {
        i++;
        assert(i < config->method->option_count);
    }
    return i;
}

double gd_adapter_value(const struct gd_adapter_config *config, const char *option)
{
    return config->values[option_index(config, option)];
}

void gd_adapter_number_tasks(struct gd_adapter_config *config, int count)
{
    for (int i = 0; i < count; i++) {
        char name[16];
        snprintf(name, sizeof(name), "%d", i);
        add_module(&config->tasks, name, strlen(name));
    }
}

void gd_adapter_set_value(struct gd_adapter_config *config, const char *option, double value)
{
    config->values[option_index(config, option)] = value;
}

const struct gd_modules *gd_adapter_modules(const struct gd_adapter_config *config, const char *option)
{
    return &config->modules[option_index(config, option)];
}

const char *gd_adapter_text(const struct gd_adapter_config *config, const char *option)
{
    return config->texts[option_index(config, option)];
}

const struct gd_ints *gd_adapter_ints(const struct gd_adapter_config *config, const char *option)
{
    return &config->ints[option_index(config, option)];
}

/* ---- reading ---- */

static bool parse_modules(struct gd_modules *modules, const struct gd_adapter_option *option, const cJSON *value,
                          struct gd_error *err)
{
    char param[64];
    snprintf(param, sizeof(param), "adapter.%s", option->name);
    if (value == NULL || cJSON_IsNull(value)) {
        for (const char *at = option->modules; *at != '\0';) {
            size_t length = strcspn(at, ",");
            add_module(modules, at, length);
            at += length + (at[length] == ',');
        }
        return true;
    }
    if (cJSON_IsString(value)) {
        if (value->valuestring[0] == '\0')
            return gd_fail_param(err, GD_INVALID, param,
                                 "%s is an empty string: give \"all-linear\", a module name or a list of names", option->name);
        add_module(modules, value->valuestring, strlen(value->valuestring));
        return true;
    }
    if (!cJSON_IsArray(value))
        return gd_fail_param(err, GD_INVALID, param, "%s must be a string or a list of strings", option->name);
    int count = cJSON_GetArraySize(value);
    if (count < option->min || count > GD_TARGETS_MAX)
        return gd_fail_param(err, GD_INVALID, param, "%s has %d entries; give %d to %d", option->name, count, (int)option->min,
                             GD_TARGETS_MAX);
    const cJSON *item;
    cJSON_ArrayForEach(item, value)
    {
        if (!cJSON_IsString(item) || item->valuestring[0] == '\0')
            return gd_fail_param(err, GD_INVALID, param, "%s must hold non-empty strings only", option->name);
        add_module(modules, item->valuestring, strlen(item->valuestring));
    }
    return true;
}

static bool same_choice(const char *choice, const cJSON *value)
{
    return cJSON_IsBool(value) ? strcmp(choice, cJSON_IsTrue(value) ? "true" : "false") == 0
                               : strcmp(choice, value->valuestring) == 0;
}

bool gd_adapter_choice(const struct gd_adapter_option *option, const cJSON *json, const char *param_prefix, double *value,
                       struct gd_error *err)
{
    const cJSON *given = gd_json_find(json, option->name);
    char param[96], list[256] = "";
    if (given == NULL || cJSON_IsNull(given))
        return true;
    snprintf(param, sizeof(param), "%s%s%s", param_prefix, param_prefix[0] ? "." : "", option->name);
    if (!cJSON_IsString(given) && !cJSON_IsBool(given))
        return gd_fail_param(err, GD_INVALID, param, "%s must be a string%s", option->name,
                             strcmp(option->choices[0], "true") == 0 ? " or true" : "");
    int count = 0;
    for (; option->choices[count] != NULL; count++) {
        if (same_choice(option->choices[count], given)) {
            *value = count;
            return true;
        }
        size_t used = strlen(list);
        snprintf(list + used, sizeof(list) - used, "%s'%s'", count > 0 ? ", " : "", option->choices[count]);
    }
    const char *text = cJSON_IsBool(given) ? (cJSON_IsTrue(given) ? "true" : "false") : given->valuestring;
    const char *near = gd_nearest_name(text, option->choices, (size_t)count);
    return gd_fail_param(err, GD_INVALID, param, "%s is '%.64s'%s%s%s; there are %s", option->name, text,
                         near != NULL ? "; did you mean '" : "", near != NULL ? near : "", near != NULL ? "'?" : "", list);
}

/* The method that the request names; "lora" where it names none. */
static const struct gd_adapter_method *parse_type(const cJSON *json, struct gd_error *err)
{
    const char *type = "lora", *names[METHODS_MAX];
    if (!gd_json_get_string(json, "adapter", "type", false, 1, 31, &type, err))
        return NULL;
    const struct gd_adapter_method *method = gd_adapter_find(type);
    if (method != NULL)
        return method;
    assert(gd_adapter_count <= METHODS_MAX);
    char list[512] = "";
    for (int i = 0; i < gd_adapter_count; i++) {
        size_t used = strlen(list);
        names[i] = gd_adapter_table[i]->name;
        snprintf(list + used, sizeof(list) - used, "%s'%s'", i > 0 ? ", " : "", names[i]);
    }
    const char *near = gd_nearest_name(type, names, (size_t)gd_adapter_count);
    if (near != NULL)
        gd_fail_param(err, GD_UNSUPPORTED, "adapter.type", "adapter type '%s' is unknown; did you mean '%s'?", type, near);
    else
        gd_fail_param(err, GD_UNSUPPORTED, "adapter.type", "adapter type '%s' is unknown; there are %s", type, list);
    return NULL;
}

static bool has_option(const struct gd_adapter_method *method, const char *name)
{
    for (int i = 0; i < method->option_count; i++)
        if (strcmp(method->options[i].name, name) == 0)
            return true;
    return false;
}

/* A field that is not this method's may be others'. */
static bool check_foreign(const struct gd_adapter_method *method, const char *name, struct gd_error *err)
{
    char owners[256] = "", param[96];
    int count = 0;
    for (int i = 0; i < gd_adapter_count; i++)
        if (has_option(gd_adapter_table[i], name)) {
            size_t used = strlen(owners);
            snprintf(owners + used, sizeof(owners) - used, "%s'%s'", count++ > 0 ? ", " : "", gd_adapter_table[i]->name);
        }
    if (count == 0)
        return true;
    snprintf(param, sizeof(param), "adapter.%s", name);
    return gd_fail_param(err, GD_UNKNOWN_FIELD, param, "'%s' is a parameter of adapter type%s %s, not of '%s'", name,
                         count > 1 ? "s" : "", owners, method->name);
}

static bool check_fields(const struct gd_adapter_method *method, const cJSON *json, struct gd_error *err)
{
    const char *known[GD_ADAPTER_OPTIONS_MAX + 2] = {"type"};
    for (int i = 0; i < method->option_count; i++)
        known[i + 1] = method->options[i].name;
    const cJSON *member;
    cJSON_ArrayForEach(member, json)
    {
        if (strcmp(member->string, "type") != 0 && !has_option(method, member->string) && !check_foreign(method, member->string, err))
            return false;
    }
    return gd_json_only_known(json, "adapter", known, err);
}

bool gd_adapter_read_ints(const struct gd_adapter_option *option, const cJSON *json, const char *param_prefix,
                          struct gd_ints *ints, struct gd_error *err)
{
    const cJSON *list = gd_json_find(json, option->name), *item;
    char param[96];
    snprintf(param, sizeof(param), "%s%s%s", param_prefix, param_prefix[0] ? "." : "", option->name);
    if (list == NULL || cJSON_IsNull(list))
        return true;
    int count = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : 0;
    if (count < 1 || count > GD_ADAPTER_INTS_MAX)
        return gd_fail_param(err, GD_INVALID, param, "%s must be a list of 1 to %d integers", option->name, GD_ADAPTER_INTS_MAX);
    ints->values = gd_alloc_array((size_t)count, sizeof(int32_t));
    cJSON_ArrayForEach(item, list)
    {
        if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble) || item->valuedouble < option->min ||
            item->valuedouble > option->max)
            return gd_fail_param(err, GD_INVALID, param, "%s[%d] must be an integer from %.0f to %.0f", option->name, ints->count,
                                 option->min, option->max);
        ints->values[ints->count++] = (int32_t)item->valuedouble;
    }
    return true;
}

static bool parse_text(struct gd_adapter_config *config, int index, const cJSON *json, struct gd_error *err)
{
    const char *text = NULL;
    if (!gd_json_get_string(json, "adapter", config->method->options[index].name, false, 1, GD_ADAPTER_TEXT_MAX, &text, err))
        return false;
    config->texts[index] = gd_strdup(text);
    return true;
}

static bool parse_option(struct gd_adapter_config *config, int index, const cJSON *json, struct gd_error *err)
{
    const struct gd_adapter_option *option = &config->method->options[index];
    double *value = &config->values[index];
    *value = option->fallback * (option->times != NULL ? gd_adapter_value(config, option->times) : 1.0);
    if (option->type == GD_OPTION_MODULES)
        return parse_modules(&config->modules[index], option, gd_json_find(json, option->name), err);
    if (option->type == GD_OPTION_INTS)
        return gd_adapter_read_ints(option, json, "adapter", &config->ints[index], err);
    if (option->type == GD_OPTION_TEXT)
        return parse_text(config, index, json, err);
    if (option->type == GD_OPTION_NUMBER)
        return gd_json_get_number(json, "adapter", option->name, false, option->min, option->max, value, err);
    if (option->type == GD_OPTION_CHOICE)
        return gd_adapter_choice(option, json, "adapter", value, err);
    bool flag = *value != 0;
    int64_t whole = (int64_t)*value;
    bool ok = option->type == GD_OPTION_BOOL
                  ? gd_json_get_bool(json, "adapter", option->name, false, &flag, err)
                  : gd_json_get_int(json, "adapter", option->name, false, (int64_t)option->min, (int64_t)option->max, &whole, err);
    *value = option->type == GD_OPTION_BOOL ? flag : (double)whole;
    return ok;
}

static bool parse_object(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err)
{
    config->method = parse_type(json, err);
    if (config->method == NULL || !check_fields(config->method, json, err))
        return false;
    assert(config->method->option_count <= GD_ADAPTER_OPTIONS_MAX);
    for (int i = 0; i < config->method->option_count; i++)
        if (!parse_option(config, i, json, err))
            return false;
    return true;
}

bool gd_adapter_config_parse(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err)
{
    memset(config, 0, sizeof(*config));
    if (json != NULL && !cJSON_IsNull(json) && !cJSON_IsObject(json))
        return gd_fail_param(err, GD_INVALID, "adapter", "adapter must be an object");
    cJSON *empty = cJSON_CreateObject();
    bool ok = parse_object(config, cJSON_IsObject(json) ? json : empty, err);
    cJSON_Delete(empty);
    if (!ok)
        gd_adapter_config_release(config);
    return ok;
}

/* ---- showing ---- */

static cJSON *modules_json(const struct gd_modules *modules)
{
    if (modules->count == 1 && strncmp(modules->names[0], "all-", 4) == 0) /* "all-linear", "all-norms" */
        return cJSON_CreateString(modules->names[0]);
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < modules->count; i++)
        cJSON_AddItemToArray(list, cJSON_CreateString(modules->names[i]));
    return list;
}

static cJSON *choice_json(const char *name)
{
    bool truth = strcmp(name, "true") == 0;
    return truth || strcmp(name, "false") == 0 ? cJSON_CreateBool(truth) : cJSON_CreateString(name);
}

cJSON *gd_adapter_value_json(const struct gd_adapter_option *option, double value)
{
    if (option->type == GD_OPTION_CHOICE)
        return choice_json(option->choices[(int)value]);
    return option->type == GD_OPTION_BOOL ? cJSON_CreateBool(value != 0) : cJSON_CreateNumber(value);
}

cJSON *gd_adapter_text_json(const char *text)
{
    return text != NULL ? cJSON_CreateString(text) : cJSON_CreateNull();
}

cJSON *gd_adapter_ints_json(const struct gd_ints *ints)
{
    return ints->count > 0 ? cJSON_CreateIntArray(ints->values, ints->count) : cJSON_CreateNull();
}

cJSON *gd_adapter_config_json(const struct gd_adapter_config *config)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "type", config->method->name);
    for (int i = 0; i < config->method->option_count; i++) {
        const struct gd_adapter_option *option = &config->method->options[i];
        cJSON_AddItemToObject(json, option->name, option->type == GD_OPTION_MODULES ? modules_json(&config->modules[i])
                                                  : option->type == GD_OPTION_TEXT  ? gd_adapter_text_json(config->texts[i])
                                                  : option->type == GD_OPTION_INTS  ? gd_adapter_ints_json(&config->ints[i])
                                                                                    : gd_adapter_value_json(option, config->values[i]));
    }
    return json;
}

static cJSON *option_json(const struct gd_adapter_option *option)
{
    static const char *const types[] = {"integer", "number", "boolean", "choice", "text", "integers", "modules"};
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "name", option->name);
    cJSON_AddStringToObject(json, "type", types[option->type]);
    bool number = option->type == GD_OPTION_INT || option->type == GD_OPTION_NUMBER || option->type == GD_OPTION_INTS;
    if (number) {
        cJSON_AddNumberToObject(json, "minimum", option->min);
        cJSON_AddNumberToObject(json, "maximum", option->max);
    }
    if (option->type == GD_OPTION_CHOICE) {
        cJSON *choices = cJSON_AddArrayToObject(json, "choices");
        for (const char *const *choice = option->choices; *choice != NULL; choice++)
            cJSON_AddItemToArray(choices, choice_json(*choice));
    }
    if (option->type == GD_OPTION_MODULES) {
        struct gd_modules fallback = {0};
        struct gd_error none = {0};
        bool parsed = parse_modules(&fallback, option, NULL, &none);
        assert(parsed);
        (void)parsed;
        cJSON_AddItemToObject(json, "default", modules_json(&fallback));
        for (int i = 0; i < fallback.count; i++)
            gd_free(fallback.names[i]);
        gd_free(fallback.names);
    } else if (option->type == GD_OPTION_TEXT || option->type == GD_OPTION_INTS) {
        cJSON_AddNullToObject(json, "default");
    } else if (option->times != NULL) {
        char rule[64];
        snprintf(rule, sizeof(rule), "%g * %s", option->fallback, option->times);
        cJSON_AddNullToObject(json, "default");
        cJSON_AddStringToObject(json, "default_rule", rule);
    } else {
        cJSON_AddItemToObject(json, "default", gd_adapter_value_json(option, option->fallback));
    }
    cJSON_AddStringToObject(json, "description", option->help);
    return json;
}

cJSON *gd_adapter_registry_json(void)
{
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < gd_adapter_count; i++) {
        const struct gd_adapter_method *method = gd_adapter_table[i];
        cJSON *json = cJSON_CreateObject(), *hooks, *parameters;
        cJSON_AddStringToObject(json, "id", method->name);
        cJSON_AddStringToObject(json, "object", "tuning.method");
        cJSON_AddStringToObject(json, "peft_type", method->peft_type);
        cJSON_AddStringToObject(json, "description", method->help);
        cJSON_AddStringToObject(json, "paper", method->paper);
        hooks = cJSON_AddArrayToObject(json, "hooks");
        if (method->linear != NULL)
            cJSON_AddItemToArray(hooks, cJSON_CreateString("linear"));
        if (method->norm != NULL)
            cJSON_AddItemToArray(hooks, cJSON_CreateString("norm"));
        if (method->block != NULL)
            cJSON_AddItemToArray(hooks, cJSON_CreateString("block"));
        if (method->embed != NULL)
            cJSON_AddItemToArray(hooks, cJSON_CreateString("embed"));
        if (method->kv != NULL)
            cJSON_AddItemToArray(hooks, cJSON_CreateString("kv"));
        if (method->by_task)
            cJSON_AddItemToArray(hooks, cJSON_CreateString("task"));
        if (method->penalty != NULL)
            cJSON_AddItemToArray(hooks, cJSON_CreateString("penalty"));
        parameters = cJSON_AddArrayToObject(json, "parameters");
        for (int j = 0; j < method->option_count; j++)
            cJSON_AddItemToArray(parameters, option_json(&method->options[j]));
        cJSON_AddItemToArray(list, json);
    }
    return list;
}
