/*
 * routes_models.c - /v1/models: bases of the models folder, and what the project has tuned.
 */
#include "engine/base/alloc.h"
#include "engine/base/log.h"
#include "server/files.h"
#include "server/handlers.h"
#include "server/models.h"
#include "server/supervisor.h"

#include <string.h>

static cJSON *model_json(const char *id, int64_t created, const char *owner, const char *root, const char *parent,
                         const char *job_id)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "id", id);
    cJSON_AddStringToObject(json, "object", "model");
    cJSON_AddNumberToObject(json, "created", (double)created);
    cJSON_AddStringToObject(json, "owned_by", owner);
    cJSON_AddStringToObject(json, "root", root);
    if (parent != NULL)
        cJSON_AddStringToObject(json, "parent", parent);
    else
        cJSON_AddNullToObject(json, "parent");
    if (job_id != NULL)
        cJSON_AddStringToObject(json, "fine_tuning_job_id", job_id);
    return json;
}

struct visit {
    struct gd_app *app;
    struct gd_request *request;
    char *project, *id;
    struct gd_model_record *records;
    int count;
    struct gd_model_record record; /* delete */
};

static struct visit *visit_create(struct gd_app *app, struct gd_request *request, const char *id)
{
    struct visit *visit = gd_alloc(sizeof(*visit));
    visit->app = app;
    visit->request = request;
    visit->project = gd_strdup(gd_request_project(request));
    visit->id = gd_strdup(id);
    return visit;
}

static void visit_free(struct visit *visit)
{
    for (int i = 0; i < visit->count; i++)
        gd_model_record_release(&visit->records[i]);
    gd_free(visit->records);
    gd_model_record_release(&visit->record);
    gd_free(visit->project);
    gd_free(visit->id);
    gd_free(visit);
}

/* ---- list ---- */

static bool list_work(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct visit *visit = argument;
    return gd_db_model_list(db, visit->project, &visit->records, &visit->count, err);
}

static void list_done(void *argument, const struct gd_error *err)
{
    struct visit *visit = argument;
    if (err->code != GD_OK) {
        gd_http_fail(visit->request, err);
        visit_free(visit);
        return;
    }
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "object", "list");
    cJSON *data = cJSON_AddArrayToObject(json, "data");
    int bases = gd_models_count(visit->app->models);
    for (int i = 0; i < bases; i++) {
        const struct gd_base_model *base = gd_models_at(visit->app->models, i);
        cJSON_AddItemToArray(data, model_json(base->id, base->created, "graftd", base->id, NULL, NULL));
    }
    for (int i = 0; i < visit->count; i++) {
        const struct gd_model_record *record = &visit->records[i];
        cJSON_AddItemToArray(data, model_json(record->id, record->created_at, visit->project, record->base_model,
                                              record->parent != NULL ? record->parent : record->base_model, record->job_id));
    }
    gd_http_reply(visit->request, 200, json);
    visit_free(visit);
}

void gd_handle_model_list(struct gd_app *app, struct gd_request *request)
{
    struct gd_error err = {0};
    struct visit *visit = visit_create(app, request, NULL);
    if (!gd_store_submit(app->store, false, list_work, list_done, visit, &err))
        list_done(visit, &err);
}

/* ---- get ---- */

static void get_found(void *context, const struct gd_model_ref *ref, const struct gd_error *err)
{
    struct visit *visit = context;
    if (ref == NULL)
        gd_http_fail(visit->request, err);
    else if (ref->adapter_path == NULL)
        gd_http_reply(visit->request, 200, model_json(ref->id, ref->created, "graftd", ref->id, NULL, NULL));
    else
        gd_http_reply(visit->request, 200, model_json(ref->id, ref->created, visit->project, ref->base_model,
                                                      ref->parent, ref->job_id));
    visit_free(visit);
}

void gd_handle_model_get(struct gd_app *app, struct gd_request *request)
{
    const char *id = gd_request_param(request, 0);
    gd_models_resolve(app, gd_request_project(request), id, get_found, visit_create(app, request, id));
}

/* ---- delete ---- */

/* A checkpoint of a job that is not over may be what it resumes from. */
static bool delete_work(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct visit *visit = argument;
    if (!gd_db_model_get(db, visit->project, visit->id, &visit->record, err))
        return false;
    if (visit->record.is_checkpoint && visit->record.job_id != NULL) {
        struct gd_job_record job = {0};
        struct gd_error ignored = {0};
        bool live = gd_db_job_get(db, visit->project, visit->record.job_id, &job, &ignored) &&
                    !gd_job_status_terminal(job.status);
        enum gd_job_status status = job.status;
        gd_job_record_release(&job);
        if (live)
            return gd_fail_param(err, GD_CONFLICT, "model", "model '%.100s' is a checkpoint of job '%.64s', which is %s; "
                                 "cancel the job or wait for its end", visit->id, visit->record.job_id,
                                 gd_job_status_name(status));
    }
    return gd_db_model_delete(db, visit->project, visit->id, err);
}

static void tell_workers(struct gd_app *app, const char *adapter_path)
{
    int count = app->supervisor != NULL ? gd_supervisor_worker_count(app->supervisor) : 0;
    for (int i = 0; i < count; i++) {
        cJSON *message = cJSON_CreateObject();
        cJSON_AddStringToObject(message, "type", "release_adapter");
        cJSON_AddStringToObject(message, "adapter_path", adapter_path);
        gd_supervisor_send(app->supervisor, i, message);
    }
}

static void delete_done(void *argument, const struct gd_error *err)
{
    struct visit *visit = argument;
    if (err->code != GD_OK) {
        gd_http_fail(visit->request, err);
        visit_free(visit);
        return;
    }
    char *path = gd_format("%s/%s", visit->app->config.data_dir, visit->record.folder);
    tell_workers(visit->app, path);
    gd_trash(visit->app, path);
    gd_free(path);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "id", visit->id);
    cJSON_AddStringToObject(json, "object", "model");
    cJSON_AddBoolToObject(json, "deleted", true);
    gd_http_reply(visit->request, 200, json);
    visit_free(visit);
}

void gd_handle_model_delete(struct gd_app *app, struct gd_request *request)
{
    struct gd_error err = {0};
    const char *id = gd_request_param(request, 0);
    if (gd_models_find(app->models, id) != NULL) {
        gd_fail_param(&err, GD_FORBIDDEN, "model", "model \"%.100s\" is a base; remove it from the models folder", id);
        gd_http_fail(request, &err);
        return;
    }
    struct visit *visit = visit_create(app, request, id);
    if (!gd_store_submit(app->store, true, delete_work, delete_done, visit, &err))
        delete_done(visit, &err);
}
