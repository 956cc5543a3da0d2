/* source_completions.c - each row becomes a conversation; the model's answer is graded. */
#include "engine/base/alloc.h"
#include "engine/eval/messages.h"
#include "engine/eval/rows.h"
#include "engine/text/chat.h"

#include <inttypes.h>
#include <string.h>

#define SEED 42 /* OpenAI's default */

struct completions {
    struct gd_eval_rows rows;
    struct gd_eval_sampling sampling;
    struct gd_eval_messages template;
    struct gd_grader_text reference; /* to the row's own messages, where there is no template */
    bool by_reference;
};

/* ---- checking ---- */

static bool check_reference(void *context, const struct gd_grader_reference *reference, const char *param,
                            struct gd_error *err)
{
    return gd_eval_spec_check_reference(context, false, reference, param, err);
}

static bool parse_reference(struct completions *completions, const cJSON *json, const char *path, const void *spec,
                            struct gd_error *err)
{
    static const char *const known[] = {"item_reference", "type", NULL};
    const char *reference = NULL;
    if (!gd_json_only_known(json, path, known, err) ||
        !gd_json_get_string(json, path, "item_reference", true, 1, 256, &reference, err))
        return false;
    char *param = gd_format("%s.item_reference", path), *text = gd_format("{{%s}}", reference);
    completions->by_reference = true;
    bool plain = strchr(reference, '{') == NULL && strchr(reference, '}') == NULL;
    bool ok = (plain || gd_fail_param(err, GD_INVALID, param, "%s is a path without braces: item.messages", param)) &&
              gd_grader_text_parse_string(&completions->reference, text, param, err) &&
              gd_grader_text_references(&completions->reference, path, "item_reference", check_reference,
                                        (void *)(uintptr_t)spec, err);
    gd_free(text);
    gd_free(param);
    return ok;
}

static bool parse_template(struct completions *completions, const cJSON *json, const char *path, const void *spec,
                           struct gd_error *err)
{
    static const char *const known[] = {"template", "type", NULL};
    if (!gd_json_only_known(json, path, known, err))
        return false;
    char *at = gd_format("%s.template", path);
    bool ok = gd_eval_messages_parse(&completions->template, gd_json_find(json, "template"), at, err) &&
              gd_eval_messages_references(&completions->template, at, check_reference, (void *)(uintptr_t)spec, err);
    gd_free(at);
    return ok;
}

static bool parse(struct gd_eval_source *source, const cJSON *json, const char *path, struct gd_error *err)
{
    static const char *const known[] = {"input_messages", "model", "sampling_params", "source", "task", "type", NULL};
    static const char *const kinds[] = {"item_reference", "template"};
    struct completions *completions = source->state = gd_alloc(sizeof *completions);
    const cJSON *messages = NULL, *sampling = NULL;
    const char *model = NULL, *task = NULL;
    int kind = 0;
    completions->sampling = (struct gd_eval_sampling){.temperature = 1, .top_p = 1, .seed = SEED, .max_tokens = -1};
    if (!gd_json_only_known(json, path, known, err) || !gd_json_get_string(json, path, "model", true, 1, 512, &model, err) ||
        !gd_json_get_string(json, path, "task", false, 1, 63, &task, err) ||
        !gd_json_get_object(json, path, "input_messages", true, &messages, err) ||
        !gd_json_get_object(json, path, "sampling_params", false, &sampling, err))
        return false;
    source->model = gd_strdup(model);
    source->task = gd_strdup(task);
    char *at = gd_format("%s.input_messages", path), *below = gd_format("%s.sampling_params", path);
    bool ok = gd_grader_choice(messages, at, "type", kinds, (int)GD_COUNT(kinds), &kind, err) &&
              (kind == 0 ? parse_reference(completions, messages, at, source->spec, err)
                         : parse_template(completions, messages, at, source->spec, err)) &&
              gd_eval_sampling_parse(&completions->sampling, sampling, below, true, err) &&
              gd_eval_rows_parse(&completions->rows, source, json, path, err);
    gd_free(at);
    gd_free(below);
    return ok;
}

static bool open_rows(struct gd_eval_source *source, const char *file_path, struct gd_error *err)
{
    struct completions *completions = source->state;
    bool ok = gd_eval_rows_open(&completions->rows, file_path, err);
    source->count = completions->rows.count;
    return ok;
}

/* ---- items ---- */

/* The row's own messages: the reference is filled in as JSON and read back. */
static cJSON *referenced_messages(const struct completions *completions, const cJSON *item, struct gd_error *err)
{
    struct gd_grade grade = {.reward = 0};
    struct gd_buf text;
    gd_buf_init(&text, GD_GRADER_RENDER_BYTES_MAX);
    cJSON *messages = NULL;
    if (!gd_grader_text_render(&completions->reference, item, NULL, &text, &grade))
        *err = grade.error;
    else if (text.data == NULL || text.data[0] != '[')
        gd_fail(err, GD_INVALID, "input_messages.item_reference must lead to a list of messages");
    else
        messages = gd_json_parse(text.data, text.length, GD_GRADER_RENDER_BYTES_MAX, err);
    gd_buf_release(&text);
    gd_grade_release(&grade);
    return messages;
}

static cJSON *messages_of(const struct completions *completions, const cJSON *item, struct gd_error *err)
{
    cJSON *messages;
    if (completions->by_reference) {
        messages = referenced_messages(completions, item, err);
    } else {
        struct gd_grade grade = {.reward = 0};
        messages = gd_eval_messages_render(&completions->template, item, NULL, &grade);
        if (messages == NULL)
            *err = grade.error;
        gd_grade_release(&grade);
    }
    if (messages != NULL && !gd_chat_check_messages(messages, "messages", false, err)) {
        cJSON_Delete(messages);
        messages = NULL;
    }
    return messages;
}

static void begin(struct gd_eval_source *source, struct gd_eval_item *item)
{
    const struct completions *completions = source->state;
    struct gd_error err = {0};
    struct gd_eval_row *row = gd_eval_row_begin(&completions->rows, source, item);
    if (row == NULL)
        return;
    cJSON *messages = messages_of(completions, row->item, &err);
    if (messages == NULL) {
        gd_error_context(&err, "row %" PRId64, item->index + 1);
        gd_eval_row_fail(item, &err);
        return;
    }
    struct gd_ask *ask = gd_eval_item_ask(item, GD_ASK_CHAT);
    ask->messages = messages;
    gd_eval_sampling_apply(&completions->sampling, ask);
}

static void answered(struct gd_eval_source *source, struct gd_eval_item *item)
{
    struct gd_eval_row *row = item->state;
    const struct gd_ask *ask = &item->asks[0];
    if (row->shown == NULL) {
        row->shown = gd_eval_ask_shown(ask, source->model);
        if (ask->error.code != GD_OK) {
            gd_eval_row_fail(item, &ask->error);
            return;
        }
        row->sample = gd_grader_sample(ask->text);
    }
    gd_eval_row_grade(source, item);
}

static void release_item(struct gd_eval_source *source, struct gd_eval_item *item)
{
    gd_eval_row_release(item);
}

static void release(struct gd_eval_source *source)
{
    struct completions *completions = source->state;
    gd_eval_rows_release(&completions->rows);
    gd_eval_messages_release(&completions->template);
    gd_grader_text_release(&completions->reference);
    gd_eval_sampling_release(&completions->sampling);
    gd_free(completions);
}

const struct gd_eval_source_type gd_eval_source_type_completions = {.name = "completions", .parse = parse,
                                                                    .open = open_rows, .begin = begin,
                                                                    .answered = answered, .release_item = release_item,
                                                                    .release = release};
