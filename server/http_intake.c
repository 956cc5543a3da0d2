/*
 * http_intake.c - headers are there: is this request well-formed, allowed, known, and of a size that we take?
 *
 * A refusal before a body is answered at once and the connection ends (the rest of the body is swallowed for a while, so
 * that the client sees the answer). Without a body it is answered like any other request and the connection lives on.
 */
#include "server/http_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/log.h"
#include "server/counters.h"
#include "server/keys.h"
#include "server/router.h"

#include <string.h>
#include <strings.h>

#define HEADERS_MAX 256
#define MULTIPART_OVERHEAD_BYTES (1u << 20) /* boundaries, part headers, text fields */

struct header_list {
    struct gd_header items[HEADERS_MAX];
    size_t count;
    bool overflow;
};

static enum MHD_Result collect(void *context, enum MHD_ValueKind kind, const char *name, size_t name_length,
                               const char *value, size_t value_length)
{
    struct header_list *list = context;
    if (list->count == HEADERS_MAX) {
        list->overflow = true;
        return MHD_NO;
    }
    list->items[list->count++] =
        (struct gd_header){.name = name, .value = value != NULL ? value : "", .name_length = name_length,
                           .value_length = value_length};
    return MHD_YES;
}

/* Methods as literals: labels of metrics and of the log, not whatever was sent. */
static const char *known_method(const char *method)
{
    static const char *const names[] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"};
    for (size_t i = 0; i < GD_COUNT(names); i++)
        if (strcmp(names[i], method) == 0)
            return names[i];
    return "OTHER";
}

static bool guard(struct gd_request *request, const char *method, struct gd_guard_facts *facts, struct gd_error *err)
{
    struct header_list list;
    list.count = 0;
    list.overflow = false;
    MHD_get_connection_values_n(request->mhd, MHD_HEADER_KIND, collect, &list);
    if (list.overflow)
        return gd_fail(err, GD_INVALID, "more than %d headers", HEADERS_MAX);
    if (!gd_guard_headers(list.items, list.count, method, facts, err))
        return false;
    const struct gd_config *config = &request->http->app->config;
    if (!gd_guard_host_allowed(facts->host, config->listen_host, config->allowed_hosts))
        return gd_fail_param(err, GD_FORBIDDEN, "host",
                             "host %.100s is not this server; name it in server.allowed_hosts if it should be", facts->host);
    return gd_target_parse(&request->target, request->raw_target, err);
}

static bool same_origin(const char *origin, const char *host)
{
    const char *rest = strstr(origin, "://");
    return rest != NULL && strcasecmp(rest + 3, host) == 0;
}

/* Browsers send Origin. Pages that are not configured may not change anything: forms and uploads need no preflight. */
static bool check_origin(struct gd_request *request, const char *host, struct gd_error *err)
{
    const char *origin = gd_request_header(request, "origin");
    if (origin == NULL)
        return true;
    if (gd_guard_origin_allowed(origin, request->http->app->config.cors_origins)) {
        gd_http_header(request, "access-control-allow-origin", origin);
        gd_http_header(request, "access-control-expose-headers",
                       "x-request-id, retry-after, x-should-retry, x-graftd-ignored-fields");
        gd_http_header(request, "vary", "origin");
        return true;
    }
    bool reads = strcmp(request->method, "GET") == 0 || request->head || strcmp(request->method, "OPTIONS") == 0;
    if (reads || same_origin(origin, host))
        return true;
    return gd_fail_param(err, GD_FORBIDDEN, "origin", "origin %.100s is not allowed; name it in server.cors_origins", origin);
}

static bool authorized(struct gd_request *request, struct gd_error *err)
{
    const struct gd_keys *keys = request->http->app->keys;
    if (keys == NULL)
        return true;
    const char *header = gd_request_header(request, "authorization");
    const char *project = NULL;
    if (header != NULL && strncasecmp(header, "bearer ", 7) == 0) {
        const char *key = header + 7 + strspn(header + 7, " ");
        project = gd_keys_project(keys, key, strlen(key));
    }
    if (project != NULL) {
        request->project = project;
        return true;
    }
    gd_http_header(request, "www-authenticate", "Bearer realm=\"graftd\"");
    return gd_fail(err, GD_UNAUTHORIZED,
                   header == NULL ? "no key; send \"Authorization: Bearer KEY\"" : "the key is not known here");
}

/* OPTIONS on a known path: what may be done with it, also for a browser's preflight. Needs no key. */
static void prepare_options(struct gd_request *request, const struct gd_match *match)
{
    gd_http_header(request, "allow", match->allow);
    const char *wanted = gd_request_header(request, "access-control-request-headers");
    bool allowed = gd_request_header(request, "origin") != NULL &&
                   gd_guard_origin_allowed(gd_request_header(request, "origin"),
                                           request->http->app->config.cors_origins);
    if (allowed && gd_request_header(request, "access-control-request-method") != NULL) {
        gd_http_header(request, "access-control-allow-methods", match->allow);
        if (wanted != NULL && gd_guard_plain(wanted, strlen(wanted)))
            gd_http_header(request, "access-control-allow-headers", wanted);
        gd_http_header(request, "access-control-max-age", "600");
    }
    request->options = true;
}

static bool check_body(struct gd_request *request, const struct gd_guard_facts *facts, struct gd_error *err)
{
    const struct gd_route *route = request->route;
    const char *type = gd_request_header(request, "content-type");
    size_t length = type != NULL ? strcspn(type, "; \t") : 0;
    uint64_t max = route->body_max != 0 ? route->body_max : GD_BODY_MEMORY_BYTES;
    if (route->body == GD_BODY_MULTIPART)
        max = (route->body_max != 0 ? route->body_max : request->http->app->config.upload_max_bytes) +
              MULTIPART_OVERHEAD_BYTES;
    request->body_max = max;
    if (facts->content_length > max)
        return gd_fail(err, GD_TOO_LARGE, "the body has %llu bytes, at most %llu are taken here",
                       (unsigned long long)facts->content_length, (unsigned long long)max);
    if (!facts->has_body)
        return true;
    switch (route->body) {
    case GD_BODY_NONE:
        return facts->content_length == 0 || gd_fail(err, GD_INVALID, "this call takes no body; send none");
    case GD_BODY_JSON:
        if (length != 16 || strncasecmp(type, "application/json", 16) != 0)
            return gd_fail_param(err, GD_MEDIA_TYPE, "content-type", "content-type %.64s: send application/json",
                                 type != NULL ? type : "(none)");
        gd_buf_init(&request->body, GD_BODY_MEMORY_BYTES + 1);
        return true;
    case GD_BODY_MULTIPART:
        if (length != 19 || strncasecmp(type, "multipart/form-data", 19) != 0)
            return gd_fail_param(err, GD_MEDIA_TYPE, "content-type", "content-type %.64s: send multipart/form-data",
                                 type != NULL ? type : "(none)");
        return gd_http_body_multipart(request, type, err);
    }
    return true;
}

/* Everything that waits holds a connection; some are kept for those who do not wait. */
static bool admit(const struct gd_request *request, struct gd_error *err)
{
    const struct gd_http *http = request->http;
    int limit = http->app->config.connection_limit * 4 / 5;
    if (request->route->open || http->suspended_count + http->stream_count < limit)
        return true;
    return gd_fail(err, GD_BUSY, "%d requests and streams are waiting already, the limit is %d; try again later",
                   http->suspended_count + http->stream_count, limit);
}

static bool route(struct gd_request *request, const struct gd_guard_facts *facts, struct gd_error *err)
{
    struct gd_match match;
    gd_router_match(gd_routes, gd_route_count, request->method, &request->target, &match);
    if (strcmp(request->method, "OPTIONS") == 0 && match.path_known) {
        prepare_options(request, &match);
        return true;
    }
    bool open = match.route != NULL && match.route->open;
    if (!open && !authorized(request, err))
        return false;
    if (!match.path_known)
        return gd_fail(err, GD_NOT_FOUND, "there is nothing at this path; GET /openapi.yaml lists what there is");
    if (match.route == NULL) {
        gd_http_header(request, "allow", match.allow);
        return gd_fail(err, GD_BAD_METHOD, "%s is not possible here; allowed: %s", request->method, match.allow);
    }
    request->route = match.route;
    memcpy(request->params, match.params, sizeof(request->params));
    return admit(request, err) && check_body(request, facts, err);
}

void gd_http_intake(struct gd_request *request, const char *method)
{
    struct gd_guard_facts facts;
    struct gd_error *err = &request->refused;
    request->method = known_method(method);
    request->head = strcmp(method, "HEAD") == 0;
    gd_http_header(request, "x-request-id", request->id);
    request->close = request->http->draining;
    if (!guard(request, method, &facts, err)) {
        gd_http_refused_count(request->http, "guard");
    } else if (check_origin(request, facts.host, err) && route(request, &facts, err)) {
        return;
    } else {
        gd_http_refused_count(request->http, gd_code_wire(err->code));
        if (!facts.has_body)
            return; /* answered when the (empty) body is over: the connection can be used again */
    }
    request->close = true;
    request->connection->linger = true;
    request->phase = PHASE_HANDLED;
    gd_http_fail(request, err);
}
