/*
 * http_reply.c - answers: JSON, bytes, files, errors in OpenAI's shape.
 */
#include "server/http_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

void gd_http_header(struct gd_request *request, const char *name, const char *value)
{
    if (request->headers == NULL)
        request->headers = gd_alloc_array(32, sizeof(*request->headers));
    if (request->header_count == 32) {
        gd_log_error("http", "too_many_headers=%s request_id=%s", name, request->id);
        return;
    }
    request->headers[request->header_count++] = (struct reply_header){gd_strdup(name), gd_strdup(value)};
}

void gd_http_answer(struct gd_request *request, int status, struct MHD_Response *response)
{
    request->ended = true;
    request->gone = NULL;
    if (request->mhd == NULL || request->answered) {
        MHD_destroy_response(response);
        gd_request_settle(request);
        return;
    }
    request->answered = true;
    request->status = status;
    for (int i = 0; i < request->header_count; i++)
        if (MHD_add_response_header(response, request->headers[i].name, request->headers[i].value) != MHD_YES)
            gd_log_warn("http", "bad_header=%s request_id=%s", request->headers[i].name, request->id);
    MHD_add_response_header(response, "x-content-type-options", "nosniff");
    if (request->close)
        MHD_add_response_header(response, "connection", "close");
    if (request->stream == NULL)
        gd_request_unwatch(request);
    bool queued = MHD_queue_response(request->mhd, (unsigned)status, response) == MHD_YES;
    MHD_destroy_response(response);
    if (!queued) {
        gd_log_error("http", "queue_response=failed status=%d request_id=%s", status, request->id);
        gd_http_cut(request->connection, "internal");
    }
    if (request->suspended)
        gd_http_resume(request);
}

void gd_http_abandon(struct gd_request *request)
{
    static char text[] = "{\"error\":{\"message\":\"the server is stopping; try again later\",\"type\":\"server_error\","
                         "\"param\":null,\"code\":\"service_unavailable\"}}";
    void (*gone)(void *context) = request->gone;
    struct MHD_Response *response = MHD_create_response_from_buffer(sizeof(text) - 1, text, MHD_RESPMEM_PERSISTENT);
    MHD_add_response_header(response, "content-type", "application/json");
    MHD_add_response_header(response, "retry-after", "5");
    request->close = true;
    request->bytes_out = sizeof(text) - 1;
    gd_http_answer(request, 503, response);
    request->ended = false; /* the handler still has it */
    if (gone != NULL)
        gone(request->gone_context);
}

static void reply_text(struct gd_request *request, int status, const char *content_type, char *text_taken, size_t length)
{
    request->bytes_out = request->head ? 0 : length;
    /* gd_alloc is malloc, so the library may free it. */
    struct MHD_Response *response = MHD_create_response_from_buffer(length, text_taken, MHD_RESPMEM_MUST_FREE);
    if (length > 0)
        MHD_add_response_header(response, "content-type", content_type);
    gd_http_answer(request, status, response);
}

void gd_http_reply(struct gd_request *request, int status, cJSON *json_taken)
{
    char *text = json_taken != NULL ? gd_json_print(json_taken) : gd_strdup("");
    cJSON_Delete(json_taken);
    reply_text(request, status, "application/json", text, strlen(text));
}

void gd_http_reply_bytes(struct gd_request *request, int status, const char *content_type, const void *bytes,
                         size_t length)
{
    char *copy = gd_alloc(length + 1);
    if (length > 0)
        memcpy(copy, bytes, length);
    reply_text(request, status, content_type, copy, length);
}

/* attachment; filename="ascii"; filename*=UTF-8''percent-encoded: any name is data, none can leave its quotes. */
static char *content_disposition(const char *filename)
{
    struct gd_buf text;
    gd_buf_init(&text, 16384);
    gd_buf_append_text(&text, "attachment; filename=\"");
    for (const char *c = filename; *c != 0; c++)
        gd_buf_append_char(&text, *c >= 0x20 && *c < 0x7f && *c != '"' && *c != '\\' && *c != '%' ? *c : '_');
    gd_buf_append_text(&text, "\"; filename*=UTF-8''");
    for (const unsigned char *c = (const unsigned char *)filename; *c != 0; c++) {
        bool plain = (*c >= '0' && *c <= '9') || (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || *c == '.' ||
                     *c == '-' || *c == '_';
        gd_buf_printf(&text, plain ? "%c" : "%%%02X", *c);
    }
    return gd_buf_take(&text);
}

void gd_http_reply_file(struct gd_request *request, const char *content_type, const char *filename, int fd_taken,
                        uint64_t bytes)
{
    struct MHD_Response *response = MHD_create_response_from_fd64(bytes, fd_taken);
    char *disposition = content_disposition(filename);
    MHD_add_response_header(response, "content-type", content_type);
    MHD_add_response_header(response, "content-disposition", disposition);
    gd_free(disposition);
    request->bytes_out = request->head ? 0 : bytes;
    gd_http_answer(request, 200, response);
}

cJSON *gd_error_body(const struct gd_error *err, const char *code)
{
    cJSON *body = cJSON_CreateObject(), *error = cJSON_AddObjectToObject(body, "error");
    cJSON_AddStringToObject(error, "message", err->message);
    cJSON_AddStringToObject(error, "type", gd_code_type(err->code));
    if (err->param[0] != 0)
        cJSON_AddStringToObject(error, "param", err->param);
    else
        cJSON_AddNullToObject(error, "param");
    cJSON_AddStringToObject(error, "code", code != NULL ? code : gd_code_wire(err->code));
    return body;
}

static char *error_text(const struct gd_error *err)
{
    cJSON *body = gd_error_body(err, NULL);
    char *text = gd_json_print(body);
    cJSON_Delete(body);
    return text;
}

/* Clients built on OpenAI's SDK retry 409: not when the state of a job says no. */
static void add_retry_headers(struct gd_request *request, enum gd_code code)
{
    if (code == GD_CONFLICT)
        gd_http_header(request, "x-should-retry", "false");
    if (code == GD_BUSY || code == GD_UNAVAILABLE || code == GD_NO_MEMORY)
        gd_http_header(request, "retry-after", "1");
}

void gd_http_fail(struct gd_request *request, const struct gd_error *err)
{
    int status = gd_code_http(err->code);
    if (status >= 500)
        gd_log_error("http", "status=%d request_id=%s message=\"%s\"", status, request->id, err->message);
    char *text = error_text(err);
    add_retry_headers(request, err->code);
    reply_text(request, status, "application/json", text, strlen(text));
}

enum MHD_Result gd_http_fail_midway(struct gd_request *request, const struct gd_error *err)
{
    struct gd_buf answer;
    gd_buf_init(&answer, 65536);
    char *text = error_text(err);
    int status = gd_code_http(err->code);
    add_retry_headers(request, err->code);
    gd_buf_printf(&answer, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                  "Connection: close\r\n", status, MHD_get_reason_phrase_for((unsigned)status), strlen(text));
    for (int i = 0; i < request->header_count; i++)
        gd_buf_printf(&answer, "%s: %s\r\n", request->headers[i].name, request->headers[i].value);
    gd_buf_printf(&answer, "\r\n%s", text);
    /* Nothing was sent on this connection since its last answer: a page of bytes fits the socket's buffer. */
    ssize_t sent = send(request->connection->fd, answer.data, answer.length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent != (ssize_t)answer.length)
        gd_log_debug("http", "early_answer=lost request_id=%s", request->id);
    request->status = status;
    request->bytes_out = strlen(text);
    request->answered = true;
    request->connection->linger = true;
    gd_http_refused_count(request->http, gd_code_wire(err->code));
    if (status >= 500)
        gd_log_error("http", "status=%d request_id=%s message=\"%s\"", status, request->id, err->message);
    gd_free(text);
    gd_buf_release(&answer);
    return MHD_NO;
}
