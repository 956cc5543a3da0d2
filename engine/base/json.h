/*
 * json.h - JSON from outside, strictly; cJSON is the value type.
 *
 * Why      cJSON alone lets pass: trailing bytes, duplicate keys, invalid UTF-8, NUL escapes, raw
 *          control characters, 0x10, 1e999, case-insensitive lookups. Everything that comes from
 *          outside is parsed here and looked up here.
 * Memory   gd_json_parse gives a tree to free with cJSON_Delete. Getters return borrowed pointers.
 * Threads  Any; a tree belongs to one thread at a time.
 * Errors   GD_INVALID with byte offset and line:column; getters set err->param to `path.key`.
 * Limits   depth GD_JSON_DEPTH_MAX; GD_JSON_VALUES_MAX values; numbers of 63 characters; size as given by the caller.
 * Life     parse -> get ... -> cJSON_Delete.
 */
#ifndef GD_BASE_JSON_H
#define GD_BASE_JSON_H

#include "engine/base/buf.h"
#include "engine/base/error.h"
#include <cjson/cJSON.h>
#include <stdint.h>

#define GD_JSON_DEPTH_MAX 64
/* A tree of so many stays below 64 MiB, whatever they are; the largest index of shards in use has a third of them. */
#define GD_JSON_FEW_VALUES (320u << 10)
#define GD_JSON_VALUES_MAX (8u << 20) /* a value costs cJSON about 80 bytes: two bytes of text must not become gigabytes */

/* RFC 8259, valid UTF-8, no NUL (raw or escaped), no lone surrogates, no duplicate keys, numbers
 * finite. The whole of text[0..length) must be one value. NULL on error. */
cJSON *gd_json_parse(const char *text, size_t length, size_t length_max, struct gd_error *err) GD_MUST_CHECK;
/* The same of a text that never has so many values: a configuration, the header of a file, a row. */
cJSON *gd_json_parse_within(const char *text, size_t length, size_t length_max, size_t values_max, struct gd_error *err) GD_MUST_CHECK;
/* Reads and parses a whole file of at most GD_JSON_FEW_VALUES values. */
cJSON *gd_json_parse_file(const char *path, size_t length_max, struct gd_error *err) GD_MUST_CHECK;

/* Case-sensitive member, NULL if absent. A JSON null counts as absent in gd_json_get_* below. */
cJSON *gd_json_find(const cJSON *object, const char *key);

/* Typed getters. Absent (or null): returns true and leaves *out unchanged, unless `required`, which
 * fails with GD_MISSING. Wrong type or out of [min, max]: GD_INVALID naming path.key, value and range.
 * `path` ("" for the top) goes into err->param. Integers must be integral and within
 * +-(2^53 - 1), where doubles are exact. Lengths of strings are bytes. */
GD_MUST_CHECK bool gd_json_get_int(const cJSON *object, const char *path, const char *key, bool required,
                                   int64_t min, int64_t max, int64_t *out, struct gd_error *err);
GD_MUST_CHECK bool gd_json_get_number(const cJSON *object, const char *path, const char *key, bool required,
                                      double min, double max, double *out, struct gd_error *err);
GD_MUST_CHECK bool gd_json_get_bool(const cJSON *object, const char *path, const char *key, bool required,
                                    bool *out, struct gd_error *err);
GD_MUST_CHECK bool gd_json_get_string(const cJSON *object, const char *path, const char *key, bool required,
                                      size_t length_min, size_t length_max, const char **out, struct gd_error *err);
GD_MUST_CHECK bool gd_json_get_object(const cJSON *object, const char *path, const char *key, bool required,
                                      const cJSON **out, struct gd_error *err);
GD_MUST_CHECK bool gd_json_get_array(const cJSON *object, const char *path, const char *key, bool required,
                                     const cJSON **out, struct gd_error *err);

/* Fails with GD_UNKNOWN_FIELD naming path.key (and the nearest known name) if `object` has a member
 * that is not in `known` (NULL-terminated). */
GD_MUST_CHECK bool gd_json_only_known(const cJSON *object, const char *path, const char *const *known,
                                      struct gd_error *err);

/* Turns the numbers of a tree into raw text as it stands in `text`, which the tree was parsed from: printed, 30.0 stays 30.0.
 * Readers of types tell it from 30. */
void gd_json_keep_numbers(cJSON *value, const char *text);
/* Members that may be null: without a text, a number that is 0, a member of `from` that is not there. */
void gd_json_add_text(cJSON *object, const char *key, const char *text);
void gd_json_add_nonzero(cJSON *object, const char *key, int64_t value);
void gd_json_copy(cJSON *object, const char *key, const cJSON *from, const char *member);
/* What we wrote ourselves: null where there is none, and where it does not parse. */
cJSON *gd_json_stored(const char *text);
/* Compact text, numbers with up to 17 significant digits, non-finite numbers as null. gd_free it. */
char *gd_json_print(const cJSON *value);
/* Appends `text` as a quoted, escaped JSON string. Invalid UTF-8 becomes U+FFFD. */
void gd_json_append_string(struct gd_buf *buf, const char *text, size_t length);

/* True if text[0..length) is valid UTF-8 (no surrogates, no overlong forms, at most U+10FFFF). */
bool gd_utf8_valid(const char *text, size_t length);

/* The name in `names` nearest to `name` by edit distance, or NULL if none is near. */
const char *gd_nearest_name(const char *name, const char *const *names, size_t count);

#endif
