#include "engine/eval/messages.h"

#include "engine/base/alloc.h"
#include "engine/text/chat.h"

#include <string.h>

#define PARTS_MAX 64
#define SEED_MAX (INT64_C(1) << 53)

struct gd_eval_message {
    const char *role; /* one of roles[] */
    struct gd_grader_text *parts;
    int part_count;
};

static const char *const roles[] = {"assistant", "developer", "system", "user"};
static const char *const message_fields[] = {"content", "role", "type", NULL};
static const char *const part_fields[] = {"text", "type", NULL};
static const char *const part_types[] = {"input_text", "output_text", "text"};
static const char *const other_types[] = {"input_audio", "input_file", "input_image"};

/* ---- reading ---- */

static bool add_text(struct gd_eval_message *message, const char *source, const char *param, struct gd_error *err)
{
    return gd_grader_text_parse_string(&message->parts[message->part_count++], source, param, err);
}

static bool add_part(struct gd_eval_message *message, const cJSON *part, const char *path, struct gd_error *err)
{
    const char *text = NULL;
    int type = 0;
    if (cJSON_IsString(part))
        return add_text(message, part->valuestring, path, err);
    if (!cJSON_IsObject(part))
        return gd_fail_param(err, GD_INVALID, path, "%s must be a string or a part {\"type\": \"input_text\", \"text\": ...}",
                             path);
    const cJSON *given = gd_json_find(part, "type");
    for (size_t i = 0; cJSON_IsString(given) && i < GD_COUNT(other_types); i++)
        if (strcmp(given->valuestring, other_types[i]) == 0)
            return gd_fail_param(err, GD_UNSUPPORTED, path, "%s: parts of type '%s' are not supported: models here read text",
                                 path, given->valuestring);
    if (!gd_grader_choice(part, path, "type", part_types, (int)GD_COUNT(part_types), &type, err) ||
        !gd_json_only_known(part, path, part_fields, err) ||
        !gd_json_get_string(part, path, "text", true, 0, GD_GRADER_TEXT_BYTES_MAX, &text, err))
        return false;
    char *param = gd_format("%s.text", path);
    bool ok = add_text(message, text, param, err);
    gd_free(param);
    return ok;
}

static bool add_content(struct gd_eval_message *message, const cJSON *content, const char *path, struct gd_error *err)
{
    int count = cJSON_IsArray(content) ? cJSON_GetArraySize(content) : 1;
    if (content == NULL || cJSON_IsNull(content))
        return gd_fail_param(err, GD_MISSING, path, "%s is missing", path);
    if (count < 1 || count > PARTS_MAX)
        return gd_fail_param(err, GD_INVALID, path, "%s has %d parts; it must have 1 to %d", path, count, PARTS_MAX);
    message->parts = gd_alloc_array((size_t)count, sizeof *message->parts);
    if (!cJSON_IsArray(content))
        return add_part(message, content, path, err);
    bool ok = true;
    for (int i = 0; ok && i < count; i++) {
        char *at = gd_format("%s[%d]", path, i);
        ok = add_part(message, cJSON_GetArrayItem(content, i), at, err);
        gd_free(at);
    }
    return ok;
}

static bool add_message(struct gd_eval_message *message, const cJSON *json, const char *path, struct gd_error *err)
{
    int role = 0;
    const char *type = NULL;
    if (!cJSON_IsObject(json))
        return gd_fail_param(err, GD_INVALID, path, "%s must be a message {role, content}", path);
    if (!gd_json_only_known(json, path, message_fields, err) ||
        !gd_grader_choice(json, path, "role", roles, (int)GD_COUNT(roles), &role, err) ||
        !gd_json_get_string(json, path, "type", false, 0, 64, &type, err))
        return false;
    char *at = gd_format("%s.%s", path, type != NULL && strcmp(type, "message") != 0 ? "type" : "content");
    message->role = roles[role];
    bool ok = type == NULL || strcmp(type, "message") == 0
                  ? add_content(message, gd_json_find(json, "content"), at, err)
                  : gd_fail_param(err, GD_INVALID, at, "%s: \"%.64s\" must be \"message\"", at, type);
    gd_free(at);
    return ok;
}

bool gd_eval_messages_parse(struct gd_eval_messages *messages, const cJSON *list, const char *path, struct gd_error *err)
{
    int count = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : 0;
    *messages = (struct gd_eval_messages){0};
    if (list == NULL || cJSON_IsNull(list))
        return gd_fail_param(err, GD_MISSING, path, "%s is missing: a list of messages {role, content}", path);
    if (!cJSON_IsArray(list) || count < 1 || count > GD_EVAL_MESSAGES_MAX)
        return gd_fail_param(err, GD_INVALID, path, "%s must be a list of 1 to %d messages", path, GD_EVAL_MESSAGES_MAX);
    messages->message = gd_alloc_array((size_t)count, sizeof *messages->message);
    messages->count = count;
    bool ok = true;
    for (int i = 0; ok && i < count; i++) {
        char *at = gd_format("%s[%d]", path, i);
        ok = add_message(&messages->message[i], cJSON_GetArrayItem(list, i), at, err);
        gd_free(at);
    }
    return ok;
}

void gd_eval_messages_release(struct gd_eval_messages *messages)
{
    for (int i = 0; i < messages->count; i++) {
        for (int p = 0; p < messages->message[i].part_count; p++)
            gd_grader_text_release(&messages->message[i].parts[p]);
        gd_free(messages->message[i].parts);
    }
    gd_free(messages->message);
    *messages = (struct gd_eval_messages){0};
}

/* ---- using ---- */

cJSON *gd_eval_messages_render(const struct gd_eval_messages *messages, const cJSON *item, const cJSON *sample,
                               struct gd_grade *grade)
{
    cJSON *out = cJSON_CreateArray();
    bool ok = true;
    for (int i = 0; ok && i < messages->count; i++) {
        const struct gd_eval_message *message = &messages->message[i];
        struct gd_buf content;
        gd_buf_init(&content, GD_GRADER_RENDER_BYTES_MAX);
        for (int p = 0; ok && p < message->part_count; p++)
            ok = gd_grader_text_render(&message->parts[p], item, sample, &content, grade);
        cJSON *json = cJSON_CreateObject();
        cJSON_AddStringToObject(json, "role", message->role);
        cJSON_AddStringToObject(json, "content", content.data != NULL ? content.data : "");
        cJSON_AddItemToArray(out, json);
        gd_buf_release(&content);
    }
    if (ok)
        return out;
    cJSON_Delete(out);
    return NULL;
}

bool gd_eval_messages_references(const struct gd_eval_messages *messages, const char *path, gd_reference_seen seen,
                                 void *context, struct gd_error *err)
{
    bool ok = true;
    for (int i = 0; ok && i < messages->count; i++) {
        char *at = gd_format("%s[%d]", path, i);
        for (int p = 0; ok && p < messages->message[i].part_count; p++)
            ok = gd_grader_text_references(&messages->message[i].parts[p], at, "content", seen, context, err);
        gd_free(at);
    }
    return ok;
}

/* ---- sampling ---- */

/* Both spellings: OpenAI's graders say max_completions_tokens, its runs say either. */
static bool read_max_tokens(const cJSON *json, const char *path, int64_t *out, struct gd_error *err)
{
    int64_t one = -1, other = -1;
    if (!gd_json_get_int(json, path, "max_completion_tokens", false, 1, INT32_MAX, &one, err) ||
        !gd_json_get_int(json, path, "max_completions_tokens", false, 1, INT32_MAX, &other, err))
        return false;
    if (one >= 0 && other >= 0 && one != other) {
        char *param = gd_format("%s.max_completions_tokens", path);
        gd_fail_param(err, GD_INVALID, param, "%s is %lld and max_completion_tokens is %lld: they mean the same; give one",
                      param, (long long)other, (long long)one);
        gd_free(param);
        return false;
    }
    if (one >= 0 || other >= 0)
        *out = one >= 0 ? one : other;
    return true;
}

static bool refuse(const char *path, const char *key, const char *why, struct gd_error *err)
{
    char *param = gd_format("%s.%s", path, key);
    gd_fail_param(err, GD_UNSUPPORTED, param, "%s %s", param, why);
    gd_free(param);
    return false;
}

static bool check_format(const cJSON *json, const char *path, struct gd_error *err)
{
    const cJSON *format = NULL, *type;
    if (!gd_json_get_object(json, path, "response_format", false, &format, err))
        return false;
    type = format != NULL ? gd_json_find(format, "type") : NULL;
    return format == NULL || (cJSON_IsString(type) && strcmp(type->valuestring, "text") == 0) ||
           refuse(path, "response_format", "is supported as {\"type\": \"text\"} only: ask for JSON in the messages", err);
}

static bool read_tools(struct gd_eval_sampling *sampling, const cJSON *json, const char *path, struct gd_error *err)
{
    const cJSON *tools = NULL;
    if (!gd_json_get_array(json, path, "tools", false, &tools, err))
        return false;
    if (tools == NULL)
        return true;
    char *param = gd_format("%s.tools", path);
    bool ok = gd_chat_check_tools(tools, param, err);
    gd_free(param);
    if (ok)
        sampling->tools = cJSON_Duplicate(tools, true);
    return ok;
}

bool gd_eval_sampling_parse(struct gd_eval_sampling *sampling, const cJSON *json, const char *path, bool with_tools,
                            struct gd_error *err)
{
    static const char *const plain[] = {"max_completion_tokens", "max_completions_tokens", "reasoning_effort", "seed",
                                        "temperature", "top_p", NULL};
    static const char *const whole[] = {"max_completion_tokens", "max_completions_tokens", "reasoning_effort",
                                        "response_format", "seed", "temperature", "tools", "top_p", NULL};
    if (json == NULL)
        return true;
    if (!gd_json_only_known(json, path, with_tools ? whole : plain, err))
        return false;
    const cJSON *effort = gd_json_find(json, "reasoning_effort");
    if (effort != NULL && !cJSON_IsNull(effort))
        return refuse(path, "reasoning_effort", "is not supported: leave it out", err);
    return gd_json_get_number(json, path, "temperature", false, 0, 2, &sampling->temperature, err) &&
           gd_json_get_number(json, path, "top_p", false, 0, 1, &sampling->top_p, err) &&
           gd_json_get_int(json, path, "seed", false, -SEED_MAX, SEED_MAX, &sampling->seed, err) &&
           read_max_tokens(json, path, &sampling->max_tokens, err) &&
           (!with_tools || (check_format(json, path, err) && read_tools(sampling, json, path, err)));
}

void gd_eval_sampling_release(struct gd_eval_sampling *sampling)
{
    cJSON_Delete(sampling->tools);
    sampling->tools = NULL;
}

void gd_eval_sampling_apply(const struct gd_eval_sampling *sampling, struct gd_ask *ask)
{
    ask->temperature = sampling->temperature;
    ask->top_p = sampling->top_p;
    ask->seed = sampling->seed;
    ask->max_tokens = sampling->max_tokens;
    if (sampling->tools != NULL)
        ask->tools = cJSON_Duplicate(sampling->tools, true);
}
