/*
 * lower.h - lower case as Python's str.lower.
 *
 * Why      The reference packages compare what str.lower leaves; utf8proc has the simple mapping only.
 * Memory   none
 * Threads  Any.
 * Errors   none; `text` is UTF-8.
 * Limits   those of `out`
 * Life     none
 *
 * Beyond the simple mapping: U+0130 becomes two characters, and a sigma at the end of a word is a final sigma.
 */
#ifndef GD_EVAL_LOWER_H
#define GD_EVAL_LOWER_H

#include "engine/base/buf.h"

void gd_lower(const char *text, size_t length, struct gd_buf *out); /* appends */

#endif
