#include "engine/eval/spec.h"

#include "engine/base/alloc.h"
#include "engine/eval/grader_type.h"
#include "engine/eval/schema.h"
#include "engine/eval/task.h"
#include "engine/eval/yaml_read.h"

#include <string.h>

static const char *const config_types[] = {"custom", "task"};
/* OpenAI's, which evaluate what its platform has stored of past completions. */
static const char *const other_types[] = {"logs", "stored_completions"};

/* ---- data_source_config ---- */

static bool check_config_type(const cJSON *config, bool *is_task, struct gd_error *err)
{
    const cJSON *type = gd_json_find(config, "type");
    int index = 0;
    for (size_t i = 0; cJSON_IsString(type) && i < GD_COUNT(other_types); i++)
        if (strcmp(type->valuestring, other_types[i]) == 0)
            return gd_fail_param(err, GD_UNSUPPORTED, "data_source_config.type",
                                 "data_source_config.type: '%s' evaluates stored completions, and completions are not "
                                 "stored here; use \"custom\" and give the rows in a file",
                                 type->valuestring);
    bool ok = gd_grader_choice(config, "data_source_config", "type", config_types, (int)GD_COUNT(config_types), &index, err);
    *is_task = index == 1;
    return ok;
}

/* What templates see as `sample`. */
static cJSON *sample_schema(void)
{
    static const char *const names[] = {"output_text", "output_json", "output_tools"};
    cJSON *schema = cJSON_CreateObject(), *properties;
    cJSON_AddStringToObject(schema, "type", "object");
    properties = cJSON_AddObjectToObject(schema, "properties");
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        cJSON *one = cJSON_AddObjectToObject(properties, names[i]);
        if (i == 0)
            cJSON_AddStringToObject(one, "type", "string");
    }
    cJSON_AddItemToArray(cJSON_AddArrayToObject(schema, "required"), cJSON_CreateString("output_text"));
    return schema;
}

/* As OpenAI answers: {type, schema} with item and sample below the schema. */
static cJSON *answered_config(const cJSON *item_schema, bool include_sample)
{
    cJSON *config = cJSON_CreateObject();
    cJSON_AddStringToObject(config, "type", "custom");
    cJSON *schema = cJSON_AddObjectToObject(config, "schema");
    cJSON_AddStringToObject(schema, "type", "object");
    cJSON *properties = cJSON_AddObjectToObject(schema, "properties");
    cJSON_AddItemToObject(properties, "item", cJSON_Duplicate(item_schema, true));
    cJSON *required = cJSON_AddArrayToObject(schema, "required");
    cJSON_AddItemToArray(required, cJSON_CreateString("item"));
    if (include_sample) {
        cJSON_AddItemToObject(properties, "sample", sample_schema());
        cJSON_AddItemToArray(required, cJSON_CreateString("sample"));
    }
    return config;
}

static bool take_config(struct gd_eval_spec *spec, cJSON *config_taken)
{
    const cJSON *properties = gd_json_find(gd_json_find(config_taken, "schema"), "properties");
    spec->config = config_taken;
    spec->item_schema = properties != NULL ? gd_json_find(properties, "item") : NULL;
    spec->include_sample = properties != NULL && gd_json_find(properties, "sample") != NULL;
    return spec->item_schema != NULL;
}

/* ---- tasks ---- */

/* The YAML text, checked whole. */
static bool take_task(struct gd_eval_spec *spec, const cJSON *config, struct gd_error *err)
{
    static const char param[] = "data_source_config.task";
    const char *text = NULL;
    struct gd_error said = {0};
    if (!gd_json_get_string(config, "data_source_config", "task", true, 1, GD_YAML_BYTES_MAX, &text, err))
        return false;
    spec->task = gd_yaml_parse(text, strlen(text), &said);
    if (spec->task == NULL)
        return gd_fail_param(err, said.code, param, "%s: %s", param, said.message);
    struct gd_task *task = gd_task_parse(spec->task, param, err);
    bool ok = task != NULL;
    gd_task_destroy(task);
    return ok;
}

static bool parse_task(struct gd_eval_spec *spec, const cJSON *config, const cJSON *criteria, struct gd_error *err)
{
    static const char *const known[] = {"task", "type", NULL};
    if (!gd_json_only_known(config, "data_source_config", known, err) || !take_task(spec, config, err))
        return false;
    if (cJSON_GetArraySize(criteria) > 0)
        return gd_fail_param(err, GD_INVALID, "testing_criteria",
                             "testing_criteria: a task brings its own metrics (metric_list): leave the list out");
    cJSON *answered = cJSON_CreateObject(), *schema, *properties;
    cJSON_AddStringToObject(answered, "type", "task");
    cJSON_AddItemToObject(answered, "task", cJSON_Duplicate(gd_json_find(config, "task"), true));
    schema = cJSON_AddObjectToObject(answered, "schema");
    cJSON_AddStringToObject(schema, "type", "object");
    properties = cJSON_AddObjectToObject(schema, "properties");
    cJSON_AddStringToObject(cJSON_AddObjectToObject(properties, "item"), "type", "object");
    return take_config(spec, answered);
}

static bool parse_config(struct gd_eval_spec *spec, const cJSON *body, struct gd_error *err)
{
    static const char *const known[] = {"include_sample_schema", "item_schema", "type", NULL};
    const cJSON *config = NULL, *schema = NULL;
    bool include = false, is_task = false;
    if (!gd_json_get_object(body, "", "data_source_config", true, &config, err) || !check_config_type(config, &is_task, err))
        return false;
    if (is_task)
        return parse_task(spec, config, gd_json_find(body, "testing_criteria"), err);
    if (!gd_json_only_known(config, "data_source_config", known, err) ||
        !gd_json_get_object(config, "data_source_config", "item_schema", true, &schema, err) ||
        !gd_schema_check(schema, "data_source_config.item_schema", err) ||
        !gd_json_get_bool(config, "data_source_config", "include_sample_schema", false, &include, err))
        return false;
    return take_config(spec, answered_config(schema, include));
}

/* ---- testing_criteria ---- */

bool gd_eval_spec_check_reference(const struct gd_eval_spec *spec, bool with_sample,
                                  const struct gd_grader_reference *reference, const char *param, struct gd_error *err)
{
    if (reference->of_sample && !with_sample)
        return gd_fail_param(err, GD_INVALID, param, "%s: {{%.200s}}: there is no sample yet when this is filled in", param,
                             reference->text);
    if (reference->of_sample && !spec->include_sample)
        return gd_fail_param(err, GD_INVALID, param,
                             "%s: {{%.200s}} is a sample's, and data_source_config.include_sample_schema is not true", param,
                             reference->text);
    if (reference->of_sample)
        return true;
    char *what = gd_format("%s: {{%.200s}}", param, reference->text);
    bool ok = gd_schema_reaches(spec->item_schema, reference->steps, reference->step_count, what, param, err);
    gd_free(what);
    return ok;
}

static bool check_reference(void *context, const struct gd_grader_reference *reference, const char *param,
                            struct gd_error *err)
{
    return gd_eval_spec_check_reference(context, true, reference, param, err);
}

static bool add_criterion(struct gd_eval_spec *spec, const cJSON *json, const char *path, struct gd_error *err)
{
    struct gd_grader *grader = gd_grader_parse(json, path, err);
    if (grader == NULL)
        return false;
    spec->graders[spec->grader_count++] = grader;
    for (int i = 0; i < spec->grader_count - 1; i++)
        if (strcmp(gd_grader_name(spec->graders[i]), gd_grader_name(grader)) == 0)
            return gd_fail_param(err, GD_INVALID, path, "%s: there are two criteria named '%.64s': their results could not be "
                                 "told apart", path, gd_grader_name(grader));
    const cJSON *threshold = gd_json_find(json, "pass_threshold");
    if (grader->type->threshold_required && (threshold == NULL || cJSON_IsNull(threshold))) {
        char *param = gd_format("%s.pass_threshold", path);
        gd_fail_param(err, GD_MISSING, param, "%s is missing: the score from which on an answer passes", param);
        gd_free(param);
        return false;
    }
    return gd_grader_references(grader, path, check_reference, spec, err);
}

static bool parse_criteria(struct gd_eval_spec *spec, const cJSON *list, struct gd_error *err)
{
    int count = cJSON_GetArraySize(list);
    if (!cJSON_IsArray(list) || count < 1 || count > GD_EVAL_CRITERIA_MAX)
        return gd_fail_param(err, list == NULL || cJSON_IsNull(list) ? GD_MISSING : GD_INVALID, "testing_criteria",
                             "testing_criteria must be a list of 1 to %d graders", GD_EVAL_CRITERIA_MAX);
    bool ok = true;
    for (int i = 0; ok && i < count; i++) {
        char *path = gd_format("testing_criteria[%d]", i);
        ok = add_criterion(spec, cJSON_GetArrayItem(list, i), path, err);
        gd_free(path);
    }
    return ok;
}

bool gd_eval_spec_parse(struct gd_eval_spec *spec, const cJSON *body, struct gd_error *err)
{
    *spec = (struct gd_eval_spec){0};
    if (parse_config(spec, body, err) && (spec->task != NULL || parse_criteria(spec, gd_json_find(body, "testing_criteria"), err)))
        return true;
    gd_eval_spec_release(spec);
    return false;
}

bool gd_eval_spec_restore(struct gd_eval_spec *spec, const cJSON *config, const cJSON *criteria, struct gd_error *err)
{
    *spec = (struct gd_eval_spec){0};
    bool ok = take_config(spec, cJSON_Duplicate(config, true)) ||
              gd_fail(err, GD_INTERNAL, "the stored data_source_config has no item schema");
    if (ok && gd_json_find(config, "task") != NULL && take_task(spec, config, err))
        return true;
    if (ok && err->code == GD_OK && parse_criteria(spec, criteria, err))
        return true;
    gd_eval_spec_release(spec);
    return false;
}

void gd_eval_spec_release(struct gd_eval_spec *spec)
{
    for (int i = 0; i < spec->grader_count; i++)
        gd_grader_destroy(spec->graders[i]);
    cJSON_Delete(spec->config);
    cJSON_Delete(spec->task);
    *spec = (struct gd_eval_spec){0};
}
