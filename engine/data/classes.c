/* classes.c - rows of a classifier: their labels, their tokens. */
#include "engine/data/classes.h"
#include "engine/base/alloc.h"
#include "engine/data/lines.h"
#include <stdio.h>
#include <string.h>

const char *gd_label_name(const cJSON *label, char buffer[GD_TASK_NAME_MAX + 1])
{
    if (cJSON_IsNumber(label) && label->valuedouble >= 0 && label->valuedouble <= INT32_MAX && label->valuedouble == label->valueint) {
        snprintf(buffer, GD_TASK_NAME_MAX + 1, "%d", label->valueint);
        return buffer;
    }
    size_t length = cJSON_IsString(label) ? strlen(label->valuestring) : 0;
    return length >= 1 && length <= GD_TASK_NAME_MAX ? label->valuestring : NULL;
}

struct reader {
    struct gd_tasks *labels;
    bool multi;
};

static bool add_one(struct gd_tasks *labels, const cJSON *label, int64_t line, struct gd_error *err)
{
    char buffer[GD_TASK_NAME_MAX + 1];
    struct gd_error full = {0};
    return gd_tasks_add(labels, gd_label_name(label, buffer), &full) >= 0 ||
           gd_fail_param(err, GD_BAD_FILE, "label", "line %lld: there are more than %d labels", (long long)line, GD_TASKS_MAX);
}

static bool add_line(void *context, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct reader *reader = context;
    struct gd_row row;
    const cJSON *item;
    if (text == NULL)
        return gd_fail_param(err, GD_BAD_FILE, "row", "line %lld: the line has more than %u bytes", (long long)line, GD_ROW_BYTES_MAX);
    if (!gd_row_parse(&row, text, length, line, err))
        return false;
    bool ok = row.format == GD_ROW_CLASSIFIED ||
              gd_fail_param(err, GD_BAD_FILE, "row", "line %lld: the row (%s) has no text with a label; method classification needs text and "
                            "label", (long long)line, gd_row_format_name(row.format));
    if (ok && cJSON_IsArray(row.label) != reader->multi)
        ok = gd_fail_param(err, GD_BAD_FILE, "label", "line %lld: label is %s; problem_type %s wants %s", (long long)line,
                           reader->multi ? "one label" : "a list", reader->multi ? "multi_label_classification" : "single_label_classification",
                           reader->multi ? "a list of labels in every row" : "one label in every row (or set problem_type to multi_label_classification)");
    if (ok && !reader->multi)
        ok = add_one(reader->labels, row.label, line, err);
    else if (ok)
        cJSON_ArrayForEach(item, row.label)
            ok = ok && add_one(reader->labels, item, line, err);
    gd_row_release(&row);
    return ok;
}

bool gd_labels_read(struct gd_tasks *labels, const char *path, bool multi, struct gd_error *err)
{
    struct reader reader = {labels, multi};
    if (!gd_lines_each(path, add_line, &reader, err))
        return false;
    int *renumbered = gd_alloc_array((size_t)labels->count + 1, sizeof *renumbered);
    gd_tasks_sort(labels, renumbered);
    gd_free(renumbered);
    return labels->count >= (multi ? 1 : 2) ||
           gd_fail_param(err, GD_BAD_FILE, "training_file", "training_file has %d label%s: there is nothing to tell apart", labels->count,
                         labels->count == 1 ? "" : "s");
}

bool gd_text_encode(const struct gd_tokenizer *tokenizer, const char *text, const char *pair, int most, struct gd_tokens *out,
                    int *second, int *whole, struct gd_error *err)
{
    int begin = out->count, tail = 0;
    *second = 0;
    if (pair != NULL ? !gd_tokenizer_encode_pair(tokenizer, text, strlen(text), pair, strlen(pair), GD_SPECIAL_AS_TEXT, out, second, &tail, err)
                     : !gd_tokenizer_encode(tokenizer, text, strlen(text), GD_SPECIAL_AS_TEXT, true, out, err))
        return false;
    *whole = out->count - begin;
    *second -= pair != NULL ? begin : 0;
    if (pair == NULL)
        tail = gd_tokenizer_ending(tokenizer);
    if (most > 0 && *whole > most && tail < most) {
        memmove(out->ids + begin + most - tail, out->ids + out->count - tail, (size_t)tail * sizeof *out->ids);
        out->count = begin + most;
    }
    return true;
}
