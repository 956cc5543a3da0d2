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

#define GD_JSON_NUMBER_BYTES_MAX 63 /* cJSON reads numbers through a buffer of 64 bytes */

GD_MUST_CHECK bool gd_json_scan(const char *text, size_t length, struct gd_error *err);

/* The length of the valid UTF-8 character at text[0..left), left > 0; 0 if there is none. */
size_t gd_utf8_length(const char *text, size_t left);

#endif
