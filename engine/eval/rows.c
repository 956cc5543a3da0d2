#include "engine/eval/rows.h"

#include "engine/base/alloc.h"
#include "engine/data/lines.h"
#include "engine/data/row.h"
#include "engine/eval/schema.h"

#include <inttypes.h>
#include <string.h>

static const char *const row_fields[] = {"item", "sample", NULL};

/* ---- where they are ---- */

static bool check_content(const cJSON *content, const char *path, struct gd_error *err)
{
    const cJSON *row, *found = NULL;
    int index = 0;
    bool ok = true;
    cJSON_ArrayForEach(row, content)
    {
        char *at = gd_format("%s.content[%d]", path, index++);
        ok = ok && (cJSON_IsObject(row) ||
                    gd_fail_param(err, GD_INVALID, at, "%s must be an object {\"item\": {...}}", at)) &&
             gd_json_only_known(row, at, row_fields, err) && gd_json_get_object(row, at, "item", true, &found, err) &&
             gd_json_get_object(row, at, "sample", false, &found, err);
        gd_free(at);
    }
    return ok;
}

static bool parse_content(struct gd_eval_rows *rows, const cJSON *json, const char *path, struct gd_error *err)
{
    static const char *const known[] = {"content", "type", NULL};
    const cJSON *content = NULL, *row;
    if (!gd_json_only_known(json, path, known, err) || !gd_json_get_array(json, path, "content", true, &content, err) ||
        !check_content(content, path, err))
        return false;
    rows->content = cJSON_Duplicate(content, true);
    rows->given = gd_alloc_array((size_t)cJSON_GetArraySize(rows->content) + 1, sizeof *rows->given);
    cJSON_ArrayForEach(row, rows->content) rows->given[rows->count++] = row;
    if (rows->count > 0)
        return true;
    char *param = gd_format("%s.content", path);
    gd_fail_param(err, GD_INVALID, param, "%s is empty", param);
    gd_free(param);
    return false;
}

static bool parse_file(struct gd_eval_source *source, const cJSON *json, const char *path, struct gd_error *err)
{
    static const char *const known[] = {"id", "type", NULL};
    const char *id = NULL;
    if (!gd_json_only_known(json, path, known, err) || !gd_json_get_string(json, path, "id", true, 1, 4095, &id, err))
        return false;
    source->file_id = gd_strdup(id);
    return true;
}

bool gd_eval_rows_parse(struct gd_eval_rows *rows, struct gd_eval_source *source, const cJSON *json, const char *path,
                        struct gd_error *err)
{
    static const char *const kinds[] = {"file_content", "file_id"};
    const cJSON *from = NULL, *type;
    int kind = 0;
    if (source->spec->task != NULL)
        return gd_fail_param(err, GD_INVALID, "data_source.type", "data_source.type: the eval is a task: its runs have the type 'task'");
    char *at = gd_format("%s.source", path), *at_type = gd_format("%s.source.type", path);
    bool ok = gd_json_get_object(json, path, "source", true, &from, err);
    type = ok ? gd_json_find(from, "type") : NULL;
    if (cJSON_IsString(type) && (strcmp(type->valuestring, "stored_completions") == 0 ||
                                 strcmp(type->valuestring, "responses") == 0))
        ok = gd_fail_param(err, GD_UNSUPPORTED, at_type, "%s: '%s' reads what the platform has stored, and completions are not "
                           "stored here; give rows with file_id or file_content", at_type, type->valuestring);
    ok = ok && gd_grader_choice(from, at, "type", kinds, (int)GD_COUNT(kinds), &kind, err) &&
         (kind == 0 ? parse_content(rows, from, at, err) : parse_file(source, from, at, err));
    gd_free(at);
    gd_free(at_type);
    return ok;
}

static bool add_line(void *context, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct gd_eval_rows *rows = context;
    if (rows->count == GD_EVAL_ITEMS_MAX)
        return gd_fail(err, GD_TOO_LARGE, "the file has more than %d rows", GD_EVAL_ITEMS_MAX);
    if (rows->count == rows->capacity) {
        rows->capacity = rows->capacity > 0 ? rows->capacity * 2 : 256;
        rows->lines = gd_realloc_array(rows->lines, (size_t)rows->capacity, sizeof *rows->lines);
    }
    rows->lines[rows->count++] = text != NULL ? gd_strndup(text, length) : NULL;
    return true;
}

bool gd_eval_rows_open(struct gd_eval_rows *rows, const char *file_path, struct gd_error *err)
{
    if (rows->content != NULL)
        return true;
    return gd_lines_each(file_path, add_line, rows, err) &&
           (rows->count > 0 || gd_fail(err, GD_BAD_FILE, "the file has no rows"));
}

void gd_eval_rows_release(struct gd_eval_rows *rows)
{
    for (int64_t i = 0; rows->lines != NULL && i < rows->count; i++)
        gd_free(rows->lines[i]);
    gd_free(rows->lines);
    gd_free(rows->given);
    cJSON_Delete(rows->content);
}

/* ---- one of them ---- */

static cJSON *read_row(const struct gd_eval_rows *rows, int64_t index, struct gd_error *err)
{
    if (rows->given != NULL)
        return cJSON_Duplicate(rows->given[index], true);
    const char *line = rows->lines[index];
    if (line == NULL) {
        gd_fail(err, GD_TOO_LARGE, "the row has more than %u bytes", GD_ROW_BYTES_MAX);
        return NULL;
    }
    return gd_json_parse(line, strlen(line), GD_ROW_BYTES_MAX, err);
}

static bool check_row(const struct gd_eval_source *source, const cJSON *row, const cJSON **item, struct gd_error *err)
{
    const cJSON *sample = NULL;
    if (!cJSON_IsObject(row))
        return gd_fail(err, GD_INVALID, "the row must be an object {\"item\": {...}}");
    return gd_json_only_known(row, "", row_fields, err) && gd_json_get_object(row, "", "item", true, item, err) &&
           gd_json_get_object(row, "", "sample", false, &sample, err) &&
           gd_schema_validate(source->spec->item_schema, *item, "item", err);
}

struct gd_eval_row *gd_eval_row_begin(const struct gd_eval_rows *rows, const struct gd_eval_source *source,
                                      struct gd_eval_item *item)
{
    struct gd_error err = {0};
    struct gd_eval_row *row = item->state = gd_alloc(sizeof *row);
    row->judge_first = -1;
    row->row = read_row(rows, item->index, &err);
    if (row->row != NULL && check_row(source, row->row, &row->item, &err))
        return row;
    gd_error_context(&err, "row %" PRId64, item->index + 1);
    gd_eval_row_fail(item, &err);
    return NULL;
}

void gd_eval_row_release(struct gd_eval_item *item)
{
    struct gd_eval_row *row = item->state;
    cJSON_Delete(row->row);
    cJSON_Delete(row->sample);
    cJSON_Delete(row->shown);
    gd_free(row);
    item->state = NULL;
}

static void finish(struct gd_eval_item *item, cJSON *results_taken, const struct gd_error *error)
{
    struct gd_eval_row *row = item->state;
    gd_eval_item_finish(item, row->item != NULL ? cJSON_Duplicate(row->item, true) : NULL, results_taken, row->shown,
                        error);
    row->shown = NULL;
    gd_eval_row_release(item);
}

void gd_eval_row_fail(struct gd_eval_item *item, const struct gd_error *error)
{
    finish(item, NULL, error);
}

/* ---- grading ---- */

cJSON *gd_eval_ask_shown(const struct gd_ask *ask, const char *model)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "input", ask->messages != NULL ? cJSON_Duplicate(ask->messages, true) : cJSON_CreateArray());
    cJSON *output = cJSON_AddArrayToObject(json, "output");
    if (ask->text != NULL) {
        cJSON *message = cJSON_CreateObject();
        cJSON_AddStringToObject(message, "role", "assistant");
        cJSON_AddStringToObject(message, "content", ask->text);
        cJSON_AddItemToArray(output, message);
    }
    bool failed = ask->error.code != GD_OK;
    cJSON_AddStringToObject(json, "finish_reason", failed ? "error" : ask->truncated ? "length" : "stop");
    cJSON_AddStringToObject(json, "model", model);
    cJSON *usage = cJSON_AddObjectToObject(json, "usage");
    cJSON_AddNumberToObject(usage, "prompt_tokens", (double)ask->prompt_tokens);
    cJSON_AddNumberToObject(usage, "completion_tokens", (double)ask->completion_tokens);
    cJSON_AddNumberToObject(usage, "total_tokens", (double)(ask->prompt_tokens + ask->completion_tokens));
    cJSON_AddNumberToObject(usage, "cached_tokens", (double)ask->cached_tokens);
    cJSON *error = failed ? cJSON_AddObjectToObject(json, "error") : cJSON_AddNullToObject(json, "error");
    if (failed) {
        cJSON_AddStringToObject(error, "code", gd_code_wire(ask->error.code));
        cJSON_AddStringToObject(error, "message", ask->error.message);
    }
    cJSON_AddNumberToObject(json, "temperature", ask->temperature);
    cJSON_AddItemToObject(json, "max_completion_tokens",
                          ask->max_tokens >= 0 ? cJSON_CreateNumber((double)ask->max_tokens) : cJSON_CreateNull());
    cJSON_AddNumberToObject(json, "top_p", ask->top_p);
    cJSON_AddNumberToObject(json, "seed", (double)ask->seed);
    return json;
}

/* What the judges of one grader were asked: an object, or a list where there are several. */
static cJSON *judged_shown(const struct gd_grader *grader, const struct gd_ask *asks)
{
    int count = gd_grader_ask_count(grader);
    cJSON *list = count > 0 ? cJSON_CreateArray() : NULL;
    for (int i = 0; i < count; i++) {
        cJSON *one = gd_eval_ask_shown(&asks[i], gd_grader_ask_model(grader, i));
        if (count == 1) {
            cJSON_Delete(list);
            return one;
        }
        cJSON_AddItemToArray(list, one);
    }
    return list;
}

static void ask_judges(const struct gd_eval_source *source, struct gd_eval_item *item)
{
    struct gd_eval_row *row = item->state;
    row->judge_first = item->ask_count;
    for (int i = 0; i < source->spec->grader_count; i++) {
        const struct gd_grader *grader = source->spec->graders[i];
        int first = item->ask_count, count = gd_grader_ask_count(grader);
        for (int k = 0; k < count; k++)
            gd_eval_item_ask(item, GD_ASK_CHAT);
        if (count > 0)
            gd_grader_fill_asks(grader, row->item, row->sample, &item->asks[first]);
    }
}

static void grade(const struct gd_eval_source *source, struct gd_eval_item *item)
{
    struct gd_eval_row *row = item->state;
    cJSON *results = cJSON_CreateArray();
    int at = row->judge_first;
    for (int i = 0; i < source->spec->grader_count; i++) {
        const struct gd_grader *grader = source->spec->graders[i];
        const struct gd_ask *asks = item->asks != NULL ? &item->asks[at] : NULL;
        struct gd_grade one;
        gd_grader_run_asked(grader, row->item, row->sample, asks, &one);
        cJSON_AddItemToArray(results, gd_eval_result(gd_grader_name(grader), gd_grader_type_name(grader), one.reward,
                                                     one.passed, &one.error, judged_shown(grader, asks)));
        gd_grade_release(&one);
        at += gd_grader_ask_count(grader);
    }
    finish(item, results, NULL);
}

void gd_eval_row_grade(const struct gd_eval_source *source, struct gd_eval_item *item)
{
    struct gd_eval_row *row = item->state;
    if (row->judge_first < 0) {
        ask_judges(source, item);
        if (item->ask_count > row->judge_first)
            return;
    }
    grade(source, item);
}
