#include "engine/text/chat.h"
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/text/chat_view.h"
#include <assert.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>

struct variant {
    struct gd_template *tmpl; /* NULL: the model has none */
    struct gd_chat_habits habits;
};

struct gd_chat {
    const struct gd_tokenizer *tokenizer;
    struct variant plain, with_tools; /* with_tools: when tools are given and it is there */
    char digest[65];
    int64_t now; /* what strftime_now sees; 0 = the real clock */
};

static const struct variant *pick(const struct gd_chat *chat, const cJSON *tools)
{
    return chat->with_tools.tmpl != NULL && cJSON_GetArraySize(tools) > 0 ? &chat->with_tools : &chat->plain;
}

/* The first `count` messages of `view` through the template. */
static bool render(const struct gd_chat *chat, const struct variant *variant, const cJSON *view, int count,
                   const cJSON *tools, const cJSON *kwargs, bool add_prompt, struct gd_buf *text,
                   struct gd_render_spans *spans, struct gd_error *err)
{
    static const char *const names[] = {"bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token",
                                        "mask_token"};
    cJSON *variables = cJSON_CreateObject(), *messages = cJSON_AddArrayToObject(variables, "messages");
    const cJSON *message = view->child;
    for (int i = 0; i < count; i++, message = message->next)
        cJSON_AddItemReferenceToArray(messages, (cJSON *)message);
    if (cJSON_GetArraySize(tools) > 0)
        cJSON_AddItemReferenceToObject(variables, "tools", (cJSON *)tools);
    else
        cJSON_AddNullToObject(variables, "tools");
    if (gd_json_find(kwargs, "documents") == NULL)
        cJSON_AddNullToObject(variables, "documents");
    if (kwargs != NULL)
        cJSON_AddItemReferenceToObject(variables, GD_TEMPLATE_MORE, (cJSON *)kwargs);
    cJSON_AddBoolToObject(variables, "add_generation_prompt", add_prompt);
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        const char *token = gd_tokenizer_token(chat->tokenizer, gd_tokenizer_named(chat->tokenizer, names[i]));
        if (token != NULL)
            cJSON_AddStringToObject(variables, names[i], token);
    }
    if (chat->now != 0)
        cJSON_AddNumberToObject(variables, GD_TEMPLATE_NOW, (double)chat->now);
    bool ok = gd_template_render(variant->tmpl, variables, text, spans, err);
    cJSON_Delete(variables);
    return ok;
}

/* A short conversation with a tool call, to see how the template takes its parts. */
static const char probe[] =
    "[{\"role\":\"user\",\"content\":\"question\"},"
    "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"call00001\",\"type\":\"function\","
    "\"function\":{\"name\":\"find\",\"arguments\":\"{\\\"needle\\\": \\\"hay\\\"}\"}}]},"
    "{\"role\":\"tool\",\"tool_call_id\":\"call00001\",\"name\":\"find\",\"content\":\"straw\"},"
    "{\"role\":\"assistant\",\"content\":\"answer\"}]";

/* True when these habits render the probe with the argument `named` so and without a stray None. */
static bool probe_fits(const struct gd_chat *chat, const struct variant *variant, const cJSON *messages, const char *named)
{
    struct gd_error ignored = {0};
    struct gd_buf text;
    gd_buf_init(&text, 0);
    cJSON *view = gd_chat_view(messages, &variant->habits);
    bool fits = render(chat, variant, view, cJSON_GetArraySize(view), NULL, NULL, false, &text, NULL, &ignored) &&
                text.length > 0 &&
                strstr(text.data, named) != NULL && strstr(text.data, "None") == NULL;
    cJSON_Delete(view);
    gd_buf_release(&text);
    return fits;
}

/* Arguments as an object, else as text; content null, else "". The first that fits, with the arguments as JSON, else in a notation of
 * the template's own (needle="hay"); nothing fits: object and null. */
static void learn_habits(const struct gd_chat *chat, struct variant *variant, const char *source)
{
    struct gd_error ignored = {0};
    struct gd_chat_habits *habits = &variant->habits;
    habits->keeps_developer = strstr(source, "developer") != NULL;
    habits->has_tools = strstr(source, "tools") != NULL;
    habits->has_tool_calls = strstr(source, "tool_calls") != NULL;
    if (!habits->has_tool_calls)
        return;
    cJSON *messages = gd_json_parse(probe, strlen(probe), sizeof probe, &ignored);
    bool fits = false;
    for (int i = 0; i < 8 && !fits; i++) {
        habits->arguments_as_text = i % 4 >= 2;
        habits->empty_for_null = i % 2 == 1;
        fits = probe_fits(chat, variant, messages, i < 4 ? "\"needle\"" : "needle");
    }
    if (!fits)
        habits->arguments_as_text = habits->empty_for_null = false;
    cJSON_Delete(messages);
}

static bool add_variant(struct gd_chat *chat, struct variant *variant, const char *source, struct gd_error *err)
{
    if (!gd_template_compile(&variant->tmpl, source, strlen(source), err))
        return false;
    learn_habits(chat, variant, source);
    return true;
}

bool gd_chat_create(struct gd_chat **out, const struct gd_tokenizer *tokenizer, const char *template_source,
                    struct gd_error *err)
{
    assert(tokenizer != NULL);
    struct gd_chat *chat = gd_alloc(sizeof *chat);
    chat->tokenizer = tokenizer;
    if (template_source != NULL) {
        if (!add_variant(chat, &chat->plain, template_source, err)) {
            gd_free(chat);
            return false;
        }
        gd_hash_sha256(template_source, strlen(template_source), chat->digest);
    }
    *out = chat;
    return true;
}

bool gd_chat_add_tools_template(struct gd_chat *chat, const char *source, struct gd_error *err)
{
    assert(chat->plain.tmpl != NULL && chat->with_tools.tmpl == NULL);
    if (!add_variant(chat, &chat->with_tools, source, err))
        return false;
    char *both = gd_format("%s %s", chat->digest, source);
    gd_hash_sha256(both, strlen(both), chat->digest);
    gd_free(both);
    return true;
}

void gd_chat_destroy(struct gd_chat *chat)
{
    if (chat == NULL)
        return;
    gd_template_destroy(chat->plain.tmpl);
    gd_template_destroy(chat->with_tools.tmpl);
    gd_free(chat);
}

bool gd_chat_has_template(const struct gd_chat *chat)
{
    return chat->plain.tmpl != NULL;
}

void gd_chat_template_digest(const struct gd_chat *chat, char out[65])
{
    memcpy(out, chat->digest, 65);
}

void gd_chat_set_now(struct gd_chat *chat, int64_t unix_seconds)
{
    chat->now = unix_seconds;
}

void gd_chat_encoding_release(struct gd_chat_encoding *encoding)
{
    gd_tokens_release(&encoding->tokens);
    gd_free(encoding->weights);
    gd_buf_release(&encoding->text);
    memset(encoding, 0, sizeof *encoding);
}

static void init_encoding(struct gd_chat_encoding *encoding)
{
    memset(encoding, 0, sizeof *encoding);
    gd_buf_init(&encoding->text, 0);
    encoding->tokens.with_offsets = true;
}

static bool finish(bool ok, struct gd_chat_encoding *encoding)
{
    if (!ok)
        gd_chat_encoding_release(encoding);
    return ok;
}

/* What the template has no place for would be dropped without a word. */
static bool check_fits(const struct gd_chat *chat, const cJSON *messages, const cJSON *tools, struct gd_error *err)
{
    const struct gd_chat_habits *habits = &pick(chat, tools)->habits;
    const cJSON *message;
    int index = 0;
    if (chat->plain.tmpl == NULL)
        return gd_fail_param(err, GD_UNSUPPORTED, "messages",
                             "this model has no chat template; use prompts and completions instead of messages");
    if (cJSON_GetArraySize(tools) > 0 && !habits->has_tools)
        return gd_fail_param(err, GD_UNSUPPORTED, "tools", "this model's chat template has no place for tools");
    cJSON_ArrayForEach(message, messages) {
        bool calls = cJSON_IsArray(gd_json_find(message, "tool_calls")) ||
                     cJSON_IsObject(gd_json_find(message, "function_call"));
        char path[64];
        (void)snprintf(path, sizeof path, "messages[%d].tool_calls", index++);
        if (calls && !habits->has_tool_calls)
            return gd_fail_param(err, GD_UNSUPPORTED, path, "%s: this model's chat template has no place for tool calls",
                                 path);
    }
    return true;
}

/* The template's output as tokens: it writes its own bos, content yields no special token. */
static bool tokenize(const struct gd_chat *chat, const struct gd_render_spans *spans, struct gd_chat_encoding *encoding,
                     struct gd_error *err)
{
    const char *text = encoding->text.data == NULL ? "" : encoding->text.data;
    if (!gd_tokenizer_encode_spans(chat->tokenizer, text, encoding->text.length, spans->template_spans,
                                   spans->template_span_count, &encoding->tokens, err))
        return false;
    encoding->weights = gd_alloc_array((size_t)encoding->tokens.count + 1, sizeof *encoding->weights);
    return true;
}

/* Nothing that is asked for is dropped, and nothing that the conversation says is hidden. */
static bool check_kwargs(const struct gd_chat *chat, const cJSON *kwargs, const cJSON *tools, struct gd_error *err)
{
    static const char *const taken[] = {"messages", "tools", "add_generation_prompt", GD_TEMPLATE_NOW, GD_TEMPLATE_MORE};
    for (const cJSON *item = kwargs != NULL ? kwargs->child : NULL; item != NULL; item = item->next) {
        char path[128];
        bool filled = gd_tokenizer_named(chat->tokenizer, item->string) >= 0;
        (void)snprintf(path, sizeof path, "chat_template_kwargs.%.80s", item->string);
        for (size_t i = 0; i < GD_COUNT(taken); i++)
            filled = filled || strcmp(item->string, taken[i]) == 0;
        if (filled)
            return gd_fail_param(err, GD_INVALID, path, "%s is filled by the request and the model, leave it out", path);
        if (!gd_template_reads(pick(chat, tools)->tmpl, item->string))
            return gd_fail_param(err, GD_UNSUPPORTED, path, "this model's chat template does not read '%.80s'", item->string);
    }
    return true;
}

bool gd_chat_encode_prompt(const struct gd_chat *chat, const cJSON *messages, const cJSON *tools,
                           struct gd_chat_encoding *out, struct gd_error *err)
{
    return gd_chat_encode_prompt_with(chat, messages, tools, NULL, out, err);
}

bool gd_chat_encode_prompt_with(const struct gd_chat *chat, const cJSON *messages, const cJSON *tools, const cJSON *kwargs,
                                struct gd_chat_encoding *out, struct gd_error *err)
{
    struct gd_render_spans spans = {0};
    init_encoding(out);
    if (!gd_chat_check_messages(messages, "messages", false, err) || !gd_chat_check_tools(tools, "tools", err) ||
        !check_fits(chat, messages, tools, err) || !check_kwargs(chat, kwargs, tools, err))
        return finish(false, out);
    cJSON *view = gd_chat_view(messages, &pick(chat, tools)->habits);
    bool ok = render(chat, pick(chat, tools), view, cJSON_GetArraySize(view), tools, kwargs, true, &out->text, &spans, err) &&
              tokenize(chat, &spans, out, err);
    cJSON_Delete(view);
    gd_render_spans_release(&spans);
    return finish(ok, out);
}

/* The first token that begins at or after `offset`. */
static int token_at(const struct gd_tokens *tokens, int32_t offset)
{
    int low = 0, high = tokens->count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (tokens->begin[middle] < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Weight on every token whose bytes all lie in [begin, end): one that straddles a border holds text that is not the
 * assistant's. */
static void weigh(struct gd_chat_encoding *encoding, int32_t begin, int32_t end, float weight)
{
    const struct gd_tokens *tokens = &encoding->tokens;
    for (int i = token_at(tokens, begin); i < tokens->count && tokens->begin[i] < end; i++) {
        if (tokens->end[i] <= end && tokens->begin[i] < tokens->end[i])
            encoding->weights[i] = weight;
    }
}

static float weight_of(const cJSON *message)
{
    const cJSON *weight = gd_json_find(message, "weight");
    return cJSON_IsNumber(weight) ? (float)weight->valuedouble : 1.0f;
}

static bool is_assistant(const cJSON *message)
{
    return strcmp(gd_json_find(message, "role")->valuestring, "assistant") == 0;
}

/* {% generation %} blocks in order are the assistant's messages in order. When their numbers differ, they can still
 * be weighed if all messages weigh the same. */
static bool weigh_generations(const cJSON *messages, const struct gd_render_spans *spans,
                              struct gd_chat_encoding *encoding, struct gd_error *err)
{
    const cJSON *message;
    float first = -1;
    bool equal = true;
    int assistants = 0, span = 0;
    cJSON_ArrayForEach(message, messages) {
        if (!is_assistant(message))
            continue;
        equal = equal && (assistants == 0 || weight_of(message) == first);
        first = assistants++ == 0 ? weight_of(message) : first;
    }
    if (spans->generation_span_count != assistants && (!equal || spans->generation_span_count == 0))
        return gd_fail_param(err, GD_INVALID, "messages",
                             "the chat template marks %d generation blocks for %d assistant messages, so their weights "
                             "cannot be told apart; give all of them the same weight or split the row",
                             spans->generation_span_count, assistants);
    const int32_t *at = spans->generation_spans;
    if (spans->generation_span_count != assistants) {
        for (; span < spans->generation_span_count; span++)
            weigh(encoding, at[2 * span], at[2 * span + 1], first);
        return true;
    }
    cJSON_ArrayForEach(message, messages) {
        if (!is_assistant(message))
            continue;
        weigh(encoding, at[2 * span], at[2 * span + 1], weight_of(message));
        span++;
    }
    return true;
}

/* The assistant's turn ends with its last special token (<|im_end|>, </s>, ...) when only white space follows it: that
 * newline belongs to the template's next turn. Otherwise with the whole difference. */
static int32_t turn_end(const struct gd_chat *chat, const struct gd_chat_encoding *encoding, int32_t begin, int32_t end)
{
    const struct gd_tokens *tokens = &encoding->tokens;
    for (int i = token_at(tokens, end) - 1; i >= 0 && tokens->begin[i] >= begin; i--) {
        if (tokens->end[i] > end || !gd_tokenizer_is_special(chat->tokenizer, tokens->ids[i]))
            continue;
        for (int32_t at = tokens->end[i]; at < end; at++) {
            if (!isspace((unsigned char)encoding->text.data[at]))
                return end;
        }
        return tokens->end[i];
    }
    return end;
}

static bool begins_with(const struct gd_buf *text, const struct gd_buf *prefix)
{
    return prefix->length <= text->length && (prefix->length == 0 || memcmp(text->data, prefix->data, prefix->length) == 0);
}

/* Message `index` lies between the prompt that leads to it and the conversation that ends with it. */
static bool weigh_message(const struct gd_chat *chat, const cJSON *view, int index, const cJSON *tools, const cJSON *kwargs,
                          float weight, struct gd_chat_encoding *encoding, struct gd_error *err)
{
    struct gd_buf before, after;
    gd_buf_init(&before, 0);
    gd_buf_init(&after, 0);
    bool ok = render(chat, pick(chat, tools), view, index, tools, kwargs, true, &before, NULL, err) &&
              render(chat, pick(chat, tools), view, index + 1, tools, kwargs, false, &after, NULL, err);
    if (!ok)
        gd_error_context(err, "rendering the conversation up to messages[%d], whose words are to be learned (weight 0 leaves them out)", index);
    if (ok && (!begins_with(&after, &before) || !begins_with(&encoding->text, &after)))
        ok = gd_fail_param(err, GD_INVALID, "messages",
                           "the chat template rewrites earlier turns (what leads to messages[%d] reads differently once "
                           "the conversation goes on), so the assistant's words cannot be found; give the earlier "
                           "assistant messages weight 0, or use a template with {%% generation %%} blocks", index);
    if (ok) {
        int32_t begin = (int32_t)before.length, end = (int32_t)after.length;
        weigh(encoding, begin, turn_end(chat, encoding, begin, end), weight);
    }
    gd_buf_release(&before);
    gd_buf_release(&after);
    return ok;
}

static bool weigh_prefixes(const struct gd_chat *chat, const cJSON *messages, const cJSON *view, const cJSON *tools,
                           const cJSON *kwargs, struct gd_chat_encoding *encoding, struct gd_error *err)
{
    const cJSON *message;
    int index = 0;
    cJSON_ArrayForEach(message, messages) {
        float weight = weight_of(message);
        if (is_assistant(message) && weight > 0 &&
            !weigh_message(chat, view, index, tools, kwargs, weight, encoding, err))
            return false;
        index++;
    }
    return true;
}

bool gd_chat_encode_training(const struct gd_chat *chat, const cJSON *messages, const cJSON *tools, const cJSON *kwargs,
                             struct gd_chat_encoding *out, struct gd_error *err)
{
    struct gd_render_spans spans = {0};
    init_encoding(out);
    if (!gd_chat_check_messages(messages, "messages", true, err) || !gd_chat_check_tools(tools, "tools", err) ||
        !check_fits(chat, messages, tools, err) || !check_kwargs(chat, kwargs, tools, err))
        return finish(false, out);
    cJSON *view = gd_chat_view(messages, &pick(chat, tools)->habits);
    bool ok = render(chat, pick(chat, tools), view, cJSON_GetArraySize(view), tools, kwargs, false, &out->text, &spans, err) &&
              tokenize(chat, &spans, out, err);
    if (ok)
        ok = spans.has_generation ? weigh_generations(messages, &spans, out, err)
                                  : weigh_prefixes(chat, messages, view, tools, kwargs, out, err);
    cJSON_Delete(view);
    gd_render_spans_release(&spans);
    return finish(ok, out);
}

bool gd_chat_encode_pair(const struct gd_chat *chat, const char *prompt, const char *completion,
                         struct gd_chat_encoding *out, struct gd_error *err)
{
    size_t prompt_length = strlen(prompt);
    int32_t eos = gd_tokenizer_eos(chat->tokenizer);
    init_encoding(out);
    gd_buf_append(&out->text, prompt, prompt_length);
    gd_buf_append_text(&out->text, completion);
    const char *text = out->text.data == NULL ? "" : out->text.data;
    if (out->text.overflow || out->text.length > INT32_MAX)
        return finish(gd_fail(err, GD_TOO_LARGE, "prompt and completion have more than %d bytes", INT32_MAX), out);
    if (!gd_tokenizer_encode(chat->tokenizer, text, out->text.length, GD_SPECIAL_PARSE, true, &out->tokens, err))
        return finish(false, out);
    struct gd_tokens *tokens = &out->tokens;
    int last = tokens->count - 1, end = (int)out->text.length;
    bool has_eos = last >= 0 && tokens->ids[last] == eos;
    if (eos >= 0 && !has_eos)
        gd_tokens_push(tokens, eos, end, end);
    out->weights = gd_alloc_array((size_t)tokens->count + 1, sizeof *out->weights);
    weigh(out, (int32_t)prompt_length, end, 1.0f);
    if (eos >= 0)
        out->weights[tokens->count - 1] = 1.0f;
    return true;
}

/* ---- two texts apart ---- */

void gd_chat_end_text(const struct gd_chat *chat, struct gd_tokens *tokens)
{
    int32_t eos = gd_tokenizer_eos(chat->tokenizer), end = tokens->count > 0 && tokens->with_offsets ? tokens->end[tokens->count - 1] : 0;
    if (eos >= 0 && (tokens->count == 0 || tokens->ids[tokens->count - 1] != eos))
        gd_tokens_push(tokens, eos, end, end);
}

/* Appends the tokens of a text and weighs them; offsets count from the text's begin. */
static bool append_text(const struct gd_chat *chat, const char *text, enum gd_special_mode mode, float weight,
                        struct gd_chat_encoding *out, struct gd_error *err)
{
    struct gd_tokens *tokens = &out->tokens;
    int begin = tokens->count;
    int32_t eos = gd_tokenizer_eos(chat->tokenizer), end = (int32_t)strlen(text);
    if (!gd_tokenizer_encode(chat->tokenizer, text, strlen(text), mode, true, tokens, err))
        return false;
    if (eos >= 0 && (tokens->count == begin || tokens->ids[tokens->count - 1] != eos))
        gd_tokens_push(tokens, eos, end, end);
    out->weights = gd_realloc_array(out->weights, (size_t)tokens->count + 1, sizeof *out->weights);
    for (int i = begin; i < tokens->count; i++)
        out->weights[i] = weight;
    return true;
}

bool gd_chat_encode_pair_apart(const struct gd_chat *chat, const char *prompt, const char *completion,
                               struct gd_chat_encoding *out, struct gd_error *err)
{
    init_encoding(out);
    if (!append_text(chat, prompt, GD_SPECIAL_PARSE, 0, out, err))
        return finish(false, out);
    out->encoded = out->tokens.count;
    return finish(append_text(chat, completion, GD_SPECIAL_PARSE, 1, out, err), out);
}

/* The tokens of what the template makes of all messages but the last, with eos behind them. */
static bool append_prompt(const struct gd_chat *chat, const cJSON *view, const cJSON *tools, const cJSON *kwargs,
                          struct gd_chat_encoding *out, struct gd_error *err)
{
    struct gd_render_spans spans = {0};
    bool ok = render(chat, pick(chat, tools), view, cJSON_GetArraySize(view) - 1, tools, kwargs, true, &out->text, &spans, err) &&
              tokenize(chat, &spans, out, err);
    gd_render_spans_release(&spans);
    if (ok)
        gd_chat_end_text(chat, &out->tokens);
    return ok;
}

/* One question and its answer, in texts: they need no template. */
static bool is_plain(const struct gd_chat *chat, const cJSON *view, const cJSON *tools)
{
    const cJSON *role = gd_json_find(cJSON_GetArrayItem(view, 0), "role"), *text = gd_json_find(cJSON_GetArrayItem(view, 0), "content");
    return chat->plain.tmpl == NULL && cJSON_GetArraySize(tools) == 0 && cJSON_GetArraySize(view) == 2 && strcmp(role->valuestring, "user") == 0 &&
           cJSON_IsString(text);
}

bool gd_chat_encode_training_apart(const struct gd_chat *chat, const cJSON *messages, const cJSON *tools, const cJSON *kwargs,
                                   struct gd_chat_encoding *out, struct gd_error *err)
{
    init_encoding(out);
    if (!gd_chat_check_messages(messages, "messages", true, err) || !gd_chat_check_tools(tools, "tools", err))
        return finish(false, out);
    int last = cJSON_GetArraySize(messages) - 1;
    cJSON *view = gd_chat_view(messages, &pick(chat, tools)->habits);
    const cJSON *answer = gd_json_find(cJSON_GetArrayItem(view, cJSON_GetArraySize(view) - 1), "content");
    bool ok = cJSON_IsString(answer) ||
              gd_fail_param(err, GD_INVALID, "messages", "messages[%d].content: the answer of a model with an encoder is text", last);
    if (ok && is_plain(chat, view, tools) && cJSON_GetArraySize(kwargs) == 0)
        ok = append_text(chat, gd_json_find(cJSON_GetArrayItem(view, 0), "content")->valuestring, GD_SPECIAL_AS_TEXT, 0, out, err);
    else
        ok = ok && check_fits(chat, messages, tools, err) && check_kwargs(chat, kwargs, tools, err) &&
             append_prompt(chat, view, tools, kwargs, out, err);
    out->encoded = out->tokens.count;
    if (ok) { /* weights of the prompt, as many as there are tokens now */
        gd_free(out->weights);
        out->weights = gd_alloc_array((size_t)out->tokens.count + 1, sizeof *out->weights);
        ok = append_text(chat, answer->valuestring, GD_SPECIAL_AS_TEXT, weight_of(cJSON_GetArrayItem(messages, last)), out, err);
    }
    cJSON_Delete(view);
    return finish(ok, out);
}
