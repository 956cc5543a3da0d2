/*
 * eval_testing.h - JSON that a test writes as text.
 *
 * Why      Graders, sources and schemas are asked for in JSON.
 * Memory   Yours to cJSON_Delete.
 * Threads  One.
 * Errors   Text that is no JSON ends the test.
 * Limits   none
 * Life     none
 */
#ifndef TESTS_EVAL_TESTING_H
#define TESTS_EVAL_TESTING_H

#include "engine/base/json.h"
#include "tests/unit/base/scratch.h"

static inline cJSON *json_of(const char *text)
{
    struct gd_error err = {0};
    cJSON *value = gd_json_parse(text, strlen(text), SIZE_MAX, &err);
    if (value == NULL)
        fail_msg("%s: %s", text, err.message);
    return value;
}

#endif
