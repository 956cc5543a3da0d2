/*
 * http_internal.h - what the http files share. Only they include it, and only they name libmicrohttpd.
 *
 * Why      One request passes through several files (loop, intake, body, reply, stream, linger): here is its state.
 * Memory   gd_request lives until libmicrohttpd has completed it and its handler has ended it, whichever is later.
 * Threads  Loop thread.
 * Errors   none
 * Limits   see the constants
 * Life     uri seen -> intake (headers) -> body -> handler -> reply -> completed.
 */
#ifndef GD_SERVER_HTTP_INTERNAL_H
#define GD_SERVER_HTTP_INTERNAL_H

#include "server/app.h"
#include "server/guard.h"
#include "server/http.h"
#include "server/multipart.h"
#include "server/spool.h"

#include <microhttpd.h>
#include <uv.h>

#define LINGER_MS 2000              /* how long an unread body is swallowed after an early answer */
#define LINGER_MAX 128              /* connections doing so at a time */
#define BODY_BYTES_PER_SECOND 1024  /* slower bodies are cut, after request_timeout_seconds of grace */
#define STREAM_COMMENT_SECONDS 15
#define FIELD_BYTES_MAX (64u << 10)
#define FIELDS_MAX 32

/* One TCP connection; libmicrohttpd's socket context. */
struct connection {
    struct gd_http *http;
    struct connection *previous, *next;
    int fd;
    double idle_since;              /* opened, or last request completed */
    struct gd_request *request;
    bool linger;                    /* an answer was given with the body unread */
    bool cut;
};

enum phase {
    PHASE_HEADERS,                  /* the request line is there */
    PHASE_BODY,
    PHASE_BODY_CLOSING,             /* whole; its file is being finished or parsed (suspended) */
    PHASE_READY,                    /* whole: the next call dispatches */
    PHASE_HANDLED,                  /* the handler has it, or an answer is queued */
};

struct reply_header {
    char *name, *value;
};

struct field {
    char *name;
    struct gd_buf value;
};

struct body_parse;

struct gd_request {
    struct gd_http *http;           /* NULL once http has stopped */
    struct MHD_Connection *mhd;     /* NULL once completed */
    struct connection *connection;
    struct gd_request *previous, *next; /* http's list, until completed */
    char id[32];
    char *raw_target;
    const char *method;             /* a literal */
    bool head;
    struct gd_target target;
    const struct gd_route *route;
    const char *params[GD_PATH_PARAMS_MAX];
    const char *project;
    enum phase phase;
    bool suspended, close;
    bool options;                   /* an OPTIONS request: its headers are ready */
    bool answered;                  /* a response is queued, or was sent on the bare socket */
    bool ended;                     /* nobody holds it any more but libmicrohttpd */
    struct gd_error refused;        /* to be answered instead of the handler */
    double started, body_since;
    int status;
    uint64_t bytes_in, bytes_out;

    struct reply_header *headers;
    int header_count;

    uint64_t body_max;
    struct gd_buf body;
    struct gd_spool *spool;
    struct body_parse *parse;
    cJSON *json;
    struct gd_multipart *multipart;
    struct field *fields;
    int field_count;
    bool in_file_part;
    char *filename;
    struct gd_upload upload;

    uv_poll_t *watch;               /* the client's disconnect, on a duplicate of the socket */
    int watch_fd;
    void (*gone)(void *context);
    void *gone_context;
    struct gd_stream *stream;
};

struct gd_linger {
    struct gd_http *http;
    struct gd_linger *previous, *next;
    uv_poll_t poll;
    int fd;
    double until;
};

struct gd_http {
    struct gd_app *app;
    uv_loop_t *loop;
    struct MHD_Daemon *daemon;
    char host[256];
    int port;
    char *temporary_folder;
    uv_poll_t poll;
    uv_prepare_t prepare;
    uv_timer_t timeout, sweep;
    struct connection *connections;
    struct gd_request *requests;
    struct gd_linger *lingers;
    int linger_count, connection_count, request_count, stream_count, suspended_count;
    bool resumed;                   /* a connection since the last MHD_run */
    bool draining, forced, stopping;
    double drain_deadline;
    void (*drained)(void *context);
    void *drained_context;
    int open_handles;
};

/* http.c */
void gd_http_suspend(struct gd_request *request);
void gd_http_resume(struct gd_request *request);
void gd_http_cut(struct connection *connection, const char *reason);
void gd_http_refused_count(struct gd_http *http, const char *reason);

/* http_intake.c: the first call of a request. On refusal request->refused is set. */
void gd_http_intake(struct gd_request *request, const char *method);

/* http_body.c */
enum MHD_Result gd_http_body_data(struct gd_request *request, const char *data, size_t *length);
/* The body is whole. true: go on (request->refused may be set); false: called again when its file is finished. */
bool gd_http_body_end(struct gd_request *request);
void gd_http_body_release(struct gd_request *request);
GD_MUST_CHECK bool gd_http_body_multipart(struct gd_request *request, const char *content_type, struct gd_error *err);

/* http_request.c */
struct gd_request *gd_request_create(struct connection *connection, struct MHD_Connection *mhd, const char *target);
void gd_request_completed(struct gd_request *request);
/* Frees it if it is both completed and ended. */
void gd_request_settle(struct gd_request *request);
void gd_request_watch(struct gd_request *request);
void gd_request_unwatch(struct gd_request *request);

/* http_reply.c */
/* Answers on the bare socket while the body is still coming, which libmicrohttpd cannot; the connection then ends. */
enum MHD_Result gd_http_fail_midway(struct gd_request *request, const struct gd_error *err);
/* Answers 503 in place of the handler, which is told by `gone` and must still end the request. */
void gd_http_abandon(struct gd_request *request);
/* Queues `response` (taken). */
void gd_http_answer(struct gd_request *request, int status, struct MHD_Response *response);

/* stream.c */
void gd_stream_client_gone(struct gd_stream *stream);
void gd_stream_finish(struct gd_stream *stream);   /* draining: gone, then a clean end */
void gd_stream_sweep(struct gd_stream *stream, double now);
void gd_stream_completed(struct gd_stream *stream);
uint64_t gd_stream_bytes(const struct gd_stream *stream);

/* http_linger.c */
void gd_linger_start(struct gd_http *http, int fd);
void gd_linger_sweep(struct gd_http *http, double now);
void gd_linger_stop(struct gd_http *http);

#endif
