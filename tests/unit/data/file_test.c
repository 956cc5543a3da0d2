/* Whole training files: what is accepted, what is hopeless, which rows are bad. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/data/row.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#define ROW "{\"prompt\":\"q\",\"completion\":\"a\"}"
#define CHAT "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]}"

static char path[] = "/tmp/graftd-file-test-XXXXXX";

static int make_path(void **state)
{
    int fd = mkstemp(path);
    if (fd < 0)
        return -1;
    close(fd);
    return 0;
}

static int remove_path(void **state)
{
    return unlink(path);
}

static void write_file(const void *bytes, size_t length)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    fclose(file);
}

static struct gd_file_report *check(const void *bytes, size_t length, bool expected, struct gd_error *err)
{
    struct gd_file_report *report = gd_alloc(sizeof *report);
    write_file(bytes, length);
    if (gd_file_check(path, report, err) != expected)
        fail_msg("%s", err->message);
    return report;
}

static void assert_rows(const char *bytes, size_t length, int64_t rows, int64_t bad)
{
    struct gd_error err = {0};
    struct gd_file_report *report = check(bytes, length, true, &err);
    if (report->rows != rows || report->bad_rows != bad)
        fail_msg("%.60s: %lld rows, %lld bad: %s", bytes, (long long)report->rows, (long long)report->bad_rows,
                 report->problem_count > 0 ? report->problems[0].reason : "");
    gd_free(report);
}

#define TEXT(text) text, sizeof(text) - 1

static void line_ends_marks_and_blank_lines_are_accepted(void **state)
{
    assert_rows(TEXT(ROW), 1, 0);
    assert_rows(TEXT(ROW "\n"), 1, 0);
    assert_rows(TEXT(ROW "\r\n" CHAT "\r\n"), 2, 0);
    assert_rows(TEXT("\xef\xbb\xbf" ROW "\n" ROW), 2, 0);
    assert_rows(TEXT("\n\n  \n\t\r\n" ROW "\n\n \n" CHAT "\n\n"), 2, 0);
    assert_rows(TEXT("  " ROW "  \n"), 1, 0);
    assert_rows(TEXT(ROW "\n" "\xef\xbb\xbf" ROW "\n"), 2, 1); /* a mark belongs at the very beginning only */
    assert_rows(TEXT(ROW "\r" ROW "\n"), 1, 1);
}

static void bad_rows_are_reported_with_line_field_and_reason(void **state)
{
    static const char text[] = ROW "\n\n{\"messages\":[{\"role\":\"User\",\"content\":\"x\"}]}\r\n" CHAT "\nnot json\n"
                                   "{\"prompt\":\"a\0b\",\"completion\":\"c\"}\n{\"prompt\":\"\xff\",\"completion\":\"c\"}\n";
    struct gd_error err = {0};
    struct gd_file_report *report = check(TEXT(text), true, &err);
    assert_int_equal(report->rows, 6);
    assert_int_equal(report->bad_rows, 4);
    assert_int_equal(report->problem_count, 4);
    assert_int_equal(report->problems[0].line, 3);
    assert_string_equal(report->problems[0].field, "messages[0].role");
    assert_non_null(strstr(report->problems[0].reason, "messages[0].role is \"User\""));
    assert_int_equal(report->problems[1].line, 5);
    assert_int_equal(report->problems[2].line, 6);
    assert_int_equal(report->problems[3].line, 7);
    assert_int_equal(report->format_rows[GD_ROW_CHAT], 1);
    assert_int_equal(report->format_rows[GD_ROW_PROMPT_COMPLETION], 1);
    assert_int_equal(report->messages, 2);
    cJSON *json = gd_file_report_json(report);
    char *printed = gd_json_print(json);
    assert_non_null(strstr(printed, "\"bad_rows\":4"));
    assert_non_null(strstr(printed, "\"prompt_completion\":1"));
    assert_non_null(strstr(printed, "\"line\":3,\"field\":\"messages[0].role\""));
    assert_false(gd_file_report_fail(report, &err));
    assert_int_equal(err.code, GD_BAD_FILE);
    assert_non_null(strstr(err.message, "line 3: messages[0].role"));
    assert_non_null(strstr(err.message, "(4 bad rows in all)"));
    gd_free(printed);
    cJSON_Delete(json);
    gd_free(report);
}

static void the_first_hundred_bad_rows_are_named_and_all_are_counted(void **state)
{
    struct gd_buf text;
    struct gd_error err = {0};
    gd_buf_init(&text, 0);
    for (int i = 0; i < 250; i++)
        gd_buf_append_text(&text, i % 2 == 0 ? ROW "\n" : "{\"prompt\":1}\n");
    struct gd_file_report *report = check(text.data, text.length, true, &err);
    assert_int_equal(report->rows, 250);
    assert_int_equal(report->bad_rows, 125);
    assert_int_equal(report->problem_count, GD_REPORT_ERRORS_MAX);
    assert_int_equal(report->problems[99].line, 200);
    gd_free(report);
    gd_buf_release(&text);
}

static void long_reasons_are_cut_between_characters(void **state)
{
    struct gd_buf text;
    struct gd_error err = {0};
    gd_buf_init(&text, 0);
    gd_buf_append_text(&text, "{\"prompt\":\"a\",\"completion\":\"b\",\"");
    for (int i = 0; i < 200; i++)
        gd_buf_append_text(&text, "é🦊");
    gd_buf_append_text(&text, "\":1}\n");
    struct gd_file_report *report = check(text.data, text.length, true, &err);
    assert_int_equal(report->bad_rows, 1);
    assert_true(strlen(report->problems[0].reason) < sizeof report->problems[0].reason);
    assert_true(gd_utf8_valid(report->problems[0].field, strlen(report->problems[0].field)));
    gd_free(report);
    gd_buf_release(&text);
}

static void files_that_are_not_jsonl_are_refused_with_the_way_out(void **state)
{
    static const struct {
        const char *bytes;
        size_t length;
        const char *part;
    } cases[] = {
        {TEXT(""), "empty"},
        {TEXT(" \n\r\n\t\n"), "white space"},
        {TEXT("\xef\xbb\xbf"), "white space"},
        {TEXT("\x1f\x8b\x08\0\0\0\0\0"), "gzip"},
        {TEXT("\x28\xb5\x2f\xfd\0\0"), "zstd"},
        {TEXT("\xfd" "7zXZ\0"), "xz"},
        {TEXT("BZh91AY"), "bzip2"},
        {TEXT("PK\x03\x04"), "zip"},
        {TEXT("PAR1\x15"), "Parquet"},
        {TEXT("\xff\xfe{\0\"\0"), "UTF-16"},
        {TEXT("\xfe\xff\0{\0\""), "UTF-16"},
        {TEXT("{\0\"\0p\0"), "UTF-16"},
        {TEXT("\0{\0\"\0p"), "UTF-16"},
        {TEXT("[" ROW "]"), "JSON array"},
        {TEXT("[\n" ROW ",\n" ROW "\n]\n"), "JSON array"},
        {TEXT("{\n  \"prompt\": \"a\",\n  \"completion\": \"b\"\n}\n"), "several lines"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gd_error err = {0};
        struct gd_file_report *report = check(cases[i].bytes, cases[i].length, false, &err);
        assert_int_equal(err.code, GD_BAD_FILE);
        if (strstr(err.message, cases[i].part) == NULL)
            fail_msg("case %zu: %s", i, err.message);
        gd_free(report);
    }
}

static void missing_files_and_folders_are_errors(void **state)
{
    struct gd_file_report *report = gd_alloc(sizeof *report);
    struct gd_error err = {0};
    assert_false(gd_file_check("/nonexistent/file.jsonl", report, &err));
    assert_int_equal(err.code, GD_NOT_FOUND);
    gd_error_clear(&err);
    assert_false(gd_file_check("/tmp", report, &err));
    assert_int_equal(err.code, GD_IO);
    gd_free(report);
}

static void a_line_over_the_limit_is_one_bad_row_and_costs_no_memory(void **state)
{
    struct gd_error err = {0};
    size_t length = 3 * (size_t)GD_ROW_BYTES_MAX;
    char *filler = gd_alloc(1u << 20);
    FILE *file = fopen(path, "wb");
    struct rusage before, after;
    memset(filler, 'x', 1u << 20);
    assert_non_null(file);
    fputs(ROW "\n{\"prompt\":\"", file);
    for (size_t written = 0; written < length; written += 1u << 20)
        fwrite(filler, 1, 1u << 20, file);
    fputs("\"}\n" CHAT "\n", file);
    fclose(file);
    gd_free(filler);
    struct gd_file_report *report = gd_alloc(sizeof *report);
    getrusage(RUSAGE_SELF, &before);
    assert_true(gd_file_check(path, report, &err));
    getrusage(RUSAGE_SELF, &after);
    assert_int_equal(report->rows, 3);
    assert_int_equal(report->bad_rows, 1);
    assert_int_equal(report->problems[0].line, 2);
    assert_non_null(strstr(report->problems[0].reason, "16777216 bytes"));
    assert_true(after.ru_maxrss - before.ru_maxrss < 64 * 1024);
    gd_free(report);
}

static void chunks_split_lines_anywhere(void **state)
{
    struct gd_buf text;
    gd_buf_init(&text, 0);
    for (int i = 0; i < 5000; i++) /* rows of every length pass over the reader's chunk border */
        gd_buf_printf(&text, "{\"prompt\":\"%*s\",\"completion\":\"é\"}\r\n", i % 97, "");
    assert_rows(text.data, text.length, 5000, 0);
    gd_buf_release(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(line_ends_marks_and_blank_lines_are_accepted),
        cmocka_unit_test(bad_rows_are_reported_with_line_field_and_reason),
        cmocka_unit_test(the_first_hundred_bad_rows_are_named_and_all_are_counted),
        cmocka_unit_test(long_reasons_are_cut_between_characters),
        cmocka_unit_test(files_that_are_not_jsonl_are_refused_with_the_way_out),
        cmocka_unit_test(missing_files_and_folders_are_errors),
        cmocka_unit_test(a_line_over_the_limit_is_one_bad_row_and_costs_no_memory),
        cmocka_unit_test(chunks_split_lines_anywhere),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
