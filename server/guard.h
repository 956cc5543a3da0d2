/*
 * guard.h - what libmicrohttpd 0.9.75 lets slip: the checks that a request passes before anything looks at it.
 *
 * Why      That library takes two lengths, unknown encodings, a space before a colon and a missing Host. Each is a way to
 *          smuggle a request past a proxy, so each is refused here, and the path is split before it is decoded, once.
 * Memory   gd_target owns one block that all its strings point into; header views are borrowed.
 * Threads  Any; pure functions.
 * Errors   GD_INVALID (400), GD_TOO_LARGE (413).
 * Limits   GD_TARGET_SEGMENTS_MAX path segments, GD_TARGET_PAIRS_MAX query pairs.
 * Life     gd_guard_headers and gd_target_parse on the first call of a request; gd_target_release at its end.
 */
#ifndef GD_SERVER_GUARD_H
#define GD_SERVER_GUARD_H

#include "engine/base/error.h"
#include <stddef.h>
#include <stdint.h>

#define GD_TARGET_SEGMENTS_MAX 16
#define GD_TARGET_PAIRS_MAX 64

struct gd_header {
    const char *name, *value;
    size_t name_length, value_length;
};

struct gd_guard_facts {
    bool has_body;            /* a length above 0, or chunked */
    bool chunked;
    uint64_t content_length;  /* 0 when chunked */
    const char *host;
};
GD_MUST_CHECK bool gd_guard_headers(const struct gd_header *headers, size_t count, const char *method,
                                    struct gd_guard_facts *facts, struct gd_error *err);

/* Is `host` (the Host header) this server? listen_host as configured; allowed: comma-separated extra hosts or NULL. An
 * entry without a port allows any port. Loopback names are always this server. A wildcard address allows any address
 * literal (a name that somebody else controls cannot be one). */
bool gd_guard_host_allowed(const char *host, const char *listen_host, const char *allowed);

/* Is `origin` in the comma-separated list? Exact match only. */
bool gd_guard_origin_allowed(const char *origin, const char *origins);

struct gd_target {
    char *memory;
    const char *segments[GD_TARGET_SEGMENTS_MAX]; /* decoded; "/v1/files" is {"v1", "files"} */
    int segment_count;
    struct {
        const char *name, *value;                 /* decoded */
    } pairs[GD_TARGET_PAIRS_MAX];
    int pair_count;
};
/* raw: the request target as sent. A slash may be encoded inside a segment; NUL, control characters, invalid UTF-8, bad
 * escapes, dot segments and empty segments are refused. */
GD_MUST_CHECK bool gd_target_parse(struct gd_target *target, const char *raw, struct gd_error *err);
void gd_target_release(struct gd_target *target);

/* True if text is valid UTF-8 without control characters (C0, DEL). */
bool gd_guard_plain(const char *text, size_t length);

#endif
