/* A whole training file, checked row by row. */
#include "engine/base/alloc.h"
#include "engine/data/lines.h"
#include "engine/data/row.h"
#include <stdio.h>
#include <string.h>

#define PROBLEMS_IN_MESSAGE 5

/* Copies as much as fits without cutting a character in two. */
static void copy_cut(char *out, size_t capacity, const char *text)
{
    size_t length = strlen(text);
    if (length >= capacity) {
        length = capacity - 1;
        while (length > 0 && ((unsigned char)text[length] & 0xC0) == 0x80)
            length--;
    }
    memcpy(out, text, length);
    out[length] = '\0';
}

static void add_problem(struct gd_file_report *report, int64_t line, const char *field, const char *reason)
{
    if (report->problem_count == GD_REPORT_ERRORS_MAX)
        return;
    struct gd_row_problem *problem = &report->problems[report->problem_count++];
    problem->line = line;
    copy_cut(problem->field, sizeof problem->field, field);
    copy_cut(problem->reason, sizeof problem->reason, reason);
}

static bool check_line(void *context, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct gd_file_report *report = context;
    struct gd_row row;
    struct gd_error why = {0};
    report->rows++;
    if (text == NULL) {
        char reason[80];
        snprintf(reason, sizeof reason, "the line has more than %u bytes", GD_ROW_BYTES_MAX);
        report->bad_rows++;
        add_problem(report, line, "row", reason);
        return true;
    }
    if ((int64_t)length > report->longest_row_bytes)
        report->longest_row_bytes = (int64_t)length;
    if (!gd_row_parse(&row, text, length, line, &why)) {
        const char *reason = strstr(why.message, ": "); /* after "line N" */
        *(row.incomparable ? &report->incomparable_rows : &report->bad_rows) += 1;
        add_problem(report, line, why.param, reason != NULL ? reason + 2 : why.message);
        return true;
    }
    report->format_rows[row.format]++;
    report->messages += row.messages != NULL ? cJSON_GetArraySize(row.messages) : 0;
    gd_row_release(&row);
    return true;
}

bool gd_file_check(const char *path, struct gd_file_report *report, struct gd_error *err)
{
    memset(report, 0, sizeof *report);
    return gd_lines_each(path, check_line, report, err);
}

cJSON *gd_file_report_json(const struct gd_file_report *report)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "rows", (double)report->rows);
    cJSON_AddNumberToObject(json, "bad_rows", (double)report->bad_rows);
    cJSON_AddNumberToObject(json, "incomparable_rows", (double)report->incomparable_rows);
    cJSON_AddNumberToObject(json, "messages", (double)report->messages);
    cJSON_AddNumberToObject(json, "longest_row_bytes", (double)report->longest_row_bytes);
    cJSON *formats = cJSON_AddObjectToObject(json, "formats");
    for (int i = 0; i < GD_ROW_FORMAT_COUNT; i++) {
        if (report->format_rows[i] > 0)
            cJSON_AddNumberToObject(formats, gd_row_format_name((enum gd_row_format)i), (double)report->format_rows[i]);
    }
    cJSON *problems = cJSON_AddArrayToObject(json, "problems");
    for (int i = 0; i < report->problem_count; i++) {
        cJSON *problem = cJSON_CreateObject();
        cJSON_AddNumberToObject(problem, "line", (double)report->problems[i].line);
        cJSON_AddStringToObject(problem, "field", report->problems[i].field);
        cJSON_AddStringToObject(problem, "reason", report->problems[i].reason);
        cJSON_AddItemToArray(problems, problem);
    }
    return json;
}

bool gd_file_report_fail(const struct gd_file_report *report, struct gd_error *err)
{
    struct gd_buf text;
    char reason[160];
    gd_buf_init(&text, 0);
    for (int i = 0; i < report->problem_count && i < PROBLEMS_IN_MESSAGE; i++) {
        copy_cut(reason, sizeof reason, report->problems[i].reason);
        gd_buf_printf(&text, "%sline %lld: %s", i > 0 ? "; " : "", (long long)report->problems[i].line, reason);
    }
    gd_fail_param(err, GD_BAD_FILE, "file", "%s (%lld bad row%s in all)", text.length > 0 ? text.data : "bad rows",
                  (long long)report->bad_rows, report->bad_rows == 1 ? "" : "s");
    gd_buf_release(&text);
    return false;
}
