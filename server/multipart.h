/*
 * multipart.h - multipart/form-data, parsed as it arrives, in any split.
 *
 * Why      libmicrohttpd's post processor has had two memory bugs; a file may have any size, and its part may come before
 *          the fields that say what it is for.
 * Memory   The parser holds one part's headers and nothing of its data.
 * Threads  One thread at a time.
 * Errors   GD_INVALID for a malformed body; whatever the sink returns.
 * Limits   GD_MULTIPART_*
 * Life     gd_multipart_create -> feed ... -> finish -> destroy.
 */
#ifndef GD_SERVER_MULTIPART_H
#define GD_SERVER_MULTIPART_H

#include "engine/base/error.h"
#include <stddef.h>

#define GD_MULTIPART_BOUNDARY_MAX 70
#define GD_MULTIPART_HEADER_MAX 8192
#define GD_MULTIPART_NAME_MAX 128
#define GD_MULTIPART_FILENAME_MAX 1024
#define GD_MULTIPART_PARTS_MAX 64

/* A part begins, has data (any number of pieces), ends. filename NULL: a text field. */
struct gd_multipart_sink {
    void *context;
    bool (*begin)(void *context, const char *name, const char *filename, struct gd_error *err);
    bool (*data)(void *context, const void *bytes, size_t length, struct gd_error *err);
    bool (*end)(void *context, struct gd_error *err);
};

struct gd_multipart;

/* content_type: the request's header, 'multipart/form-data; boundary="..."'. */
GD_MUST_CHECK bool gd_multipart_create(struct gd_multipart **out, const char *content_type,
                                       const struct gd_multipart_sink *sink, struct gd_error *err);
GD_MUST_CHECK bool gd_multipart_feed(struct gd_multipart *parser, const void *bytes, size_t length, struct gd_error *err);
/* The body is over: fails unless the closing delimiter was seen. */
GD_MUST_CHECK bool gd_multipart_finish(struct gd_multipart *parser, struct gd_error *err);
void gd_multipart_destroy(struct gd_multipart *parser);

#endif
