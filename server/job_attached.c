#include "server/job_attached.h"

#include "engine/base/alloc.h"
#include "engine/eval/attached.h"
#include "server/files.h"
#include "server/models.h"

#include <stdio.h>
#include <string.h>

#define PATH_MAX_BYTES 48

static void path_of(int index, char out[PATH_MAX_BYTES])
{
    snprintf(out, PATH_MAX_BYTES, "evaluation.evals[%d]", index);
}

/* ---- when it is submitted ---- */

/* What is not there is the request's mistake; anything else is the store's. */
static bool fail_lookup(const struct gd_error *lookup, const char *path, const char *what, const char *id, struct gd_error *err)
{
    if (lookup->code == GD_NOT_FOUND)
        return gd_fail_param(err, GD_INVALID, path, "%s: there is no %s '%.200s'", path, what, id);
    *err = *lookup;
    return false;
}

static bool add_stored(struct gd_db *db, const char *project, cJSON *json, const char *path, struct gd_error *err)
{
    const char *id = NULL;
    struct gd_eval_record eval = {0};
    if (!gd_json_get_string(json, path, "eval_id", false, 1, 64, &id, err))
        return false;
    if (id == NULL)
        return true;
    if (gd_json_find(json, "data_source_config") != NULL || gd_json_find(json, "testing_criteria") != NULL)
        return gd_fail_param(err, GD_INVALID, path, "%s: give either eval_id, or data_source_config and testing_criteria", path);
    struct gd_error lookup = {0};
    if (!gd_db_eval_get(db, project, id, &eval, &lookup))
        return fail_lookup(&lookup, path, "eval", id, err);
    cJSON_AddItemToObject(json, "data_source_config", gd_json_parse(eval.config, strlen(eval.config), SIZE_MAX, err));
    cJSON_AddItemToObject(json, "testing_criteria", gd_json_parse(eval.criteria, strlen(eval.criteria), SIZE_MAX, err));
    gd_eval_record_release(&eval);
    return err->code == GD_OK;
}

static bool check_file(struct gd_db *db, const char *project, const char *id, const char *path, struct gd_error *err)
{
    struct gd_file_record file = {0};
    if (id == NULL)
        return true;
    if (!gd_file_find(db, project, id, "evals", path, &file, err)) {
        gd_error_context(err, "%s", path);
        return false;
    }
    gd_file_record_release(&file);
    return true;
}

static bool add_judge(struct gd_db *db, const char *project, const char *id, const char *path, cJSON *models, struct gd_error *err)
{
    struct gd_model_record model = {0};
    bool tuned = strncmp(id, "ft:", 3) == 0;
    struct gd_error lookup = {0};
    if (tuned && !gd_db_model_get(db, project, id, &model, &lookup))
        return fail_lookup(&lookup, path, "model", id, err);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "id", id);
    cJSON_AddStringToObject(json, "base_id", tuned ? model.base_model : id);
    cJSON_AddItemToObject(json, "folder", tuned ? cJSON_CreateString(model.folder) : cJSON_CreateNull());
    cJSON_AddItemToArray(models, json);
    gd_model_record_release(&model);
    return true;
}

static bool resolve_one(struct gd_db *db, const char *project, cJSON *json, const char *path, struct gd_error *err)
{
    struct gd_attached_eval eval = {0};
    const char *ids[GD_EVAL_MODELS_MAX];
    int count = 0;
    static const char *const ours[] = {"models", "file_path", "second_file_path"};
    for (size_t i = 0; i < GD_COUNT(ours); i++)
        if (gd_json_find(json, ours[i]) != NULL)
            return gd_fail_param(err, GD_UNKNOWN_FIELD, path, "%s.%s is not a field", path, ours[i]);
    if (!add_stored(db, project, json, path, err) || !gd_attached_eval_parse(&eval, json, path, err)) {
        gd_attached_eval_release(&eval);
        return false;
    }
    cJSON *models = cJSON_CreateArray();
    bool ok = check_file(db, project, eval.source->file_id, path, err) && check_file(db, project, eval.source->second_file_id, path, err) &&
              gd_eval_source_models(eval.source, ids, &count, err);
    for (int i = 0; ok && i < eval.spec.grader_count && gd_json_find(json, "eval_id") == NULL; i++)
        ok = gd_grader_check(eval.spec.graders[i], path, err);
    for (int i = 0; ok && i < count; i++)
        ok = strcmp(ids[i], GD_ATTACHED_MODEL) == 0 || add_judge(db, project, ids[i], path, models, err);
    cJSON_AddItemToObject(json, "models", models);
    gd_attached_eval_release(&eval);
    return ok;
}

bool gd_attached_resolve(struct gd_db *db, const char *project, cJSON *evals, struct gd_error *err)
{
    cJSON *json;
    int index = 0;
    cJSON_ArrayForEach(json, evals)
    {
        char path[PATH_MAX_BYTES];
        path_of(index++, path);
        if (!resolve_one(db, project, json, path, err))
            return false;
    }
    return true;
}

bool gd_attached_check_bases(const struct gd_app *app, const cJSON *evals, struct gd_error *err)
{
    const cJSON *json, *model;
    int index = 0;
    cJSON_ArrayForEach(json, evals)
    {
        char path[PATH_MAX_BYTES];
        path_of(index++, path);
        cJSON_ArrayForEach(model, gd_json_find(json, "models"))
        {
            const char *base = gd_json_find(model, "base_id")->valuestring;
            if (gd_models_find(app->models, base) == NULL)
                return gd_fail_param(err, GD_INVALID, path, "%s: the judge's model '%.200s' is not in the models folder", path, base);
        }
    }
    return true;
}

/* ---- when it starts ---- */

static void add_path(const struct gd_app *app, cJSON *json, const char *name, const char *file_id)
{
    char *path = file_id != NULL ? gd_file_path(app, file_id) : NULL;
    if (path != NULL)
        cJSON_AddStringToObject(json, name, path);
    gd_free(path);
}

bool gd_attached_place(const struct gd_app *app, cJSON *evals, struct gd_error *err)
{
    cJSON *json;
    int index = 0;
    bool ok = true;
    cJSON_ArrayForEach(json, evals)
    {
        struct gd_attached_eval eval = {0};
        char path[PATH_MAX_BYTES];
        path_of(index++, path);
        ok = ok && gd_attached_eval_parse(&eval, json, path, err);
        if (ok) {
            add_path(app, json, "file_path", eval.source->file_id);
            add_path(app, json, "second_file_path", eval.source->second_file_id);
            ok = gd_models_place(app, cJSON_GetObjectItemCaseSensitive(json, "models"), err);
        }
        gd_attached_eval_release(&eval);
    }
    return ok;
}
