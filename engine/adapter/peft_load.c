/* peft_load.c - grafts from disk, in Hugging Face PEFT's format, with a strict account of tensors. */
#include "engine/adapter/build.h"
#include "engine/adapter/export.h"
#include "engine/adapter/head.h"
#include "engine/adapter/score.h"
#include "engine/adapter/stacked.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/safetensors.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define CONFIG_BYTES_MAX (4u << 20)

static bool check_digest(const cJSON *facts, const char *key, const char *what, const char *mine, struct gd_error *err)
{
    const cJSON *value = gd_json_find(facts, key);
    if (!cJSON_IsString(value) || strcmp(value->valuestring, mine) == 0)
        return true;
    return gd_fail_param(err, GD_BAD_MODEL, "model",
                         "the adapter was trained with another %s (%.12s...) than this base has (%.12s...): serve it on the "
                         "base that it was trained on",
                         what, value->valuestring, mine[0] ? mine : "none");
}

static bool check_facts(const struct gd_model *model, const char *folder, struct gd_error *err)
{
    char *path = gd_format("%s/graftd.json", folder);
    struct stat info;
    bool ok = true;
    if (stat(path, &info) == 0) {
        cJSON *facts = gd_json_parse_file(path, CONFIG_BYTES_MAX, err);
        ok = facts != NULL && check_digest(facts, "base_digest", "base model", model->digest, err) &&
             check_digest(facts, "tokenizer_digest", "tokenizer", model->tokenizer_digest, err) &&
             check_digest(facts, "template_digest", "chat template", model->template_digest, err);
        cJSON_Delete(facts);
    }
    gd_free(path);
    return ok;
}

static bool refuse_option(const cJSON *json, const char *key, struct gd_error *err)
{
    const cJSON *value = gd_json_find(json, key);
    bool absent = value == NULL || cJSON_IsNull(value) || cJSON_IsFalse(value) ||
                  ((cJSON_IsObject(value) || cJSON_IsArray(value)) && value->child == NULL) ||
                  (cJSON_IsString(value) && strcmp(value->valuestring, "none") == 0);
    if (absent)
        return true;
    return gd_fail_param(err, GD_UNSUPPORTED, key, "adapter_config.json: '%s' is set, which this build cannot serve", key);
}

static const struct gd_adapter_method *method_of(const char *type, struct gd_error *err)
{
    char list[512] = "";
    for (int i = 0; i < gd_adapter_count; i++) {
        size_t used = strlen(list);
        if (strcmp(gd_adapter_table[i]->peft_type, type) == 0)
            return gd_adapter_table[i];
        snprintf(list + used, sizeof(list) - used, "%s%s", i > 0 ? ", " : "", gd_adapter_table[i]->peft_type);
    }
    gd_fail_param(err, GD_UNSUPPORTED, "peft_type", "adapter_config.json: peft_type '%s' is not supported; these are: %s", type,
                  list);
    return NULL;
}

/* A list of names; null is an empty one. */
static bool read_modules(struct gd_modules *modules, const cJSON *json, const char *key, struct gd_error *err)
{
    const cJSON *list = gd_json_find(json, key), *item;
    if (list == NULL || cJSON_IsNull(list))
        return true;
    bool ok = cJSON_IsArray(list) && cJSON_GetArraySize(list) <= GD_TARGETS_MAX;
    cJSON_ArrayForEach(item, list) ok = ok && cJSON_IsString(item) && item->valuestring[0] != '\0';
    if (!ok)
        return gd_fail_param(err, GD_UNSUPPORTED, key, "adapter_config.json: '%s' must be a list of module names", key);
    modules->names = gd_alloc_array((size_t)cJSON_GetArraySize(list), sizeof(char *));
    cJSON_ArrayForEach(item, list) modules->names[modules->count++] = gd_strdup(item->valuestring);
    return true;
}

static bool read_text(char **text, const cJSON *json, const char *key, struct gd_error *err)
{
    const char *value = NULL;
    if (!gd_json_get_string(json, "", key, false, 0, GD_ADAPTER_TEXT_MAX, &value, err))
        return false;
    *text = gd_strdup(value);
    return true;
}

static bool read_option(struct gd_adapter_config *config, int index, const cJSON *json, struct gd_error *err)
{
    const struct gd_adapter_option *option = &config->method->options[index];
    double *value = &config->values[index];
    int64_t whole = (int64_t)option->peft_fallback;
    bool flag = option->peft_fallback != 0;
    *value = option->use == GD_OPTION_SHAPES ? option->peft_fallback : option->fallback;
    if (option->use != GD_OPTION_SHAPES || strcmp(option->name, "target_modules") == 0)
        return true; /* target_modules come from the tensors */
    switch (option->type) {
    case GD_OPTION_MODULES:
        return read_modules(&config->modules[index], json, option->name, err);
    case GD_OPTION_INTS:
        return gd_adapter_read_ints(option, json, "", &config->ints[index], err);
    case GD_OPTION_TEXT:
        return read_text(&config->texts[index], json, option->name, err);
    case GD_OPTION_NUMBER:
        return gd_json_get_number(json, "", option->name, false, option->min, option->max, value, err);
    case GD_OPTION_CHOICE:
        return gd_adapter_choice(option, json, "", value, err);
    case GD_OPTION_BOOL:
        if (!gd_json_get_bool(json, "", option->name, false, &flag, err))
            return false;
        *value = flag;
        return true;
    case GD_OPTION_INT:
        if (!gd_json_get_int(json, "", option->name, false, (int64_t)option->min, (int64_t)option->max, &whole, err))
            return false;
        *value = (double)whole;
        return true;
    }
    return false;
}

static bool read_head(struct gd_adapter_config *config, const struct gd_model *model, const cJSON *json, const char *folder,
                      const struct gd_safetensors *file, struct gd_error *err)
{
    char *path = gd_format("%s/graftd.json", folder);
    struct stat info;
    cJSON *facts = stat(path, &info) == 0 ? gd_json_parse_file(path, CONFIG_BYTES_MAX, err) : NULL;
    bool found = false;
    bool ok = err->code == GD_OK && gd_head_read(config, model, json, facts, file, &found, err) && (found || gd_score_read(config, json, err));
    cJSON_Delete(facts);
    gd_free(path);
    return ok;
}

/* fan_in_fan_out says that the base's files are transposed, and changes nothing of the adapter. */
static bool read_config(struct gd_adapter_config *config, const struct gd_model *model, const cJSON *json, const char *folder,
                        const struct gd_safetensors *file, struct gd_error *err)
{
    const char *type = NULL;
    if (!gd_json_get_string(json, "", "peft_type", true, 1, 64, &type, err) || (config->method = method_of(type, err)) == NULL)
        return false;
    config->finished = true;
    if (!read_head(config, model, json, folder, file, err))
        return false;
    for (const char *const *key = config->method->refused; *key != NULL; key++)
        if (!((config->score || config->labels.count > 0) && strcmp(*key, "modules_to_save") == 0) &&
            !(model->config.transposed && strcmp(*key, "fan_in_fan_out") == 0) && !refuse_option(json, *key, err))
            return false;
    for (int i = 0; i < config->method->option_count; i++)
        if (!read_option(config, i, json, err))
            return false;
    return config->method->check_file == NULL || config->method->check_file(config, json, err);
}

static struct gd_modules *targets_of(struct gd_adapter_config *config)
{
    return (struct gd_modules *)(uintptr_t)gd_adapter_modules(config, "target_modules");
}

/* The names of tasks, which PEFT's files lack: there they are numbers. */
static bool read_tasks(struct gd_adapter_config *config, const char *folder, struct gd_error *err)
{
    char *path = gd_format("%s/graftd.json", folder);
    struct stat info;
    bool ok = true;
    if (config->method->by_task && stat(path, &info) == 0) {
        cJSON *facts = gd_json_parse_file(path, CONFIG_BYTES_MAX, err);
        ok = facts != NULL && read_modules(&config->tasks, facts, "tasks", err);
        cJSON_Delete(facts);
    }
    gd_free(path);
    return ok;
}

/* Length of the end of `name` that is "." and one of the anchors; 0: none is. */
static size_t anchored(const char *name, const char *anchors)
{
    size_t length = strlen(name);
    for (const char *at = anchors; *at != '\0';) {
        size_t tail = strcspn(at, ",");
        if (length > tail && name[length - tail - 1] == '.' && strncmp(name + length - tail, at, tail) == 0)
            return tail + 1;
        at += tail + (at[tail] == ',');
    }
    return 0;
}

/* Which modules the file touches, from its own tensor names. */
static bool read_targets(struct gd_adapter_config *config, const struct gd_model *model, const struct gd_safetensors *file,
                         struct gd_error *err)
{
    static const char prefix[] = "base_model.model.";
    const char *anchor = config->method->anchor;
    if (anchor == NULL)
        return true;
    struct gd_modules *targets = targets_of(config);
    int count = gd_safetensors_count(file);
    size_t head = sizeof(prefix) - 1;
    targets->names = gd_alloc_array((size_t)count + 1, sizeof(char *));
    for (int i = 0; i < count; i++) {
        const char *name = gd_safetensors_name(file, i);
        bool of_head = (config->score && strcmp(name, GD_SCORE_NAME) == 0) || (config->labels.count > 0 && gd_head_owns(model, name));
        size_t tail = of_head ? 0 : anchored(name, anchor);
        if (tail > 0 && strncmp(name, prefix, head) == 0 && strlen(name) > head + tail)
            targets->names[targets->count++] = gd_strndup(name + head, strlen(name) - head - tail);
    }
    if (targets->count == 0)
        return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors holds no 'base_model.model.*.%s' tensor", anchor);
    return true;
}

/* Every target that adapter_config.json names under `key` must have been filled by some tensor. */
static bool check_list(const cJSON *json, const char *key, const struct gd_modules *touched, struct gd_error *err)
{
    const cJSON *targets = gd_json_find(json, key), *item;
    if (!cJSON_IsArray(targets))
        return true; /* a pattern: the tensors are the account */
    cJSON_ArrayForEach(item, targets)
    {
        if (!cJSON_IsString(item))
            return gd_fail_param(err, GD_BAD_MODEL, key, "adapter_config.json: %s must hold strings", key);
        bool found = false;
        size_t length = strlen(item->valuestring);
        for (int i = 0; i < touched->count && !found; i++) {
            size_t have = strlen(touched->names[i]);
            found = have >= length && strcmp(touched->names[i] + have - length, item->valuestring) == 0 &&
                    (have == length || touched->names[i][have - length - 1] == '.');
        }
        if (!found)
            return gd_fail_param(err, GD_BAD_MODEL, key,
                                 "adapter_config.json names target module '%s', but adapter_model.safetensors has no tensor for it",
                                 item->valuestring);
    }
    return true;
}

static bool check_promised(const cJSON *json, struct gd_adapter_config *config, struct gd_error *err)
{
    const struct gd_adapter_method *method = config->method;
    if (method->anchor == NULL)
        return true;
    if (method->choose == NULL)
        return check_list(json, "target_modules", targets_of(config), err);
    for (int i = 0; i < method->option_count; i++)
        if (method->options[i].type == GD_OPTION_MODULES && !check_list(json, method->options[i].name, targets_of(config), err))
            return false;
    return true;
}

/* The targets of a graft that chose them are what it touches. */
static void name_targets(struct gd_graft *graft)
{
    struct gd_modules *targets = targets_of(&graft->config);
    int slots = gd_slot_count(graft->model);
    targets->names = gd_realloc_array(targets->names, (size_t)slots, sizeof(char *));
    for (int slot = 0; slot < slots; slot++)
        if (graft->site_param[slot] >= 0)
            targets->names[targets->count++] = gd_strdup(gd_slot_site(graft->model, slot)->name);
}

static bool read_rank_4(float *to, const struct gd_graft_param *param, const struct gd_tensor *tensor, struct gd_error *err)
{
    const int64_t *have = tensor->shape, *need = param->file_shape;
    if (tensor->rank != 4 || memcmp(have, need, sizeof(param->file_shape)) != 0)
        return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors: '%s' has shape [%lld, %lld, ...] of rank %d; this base and these "
                                          "options need [%lld, %lld, %lld, %lld]",
                       param->name, tensor->rank > 0 ? (long long)have[0] : 1LL, tensor->rank > 1 ? (long long)have[1] : 1LL,
                       tensor->rank, (long long)need[0], (long long)need[1], (long long)need[2], (long long)need[3]);
    gd_convert_to_f32(to, tensor->data, tensor->dtype, param->shape[0] * param->shape[1]);
    return true;
}

static bool read_weight(struct gd_graft *graft, const struct gd_graft_param *param, const struct gd_safetensors *file,
                        const char *file_name, struct gd_error *err)
{
    struct gd_tensor tensor;
    float *to = graft->block + param->offset;
    if (!gd_safetensors_find(file, param->name, &tensor) && gd_head_from_base(graft, param, to))
        return true;
    if (!gd_safetensors_find(file, param->name, &tensor))
        return gd_fail(err, GD_BAD_MODEL, "%s: tensor '%s' is missing", file_name, param->name);
    if (param->rank == 4)
        return read_rank_4(to, param, &tensor, err);
    int64_t columns = (param->rank == 2 ? param->shape[1] : 1) * (param->pieces > 0 ? param->pieces : 1), have = tensor.rank == 2 ? tensor.shape[1] : 1;
    if (tensor.rank != param->rank || tensor.shape[0] != param->shape[0] || have != columns)
        return gd_fail(err, GD_BAD_MODEL, "%s: '%s' has shape [%lld, %lld]; this base and these options "
                                          "need [%lld, %lld]",
                       file_name, param->name, tensor.rank > 0 ? (long long)tensor.shape[0] : 1LL, (long long)have,
                       (long long)param->shape[0], (long long)columns);
    for (int64_t row = 0; param->pieces > 0 && row < param->shape[0]; row++)
        gd_convert_to_f32(to + row * param->shape[1],
                          (const char *)tensor.data + gd_dtype_bytes(tensor.dtype, row * columns + param->piece * param->shape[1]),
                          tensor.dtype, param->shape[1]);
    if (param->pieces == 0)
        gd_convert_to_f32(to, tensor.data, tensor.dtype, param->shape[0] * columns);
    if (param->transposed) {
        float *turned = gd_transposed(to, columns, param->shape[0]);
        memcpy(to, turned, (size_t)(param->shape[0] * columns) * sizeof(float));
        gd_free(turned);
    }
    return true;
}

/* The parameters of one of the two files. */
static bool read_file(struct gd_graft *graft, const struct gd_safetensors *file, const char *name, bool apart, struct gd_error *err)
{
    int param_count = graft->param_count + graft->frozen_param_count;
    for (int i = 0; i < param_count; i++)
        if (graft->params[i].apart == apart && !read_weight(graft, &graft->params[i], file, name, err))
            return false;
    for (int i = 0; i < gd_safetensors_count(file); i++) {
        bool used = false;
        for (int p = 0; p < param_count && !used; p++)
            used = graft->params[p].apart == apart && strcmp(gd_safetensors_name(file, i), graft->params[p].name) == 0;
        if (!used)
            return gd_fail(err, GD_BAD_MODEL, "%s: tensor '%s' fits nothing in base '%s'", name, gd_safetensors_name(file, i),
                           graft->model->id);
    }
    return true;
}

/* What the graft took from its base: as it was kept, or taken again. */
static bool read_apart(struct gd_graft *graft, const char *folder, struct gd_error *err)
{
    char *path = gd_format("%s/" GD_APART_FILE, folder);
    struct gd_safetensors *file = NULL;
    struct stat info;
    bool ok = true;
    if (stat(path, &info) == 0)
        ok = gd_safetensors_open(&file, path, err) && read_file(graft, file, GD_APART_FILE, true, err);
    else if (graft->method->derive != NULL)
        graft->method->derive(graft, graft->block);
    gd_safetensors_close(file);
    gd_free(path);
    return ok;
}

static bool read_weights(struct gd_graft *graft, const struct gd_safetensors *file, const char *folder, struct gd_error *err)
{
    graft->block = gd_alloc_array((size_t)gd_graft_floats(graft), sizeof(float));
    if (!read_file(graft, file, "adapter_model.safetensors", false, err) || !read_apart(graft, folder, err))
        return false;
    for (int64_t i = 0; i < gd_graft_floats(graft); i++)
        if (!isfinite(graft->block[i]))
            return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors holds values that are not finite");
    return true;
}

/* Parameters are declared by the names in the file, then read. */
static bool make_graft(struct gd_graft **out, const struct gd_model *model, struct gd_adapter_config *config,
                       const struct gd_safetensors *file, const cJSON *json, const char *folder, struct gd_error *err)
{
    struct gd_graft_source source = {.file = file};
    bool chooses = config->method->choose != NULL;
    if (!chooses && (!read_targets(config, model, file, err) || !check_promised(json, config, err)))
        return false;
    if (!gd_graft_create_by(out, model, config, &source, err))
        return false;
    if (chooses)
        name_targets(*out);
    return (!chooses || check_promised(json, &(*out)->config, err)) && read_weights(*out, file, folder, err);
}

static bool describe(struct gd_adapter_config *config, const struct gd_model *model, const cJSON *json, const char *folder,
                     const struct gd_safetensors *file, struct gd_error *err)
{
    bool ok = read_config(config, model, json, folder, file, err);
    if (!ok)
        gd_error_context(err, "adapter_config.json");
    return ok;
}

bool gd_graft_read(struct gd_graft **out, const struct gd_model *model, const char *folder, struct gd_error *err)
{
    assert(*out == NULL);
    if (gd_path_is_file(folder))
        return gd_graft_read_gguf(out, model, folder, err);
    struct gd_adapter_config config = {0};
    struct gd_safetensors *file = NULL;
    struct gd_graft *graft = NULL;
    char *config_path = gd_format("%s/adapter_config.json", folder);
    char *weights_path = gd_format("%s/adapter_model.safetensors", folder);
    char *manifest_path = gd_format("%s/manifest.json", folder);
    struct stat info;
    cJSON *json = NULL;
    bool ok = stat(manifest_path, &info) != 0 || gd_dir_verify(folder, err);
    if (ok) {
        json = gd_json_parse_file(config_path, CONFIG_BYTES_MAX, err);
        ok = json != NULL;
    }
    ok = ok && check_facts(model, folder, err) && gd_safetensors_open(&file, weights_path, err) &&
         (!gd_stacked_is(model, json) || gd_stacked_unfold(model, json, &file, err)) &&
         describe(&config, model, json, folder, file, err) && read_tasks(&config, folder, err) &&
         make_graft(&graft, model, &config, file, json, folder, err);
    if (ok) {
        graft->task = graft->config.tasks.count == 1 ? 0 : -1;
        gd_graft_make_digest(graft);
        *out = graft;
    } else {
        gd_graft_destroy(graft);
        gd_error_context(err, "load adapter");
    }
    gd_safetensors_close(file);
    cJSON_Delete(json);
    gd_adapter_config_release(&config);
    gd_free(config_path);
    gd_free(weights_path);
    gd_free(manifest_path);
    return ok;
}

bool gd_graft_load(struct gd_graft **out, const struct gd_model *model, const char *folder, struct gd_error *err)
{
    if (!gd_graft_read(out, model, folder, err))
        return false;
    if ((*out)->wear == NULL)
        gd_graft_make_wear(*out);
    return true;
}
