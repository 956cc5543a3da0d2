#include "engine/data/lines.h"

#include "engine/base/alloc.h"
#include "engine/data/row.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define CHUNK_BYTES (1u << 16)

static const struct {
    const char *bytes;
    size_t length;
    const char *what;
} foreign[] = {
    {"\x1f\x8b", 2, "gzip-compressed: unpack it first"},
    {"\x28\xb5\x2f\xfd", 4, "zstd-compressed: unpack it first"},
    {"PK\x03\x04", 4, "a zip archive: unpack it first"},
    {"PAR1", 4, "Parquet: convert it to JSONL"},
    {"\xff\xfe", 2, "UTF-16: convert it to UTF-8"},
    {"\xfe\xff", 2, "UTF-16: convert it to UTF-8"},
};

static bool check_start(const char *start, size_t length, struct gd_error *err)
{
    for (size_t i = 0; i < GD_COUNT(foreign); i++)
        if (length >= foreign[i].length && memcmp(start, foreign[i].bytes, foreign[i].length) == 0)
            return gd_fail_param(err, GD_BAD_FILE, "file", "the file is %s", foreign[i].what);
    return true;
}

static bool blank(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r')
            return false;
    return true;
}

struct reader {
    gd_line_visitor visit;
    void *context;
    struct gd_buf line;
    int64_t number, rows;
};

static bool end_line(struct reader *reader, struct gd_error *err)
{
    const char *text = reader->line.length ? reader->line.data : "";
    size_t length = reader->line.length;
    reader->number++;
    if (reader->line.overflow)
        return gd_fail_param(err, GD_BAD_FILE, "file", "line %lld: longer than %u bytes", (long long)reader->number,
                             GD_ROW_BYTES_MAX);
    if (reader->number == 1 && length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        text += 3;
        length -= 3;
    }
    if (length > 0 && text[length - 1] == '\r')
        length--;
    bool ok = true;
    if (!blank(text, length)) {
        ok = ++reader->rows <= GD_FILE_ROWS_MAX ||
             gd_fail_param(err, GD_BAD_FILE, "file", "the file has more than %d rows", GD_FILE_ROWS_MAX);
        ok = ok && reader->visit(reader->context, text, length, reader->number, err);
    }
    gd_buf_clear(&reader->line);
    return ok;
}

static bool feed(struct reader *reader, const char *bytes, size_t length, struct gd_error *err)
{
    while (length > 0) {
        const char *end = memchr(bytes, '\n', length);
        size_t part = end ? (size_t)(end - bytes) : length;
        gd_buf_append(&reader->line, bytes, part);
        if (reader->line.overflow && end == NULL)
            return end_line(reader, err);
        if (end == NULL)
            return true;
        if (!end_line(reader, err))
            return false;
        bytes += part + 1;
        length -= part + 1;
    }
    return true;
}

bool gd_lines_each(const char *path, gd_line_visitor visit, void *context, struct gd_error *err)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return gd_fail_errno(err, errno, "open %s", path);
    struct reader reader = {.visit = visit, .context = context};
    char *chunk = gd_alloc(CHUNK_BYTES);
    size_t got;
    bool ok = true, first = true;
    gd_buf_init(&reader.line, GD_ROW_BYTES_MAX);
    while (ok && (got = fread(chunk, 1, CHUNK_BYTES, file)) > 0) {
        ok = (!first || check_start(chunk, got, err)) && feed(&reader, chunk, got, err);
        first = false;
    }
    if (ok && ferror(file))
        ok = gd_fail(err, GD_IO, "read %s failed", path);
    if (ok && reader.line.length > 0)
        ok = end_line(&reader, err);
    if (ok && reader.rows == 0)
        ok = gd_fail_param(err, GD_BAD_FILE, "file", first ? "the file is empty" : "the file holds only white space");
    gd_buf_release(&reader.line);
    gd_free(chunk);
    fclose(file);
    return ok;
}
