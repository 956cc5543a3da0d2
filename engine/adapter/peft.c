/* peft.c - grafts on disk, in Hugging Face PEFT's format, with a strict account of tensors. */
#include "engine/adapter/adapter.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/safetensors.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define CONFIG_BYTES_MAX (4u << 20)

static const char *leaf_name(const char *module)
{
    const char *dot = strrchr(module, '.');
    return dot ? dot + 1 : module;
}

/* PEFT matches names as suffixes: the short names do if every module so named is touched, else full paths. */
static cJSON *target_list(const struct gd_graft *graft)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    bool whole = true;
    for (int i = 0; i < site_count && whole; i++)
        for (int j = 0; j < site_count && whole; j++)
            whole = strcmp(leaf_name(sites[i].name), leaf_name(sites[j].name)) != 0 ||
                    (graft->site_param[i] < 0) == (graft->site_param[j] < 0);
    cJSON *list = cJSON_CreateArray();
    for (int i = 0; i < site_count; i++) {
        if (graft->site_param[i] < 0)
            continue;
        bool seen = false;
        for (int j = 0; j < i && whole && !seen; j++)
            seen = strcmp(leaf_name(sites[i].name), leaf_name(sites[j].name)) == 0;
        if (!seen)
            cJSON_AddItemToArray(list, cJSON_CreateString(whole ? leaf_name(sites[i].name) : sites[i].name));
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
    cJSON_AddNumberToObject(json, "r", graft->config.r);
    cJSON_AddNumberToObject(json, "lora_alpha", graft->config.lora_alpha);
    cJSON_AddNumberToObject(json, "lora_dropout", graft->config.lora_dropout);
    cJSON_AddBoolToObject(json, "use_rslora", graft->config.use_rslora);
    cJSON_AddBoolToObject(json, "use_dora", false);
    cJSON_AddItemToObject(json, "target_modules", target_list(graft));
    cJSON_AddStringToObject(json, "bias", "none");
    cJSON_AddBoolToObject(json, "fan_in_fan_out", false);
    cJSON_AddBoolToObject(json, "init_lora_weights", true);
    cJSON_AddNullToObject(json, "modules_to_save");
    cJSON_AddNullToObject(json, "layers_to_transform");
    cJSON_AddNullToObject(json, "layers_pattern");
    cJSON_AddItemToObject(json, "rank_pattern", cJSON_CreateObject());
    cJSON_AddItemToObject(json, "alpha_pattern", cJSON_CreateObject());
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
    gd_buf_init(&card, 1 << 20);
    gd_buf_printf(&card,
                  "---\nlibrary_name: peft\nbase_model: %s\ntags:\n- base_model:adapter:%s\n- %s\n- graftd\n"
                  "pipeline_tag: text-generation\n---\n\n# A %s adapter for %s\n\n",
                  graft->model->id, graft->model->id, graft->method->name, graft->method->name, graft->model->id);
    gd_buf_printf(&card, "Method: %s.\n\nRank %d, lora_alpha %g, lora_dropout %g%s; %lld trained parameters.\n\n",
                  graft->method->paper, graft->config.r, graft->config.lora_alpha, graft->config.lora_dropout,
                  graft->config.use_rslora ? ", rank-stabilised scale" : "", (long long)graft->parameter_count);
    gd_buf_append_text(&card, "It was trained on one base, one tokenizer and one chat template; `graftd.json` holds their "
                              "digests, and graftd refuses to serve it on others.\n\n### Framework versions\n\n- graftd " GD_VERSION
                              "\n");
    char *path = gd_format("%s/README.md", folder);
    bool ok = gd_file_write_durable(path, card.data, card.length, err);
    gd_free(path);
    gd_buf_release(&card);
    return ok;
}

static bool write_weights(const struct gd_graft *graft, const float *block, const char *folder, struct gd_error *err)
{
    struct gd_safetensors_entry *entries = gd_alloc_array((size_t)graft->param_count, sizeof(*entries));
    for (int i = 0; i < graft->param_count; i++) {
        const struct gd_graft_param *param = &graft->params[i];
        entries[i].name = param->name;
        entries[i].tensor = (struct gd_tensor){.dtype = GD_F32, .rank = param->rank,
                                               .shape = {param->shape[0], param->shape[1]},
                                               .data = (void *)(uintptr_t)(block + param->offset)};
    }
    cJSON *metadata = cJSON_CreateObject();
    cJSON_AddStringToObject(metadata, "format", "pt");
    char *path = gd_format("%s/adapter_model.safetensors", folder);
    bool ok = gd_safetensors_write(path, entries, graft->param_count, metadata, err);
    gd_free(path);
    cJSON_Delete(metadata);
    gd_free(entries);
    return ok;
}

bool gd_graft_save(const struct gd_graft *graft, const float *block, const char *folder, const cJSON *extra,
                   struct gd_error *err)
{
    cJSON *config = adapter_config(graft);
    cJSON *facts = cJSON_CreateObject();
    cJSON_AddStringToObject(facts, "graftd_version", GD_VERSION);
    cJSON_AddStringToObject(facts, "base_model", graft->model->id);
    cJSON_AddStringToObject(facts, "base_digest", graft->model->digest);
    cJSON_AddStringToObject(facts, "tokenizer_digest", graft->model->tokenizer_digest);
    cJSON_AddStringToObject(facts, "template_digest", graft->model->template_digest);
    cJSON_AddItemToObject(facts, "adapter", gd_adapter_config_json(&graft->config));
    const cJSON *member;
    cJSON_ArrayForEach(member, extra) cJSON_AddItemToObject(facts, member->string, cJSON_Duplicate(member, true));
    bool ok = write_json(folder, "adapter_config.json", config, err) && write_json(folder, "graftd.json", facts, err) &&
              write_card(graft, folder, err) && write_weights(graft, block, folder, err);
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

static bool read_config(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err)
{
    const char *type = NULL;
    if (!gd_json_get_string(json, "", "peft_type", true, 1, 64, &type, err))
        return false;
    const struct gd_adapter_method *method = NULL;
    for (int i = 0; i < gd_adapter_count; i++)
        if (strcmp(gd_adapter_table[i]->peft_type, type) == 0)
            method = gd_adapter_table[i];
    if (method == NULL)
        return gd_fail_param(err, GD_UNSUPPORTED, "peft_type", "adapter_config.json: peft_type '%s' is not supported; LORA is",
                             type);
    /* What changes the mathematics; initialisations (loftq, eva, corda, ...) leave plain LoRA behind. */
    static const char *const refused[] = {
        "use_dora", "use_qalora", "use_bdlora", "bias", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern",
        "lora_bias", "target_parameters", "trainable_token_indices", "layer_replication", "alora_invocation_tokens",
        "arrow_config", "kasa_config", "monteclora_config", "velora_config"};
    for (size_t i = 0; i < GD_COUNT(refused); i++)
        if (!refuse_option(json, refused[i], err))
            return false;
    strcpy(config->type, method->name);
    int64_t r = 8;
    config->lora_alpha = 8;
    if (!gd_json_get_int(json, "", "r", false, 1, GD_LORA_RANK_MAX, &r, err) ||
        !gd_json_get_number(json, "", "lora_alpha", false, 1e-6, 1e6, &config->lora_alpha, err) ||
        !gd_json_get_number(json, "", "lora_dropout", false, 0.0, 1.0, &config->lora_dropout, err) ||
        !gd_json_get_bool(json, "", "use_rslora", false, &config->use_rslora, err))
        return false;
    config->r = (int)r;
    return true;
}

/* Which modules the file touches, from its own tensor names. */
static bool read_targets(struct gd_adapter_config *config, const struct gd_safetensors *file, struct gd_error *err)
{
    static const char prefix[] = "base_model.model.", suffix[] = ".lora_A.weight";
    int count = gd_safetensors_count(file);
    config->targets = gd_alloc_array((size_t)count + 1, sizeof(char *));
    for (int i = 0; i < count; i++) {
        const char *name = gd_safetensors_name(file, i);
        size_t length = strlen(name);
        if (strncmp(name, prefix, sizeof(prefix) - 1) == 0 && length > sizeof(prefix) + sizeof(suffix) &&
            strcmp(name + length - (sizeof(suffix) - 1), suffix) == 0)
            config->targets[config->target_count++] =
                gd_strndup(name + sizeof(prefix) - 1, length - (sizeof(prefix) - 1) - (sizeof(suffix) - 1));
    }
    if (config->target_count == 0)
        return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors holds no 'base_model.model.*.lora_A.weight' tensor");
    return true;
}

/* Every target that adapter_config.json names must have been filled by some tensor. */
static bool check_promised(const cJSON *json, const struct gd_adapter_config *config, struct gd_error *err)
{
    const cJSON *targets = gd_json_find(json, "target_modules"), *item;
    if (!cJSON_IsArray(targets))
        return true; /* a pattern: the tensors are the account */
    cJSON_ArrayForEach(item, targets)
    {
        if (!cJSON_IsString(item))
            return gd_fail_param(err, GD_BAD_MODEL, "target_modules", "adapter_config.json: target_modules must hold strings");
        bool found = false;
        size_t length = strlen(item->valuestring);
        for (int i = 0; i < config->target_count && !found; i++) {
            size_t have = strlen(config->targets[i]);
            found = have >= length && strcmp(config->targets[i] + have - length, item->valuestring) == 0 &&
                    (have == length || config->targets[i][have - length - 1] == '.');
        }
        if (!found)
            return gd_fail_param(err, GD_BAD_MODEL, "target_modules",
                                 "adapter_config.json names target module '%s', but adapter_model.safetensors has no tensor for it",
                                 item->valuestring);
    }
    return true;
}

static bool read_weights(struct gd_graft *graft, const struct gd_safetensors *file, struct gd_error *err)
{
    graft->block = gd_alloc_array((size_t)graft->parameter_count, sizeof(float));
    for (int i = 0; i < graft->param_count; i++) {
        const struct gd_graft_param *param = &graft->params[i];
        struct gd_tensor tensor;
        if (!gd_safetensors_find(file, param->name, &tensor))
            return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors: tensor '%s' is missing", param->name);
        if (tensor.rank != 2 || tensor.shape[0] != param->shape[0] || tensor.shape[1] != param->shape[1])
            return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors: '%s' has shape [%lld, %lld]; this base and rank need "
                                              "[%lld, %lld]",
                           param->name, (long long)tensor.shape[0], (long long)tensor.shape[1], (long long)param->shape[0],
                           (long long)param->shape[1]);
        gd_convert_to_f32(graft->block + param->offset, tensor.data, tensor.dtype, param->shape[0] * param->shape[1]);
    }
    for (int i = 0; i < gd_safetensors_count(file); i++) {
        bool used = false;
        for (int p = 0; p < graft->param_count && !used; p++)
            used = strcmp(gd_safetensors_name(file, i), graft->params[p].name) == 0;
        if (!used)
            return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors: tensor '%s' fits nothing in base '%s'",
                           gd_safetensors_name(file, i), graft->model->id);
    }
    for (int64_t i = 0; i < graft->parameter_count; i++)
        if (!isfinite(graft->block[i]))
            return gd_fail(err, GD_BAD_MODEL, "adapter_model.safetensors holds values that are not finite");
    return true;
}

static void make_wear(struct gd_graft *graft)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    graft->wear = gd_alloc_array((size_t)site_count, sizeof(*graft->wear));
    for (int i = 0; i < site_count; i++) {
        int first = graft->site_param[i];
        if (first < 0)
            continue;
        graft->wear[i] = (struct gd_wear_lowrank){.rank = graft->config.r, .scale = (float)graft->scale,
                                                  .a = graft->block + graft->params[first].offset,
                                                  .b = graft->block + graft->params[first + 1].offset};
    }
}

bool gd_graft_load(struct gd_graft **out, const struct gd_model *model, const char *folder, struct gd_error *err)
{
    assert(*out == NULL);
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
         gd_safetensors_open(&file, weights_path, err) && read_targets(&config, file, err) &&
         check_promised(json, &config, err) && gd_graft_create(&graft, model, &config, err) &&
         read_weights(graft, file, err);
    if (ok) {
        make_wear(graft);
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
