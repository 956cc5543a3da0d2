/* Fine-tuning jobs: create, list, retrieve, cancel, pause, resume. Events, checkpoints, metrics: routes_job_data.c. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/train/spec.h"
#include "server/files.h"
#include "server/handlers.h"
#include "server/http.h"
#include "server/job_attached.h"
#include "server/job_change.h"
#include "server/job_json.h"
#include "server/job_plan.h"
#include "server/metadata.h"
#include "server/models.h"
#include "server/scheduler.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define IDEMPOTENCY_KEY_MAX 255
#define LIST_LIMIT 20
#define LIST_LIMIT_MAX 1000

/* ---- create ---- */

struct create {
    struct gd_app *app;
    struct gd_request *request;
    struct gd_job_spec spec;
    struct gd_job_record record;
    struct gd_job_record earlier;    /* the job that this Idempotency-Key made */
    struct gd_model_record start;    /* what spec.init_from names */
    bool repeated, seed_given, tried_again, resolved;
};

static void release_create(struct create *create)
{
    gd_job_spec_release(&create->spec);
    gd_job_record_release(&create->record);
    gd_job_record_release(&create->earlier);
    gd_model_record_release(&create->start);
    gd_free(create);
}

static void fail_create(struct create *create, const struct gd_error *err)
{
    gd_http_fail(create->request, err);
    release_create(create);
}

static bool check_integrations(const cJSON *body, char **out, struct gd_error *err)
{
    const cJSON *integrations = NULL;
    if (!gd_json_get_array(body, "", "integrations", false, &integrations, err))
        return false;
    if (integrations == NULL)
        return true;
    const cJSON *first = cJSON_GetArrayItem(integrations, 0);
    const cJSON *type = cJSON_IsObject(first) ? gd_json_find(first, "type") : NULL;
    if (first != NULL)
        return gd_fail_param(err, GD_UNSUPPORTED, "integrations",
                             "integration '%.64s' is not supported: leave integrations out and read the job's events and "
                             "GET /v1/fine_tuning/jobs/{id}/metrics", cJSON_IsString(type) ? type->valuestring : "?");
    *out = gd_strdup("[]");
    return true;
}

static bool check_idempotency_key(const struct gd_request *request, char **out, struct gd_error *err)
{
    const char *key = gd_request_header(request, "Idempotency-Key");
    if (key == NULL)
        return true;
    size_t length = strlen(key);
    bool plain = length >= 1 && length <= IDEMPOTENCY_KEY_MAX && gd_utf8_valid(key, length);
    if (!plain)
        return gd_fail_param(err, GD_INVALID, "Idempotency-Key", "the key has %zu bytes; it must be UTF-8 text of 1 to %d",
                             length, IDEMPOTENCY_KEY_MAX);
    *out = gd_strdup(key);
    return true;
}

static bool is_tuned(const char *model)
{
    return strncmp(model, "ft:", 3) == 0;
}

/* A tuned model as "model" is where the job starts from, and its base what is tuned; look_up_for_create finds both. */
static bool check_model(const struct gd_app *app, struct gd_job_spec *spec, struct gd_error *err)
{
    const char *model = spec->model;
    if (is_tuned(model)) {
        if (spec->init_from != NULL)
            return gd_fail_param(err, GD_INVALID, "init_from", "model is a tuned model, and so names what the job starts from: leave "
                                 "init_from out, or give its base as model");
        spec->init_from = gd_strdup(model);
        return true;
    }
    if (spec->init_from != NULL && !is_tuned(spec->init_from))
        return gd_fail_param(err, GD_INVALID, "init_from", "init_from is '%.200s'; it must be a tuned model (ft:...): a base alone "
                             "stands in model", spec->init_from);
    if (gd_models_find(app->models, model) == NULL)
        return gd_fail_param(err, GD_NOT_FOUND, "model", "model '%.200s' is not in the models folder: GET /v1/models lists "
                             "what is there", model);
    return true;
}

/* The record as it will be stored; the body is the spec in full, so that defaults of a later version change nothing. */
static void fill_record(struct create *create)
{
    struct gd_job_record *record = &create->record;
    const struct gd_job_spec *spec = &create->spec;
    char unique[25];
    gd_random_id(unique, 24);
    record->id = gd_format("ftjob-%s", unique);
    record->project = gd_strdup(gd_request_project(create->request));
    record->model = gd_strdup(spec->model);
    record->training_file = gd_strdup(spec->training_file);
    record->validation_file = gd_strdup(spec->validation_file);
    record->suffix = gd_strdup(spec->suffix);
    cJSON *body = gd_job_spec_json(spec), *hyperparameters = gd_job_spec_hyperparameters(spec);
    record->body = gd_json_print(body);
    record->hyperparameters = gd_json_print(hyperparameters);
    cJSON_Delete(body);
    cJSON_Delete(hyperparameters);
    record->result_files = gd_strdup("[]");
    record->status = GD_JOB_QUEUED;
    record->created_at = gd_time_unix();
    record->seed = spec->seed;
}

/* What the check of the file on its arrival left to the job. */
static bool check_report(const struct gd_job_spec *spec, const struct gd_file_record *file, const char *param, struct gd_error *err)
{
    struct gd_error ignored = {0};
    cJSON *report = file->report != NULL ? gd_json_parse(file->report, strlen(file->report), SIZE_MAX, &ignored) : NULL;
    const cJSON *count = gd_json_find(report, "incomparable_rows");
    double rows = cJSON_IsNumber(count) ? count->valuedouble : 0;
    cJSON_Delete(report);
    return rows == 0 || spec->drop_incomparable ||
           gd_fail_param(err, GD_INVALID, "data.incomparable", "%s %.200s has %.0f row%s with identical or empty answers, where there is "
                         "nothing to compare (GET /v1/files/%.200s names the lines): upload it without them, or set data.incomparable to "
                         "\"drop\"", param, file->id, rows, rows == 1 ? "" : "s", file->id);
}

static bool check_file(struct gd_db *db, const struct gd_job_spec *spec, const char *project, const char *id, const char *param,
                       struct gd_error *err)
{
    struct gd_file_record file = {0};
    if (!gd_file_find(db, project, id, "fine-tune", param, &file, err))
        return false;
    bool ok = true;
    if (strcmp(file.status, "processed") != 0)
        ok = gd_fail_param(err, GD_INVALID, param, "file %s has the status '%s': %s", id, file.status,
                           file.status_details != NULL ? file.status_details : "it cannot be used");
    ok = ok && check_report(spec, &file, param, err);
    gd_file_record_release(&file);
    return ok;
}

static bool look_up_for_create(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct create *create = argument;
    const struct gd_job_record *record = &create->record;
    if (!create->resolved && !gd_attached_resolve(db, record->project, create->spec.evaluation.evals, err))
        return false;
    create->resolved = true;
    if (record->idempotency_key != NULL && !gd_db_job_by_idempotency(db, record->project, record->idempotency_key,
                                                                     &create->earlier, &create->repeated, err))
        return false;
    if (create->repeated)
        return true;
    return (create->spec.init_from == NULL || gd_db_model_get(db, record->project, create->spec.init_from, &create->start, err)) &&
           check_file(db, &create->spec, record->project, record->training_file, "training_file", err) &&
           (record->validation_file == NULL ||
            check_file(db, &create->spec, record->project, record->validation_file, "validation_file", err));
}

static bool same_text(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

/* The same request again gets the same job; another one under the same key is a mistake. */
static void reply_repeated(struct create *create)
{
    const struct gd_job_record *earlier = &create->earlier;
    if (!create->seed_given)
        create->spec.seed = earlier->seed;
    cJSON *body = gd_job_spec_json(&create->spec);
    char *text = gd_json_print(body);
    bool same = same_text(text, earlier->body) && same_text(create->record.metadata, earlier->metadata);
    cJSON_Delete(body);
    gd_free(text);
    if (!same) {
        struct gd_error err = {0};
        gd_fail_param(&err, GD_CONFLICT, "Idempotency-Key", "this key created %s from a different request: use a new key",
                      earlier->id);
        fail_create(create, &err);
        return;
    }
    gd_http_reply(create->request, 200, gd_job_json(create->app, earlier));
    release_create(create);
}

static void start_create(struct create *create);

static void on_created(void *context, const struct gd_job_record *job, const struct gd_error *err)
{
    struct create *create = context;
    if (err != NULL && err->code == GD_CONFLICT && create->record.idempotency_key != NULL && !create->tried_again) {
        create->tried_again = true; /* the same key came twice at once: the other request was first */
        start_create(create);
        return;
    }
    if (err != NULL)
        gd_http_fail(create->request, err);
    else
        gd_http_reply(create->request, 200, gd_job_json(create->app, job));
    release_create(create);
}

static void set_text(char **text, const char *value)
{
    char *copy = gd_strdup(value);
    gd_free(*text);
    *text = copy;
}

static void renew_body(struct create *create)
{
    cJSON *body = gd_job_spec_json(&create->spec);
    gd_free(create->record.body);
    create->record.body = gd_json_print(body);
    cJSON_Delete(body);
}

/* The tuned model that the job starts from is found: its base is the job's. */
static bool adopt_start(struct create *create, struct gd_error *err)
{
    const struct gd_model_record *start = &create->start;
    if (!is_tuned(create->spec.model) && strcmp(create->spec.model, start->base_model) != 0)
        return gd_fail_param(err, GD_INVALID, "init_from", "%.200s was tuned on '%.100s', not on '%.100s'", start->id,
                             start->base_model, create->spec.model);
    if (gd_models_find(create->app->models, start->base_model) == NULL)
        return gd_fail_param(err, GD_NOT_FOUND, "model", "%.200s was tuned on '%.100s', which is not in the models folder", start->id,
                             start->base_model);
    set_text(&create->spec.model, start->base_model);
    set_text(&create->record.model, start->base_model);
    set_text(&create->record.start_folder, start->folder);
    return true;
}

/* The error in OpenAI's shape, and in it the account and what would fit. */
static void refuse_for_memory(struct create *create, const cJSON *memory)
{
    struct gd_error err = {0};
    const cJSON *message = gd_json_find(memory, "message"), *param = gd_json_find(memory, "param"), *advice = gd_json_find(memory, "advice");
    gd_fail_param(&err, GD_NO_ROOM, cJSON_IsString(param) ? param->valuestring : "", "%s",
                  cJSON_IsString(message) ? message->valuestring : "the job does not fit the memory");
    cJSON *body = gd_error_body(&err, NULL), *error = cJSON_GetObjectItemCaseSensitive(body, "error"), *account = cJSON_Duplicate(memory, true);
    static const char *const inner[] = {"message", "param", "advice", "fits", "peak_bytes"};
    for (size_t i = 0; i < GD_COUNT(inner); i++)
        cJSON_DeleteItemFromObjectCaseSensitive(account, inner[i]);
    cJSON_AddItemToObject(error, "memory", account);
    cJSON_AddItemToObject(error, "fits", advice != NULL ? cJSON_Duplicate(advice, true) : cJSON_CreateObject());
    gd_http_reply(create->request, gd_code_http(err.code), body);
    release_create(create);
}

static void on_planned(void *context, const cJSON *memory)
{
    struct create *create = context;
    struct gd_job_record record;
    if (memory != NULL && cJSON_IsFalse(gd_json_find(memory, "fits"))) {
        refuse_for_memory(create, memory);
        return;
    }
    if (memory != NULL) {
        cJSON *account = cJSON_Duplicate(memory, true);
        cJSON_DeleteItemFromObjectCaseSensitive(account, "fits");
        gd_free(create->record.memory);
        create->record.memory = gd_json_print(account);
        cJSON_Delete(account);
    }
    gd_job_record_copy(&record, &create->record);
    gd_scheduler_submit(create->app->scheduler, &record, on_created, create);
}

static void on_looked_up(void *argument, const struct gd_error *stored)
{
    struct create *create = argument;
    struct gd_error err = *stored;
    if (err.code == GD_OK && create->spec.init_from != NULL && create->repeated)
        set_text(&create->spec.model, create->earlier.model);
    if (err.code == GD_NOT_FOUND || (err.code == GD_OK && create->start.id != NULL && !adopt_start(create, &err))) {
        gd_http_fail_model(create->request, &err);
        release_create(create);
    } else if (err.code != GD_OK) {
        fail_create(create, &err);
    } else if (create->repeated) {
        reply_repeated(create);
    } else if (!gd_attached_check_bases(create->app, create->spec.evaluation.evals, &err)) {
        fail_create(create, &err);
    } else {
        renew_body(create);
        cJSON *spec = gd_job_spec_json(&create->spec);
        gd_job_plan(create->app, spec, &create->record, on_planned, create);
        cJSON_Delete(spec);
    }
}

static void start_create(struct create *create)
{
    struct gd_error err = {0};
    gd_model_record_release(&create->start);
    if (!gd_store_submit(create->app->store, false, look_up_for_create, on_looked_up, create, &err))
        fail_create(create, &err);
}

void gd_handle_job_create(struct gd_app *app, struct gd_request *request)
{
    const cJSON *body = gd_request_json(request);
    struct create *create = gd_alloc(sizeof *create);
    struct gd_error err = {0};
    create->app = app;
    create->request = request;
    bool ok = !app->draining || gd_fail_stopping(&err);
    ok = ok && gd_job_spec_parse(&create->spec, body, &err) && gd_metadata_read(body, &create->record.metadata, &err) &&
         check_integrations(body, &create->record.integrations, &err) &&
         check_idempotency_key(request, &create->record.idempotency_key, &err) && check_model(app, &create->spec, &err);
    if (!ok) {
        gd_http_fail_model(request, &err);
        release_create(create);
        return;
    }
    create->seed_given = create->spec.seed >= 0;
    if (!create->seed_given) {
        uint32_t seed;
        gd_random_bytes(&seed, sizeof seed);
        create->spec.seed = seed & 0x7fffffff;
    }
    fill_record(create);
    start_create(create);
}

/* ---- list and retrieve ---- */

struct listing {
    struct gd_app *app;
    struct gd_request *request;
    char *project, *after;
    cJSON *filter;                   /* metadata, or NULL */
    struct gd_page page;
    struct gd_job_record *records;
    int count;
    bool has_more;
};

static bool read_list(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct listing *listing = argument;
    return gd_db_job_list(db, listing->project, listing->filter, &listing->page, &listing->records, &listing->count,
                          &listing->has_more, err);
}

static void on_list(void *argument, const struct gd_error *err)
{
    struct listing *listing = argument;
    if (err->code != GD_OK) {
        gd_http_fail(listing->request, err);
    } else {
        cJSON *out = cJSON_CreateObject();
        cJSON_AddStringToObject(out, "object", "list");
        cJSON *data = cJSON_AddArrayToObject(out, "data");
        for (int i = 0; i < listing->count; i++)
            cJSON_AddItemToArray(data, gd_job_json(listing->app, &listing->records[i]));
        cJSON_AddBoolToObject(out, "has_more", listing->has_more);
        gd_http_reply(listing->request, 200, out);
    }
    for (int i = 0; i < listing->count; i++)
        gd_job_record_release(&listing->records[i]);
    gd_free(listing->records);
    cJSON_Delete(listing->filter);
    gd_free(listing->project);
    gd_free(listing->after);
    gd_free(listing);
}

static void add_to_filter(void *context, const char *key, const char *value)
{
    cJSON **filter = context;
    if (*filter == NULL)
        *filter = cJSON_CreateObject();
    if (gd_json_find(*filter, key) == NULL)
        cJSON_AddStringToObject(*filter, key, value);
}

void gd_handle_job_list(struct gd_app *app, struct gd_request *request)
{
    struct gd_error err = {0};
    int64_t limit = LIST_LIMIT;
    bool ok = gd_request_query_int(request, "limit", 1, LIST_LIMIT_MAX, &limit, &err);
    if (ok && gd_request_query(request, "metadata") != NULL)
        ok = gd_fail_param(&err, GD_UNSUPPORTED, "metadata", "filter by pairs: metadata[key]=value");
    if (!ok) {
        gd_http_fail(request, &err);
        return;
    }
    struct listing *listing = gd_alloc(sizeof *listing);
    listing->app = app;
    listing->request = request;
    listing->project = gd_strdup(gd_request_project(request));
    listing->after = gd_strdup(gd_request_query(request, "after"));
    listing->page = (struct gd_page){.after = listing->after, .limit = (int)limit};
    gd_request_query_each(request, "metadata", add_to_filter, &listing->filter);
    if (!gd_store_submit(app->store, false, read_list, on_list, listing, &err))
        on_list(listing, &err);
}

struct retrieval {
    struct gd_app *app;
    struct gd_request *request;
    char *project, *job_id;
    struct gd_job_record record;
};

static bool read_job(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct retrieval *retrieval = argument;
    return gd_db_job_get_kind(db, GD_JOB_KIND_FINE_TUNING, retrieval->project, retrieval->job_id, &retrieval->record, err);
}

static void on_job(void *argument, const struct gd_error *err)
{
    struct retrieval *retrieval = argument;
    if (err->code != GD_OK)
        gd_http_fail(retrieval->request, err);
    else
        gd_http_reply(retrieval->request, 200, gd_job_json(retrieval->app, &retrieval->record));
    gd_job_record_release(&retrieval->record);
    gd_free(retrieval->project);
    gd_free(retrieval->job_id);
    gd_free(retrieval);
}

void gd_handle_job_get(struct gd_app *app, struct gd_request *request)
{
    struct retrieval *retrieval = gd_alloc(sizeof *retrieval);
    struct gd_error err = {0};
    *retrieval = (struct retrieval){app, request, gd_strdup(gd_request_project(request)),
                                    gd_strdup(gd_request_param(request, 0)), {0}};
    if (!gd_store_submit(app->store, false, read_job, on_job, retrieval, &err))
        on_job(retrieval, &err);
}

/* ---- cancel, pause, resume ---- */

struct action {
    struct gd_app *app;
    struct gd_request *request;
};

static void on_action(void *context, const struct gd_job_record *job, const struct gd_error *err)
{
    struct action *action = context;
    if (err != NULL)
        gd_http_fail(action->request, err);
    else
        gd_http_reply(action->request, 200, gd_job_json(action->app, job));
    gd_free(action);
}

static struct action *create_action(struct gd_app *app, struct gd_request *request)
{
    struct action *action = gd_alloc(sizeof *action);
    *action = (struct action){app, request};
    return action;
}

void gd_handle_job_cancel(struct gd_app *app, struct gd_request *request)
{
    gd_scheduler_cancel(app->scheduler, gd_request_project(request), gd_request_param(request, 0), on_action,
                        create_action(app, request));
}

void gd_handle_job_pause(struct gd_app *app, struct gd_request *request)
{
    gd_scheduler_pause(app->scheduler, gd_request_project(request), gd_request_param(request, 0), on_action,
                       create_action(app, request));
}

void gd_handle_job_resume(struct gd_app *app, struct gd_request *request)
{
    gd_scheduler_resume(app->scheduler, gd_request_project(request), gd_request_param(request, 0), on_action,
                        create_action(app, request));
}
