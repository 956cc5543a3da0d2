/* task_context.c - rows, the examples chosen for each, and the prompt that both make. */
#include "engine/base/alloc.h"
#include "engine/data/lines.h"
#include "engine/data/row.h"
#include "engine/eval/literal.h"
#include "engine/eval/stats.h"
#include "engine/eval/task_parts.h"

#include <inttypes.h>
#include <string.h>

/* ---- rows ---- */

struct reading {
    cJSON *rows, *last, *columns;
    int64_t limit, count;
    size_t bytes;
};

/* Appended by hand: cJSON walks a list to its end for each element otherwise. */
static void add_row(struct reading *reading, cJSON *row)
{
    const cJSON *field;
    cJSON_ArrayForEach(field, row)
        if (gd_json_find(reading->columns, field->string) == NULL)
            cJSON_AddTrueToObject(reading->columns, field->string);
    if (reading->last == NULL)
        cJSON_AddItemToArray(reading->rows, row);
    else {
        reading->last->next = row;
        row->prev = reading->last;
        reading->rows->child->prev = row;
    }
    reading->last = row;
    reading->count++;
}

static bool on_line(void *context, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct reading *reading = context;
    if (reading->limit >= 0 && reading->count >= reading->limit)
        return true;
    if (text == NULL)
        return gd_fail(err, GD_BAD_FILE, "line %" PRId64 ": more than %u bytes", line, GD_ROW_BYTES_MAX);
    if ((reading->bytes += length) > GD_TASK_ROWS_BYTES_MAX)
        return gd_fail(err, GD_BAD_FILE, "more than %u bytes of rows", GD_TASK_ROWS_BYTES_MAX);
    struct gd_error said = {0};
    cJSON *row = gd_json_parse(text, length, length, &said);
    if (!cJSON_IsObject(row)) {
        cJSON_Delete(row);
        return gd_fail(err, GD_BAD_FILE, "line %" PRId64 ": %s", line, row == NULL ? said.message : "not a JSON object");
    }
    add_row(reading, row);
    return true;
}

static bool read_rows(const char *path, int64_t limit, struct reading *reading, struct gd_error *err)
{
    *reading = (struct reading){.rows = cJSON_CreateArray(), .columns = cJSON_CreateObject(), .limit = limit};
    if (gd_lines_each(path, on_line, reading, err))
        return reading->count > 0 || gd_fail(err, GD_BAD_FILE, "there are no rows");
    return false;
}

static const cJSON **index_rows(const cJSON *rows, int64_t count)
{
    const cJSON **list = gd_alloc_array((size_t)count + 1, sizeof *list), *row;
    int64_t i = 0;
    cJSON_ArrayForEach(row, rows)
        list[i++] = row;
    return list;
}

/* ---- examples ---- */

static bool is_same(const cJSON *a, const cJSON *b)
{
    return a == b || cJSON_Compare(a, b, true);
}

/* The first of the pool that are not the row itself, from `candidates` (NULL: all in order). */
static size_t take_others(const struct gd_task *task, const cJSON *row, const uint32_t *candidates, size_t count, uint32_t *out)
{
    size_t taken = 0;
    for (size_t i = 0; i < count && taken < (size_t)task->shots; i++) {
        uint32_t candidate = candidates != NULL ? candidates[i] : (uint32_t)i;
        if (row == NULL || !is_same(task->shot_row[candidate], row))
            out[taken++] = candidate;
    }
    return taken;
}

/* Copies of the row were drawn: once more, from the others alone. */
static size_t draw_again(const struct gd_task *task, const cJSON *row, struct gd_twister *twister, uint32_t *out)
{
    uint32_t *others = gd_alloc_array((size_t)task->pool_count, sizeof *others);
    size_t count = 0;
    for (int64_t i = 0; i < task->pool_count; i++)
        if (!is_same(task->shot_row[i], row))
            others[count++] = (uint32_t)i;
    bool enough = count >= (size_t)task->shots;
    if (enough) {
        gd_twister_sample(twister, count, (size_t)task->shots, out);
        for (int64_t i = 0; i < task->shots; i++)
            out[i] = others[out[i]];
    }
    gd_free(others);
    return enough ? (size_t)task->shots : count;
}

/* One generator for all rows in their order, as the harness has it: every item's examples are chosen before the first. */
static bool choose(struct gd_task *task, uint64_t seed, struct gd_error *err)
{
    struct gd_twister twister;
    size_t shots = (size_t)task->shots, wanted = shots + (task->never_itself && !task->first_shots);
    if (shots == 0)
        return true;
    if ((uint64_t)task->pool_count < wanted)
        return gd_fail(err, GD_BAD_FILE, "num_fewshot: %zu rows are needed to choose examples from, there are %" PRId64, wanted,
                       task->pool_count);
    task->chosen = gd_alloc_array((size_t)task->count * shots, sizeof *task->chosen);
    uint32_t *drawn = gd_alloc_array(wanted, sizeof *drawn);
    gd_twister_seed(&twister, seed);
    bool ok = true;
    for (int64_t i = 0; ok && i < task->count; i++) {
        const cJSON *row = task->never_itself ? task->row[i] : NULL;
        uint32_t *out = task->chosen + (size_t)i * shots;
        size_t taken;
        if (task->first_shots) {
            taken = take_others(task, row, NULL, (size_t)task->pool_count, out);
        } else {
            gd_twister_sample(&twister, (size_t)task->pool_count, wanted, drawn);
            taken = take_others(task, row, drawn, wanted, out);
            if (taken < shots)
                taken = draw_again(task, row, &twister, out);
        }
        ok = taken == shots || gd_fail(err, GD_BAD_FILE, "num_fewshot: row %" PRId64 " finds %zu examples that are not itself, of %zu",
                                       i + 1, taken, shots);
    }
    gd_free(drawn);
    return ok;
}

static bool open_pool(struct gd_task *task, const char *path, int64_t limit, struct gd_error *err)
{
    struct reading reading;
    const cJSON *sample, *field;
    if (task->samples != NULL) {
        task->pool_count = cJSON_GetArraySize(task->samples);
        task->shot_row = index_rows(task->samples, task->pool_count);
        task->shot_columns = cJSON_CreateObject();
        cJSON_ArrayForEach(sample, task->samples)
            cJSON_ArrayForEach(field, sample)
                if (field->string != NULL && gd_json_find(task->shot_columns, field->string) == NULL)
                    cJSON_AddTrueToObject(task->shot_columns, field->string);
        return true;
    }
    bool ok = read_rows(path, limit, &reading, err);
    if (!ok)
        gd_error_context(err, "the rows of examples");
    task->pool = reading.rows;
    task->shot_columns = reading.columns;
    task->pool_count = reading.count;
    task->shot_row = index_rows(task->pool, task->pool_count);
    return ok;
}

/* What the first row makes of the templates is the task's shape. */
static bool look_at_first(struct gd_task *task, struct gd_error *err)
{
    cJSON *target = gd_task_target(task, &task->turn, task->row[0], task->columns, err);
    bool ok = target != NULL;
    task->many_targets = cJSON_IsArray(target);
    cJSON_Delete(target);
    if (ok && task->output == GD_TASK_CHOICE) {
        cJSON *text = gd_task_text(task, &task->turn, task->row[0], task->columns, err);
        ok = text != NULL;
        task->many_texts = cJSON_IsNumber(text);
        cJSON_Delete(text);
    }
    if (!ok)
        gd_error_context(err, "row 1");
    return ok;
}

bool gd_task_open(struct gd_task *task, const char *rows_path, const char *shots_path, const struct gd_task_options *options,
                  struct gd_error *err)
{
    struct reading reading;
    if (options->shots >= 0)
        task->shots = options->shots;
    bool ok = read_rows(rows_path, options->limit, &reading, err);
    task->rows = reading.rows;
    task->columns = reading.columns;
    task->count = reading.count;
    task->row = index_rows(task->rows, task->count);
    if (!ok || !look_at_first(task, err))
        return false;
    if (task->shots == 0)
        return true;
    return open_pool(task, shots_path != NULL ? shots_path : rows_path, -1, err) && choose(task, options->seed, err);
}

/* ---- prompts ---- */

static bool is_space_before(const char *text, size_t length)
{
    return length > 0 && strchr(" \t\n\r\f\v", text[length - 1]) != NULL;
}

static bool is_space_at(const char *text)
{
    return *text != '\0' && strchr(" \t\n\r\f\v", *text) != NULL;
}

/* The answer of an example as text: of a list the first, of a number the choice. */
static bool append_answer(const cJSON *target, const cJSON *choices, struct gd_buf *out, struct gd_error *err)
{
    const cJSON *answer = target;
    if (cJSON_IsNumber(target) && choices != NULL)
        answer = cJSON_GetArrayItem(choices, target->valueint < 0 ? cJSON_GetArraySize(choices) + target->valueint : target->valueint);
    else if (cJSON_IsArray(target))
        answer = cJSON_GetArrayItem(target, 0);
    if (!cJSON_IsString(answer))
        return gd_fail(err, GD_INVALID, "doc_to_target gives no text for an example");
    gd_buf_append_text(out, answer->valuestring);
    return true;
}

/* Question, delimiter, answer. `target` NULL: the question that is asked, which ends here. */
static bool append_turn(const struct gd_task_turn *turn, const char *question, const cJSON *target, const cJSON *choices,
                        const char *prefix, struct gd_buf *out, struct gd_error *err)
{
    bool answered = target != NULL && !cJSON_IsNull(target) && !(cJSON_IsString(target) && target->valuestring[0] == '\0');
    bool prefixed = prefix[0] != '\0';
    gd_buf_append_text(out, question);
    if ((answered && !prefixed) ||
        (prefixed && question[0] != '\0' && !is_space_before(question, strlen(question)) && !is_space_at(prefix)))
        gd_buf_append_text(out, turn->target_delimiter);
    gd_buf_append_text(out, prefix);
    if (!answered)
        return true;
    struct gd_buf answer;
    gd_buf_init(&answer, GD_GRADER_RENDER_BYTES_MAX);
    bool ok = append_answer(target, choices, &answer, err);
    const char *text = answer.data != NULL ? answer.data : "";
    if (ok && prefixed && text[0] != '\0' && !is_space_before(prefix, strlen(prefix)) && !is_space_at(text))
        gd_buf_append_char(out, ' ');
    gd_buf_append_text(out, text);
    gd_buf_append_text(out, turn->delimiter);
    gd_buf_release(&answer);
    return ok;
}

static bool append_example(const struct gd_task *task, const cJSON *row, struct gd_buf *out, struct gd_error *err)
{
    const struct gd_task_turn *turn = &task->shot;
    struct gd_buf prefix;
    gd_buf_init(&prefix, GD_GRADER_RENDER_BYTES_MAX);
    cJSON *text = gd_task_text(task, turn, row, task->shot_columns, err);
    cJSON *target = text != NULL ? gd_task_target(task, turn, row, task->shot_columns, err) : NULL;
    bool ok = target != NULL && gd_task_plain(&turn->prefix, row, task->shot_columns, &prefix, err);
    cJSON *choices = ok && gd_task_field_given(&turn->choice) ? gd_task_choices(turn, row, task->shot_columns, err) : NULL;
    ok = ok && (choices != NULL || !gd_task_field_given(&turn->choice));
    const cJSON *question = task->many_texts && ok ? cJSON_GetArrayItem(choices, text->valueint) : text;
    if (ok && !cJSON_IsString(question))
        ok = gd_fail(err, GD_INVALID, "doc_to_text gives no text for an example");
    ok = ok && append_turn(turn, question->valuestring, target, task->many_texts ? NULL : choices,
                           prefix.data != NULL ? prefix.data : "", out, err);
    cJSON_Delete(text);
    cJSON_Delete(target);
    cJSON_Delete(choices);
    gd_buf_release(&prefix);
    return ok;
}

static bool append_question(const struct gd_task *task, int64_t index, const char *question, const char *prefix, struct gd_buf *head,
                            char **context, struct gd_error *err)
{
    static const struct gd_task_turn undelimited = {.target_delimiter = "", .delimiter = ""};
    struct gd_buf out;
    gd_buf_init(&out, GD_GRADER_RENDER_BYTES_MAX);
    gd_buf_append(&out, head->data != NULL ? head->data : "", head->length);
    bool ok = append_turn(task->many_texts ? &undelimited : &task->turn, question, NULL, NULL, prefix, &out, err);
    if (ok && (out.overflow || head->overflow))
        ok = gd_fail(err, GD_TOO_LARGE, "the prompt of row %" PRId64 " has more than %u bytes", index + 1, GD_GRADER_RENDER_BYTES_MAX);
    *context = ok ? gd_buf_take(&out) : NULL;
    gd_buf_release(&out);
    return ok;
}

/* description and examples */
static bool build_head(const struct gd_task *task, int64_t index, struct gd_buf *head, struct gd_error *err)
{
    bool ok = gd_task_plain(&task->description, task->row[index], task->columns, head, err);
    for (int64_t i = 0; ok && i < task->shots; i++)
        ok = append_example(task, task->shot_row[task->chosen[index * task->shots + i]], head, err);
    return ok;
}

bool gd_task_contexts(const struct gd_task *task, int64_t index, char ***contexts, int *count, struct gd_error *err)
{
    const cJSON *row = task->row[index];
    struct gd_buf head, prefix;
    gd_buf_init(&head, GD_GRADER_RENDER_BYTES_MAX);
    gd_buf_init(&prefix, GD_GRADER_RENDER_BYTES_MAX);
    *count = 0;
    *contexts = NULL;
    cJSON *texts = task->many_texts ? gd_task_choices(&task->turn, row, task->columns, err)
                                    : gd_task_text(task, &task->turn, row, task->columns, err);
    bool ok = texts != NULL && build_head(task, index, &head, err) &&
              gd_task_plain(&task->turn.prefix, row, task->columns, &prefix, err);
    if (ok && !task->many_texts && !cJSON_IsString(texts))
        ok = gd_fail(err, GD_INVALID, "doc_to_text gives no text for this row");
    int wanted = task->many_texts && ok ? cJSON_GetArraySize(texts) : 1;
    *contexts = gd_alloc_array((size_t)wanted, sizeof **contexts);
    for (; ok && *count < wanted; (*count)++)
        ok = append_question(task, index, (task->many_texts ? cJSON_GetArrayItem(texts, *count) : texts)->valuestring,
                             prefix.data != NULL ? prefix.data : "", &head, &(*contexts)[*count], err);
    cJSON_Delete(texts);
    gd_buf_release(&head);
    gd_buf_release(&prefix);
    return ok;
}
