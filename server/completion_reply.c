/* Completions as OpenAI writes them: objects, chunks, log-probabilities. */
#include "server/completion.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

#define LOGPROB_LEAST -9999.0 /* stands for minus infinity, which JSON lacks */

/* ---- pieces ---- */

/* Bytes of a piece: a string, or numbers where it is no valid UTF-8 by itself. */
static void piece_bytes(const cJSON *piece, struct gd_buf *out)
{
    const cJSON *byte;
    if (cJSON_IsString(piece)) {
        gd_buf_append_text(out, piece->valuestring);
        return;
    }
    cJSON_ArrayForEach(byte, piece)
        gd_buf_append_char(out, (char)(unsigned char)byte->valueint);
}

/* As text: bytes that are no character are written as \xNN, marked with "bytes:" in text completions (as OpenAI does). */
static char *piece_text(const cJSON *piece, bool chat)
{
    if (cJSON_IsString(piece))
        return gd_strdup(piece->valuestring);
    struct gd_buf text = {0};
    const cJSON *byte;
    gd_buf_append_text(&text, chat ? "" : "bytes:");
    cJSON_ArrayForEach(byte, piece)
        gd_buf_printf(&text, "\\x%02x", (unsigned)(unsigned char)byte->valueint);
    return gd_buf_take(&text);
}

int64_t gd_completion_piece_characters(const cJSON *token)
{
    struct gd_buf bytes = {0};
    int64_t count = 0;
    piece_bytes(gd_json_find(token, "piece"), &bytes);
    for (size_t i = 0; i < bytes.length; i++)
        count += ((unsigned char)bytes.data[i] & 0xc0) != 0x80; /* a character is counted where it begins */
    gd_buf_release(&bytes);
    return count;
}

/* ---- log-probabilities ---- */

static double finite_logprob(const cJSON *value)
{
    return cJSON_IsNumber(value) && isfinite(value->valuedouble) ? value->valuedouble : LOGPROB_LEAST;
}

/* The token's own, taken from the alternatives when it is among them: equal numbers are then written equally. */
static double token_logprob(const cJSON *token)
{
    const cJSON *id = gd_json_find(token, "token"), *entry;
    cJSON_ArrayForEach(entry, gd_json_find(token, "top")) {
        const cJSON *other = cJSON_GetArrayItem(entry, 0);
        if (cJSON_IsNumber(id) && cJSON_IsNumber(other) && id->valuedouble == other->valuedouble)
            return finite_logprob(cJSON_GetArrayItem(entry, 2));
    }
    return finite_logprob(gd_json_find(token, "logprob"));
}

static cJSON *chat_entry(const cJSON *piece, double logprob)
{
    cJSON *entry = cJSON_CreateObject();
    char *text = piece_text(piece, true);
    struct gd_buf bytes = {0};
    cJSON_AddStringToObject(entry, "token", text);
    cJSON_AddNumberToObject(entry, "logprob", logprob);
    cJSON *numbers = cJSON_AddArrayToObject(entry, "bytes");
    piece_bytes(piece, &bytes);
    for (size_t i = 0; i < bytes.length; i++)
        cJSON_AddItemToArray(numbers, cJSON_CreateNumber((unsigned char)bytes.data[i]));
    gd_buf_release(&bytes);
    gd_free(text);
    return entry;
}

static void add_chat(cJSON *logprobs, const cJSON *token, int alternatives)
{
    cJSON *entry = chat_entry(gd_json_find(token, "piece"), token_logprob(token));
    cJSON *top = cJSON_AddArrayToObject(entry, "top_logprobs");
    const cJSON *other;
    cJSON_ArrayForEach(other, gd_json_find(token, "top"))
        if (cJSON_GetArraySize(top) < alternatives)
            cJSON_AddItemToArray(top, chat_entry(cJSON_GetArrayItem(other, 1), finite_logprob(cJSON_GetArrayItem(other, 2))));
    cJSON_AddItemToArray(gd_json_find(logprobs, "content"), entry);
}

static void add_alternative(cJSON *top, const cJSON *piece, double logprob)
{
    char *text = piece_text(piece, false);
    if (gd_json_find(top, text) == NULL) /* the likelier one stands */
        cJSON_AddNumberToObject(top, text, logprob);
    gd_free(text);
}

static void add_text(cJSON *logprobs, const cJSON *token, int alternatives, int64_t offset)
{
    const cJSON *piece = gd_json_find(token, "piece"), *other;
    bool known = !cJSON_IsNull(gd_json_find(token, "logprob")); /* not of a prompt's first token: nothing precedes it */
    char *text = piece_text(piece, false);
    cJSON *top = known ? cJSON_CreateObject() : cJSON_CreateNull();
    int shown = 0;
    cJSON_ArrayForEach(other, gd_json_find(token, "top"))
        if (known && shown++ < alternatives)
            add_alternative(top, cJSON_GetArrayItem(other, 1), finite_logprob(cJSON_GetArrayItem(other, 2)));
    if (known)
        add_alternative(top, piece, token_logprob(token));
    cJSON_AddItemToArray(gd_json_find(logprobs, "tokens"), cJSON_CreateString(text));
    cJSON_AddItemToArray(gd_json_find(logprobs, "token_logprobs"),
                         known ? cJSON_CreateNumber(token_logprob(token)) : cJSON_CreateNull());
    cJSON_AddItemToArray(gd_json_find(logprobs, "top_logprobs"), top);
    cJSON_AddItemToArray(gd_json_find(logprobs, "text_offset"), cJSON_CreateNumber((double)offset));
    gd_free(text);
}

cJSON *gd_completion_logprobs(bool chat)
{
    static const char *const arrays[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
    cJSON *logprobs = cJSON_CreateObject();
    if (chat) {
        cJSON_AddArrayToObject(logprobs, "content");
        cJSON_AddNullToObject(logprobs, "refusal");
    }
    for (size_t i = 0; !chat && i < GD_COUNT(arrays); i++)
        cJSON_AddArrayToObject(logprobs, arrays[i]);
    return logprobs;
}

void gd_completion_logprobs_add(cJSON *logprobs, bool chat, const cJSON *token, int alternatives, int64_t offset)
{
    if (chat)
        add_chat(logprobs, token, alternatives);
    else
        add_text(logprobs, token, alternatives, offset);
}

/* ---- objects ---- */

static cJSON *or_null(const char *text)
{
    return text != NULL ? cJSON_CreateString(text) : cJSON_CreateNull();
}

cJSON *gd_completion_choice(const struct gd_completion_head *head, int index, const char *text, cJSON *logprobs_taken,
                            const char *finish, bool role_first)
{
    cJSON *choice = cJSON_CreateObject();
    cJSON_AddNumberToObject(choice, "index", index);
    if (!head->chat) {
        cJSON_AddStringToObject(choice, "text", text != NULL ? text : "");
    } else if (!head->chunk) {
        cJSON *message = cJSON_AddObjectToObject(choice, "message");
        cJSON_AddStringToObject(message, "role", "assistant");
        cJSON_AddStringToObject(message, "content", text != NULL ? text : "");
        cJSON_AddNullToObject(message, "refusal");
    } else {
        cJSON *delta = cJSON_AddObjectToObject(choice, "delta");
        if (role_first)
            cJSON_AddStringToObject(delta, "role", "assistant");
        if (role_first || text != NULL)
            cJSON_AddStringToObject(delta, "content", text != NULL ? text : "");
    }
    cJSON_AddItemToObject(choice, "logprobs", logprobs_taken != NULL ? logprobs_taken : cJSON_CreateNull());
    cJSON_AddItemToObject(choice, "finish_reason", or_null(finish));
    return choice;
}

static cJSON *usage_json(const struct gd_completion_usage *usage)
{
    cJSON *out = cJSON_CreateObject();
    cJSON_AddNumberToObject(out, "prompt_tokens", (double)usage->prompt_tokens);
    cJSON_AddNumberToObject(out, "completion_tokens", (double)usage->completion_tokens);
    cJSON_AddNumberToObject(out, "total_tokens", (double)(usage->prompt_tokens + usage->completion_tokens));
    cJSON *details = cJSON_AddObjectToObject(out, "prompt_tokens_details");
    cJSON_AddNumberToObject(details, "cached_tokens", (double)usage->cached_tokens);
    return out;
}

cJSON *gd_completion_json(const struct gd_completion_head *head, cJSON *choices_taken,
                          const struct gd_completion_usage *usage, bool null_usage)
{
    cJSON *out = cJSON_CreateObject();
    cJSON_AddStringToObject(out, "id", head->id);
    cJSON_AddStringToObject(out, "object", !head->chat   ? "text_completion"
                                           : head->chunk ? "chat.completion.chunk"
                                                         : "chat.completion");
    cJSON_AddNumberToObject(out, "created", (double)head->created);
    cJSON_AddStringToObject(out, "model", head->model);
    cJSON_AddItemToObject(out, "choices", choices_taken != NULL ? choices_taken : cJSON_CreateArray());
    if (usage != NULL)
        cJSON_AddItemToObject(out, "usage", usage_json(usage));
    else if (null_usage)
        cJSON_AddNullToObject(out, "usage");
    cJSON_AddStringToObject(out, "system_fingerprint", "fp_graftd_" GD_VERSION);
    return out;
}
