/* Evals, runs, output items: looked at, listed, changed, deleted, compared. Making them: routes_eval_create.c. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "server/eval_json.h"
#include "server/handlers.h"
#include "server/http.h"
#include "server/metadata.h"
#include "server/scheduler.h"
#include <string.h>

#define LIST_LIMIT 20
#define LIST_LIMIT_MAX 100
#define PAGE_BYTES_MAX (16u << 20) /* a page ends early rather than be larger; has_more says so */
#define NAME_BYTES_MAX 512

/* One call: what it is about, a closure on the store thread that makes the answer, and the answer. */
struct call {
    struct gd_app *app;
    struct gd_request *request;
    char *project, *ids[3];          /* of the path: eval, run, item */
    char *after, *status, *with;     /* of the query */
    struct gd_page page;
    bool by_update;
    struct gd_eval_record change;    /* name and metadata, where the request gives them */
    bool name_given, metadata_given;
    bool (*work)(struct gd_db *db, struct call *call, struct gd_error *err);
    char *answer;
};

static void release_call(struct call *call)
{
    for (size_t i = 0; i < GD_COUNT(call->ids); i++)
        gd_free(call->ids[i]);
    gd_free(call->project);
    gd_free(call->after);
    gd_free(call->status);
    gd_free(call->with);
    gd_free(call->answer);
    gd_eval_record_release(&call->change);
    gd_free(call);
}

/* `id_count`: how many ids the path has. */
static struct call *create_call(struct gd_app *app, struct gd_request *request, int id_count)
{
    struct call *call = gd_alloc(sizeof *call);
    call->app = app;
    call->request = request;
    call->project = gd_strdup(gd_request_project(request));
    for (int i = 0; i < id_count; i++)
        call->ids[i] = gd_strdup(gd_request_param(request, i));
    return call;
}

static void fail_call(struct call *call, const struct gd_error *err)
{
    gd_http_fail(call->request, err);
    release_call(call);
}

static bool run_call(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct call *call = argument;
    return call->work(db, call, err);
}

static void on_call(void *argument, const struct gd_error *err)
{
    struct call *call = argument;
    if (err->code != GD_OK)
        gd_http_fail(call->request, err);
    else
        gd_http_reply_bytes(call->request, 200, "application/json", call->answer, strlen(call->answer));
    release_call(call);
}

static void start_call(struct call *call, bool write, bool (*work)(struct gd_db *db, struct call *call, struct gd_error *err))
{
    struct gd_error err = {0};
    call->work = work;
    if (!gd_store_submit(call->app->store, write, run_call, on_call, call, &err))
        fail_call(call, &err);
}

static bool answer(struct call *call, cJSON *json_taken)
{
    gd_free(call->answer);
    call->answer = gd_json_print(json_taken);
    cJSON_Delete(json_taken);
    return true;
}

/* ---- pages ---- */

static bool read_page(struct call *call, struct gd_error *err)
{
    const struct gd_request *request = call->request;
    const char *order = gd_request_query(request, "order");
    int64_t limit = LIST_LIMIT;
    if (!gd_request_query_int(request, "limit", 1, LIST_LIMIT_MAX, &limit, err))
        return false;
    if (order != NULL && strcmp(order, "asc") != 0 && strcmp(order, "desc") != 0)
        return gd_fail_param(err, GD_INVALID, "order", "order: \"%.64s\" is neither asc nor desc", order);
    call->after = gd_strdup(gd_request_query(request, "after"));
    call->status = gd_strdup(gd_request_query(request, "status"));
    call->page = (struct gd_page){call->after, (int)limit, order == NULL || strcmp(order, "asc") == 0};
    return true;
}

/* A list that is being made. */
struct list {
    cJSON *data;
    size_t bytes;
    bool more;
};

/* False: it is full; the element is not in it. */
static bool add_element(struct list *list, cJSON *element_taken, size_t bytes)
{
    if (!list->more && list->data->child != NULL && list->bytes + bytes > PAGE_BYTES_MAX)
        list->more = true;
    if (list->more) {
        cJSON_Delete(element_taken);
        return false;
    }
    list->bytes += bytes;
    cJSON_AddItemToArray(list->data, element_taken);
    return true;
}

static cJSON *id_of(const cJSON *element)
{
    const cJSON *id = element != NULL ? gd_json_find(element, "id") : NULL;
    return id != NULL ? cJSON_CreateString(id->valuestring) : cJSON_CreateNull();
}

static cJSON *list_json(struct list *list, bool has_more)
{
    cJSON *out = cJSON_CreateObject(), *first = list->data->child;
    cJSON_AddStringToObject(out, "object", "list");
    cJSON_AddItemToObject(out, "first_id", id_of(first));
    cJSON_AddItemToObject(out, "last_id", id_of(first != NULL ? first->prev : NULL)); /* cJSON: first->prev is the last */
    cJSON_AddItemToObject(out, "data", list->data);
    cJSON_AddBoolToObject(out, "has_more", has_more || list->more);
    return out;
}

/* ---- evals ---- */

static bool show_eval(struct gd_db *db, struct call *call, struct gd_error *err)
{
    struct gd_eval_record record;
    bool ok = gd_db_eval_get(db, call->project, call->ids[0], &record, err) && answer(call, gd_eval_json(&record));
    gd_eval_record_release(&record);
    return ok;
}

void gd_handle_eval_get(struct gd_app *app, struct gd_request *request)
{
    start_call(create_call(app, request, 1), false, show_eval);
}

static bool list_evals(struct gd_db *db, struct call *call, struct gd_error *err)
{
    struct gd_eval_record *records = NULL;
    int count = 0;
    bool more = false;
    if (!gd_db_eval_list(db, call->project, call->by_update, &call->page, &records, &count, &more, err))
        return false;
    struct list list = {.data = cJSON_CreateArray()};
    for (int i = 0; i < count; i++) {
        add_element(&list, gd_eval_json(&records[i]), strlen(records[i].config) + strlen(records[i].criteria));
        gd_eval_record_release(&records[i]);
    }
    gd_free(records);
    return answer(call, list_json(&list, more));
}

void gd_handle_eval_list(struct gd_app *app, struct gd_request *request)
{
    struct gd_error err = {0};
    struct call *call = create_call(app, request, 0);
    const char *by = gd_request_query(request, "order_by");
    bool ok = read_page(call, &err);
    if (ok && by != NULL && strcmp(by, "created_at") != 0 && strcmp(by, "updated_at") != 0)
        ok = gd_fail_param(&err, GD_INVALID, "order_by", "order_by: \"%.64s\" is neither created_at nor updated_at", by);
    call->by_update = by != NULL && strcmp(by, "updated_at") == 0;
    if (ok)
        start_call(call, false, list_evals);
    else
        fail_call(call, &err);
}

static bool update_eval(struct gd_db *db, struct call *call, struct gd_error *err)
{
    struct gd_eval_record record;
    if (!gd_db_eval_get(db, call->project, call->ids[0], &record, err))
        return false;
    if (call->name_given) {
        gd_free(record.name);
        record.name = gd_strdup(call->change.name);
    }
    if (call->metadata_given) {
        gd_free(record.metadata);
        record.metadata = gd_strdup(call->change.metadata);
    }
    record.updated_at = gd_time_unix();
    bool ok = gd_db_eval_update(db, &record, err) && answer(call, gd_eval_json(&record));
    gd_eval_record_release(&record);
    return ok;
}

void gd_handle_eval_update(struct gd_app *app, struct gd_request *request)
{
    static const char *const known[] = {"metadata", "name", NULL};
    struct gd_error err = {0};
    const cJSON *body = gd_request_json(request);
    const char *name = NULL;
    struct call *call = create_call(app, request, 1);
    bool ok = gd_json_only_known(body, "", known, &err) &&
              gd_json_get_string(body, "", "name", false, 1, NAME_BYTES_MAX, &name, &err) &&
              gd_metadata_read(body, &call->change.metadata, &err);
    call->change.name = gd_strdup(name);
    call->name_given = gd_json_find(body, "name") != NULL;
    call->metadata_given = gd_json_find(body, "metadata") != NULL;
    if (ok)
        start_call(call, true, update_eval);
    else
        fail_call(call, &err);
}

static cJSON *deleted_json(const char *object, const char *key, const char *id)
{
    cJSON *out = cJSON_CreateObject();
    cJSON_AddStringToObject(out, "object", object);
    cJSON_AddBoolToObject(out, "deleted", true);
    cJSON_AddStringToObject(out, key, id);
    return out;
}

static bool delete_eval(struct gd_db *db, struct call *call, struct gd_error *err)
{
    return gd_db_eval_delete(db, call->project, call->ids[0], err) &&
           answer(call, deleted_json("eval.deleted", "eval_id", call->ids[0]));
}

void gd_handle_eval_delete(struct gd_app *app, struct gd_request *request)
{
    start_call(create_call(app, request, 1), true, delete_eval);
}

/* ---- runs ---- */

static cJSON *run_json(struct gd_db *db, const struct gd_job_record *run, struct gd_error *err)
{
    struct gd_eval_results results;
    if (!gd_db_eval_results(db, run->id, &results, err))
        return NULL;
    cJSON *json = gd_run_json(run, &results);
    gd_eval_results_release(&results);
    return json;
}

static bool show_run(struct gd_db *db, struct call *call, struct gd_error *err)
{
    struct gd_job_record run = {0};
    cJSON *json = gd_db_run_get(db, call->project, call->ids[0], call->ids[1], &run, err) ? run_json(db, &run, err) : NULL;
    gd_job_record_release(&run);
    return json != NULL && answer(call, json);
}

void gd_handle_eval_run_get(struct gd_app *app, struct gd_request *request)
{
    start_call(create_call(app, request, 2), false, show_run);
}

static bool eval_is_there(struct gd_db *db, struct call *call, struct gd_error *err)
{
    struct gd_eval_record record = {0};
    bool ok = gd_db_eval_get(db, call->project, call->ids[0], &record, err);
    gd_eval_record_release(&record);
    return ok;
}

static bool list_runs(struct gd_db *db, struct call *call, struct gd_error *err)
{
    struct gd_job_record *runs = NULL;
    enum gd_job_status wanted[GD_JOB_STATUS_COUNT];
    int count = 0, wanted_count = call->status != NULL ? gd_run_statuses(call->status, wanted) : 0;
    bool more = false;
    if (!eval_is_there(db, call, err) || !gd_db_run_list(db, call->project, call->ids[0], wanted, wanted_count, &call->page,
                                                         &runs, &count, &more, err))
        return false;
    struct list list = {.data = cJSON_CreateArray()};
    bool ok = true;
    for (int i = 0; i < count; i++) {
        cJSON *json = ok && !list.more ? run_json(db, &runs[i], err) : NULL;
        ok = ok && (json != NULL || list.more);
        if (json != NULL)
            add_element(&list, json, strlen(runs[i].body));
        gd_job_record_release(&runs[i]);
    }
    gd_free(runs);
    if (ok)
        return answer(call, list_json(&list, more));
    cJSON_Delete(list.data);
    return false;
}

void gd_handle_eval_run_list(struct gd_app *app, struct gd_request *request)
{
    struct gd_error err = {0};
    enum gd_job_status wanted[GD_JOB_STATUS_COUNT];
    struct call *call = create_call(app, request, 1);
    bool ok = read_page(call, &err);
    if (ok && call->status != NULL && gd_run_statuses(call->status, wanted) == 0)
        ok = gd_fail_param(&err, GD_INVALID, "status",
                           "status: \"%.64s\" is none of queued, in_progress, completed, canceled, failed", call->status);
    if (ok)
        start_call(call, false, list_runs);
    else
        fail_call(call, &err);
}

static bool delete_run(struct gd_db *db, struct call *call, struct gd_error *err)
{
    return gd_db_run_delete(db, call->project, call->ids[0], call->ids[1], err) &&
           answer(call, deleted_json("eval.run.deleted", "run_id", call->ids[1]));
}

void gd_handle_eval_run_delete(struct gd_app *app, struct gd_request *request)
{
    start_call(create_call(app, request, 2), true, delete_run);
}

static void on_cancelled(void *context, const struct gd_job_record *run, const struct gd_error *err)
{
    struct call *call = context;
    if (err != NULL)
        fail_call(call, err);
    else
        start_call(call, false, show_run);
}

void gd_handle_eval_run_cancel(struct gd_app *app, struct gd_request *request)
{
    struct call *call = create_call(app, request, 2);
    gd_scheduler_cancel_run(app->scheduler, call->project, call->ids[0], call->ids[1], on_cancelled, call);
}

/* ---- output items ---- */

static bool run_is_there(struct gd_db *db, struct call *call, const char *run_id, struct gd_error *err)
{
    struct gd_job_record run = {0};
    bool ok = gd_db_run_get(db, call->project, call->ids[0], run_id, &run, err);
    gd_job_record_release(&run);
    return ok;
}

static bool show_item(struct gd_db *db, struct call *call, struct gd_error *err)
{
    struct gd_eval_item_record item = {0};
    bool ok = run_is_there(db, call, call->ids[1], err) &&
              gd_db_eval_item_get(db, call->ids[1], call->ids[2], &item, err) &&
              answer(call, gd_output_item_json(call->ids[0], &item));
    gd_eval_item_record_release(&item);
    return ok;
}

void gd_handle_eval_item_get(struct gd_app *app, struct gd_request *request)
{
    start_call(create_call(app, request, 3), false, show_item);
}

static bool list_items(struct gd_db *db, struct call *call, struct gd_error *err)
{
    struct gd_eval_item_record *items = NULL;
    int count = 0;
    bool more = false;
    if (!run_is_there(db, call, call->ids[1], err) ||
        !gd_db_eval_item_list(db, call->ids[1], call->status, &call->page, &items, &count, &more, err))
        return false;
    struct list list = {.data = cJSON_CreateArray()};
    for (int i = 0; i < count; i++) {
        if (!list.more)
            add_element(&list, gd_output_item_json(call->ids[0], &items[i]), strlen(items[i].body));
        gd_eval_item_record_release(&items[i]);
    }
    gd_free(items);
    return answer(call, list_json(&list, more));
}

void gd_handle_eval_item_list(struct gd_app *app, struct gd_request *request)
{
    static const char *const statuses[] = {"error", "fail", "pass"};
    struct gd_error err = {0};
    struct call *call = create_call(app, request, 2);
    bool ok = read_page(call, &err), known = !ok || call->status == NULL;
    for (size_t i = 0; !known && i < GD_COUNT(statuses); i++)
        known = strcmp(call->status, statuses[i]) == 0;
    if (!known)
        ok = gd_fail_param(&err, GD_INVALID, "status", "status: \"%.64s\" is none of error, fail, pass", call->status);
    if (ok)
        start_call(call, false, list_items);
    else
        fail_call(call, &err);
}

/* ---- two runs ---- */

static bool compare_runs(struct gd_db *db, struct call *call, struct gd_error *err)
{
    struct gd_eval_pairs pairs;
    if (!run_is_there(db, call, call->ids[1], err))
        return false;
    struct gd_error other = {0};
    if (!run_is_there(db, call, call->with, &other))
        return gd_fail_param(err, other.code, "with", "with: %s", other.message);
    if (!gd_db_eval_pairs(db, call->ids[1], call->with, &pairs, err))
        return false;
    cJSON *json = gd_run_comparison_json(call->ids[1], call->with, &pairs);
    gd_eval_pairs_release(&pairs);
    return answer(call, json);
}

void gd_handle_eval_run_compare(struct gd_app *app, struct gd_request *request)
{
    struct gd_error err = {0};
    struct call *call = create_call(app, request, 2);
    call->with = gd_strdup(gd_request_query(request, "with"));
    if (call->with != NULL) {
        start_call(call, false, compare_runs);
        return;
    }
    gd_fail_param(&err, GD_MISSING, "with", "with is missing: ?with=RUN, the run to compare with");
    fail_call(call, &err);
}
