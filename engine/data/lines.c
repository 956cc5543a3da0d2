#include "engine/data/lines.h"
#include "engine/base/alloc.h"
#include "engine/data/row.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define CHUNK_BYTES (1u << 16)
#define BOM "\xef\xbb\xbf"

static const struct {
    const char *bytes;
    size_t length;
    const char *what;
} foreign[] = {
    {"\x1f\x8b", 2, "gzip-compressed; unpack it first"},
    {"\x28\xb5\x2f\xfd", 4, "zstd-compressed; unpack it first"},
    {"\xfd" "7zXZ", 5, "xz-compressed; unpack it first"},
    {"BZh", 3, "bzip2-compressed; unpack it first"},
    {"PK\x03\x04", 4, "a zip archive; unpack it first"},
    {"PAR1", 4, "Parquet; convert it to JSONL"},
    {"\xff\xfe", 2, "UTF-16 or UTF-32; convert it to UTF-8"},
    {"\xfe\xff", 2, "UTF-16; convert it to UTF-8"},
    {"\0\0\xfe\xff", 4, "UTF-32; convert it to UTF-8"},
};

static size_t blank_length(const char *text, size_t length)
{
    size_t n = 0;
    while (n < length && (text[n] == ' ' || text[n] == '\t' || text[n] == '\r'))
        n++;
    return n;
}

static bool not_jsonl(struct gd_error *err, const char *what)
{
    return gd_fail_param(err, GD_BAD_FILE, "file", "the file is %s", what);
}

/* What the first bytes give away. A file of rows begins with {. */
static bool check_start(const char *start, size_t length, struct gd_error *err)
{
    for (size_t i = 0; i < GD_COUNT(foreign); i++) {
        if (length >= foreign[i].length && memcmp(start, foreign[i].bytes, foreign[i].length) == 0)
            return not_jsonl(err, foreign[i].what);
    }
    if (length >= 4 && (start[0] == '\0') != (start[1] == '\0') && (start[0] == '\0') == (start[2] == '\0'))
        return not_jsonl(err, "UTF-16 without a byte order mark; convert it to UTF-8");
    size_t at = length >= 3 && memcmp(start, BOM, 3) == 0 ? 3 : 0;
    at += blank_length(start + at, length - at);
    if (at < length && start[at] == '[')
        return not_jsonl(err, "a JSON array; JSONL has one object per line and no brackets around them");
    if (at == length || start[at] != '{')
        return true;
    at++;
    at += blank_length(start + at, length - at);
    if (at < length && start[at] == '\n')
        return not_jsonl(err, "JSON spread over several lines; JSONL has each object on one line");
    return true;
}

struct reader {
    gd_line_visitor visit;
    void *context;
    struct gd_buf line;
    int64_t number, rows;
    size_t length;              /* of the line at hand, kept or not */
};

static bool end_line(struct reader *reader, struct gd_error *err)
{
    const char *text = reader->line.length > 0 ? reader->line.data : "";
    size_t length = reader->line.length;
    bool too_long = reader->line.overflow, ok = true;
    reader->number++;
    if (reader->number == 1 && length >= 3 && memcmp(text, BOM, 3) == 0) {
        text += 3;
        length -= 3;
    }
    if (length > 0 && text[length - 1] == '\r')
        length--;
    if (too_long || blank_length(text, length) < length) {
        ok = ++reader->rows <= GD_FILE_ROWS_MAX ||
             gd_fail_param(err, GD_BAD_FILE, "file", "the file has more than %d rows", GD_FILE_ROWS_MAX);
        ok = ok && reader->visit(reader->context, too_long ? NULL : text, too_long ? 0 : length, reader->number, err);
    }
    gd_buf_clear(&reader->line);
    reader->line.overflow = false;
    return ok;
}

static bool feed(struct reader *reader, const char *bytes, size_t length, struct gd_error *err)
{
    while (length > 0) {
        const char *end = memchr(bytes, '\n', length);
        size_t part = end != NULL ? (size_t)(end - bytes) : length;
        reader->length += part;
        if (reader->length >= GD_LINE_BYTES_MAX)
            return gd_fail_param(err, GD_BAD_FILE, "file", "line %lld has %u bytes and more; JSONL has one object on each line",
                                 (long long)reader->number + 1, GD_LINE_BYTES_MAX);
        if (!reader->line.overflow) /* the rest of a line that is too long is read and forgotten */
            gd_buf_append(&reader->line, bytes, part);
        if (end == NULL)
            return true;
        if (!end_line(reader, err))
            return false;
        bytes += part + 1;
        length -= part + 1;
        reader->length = 0;
    }
    return true;
}

static bool read_all(struct reader *reader, int fd, const char *path, char *chunk, struct gd_error *err)
{
    for (bool first = true;; first = false) {
        ssize_t got;
        do
            got = read(fd, chunk, CHUNK_BYTES);
        while (got < 0 && errno == EINTR);
        if (got < 0)
            return gd_fail_errno(err, errno, "read %s", path);
        if (got == 0)
            return !first || not_jsonl(err, "empty");
        if ((first && !check_start(chunk, (size_t)got, err)) || !feed(reader, chunk, (size_t)got, err))
            return false;
    }
}

bool gd_lines_each(const char *path, gd_line_visitor visit, void *context, struct gd_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return gd_fail_errno(err, errno, "open %s", path);
    struct reader reader = {.visit = visit, .context = context};
    char *chunk = gd_alloc(CHUNK_BYTES);
    gd_buf_init(&reader.line, GD_ROW_BYTES_MAX);
    bool ok = read_all(&reader, fd, path, chunk, err);
    if (ok && (reader.line.length > 0 || reader.line.overflow))
        ok = end_line(&reader, err);
    if (ok && reader.rows == 0)
        ok = not_jsonl(err, "nothing but white space");
    gd_buf_release(&reader.line);
    gd_free(chunk);
    close(fd);
    return ok;
}
