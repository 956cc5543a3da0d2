/*
 * json_internal.h - the strict scanner in front of cJSON.
 *
 * Why      The grammar is checked on the bytes, so that cJSON's leniencies never see them.
 * Memory   none kept
 * Threads  Any
 * Errors   GD_INVALID with byte offset and line:column
 * Limits   GD_JSON_DEPTH_MAX, GD_JSON_VALUES_MAX, GD_JSON_NUMBER_BYTES_MAX
 * Life     none
 */
#ifndef GD_BASE_JSON_INTERNAL_H
#define GD_BASE_JSON_INTERNAL_H

#include "engine/base/json.h"
#include <string.h>

#define GD_JSON_NUMBER_BYTES_MAX 63 /* cJSON reads numbers through a buffer of 64 bytes */

GD_MUST_CHECK bool gd_json_scan(const char *text, size_t length, size_t values_max, struct gd_error *err);

#define GD_EIGHT(byte) (0x0101010101010101u * (uint64_t)(byte))

/* How many bytes from the start stand for themselves in a JSON string: ASCII, but no control character, quote or
 * backslash. Eight at a time: a byte x is below n if (x - n) & ~x has its top bit set. */
static inline size_t gd_json_plain_length(const char *text, size_t length)
{
    size_t at = 0;
    for (uint64_t eight; length - at >= sizeof(eight); at += sizeof(eight)) {
        memcpy(&eight, text + at, sizeof(eight));
        uint64_t quote = eight ^ GD_EIGHT('"'), backslash = eight ^ GD_EIGHT('\\');
        uint64_t odd = eight | ((eight - GD_EIGHT(0x20)) & ~eight) | ((quote - GD_EIGHT(1)) & ~quote) |
                       ((backslash - GD_EIGHT(1)) & ~backslash);
        if ((odd & GD_EIGHT(0x80)) != 0)
            break;
    }
    while (at < length && (unsigned char)text[at] >= 0x20u && (unsigned char)text[at] < 0x80u && text[at] != '"' &&
           text[at] != '\\')
        at++;
    return at;
}

/* The length of the valid UTF-8 character at text[0..left), left > 0; 0 if there is none. */
size_t gd_utf8_length(const char *text, size_t left);

#endif
