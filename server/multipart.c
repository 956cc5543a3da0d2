/*
 * multipart.c - RFC 7578 in one pass.
 *
 * The delimiter is CR LF "--" boundary. CR stands only at its start, so after a mismatch nothing but a new CR can begin
 * a match: the bytes matched so far are data, and the byte at hand is looked at again. No look-back is needed.
 */
#include "server/multipart.h"

#include "engine/base/alloc.h"
#include "engine/base/buf.h"
#include "server/guard.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

enum state {
    START,       /* nothing yet: as if CR LF had been seen */
    DATA,        /* in a part, or matching the delimiter after it */
    DELIMITED,   /* behind a delimiter: CR LF begins a part, "--" ends the body */
    CLOSING,     /* one "-" seen */
    LINE_END,    /* CR seen behind a delimiter */
    HEADERS,
    EPILOGUE,
};

struct gd_multipart {
    struct gd_multipart_sink sink;
    enum state state;
    char delimiter[GD_MULTIPART_BOUNDARY_MAX + 5];
    size_t delimiter_length, matched;
    struct gd_buf headers;
    int parts;
    bool in_part;
    char name[GD_MULTIPART_NAME_MAX + 1];
    char filename[GD_MULTIPART_FILENAME_MAX + 1];
    bool has_filename;
};

/* RFC 2046: a quoted-string may hold a few characters that a token may not. */
static bool boundary_char(char c)
{
    return isalnum((unsigned char)c) || (c != 0 && strchr("'()+_,-./:=? ", c) != NULL);
}

/*
 * Reads `; name=value` or `; name="value"` at *cursor. In a quoted value \" and \\ stand for themselves, any other
 * backslash is data (browsers send Windows paths so). Returns 1 (read), 0 (the end), -1 (malformed or too long).
 */
static int next_parameter(const char **cursor, char *name, size_t name_size, char *value, size_t value_size)
{
    const char *c = *cursor;
    while (*c == ' ' || *c == '\t')
        c++;
    if (*c == 0)
        return 0;
    if (*c++ != ';')
        return -1;
    while (*c == ' ' || *c == '\t')
        c++;
    size_t length = strcspn(c, "=; \t");
    if (length == 0 || length >= name_size || c[length] != '=')
        return -1;
    memcpy(name, c, length);
    name[length] = 0;
    c += length + 1;
    size_t used = 0;
    if (*c == '"') {
        for (c++; *c != '"'; c++) {
            if (*c == '\\' && (c[1] == '"' || c[1] == '\\'))
                c++;
            if (*c == 0 || used + 1 >= value_size)
                return -1;
            value[used++] = *c;
        }
        c++;
    } else {
        for (; *c != 0 && *c != ';' && *c != ' ' && *c != '\t'; c++) {
            if (used + 1 >= value_size)
                return -1;
            value[used++] = *c;
        }
    }
    value[used] = 0;
    *cursor = c;
    return 1;
}

bool gd_multipart_create(struct gd_multipart **out, const char *content_type, const struct gd_multipart_sink *sink,
                         struct gd_error *err)
{
    const char *cursor = content_type + strcspn(content_type, ";");
    char name[64], value[GD_MULTIPART_BOUNDARY_MAX + 2], boundary[sizeof(value)] = "";
    int got, boundaries = 0;
    while ((got = next_parameter(&cursor, name, sizeof(name), value, sizeof(value))) == 1) {
        if (strcasecmp(name, "boundary") == 0) {
            memcpy(boundary, value, sizeof(boundary));
            boundaries++;
        }
    }
    size_t length = strlen(boundary);
    bool ok = got == 0 && boundaries == 1 && length >= 1 && length <= GD_MULTIPART_BOUNDARY_MAX &&
              boundary[length - 1] != ' ';
    for (size_t i = 0; ok && i < length; i++)
        ok = boundary_char(boundary[i]);
    if (!ok)
        return gd_fail_param(err, GD_INVALID, "content-type",
                             "multipart/form-data needs one boundary of 1 to %d characters", GD_MULTIPART_BOUNDARY_MAX);
    struct gd_multipart *parser = gd_alloc(sizeof(*parser));
    parser->sink = *sink;
    memcpy(parser->delimiter, "\r\n--", 4);
    memcpy(parser->delimiter + 4, boundary, length);
    parser->delimiter_length = length + 4;
    parser->matched = 2;
    gd_buf_init(&parser->headers, GD_MULTIPART_HEADER_MAX);
    *out = parser;
    return true;
}

void gd_multipart_destroy(struct gd_multipart *parser)
{
    if (parser == NULL)
        return;
    gd_buf_release(&parser->headers);
    gd_free(parser);
}

static int hex(char c)
{
    return isdigit((unsigned char)c) ? c - '0' : isxdigit((unsigned char)c) ? tolower((unsigned char)c) - 'a' + 10 : -1;
}

/* filename*=UTF-8''na%C3%AFve.jsonl (RFC 8187) */
static bool decode_extended(const char *value, char *out, size_t out_size)
{
    if (strncasecmp(value, "utf-8'", 6) != 0)
        return false;
    const char *text = strchr(value + 6, '\'');
    if (text == NULL)
        return false;
    size_t used = 0;
    for (text++; *text != 0; text++) {
        char c = *text;
        if (c == '%') {
            int high = hex(text[1]), low = high >= 0 ? hex(text[2]) : -1;
            if (low < 0)
                return false;
            c = (char)(high * 16 + low);
            text += 2;
        }
        if (c == 0 || used + 1 >= out_size)
            return false;
        out[used++] = c;
    }
    out[used] = 0;
    return true;
}

static bool disposition(struct gd_multipart *parser, const char *value, struct gd_error *err)
{
    if (strncasecmp(value, "form-data", 9) != 0 || (value[9] != 0 && strchr("; \t", value[9]) == NULL))
        return gd_fail(err, GD_INVALID, "multipart: content-disposition must be form-data");
    const char *cursor = value + 9;
    char key[64], text[3 * GD_MULTIPART_FILENAME_MAX + 16], extended[GD_MULTIPART_FILENAME_MAX + 1];
    int got, names = 0, files = 0, extendeds = 0;
    while ((got = next_parameter(&cursor, key, sizeof(key), text, sizeof(text))) == 1) {
        if (strcasecmp(key, "name") == 0) {
            if (strlen(text) == 0 || strlen(text) > GD_MULTIPART_NAME_MAX || !gd_guard_plain(text, strlen(text)))
                return gd_fail(err, GD_INVALID, "multipart: a part's name has 1 to %d bytes of plain UTF-8",
                               GD_MULTIPART_NAME_MAX);
            memcpy(parser->name, text, strlen(text) + 1);
            names++;
        } else if (strcasecmp(key, "filename") == 0) {
            if (strlen(text) > GD_MULTIPART_FILENAME_MAX)
                return gd_fail(err, GD_INVALID, "multipart: a filename has at most %d bytes", GD_MULTIPART_FILENAME_MAX);
            memcpy(parser->filename, text, strlen(text) + 1);
            files++;
        } else if (strcasecmp(key, "filename*") == 0) {
            if (!decode_extended(text, extended, sizeof(extended)))
                return gd_fail(err, GD_INVALID, "multipart: filename* is not UTF-8''... of at most %d bytes",
                               GD_MULTIPART_FILENAME_MAX);
            extendeds++;
        }
    }
    if (got < 0 || names != 1 || files > 1 || extendeds > 1)
        return gd_fail(err, GD_INVALID, "multipart: malformed content-disposition; send form-data; name=\"...\"");
    if (extendeds == 1)
        memcpy(parser->filename, extended, strlen(extended) + 1);
    parser->has_filename = files + extendeds > 0;
    if (parser->has_filename && (parser->filename[0] == 0 || !gd_guard_plain(parser->filename, strlen(parser->filename))))
        return gd_fail_param(err, GD_INVALID, parser->name,
                             "filename: is empty, not UTF-8, or has a control character or a NUL");
    return true;
}

/* The headers are whole (they end with an empty line): begin the part. */
static bool begin_part(struct gd_multipart *parser, struct gd_error *err)
{
    bool named = false;
    char *line = parser->headers.data;
    if (memchr(line, 0, parser->headers.length) != NULL)
        return gd_fail(err, GD_INVALID, "multipart: a part's header has a NUL");
    for (char *end; (end = strstr(line, "\r\n")) != NULL && end != line; line = end + 2) {
        *end = 0;
        static const char wanted[] = "content-disposition:";
        if (strncasecmp(line, wanted, sizeof(wanted) - 1) == 0) {
            if (named)
                return gd_fail(err, GD_INVALID, "multipart: two content-disposition headers in a part");
            const char *value = line + sizeof(wanted) - 1;
            value += strspn(value, " \t");
            if (!disposition(parser, value, err))
                return false;
            named = true;
        } else if (strncasecmp(line, "content-transfer-encoding:", 26) == 0) {
            const char *value = line + 26;
            value += strspn(value, " \t");
            if (strcasecmp(value, "binary") != 0 && strcasecmp(value, "8bit") != 0 && strcasecmp(value, "7bit") != 0)
                return gd_fail(err, GD_INVALID, "multipart: content-transfer-encoding \"%.32s\" is not understood", value);
        }
    }
    if (!named)
        return gd_fail(err, GD_INVALID, "multipart: a part without content-disposition");
    if (++parser->parts > GD_MULTIPART_PARTS_MAX)
        return gd_fail(err, GD_INVALID, "multipart: more than %d parts", GD_MULTIPART_PARTS_MAX);
    gd_buf_clear(&parser->headers);
    parser->in_part = true;
    parser->state = DATA;
    parser->matched = 0;
    return parser->sink.begin(parser->sink.context, parser->name, parser->has_filename ? parser->filename : NULL, err);
}

static bool feed_headers(struct gd_multipart *parser, char c, struct gd_error *err)
{
    gd_buf_append_char(&parser->headers, c);
    if (parser->headers.overflow)
        return gd_fail(err, GD_INVALID, "multipart: a part's headers have at most %d bytes", GD_MULTIPART_HEADER_MAX);
    size_t length = parser->headers.length;
    const char *data = parser->headers.data;
    bool empty = length == 2 && memcmp(data, "\r\n", 2) == 0;
    bool ended = length >= 4 && memcmp(data + length - 4, "\r\n\r\n", 4) == 0;
    return !(empty || ended) || begin_part(parser, err);
}

static bool delimiter_seen(struct gd_multipart *parser, struct gd_error *err)
{
    parser->matched = 0;
    parser->state = DELIMITED;
    bool was_in_part = parser->in_part;
    parser->in_part = false;
    return !was_in_part || parser->sink.end(parser->sink.context, err);
}

/* One byte in START or DATA that begins, continues or breaks a match of the delimiter. */
static bool match_byte(struct gd_multipart *parser, char c, bool *again, struct gd_error *err)
{
    *again = false;
    if (c == parser->delimiter[parser->matched]) {
        parser->matched++;
        return parser->matched < parser->delimiter_length || delimiter_seen(parser, err);
    }
    if (parser->state == START)
        return gd_fail(err, GD_INVALID, "multipart: the body must begin with the boundary of its content-type");
    size_t matched = parser->matched;
    parser->matched = 0;
    *again = true;
    return parser->sink.data(parser->sink.context, parser->delimiter, matched, err);
}

bool gd_multipart_feed(struct gd_multipart *parser, const void *bytes, size_t length, struct gd_error *err)
{
    const char *data = bytes;
    for (size_t i = 0; i < length;) {
        char c = data[i];
        bool again = false, ok = true;
        switch (parser->state) {
        case DATA:
            if (parser->matched == 0 && c != '\r') {
                const char *cr = memchr(data + i, '\r', length - i);
                size_t plain = cr != NULL ? (size_t)(cr - data) - i : length - i;
                if (!parser->sink.data(parser->sink.context, data + i, plain, err))
                    return false;
                i += plain;
                continue;
            }
            /* fall through */
        case START:
            ok = match_byte(parser, c, &again, err);
            break;
        case DELIMITED:
            if (c == '-')
                parser->state = CLOSING;
            else if (c == '\r')
                parser->state = LINE_END;
            else if (c != ' ' && c != '\t')
                ok = gd_fail(err, GD_INVALID, "multipart: something else than a line end follows a boundary");
            break;
        case CLOSING:
            ok = c == '-' || gd_fail(err, GD_INVALID, "multipart: the last boundary must end with \"--\"");
            parser->state = EPILOGUE;
            break;
        case LINE_END:
            ok = c == '\n' || gd_fail(err, GD_INVALID, "multipart: a boundary line must end with CR LF");
            parser->state = HEADERS;
            break;
        case HEADERS:
            ok = feed_headers(parser, c, err);
            break;
        case EPILOGUE:
            return true;
        }
        if (!ok)
            return false;
        i += again ? 0 : 1;
    }
    return true;
}

bool gd_multipart_finish(struct gd_multipart *parser, struct gd_error *err)
{
    if (parser->state != EPILOGUE)
        return gd_fail(err, GD_INVALID, "multipart: the body ends before its last boundary");
    return true;
}
