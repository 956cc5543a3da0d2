#include "engine/eval/source.h"

#include "engine/base/alloc.h"
#include "engine/eval/grader_type.h"
#include "source_list.h"

#include <math.h>
#include <string.h>

#define GD_SOURCE(name) extern const struct gd_eval_source_type gd_eval_source_type_##name;
GD_SOURCE_LIST
#undef GD_SOURCE
#define GD_SOURCE(name) &gd_eval_source_type_##name,
static const struct gd_eval_source_type *const source_types[] = {GD_SOURCE_LIST};
#undef GD_SOURCE

/* OpenAI's other kind runs its Responses API. */
static const char *const elsewhere = "responses";

struct gd_eval_source *gd_eval_source_parse(const struct gd_eval_spec *spec, const cJSON *json, struct gd_error *err)
{
    static const char path[] = "data_source";
    const char *names[GD_COUNT(source_types)];
    int index = 0;
    for (size_t i = 0; i < GD_COUNT(source_types); i++)
        names[i] = source_types[i]->name;
    if (!cJSON_IsObject(json)) {
        gd_fail_param(err, json == NULL || cJSON_IsNull(json) ? GD_MISSING : GD_INVALID, path,
                      "data_source must be an object with a type");
        return NULL;
    }
    const cJSON *type = gd_json_find(json, "type");
    if (cJSON_IsString(type) && strcmp(type->valuestring, elsewhere) == 0) {
        gd_fail_param(err, GD_UNSUPPORTED, "data_source.type",
                      "data_source.type: the Responses API is not served here; use \"completions\"");
        return NULL;
    }
    if (!gd_grader_choice(json, path, "type", names, (int)GD_COUNT(names), &index, err))
        return NULL;
    struct gd_eval_source *source = gd_alloc(sizeof *source);
    source->type = source_types[index];
    source->spec = spec;
    if (source->type->parse(source, json, path, err))
        return source;
    gd_eval_source_destroy(source);
    return NULL;
}

bool gd_eval_source_open(struct gd_eval_source *source, const char *file_path, struct gd_error *err)
{
    return source->type->open(source, file_path, err);
}

void gd_eval_source_destroy(struct gd_eval_source *source)
{
    if (source == NULL)
        return;
    source->type->release(source);
    gd_free(source->model);
    gd_free(source->task);
    gd_free(source->file_id);
    gd_free(source->second_file_id);
    gd_free(source);
}

static bool add_model(const char *ids[GD_EVAL_MODELS_MAX], int *count, const char *id, struct gd_error *err)
{
    for (int i = 0; i < *count; i++)
        if (strcmp(ids[i], id) == 0)
            return true;
    if (*count == GD_EVAL_MODELS_MAX)
        return gd_fail(err, GD_INVALID, "a run asks at most %d models", GD_EVAL_MODELS_MAX);
    ids[(*count)++] = id;
    return true;
}

bool gd_eval_source_models(const struct gd_eval_source *source, const char *ids[GD_EVAL_MODELS_MAX], int *count,
                           struct gd_error *err)
{
    *count = 0;
    bool ok = source->model == NULL || add_model(ids, count, source->model, err);
    for (int i = 0; i < source->spec->grader_count; i++)
        for (int k = 0; ok && k < gd_grader_ask_count(source->spec->graders[i]); k++)
            ok = add_model(ids, count, gd_grader_ask_model(source->spec->graders[i], k), err);
    return ok;
}

/* ---- for sources ---- */

struct gd_ask *gd_eval_item_ask(struct gd_eval_item *item, enum gd_ask_kind kind)
{
    item->asks = gd_realloc_array(item->asks, (size_t)item->ask_count + 1, sizeof *item->asks);
    struct gd_ask *ask = &item->asks[item->ask_count++];
    gd_ask_init(ask, kind);
    return ask;
}

cJSON *gd_eval_result(const char *name, const char *type, double score, bool passed, const struct gd_error *error,
                      cJSON *sample_taken)
{
    bool failed = error != NULL && error->code != GD_OK;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "name", name);
    cJSON_AddStringToObject(json, "type", type);
    cJSON_AddItemToObject(json, "score", failed || !isfinite(score) ? cJSON_CreateNull() : cJSON_CreateNumber(score));
    cJSON_AddBoolToObject(json, "passed", passed && !failed);
    cJSON_AddItemToObject(json, "error", failed ? cJSON_CreateString(error->message) : cJSON_CreateNull());
    cJSON_AddItemToObject(json, "sample", sample_taken != NULL ? sample_taken : cJSON_CreateNull());
    return json;
}

static const char *status_of(const cJSON *results, const struct gd_error *error)
{
    const cJSON *result;
    bool passed = true;
    if (error != NULL && error->code != GD_OK)
        return "error";
    cJSON_ArrayForEach(result, results)
    {
        if (!cJSON_IsNull(gd_json_find(result, "error")))
            return "error";
        passed = passed && cJSON_IsTrue(gd_json_find(result, "passed"));
    }
    return passed ? "pass" : "fail";
}

static cJSON *error_json(const struct gd_error *error)
{
    if (error == NULL || error->code == GD_OK)
        return cJSON_CreateNull();
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "code", gd_code_wire(error->code));
    cJSON_AddStringToObject(json, "message", error->message);
    return json;
}

void gd_eval_item_finish(struct gd_eval_item *item, cJSON *datasource_item_taken, cJSON *results_taken,
                         cJSON *sample_taken, const struct gd_error *error)
{
    item->finished = true;
    item->status = status_of(results_taken, error);
    item->body = cJSON_CreateObject();
    cJSON_AddItemToObject(item->body, "datasource_item",
                          datasource_item_taken != NULL ? datasource_item_taken : cJSON_CreateNull());
    cJSON_AddItemToObject(item->body, "results", results_taken != NULL ? results_taken : cJSON_CreateArray());
    cJSON_AddItemToObject(item->body, "sample", sample_taken != NULL ? sample_taken : cJSON_CreateNull());
    cJSON_AddItemToObject(item->body, "error", error_json(error));
}

void gd_eval_item_release(struct gd_eval_item *item)
{
    for (int i = 0; i < item->ask_count; i++)
        gd_ask_release(&item->asks[i]);
    gd_free(item->asks);
    cJSON_Delete(item->body);
    *item = (struct gd_eval_item){0};
}
