/*
 * schema.h - JSON Schema, the part that describes rows.
 *
 * Why      An eval says what its items look like, so that a template's {{item.x}} is right or wrong before anything runs,
 *          and a row that does not fit is named.
 * Memory   none kept
 * Threads  Any; pure.
 * Errors   GD_INVALID, GD_UNSUPPORTED naming the keyword; GD_INVALID naming the member that does not fit.
 * Limits   those of json.h
 * Life     none
 *
 * Keywords: type, properties, required, additionalProperties, items, enum, const, anyOf, minimum, maximum,
 * exclusiveMinimum, exclusiveMaximum, minLength, maxLength (characters), minItems, maxItems; title, description, default,
 * examples, format, $schema, $id and $comment say nothing about validity. Any other keyword is refused, not passed over.
 */
#ifndef GD_EVAL_SCHEMA_H
#define GD_EVAL_SCHEMA_H

#include "engine/base/json.h"

/* Is `schema` one, within the keywords above? */
GD_MUST_CHECK bool gd_schema_check(const cJSON *schema, const char *path, struct gd_error *err);
/* Does `value` (called `path`) fit a checked schema? */
GD_MUST_CHECK bool gd_schema_validate(const cJSON *schema, const cJSON *value, const char *path, struct gd_error *err);
/* May there be something at steps[0..count) (names; NULL: an index) of a fitting value? Members that `properties` does not
 * list may not, unless additionalProperties says so. False: the error names the step; its message starts with `what`. */
GD_MUST_CHECK bool gd_schema_reaches(const cJSON *schema, const char *const *steps, int count, const char *what,
                                     const char *param, struct gd_error *err);

#endif
