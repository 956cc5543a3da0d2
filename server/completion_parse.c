/* What a completion request asks, field by field. */
#include "server/completion.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/text/chat.h"
#include "server/gather.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define N_MAX 128
#define BEST_OF_MAX 20
#define STOP_BYTES_MAX 1024
#define BIAS_COUNT_MAX 4096
#define TOOLS_MAX 128
#define MAX_TOKENS_DEFAULT 16         /* of text completions */
#define IGNORED_BYTES_MAX 1024
#define SEED_MAX (INT64_C(1) << 53)

void gd_completion_ask_release(struct gd_completion_ask *ask)
{
    gd_free(ask->prompts);
    cJSON_Delete(ask->sampling);
    gd_free(ask->ignored);
    *ask = (struct gd_completion_ask){0};
}

/* ---- sampling ---- */

static bool add_number(struct gd_completion_ask *ask, const cJSON *body, const char *name, double min, double max,
                       double otherwise, struct gd_error *err)
{
    double value = otherwise;
    if (!gd_json_get_number(body, "", name, false, min, max, &value, err))
        return false;
    cJSON_AddNumberToObject(ask->sampling, name, value);
    return true;
}

static bool add_seed(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    int64_t seed = -1;
    const cJSON *given = gd_json_find(body, "seed");
    if (given != NULL && !cJSON_IsNull(given)) {
        if (!gd_json_get_int(body, "", "seed", false, -SEED_MAX, SEED_MAX, &seed, err))
            return false;
    } else {
        gd_random_bytes(&seed, sizeof seed);
        seed &= INT64_MAX;
    }
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, seed);
    cJSON_AddStringToObject(ask->sampling, "seed", text);
    return true;
}

static bool add_stop(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    cJSON *stops = cJSON_AddArrayToObject(ask->sampling, "stop");
    const cJSON *given = gd_json_find(body, "stop");
    if (given == NULL || cJSON_IsNull(given))
        return true;
    if (!cJSON_IsString(given) && !cJSON_IsArray(given))
        return gd_fail_param(err, GD_INVALID, "stop", "stop must be a string or an array of strings");
    int count = cJSON_IsArray(given) ? cJSON_GetArraySize(given) : 1;
    if (count > GD_COMPLETION_STOPS_MAX)
        return gd_fail_param(err, GD_INVALID, "stop", "stop has %d strings; it may have up to %d", count,
                             GD_COMPLETION_STOPS_MAX);
    const cJSON *item = cJSON_IsArray(given) ? given->child : given;
    for (int i = 0; i < count; i++, item = item->next) {
        char param[32];
        snprintf(param, sizeof param, cJSON_IsArray(given) ? "stop[%d]" : "stop", i);
        size_t length = cJSON_IsString(item) ? strlen(item->valuestring) : 0;
        if (length < 1 || length > STOP_BYTES_MAX)
            return gd_fail_param(err, GD_INVALID, param, "%s must be a string of 1 to %d bytes", param, STOP_BYTES_MAX);
        cJSON_AddItemToArray(stops, cJSON_CreateString(item->valuestring));
    }
    return true;
}

static bool add_logit_bias(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    const cJSON *given = NULL, *item;
    if (!gd_json_get_object(body, "", "logit_bias", false, &given, err))
        return false;
    if (given == NULL)
        return true;
    int count = cJSON_GetArraySize(given);
    if (count > BIAS_COUNT_MAX)
        return gd_fail_param(err, GD_INVALID, "logit_bias", "logit_bias has %d entries; it may have up to %d", count,
                             BIAS_COUNT_MAX);
    cJSON_ArrayForEach(item, given) {
        size_t digits = strspn(item->string, "0123456789");
        if (digits == 0 || digits > 9 || item->string[digits] != '\0')
            return gd_fail_param(err, GD_INVALID, "logit_bias", "logit_bias key '%.40s' is not a token id", item->string);
        if (!cJSON_IsNumber(item) || item->valuedouble < -100 || item->valuedouble > 100)
            return gd_fail_param(err, GD_INVALID, "logit_bias", "logit_bias of token %s must be a number from -100 to 100",
                                 item->string);
    }
    cJSON_AddItemToObject(ask->sampling, "logit_bias", cJSON_Duplicate(given, true));
    return true;
}

static bool add_max_tokens(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    int64_t given = -1, completion = -1, least = ask->chat ? 1 : 0;
    if (!gd_json_get_int(body, "", "max_tokens", false, least, INT32_MAX, &given, err) ||
        (ask->chat && !gd_json_get_int(body, "", "max_completion_tokens", false, least, INT32_MAX, &completion, err)))
        return false;
    if (given >= 0 && completion >= 0 && given != completion)
        return gd_fail_param(err, GD_INVALID, "max_tokens",
                             "max_tokens is %" PRId64 " and max_completion_tokens is %" PRId64 ": they mean the same; give one",
                             given, completion);
    int64_t value = completion >= 0 ? completion : given;
    if (value < 0 && !ask->chat)
        value = MAX_TOKENS_DEFAULT;
    cJSON_AddItemToObject(ask->sampling, "max_tokens", value >= 0 ? cJSON_CreateNumber((double)value) : cJSON_CreateNull());
    return true;
}

static bool add_logprobs(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    int64_t count = -1;
    ask->logprobs = -1;
    if (ask->chat) {
        bool wanted = false;
        if (!gd_json_get_bool(body, "", "logprobs", false, &wanted, err) ||
            !gd_json_get_int(body, "", "top_logprobs", false, 0, GD_COMPLETION_TOP_LOGPROBS_MAX, &count, err))
            return false;
        if (count >= 0 && !wanted)
            return gd_fail_param(err, GD_INVALID, "top_logprobs", "top_logprobs needs \"logprobs\": true");
        ask->logprobs = !wanted ? -1 : count >= 0 ? (int)count : 0;
    } else {
        if (!gd_json_get_int(body, "", "logprobs", false, 0, GD_COMPLETION_LOGPROBS_MAX, &count, err))
            return false;
        ask->logprobs = (int)count;
    }
    /* best_of ranks by log-probability, shown or not. */
    int needed = ask->logprobs < 0 && ask->best_of > ask->n ? 0 : ask->logprobs;
    cJSON_AddNumberToObject(ask->sampling, "logprobs", needed);
    return true;
}

static bool parse_sampling(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    bool ignore_eos = false;
    ask->sampling = cJSON_CreateObject();
    bool ok = add_number(ask, body, "temperature", 0, 2, 1, err) && add_number(ask, body, "top_p", 0, 1, 1, err) &&
              add_number(ask, body, "min_p", 0, 1, 0, err) && add_number(ask, body, "frequency_penalty", -2, 2, 0, err) &&
              add_number(ask, body, "presence_penalty", -2, 2, 0, err) &&
              add_number(ask, body, "repetition_penalty", 0.01, 100, 1, err) && add_seed(ask, body, err) &&
              add_stop(ask, body, err) && add_logit_bias(ask, body, err) && add_max_tokens(ask, body, err) &&
              add_logprobs(ask, body, err) && gd_json_get_bool(body, "", "ignore_eos", false, &ignore_eos, err);
    int64_t top_k = 0;
    ok = ok && gd_json_get_int(body, "", "top_k", false, 0, INT32_MAX, &top_k, err);
    cJSON_AddNumberToObject(ask->sampling, "top_k", (double)top_k);
    cJSON_AddBoolToObject(ask->sampling, "ignore_eos", ignore_eos);
    cJSON_AddBoolToObject(ask->sampling, "echo", ask->echo);
    return ok;
}

/* ---- how many, and streamed or not ---- */

static bool parse_stream(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    const cJSON *options = NULL;
    if (!gd_json_get_bool(body, "", "stream", false, &ask->stream, err) ||
        !gd_json_get_object(body, "", "stream_options", false, &options, err))
        return false;
    if (options != NULL && !ask->stream)
        return gd_fail_param(err, GD_INVALID, "stream_options", "stream_options needs \"stream\": true");
    return options == NULL ||
           gd_json_get_bool(options, "stream_options", "include_usage", false, &ask->include_usage, err);
}

static bool parse_counts(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    int64_t n = 1, best_of = -1;
    if (!gd_json_get_int(body, "", "n", false, 1, N_MAX, &n, err) ||
        (!ask->chat && !gd_json_get_int(body, "", "best_of", false, 0, BEST_OF_MAX, &best_of, err)))
        return false;
    if (best_of <= 0)
        best_of = n;
    if (best_of < n)
        return gd_fail_param(err, GD_INVALID, "best_of", "best_of is %" PRId64 " and n is %" PRId64 ": best_of must not be less",
                             best_of, n);
    if (best_of > n && ask->stream)
        return gd_fail_param(err, GD_INVALID, "best_of", "the best of %" PRId64 " is known at the end only: leave out stream or "
                             "best_of", best_of);
    if (ask->prompt_count > GD_COMPLETION_CHOICES_MAX / best_of)
        return gd_fail_param(err, GD_INVALID, ask->chat ? "n" : "prompt",
                             "%d prompts with %" PRId64 " completions each are more than the %d that one request may ask for",
                             ask->prompt_count, best_of, GD_COMPLETION_CHOICES_MAX);
    ask->n = (int)n;
    ask->best_of = (int)best_of;
    return true;
}

/* ---- chat ---- */

static bool parse_tools(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    const cJSON *tools = NULL, *tool;
    if (!gd_json_get_array(body, "", "tools", false, &tools, err))
        return false;
    int count = tools != NULL ? cJSON_GetArraySize(tools) : 0;
    if (count > TOOLS_MAX)
        return gd_fail_param(err, GD_INVALID, "tools", "tools has %d entries; it may have up to %d", count, TOOLS_MAX);
    int index = 0;
    cJSON_ArrayForEach(tool, tools) {
        char path[32];
        const char *type = NULL, *name = NULL;
        const cJSON *function = NULL;
        snprintf(path, sizeof path, "tools[%d]", index++);
        if (!cJSON_IsObject(tool))
            return gd_fail_param(err, GD_INVALID, path, "%s must be an object", path);
        if (!gd_json_get_string(tool, path, "type", true, 1, 64, &type, err))
            return false;
        if (strcmp(type, "function") != 0) {
            strcat(path, ".type");
            return gd_fail_param(err, GD_UNSUPPORTED, path, "tools of type '%s' are not supported; 'function' is", type);
        }
        if (!gd_json_get_object(tool, path, "function", true, &function, err))
            return false;
        strcat(path, ".function");
        if (!gd_json_get_string(function, path, "name", true, 1, 256, &name, err))
            return false;
    }
    ask->tools = count > 0 ? tools : NULL;
    return true;
}

static bool parse_tool_choice(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    const cJSON *choice = gd_json_find(body, "tool_choice");
    const char *text = cJSON_IsString(choice) ? choice->valuestring : "";
    if (choice == NULL || cJSON_IsNull(choice) || strcmp(text, "auto") == 0)
        return true;
    if (strcmp(text, "none") == 0) {
        ask->tools = NULL; /* the model is not told of any */
        return true;
    }
    if (strcmp(text, "required") == 0 || cJSON_IsObject(choice))
        return gd_fail_param(err, GD_UNSUPPORTED, "tool_choice",
                             "a call of a tool cannot be forced: use 'auto' or 'none', and say in the messages what is wanted");
    return gd_fail_param(err, GD_INVALID, "tool_choice", "tool_choice must be 'none' or 'auto'");
}

static bool parse_response_format(const cJSON *body, struct gd_error *err)
{
    const cJSON *format = NULL;
    const char *type = NULL;
    if (!gd_json_get_object(body, "", "response_format", false, &format, err) || format == NULL)
        return err->code == GD_OK;
    if (!gd_json_get_string(format, "response_format", "type", true, 1, 64, &type, err))
        return false;
    return strcmp(type, "text") == 0 ||
           gd_fail_param(err, GD_UNSUPPORTED, "response_format.type",
                         "response_format '%s' is not supported; 'text' is: ask for the format in the messages and check the "
                         "answer", type);
}

/* What would change the answer's meaning must not be dropped. */
static bool refuse_other_media(const cJSON *body, struct gd_error *err)
{
    static const char *const refused[][2] = {
        {"audio", "audio is not supported: leave it out"},
        {"functions", "functions is not supported: give tools instead"},
        {"function_call", "function_call is not supported: give tools and tool_choice instead"},
        {"web_search_options", "this server does not search the web: leave web_search_options out"},
    };
    for (size_t i = 0; i < GD_COUNT(refused); i++) {
        const cJSON *value = gd_json_find(body, refused[i][0]);
        if (value != NULL && !cJSON_IsNull(value))
            return gd_fail_param(err, GD_UNSUPPORTED, refused[i][0], "%s", refused[i][1]);
    }
    const cJSON *modalities = NULL, *one;
    if (!gd_json_get_array(body, "", "modalities", false, &modalities, err))
        return false;
    cJSON_ArrayForEach(one, modalities)
        if (!cJSON_IsString(one) || strcmp(one->valuestring, "text") != 0)
            return gd_fail_param(err, GD_UNSUPPORTED, "modalities", "only the modality 'text' is supported");
    return true;
}

static bool parse_chat(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    if (!gd_json_get_array(body, "", "messages", true, &ask->messages, err) ||
        !gd_chat_check_messages(ask->messages, "messages", false, err))
        return false;
    ask->prompt_count = 1;
    if (!gd_chat_check_kwargs(gd_json_find(body, "chat_template_kwargs"), "chat_template_kwargs", err) ||
        !gd_json_get_object(body, "", "chat_template_kwargs", false, &ask->template_kwargs, err))
        return false;
    return parse_tools(ask, body, err) && parse_tool_choice(ask, body, err) && parse_response_format(body, err) &&
           refuse_other_media(body, err);
}

/* ---- text ---- */

static bool check_ids(const cJSON *ids, const char *param, struct gd_error *err)
{
    if (ids->child == NULL)
        return gd_fail_param(err, GD_INVALID, param, "%s is empty: give at least one token", param);
    return gd_gather_check_ids(ids, param, err);
}

static bool parse_prompts(struct gd_completion_ask *ask, const cJSON *prompt, struct gd_error *err)
{
    int count = cJSON_GetArraySize(prompt), index = 0;
    if (count == 0)
        return gd_fail_param(err, GD_INVALID, "prompt", "prompt is an empty array: give at least one prompt");
    if (count > GD_COMPLETION_CHOICES_MAX)
        return gd_fail_param(err, GD_INVALID, "prompt", "prompt has %d prompts; it may have up to %d", count,
                             GD_COMPLETION_CHOICES_MAX);
    bool texts = cJSON_IsString(prompt->child);
    const cJSON *one;
    ask->prompts = gd_alloc_array((size_t)count, sizeof *ask->prompts);
    cJSON_ArrayForEach(one, prompt) {
        char param[32];
        snprintf(param, sizeof param, "prompt[%d]", index++);
        if (texts ? !cJSON_IsString(one) : !cJSON_IsArray(one))
            return gd_fail_param(err, GD_INVALID, param, "%s is of another kind than prompt[0]: all must be strings, or all arrays "
                                 "of token ids", param);
        if (!texts && !check_ids(one, param, err))
            return false;
        ask->prompts[ask->prompt_count++] = one;
    }
    return true;
}

static bool parse_text(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    const cJSON *prompt = gd_json_find(body, "prompt"), *suffix = gd_json_find(body, "suffix");
    if (suffix != NULL && !cJSON_IsNull(suffix) && !(cJSON_IsString(suffix) && suffix->valuestring[0] == '\0'))
        return gd_fail_param(err, GD_UNSUPPORTED, "suffix", "completions cannot be fitted in front of a suffix: leave it out");
    if (!gd_json_get_bool(body, "", "echo", false, &ask->echo, err))
        return false;
    if (prompt == NULL || cJSON_IsNull(prompt))
        return gd_fail_param(err, GD_MISSING, "prompt", "prompt is missing: give a string, an array of strings, an array of token "
                             "ids, or an array of such arrays");
    if (cJSON_IsArray(prompt) && !cJSON_IsNumber(prompt->child))
        return parse_prompts(ask, prompt, err);
    if (!cJSON_IsString(prompt) && !cJSON_IsArray(prompt))
        return gd_fail_param(err, GD_INVALID, "prompt", "prompt must be a string, an array of strings, an array of token ids, or "
                             "an array of such arrays");
    if (cJSON_IsArray(prompt) && !check_ids(prompt, "prompt", err))
        return false;
    ask->prompts = gd_alloc_array(1, sizeof *ask->prompts);
    ask->prompts[ask->prompt_count++] = prompt;
    return true;
}

/* ---- what is ignored ---- */

static const char *const honoured_both[] = {
    "model", "stream", "stream_options", "n", "max_tokens", "stop", "seed", "temperature", "top_p", "frequency_penalty",
    "presence_penalty", "logit_bias", "logprobs", "top_k", "min_p", "repetition_penalty", "ignore_eos", "task", NULL};
static const char *const honoured_chat[] = {
    "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "chat_template_kwargs", "response_format", "modalities", "audio",
    "functions", "function_call", "web_search_options", NULL};
static const char *const honoured_text[] = {"prompt", "suffix", "best_of", "echo", NULL};

static bool is_in(const char *name, const char *const *names)
{
    for (; *names != NULL; names++)
        if (strcmp(name, *names) == 0)
            return true;
    return false;
}

/* A header line: whatever is not a plain name character becomes '?'. */
static void list_ignored(struct gd_completion_ask *ask, const cJSON *body)
{
    struct gd_buf names;
    gd_buf_init(&names, 2 * IGNORED_BYTES_MAX);
    int left_out = 0;
    const cJSON *member;
    cJSON_ArrayForEach(member, body) {
        if (cJSON_IsNull(member) || is_in(member->string, honoured_both) ||
            is_in(member->string, ask->chat ? honoured_chat : honoured_text))
            continue;
        if (names.length + strlen(member->string) > IGNORED_BYTES_MAX) {
            left_out++;
            continue;
        }
        gd_buf_append_text(&names, names.length > 0 ? ", " : "");
        for (const char *c = member->string; *c != '\0'; c++) {
            bool plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') ||
                         strchr("_-.", *c) != NULL;
            gd_buf_append_char(&names, plain ? *c : '?');
        }
    }
    if (left_out > 0)
        gd_buf_printf(&names, "%sand %d more", names.length > 0 ? ", " : "", left_out);
    if (names.length > 0)
        ask->ignored = gd_buf_take(&names);
    gd_buf_release(&names);
}

/* A name, or a number as rows have it. */
static bool parse_task(struct gd_completion_ask *ask, const cJSON *body, struct gd_error *err)
{
    const cJSON *task = gd_json_find(body, "task");
    const char *name = NULL;
    int64_t number = 0;
    if (!cJSON_IsNumber(task)) {
        bool ok = gd_json_get_string(body, "", "task", false, 1, sizeof ask->task - 1, &name, err);
        snprintf(ask->task, sizeof ask->task, "%s", ok && name != NULL ? name : "");
        return ok;
    }
    bool ok = gd_json_get_int(body, "", "task", false, 0, INT32_MAX, &number, err);
    snprintf(ask->task, sizeof ask->task, "%" PRId64, number);
    return ok;
}

bool gd_completion_parse(struct gd_completion_ask *ask, bool chat, const cJSON *body, struct gd_error *err)
{
    *ask = (struct gd_completion_ask){.chat = chat};
    bool ok = gd_json_get_string(body, "", "model", true, 1, 512, &ask->model, err) && parse_task(ask, body, err) &&
              (chat ? parse_chat(ask, body, err) : parse_text(ask, body, err)) && parse_stream(ask, body, err) &&
              parse_counts(ask, body, err) && parse_sampling(ask, body, err);
    if (ok)
        list_ignored(ask, body);
    else
        gd_completion_ask_release(ask);
    return ok;
}
