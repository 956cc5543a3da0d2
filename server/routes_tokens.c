/*
 * routes_tokens.c - /tokenize, /detokenize, /tokenizer_info, where evaluation harnesses look for them.
 *
 * A request without a model means the only base there is; with several it must say which.
 */
#include "engine/base/alloc.h"
#include "engine/worker/protocol.h"
#include "server/gather.h"
#include "server/handlers.h"
#include "server/http.h"
#include "server/job_json.h"
#include "server/models.h"
#include "server/supervisor.h"
#include <stdio.h>
#include <string.h>

#define TEXT_BYTES_MAX (8u << 20)

enum token_call_kind { TOKENIZE, DETOKENIZE, TOKENIZER_INFO };

struct token_call {
    struct gd_app *app;
    struct gd_request *request;
    enum token_call_kind kind;
    cJSON *message;                  /* for the worker, without the model */
};

static void release(struct token_call *call)
{
    cJSON_Delete(call->message);
    gd_free(call);
}

static cJSON *answer(const struct token_call *call, const cJSON *frame)
{
    cJSON *out = cJSON_CreateObject();
    if (call->kind == TOKENIZE) {
        cJSON_AddNumberToObject(out, "count", cJSON_GetArraySize(gd_json_find(frame, "tokens")));
        gd_json_copy(out, "max_model_len", frame, "context");
        gd_json_copy(out, "tokens", frame, "tokens");
    } else if (call->kind == DETOKENIZE) {
        gd_json_copy(out, "prompt", frame, "text");
    } else {
        gd_json_copy(out, "bos_token", frame, "bos_token");
        gd_json_copy(out, "eos_token", frame, "eos_token");
        gd_json_copy(out, "max_model_len", frame, "context");
    }
    return out;
}

static void on_frame(void *context, const cJSON *frame, bool last)
{
    struct token_call *call = context;
    if (strcmp(gd_json_find(frame, "type")->valuestring, "result") == 0) {
        gd_http_reply(call->request, 200, answer(call, frame));
    } else {
        struct gd_error err = {0};
        gd_error_from_json(gd_json_find(frame, "error"), &err);
        gd_http_fail(call->request, &err);
    }
    release(call);
}

static void on_model(void *context, const struct gd_model_ref *model, const struct gd_error *err)
{
    struct token_call *call = context;
    if (model == NULL) {
        gd_http_fail_model(call->request, err);
        release(call);
        return;
    }
    struct gd_error refused = {0};
    uint64_t id;
    cJSON *message = call->message;
    call->message = NULL;
    cJSON_AddStringToObject(message, "model_id", model->base_model);
    cJSON_AddStringToObject(message, "model_path", model->base_path);
    if (!gd_supervisor_request(call->app->supervisor, message, on_frame, call, &id, &refused)) {
        gd_http_fail(call->request, &refused);
        release(call);
    }
}

static bool only_model(struct gd_app *app, const char **model, struct gd_error *err)
{
    int count = *model == NULL ? gd_models_count(app->models) : 0;
    if (*model != NULL)
        return true;
    if (count != 1)
        return gd_fail_param(err, GD_MISSING, "model", "there are %d base models: say which one (GET /v1/models lists them)",
                             count);
    *model = gd_models_at(app->models, 0)->id;
    return true;
}

static bool read_tokens(const cJSON *body, cJSON *message, struct gd_error *err)
{
    const cJSON *tokens = NULL;
    if (!gd_json_get_array(body, "", "tokens", true, &tokens, err) || !gd_gather_check_ids(tokens, "tokens", err))
        return false;
    cJSON_AddItemToObject(message, "tokens", cJSON_Duplicate(tokens, true));
    return true;
}

static bool read_text(const cJSON *body, cJSON *message, struct gd_error *err)
{
    const char *text = NULL;
    bool specials = true;
    if (!gd_json_get_string(body, "", "prompt", true, 0, TEXT_BYTES_MAX, &text, err) ||
        !gd_json_get_bool(body, "", "add_special_tokens", false, &specials, err))
        return false;
    cJSON_AddStringToObject(message, "text", text);
    cJSON_AddBoolToObject(message, "add_special_tokens", specials);
    return true;
}

static void handle(struct gd_app *app, struct gd_request *request, enum token_call_kind kind)
{
    struct token_call *call = gd_alloc(sizeof *call);
    struct gd_error err = {0};
    const cJSON *body = gd_request_json(request);
    const char *model = NULL;
    call->app = app;
    call->request = request;
    call->kind = kind;
    call->message = cJSON_CreateObject();
    cJSON_AddStringToObject(call->message, "type", kind == DETOKENIZE ? "detokenize" : "tokenize");
    bool ok = true;
    if (kind == TOKENIZER_INFO) {
        model = gd_request_query(request, "model");
        cJSON_AddStringToObject(call->message, "text", ""); /* the answer names the special tokens */
    } else {
        ok = gd_json_get_string(body, "", "model", false, 1, 512, &model, &err) &&
             (kind == TOKENIZE ? read_text(body, call->message, &err) : read_tokens(body, call->message, &err));
    }
    if (!ok || !only_model(app, &model, &err)) {
        gd_http_fail(request, &err);
        release(call);
        return;
    }
    char *id = gd_strdup(model);
    gd_models_resolve(app, gd_request_project(request), id, on_model, call);
    gd_free(id);
}

void gd_handle_tokenize(struct gd_app *app, struct gd_request *request)
{
    handle(app, request, TOKENIZE);
}

void gd_handle_detokenize(struct gd_app *app, struct gd_request *request)
{
    handle(app, request, DETOKENIZE);
}

void gd_handle_tokenizer_info(struct gd_app *app, struct gd_request *request)
{
    handle(app, request, TOKENIZER_INFO);
}
