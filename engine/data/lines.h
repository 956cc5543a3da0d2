/*
 * lines.h - the lines of a JSONL file, with bounded memory.
 *
 * Why      One reader knows about CRLF, byte order marks, blank lines, missing last newlines and files that are not text.
 * Memory   A line is valid during the call; at most one line is held.
 * Threads  Any.
 * Errors   GD_BAD_FILE for compressed, UTF-16, binary, empty files, for a line of GD_LINE_BYTES_MAX bytes, and for JSON that is not one object per line.
 * Limits   GD_ROW_BYTES_MAX, GD_FILE_ROWS_MAX
 * Life     one call
 */
#ifndef GD_DATA_LINES_H
#define GD_DATA_LINES_H

#include "engine/base/error.h"
#include <stddef.h>
#include <stdint.h>

/* What comes without a line's end for so long is no text: the rest is not read. */
#define GD_LINE_BYTES_MAX (256u << 20)

/* Gets each line that is not blank, without its end; text is NULL (and length 0) for a line of more than
 * GD_ROW_BYTES_MAX bytes. Returning false stops with the visitor's error. */
typedef bool (*gd_line_visitor)(void *context, const char *text, size_t length, int64_t line, struct gd_error *err);
GD_MUST_CHECK bool gd_lines_each(const char *path, gd_line_visitor visit, void *context, struct gd_error *err);

#endif
