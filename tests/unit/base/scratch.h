/*
 * scratch.h - what tests share: cmocka's includes, a folder of their own, checks of errors.
 *
 * Why      A test leaves nothing behind and says both values when it fails.
 * Memory   scratch_new gives a path to give to scratch_remove.
 * Threads  One
 * Errors   End the test.
 * Limits   none
 * Life     scratch_new -> ... -> scratch_remove
 */
#ifndef GD_TESTS_UNIT_BASE_SCRATCH_H
#define GD_TESTS_UNIT_BASE_SCRATCH_H

#include "engine/base/alloc.h"
#include "engine/base/error.h"
#include "engine/base/fsio.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static inline char *scratch_new(void)
{
    const char *parent = getenv("TMPDIR");
    char *path = gd_format("%s/graftd-test-XXXXXX", parent != NULL ? parent : "/tmp");
    if (mkdtemp(path) == NULL)
        fail_msg("no scratch folder %s", path);
    return path;
}

static inline void scratch_remove(char *path)
{
    struct gd_error err = {0};
    if (!gd_remove_tree(path, &err))
        fail_msg("%s", err.message);
    gd_free(path);
}

/* For long calls, whose text says little. */
static inline void must(bool ok, const struct gd_error *err)
{
    if (!ok)
        fail_msg("%s", err->message);
}

/* `call` succeeds; its message is shown when it does not. */
#define assert_ok(call, err)                                             \
    do {                                                                 \
        if (!(call))                                                     \
            fail_msg("%s failed: %s", #call, (err)->message);            \
        assert_int_equal((err)->code, GD_OK);                            \
    } while (0)

/* `call` fails with this code and a message that holds `part`; the error is cleared. */
#define assert_fails(call, err, expected, part)                                              \
    do {                                                                                     \
        if (call)                                                                            \
            fail_msg("%s should have failed", #call);                                        \
        assert_int_equal((err)->code, expected);                                             \
        if (strstr((err)->message, part) == NULL)                                            \
            fail_msg("the message '%s' does not say '%s'", (err)->message, part);            \
        gd_error_clear(err);                                                                 \
    } while (0)

#endif
