/*
 * Evals and runs are made here: checked as far as that is possible before anything runs.
 *
 * A run is a job. Its request is checked against the eval, its models and its file are looked up, and then the scheduler
 * has it.
 */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/eval/source.h"
#include "server/eval_json.h"
#include "server/files.h"
#include "server/handlers.h"
#include "server/http.h"
#include "server/job_json.h"
#include "server/metadata.h"
#include "server/models.h"
#include "server/scheduler.h"
#include <string.h>

#define NAME_BYTES_MAX 512

/* ---- evals ---- */

struct creation {
    struct gd_app *app;
    struct gd_request *request;
    struct gd_eval_spec spec;
    struct gd_eval_record record;
    struct gd_error err;             /* of the graders' check */
    uv_work_t work;
};

static void release_creation(struct creation *creation)
{
    gd_eval_spec_release(&creation->spec);
    gd_eval_record_release(&creation->record);
    gd_free(creation);
}

static void fail_creation(struct creation *creation, const struct gd_error *err)
{
    gd_http_fail(creation->request, err);
    release_creation(creation);
}

static bool insert_eval(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct creation *creation = argument;
    return gd_db_eval_insert(db, &creation->record, err);
}

static void on_inserted(void *argument, const struct gd_error *err)
{
    struct creation *creation = argument;
    if (err->code != GD_OK) {
        fail_creation(creation, err);
        return;
    }
    gd_http_reply(creation->request, 201, gd_eval_json(&creation->record));
    release_creation(creation);
}

/* Some graders are slow to check: Python has to be read by Python. */
static void check_work(uv_work_t *work)
{
    struct creation *creation = work->data;
    bool ok = true;
    for (int i = 0; ok && i < creation->spec.grader_count; i++) {
        char *path = gd_format("testing_criteria[%d]", i);
        ok = gd_grader_check(creation->spec.graders[i], path, &creation->err);
        gd_free(path);
    }
}

static void check_after(uv_work_t *work, int status)
{
    struct creation *creation = work->data;
    struct gd_error err = creation->err;
    if (err.code != GD_OK ||
        !gd_store_submit(creation->app->store, true, insert_eval, on_inserted, creation, &err))
        fail_creation(creation, &err);
}

static void fill_eval(struct creation *creation, const cJSON *body, const char *name)
{
    char unique[25];
    gd_random_id(unique, 24);
    struct gd_eval_record *record = &creation->record;
    record->id = gd_format("eval_%s", unique);
    record->project = gd_strdup(gd_request_project(creation->request));
    record->name = gd_strdup(name);
    record->config = gd_json_print(creation->spec.config);
    record->criteria = creation->spec.task == NULL ? gd_json_print(gd_json_find(body, "testing_criteria")) : gd_strdup("[]");
    record->created_at = record->updated_at = gd_time_unix();
}

void gd_handle_eval_create(struct gd_app *app, struct gd_request *request)
{
    static const char *const known[] = {"data_source_config", "metadata", "name", "testing_criteria", NULL};
    struct gd_error err = {0};
    const cJSON *body = gd_request_json(request);
    const char *name = NULL;
    struct creation *creation = gd_alloc(sizeof *creation);
    creation->app = app;
    creation->request = request;
    if (!gd_json_only_known(body, "", known, &err) ||
        !gd_json_get_string(body, "", "name", false, 1, NAME_BYTES_MAX, &name, &err) ||
        !gd_metadata_read(body, &creation->record.metadata, &err) || !gd_eval_spec_parse(&creation->spec, body, &err)) {
        fail_creation(creation, &err);
        return;
    }
    fill_eval(creation, body, name);
    creation->work.data = creation;
    uv_queue_work(app->loop, &creation->work, check_work, check_after);
}

/* ---- runs ---- */

struct start {
    struct gd_app *app;
    struct gd_request *request;
    char *project, *eval_id;
    struct gd_eval_record eval;
    struct gd_eval_spec spec;
    struct gd_eval_source *source;
    const char *ids[GD_EVAL_MODELS_MAX]; /* models to look up */
    int id_count, looked_up;
    cJSON *models;                       /* those found */
    struct gd_job_record record;
};

static void release_start(struct start *start)
{
    gd_eval_source_destroy(start->source);
    gd_eval_spec_release(&start->spec);
    gd_eval_record_release(&start->eval);
    gd_job_record_release(&start->record);
    cJSON_Delete(start->models);
    gd_free(start->project);
    gd_free(start->eval_id);
    gd_free(start);
}

static void fail_start(struct start *start, const struct gd_error *err)
{
    gd_http_fail(start->request, err);
    release_start(start);
}

static void on_started(void *context, const struct gd_job_record *run, const struct gd_error *err)
{
    struct start *start = context;
    static const struct gd_eval_results none;
    if (err != NULL)
        gd_http_fail(start->request, err);
    else
        gd_http_reply(start->request, 201, gd_run_json(run, &none));
    release_start(start);
}

/* What the worker needs, so that a change of the eval's schema or of defaults cannot change a run that waits. */
static char *body_of(const struct start *start)
{
    struct gd_error ignored = {0};
    cJSON *body = cJSON_CreateObject();
    cJSON_AddItemToObject(body, "data_source_config", cJSON_Duplicate(start->spec.config, true));
    cJSON_AddItemToObject(body, "testing_criteria",
                          gd_json_parse(start->eval.criteria, strlen(start->eval.criteria), SIZE_MAX, &ignored));
    cJSON_AddItemToObject(body, "data_source",
                          cJSON_Duplicate(gd_json_find(gd_request_json(start->request), "data_source"), true));
    char *text = gd_json_print(body);
    cJSON_Delete(body);
    return text;
}

static void submit(struct start *start)
{
    char unique[25];
    gd_random_id(unique, 24);
    struct gd_job_record *record = &start->record;
    record->id = gd_format("evalrun_%s", unique);
    record->project = gd_strdup(start->project);
    record->kind = GD_JOB_KIND_EVAL;
    record->eval_id = gd_strdup(start->eval_id);
    record->model = gd_strdup(start->source->model != NULL ? start->source->model : "");
    record->training_file = gd_strdup(start->source->file_id != NULL ? start->source->file_id : "");
    record->validation_file = gd_strdup(start->source->second_file_id);
    record->body = body_of(start);
    record->hyperparameters = gd_json_print(start->models);
    record->status = GD_JOB_QUEUED;
    record->created_at = gd_time_unix();
    struct gd_job_record taken = *record;
    *record = (struct gd_job_record){0};
    gd_scheduler_submit(start->app->scheduler, &taken, on_started, start);
}

static void look_up_next(struct start *start);

static void on_model(void *context, const struct gd_model_ref *ref, const struct gd_error *err)
{
    struct start *start = context;
    const char *data_dir = start->app->config.data_dir;
    size_t length = strlen(data_dir);
    if (ref == NULL) {
        struct gd_error named = *err;
        gd_error_context(&named, start->looked_up == 0 && start->source->model != NULL ? "data_source.model"
                                                                                      : "a judge in testing_criteria");
        gd_http_fail_model(start->request, &named);
        release_start(start);
        return;
    }
    const char *folder = ref->adapter_path;
    if (folder != NULL && strncmp(folder, data_dir, length) == 0 && folder[length] == '/')
        folder += length + 1; /* the data folder may move */
    cJSON *model = cJSON_CreateObject();
    cJSON_AddStringToObject(model, "id", ref->id);
    cJSON_AddStringToObject(model, "base_id", ref->base_model);
    gd_json_add_text(model, "folder", folder);
    cJSON_AddItemToArray(start->models, model);
    start->looked_up++;
    look_up_next(start);
}

static void look_up_next(struct start *start)
{
    if (start->looked_up < start->id_count)
        gd_models_resolve(start->app, start->project, start->ids[start->looked_up], on_model, start);
    else
        submit(start);
}

static bool check_one_file(struct gd_db *db, const struct start *start, const char *id, const char *param, struct gd_error *err)
{
    struct gd_file_record file = {0};
    if (!gd_file_find(db, start->project, id, "evals", param, &file, err))
        return false;
    gd_file_record_release(&file);
    return true;
}

static bool check_file(struct gd_db *db, void *argument, struct gd_error *err)
{
    const struct start *start = argument;
    const struct gd_eval_source *source = start->source;
    return check_one_file(db, start, source->file_id, "data_source.source.id", err) &&
           (source->second_file_id == NULL || check_one_file(db, start, source->second_file_id, "data_source.examples.id", err));
}

static void on_file(void *argument, const struct gd_error *err)
{
    struct start *start = argument;
    if (err->code != GD_OK)
        fail_start(start, err);
    else
        look_up_next(start);
}

static bool parse_source(struct start *start, struct gd_error *err)
{
    struct gd_error ignored = {0};
    const struct gd_eval_record *eval = &start->eval;
    cJSON *config = gd_json_parse(eval->config, strlen(eval->config), SIZE_MAX, &ignored);
    cJSON *criteria = gd_json_parse(eval->criteria, strlen(eval->criteria), SIZE_MAX, &ignored);
    bool ok = gd_eval_spec_restore(&start->spec, config, criteria, err);
    cJSON_Delete(config);
    cJSON_Delete(criteria);
    if (ok)
        start->source =
            gd_eval_source_parse(&start->spec, gd_json_find(gd_request_json(start->request), "data_source"), err);
    return ok && start->source != NULL && gd_eval_source_models(start->source, start->ids, &start->id_count, err);
}

static bool read_eval(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct start *start = argument;
    return gd_db_eval_get(db, start->project, start->eval_id, &start->eval, err);
}

static void on_eval(void *argument, const struct gd_error *read)
{
    struct start *start = argument;
    struct gd_error err = *read;
    bool ok = err.code == GD_OK && parse_source(start, &err);
    if (ok && start->source->file_id == NULL)
        look_up_next(start);
    else if (!ok || !gd_store_submit(start->app->store, false, check_file, on_file, start, &err))
        fail_start(start, &err);
}

void gd_handle_eval_run_create(struct gd_app *app, struct gd_request *request)
{
    static const char *const known[] = {"data_source", "metadata", "name", NULL};
    struct gd_error err = {0};
    const cJSON *body = gd_request_json(request);
    const char *name = NULL;
    struct start *start = gd_alloc(sizeof *start);
    start->app = app;
    start->request = request;
    start->project = gd_strdup(gd_request_project(request));
    start->eval_id = gd_strdup(gd_request_param(request, 0));
    start->models = cJSON_CreateArray();
    bool ok = !app->draining || gd_fail_stopping(&err);
    ok = ok && gd_json_only_known(body, "", known, &err) &&
         gd_json_get_string(body, "", "name", false, 1, NAME_BYTES_MAX, &name, &err) &&
         gd_metadata_read(body, &start->record.metadata, &err);
    start->record.name = gd_strdup(name);
    if (!ok || !gd_store_submit(app->store, false, read_eval, on_eval, start, &err))
        fail_start(start, &err);
}
