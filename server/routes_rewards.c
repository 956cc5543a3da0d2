/*
 * routes_rewards.c - POST /v1/rewards: the scores that a reward model gives texts and conversations.
 *
 * Each input is a request of its own to the worker, which puts them into the batches of all others; the answer waits for the last.
 */
#include "engine/base/alloc.h"
#include "engine/text/chat.h"
#include "engine/worker/protocol.h"
#include "server/counters.h"
#include "server/handlers.h"
#include "server/http.h"
#include "server/job_json.h"
#include "server/models.h"
#include "server/supervisor.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define INPUTS_MAX 2048
#define TOKENS_MAX (1 << 24)

struct reward {
    struct reward_call *call;
    cJSON *question;                 /* "prompt" or "messages" of its message to the worker */
    uint64_t request;
    bool open;
    double score;
};

struct reward_call {
    struct gd_app *app;
    struct gd_request *request;
    char *model;
    struct reward *rewards;
    int count, open_count;
    int64_t prompt_tokens, cached_tokens;
    bool resolving, over;
};

static void release(struct reward_call *call)
{
    for (int i = 0; i < call->count; i++)
        cJSON_Delete(call->rewards[i].question);
    gd_free(call->rewards);
    gd_free(call->model);
    gd_free(call);
}

static void cancel_all(struct reward_call *call)
{
    for (int i = 0; i < call->count; i++)
        if (call->rewards[i].open)
            gd_supervisor_cancel(call->app->supervisor, call->rewards[i].request);
}

static void fail(struct reward_call *call, const struct gd_error *err, const char *code)
{
    cancel_all(call);
    gd_http_fail_as(call->request, err, code);
    release(call);
}

static void on_gone(void *context)
{
    struct reward_call *call = context;
    if (call->resolving) { /* the model's lookup comes back to us */
        call->over = true;
        return;
    }
    cancel_all(call);
    struct gd_error err = {0};
    gd_fail(&err, GD_CANCELLED, "the client left");
    gd_http_fail(call->request, &err); /* dropped; it ends the request */
    release(call);
}

static void reply(struct reward_call *call)
{
    cJSON *out = cJSON_CreateObject();
    cJSON_AddStringToObject(out, "object", "list");
    cJSON_AddStringToObject(out, "model", call->model);
    cJSON *data = cJSON_AddArrayToObject(out, "data");
    for (int i = 0; i < call->count; i++) {
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "object", "reward");
        cJSON_AddNumberToObject(item, "index", i);
        cJSON_AddNumberToObject(item, "score", call->rewards[i].score);
        cJSON_AddItemToArray(data, item);
    }
    cJSON *usage = cJSON_AddObjectToObject(out, "usage");
    cJSON_AddNumberToObject(usage, "prompt_tokens", (double)call->prompt_tokens);
    cJSON_AddNumberToObject(usage, "total_tokens", (double)call->prompt_tokens);
    cJSON *details = cJSON_AddObjectToObject(usage, "prompt_tokens_details");
    cJSON_AddNumberToObject(details, "cached_tokens", (double)call->cached_tokens);
    gd_counters_add(call->app->counters, GD_COUNTER_PROMPT_TOKENS, (double)call->prompt_tokens, NULL);
    gd_http_reply(call->request, 200, out);
    release(call);
}

static int64_t count_of(const cJSON *usage, const char *name)
{
    const cJSON *value = gd_json_find(usage, name);
    return cJSON_IsNumber(value) ? (int64_t)value->valuedouble : 0;
}

static void on_frame(void *context, const cJSON *frame, bool last)
{
    struct reward *reward = context;
    struct reward_call *call = reward->call;
    const cJSON *score = gd_json_find(frame, "score"), *usage = gd_json_find(frame, "usage");
    if (last)
        reward->open = false;
    if (strcmp(gd_json_find(frame, "type")->valuestring, "scored") != 0 || !cJSON_IsNumber(score)) {
        struct gd_error err = {0};
        gd_error_from_json(gd_json_find(frame, "error"), &err);
        if (call->count > 1 && err.code == GD_CONTEXT)
            gd_error_context(&err, "input[%d]", (int)(reward - call->rewards));
        fail(call, &err, NULL);
        return;
    }
    reward->score = score->valuedouble;
    call->prompt_tokens += count_of(usage, "prompt_tokens");
    call->cached_tokens += count_of(usage, "cached_tokens");
    if (--call->open_count == 0)
        reply(call);
}

static void on_model(void *context, const struct gd_model_ref *model, const struct gd_error *err)
{
    struct reward_call *call = context;
    struct gd_error refused = {0};
    call->resolving = false;
    if (call->over) {
        on_gone(call);
        return;
    }
    if (model == NULL) {
        fail(call, err, err->code == GD_NOT_FOUND ? "model_not_found" : NULL);
        return;
    }
    for (int i = 0; i < call->count; i++) {
        struct reward *reward = &call->rewards[i];
        cJSON *message = reward->question;
        reward->question = NULL;
        cJSON_AddStringToObject(message, "type", "score");
        cJSON_AddStringToObject(message, "model_id", model->base_model);
        cJSON_AddStringToObject(message, "model_path", model->base_path);
        cJSON_AddItemToObject(message, "adapter_path",
                              model->adapter_path != NULL ? cJSON_CreateString(model->adapter_path) : cJSON_CreateNull());
        if (!gd_supervisor_request(call->app->supervisor, message, on_frame, reward, &reward->request, &refused)) {
            fail(call, &refused, NULL);
            return;
        }
        reward->open = true;
        call->open_count++;
    }
}

static bool check_ids(const cJSON *list, const char *path, struct gd_error *err)
{
    const cJSON *id;
    cJSON_ArrayForEach(id, list)
        if (!cJSON_IsNumber(id) || id->valuedouble != floor(id->valuedouble) || id->valuedouble < 0 || id->valuedouble > INT32_MAX)
            return gd_fail_param(err, GD_INVALID, path, "%s must hold token ids: whole numbers from 0", path);
    return cJSON_GetArraySize(list) <= TOKENS_MAX;
}

/* A text, token ids, or a conversation that ends with the assistant's answer. */
static bool read_one(struct reward *reward, const cJSON *input, const char *path, struct gd_error *err)
{
    const cJSON *first = cJSON_IsArray(input) ? input->child : NULL;
    if (cJSON_IsString(input) ? input->valuestring[0] == '\0' : first == NULL)
        return gd_fail_param(err, GD_INVALID, path, cJSON_IsString(input) || cJSON_IsArray(input)
                             ? "%s is empty: there is nothing to score" : "%s must be a text, a list of token ids, or a list of messages",
                             path);
    if (first != NULL && !(cJSON_IsNumber(first) ? check_ids(input, path, err) : gd_chat_check_messages(input, path, true, err)))
        return false;
    reward->question = cJSON_CreateObject();
    cJSON_AddItemToObject(reward->question, first != NULL && cJSON_IsObject(first) ? "messages" : "prompt", cJSON_Duplicate(input, true));
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
    call->rewards = gd_alloc_array((size_t)count, sizeof *call->rewards);
    call->count = count;
    for (int i = 0; i < count; i++)
        call->rewards[i].call = call;
    if (!many)
        return read_one(&call->rewards[0], input, "input", err);
    cJSON_ArrayForEach(item, input) {
        char path[32];
        snprintf(path, sizeof path, "input[%d]", index);
        if (!read_one(&call->rewards[index++], item, path, err))
            return false;
    }
    return true;
}

void gd_handle_rewards(struct gd_app *app, struct gd_request *request)
{
    static const char *const known[] = {"model", "input", "user", NULL};
    struct reward_call *call = gd_alloc(sizeof *call);
    const cJSON *body = gd_request_json(request);
    const char *model = NULL, *user = NULL;
    struct gd_error err = {0};
    call->app = app;
    call->request = request;
    bool ok = !app->draining || gd_fail(&err, GD_UNAVAILABLE, "the server is shutting down: try again when it is back");
    ok = ok && (cJSON_IsObject(body) || gd_fail(&err, GD_INVALID, "the request body must be a JSON object")) &&
         gd_json_only_known(body, "", known, &err) && gd_json_get_string(body, "", "model", true, 1, 512, &model, &err) &&
         gd_json_get_string(body, "", "user", false, 0, 512, &user, &err) && read_inputs(call, body, &err);
    if (!ok) {
        fail(call, &err, NULL);
        return;
    }
    call->model = gd_strdup(model);
    gd_request_on_gone(request, on_gone, call);
    call->resolving = true;
    gd_models_resolve(app, gd_request_project(request), call->model, on_model, call);
}
