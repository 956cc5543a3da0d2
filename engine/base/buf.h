/*
 * buf.h - a growing byte buffer with a largest size.
 *
 * Why      Text and frames are built piecewise; nothing that a client sends may grow without bound.
 * Memory   Owns `data`; gd_buf_release frees, gd_buf_take hands over.
 * Threads  One thread at a time.
 * Errors   Appending past `limit_bytes` sets `overflow` and drops the append; check once at the end.
 * Limits   limit_bytes as given (0 = 1 GiB).
 * Life     gd_buf_init -> append ... -> gd_buf_take or gd_buf_release.
 */
#ifndef GD_BASE_BUF_H
#define GD_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct gd_buf {
    char *data;          /* always NUL-terminated after the first append; NULL when empty */
    size_t length;       /* without the NUL */
    size_t capacity;
    size_t limit_bytes;
    bool overflow;
};

void gd_buf_init(struct gd_buf *buf, size_t limit_bytes);
void gd_buf_append(struct gd_buf *buf, const void *bytes, size_t length);
void gd_buf_append_text(struct gd_buf *buf, const char *text);
void gd_buf_append_char(struct gd_buf *buf, char byte);
void gd_buf_printf(struct gd_buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));
void gd_buf_clear(struct gd_buf *buf);            /* length 0, keeps the memory */
char *gd_buf_take(struct gd_buf *buf);            /* yours to gd_free; "" when empty; buf is empty again */
void gd_buf_release(struct gd_buf *buf);

#endif
