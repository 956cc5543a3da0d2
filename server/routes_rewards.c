/*
 * routes_rewards.c - POST /v1/rewards: the scores that a reward model gives texts and conversations.
 *
 * Each input is a message of its own to the worker, which puts them into the batches of all others; the answer waits for the last.
 */
#include "engine/base/alloc.h"
#include "engine/text/chat.h"
#include "engine/worker/protocol.h"
#include "server/gather.h"
#include "server/handlers.h"

#include <stdio.h>
#include <string.h>

#define INPUTS_MAX 2048

struct reward_call {
    char *model;
    cJSON *messages;                 /* not sent yet, one for each input: "prompt" or "messages" */
    double *scores;
    int count;
    int64_t prompt_tokens, cached_tokens;
};

static void release(void *context)
{
    struct reward_call *call = context;
    cJSON_Delete(call->messages);
    gd_free(call->scores);
    gd_free(call->model);
    gd_free(call);
}

static cJSON *reply(void *context, double *tokens)
{
    struct reward_call *call = context;
    cJSON *out = cJSON_CreateObject();
    cJSON_AddStringToObject(out, "object", "list");
    cJSON_AddStringToObject(out, "model", call->model);
    cJSON *data = cJSON_AddArrayToObject(out, "data");
    for (int i = 0; i < call->count; i++) {
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "object", "reward");
        cJSON_AddNumberToObject(item, "index", i);
        cJSON_AddNumberToObject(item, "score", call->scores[i]);
        cJSON_AddItemToArray(data, item);
    }
    cJSON *usage = cJSON_AddObjectToObject(out, "usage");
    cJSON_AddNumberToObject(usage, "prompt_tokens", (double)call->prompt_tokens);
    cJSON_AddNumberToObject(usage, "total_tokens", (double)call->prompt_tokens);
    cJSON *details = cJSON_AddObjectToObject(usage, "prompt_tokens_details");
    cJSON_AddNumberToObject(details, "cached_tokens", (double)call->cached_tokens);
    *tokens = (double)call->prompt_tokens;
    return out;
}

static cJSON *ask(void *context, int part)
{
    return cJSON_DetachItemFromArray(((struct reward_call *)context)->messages, 0);
}

static bool take(void *context, int part, const cJSON *frame, struct gd_error *err)
{
    struct reward_call *call = context;
    const cJSON *score = gd_json_find(frame, "score"), *usage = gd_json_find(frame, "usage");
    if (!cJSON_IsNumber(score))
        return gd_fail(err, GD_INTERNAL, "the worker gave no score");
    call->scores[part] = score->valuedouble;
    call->prompt_tokens += gd_frame_int(usage, "prompt_tokens", 0);
    call->cached_tokens += gd_frame_int(usage, "cached_tokens", 0);
    return true;
}

static void explain(void *context, int part, struct gd_error *err)
{
    if (((struct reward_call *)context)->count > 1 && err->code == GD_CONTEXT)
        gd_error_context(err, "input[%d]", part);
}

static const struct gd_gather_kind kind = {"score", "scored", ask, NULL, take, explain, reply, release};

/* A text, token ids, or a conversation that ends with the assistant's answer. */
static bool read_one(struct reward_call *call, const cJSON *input, const char *path, struct gd_error *err)
{
    const cJSON *first = cJSON_IsArray(input) ? input->child : NULL;
    if (cJSON_IsString(input) ? input->valuestring[0] == '\0' : first == NULL)
        return gd_fail_param(err, GD_INVALID, path, cJSON_IsString(input) || cJSON_IsArray(input)
                             ? "%s is empty: there is nothing to score" : "%s must be a text, a list of token ids, or a list of messages",
                             path);
    if (first != NULL && !(cJSON_IsNumber(first) ? gd_gather_check_ids(input, path, err) : gd_chat_check_messages(input, path, true, err)))
        return false;
    cJSON *message = cJSON_CreateObject();
    cJSON_AddItemToObject(message, first != NULL && cJSON_IsObject(first) ? "messages" : "prompt", cJSON_Duplicate(input, true));
    cJSON_AddItemToArray(call->messages, message);
    return true;
}

static bool read_inputs(struct reward_call *call, const cJSON *body, struct gd_error *err)
{
    const cJSON *input = gd_json_find(body, "input"), *item;
    if (input == NULL || cJSON_IsNull(input))
        return gd_fail_param(err, GD_MISSING, "input", "input is missing: a text, a conversation, or a list of them");
    bool many = cJSON_IsArray(input) && (cJSON_IsString(input->child) || cJSON_IsArray(input->child));
    int count = many ? cJSON_GetArraySize(input) : 1, index = 0;
    if (count > INPUTS_MAX)
        return gd_fail_param(err, GD_INVALID, "input", "input has %d items; a request may have %d", count, INPUTS_MAX);
    call->count = count;
    call->scores = gd_alloc_array((size_t)count, sizeof *call->scores);
    call->messages = cJSON_CreateArray();
    if (!many)
        return read_one(call, input, "input", err);
    cJSON_ArrayForEach(item, input) {
        char path[32];
        snprintf(path, sizeof path, "input[%d]", index++);
        if (!read_one(call, item, path, err))
            return false;
    }
    return true;
}

void gd_handle_rewards(struct gd_app *app, struct gd_request *request)
{
    static const char *const known[] = {"model", "input", "user", NULL};
    struct reward_call *call = gd_alloc(sizeof *call);
    struct gd_gather *gather = gd_gather_create(app, request, &kind, call);
    const char *model = NULL;
    struct gd_error err = {0};
    if (!gd_gather_read(app, request, known, &model, &err) || !read_inputs(call, gd_request_json(request), &err)) {
        gd_gather_refuse(gather, &err);
        return;
    }
    call->model = gd_strdup(model);
    gd_gather_start(gather, call->model, call->count);
}
