/*
 * template_unicode.h - characters as Python's str methods see them.
 *
 * Why      Lengths, slices, strip and case in templates count code points, not bytes.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   none: bytes that are not UTF-8 count as one character each.
 * Limits   none
 * Life     none
 */
#ifndef GD_TEXT_TEMPLATE_UNICODE_H
#define GD_TEXT_TEMPLATE_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the character at data[0..length) (length > 0); its code point in *out. */
size_t tpl_decode(const char *data, size_t length, int32_t *out);
size_t tpl_encode(int32_t codepoint, char out[4]);
size_t tpl_count_codepoints(const char *data, size_t length);
/* Byte offset of code point number `index` (the length when beyond the end). */
size_t tpl_codepoint_offset(const char *data, size_t length, size_t index);
/* Byte offset of the character that ends at `end`. */
size_t tpl_previous(const char *data, size_t end);

bool tpl_is_space(int32_t codepoint);       /* str.isspace */
bool tpl_is_line_break(int32_t codepoint);  /* str.splitlines */
bool tpl_is_printable(int32_t codepoint);
bool tpl_is_alpha(int32_t codepoint);
bool tpl_is_digit(int32_t codepoint);       /* decimal digits */
bool tpl_is_upper(int32_t codepoint);
bool tpl_is_lower(int32_t codepoint);
bool tpl_is_title(int32_t codepoint);

enum tpl_case { TPL_UPPER, TPL_LOWER, TPL_TITLE };
/* Full case mapping (may give up to three characters) as UTF-8; returns its bytes. `out` holds 12. */
size_t tpl_map_case(int32_t codepoint, enum tpl_case to, char out[12]);

#endif
