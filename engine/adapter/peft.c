/* peft.c - grafts on disk, in Hugging Face PEFT's format, with a strict account of tensors. */
#include "engine/adapter/build.h"
#include "engine/adapter/score.h"
#include "engine/adapter/export.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/safetensors.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define CONFIG_BYTES_MAX (4u << 20)
#define APART_FILE "graftd_base.safetensors" /* what a graft took from its base */

static const char *leaf_name(const char *module)
{
    const char *dot = strrchr(module, '.');
    return dot ? dot + 1 : module;
}

static bool listed(const struct gd_graft *graft, const struct gd_modules *modules, int slot)
{
    return graft->site_param[slot] >= 0 && gd_modules_match(modules, gd_slot_site(graft->model, slot));
}

static bool same_leaf(const struct gd_graft *graft, int a, int b)
{
    return strcmp(leaf_name(gd_slot_site(graft->model, a)->name), leaf_name(gd_slot_site(graft->model, b)->name)) == 0;
}

/* PEFT matches names as suffixes: the short names do if every module so named is in a list or out of it, and that for all
 * of the method's lists, as PEFT asks for lists of names to be subsets of others. */
static bool short_names_do(const struct gd_graft *graft)
{
    int slots = gd_slot_count(graft->model);
    for (int o = 0; o < graft->method->option_count; o++)
        for (int i = 0; graft->method->options[o].type == GD_OPTION_MODULES && i < slots; i++)
            for (int j = 0; j < i; j++)
                if (same_leaf(graft, i, j) &&
                    listed(graft, &graft->config.modules[o], i) != listed(graft, &graft->config.modules[o], j))
                    return false;
    return true;
}

static cJSON *module_list(const struct gd_graft *graft, const struct gd_modules *modules, bool whole)
{
    int slots = gd_slot_count(graft->model);
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < slots; i++) {
        if (!listed(graft, modules, i))
            continue;
        bool seen = false;
        for (int j = 0; j < i && whole && !seen; j++)
            seen = same_leaf(graft, i, j);
        const char *name = gd_slot_site(graft->model, i)->name;
        if (!seen)
            cJSON_AddItemToArray(list, cJSON_CreateString(whole ? leaf_name(name) : name));
    }
    return list;
}

static cJSON *adapter_config(const struct gd_graft *graft)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "peft_type", graft->method->peft_type);
    cJSON_AddStringToObject(json, "task_type", "CAUSAL_LM");
    cJSON_AddStringToObject(json, "base_model_name_or_path", graft->model->id);
    cJSON_AddNullToObject(json, "revision");
    cJSON_AddBoolToObject(json, "inference_mode", true);
    bool whole = short_names_do(graft);
    for (int i = 0; i < graft->method->option_count; i++) {
        const struct gd_adapter_option *option = &graft->method->options[i];
        if (option->use == GD_OPTION_OURS)
            continue;
        if (option->type == GD_OPTION_MODULES)
            cJSON_AddItemToObject(json, option->name, module_list(graft, &graft->config.modules[i], whole));
        else if (option->type == GD_OPTION_INTS)
            cJSON_AddItemToObject(json, option->name, gd_adapter_ints_json(&graft->config.ints[i]));
        else if (option->type == GD_OPTION_TEXT)
            cJSON_AddItemToObject(json, option->name, gd_adapter_text_json(graft->config.texts[i]));
        else
            cJSON_AddItemToObject(json, option->name, gd_adapter_value_json(option, graft->config.values[i]));
    }
    cJSON *fields = cJSON_Parse(graft->method->peft_fields), *field;
    assert(fields != NULL);
    while ((field = cJSON_DetachItemFromArray(fields, 0)) != NULL)
        cJSON_AddItemToObject(json, field->string, field);
    cJSON_Delete(fields);
    if (graft->method->describe != NULL)
        graft->method->describe(graft, json);
    gd_score_describe(graft, json);
    return json;
}

static bool write_json(const char *folder, const char *name, const cJSON *json, struct gd_error *err)
{
    char *path = gd_format("%s/%s", folder, name);
    char *text = gd_json_print(json);
    bool ok = gd_file_write_durable(path, text, strlen(text), err);
    gd_free(text);
    gd_free(path);
    return ok;
}

static bool write_card(const struct gd_graft *graft, const char *folder, struct gd_error *err)
{
    struct gd_buf card;
    cJSON *config = gd_adapter_config_json(&graft->config);
    gd_buf_init(&card, 1 << 20);
    gd_buf_printf(&card,
                  "---\nlibrary_name: peft\nbase_model: %s\ntags:\n- base_model:adapter:%s\n- %s\n- graftd\n"
                  "pipeline_tag: text-generation\n---\n\n# A %s adapter for %s\n\n",
                  graft->model->id, graft->model->id, graft->method->name, graft->method->name, graft->model->id);
    char *options = gd_json_print(config);
    gd_buf_printf(&card, "Method: %s.\n\n%lld parameters, made with\n\n    %s\n\n", graft->method->paper,
                  (long long)graft->parameter_count, options);
    gd_free(options);
    cJSON_Delete(config);
    gd_buf_append_text(&card, "It was trained on one base, one tokenizer and one chat template; `graftd.json` holds their "
                              "digests, and graftd refuses to serve it on others.\n\n### Framework versions\n\n- graftd " GD_VERSION
                              "\n");
    char *path = gd_format("%s/README.md", folder);
    bool ok = gd_file_write_durable(path, card.data, card.length, err);
    gd_free(path);
    gd_buf_release(&card);
    return ok;
}

/* The file has [rows][columns] where the block has [columns][rows]. */
static float *transposed(const float *from, int64_t rows, int64_t columns)
{
    float *to = gd_alloc_array((size_t)(rows * columns), sizeof(float));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            to[i * columns + j] = from[j * rows + i];
    return to;
}

/* The block's f32 as I32. */
static float *integers(const float *from, int64_t count)
{
    int32_t *to = gd_alloc_array((size_t)count, sizeof(int32_t));
    for (int64_t i = 0; i < count; i++)
        to[i] = (int32_t)from[i];
    return (float *)to;
}

/* The file's tensor whose first piece is params[first]. */
static float *joined(const struct gd_graft *graft, const float *block, int first)
{
    const struct gd_graft_param *param = &graft->params[first];
    int64_t rows = param->shape[0], width = param->shape[1];
    float *to = gd_alloc_array((size_t)(rows * width), (size_t)param->pieces * sizeof(float));
    for (int piece = 0; piece < param->pieces; piece++)
        for (int64_t row = 0; row < rows; row++)
            memcpy(to + (row * param->pieces + piece) * width, block + graft->params[first + piece].offset + row * width,
                   (size_t)width * sizeof(float));
    return to;
}

static bool write_weights(const struct gd_graft *graft, const float *block, const char *folder, bool apart, struct gd_error *err)
{
    int count = graft->param_count + graft->frozen_param_count, entry_count = 0;
    struct gd_safetensors_entry *entries = gd_alloc_array((size_t)count, sizeof(*entries));
    float **copies = gd_alloc_array((size_t)count, sizeof(*copies));
    for (int i = 0; i < count; i++) {
        const struct gd_graft_param *param = &graft->params[i];
        const float *data = block + param->offset;
        if (param->transposed)
            data = copies[i] = transposed(data, param->shape[0], param->shape[1]);
        if (param->integers)
            data = copies[i] = integers(data, param->shape[0] * param->shape[1]);
        if (param->apart != apart || (param->pieces > 0 && param->piece > 0))
            continue;
        if (param->pieces > 0)
            data = copies[i] = joined(graft, block, i);
        int64_t columns = param->shape[1] * (param->pieces > 0 ? param->pieces : 1);
        entries[entry_count++] = (struct gd_safetensors_entry){
            .name = param->name,
            .tensor = {.dtype = param->integers ? GD_I32 : GD_F32, .rank = param->rank, .shape = {param->shape[0], param->rank == 2 ? columns : 0},
                       .data = (void *)(uintptr_t)data}};
        if (param->rank == 4)
            memcpy(entries[entry_count - 1].tensor.shape, param->file_shape, sizeof(param->file_shape));
    }
    cJSON *metadata = cJSON_CreateObject();
    cJSON_AddStringToObject(metadata, "format", "pt");
    char *path = gd_format("%s/%s", folder, apart ? APART_FILE : "adapter_model.safetensors");
    bool ok = (apart && entry_count == 0) || gd_safetensors_write(path, entries, entry_count, metadata, err);
    gd_free(path);
    cJSON_Delete(metadata);
    for (int i = 0; i < count; i++)
        gd_free(copies[i]);
    gd_free(copies);
    gd_free(entries);
    return ok;
}

bool gd_graft_save(const struct gd_graft *graft, const float *block, const char *folder, const cJSON *extra,
                   struct gd_error *err)
{
    cJSON *facts = cJSON_CreateObject();
    cJSON_AddStringToObject(facts, "graftd_version", GD_VERSION);
    cJSON_AddStringToObject(facts, "base_model", graft->model->id);
    cJSON_AddStringToObject(facts, "base_digest", graft->model->digest);
    cJSON_AddStringToObject(facts, "tokenizer_digest", graft->model->tokenizer_digest);
    cJSON_AddStringToObject(facts, "template_digest", graft->model->template_digest);
    cJSON_AddItemToObject(facts, "adapter", gd_adapter_config_json(&graft->config));
    if (graft->method->by_task)
        cJSON_AddItemToObject(facts, "tasks", cJSON_CreateStringArray((const char *const *)graft->config.tasks.names, graft->config.tasks.count));
    const cJSON *member;
    cJSON_ArrayForEach(member, extra) cJSON_AddItemToObject(facts, member->string, cJSON_Duplicate(member, true));
    struct gd_graft *kept = NULL;
    bool ok = gd_graft_keep(graft, block, &kept, err);
    cJSON *config = ok ? adapter_config(kept != NULL ? kept : graft) : NULL;
    ok = ok && write_json(folder, "adapter_config.json", config, err) && write_json(folder, "graftd.json", facts, err) &&
              write_card(graft, folder, err) && write_weights(kept != NULL ? kept : graft, kept != NULL ? kept->block : block, folder, false, err) &&
         write_weights(kept != NULL ? kept : graft, kept != NULL ? kept->block : block, folder, true, err);
    gd_graft_destroy(kept);
    cJSON_Delete(config);
    cJSON_Delete(facts);
    if (!ok)
        gd_error_context(err, "save adapter");
    return ok;
}

/* ---- loading ---- */

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

static bool read_config(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err)
{
    const char *type = NULL;
    if (!gd_json_get_string(json, "", "peft_type", true, 1, 64, &type, err) || (config->method = method_of(type, err)) == NULL)
        return false;
    config->finished = true;
    if (!gd_score_read(config, json, err))
        return false;
    for (const char *const *key = config->method->refused; *key != NULL; key++)
        if (!(config->score && strcmp(*key, "modules_to_save") == 0) && !refuse_option(json, *key, err))
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
static bool read_targets(struct gd_adapter_config *config, const struct gd_safetensors *file, struct gd_error *err)
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
        size_t tail = config->score && strcmp(name, GD_SCORE_NAME) == 0 ? 0 : anchored(name, anchor);
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
        float *turned = transposed(to, columns, param->shape[0]);
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
    char *path = gd_format("%s/" APART_FILE, folder);
    struct gd_safetensors *file = NULL;
    struct stat info;
    bool ok = true;
    if (stat(path, &info) == 0)
        ok = gd_safetensors_open(&file, path, err) && read_file(graft, file, APART_FILE, true, err);
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

static void make_wear(struct gd_graft *graft)
{
    int slots = gd_slot_count(graft->model);
    graft->wear = gd_alloc_array((size_t)slots, sizeof(*graft->wear));
    graft->depth = GD_WEAR_NONE;
    for (int i = 0; i < slots; i++) {
        int first = graft->site_param[i];
        if (first < 0)
            continue;
        graft->method->wear(graft, gd_slot_site(graft->model, i), &graft->params[first], &graft->wear[i]);
        const struct gd_wear_part *part = &graft->wear[i];
        enum gd_wear_depth depth = part->rows != NULL                                    ? GD_WEAR_ROWS
                                   : gd_slot_site(graft->model, i)->kind == GD_SITE_BLOCK ? GD_WEAR_BLOCKS
                                   : part->norm != NULL                                  ? GD_WEAR_NORMS
                                   : part->in_scale != NULL || part->in_rotate != NULL   ? GD_WEAR_INPUTS
                                                                                         : GD_WEAR_OUTPUTS;
        graft->depth = depth > graft->depth ? depth : graft->depth;
    }
}

static void make_digest(struct gd_graft *graft)
{
    struct gd_buf text;
    char digest[33], *options;
    cJSON *config = gd_adapter_config_json(&graft->config);
    options = gd_json_print(config);
    gd_buf_init(&text, 0);
    gd_hash_xxh3(graft->block, (size_t)gd_graft_floats(graft) * sizeof(float), digest);
    gd_buf_printf(&text, "%s scale %a task %d xxh3 %s", options, graft->scale, graft->task, digest);
    for (int i = 0; i < graft->param_count + graft->frozen_param_count; i++)
        gd_buf_printf(&text, "\n%s %lld", graft->params[i].name, (long long)graft->params[i].offset);
    gd_hash_sha256(text.data, text.length, graft->digest);
    gd_buf_release(&text);
    gd_free(options);
    cJSON_Delete(config);
}

void gd_graft_ready(struct gd_graft *graft)
{
    make_digest(graft);
    make_wear(graft); /* may use the block up */
}

/* "'a', 'b', 'c'" as far as it fits. */
static void list_tasks(const struct gd_modules *tasks, char *text, size_t size)
{
    text[0] = '\0';
    for (int i = 0; i < tasks->count; i++) {
        size_t used = strlen(text);
        if (used + strlen(tasks->names[i]) + 12 > size) {
            snprintf(text + used, size - used, ", ...");
            break;
        }
        snprintf(text + used, size - used, "%s'%s'", i > 0 ? ", " : "", tasks->names[i]);
    }
}

static bool find_task(const struct gd_graft *graft, const char *task, int *index, struct gd_error *err)
{
    const struct gd_modules *tasks = &graft->config.tasks;
    char list[512];
    list_tasks(tasks, list, sizeof(list));
    *index = tasks->count == 1 ? 0 : -1;
    if (task == NULL)
        return tasks->count == 1 || gd_fail_param(err, GD_MISSING, "task", "this model was trained on several tasks: give task, one of "
                                                  "%s, or '%s' for the mean of all", list, GD_TASK_AVERAGE);
    for (*index = 0; *index < tasks->count; ++*index)
        if (strcmp(tasks->names[*index], task) == 0)
            return true;
    *index = -1;
    return strcmp(task, GD_TASK_AVERAGE) == 0 ||
           gd_fail_param(err, GD_INVALID, "task", "this model was not trained on task '%.64s'; its tasks are %s, and '%s' is the mean "
                         "of all", task, list, GD_TASK_AVERAGE);
}

bool gd_graft_wear_task(struct gd_graft *graft, const char *task, struct gd_error *err)
{
    int index;
    if (!graft->method->by_task)
        return task == NULL || gd_fail_param(err, GD_INVALID, "task", "this model (%s) has no tasks to choose from: leave task out",
                                             graft->method->name);
    if (!find_task(graft, task, &index, err))
        return false;
    if (index == graft->task)
        return true;
    graft->task = index;
    gd_free(graft->wear);
    gd_graft_drop_derived(graft);
    gd_graft_ready(graft);
    return true;
}

static bool is_file(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

/* Parameters are declared by the names in the file, then read. */
static bool make_graft(struct gd_graft **out, const struct gd_model *model, struct gd_adapter_config *config,
                       const struct gd_safetensors *file, const cJSON *json, const char *folder, struct gd_error *err)
{
    struct gd_graft_source source = {.file = file};
    bool chooses = config->method->choose != NULL;
    if (!chooses && (!read_targets(config, file, err) || !check_promised(json, config, err)))
        return false;
    if (!gd_graft_create_by(out, model, config, &source, err))
        return false;
    if (chooses)
        name_targets(*out);
    return (!chooses || check_promised(json, &(*out)->config, err)) && read_weights(*out, file, folder, err);
}

bool gd_graft_read(struct gd_graft **out, const struct gd_model *model, const char *folder, struct gd_error *err)
{
    assert(*out == NULL);
    if (is_file(folder))
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
    ok = ok && check_facts(model, folder, err) && read_config(&config, json, err) &&
         read_tasks(&config, folder, err) && gd_safetensors_open(&file, weights_path, err) &&
         make_graft(&graft, model, &config, file, json, folder, err);
    if (ok) {
        graft->task = graft->config.tasks.count == 1 ? 0 : -1;
        make_digest(graft);
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
        make_wear(*out);
    return true;
}
