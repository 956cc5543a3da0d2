/*
 * row_format.h - the formats of training rows, one parser each.
 *
 * Why      A format is one function and one line in the table of row.c.
 * Memory   Parsers add what they make to row->tree.
 * Threads  Any.
 * Errors   Any code with param = field path; row.c makes it GD_BAD_FILE with the line.
 * Limits   none
 * Life     called by gd_row_parse
 */
#ifndef GD_DATA_ROW_FORMAT_H
#define GD_DATA_ROW_FORMAT_H

#include "engine/data/row.h"

GD_MUST_CHECK bool gd_row_parse_chat(struct gd_row *row, struct gd_error *err);
GD_MUST_CHECK bool gd_row_parse_pair(struct gd_row *row, struct gd_error *err);
GD_MUST_CHECK bool gd_row_parse_alpaca(struct gd_row *row, struct gd_error *err);
GD_MUST_CHECK bool gd_row_parse_sharegpt(struct gd_row *row, struct gd_error *err);
GD_MUST_CHECK bool gd_row_parse_preference(struct gd_row *row, struct gd_error *err);
GD_MUST_CHECK bool gd_row_parse_chosen_rejected(struct gd_row *row, struct gd_error *err);
GD_MUST_CHECK bool gd_row_parse_labelled(struct gd_row *row, struct gd_error *err);
GD_MUST_CHECK bool gd_row_parse_classified(struct gd_row *row, struct gd_error *err);

/* Optional text, "" when absent or null. */
GD_MUST_CHECK bool gd_row_text(const cJSON *object, const char *path, const char *key, bool required, const char **out,
                               struct gd_error *err);
/* Files of these formats carry columns of their own (ids, sources, scores): they mean nothing here. One whose name is
 * nearly that of a field which the row lacks is taken for a slip and is an error. */
GD_MUST_CHECK bool gd_row_no_slips(const cJSON *object, const char *path, const char *const *known, struct gd_error *err);
/* Adds {"role","content"} to an array. */
void gd_row_add_message(cJSON *messages, const char *role, const char *content);
/* [{"name",..}] as tools of OpenAI's shape; those that have it already stay. Added to row->tree as `tools`. */
void gd_row_adopt_functions(struct gd_row *row, const cJSON *functions);

#endif
