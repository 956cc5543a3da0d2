/*
 * literal.h - what Python prints and reads back: numbers and lists as text.
 *
 * Why      A template that makes a list makes its text ("['a', \"b's\"]"), and lm-evaluation-harness reads it with
 *          ast.literal_eval; targets that are numbers are compared as Python prints them.
 * Memory   The tree is the caller's.
 * Threads  Any.
 * Errors   gd_literal_read: NULL where the text is no literal.
 * Limits   GD_JSON_DEPTH_MAX deep
 * Life     none
 */
#ifndef GD_EVAL_LITERAL_H
#define GD_EVAL_LITERAL_H

#include "engine/base/json.h"

/* Texts, numbers, True, False, None, lists and tuples (both become arrays). */
cJSON *gd_literal_read(const char *text);
/* str(value) of a JSON value: 5, 0.5, True, None, a text as it is; lists and objects as JSON. Appends. */
void gd_literal_str(const cJSON *value, struct gd_buf *out);
/* str.isdigit() for ASCII. */
bool gd_literal_is_digits(const char *text);

#endif
