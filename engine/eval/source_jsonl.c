/* source_jsonl.c - rows that bring their sample: nothing is generated, they are only graded. */
#include "engine/base/alloc.h"
#include "engine/eval/rows.h"

#include <inttypes.h>

static bool parse(struct gd_eval_source *source, const cJSON *json, const char *path, struct gd_error *err)
{
    static const char *const known[] = {"source", "type", NULL};
    struct gd_eval_rows *rows = source->state = gd_alloc(sizeof *rows);
    return gd_json_only_known(json, path, known, err) && gd_eval_rows_parse(rows, source, json, path, err);
}

static bool open_rows(struct gd_eval_source *source, const char *file_path, struct gd_error *err)
{
    struct gd_eval_rows *rows = source->state;
    bool ok = gd_eval_rows_open(rows, file_path, err);
    source->count = rows->count;
    return ok;
}

/* What templates see: the row's sample, and output_json where its text is JSON and the row does not say. */
static cJSON *sample_of(const cJSON *given)
{
    cJSON *sample = cJSON_Duplicate(given, true);
    const cJSON *text = gd_json_find(given, "output_text");
    if (cJSON_IsString(text) && gd_json_find(given, "output_json") == NULL) {
        cJSON *read = gd_grader_sample(text->valuestring);
        cJSON *json = cJSON_DetachItemFromObjectCaseSensitive(read, "output_json");
        if (json != NULL)
            cJSON_AddItemToObject(sample, "output_json", json);
        cJSON_Delete(read);
    }
    return sample;
}

/* There was no model: the answer is all that is known. */
static cJSON *shown_of(const cJSON *sample)
{
    static const char *const unknown[] = {"finish_reason", "model",       "usage", "error",
                                          "temperature",   "max_completion_tokens", "top_p", "seed"};
    const cJSON *text = gd_json_find(sample, "output_text");
    cJSON *json = cJSON_CreateObject();
    cJSON_AddArrayToObject(json, "input");
    cJSON *output = cJSON_AddArrayToObject(json, "output");
    if (cJSON_IsString(text)) {
        cJSON *message = cJSON_CreateObject();
        cJSON_AddStringToObject(message, "role", "assistant");
        cJSON_AddStringToObject(message, "content", text->valuestring);
        cJSON_AddItemToArray(output, message);
    }
    for (size_t i = 0; i < GD_COUNT(unknown); i++)
        cJSON_AddNullToObject(json, unknown[i]);
    return json;
}

static void begin(struct gd_eval_source *source, struct gd_eval_item *item)
{
    struct gd_eval_row *row = gd_eval_row_begin(source->state, source, item);
    if (row == NULL)
        return;
    const cJSON *sample = gd_json_find(row->row, "sample");
    if (source->spec->include_sample && !cJSON_IsObject(sample)) {
        struct gd_error err = {0};
        gd_fail(&err, GD_MISSING, "row %" PRId64 ": 'sample' is missing: {\"output_text\": ...}", item->index + 1);
        gd_eval_row_fail(item, &err);
        return;
    }
    if (cJSON_IsObject(sample)) {
        row->sample = sample_of(sample);
        row->shown = shown_of(row->sample);
    }
    gd_eval_row_grade(source, item);
}

static void answered(struct gd_eval_source *source, struct gd_eval_item *item)
{
    gd_eval_row_grade(source, item);
}

static void release_item(struct gd_eval_source *source, struct gd_eval_item *item)
{
    gd_eval_row_release(item);
}

static void release(struct gd_eval_source *source)
{
    gd_eval_rows_release(source->state);
    gd_free(source->state);
}

const struct gd_eval_source_type gd_eval_source_type_jsonl = {.name = "jsonl", .parse = parse, .open = open_rows,
                                                              .begin = begin, .answered = answered,
                                                              .release_item = release_item, .release = release};
