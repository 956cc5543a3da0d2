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
    return ok || gd_bad_model(err);
}

static bool parse_optional(const char *folder, const char *name, cJSON **json, struct gd_error *err)
{
    char *text = NULL;
    size_t length = 0;
    if (!read_optional(folder, name, GD_MODEL_CONFIG_BYTES_MAX, &text, &length, err))
        return false;
    if (text != NULL) {
        *json = gd_json_parse_within(text, length, GD_MODEL_CONFIG_BYTES_MAX, GD_JSON_FEW_VALUES, err);
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

/* ---- the chat templates ---- */

/* The one that conversations use, and the one that takes over when tools are given; where each was found. */
struct templates {
    char *plain, *tools;
    const char *plain_origin, *tools_origin;
};

static void take(char **slot, const char **slot_origin, const char *text, const char *origin)
{
    gd_free(*slot);
    *slot = gd_strdup(text);
    *slot_origin = origin;
}

/* [{"name", "template"}, ...]: the one called default, or the only one; tool_use. */
static bool pick_templates(const cJSON *list, struct templates *t, const char *origin, struct gd_error *err)
{
    for (const cJSON *each = list->child; each != NULL; each = each->next) {
        const char *name = NULL, *text = NULL;
        if (!gd_json_get_string(each, origin, "name", true, 1, 256, &name, err) ||
            !gd_json_get_string(each, origin, "template", true, 0, TEMPLATE_BYTES_MAX, &text, err))
            return gd_bad_model(err);
        if (strcmp(name, "default") == 0 || cJSON_GetArraySize(list) == 1)
            take(&t->plain, &t->plain_origin, text, origin);
        else if (strcmp(name, "tool_use") == 0)
            take(&t->tools, &t->tools_origin, text, origin);
    }
    return true;
}

static bool take_value(const cJSON *config, struct templates *t, const char *origin, struct gd_error *err)
{
    const cJSON *value = gd_json_find(config, "chat_template");
    if (value == NULL || cJSON_IsNull(value))
        return true;
    if (cJSON_IsArray(value))
        return pick_templates(value, t, origin, err);
    if (!cJSON_IsString(value))
        return gd_fail(err, GD_BAD_MODEL, "%s is neither a string nor a list", origin);
    take(&t->plain, &t->plain_origin, value->valuestring, origin);
    return true;
}

static bool take_file(const char *folder, const char *name, char **slot, const char **slot_origin, struct gd_error *err)
{
    char *text = NULL;
    size_t length = 0;
    if (!read_optional(folder, name, TEMPLATE_BYTES_MAX, &text, &length, err))
        return false;
    bool ok = text == NULL || (strlen(text) == length && gd_utf8_valid(text, length)) ||
              gd_fail(err, GD_BAD_MODEL, "%s is not valid UTF-8 without NUL", name);
    if (ok && text != NULL)
        take(slot, slot_origin, text, name);
    gd_free(text);
    return ok;
}

/* As transformers reads them: chat_template.json, then tokenizer_config.json, then chat_template.jinja, then
 * additional_chat_templates; the later wins. */
static bool find_templates(const char *folder, const cJSON *config, struct templates *t, struct gd_error *err)
{
    static const char *const legacy = "chat_template.json";
    cJSON *json = NULL;
    bool ok = parse_optional(folder, legacy, &json, err) && (json == NULL || take_value(json, t, legacy, err)) &&
              (config == NULL || take_value(config, t, "tokenizer_config.json.chat_template", err)) &&
              take_file(folder, "chat_template.jinja", &t->plain, &t->plain_origin, err) &&
              take_file(folder, "additional_chat_templates/default.jinja", &t->plain, &t->plain_origin, err) &&
              take_file(folder, "additional_chat_templates/tool_use.jinja", &t->tools, &t->tools_origin, err);
    cJSON_Delete(json);
    if (ok && t->plain == NULL && (t->tools != NULL || cJSON_GetArraySize(gd_json_find(config, "chat_template")) > 1))
        return gd_fail(err, GD_BAD_MODEL, "%s: none of the templates is called default",
                       t->tools != NULL ? t->tools_origin : "tokenizer_config.json.chat_template");
    return ok;
}

static bool load_chat(struct gd_model *model, const cJSON *config, struct gd_error *err)
{
    struct templates t = {0};
    bool ok = find_templates(model->path, config, &t, err);
    model->chat_template = t.plain;
    model->tools_template = t.tools;
    if (ok && !gd_chat_create(&model->chat, model->tokenizer, t.plain, err)) {
        gd_error_context(err, "%s", t.plain_origin);
        ok = false;
    }
    if (ok && t.tools != NULL && !gd_chat_add_tools_template(model->chat, t.tools, err)) {
        gd_error_context(err, "%s", t.tools_origin);
        ok = false;
    }
    return ok;
}

static bool load_text(struct gd_model *model, struct gd_error *err)
{
    char *config = NULL;
    size_t length = 0;
    cJSON *tree = NULL;
    bool ok = read_optional(model->path, "tokenizer_config.json", TOKENIZER_CONFIG_BYTES_MAX, &config, &length, err);
    if (ok && config != NULL) {
        tree = gd_json_parse_within(config, length, TOKENIZER_CONFIG_BYTES_MAX, GD_JSON_FEW_VALUES, err);
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
