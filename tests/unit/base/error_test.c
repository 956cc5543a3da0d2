#include "engine/base/json.h"
#include "tests/unit/base/scratch.h"

#include <errno.h>

static void the_first_failure_wins(void **state)
{
    struct gd_error err = {0};
    assert_false(gd_fail_param(&err, GD_MISSING, "model", "'%s' is required", "model"));
    assert_false(gd_fail(&err, GD_INTERNAL, "later"));
    assert_int_equal(err.code, GD_MISSING);
    assert_string_equal(err.param, "model");
    gd_error_context(&err, "job %d", 7);
    assert_string_equal(err.message, "job 7: 'model' is required");
    gd_error_clear(&err);
    gd_error_context(&err, "nothing");
    assert_int_equal(err.code, GD_OK);
    assert_string_equal(err.message, "");
}

static void messages_are_one_line_and_cut_at_a_character(void **state)
{
    for (size_t shift = 0; shift < 5; shift++) {
        struct gd_error err = {0};
        char *text = gd_alloc(4000);
        memset(text, 'a', shift);
        for (size_t i = shift; i + 4 < 3000; i += 4)
            memcpy(text + i, "\xF0\x9F\x98\x80", 4);
        gd_fail_param(&err, GD_INVALID, text, "%s", text);
        assert_true(strlen(err.message) >= GD_ERROR_MESSAGE_BYTES - 5);
        assert_true(gd_utf8_valid(err.message, strlen(err.message)));
        assert_true(gd_utf8_valid(err.param, strlen(err.param)));
        gd_error_context(&err, "%s", text);
        assert_true(gd_utf8_valid(err.message, strlen(err.message)));
        gd_free(text);
    }
    struct gd_error err = {0};
    gd_fail(&err, GD_INVALID, "a\nb\tc\x7f");
    assert_string_equal(err.message, "a b c ");
}

static void errno_becomes_a_code(void **state)
{
    struct gd_error err = {0};
    assert_fails(gd_fail_errno(&err, ENOSPC, "write %s", "x"), &err, GD_DISK_FULL, "write x: No space left");
    assert_fails(gd_fail_errno(&err, EDQUOT, "write"), &err, GD_DISK_FULL, "");
    assert_fails(gd_fail_errno(&err, ENOENT, "open"), &err, GD_NOT_FOUND, "");
    assert_fails(gd_fail_errno(&err, EIO, "read"), &err, GD_IO, "");
}

static void every_code_has_its_own_wire_name(void **state)
{
    for (int code = 0; code < GD_CODE_COUNT; code++) {
        enum gd_code same = gd_code_from_wire(gd_code_wire((enum gd_code)code));
        assert_int_equal(same, code);
        assert_in_range(gd_code_http((enum gd_code)code), 200, 599);
    }
    assert_int_equal(gd_code_from_wire("no such"), GD_INTERNAL);
    assert_int_equal(gd_code_from_wire(NULL), GD_INTERNAL);
    assert_string_equal(gd_code_type(GD_NOT_FOUND), "not_found_error");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_failure_wins),
        cmocka_unit_test(messages_are_one_line_and_cut_at_a_character),
        cmocka_unit_test(errno_becomes_a_code),
        cmocka_unit_test(every_code_has_its_own_wire_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
