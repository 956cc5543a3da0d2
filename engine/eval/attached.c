#include "engine/eval/attached.h"

#include "engine/base/alloc.h"

#include <stdio.h>
#include <string.h>

/* A stored eval's config is as it was answered. */
static bool parse_spec(struct gd_attached_eval *eval, const cJSON *json, bool stored, struct gd_error *err)
{
    const cJSON *config = gd_json_find(json, "data_source_config"), *criteria = gd_json_find(json, "testing_criteria");
    if (!stored)
        return gd_eval_spec_parse(&eval->spec, json, err);
    if (config == NULL || criteria == NULL)
        return gd_fail_param(err, GD_UNSUPPORTED, "eval_id", "eval_id names an eval of a server: in the foreground, give its "
                             "data_source_config and testing_criteria instead");
    return gd_eval_spec_restore(&eval->spec, config, criteria, err);
}

static bool parse_parts(struct gd_attached_eval *eval, const cJSON *json, struct gd_error *err)
{
    static const char *const known[] = {"name", "data_source_config", "testing_criteria", "data_source", "max_items", "eval_id",
                                        "file_path", "second_file_path", "models", NULL};
    const cJSON *given = NULL;
    const char *stored = NULL;
    eval->max_items = GD_EVAL_ITEMS_MAX;
    if (!gd_json_only_known(json, "", known, err) || !gd_json_get_string(json, "", "name", true, 1, 64, &eval->name, err) ||
        !gd_json_get_int(json, "", "max_items", false, 1, GD_EVAL_ITEMS_MAX, &eval->max_items, err) ||
        !gd_json_get_object(json, "", "data_source", true, &given, err) ||
        !gd_json_get_string(json, "", "eval_id", false, 1, 64, &stored, err) || !parse_spec(eval, json, stored != NULL, err))
        return false;
    if (gd_json_find(given, "model") != NULL)
        return gd_fail_param(err, GD_INVALID, "data_source.model", "data_source.model: the job's own checkpoints answer; leave it out");
    cJSON *source = cJSON_Duplicate(given, true);
    const cJSON *type = gd_json_find(source, "type");
    if (!cJSON_IsString(type) || strcmp(type->valuestring, "jsonl") != 0) /* its rows bring their answers along */
        cJSON_AddStringToObject(source, "model", GD_ATTACHED_MODEL);
    eval->source = gd_eval_source_parse(&eval->spec, source, err);
    cJSON_Delete(source);
    if (eval->source != NULL && eval->source->model == NULL)
        return gd_fail_param(err, GD_UNSUPPORTED, "data_source.type", "data_source.type \"jsonl\" asks no model, so that its scores would "
                             "be the same at every checkpoint: use \"completions\" or \"task\"");
    return eval->source != NULL;
}

bool gd_attached_eval_parse(struct gd_attached_eval *eval, const cJSON *json, const char *path, struct gd_error *err)
{
    *eval = (struct gd_attached_eval){0};
    if (parse_parts(eval, json, err))
        return true;
    char *param = gd_format("%s%s%s", path, err->param[0] != '\0' ? "." : "", err->param);
    snprintf(err->param, sizeof(err->param), "%.*s", (int)sizeof(err->param) - 1, param);
    gd_free(param);
    gd_error_context(err, "%s", path);
    return false;
}

void gd_attached_eval_release(struct gd_attached_eval *eval)
{
    gd_eval_source_destroy(eval->source);
    gd_eval_spec_release(&eval->spec);
    *eval = (struct gd_attached_eval){0};
}
