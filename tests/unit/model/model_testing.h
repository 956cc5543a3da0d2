/*
 * model_testing.h - what the tests of engine/model share: scratch folders, bytes of hostile files, expected errors.
 *
 * Why      A hostile file is built field by field, beside what its error must say.
 * Memory   gd_free what is returned; struct scratch is removed by scratch_end.
 * Threads  One.
 * Errors   A failed check ends the test.
 * Limits   none
 * Life     scratch_begin -> write ... -> scratch_end
 */
#ifndef TESTS_MODEL_TESTING_H
#define TESTS_MODEL_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "engine/base/alloc.h"
#include "engine/base/buf.h"
#include "engine/base/error.h"
#include "engine/base/fsio.h"

struct scratch {
    char folder[64];
};

static inline struct scratch scratch_begin(void)
{
    struct scratch scratch = {"/tmp/gd-model-test-XXXXXX"};
    assert_non_null(mkdtemp(scratch.folder));
    return scratch;
}

static inline void scratch_end(struct scratch *scratch)
{
    struct gd_error err = {0};
    assert_true(gd_remove_tree(scratch->folder, &err));
}

/* gd_free it. */
static inline char *scratch_path(const struct scratch *scratch, const char *name)
{
    return gd_format("%s/%s", scratch->folder, name);
}

static inline void scratch_write(const struct scratch *scratch, const char *name, const void *bytes, size_t length)
{
    char *path = scratch_path(scratch, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
    gd_free(path);
}

static inline char *fixture_path(const char *name)
{
    const char *fixtures = getenv("GD_FIXTURES");
    assert_non_null(fixtures);
    return gd_format("%s/models/%s", fixtures, name);
}

/* A whole fixture in memory. */
static inline char *fixture_read(const char *name, size_t *length)
{
    struct gd_error err = {0};
    char *path = fixture_path(name), *data = NULL;
    if (!gd_file_read(path, 1 << 20, &data, length, &err))
        fail_msg("%s", err.message);
    gd_free(path);
    return data;
}

static inline void scratch_copy(const struct scratch *scratch, const char *fixture, const char *name)
{
    size_t length = 0;
    char *from = gd_format("%s/%s", fixture, name), *data = fixture_read(from, &length);
    scratch_write(scratch, name, data, length);
    gd_free(data);
    gd_free(from);
}

/* `err` has this code, and a message of one line that says `words` (each separated by '|'). */
static inline void check_error(const char *what, const struct gd_error *err, enum gd_code code, const char *words)
{
    if (err->code != code)
        fail_msg("%s: code %s instead of %s: %s", what, gd_code_wire(err->code), gd_code_wire(code), err->message);
    assert_null(strchr(err->message, '\n'));
    while (*words != 0) {
        size_t length = strcspn(words, "|");
        char word[128];
        snprintf(word, sizeof word, "%.*s", (int)length, words);
        if (strstr(err->message, word) == NULL)
            fail_msg("%s: \"%s\" does not say \"%s\"", what, err->message, word);
        words += length + (words[length] == '|');
    }
}

static inline void put_u32(struct gd_buf *buf, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        gd_buf_append_char(buf, (char)(value >> (8 * i)));
}

static inline void put_u64(struct gd_buf *buf, uint64_t value)
{
    put_u32(buf, (uint32_t)value);
    put_u32(buf, (uint32_t)(value >> 32));
}

#endif
