/*
 * http_body.c - the bytes after the headers: JSON in memory or in a file, multipart parts, limits.
 *
 * A large body goes to a file in blocks; while a block is being written the connection is suspended. The library may
 * call once more for data that it had already read: such data is left with it.
 */
#include "server/http_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"

#include <string.h>

/* A body on disk being parsed by a pool thread. */
struct body_parse {
    uv_work_t work;
    struct gd_request *request;     /* NULL: it ended meanwhile */
    char *path;
    uint64_t length_max;
    cJSON *json;
    struct gd_error err;
};

void gd_http_body_release(struct gd_request *request)
{
    gd_buf_release(&request->body);
    gd_spool_destroy(request->spool);
    request->spool = NULL;
    if (request->parse != NULL)
        request->parse->request = NULL;
    cJSON_Delete(request->json);
    gd_multipart_destroy(request->multipart);
    for (int i = 0; i < request->field_count; i++) {
        gd_free(request->fields[i].name);
        gd_buf_release(&request->fields[i].value);
    }
    gd_free(request->fields);
    gd_free(request->filename);
}

/* ---- multipart parts ---- */

static bool part_begin(void *context, const char *name, const char *filename, struct gd_error *err)
{
    struct gd_request *request = context;
    if (filename != NULL) {
        if (strcmp(name, "file") != 0)
            return gd_fail_param(err, GD_INVALID, name, "%s: only the part named \"file\" may have a filename", name);
        if (request->spool != NULL)
            return gd_fail_param(err, GD_INVALID, name, "%s: given twice", name);
        request->in_file_part = true;
        request->filename = gd_strdup(filename);
        return gd_spool_open(&request->spool, request->http->loop, request->http->temporary_folder, err);
    }
    for (int i = 0; i < request->field_count; i++)
        if (strcmp(request->fields[i].name, name) == 0)
            return gd_fail_param(err, GD_INVALID, name, "%s: given twice", name);
    if (request->field_count == FIELDS_MAX)
        return gd_fail(err, GD_INVALID, "more than %d fields", FIELDS_MAX);
    if (request->fields == NULL)
        request->fields = gd_alloc_array(FIELDS_MAX, sizeof(*request->fields));
    struct field *field = &request->fields[request->field_count++];
    field->name = gd_strdup(name);
    gd_buf_init(&field->value, FIELD_BYTES_MAX);
    request->in_file_part = false;
    return true;
}

static bool part_data(void *context, const void *bytes, size_t length, struct gd_error *err)
{
    struct gd_request *request = context;
    if (request->in_file_part) {
        uint64_t max = request->body_max; /* the body's limit has room for the other parts */
        uint64_t upload_max = request->route->body_max != 0 ? request->route->body_max
                                                            : request->http->app->config.upload_max_bytes;
        if (gd_spool_bytes(request->spool) + length > upload_max || upload_max > max)
            return gd_fail_param(err, GD_TOO_LARGE, "file", "file: more than %llu bytes",
                                 (unsigned long long)upload_max);
        gd_spool_append(request->spool, bytes, length);
        return true;
    }
    struct field *field = &request->fields[request->field_count - 1];
    gd_buf_append(&field->value, bytes, length);
    if (field->value.overflow)
        return gd_fail_param(err, GD_INVALID, field->name, "%s: more than %u bytes", field->name, FIELD_BYTES_MAX);
    return true;
}

static bool part_end(void *context, struct gd_error *err)
{
    struct gd_request *request = context;
    if (!request->in_file_part) {
        const struct field *field = &request->fields[request->field_count - 1];
        if (field->value.length > 0 && !gd_guard_plain(field->value.data, field->value.length))
            return gd_fail_param(err, GD_INVALID, field->name, "%s: not UTF-8, or it has a control character",
                                 field->name);
    }
    request->in_file_part = false;
    return true;
}

bool gd_http_body_multipart(struct gd_request *request, const char *content_type, struct gd_error *err)
{
    const struct gd_multipart_sink sink = {request, part_begin, part_data, part_end};
    return gd_multipart_create(&request->multipart, content_type, &sink, err);
}

/* ---- data ---- */

static bool take_json(struct gd_request *request, const char *data, size_t length, struct gd_error *err)
{
    if (request->spool == NULL && request->body.length + length <= GD_BODY_MEMORY_BYTES) {
        gd_buf_append(&request->body, data, length);
        return true;
    }
    if (request->spool == NULL) {
        if (!gd_spool_open(&request->spool, request->http->loop, request->http->temporary_folder, err))
            return false;
        gd_spool_append(request->spool, request->body.data, request->body.length);
        gd_buf_release(&request->body);
    }
    gd_spool_append(request->spool, data, length);
    return true;
}

static bool take(struct gd_request *request, const char *data, size_t length, struct gd_error *err)
{
    if (request->refused.code != GD_OK) /* a write failed */
        return false;
    request->bytes_in += length;
    if (request->bytes_in > request->body_max)
        return gd_fail(err, GD_TOO_LARGE, "the body has more than %llu bytes", (unsigned long long)request->body_max);
    switch (request->route->body) {
    case GD_BODY_NONE:
        break;
    case GD_BODY_JSON:
        return take_json(request, data, length, err);
    case GD_BODY_MULTIPART:
        return gd_multipart_feed(request->multipart, data, length, err);
    }
    return gd_fail(err, GD_INVALID, "this call takes no body; send none");
}

static void on_written(void *context, const struct gd_error *err)
{
    struct gd_request *request = context;
    if (err->code == GD_DISK_FULL) {
        gd_log_warn("http", "request_id=%s %s", request->id, err->message);
        gd_fail(&request->refused, GD_DISK_FULL, "there is no room for the body on the disk of the data folder; free some "
                "and send it again");
    } else if (err->code != GD_OK) {
        request->refused = *err;
    }
    if (request->suspended)
        gd_http_resume(request);
}

enum MHD_Result gd_http_body_data(struct gd_request *request, const char *data, size_t *length)
{
    if (request->spool != NULL && gd_spool_busy(request->spool))
        return MHD_YES;
    if (!take(request, data, *length, &request->refused))
        return gd_http_fail_midway(request, &request->refused);
    *length = 0;
    if (request->spool != NULL && gd_spool_full(request->spool)) {
        gd_http_suspend(request);
        gd_spool_flush(request->spool, on_written, request);
    }
    return MHD_YES;
}

/* ---- the end ---- */

static void check_object(struct gd_request *request)
{
    if (request->json != NULL && !cJSON_IsObject(request->json))
        gd_fail(&request->refused, GD_INVALID, "the body must be a JSON object");
}

static void parse_work(uv_work_t *work)
{
    struct body_parse *parse = work->data;
    char *text = NULL;
    size_t length = 0;
    if (gd_file_read(parse->path, parse->length_max, &text, &length, &parse->err))
        parse->json = gd_json_parse(text, length, parse->length_max, &parse->err);
    gd_free(text);
}

static void parse_after(uv_work_t *work, int status)
{
    struct body_parse *parse = work->data;
    struct gd_request *request = parse->request;
    if (request != NULL) {
        request->parse = NULL;
        request->json = parse->json;
        parse->json = NULL;
        request->refused = parse->err;
        check_object(request);
        gd_spool_destroy(request->spool);
        request->spool = NULL;
        if (request->suspended)
            gd_http_resume(request);
    }
    cJSON_Delete(parse->json);
    gd_free(parse->path);
    gd_free(parse);
}

static void on_finished(void *context, const struct gd_error *err)
{
    struct gd_request *request = context;
    if (err->code != GD_OK || request->route->body != GD_BODY_JSON) {
        on_written(request, err);
        return;
    }
    struct body_parse *parse = gd_alloc(sizeof(*parse));
    parse->request = request;
    parse->path = gd_strdup(gd_spool_path(request->spool));
    parse->length_max = request->body_max;
    parse->work.data = parse;
    request->parse = parse;
    uv_queue_work(request->http->loop, &parse->work, parse_work, parse_after);
}

static void name_upload(struct gd_request *request)
{
    if (request->route->body != GD_BODY_MULTIPART || request->spool == NULL)
        return;
    request->upload.filename = request->filename;
    request->upload.temporary_path = gd_spool_path(request->spool);
    request->upload.bytes = gd_spool_bytes(request->spool);
    memcpy(request->upload.xxh3, gd_spool_xxh3(request->spool), sizeof(request->upload.xxh3));
}

bool gd_http_body_end(struct gd_request *request)
{
    struct gd_error *err = &request->refused;
    if (request->spool != NULL && gd_spool_busy(request->spool)) {
        if (!request->suspended)
            gd_http_suspend(request);
        return false;
    }
    if (request->phase == PHASE_BODY_CLOSING || err->code != GD_OK || request->route == NULL) {
        if (err->code == GD_OK && request->route != NULL)
            name_upload(request);
        return true;
    }
    if (request->route->body == GD_BODY_JSON && request->bytes_in == 0) {
        gd_fail(err, GD_MISSING, "the body is empty; send a JSON object");
        return true;
    }
    if (request->route->body == GD_BODY_MULTIPART) {
        if (request->multipart == NULL)
            gd_fail_param(err, GD_MISSING, "file", "the body is empty; send multipart/form-data with a part \"file\"");
        else if (gd_multipart_finish(request->multipart, err) && request->spool == NULL)
            return true; /* no file part: the handler says so */
        if (err->code != GD_OK)
            return true;
    }
    if (request->spool != NULL) {
        request->phase = PHASE_BODY_CLOSING;
        gd_http_suspend(request);
        gd_spool_finish(request->spool, on_finished, request);
        return false;
    }
    if (request->route->body == GD_BODY_JSON) {
        request->json = gd_json_parse(request->body.data, request->body.length, GD_BODY_MEMORY_BYTES, err);
        gd_buf_release(&request->body);
        check_object(request);
    }
    return true;
}
