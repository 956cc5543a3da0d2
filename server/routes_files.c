/*
 * routes_files.c - /v1/files: upload, list, look, read, delete, and show one row as the trainer sees it.
 *
 * An upload is acknowledged after: bytes fsynced, rows checked (fine-tune), renamed to files/ID, folder fsynced, row
 * committed. A crash before the commit leaves a file without a row, which the next start removes.
 */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "engine/data/row.h"
#include "engine/worker/protocol.h"
#include "server/counters.h"
#include "server/files.h"
#include "server/handlers.h"
#include "server/models.h"
#include "server/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIST_LIMIT_MAX 10000
#define EXPIRES_SECONDS_MIN 3600
#define EXPIRES_SECONDS_MAX 2592000

static const char *const purposes[] = {"assistants", "batch", "evals", "fine-tune", "user_data", "vision", NULL};
static const char *const stored_purposes[] = {"assistants", "assistants_output", "batch", "batch_output", "evals",
                                              "fine-tune", "fine-tune-results", "user_data", "vision", NULL};

static bool check_purpose(const char *purpose, const char *const *allowed, struct gd_error *err)
{
    struct gd_buf names;
    gd_buf_init(&names, 1024);
    for (size_t i = 0; allowed[i] != NULL; i++) {
        if (strcmp(allowed[i], purpose) == 0)
            return gd_buf_release(&names), true;
        gd_buf_printf(&names, "%s%s", i > 0 ? ", " : "", allowed[i]);
    }
    gd_fail_param(err, GD_INVALID, "purpose", "purpose: \"%.64s\" is none of %s", purpose, names.data);
    gd_buf_release(&names);
    return false;
}

static cJSON *file_json(const struct gd_file_record *record, bool with_report)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "id", record->id);
    cJSON_AddStringToObject(json, "object", "file");
    cJSON_AddNumberToObject(json, "bytes", (double)record->bytes);
    cJSON_AddNumberToObject(json, "created_at", (double)record->created_at);
    gd_json_add_nonzero(json, "expires_at", record->expires_at);
    cJSON_AddStringToObject(json, "filename", record->filename);
    cJSON_AddStringToObject(json, "purpose", record->purpose);
    cJSON_AddStringToObject(json, "status", record->status);
    if (record->status_details != NULL)
        cJSON_AddStringToObject(json, "status_details", record->status_details);
    else
        cJSON_AddNullToObject(json, "status_details");
    if (record->xxh3 != NULL)
        cJSON_AddStringToObject(json, "xxh3", record->xxh3);
    struct gd_error ignored = {0};
    cJSON *report = with_report && record->report != NULL
        ? gd_json_parse(record->report, strlen(record->report), SIZE_MAX, &ignored) : NULL;
    if (report != NULL)
        cJSON_AddItemToObject(json, "report", report);
    return json;
}

/* ---- create ---- */

struct creation {
    uv_work_t work;
    struct gd_app *app;
    struct gd_request *request;
    struct gd_file_record record;
    char *temporary_path, *path;
    bool moved;
    struct gd_error err;
};

static void creation_end(struct creation *creation, const struct gd_error *err)
{
    if (err->code == GD_OK) {
        gd_counters_add(creation->app->counters, GD_COUNTER_FILES_CREATED, 1, (const char *[]){creation->record.purpose});
        gd_http_reply(creation->request, 200, file_json(&creation->record, true));
    } else {
        if (err->code == GD_BAD_FILE)
            gd_counters_add(creation->app->counters, GD_COUNTER_FILES_REFUSED, 1,
                            (const char *[]){creation->record.purpose});
        gd_http_fail(creation->request, err);
        unlink(creation->moved ? creation->path : creation->temporary_path);
    }
    gd_file_record_release(&creation->record);
    gd_free(creation->temporary_path);
    gd_free(creation->path);
    gd_free(creation);
}

static bool creation_store(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct creation *creation = argument;
    return gd_db_file_insert(db, &creation->record, err);
}

static void creation_stored(void *argument, const struct gd_error *err)
{
    creation_end(argument, err);
}

static bool validate(struct creation *creation)
{
    struct gd_error *err = &creation->err;
    struct gd_file_report *report = gd_alloc(sizeof(*report));
    bool ok = gd_file_check(creation->temporary_path, report, err) &&
              (report->bad_rows == 0 || gd_file_report_fail(report, err));
    if (ok) {
        cJSON *json = gd_file_report_json(report);
        creation->record.report = gd_json_print(json);
        cJSON_Delete(json);
    }
    gd_free(report);
    return ok;
}

static void creation_work(uv_work_t *work)
{
    struct creation *creation = work->data;
    struct gd_error *err = &creation->err;
    if (strcmp(creation->record.purpose, "fine-tune") == 0 && !validate(creation))
        return;
    if (rename(creation->temporary_path, creation->path) != 0) {
        gd_fail_errno(err, errno, "rename to %s", creation->path);
        return;
    }
    creation->moved = true;
    char *folder = gd_format("%s/files", creation->app->config.data_dir);
    if (!gd_fsync_dir(folder, err))
        gd_error_context(err, "store file");
    gd_free(folder);
}

static void creation_checked(uv_work_t *work, int status)
{
    struct creation *creation = work->data;
    struct gd_error err = creation->err;
    if (err.code == GD_OK &&
        gd_store_submit(creation->app->store, true, creation_store, creation_stored, creation, &err))
        return;
    creation_end(creation, &err);
}

static bool read_expiry(const struct gd_request *request, int64_t now, int64_t *expires_at, struct gd_error *err)
{
    const char *anchor = gd_request_field(request, "expires_after[anchor]");
    const char *seconds = gd_request_field(request, "expires_after[seconds]");
    *expires_at = 0;
    if (anchor == NULL && seconds == NULL)
        return true;
    if (anchor == NULL || seconds == NULL)
        return gd_fail_param(err, GD_MISSING, anchor == NULL ? "expires_after[anchor]" : "expires_after[seconds]",
                             "expires_after: send both anchor and seconds");
    if (strcmp(anchor, "created_at") != 0)
        return gd_fail_param(err, GD_INVALID, "expires_after[anchor]",
                             "expires_after[anchor]: \"%.64s\" must be \"created_at\"", anchor);
    char *end;
    size_t digits = strspn(seconds, "0123456789");
    long long value = digits > 0 && digits < 12 ? strtoll(seconds, &end, 10) : -1;
    if (value < EXPIRES_SECONDS_MIN || value > EXPIRES_SECONDS_MAX || *end != 0)
        return gd_fail_param(err, GD_INVALID, "expires_after[seconds]",
                             "expires_after[seconds]: \"%.64s\" is not a whole number from %d to %d", seconds,
                             EXPIRES_SECONDS_MIN, EXPIRES_SECONDS_MAX);
    *expires_at = now + value;
    return true;
}

void gd_handle_file_create(struct gd_app *app, struct gd_request *request)
{
    static const char *const fields[] = {"purpose", "expires_after[anchor]", "expires_after[seconds]", NULL};
    struct gd_error err = {0};
    const struct gd_upload *upload = gd_request_upload(request);
    const char *purpose = gd_request_field(request, "purpose");
    int64_t now = gd_time_unix(), expires_at = 0;
    bool ok = gd_request_only_fields(request, fields, &err);
    if (ok && upload == NULL)
        ok = gd_fail_param(&err, GD_MISSING, "file", "file: there is no part named \"file\" with a filename");
    if (ok && purpose == NULL)
        ok = gd_fail_param(&err, GD_MISSING, "purpose", "purpose: is missing");
    ok = ok && check_purpose(purpose, purposes, &err) && read_expiry(request, now, &expires_at, &err);
    if (ok && upload->bytes == 0)
        ok = gd_fail_param(&err, GD_BAD_FILE, "file", "file: is empty");
    if (!ok) {
        gd_http_fail(request, &err);
        return;
    }
    char random[25];
    gd_random_id(random, 24);
    struct creation *creation = gd_alloc(sizeof(*creation));
    creation->app = app;
    creation->request = request;
    creation->record = (struct gd_file_record){
        .id = gd_format("file-%s", random), .project = gd_strdup(gd_request_project(request)),
        .filename = gd_strdup(upload->filename), .purpose = gd_strdup(purpose), .status = gd_strdup("processed"),
        .xxh3 = gd_strdup(upload->xxh3), .bytes = (int64_t)upload->bytes, .created_at = now, .expires_at = expires_at};
    creation->temporary_path = gd_strdup(upload->temporary_path);
    creation->path = gd_file_path(app, creation->record.id);
    gd_request_upload_taken(request);
    creation->work.data = creation;
    uv_queue_work(app->loop, &creation->work, creation_work, creation_checked);
}

/* ---- list ---- */

struct listing {
    struct gd_request *request;
    char *project, *purpose, *after;
    struct gd_page page;
    char *text;
};

static void add_id(cJSON *json, const char *name, const struct gd_file_record *records, int count, int index)
{
    if (count > 0)
        cJSON_AddStringToObject(json, name, records[index].id);
    else
        cJSON_AddNullToObject(json, name);
}

/* The text is made here, off the loop: a page may have ten thousand files. */
static bool listing_work(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct listing *listing = argument;
    struct gd_file_record *records = NULL;
    int count = 0;
    bool has_more = false;
    if (!gd_db_file_list(db, listing->project, listing->purpose, &listing->page, &records, &count, &has_more, err))
        return false;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "object", "list");
    cJSON *data = cJSON_AddArrayToObject(json, "data");
    for (int i = 0; i < count; i++)
        cJSON_AddItemToArray(data, file_json(&records[i], false));
    add_id(json, "first_id", records, count, 0);
    add_id(json, "last_id", records, count, count - 1);
    cJSON_AddBoolToObject(json, "has_more", has_more);
    listing->text = gd_json_print(json);
    cJSON_Delete(json);
    for (int i = 0; i < count; i++)
        gd_file_record_release(&records[i]);
    gd_free(records);
    return true;
}

static void listing_done(void *argument, const struct gd_error *err)
{
    struct listing *listing = argument;
    if (err->code == GD_OK)
        gd_http_reply_bytes(listing->request, 200, "application/json", listing->text, strlen(listing->text));
    else
        gd_http_fail(listing->request, err);
    gd_free(listing->text);
    gd_free(listing->project);
    gd_free(listing->purpose);
    gd_free(listing->after);
    gd_free(listing);
}

void gd_handle_file_list(struct gd_app *app, struct gd_request *request)
{
    struct gd_error err = {0};
    int64_t limit = LIST_LIMIT_MAX;
    const char *purpose = gd_request_query(request, "purpose"), *order = gd_request_query(request, "order");
    bool ok = gd_request_query_int(request, "limit", 1, LIST_LIMIT_MAX, &limit, &err) &&
              (purpose == NULL || check_purpose(purpose, stored_purposes, &err));
    if (ok && order != NULL && strcmp(order, "asc") != 0 && strcmp(order, "desc") != 0)
        ok = gd_fail_param(&err, GD_INVALID, "order", "order: \"%.64s\" is neither asc nor desc", order);
    if (!ok) {
        gd_http_fail(request, &err);
        return;
    }
    struct listing *listing = gd_alloc(sizeof(*listing));
    listing->request = request;
    listing->project = gd_strdup(gd_request_project(request));
    listing->purpose = gd_strdup(purpose);
    listing->after = gd_strdup(gd_request_query(request, "after"));
    listing->page = (struct gd_page){listing->after, (int)limit, order != NULL && strcmp(order, "asc") == 0};
    if (!gd_store_submit(app->store, false, listing_work, listing_done, listing, &err))
        listing_done(listing, &err);
}

/* ---- one file: get, content, delete, render ---- */

struct access {
    uv_work_t work;
    struct gd_app *app;
    struct gd_request *request;
    char *project, *id;
    struct gd_file_record record;
    void (*then)(struct access *access);
    /* render */
    char *model, *row_text;
    int64_t row, line;
    char *model_path;
    uint64_t worker_request;
    bool sent;
    struct gd_error err;
};

static void access_free(struct access *access)
{
    gd_file_record_release(&access->record);
    gd_free(access->project);
    gd_free(access->id);
    gd_free(access->model);
    gd_free(access->model_path);
    gd_free(access->row_text);
    gd_free(access);
}

static void access_fail(struct access *access, const struct gd_error *err)
{
    gd_http_fail(access->request, err);
    access_free(access);
}

static bool access_work(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct access *access = argument;
    return gd_db_file_get(db, access->project, access->id, &access->record, err);
}

static void access_done(void *argument, const struct gd_error *stored)
{
    struct access *access = argument;
    struct gd_error err = *stored;
    if (err.code == GD_OK && access->record.expires_at != 0 && access->record.expires_at <= gd_time_unix())
        gd_fail_param(&err, GD_NOT_FOUND, "file_id", "file '%.100s' has expired", access->id);
    if (err.code == GD_OK)
        access->then(access);
    else
        access_fail(access, &err);
}

static struct access *access_create(struct gd_app *app, struct gd_request *request, void (*then)(struct access *access))
{
    struct access *access = gd_alloc(sizeof(*access));
    access->app = app;
    access->request = request;
    access->project = gd_strdup(gd_request_project(request));
    access->id = gd_strdup(gd_request_param(request, 0));
    access->then = then;
    return access;
}

static void access_start(struct access *access)
{
    struct gd_error err = {0};
    if (!gd_store_submit(access->app->store, false, access_work, access_done, access, &err))
        access_fail(access, &err);
}

static void show_file(struct access *access)
{
    gd_http_reply(access->request, 200, file_json(&access->record, true));
    access_free(access);
}

void gd_handle_file_get(struct gd_app *app, struct gd_request *request)
{
    access_start(access_create(app, request, show_file));
}

/* The path is made from the stored id, not from what was asked for. */
static void send_content(struct access *access)
{
    struct gd_error err = {0};
    char *path = gd_file_path(access->app, access->record.id);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        gd_fail_errno(&err, errno, "content of file %s", access->record.id);
    gd_free(path);
    if (fd < 0) {
        access_fail(access, &err);
        return;
    }
    gd_http_reply_file(access->request, "application/octet-stream", access->record.filename, fd,
                       (uint64_t)access->record.bytes);
    access_free(access);
}

void gd_handle_file_content(struct gd_app *app, struct gd_request *request)
{
    access_start(access_create(app, request, send_content));
}

static bool delete_work(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct access *access = argument;
    return gd_db_file_get(db, access->project, access->id, &access->record, err) &&
           gd_db_file_delete(db, access->project, access->id, err);
}

static void delete_done(void *argument, const struct gd_error *err)
{
    struct access *access = argument;
    if (err->code != GD_OK) {
        access_fail(access, err);
        return;
    }
    char *path = gd_file_path(access->app, access->record.id);
    gd_trash(access->app, path);
    gd_free(path);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "id", access->record.id);
    cJSON_AddStringToObject(json, "object", "file");
    cJSON_AddBoolToObject(json, "deleted", true);
    gd_http_reply(access->request, 200, json);
    access_free(access);
}

void gd_handle_file_delete(struct gd_app *app, struct gd_request *request)
{
    struct gd_error err = {0};
    struct access *access = access_create(app, request, NULL);
    if (!gd_store_submit(app->store, true, delete_work, delete_done, access, &err))
        access_fail(access, &err);
}

/* ---- render ---- */

static void render_gone(void *context)
{
    struct access *access = context;
    struct gd_error err = {0};
    if (!access->sent)
        return; /* its answer will be dropped */
    gd_supervisor_cancel(access->app->supervisor, access->worker_request);
    gd_fail(&err, GD_CANCELLED, "the client went away");
    access_fail(access, &err);
}

static void render_frame(void *context, const cJSON *frame, bool last)
{
    struct access *access = context;
    const cJSON *error = gd_json_find(frame, "error"), *result = gd_json_find(frame, "result");
    if (!last)
        return;
    access->sent = false;
    if (error != NULL || result == NULL) {
        struct gd_error err = {0};
        if (error != NULL)
            gd_error_from_json(error, &err);
        else
            gd_fail(&err, GD_INTERNAL, "the worker sent no result");
        access_fail(access, &err);
        return;
    }
    cJSON *json = cJSON_Duplicate(result, true);
    cJSON_AddStringToObject(json, "object", "file.row");
    cJSON_AddStringToObject(json, "file_id", access->record.id);
    cJSON_AddStringToObject(json, "model", access->model);
    cJSON_AddNumberToObject(json, "row", (double)access->row);
    gd_http_reply(access->request, 200, json);
    access_free(access);
}

/* Finds row `access->row` (1-based; blank lines are not rows) in the file. */
static void render_read(uv_work_t *work)
{
    struct access *access = work->data;
    struct gd_error *err = &access->err;
    struct gd_map map = {0};
    char *path = gd_file_path(access->app, access->record.id);
    bool ok = gd_map_open(&map, path, err);
    gd_free(path);
    if (!ok)
        return;
    const char *data = (const char *)map.data;
    size_t start = map.size_bytes >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    int64_t line = 0, row = 0;
    while (start < map.size_bytes && access->row_text == NULL) {
        const char *newline = memchr(data + start, '\n', map.size_bytes - start);
        size_t end = newline != NULL ? (size_t)(newline - data) : map.size_bytes;
        size_t length = end - start;
        line++;
        while (length > 0 && strchr(" \t\r", data[start + length - 1]) != NULL && data[start + length - 1] != 0)
            length--;
        if (length > 0 && ++row == access->row) {
            if (length > GD_ROW_BYTES_MAX || !gd_utf8_valid(data + start, length) || memchr(data + start, 0, length))
                gd_fail_param(err, GD_BAD_FILE, "row", "row %lld (line %lld) is not text of at most %u bytes",
                              (long long)row, (long long)line, GD_ROW_BYTES_MAX);
            access->line = line;
            access->row_text = gd_strndup(data + start, length);
        }
        start = end + 1;
    }
    if (access->row_text == NULL)
        gd_fail_param(err, GD_INVALID, "row", "row: %lld, but the file has %lld rows", (long long)access->row,
                      (long long)row);
    gd_map_release(&map);
}

static void render_ask(uv_work_t *work, int status)
{
    struct access *access = work->data;
    struct gd_error err = access->err;
    if (err.code == GD_OK && access->app->supervisor == NULL)
        gd_fail(&err, GD_UNAVAILABLE, "no worker is running");
    if (err.code != GD_OK) {
        access_fail(access, &err);
        return;
    }
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "type", "render");
    cJSON_AddStringToObject(message, "model_path", access->model_path);
    cJSON_AddStringToObject(message, "row_text", access->row_text);
    cJSON_AddNumberToObject(message, "line", (double)access->line);
    access->sent = gd_supervisor_request(access->app->supervisor, message, render_frame, access,
                                         &access->worker_request, &err);
    if (!access->sent)
        access_fail(access, &err);
}

static void render_model(void *context, const struct gd_model_ref *ref, const struct gd_error *err)
{
    struct access *access = context;
    if (ref == NULL) {
        access_fail(access, err);
        return;
    }
    access->model_path = gd_strdup(ref->base_path); /* a tuned model keeps its base's tokenizer and template */
    access->work.data = access;
    uv_queue_work(access->app->loop, &access->work, render_read, render_ask);
}

static void render_file(struct access *access)
{
    gd_models_resolve(access->app, access->project, access->model, render_model, access);
}

void gd_handle_file_render(struct gd_app *app, struct gd_request *request)
{
    static const char *const known[] = {"model", "row", NULL};
    const cJSON *body = gd_request_json(request);
    struct gd_error err = {0};
    const char *model = NULL;
    int64_t row = 0;
    if (!gd_json_only_known(body, "", known, &err) ||
        !gd_json_get_string(body, "", "model", true, 1, 512, &model, &err) ||
        !gd_json_get_int(body, "", "row", true, 1, GD_FILE_ROWS_MAX, &row, &err)) {
        gd_http_fail(request, &err);
        return;
    }
    struct access *access = access_create(app, request, render_file);
    access->model = gd_strdup(model);
    access->row = row;
    gd_request_on_gone(request, render_gone, access);
    access_start(access);
}
