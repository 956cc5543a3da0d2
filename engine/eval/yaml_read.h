/*
 * yaml_read.h - YAML as PyYAML's safe loader understands it, into cJSON.
 *
 * Why      People write tasks as YAML files for lm-evaluation-harness, which reads them with PyYAML: YAML 1.1, in which yes is
 *          true, 010 is 8 and 1e3 is a text.
 * Memory   The tree is the caller's (cJSON_Delete).
 * Threads  Any.
 * Errors   GD_INVALID with line and column; GD_UNSUPPORTED for !function, other tags, and numbers in base 60.
 * Limits   GD_YAML_BYTES_MAX, GD_JSON_DEPTH_MAX deep, GD_YAML_VALUES_MAX values with what aliases repeat.
 * Life     parse -> cJSON_Delete
 *
 * Keys become texts as they are written. A key that stands twice in a mapping is an error.
 */
#ifndef GD_EVAL_YAML_READ_H
#define GD_EVAL_YAML_READ_H

#include "engine/base/json.h"

#define GD_YAML_BYTES_MAX (256u << 10)
#define GD_YAML_VALUES_MAX 100000

/* One document. NULL on error. */
cJSON *gd_yaml_parse(const char *text, size_t length, struct gd_error *err) GD_MUST_CHECK;

#endif
