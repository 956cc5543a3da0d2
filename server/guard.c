/*
 * guard.c - see guard.h. The list of cases is the one of tests/unit/server/guard_test.c.
 */
#include "server/guard.h"

#include "engine/base/alloc.h"
#include "engine/base/json.h"

#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

/* RFC 9110 token characters. */
static bool is_token(const char *text, size_t length)
{
    static const char others[] = "!#$%&'*+-.^_`|~";
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        bool alphanumeric = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!alphanumeric && (c == 0 || strchr(others, c) == NULL))
            return false;
    }
    return length > 0;
}

static bool value_clean(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return false;
    }
    return true;
}

static bool named(const struct gd_header *header, const char *name)
{
    return header->name_length == strlen(name) && strncasecmp(header->name, name, header->name_length) == 0;
}

static bool parse_length(const struct gd_header *header, uint64_t *out)
{
    uint64_t value = 0;
    for (size_t i = 0; i < header->value_length; i++) {
        char c = header->value[i];
        if (c < '0' || c > '9' || value > (UINT64_MAX - 9) / 10)
            return false;
        value = value * 10 + (uint64_t)(c - '0');
    }
    *out = value;
    return header->value_length > 0;
}

bool gd_guard_headers(const struct gd_header *headers, size_t count, const char *method, struct gd_guard_facts *facts,
                      struct gd_error *err)
{
    *facts = (struct gd_guard_facts){0};
    int lengths = 0, encodings = 0, hosts = 0, keys = 0;
    for (size_t i = 0; i < count; i++) {
        const struct gd_header *header = &headers[i];
        if (!is_token(header->name, header->name_length))
            return gd_fail(err, GD_INVALID, "header %zu: its name is not a token; send NAME: VALUE", i + 1);
        if (!value_clean(header->value, header->value_length))
            return gd_fail(err, GD_INVALID, "header %.*s: its value has a control character", (int)header->name_length,
                           header->name);
        if (named(header, "content-length")) {
            lengths++;
            if (!parse_length(header, &facts->content_length))
                return gd_fail(err, GD_INVALID, "header content-length: not a number of bytes");
        } else if (named(header, "transfer-encoding")) {
            encodings++;
            if (header->value_length != 7 || strncasecmp(header->value, "chunked", 7) != 0)
                return gd_fail(err, GD_INVALID, "header transfer-encoding: only \"chunked\" is understood");
        } else if (named(header, "host")) {
            hosts++;
            facts->host = header->value;
        } else if (named(header, "authorization")) {
            keys++;
        }
    }
    if (lengths > 1)
        return gd_fail(err, GD_INVALID, "header content-length: given %d times", lengths);
    if (encodings > 1)
        return gd_fail(err, GD_INVALID, "header transfer-encoding: given %d times", encodings);
    if (lengths > 0 && encodings > 0)
        return gd_fail(err, GD_INVALID, "headers content-length and transfer-encoding: send one of them");
    if (hosts != 1)
        return gd_fail(err, GD_INVALID, "header host: given %d times, must be there once", hosts);
    if (keys > 1)
        return gd_fail(err, GD_INVALID, "header authorization: given %d times", keys);
    facts->chunked = encodings > 0;
    facts->has_body = facts->chunked || facts->content_length > 0;
    static const char *const bodiless[] = {"GET", "HEAD", "DELETE", "OPTIONS"};
    for (size_t i = 0; facts->has_body && i < GD_COUNT(bodiless); i++)
        if (strcmp(method, bodiless[i]) == 0)
            return gd_fail(err, GD_INVALID, "%s takes no body", method);
    return true;
}

/* Splits "name", "name:port", "[v6]", "[v6]:port". */
static bool split_host(const char *text, size_t length, const char **name, size_t *name_length, const char **port,
                       size_t *port_length)
{
    size_t end = 0;
    *port = NULL;
    *port_length = 0;
    if (length > 0 && text[0] == '[') {
        const char *close = memchr(text, ']', length);
        if (close == NULL)
            return false;
        *name = text + 1;
        *name_length = (size_t)(close - text) - 1;
        end = (size_t)(close - text) + 1;
    } else {
        const char *colon = memchr(text, ':', length);
        end = colon != NULL ? (size_t)(colon - text) : length;
        *name = text;
        *name_length = end;
    }
    if (end < length) {
        if (text[end] != ':')
            return false;
        *port = text + end + 1;
        *port_length = length - end - 1;
        for (size_t i = 0; i < *port_length; i++)
            if ((*port)[i] < '0' || (*port)[i] > '9')
                return false;
    }
    return *name_length > 0;
}

static bool same_name(const char *a, size_t a_length, const char *b, size_t b_length)
{
    return a_length == b_length && strncasecmp(a, b, a_length) == 0;
}

static bool is_address(const char *name, size_t length)
{
    char text[64];
    unsigned char address[16];
    if (length >= sizeof(text))
        return false;
    memcpy(text, name, length);
    text[length] = 0;
    return inet_pton(AF_INET, text, address) == 1 || inet_pton(AF_INET6, text, address) == 1;
}

bool gd_guard_host_allowed(const char *host, const char *listen_host, const char *allowed)
{
    const char *name, *port;
    size_t name_length, port_length;
    if (!split_host(host, strlen(host), &name, &name_length, &port, &port_length))
        return false;
    static const char *const own[] = {"localhost", "127.0.0.1", "::1"};
    for (size_t i = 0; i < GD_COUNT(own); i++)
        if (same_name(name, name_length, own[i], strlen(own[i])))
            return true;
    if (same_name(name, name_length, listen_host, strlen(listen_host)))
        return true;
    bool wildcard = strcmp(listen_host, "0.0.0.0") == 0 || strcmp(listen_host, "::") == 0;
    if (wildcard && is_address(name, name_length))
        return true;
    for (const char *entry = allowed; entry != NULL && *entry != 0;) {
        entry += strspn(entry, ", \t");
        size_t length = strcspn(entry, ", \t");
        const char *entry_name, *entry_port;
        size_t entry_name_length, entry_port_length;
        if (length > 0 && split_host(entry, length, &entry_name, &entry_name_length, &entry_port, &entry_port_length) &&
            same_name(name, name_length, entry_name, entry_name_length) &&
            (entry_port == NULL || (port != NULL && same_name(port, port_length, entry_port, entry_port_length))))
            return true;
        entry += length;
    }
    return false;
}

bool gd_guard_origin_allowed(const char *origin, const char *origins)
{
    size_t wanted = strlen(origin);
    for (const char *entry = origins; entry != NULL && *entry != 0;) {
        entry += strspn(entry, ", \t");
        size_t length = strcspn(entry, ", \t");
        if (length > 0 && length == wanted && memcmp(entry, origin, length) == 0)
            return true;
        entry += length;
    }
    return false;
}

bool gd_guard_plain(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            return false;
    return gd_utf8_valid(text, length);
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Decodes text[0..length) to `out` (at most length + 1 bytes). plus: "+" is a space (queries). */
static bool decode(const char *text, size_t length, bool plus, const char *what, char *out, size_t *out_length,
                   struct gd_error *err)
{
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (c == '%') {
            int a = i + 1 < length ? hex(text[i + 1]) : -1;
            int b = i + 2 < length ? hex(text[i + 2]) : -1;
            if (a < 0 || b < 0)
                return gd_fail(err, GD_INVALID, "%s: \"%%\" must be followed by two hexadecimal digits", what);
            c = (char)(a * 16 + b);
            i += 2;
        } else if (c == '+' && plus) {
            c = ' ';
        }
        out[n++] = c;
    }
    out[n] = 0;
    *out_length = n;
    if (!gd_guard_plain(out, n))
        return gd_fail(err, GD_INVALID, "%s: not UTF-8, or it has a control character or a NUL", what);
    return true;
}

/* "." or ".." between slashes, after decoding: no file name comes from a path, but nobody needs these either. */
static bool has_dot_segment(const char *text)
{
    for (const char *part = text;; part++) {
        size_t length = strcspn(part, "/");
        if ((length == 1 && part[0] == '.') || (length == 2 && part[0] == '.' && part[1] == '.'))
            return true;
        part += length;
        if (*part == 0)
            return false;
    }
}

static bool parse_path(struct gd_target *target, const char *path, size_t length, char **cursor, struct gd_error *err)
{
    for (size_t i = 1; i <= length;) {
        const char *slash = memchr(path + i, '/', length - i);
        size_t end = slash != NULL ? (size_t)(slash - path) : length;
        if (end == i && length == 1)
            return true; /* "/" */
        if (end == i)
            return gd_fail(err, GD_INVALID, "path: an empty segment; remove the extra slash");
        if (target->segment_count == GD_TARGET_SEGMENTS_MAX)
            return gd_fail(err, GD_NOT_FOUND, "path: more than %d segments", GD_TARGET_SEGMENTS_MAX);
        size_t used;
        if (!decode(path + i, end - i, false, "path", *cursor, &used, err))
            return false;
        if (has_dot_segment(*cursor))
            return gd_fail(err, GD_INVALID, "path: segments \".\" and \"..\" are refused");
        target->segments[target->segment_count++] = *cursor;
        *cursor += used + 1;
        i = end + 1;
    }
    return true;
}

static bool parse_query(struct gd_target *target, const char *query, char **cursor, struct gd_error *err)
{
    while (*query != 0) {
        size_t length = strcspn(query, "&");
        if (length > 0) {
            const char *equals = memchr(query, '=', length);
            size_t name_length = equals != NULL ? (size_t)(equals - query) : length;
            if (target->pair_count == GD_TARGET_PAIRS_MAX)
                return gd_fail(err, GD_INVALID, "query: more than %d parameters", GD_TARGET_PAIRS_MAX);
            int index = target->pair_count++;
            size_t used;
            if (!decode(query, name_length, true, "query", *cursor, &used, err))
                return false;
            target->pairs[index].name = *cursor;
            *cursor += used + 1;
            const char *value = equals != NULL ? equals + 1 : "";
            if (!decode(value, equals != NULL ? length - name_length - 1 : 0, true, "query", *cursor, &used, err))
                return false;
            target->pairs[index].value = *cursor;
            *cursor += used + 1;
        }
        query += length;
        query += *query == '&';
    }
    return true;
}

bool gd_target_parse(struct gd_target *target, const char *raw, struct gd_error *err)
{
    *target = (struct gd_target){0};
    if (raw[0] != '/')
        return gd_fail(err, GD_INVALID, "request target: must start with \"/\"");
    size_t length = strlen(raw);
    if (memchr(raw, '#', length) != NULL)
        return gd_fail(err, GD_INVALID, "request target: has a fragment (\"#\"); write it as %%23");
    size_t path_length = strcspn(raw, "?");
    /* Decoding never grows; every name, value and segment adds one NUL where there was a separator, plus two. */
    target->memory = gd_alloc(length + GD_TARGET_SEGMENTS_MAX + 2 * GD_TARGET_PAIRS_MAX + 2);
    char *cursor = target->memory;
    bool ok = parse_path(target, raw, path_length, &cursor, err);
    if (ok && raw[path_length] == '?')
        ok = parse_query(target, raw + path_length + 1, &cursor, err);
    return ok;
}

void gd_target_release(struct gd_target *target)
{
    gd_free(target->memory);
    *target = (struct gd_target){0};
}
