/*
 * http.h - requests in, replies out: libmicrohttpd inside the libuv loop.
 *
 * Why      Handlers see a checked request and answer it once, now or later; nothing else of the server names
 *          libmicrohttpd.
 * Memory   A request belongs to http; its strings and body are valid until the handler ends it with a reply call.
 * Threads  Loop thread only.
 * Errors   gd_http_fail answers in OpenAI's shape {"error":{message,type,param,code}}.
 * Limits   per route: body_max; bodies above GD_BODY_MEMORY_BYTES are spooled to DATA_DIR/tmp. At most 80 % of
 *          config.connection_limit may wait for an answer or stream (429).
 * Life     gd_http_start -> handlers ... -> gd_http_stop (drains streams, then stops).
 */
#ifndef GD_SERVER_HTTP_H
#define GD_SERVER_HTTP_H

#include "engine/base/json.h"
#include <stdint.h>

#define GD_BODY_MEMORY_BYTES (1u << 20)
#define GD_PATH_PARAMS_MAX 4

struct gd_app;
struct gd_http;
struct gd_request;
struct gd_stream;

enum gd_route_body {
    GD_BODY_NONE,       /* a body is ignored if empty, refused if not */
    GD_BODY_JSON,       /* application/json, parsed: gd_request_json */
    GD_BODY_MULTIPART,  /* multipart/form-data: gd_request_field / gd_request_upload */
};

/* One line a route. path: "/v1/files/{file_id}/content". To add a route: write its handler and its line in
 * routes.c, its operation in api-spec/openapi.yaml. */
struct gd_route {
    const char *method;
    const char *path;
    enum gd_route_body body;
    uint64_t body_max;                  /* 0: GD_BODY_MEMORY_BYTES (multipart: config.upload_max_bytes) */
    bool open;                          /* no key needed (health only) */
    void (*handler)(struct gd_app *app, struct gd_request *request);
};
extern const struct gd_route gd_routes[];
extern const int gd_route_count;

/* ---- what was asked ---- */
const char *gd_request_id(const struct gd_request *request);              /* "req_..." (x-request-id) */
const char *gd_request_project(const struct gd_request *request);         /* of the key; "default" without keys */
const char *gd_request_param(const struct gd_request *request, int index);/* path parameter, decoded once */
const char *gd_request_query(const struct gd_request *request, const char *name); /* first value, decoded; or NULL */
/* Visits query pairs whose name is name[KEY] (metadata filters). */
void gd_request_query_each(const struct gd_request *request, const char *name,
                           void (*visit)(void *context, const char *key, const char *value), void *context);
GD_MUST_CHECK bool gd_request_query_int(const struct gd_request *request, const char *name, int64_t min, int64_t max,
                                        int64_t *out, struct gd_error *err); /* absent: unchanged */
const char *gd_request_header(const struct gd_request *request, const char *name);
const cJSON *gd_request_json(const struct gd_request *request);           /* GD_BODY_JSON: the body (an object) */
const char *gd_request_field(const struct gd_request *request, const char *name); /* multipart text field or NULL */
/* Fails with GD_UNKNOWN_FIELD if there is a multipart text field that is not in `known` (NULL-terminated). */
GD_MUST_CHECK bool gd_request_only_fields(const struct gd_request *request, const char *const *known,
                                          struct gd_error *err);
/* Multipart file part: spooled in DATA_DIR/tmp and fsynced. take_path: ownership of the temporary file moves. */
struct gd_upload {
    const char *filename;
    const char *temporary_path;
    uint64_t bytes;
    char xxh3[33];
};
const struct gd_upload *gd_request_upload(const struct gd_request *request); /* the part named "file", or NULL */
void gd_request_upload_taken(struct gd_request *request);

/* Called (at most once) if the client goes away before the reply; the handler must then still end the request with
 * any reply call (which is dropped). */
void gd_request_on_gone(struct gd_request *request, void (*gone)(void *context), void *context);

/* ---- answers: exactly one of these ends a request ---- */
void gd_http_header(struct gd_request *request, const char *name, const char *value); /* before the reply */
void gd_http_reply(struct gd_request *request, int status, cJSON *json_taken);
void gd_http_reply_bytes(struct gd_request *request, int status, const char *content_type, const void *bytes,
                         size_t length);
void gd_http_reply_file(struct gd_request *request, const char *content_type, const char *filename, int fd_taken,
                        uint64_t bytes);
void gd_http_fail(struct gd_request *request, const struct gd_error *err);
/* {"error":{message, type, param, code}}; code NULL: the error's own. */
cJSON *gd_error_body(const struct gd_error *err, const char *code);
/* Server-sent events. The stream owns the connection from here; writes are queued; `gone` once when the client leaves or
 * stops reading for GD_STREAM_STALL_SECONDS or lets more than GD_STREAM_QUEUE_BYTES pile up. Comments are sent every 15 s. */
#define GD_STREAM_QUEUE_BYTES (8u << 20)
#define GD_STREAM_STALL_SECONDS 60
struct gd_stream *gd_http_stream(struct gd_request *request, void (*gone)(void *context), void *context);
void gd_stream_data(struct gd_stream *stream, const char *event_or_null, const char *id_or_null, const char *data);
/* Sends what is queued, then closes; the pointer is dead afterwards. Every stream needs it, also after `gone` (inside it
 * is fine): between the two, data is dropped. */
void gd_stream_end(struct gd_stream *stream);

/* ---- the daemon ---- */
GD_MUST_CHECK bool gd_http_start(struct gd_http **out, struct gd_app *app, struct gd_error *err);
int gd_http_port(const struct gd_http *http);
const char *gd_http_host(const struct gd_http *http);
/* Stops accepting; ends idle connections and, by their `gone`, the streams of GET requests (subscriptions); `drained` on
 * the loop when no request is left, or after `grace_ms`, when the rest was told to go (503, or `gone`). */
void gd_http_drain(struct gd_http *http, uint64_t grace_ms, void (*drained)(void *context), void *context);
/* Not from inside a handler. Handles close in the loop's next turns, which also free it. A request that is still in a
 * handler's hands must be ended all the same; its reply is dropped. */
void gd_http_stop(struct gd_http *http);

#endif
