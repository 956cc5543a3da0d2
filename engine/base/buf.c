#include "engine/base/buf.h"
#include "engine/base/alloc.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define LIMIT_DEFAULT_BYTES ((size_t)1 << 30)
#define CAPACITY_MIN 64u

void gd_buf_init(struct gd_buf *buf, size_t limit_bytes)
{
    *buf = (struct gd_buf){.limit_bytes = limit_bytes};
}

/* Makes room for `length` more bytes and a NUL. False: past the limit; from then on every append is dropped, so that
 * what is there stays a prefix of what was meant. */
static bool reserve(struct gd_buf *buf, size_t length)
{
    size_t limit = buf->limit_bytes != 0 ? buf->limit_bytes : LIMIT_DEFAULT_BYTES;
    if (buf->overflow || length > limit - buf->length) {
        buf->overflow = true;
        return false;
    }
    size_t needed = buf->length + length + 1;
    if (needed <= buf->capacity)
        return true;
    size_t capacity = buf->capacity < CAPACITY_MIN ? CAPACITY_MIN : buf->capacity;
    while (capacity < needed)
        capacity = capacity > limit / 2 ? limit + 1 : capacity * 2;
    buf->data = gd_realloc_array(buf->data, capacity, 1);
    buf->capacity = capacity;
    return true;
}

void gd_buf_append(struct gd_buf *buf, const void *bytes, size_t length)
{
    if (!reserve(buf, length))
        return;
    if (length > 0)
        memcpy(buf->data + buf->length, bytes, length);
    buf->length += length;
    buf->data[buf->length] = '\0';
}

void gd_buf_append_text(struct gd_buf *buf, const char *text)
{
    gd_buf_append(buf, text, strlen(text));
}

void gd_buf_append_char(struct gd_buf *buf, char byte)
{
    gd_buf_append(buf, &byte, 1);
}

void gd_buf_printf(struct gd_buf *buf, const char *format, ...)
{
    va_list list, again;
    va_start(list, format);
    va_copy(again, list);
    int length = vsnprintf(NULL, 0, format, list);
    va_end(list);
    assert(length >= 0);
    if (reserve(buf, (size_t)length)) {
        (void)vsnprintf(buf->data + buf->length, (size_t)length + 1, format, again);
        buf->length += (size_t)length;
    }
    va_end(again);
}

void gd_buf_clear(struct gd_buf *buf)
{
    buf->length = 0;
    buf->overflow = false;
    if (buf->data != NULL)
        buf->data[0] = '\0';
}

char *gd_buf_take(struct gd_buf *buf)
{
    char *data = buf->data != NULL ? buf->data : gd_alloc(1);
    buf->data = NULL;
    buf->length = 0;
    buf->capacity = 0;
    return data;
}

void gd_buf_release(struct gd_buf *buf)
{
    gd_free(buf->data);
    gd_buf_init(buf, buf->limit_bytes);
}
