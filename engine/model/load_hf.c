/* load_hf.c - a model from a Hugging Face folder. Nothing but JSON, safetensors and Jinja text is ever read. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/model/config.h"
#include "engine/model/files.h"
#include "engine/model/text.h"
#include <unistd.h>

#define TOKENIZER_CONFIG_BYTES_MAX (64u << 20)
#define TEMPLATE_BYTES_MAX (1u << 20) /* the interpreter has a lower limit of its own */

/* A whole file of the folder; *data stays NULL when it is absent. */
static bool read_optional(const char *folder, const char *name, size_t size_max, char **data, size_t *length,
                          struct gd_error *err)
{
    char *path = gd_format("%s/%s", folder, name);
    bool ok = access(path, F_OK) != 0 || gd_file_read(path, size_max, data, length, err);
    gd_free(path);
    return ok;
}

static bool parse_optional(const char *folder, const char *name, cJSON **json, struct gd_error *err)
{
    char *text = NULL;
    size_t length = 0;
    if (!read_optional(folder, name, GD_MODEL_CONFIG_BYTES_MAX, &text, &length, err))
        return false;
    if (text != NULL) {
        *json = gd_json_parse(text, length, GD_MODEL_CONFIG_BYTES_MAX, err);
        gd_free(text);
        if (*json == NULL) {
            gd_error_context(err, "%s", name);
            return gd_bad_model(err);
        }
    }
    return true;
}

static bool load_config(struct gd_model *model, struct gd_error *err)
{
    cJSON *json = NULL, *generation = NULL;
    bool ok = parse_optional(model->path, "config.json", &json, err) &&
              parse_optional(model->path, "generation_config.json", &generation, err);
    if (ok && json == NULL)
        ok = gd_fail(err, GD_BAD_MODEL, "no config.json");
    ok = ok && gd_model_config_from_json(&model->config, json, generation, err);
    cJSON_Delete(json);
    cJSON_Delete(generation);
    return ok;
}

/* ---- the chat template ---- */

/* [{"name", "template"}, ...]: the one called default, or the only one. */
static bool pick_template(const cJSON *list, const char **out, struct gd_error *err)
{
    for (const cJSON *each = list->child; each != NULL; each = each->next) {
        const char *name = NULL, *text = NULL;
        if (!gd_json_get_string(each, "tokenizer_config.json.chat_template", "name", true, 1, 256, &name, err) ||
            !gd_json_get_string(each, "tokenizer_config.json.chat_template", "template", true, 0, TEMPLATE_BYTES_MAX,
                                &text, err))
            return gd_bad_model(err);
        if (strcmp(name, "default") == 0 || cJSON_GetArraySize(list) == 1)
            *out = text;
    }
    if (*out == NULL && list->child != NULL)
        return gd_fail(err, GD_BAD_MODEL,
                       "tokenizer_config.json.chat_template: none of the templates is called default");
    return true;
}

static bool config_template(const cJSON *config, const char **out, struct gd_error *err)
{
    const cJSON *value = gd_json_find(config, "chat_template");
    if (value == NULL || cJSON_IsNull(value))
        return true;
    if (cJSON_IsArray(value))
        return pick_template(value, out, err);
    if (!cJSON_IsString(value))
        return gd_fail(err, GD_BAD_MODEL, "tokenizer_config.json.chat_template is neither a string nor a list");
    *out = value->valuestring;
    return true;
}

/* chat_template.jinja comes before tokenizer_config.json. */
static bool load_chat(struct gd_model *model, const cJSON *config, struct gd_error *err)
{
    const char *inside = NULL, *origin = "chat_template.jinja";
    size_t length = 0;
    if (!read_optional(model->path, origin, TEMPLATE_BYTES_MAX, &model->chat_template, &length, err))
        return false;
    if (model->chat_template != NULL) {
        if (strlen(model->chat_template) != length || !gd_utf8_valid(model->chat_template, length))
            return gd_fail(err, GD_BAD_MODEL, "%s is not valid UTF-8 without NUL", origin);
    } else {
        origin = "tokenizer_config.json.chat_template";
        if (config != NULL && !config_template(config, &inside, err))
            return false;
        model->chat_template = gd_strdup(inside);
    }
    if (gd_chat_create(&model->chat, model->tokenizer, model->chat_template, err))
        return true;
    gd_error_context(err, "%s", origin);
    return false;
}

static bool load_text(struct gd_model *model, struct gd_error *err)
{
    char *config = NULL;
    size_t length = 0;
    cJSON *tree = NULL;
    bool ok = read_optional(model->path, "tokenizer_config.json", TOKENIZER_CONFIG_BYTES_MAX, &config, &length, err);
    if (ok && config != NULL) {
        tree = gd_json_parse(config, length, TOKENIZER_CONFIG_BYTES_MAX, err);
        if (tree == NULL) {
            gd_error_context(err, "tokenizer_config.json");
            ok = gd_bad_model(err);
        }
    }
    ok = ok && gd_tokenizer_from_folder(&model->tokenizer, model->path, tree, err) && load_chat(model, tree, err);
    cJSON_Delete(tree);
    gd_free(config);
    return ok;
}

bool gd_model_load_folder(struct gd_model *model, struct gd_error *err)
{
    memcpy(model->format, "safetensors", sizeof "safetensors");
    if (load_config(model, err) && gd_files_open_folder(model->files, model->path, err) &&
        gd_files_fill(model, false, err) && load_text(model, err))
        return true;
    gd_error_context(err, "%s", model->path);
    return false;
}
