#include "engine/adapter/head.h"

#include "engine/adapter/build.h"
#include "engine/base/alloc.h"
#include "engine/model/family.h"
#include "engine/model/safetensors.h"

#include <stdio.h>
#include <string.h>

#define DEVIATION 0.02f
#define STREAM 0x6c616265u /* of random numbers; methods count theirs from 0 */
#define PREFIX "base_model.model."

static const char *outer_name(const struct gd_model *model, int part)
{
    return model->config.family->names->outer[part].hf;
}

/* The module of the dense layer on the first token; NULL: a decoder has none. */
static const char *pool_name(const struct gd_model *model)
{
    if (!gd_model_is_encoder(model))
        return NULL;
    const char *own = outer_name(model, GD_OUTER_LABEL_POOL);
    return own != NULL ? own : outer_name(model, GD_OUTER_POOL);
}

static const char *label_name(const struct gd_model *model)
{
    const char *name = outer_name(model, GD_OUTER_LABELS);
    return name != NULL ? name : "score";
}

static bool is_tensor(const char *name, const char *module, const char *kind)
{
    char full[192];
    snprintf(full, sizeof full, PREFIX "%s.%s", module, kind);
    return strcmp(name, full) == 0;
}

bool gd_head_owns(const struct gd_model *model, const char *name)
{
    const char *pool = pool_name(model), *label = label_name(model);
    return is_tensor(name, label, "weight") || is_tensor(name, label, "bias") ||
           (pool != NULL && (is_tensor(name, pool, "weight") || is_tensor(name, pool, "bias")));
}

static void add_vector(struct gd_graft *graft, const char *module, int64_t count)
{
    struct gd_graft_param *param = gd_graft_add_last(graft, module, "bias", count, 1);
    param->rank = 1;
    param->flat = true;
}

bool gd_head_add(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_model *model = graft->model;
    const char *pool = pool_name(model), *label = label_name(model);
    int width = model->config.embed_width, labels = graft->config.labels.count;
    if (graft->method->by_task)
        return gd_fail_param(err, GD_UNSUPPORTED, "adapter.type", "a %s adapter has tasks and trains no classifier; use another type (GET "
                             "/v1/tuning/methods lists them)", graft->method->name);
    if (graft->virtual_rows.count > 0)
        return gd_fail_param(err, GD_UNSUPPORTED, "adapter.type", "a %s adapter puts virtual tokens before every sequence, and trains no "
                             "classifier; use another type (GET /v1/tuning/methods lists them)", graft->method->name);
    if (pool != NULL) {
        (void)gd_graft_add_last(graft, pool, "weight", width, width);
        add_vector(graft, pool, width);
    }
    (void)gd_graft_add_last(graft, label, "weight", labels, width);
    if (pool != NULL)
        add_vector(graft, label, labels);
    graft->head_params = pool != NULL ? 4 : 1;
    return true;
}

/* The base's own tensor of the parameter, if it has one of that size. */
static const struct gd_weight *base_weight(const struct gd_graft *graft, const struct gd_graft_param *param)
{
    const struct gd_model *model = graft->model;
    const char *pool = pool_name(model), *label = label_name(model);
    const struct gd_weight *weight = NULL;
    if (pool != NULL && is_tensor(param->name, pool, "weight"))
        weight = model->pool;
    else if (pool != NULL && is_tensor(param->name, pool, "bias"))
        weight = model->pool_bias;
    else if (model->config.label_count == graft->config.labels.count)
        weight = is_tensor(param->name, label, "weight") ? model->label_head : model->label_bias;
    return weight;
}

bool gd_head_from_base(const struct gd_graft *graft, const struct gd_graft_param *param, float *to)
{
    const char *pool = pool_name(graft->model);
    const struct gd_weight *weight = base_weight(graft, param);
    if (graft->config.labels.count == 0 || pool == NULL || weight == NULL ||
        !(is_tensor(param->name, pool, "weight") || is_tensor(param->name, pool, "bias")))
        return false;
    gd_weight_to_f32(weight, to);
    return true;
}

void gd_head_init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    for (int i = graft->param_count - graft->head_params; i < graft->param_count; i++) {
        const struct gd_graft_param *param = &graft->params[i];
        const struct gd_weight *weight = base_weight(graft, param);
        int64_t count = param->shape[0] * param->shape[1];
        if (weight != NULL)
            gd_weight_to_f32(weight, block + param->offset);
        else if (param->rank == 1)
            memset(block + param->offset, 0, (size_t)count * sizeof(float));
        else
            gd_fill_normal(block + param->offset, count, DEVIATION, seed, STREAM + (uint32_t)i);
    }
}

void gd_head_copy(const struct gd_graft *from, const float *block, const struct gd_graft *to, float *to_block)
{
    if (from->head_params != to->head_params || from->config.labels.count != to->config.labels.count)
        return;
    for (int i = 1; i <= from->head_params; i++) {
        const struct gd_graft_param *source = &from->params[from->param_count - i], *target = &to->params[to->param_count - i];
        memcpy(to_block + target->offset, block + source->offset, (size_t)(source->shape[0] * source->shape[1]) * sizeof(float));
    }
}

/* The module that PEFT wraps: "pooler" of bert.pooler.dense, "classifier" of classifier.dense. */
static void add_saved(cJSON *list, const char *module)
{
    char name[64];
    const char *dense = strstr(module, ".dense") != NULL ? strstr(module, ".dense") : strstr(module, ".out_proj");
    size_t length = dense != NULL ? (size_t)(dense - module) : strlen(module);
    const char *leaf = module;
    for (const char *c = module; c < module + length; c++)
        leaf = *c == '.' ? c + 1 : leaf;
    snprintf(name, sizeof name, "%.*s", (int)(module + length - leaf), leaf);
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
        if (strcmp(item->valuestring, name) == 0)
            return;
    cJSON_AddItemToArray(list, cJSON_CreateString(name));
}

void gd_head_describe(const struct gd_graft *graft, cJSON *json)
{
    if (graft->config.labels.count == 0)
        return;
    cJSON *saved = cJSON_CreateArray();
    add_saved(saved, label_name(graft->model));
    if (pool_name(graft->model) != NULL)
        add_saved(saved, pool_name(graft->model));
    cJSON_ReplaceItemInObjectCaseSensitive(json, "task_type", cJSON_CreateString("SEQ_CLS"));
    cJSON_DeleteItemFromObjectCaseSensitive(json, "modules_to_save");
    cJSON_AddItemToObject(json, "modules_to_save", saved);
}

void gd_head_add_facts(const struct gd_graft *graft, cJSON *facts)
{
    const struct gd_modules *labels = &graft->config.labels;
    if (labels->count == 0)
        return;
    cJSON_AddItemToObject(facts, "labels", cJSON_CreateStringArray((const char *const *)(uintptr_t)labels->names, labels->count));
    cJSON_AddStringToObject(facts, "problem_type", graft->config.multi_label ? "multi_label_classification" : "single_label_classification");
}

static bool read_names(struct gd_adapter_config *config, const struct gd_model *model, const cJSON *facts, int count, struct gd_error *err)
{
    const cJSON *list = gd_json_find(facts, "labels"), *problem = gd_json_find(facts, "problem_type"), *item;
    char **names = gd_alloc_array((size_t)count, sizeof *names);
    int given = 0;
    bool ok = true;
    config->multi_label = cJSON_IsString(problem) ? strcmp(problem->valuestring, "multi_label_classification") == 0 : model->config.multi_label;
    cJSON_ArrayForEach(item, list)
        if (cJSON_IsString(item) && given < count)
            names[given++] = gd_strdup(item->valuestring);
    if (list != NULL && (cJSON_GetArraySize(list) != count || given != count))
        ok = gd_fail_param(err, GD_BAD_MODEL, "labels", "graftd.json has %d labels, the head %d", cJSON_GetArraySize(list), count);
    for (; given < count; given++)
        names[given] = model->config.label_count == count ? gd_strdup(model->config.labels[given]) : gd_format("LABEL_%d", given);
    if (ok)
        gd_adapter_set_labels(config, names, count, config->multi_label);
    for (int i = 0; i < given; i++)
        gd_free(names[i]);
    gd_free(names);
    return ok;
}

bool gd_head_read(struct gd_adapter_config *config, const struct gd_model *model, const cJSON *json, const cJSON *facts,
                  const struct gd_safetensors *file, bool *found, struct gd_error *err)
{
    const cJSON *task = gd_json_find(json, "task_type");
    char name[192];
    struct gd_tensor head;
    snprintf(name, sizeof name, PREFIX "%s.weight", label_name(model));
    bool named = cJSON_IsArray(gd_json_find(facts, "labels"));
    *found = cJSON_IsString(task) && strcmp(task->valuestring, "SEQ_CLS") == 0 && gd_safetensors_find(file, name, &head) && head.rank == 2 &&
             (named || gd_model_is_encoder(model) || head.shape[0] > 1);
    if (!*found)
        return true;
    if (head.shape[0] < 1 || head.shape[0] > GD_LABELS_MAX || head.shape[1] != model->config.embed_width)
        return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors: '%s' is [%lld, %lld]; this base needs at most %d rows of %d", name,
                       (long long)head.shape[0], (long long)head.shape[1], GD_LABELS_MAX, model->config.embed_width);
    return read_names(config, model, facts, (int)head.shape[0], err);
}
