#include "engine/base/json.h"
#include "engine/base/log.h"
#include "tests/unit/base/scratch.h"

#include <fcntl.h>
#include <unistd.h>

static int saved_stderr = -1;
static FILE *captured;

static void capture_start(const char *levels)
{
    if (levels != NULL)
        setenv("GRAFTD_LOG", levels, 1);
    else
        unsetenv("GRAFTD_LOG");
    captured = tmpfile();
    assert_non_null(captured);
    saved_stderr = dup(STDERR_FILENO);
    dup2(fileno(captured), STDERR_FILENO);
    gd_log_init("server", GD_LOG_INFO);
}

/* What was written, NUL-terminated; gd_free it. */
static char *capture_end(size_t *length)
{
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    *length = (size_t)lseek(fileno(captured), 0, SEEK_END);
    char *text = gd_alloc(*length + 1);
    assert_int_equal(pread(fileno(captured), text, *length, 0), *length);
    fclose(captured);
    return text;
}

static int count_lines(const char *levels)
{
    capture_start(levels);
    gd_log_error("job", "n=1");
    gd_log_info("job", "n=2");
    gd_log_debug("job", "n=3");
    gd_log_info("http", "n=4");
    gd_log_debug("http", "n=5");
    size_t length;
    char *text = capture_end(&length);
    int lines = 0;
    for (size_t i = 0; i < length; i++)
        lines += text[i] == '\n';
    gd_free(text);
    return lines;
}

static void levels_are_chosen_per_topic(void **state)
{
    assert_int_equal(count_lines(NULL), 3);
    assert_int_equal(count_lines("error"), 1);
    assert_int_equal(count_lines("debug"), 5);
    assert_int_equal(count_lines("error,http:debug"), 3);
    assert_int_equal(count_lines("debug,job:error"), 3);
    assert_int_equal(count_lines("nonsense,:debug,job:loud"), 3 + 3); /* one warning for each bad part */
}

static void a_line_is_one_json_object_whatever_the_message(void **state)
{
    capture_start("info");
    gd_log_info("job", "file=\"%s\" bad=%s", "a\"\\\n\t\x01\x7f", "\xff\xc3");
    char *long_text = gd_alloc(9000);
    for (int i = 0; i < 2990; i++)
        memcpy(long_text + 3 * i, "\xE2\x82\xAC", 3);
    gd_log_warn("job", "%s", long_text);
    memset(long_text, '"', 8000);
    gd_log_warn("job", "%s", long_text);
    gd_free(long_text);
    size_t length;
    char *text = capture_end(&length), *line = text;
    for (int i = 0; i < 3; i++) {
        char *end = strchr(line, '\n');
        assert_non_null(end);
        assert_true(end - line < 4096);
        struct gd_error err = {0};
        cJSON *object = gd_json_parse(line, (size_t)(end - line), 4096, &err);
        if (object == NULL)
            fail_msg("%s", err.message);
        assert_string_equal(gd_json_find(object, "process")->valuestring, "server");
        assert_string_equal(gd_json_find(object, "level")->valuestring, i == 0 ? "info" : "warn");
        assert_int_equal(cJSON_IsTrue(gd_json_find(object, "cut")), i > 0);
        if (i == 0)
            assert_string_equal(gd_json_find(object, "message")->valuestring,
                                "file=\"a\"\\\n\t\x01\x7f\" bad=\xEF\xBF\xBD\xEF\xBF\xBD");
        cJSON_Delete(object);
        line = end + 1;
    }
    gd_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_are_chosen_per_topic),
        cmocka_unit_test(a_line_is_one_json_object_whatever_the_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
