/* peft_save.c - grafts to disk, in Hugging Face PEFT's format. */
#include "engine/adapter/build.h"
#include "engine/adapter/head.h"
#include "engine/adapter/score.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/safetensors.h"

#include <assert.h>
#include <string.h>

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
    cJSON_AddStringToObject(json, "task_type", gd_model_encodes(graft->model) ? "SEQ_2_SEQ_LM" : "CAUSAL_LM");
    cJSON_AddStringToObject(json, "base_model_name_or_path", graft->model->id);
    cJSON_AddNullToObject(json, "revision");
    cJSON_AddBoolToObject(json, "inference_mode", true);
    bool whole = short_names_do(graft) && !gd_model_is_encoder(graft->model); /* "dense" would match its head too */
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
    if (graft->model->config.transposed && gd_json_find(json, "fan_in_fan_out") != NULL) /* what PEFT calls Conv1D */
        cJSON_ReplaceItemInObjectCaseSensitive(json, "fan_in_fan_out", cJSON_CreateTrue());
    if (graft->method->describe != NULL)
        graft->method->describe(graft, json);
    gd_score_describe(graft, json);
    gd_head_describe(graft, json);
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
            data = copies[i] = gd_transposed(data, param->shape[0], param->shape[1]);
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
    char *path = gd_format("%s/%s", folder, apart ? GD_APART_FILE : "adapter_model.safetensors");
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
    gd_head_add_facts(graft, facts);
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
