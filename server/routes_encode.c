/*
 * routes_encode.c - POST /v1/embeddings and POST /v1/classifications: what encoders and classifiers say of texts.
 *
 * A request's texts go to the worker a few at a time, so that others' tokens come between; the answer waits for the last.
 */
#include "engine/base/alloc.h"
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
#define PART_INPUTS 32 /* texts in one message to the worker */

struct part {
    struct encode_call *call;
    cJSON *inputs, *answer;
    uint64_t request;
    bool open;
};

struct encode_call {
    struct gd_app *app;
    struct gd_request *request;
    bool embeds, base64;
    int64_t dimensions;              /* 0: the model's */
    char *model;
    struct part *parts;
    int part_count, open_count, count; /* count: texts */
    bool resolving, over;
};

static void release(struct encode_call *call)
{
    for (int i = 0; i < call->part_count; i++) {
        cJSON_Delete(call->parts[i].inputs);
        cJSON_Delete(call->parts[i].answer);
    }
    gd_free(call->parts);
    gd_free(call->model);
    gd_free(call);
}

static void cancel_all(struct encode_call *call)
{
    for (int i = 0; i < call->part_count; i++)
        if (call->parts[i].open)
            gd_supervisor_cancel(call->app->supervisor, call->parts[i].request);
}

static void fail(struct encode_call *call, const struct gd_error *err, const char *code)
{
    cancel_all(call);
    gd_http_fail_as(call->request, err, code);
    release(call);
}

static void on_gone(void *context)
{
    struct encode_call *call = context;
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

/* ---- the answer ---- */

static void add_embeddings(cJSON *data, cJSON *answer)
{
    cJSON *vector, *vectors = cJSON_GetObjectItemCaseSensitive(answer, "vectors");
    while ((vector = cJSON_DetachItemFromArray(vectors, 0)) != NULL) {
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "object", "embedding");
        cJSON_AddNumberToObject(item, "index", cJSON_GetArraySize(data));
        cJSON_AddItemToObject(item, "embedding", vector);
        cJSON_AddItemToArray(data, item);
    }
}

/* The likeliest label, or all that are likelier than not. */
static bool chosen(const cJSON *scores, const cJSON *score, bool multi)
{
    const cJSON *other;
    if (multi)
        return score->valuedouble > 0.5;
    for (other = scores->child; other != score; other = other->next)
        if (other->valuedouble >= score->valuedouble)
            return false;
    for (other = score->next; other != NULL; other = other->next)
        if (other->valuedouble > score->valuedouble)
            return false;
    return true;
}

static void add_classes(cJSON *data, const cJSON *answer)
{
    const cJSON *names = gd_json_find(answer, "labels"), *scores, *score;
    bool multi = cJSON_IsTrue(gd_json_find(answer, "multi"));
    cJSON_ArrayForEach(scores, gd_json_find(answer, "scores")) {
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "object", "classification");
        cJSON_AddNumberToObject(item, "index", cJSON_GetArraySize(data));
        cJSON *labels = cJSON_AddArrayToObject(item, "labels"), *list = cJSON_AddArrayToObject(item, "scores");
        const cJSON *name = names->child;
        for (score = scores->child; score != NULL && name != NULL; score = score->next, name = name->next) {
            cJSON *one = cJSON_CreateObject();
            cJSON_AddStringToObject(one, "label", name->valuestring);
            cJSON_AddNumberToObject(one, "score", score->valuedouble);
            cJSON_AddItemToArray(list, one);
            if (chosen(scores, score, multi))
                cJSON_AddItemToArray(labels, cJSON_CreateString(name->valuestring));
        }
        cJSON_AddItemToArray(data, item);
    }
}

static void reply(struct encode_call *call)
{
    double tokens = 0;
    const cJSON *count;
    cJSON *out = cJSON_CreateObject(), *data = cJSON_CreateArray();
    cJSON_AddStringToObject(out, "object", "list");
    cJSON_AddItemToObject(out, "data", data);
    cJSON_AddStringToObject(out, "model", call->model);
    for (int i = 0; i < call->part_count; i++) {
        if (call->embeds)
            add_embeddings(data, call->parts[i].answer);
        else
            add_classes(data, call->parts[i].answer);
        cJSON_ArrayForEach(count, gd_json_find(call->parts[i].answer, "tokens"))
            tokens += count->valuedouble;
    }
    cJSON *usage = cJSON_AddObjectToObject(out, "usage");
    cJSON_AddNumberToObject(usage, "prompt_tokens", tokens);
    cJSON_AddNumberToObject(usage, "total_tokens", tokens);
    gd_counters_add(call->app->counters, GD_COUNTER_PROMPT_TOKENS, tokens, NULL);
    gd_http_reply(call->request, 200, out);
    release(call);
}

/* ---- the worker ---- */

static void on_frame(void *context, const cJSON *frame, bool last)
{
    struct part *part = context;
    struct encode_call *call = part->call;
    if (last)
        part->open = false;
    if (strcmp(gd_json_find(frame, "type")->valuestring, "result") != 0) {
        struct gd_error err = {0};
        gd_error_from_json(gd_json_find(frame, "error"), &err);
        fail(call, &err, NULL);
        return;
    }
    part->answer = cJSON_Duplicate(frame, true);
    if (--call->open_count == 0)
        reply(call);
}

static bool send_part(struct encode_call *call, int index, const struct gd_model_ref *model, struct gd_error *err)
{
    struct part *part = &call->parts[index];
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "type", "encode");
    cJSON_AddStringToObject(message, "model_id", model->base_model);
    cJSON_AddStringToObject(message, "model_path", model->base_path);
    cJSON_AddItemToObject(message, "adapter_path", model->adapter_path != NULL ? cJSON_CreateString(model->adapter_path) : cJSON_CreateNull());
    cJSON_AddStringToObject(message, "kind", call->embeds ? "embed" : "classify");
    cJSON_AddItemToObject(message, "inputs", part->inputs);
    cJSON_AddNumberToObject(message, "first", call->count == 1 ? -1 : index * PART_INPUTS);
    if (call->dimensions > 0)
        cJSON_AddNumberToObject(message, "dimensions", (double)call->dimensions);
    cJSON_AddBoolToObject(message, "base64", call->base64);
    part->inputs = NULL;
    if (!gd_supervisor_request(call->app->supervisor, message, on_frame, part, &part->request, err))
        return false;
    part->open = true;
    call->open_count++;
    return true;
}

static void on_model(void *context, const struct gd_model_ref *model, const struct gd_error *err)
{
    struct encode_call *call = context;
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
    for (int i = 0; i < call->part_count; i++)
        if (!send_part(call, i, model, &refused)) {
            fail(call, &refused, NULL);
            return;
        }
}

/* ---- the request ---- */

static bool check_ids(const cJSON *list, const char *path, struct gd_error *err)
{
    const cJSON *id;
    cJSON_ArrayForEach(id, list)
        if (!cJSON_IsNumber(id) || id->valuedouble != floor(id->valuedouble) || id->valuedouble < 0 || id->valuedouble > INT32_MAX)
            return gd_fail_param(err, GD_INVALID, path, "%s must hold token ids: whole numbers from 0", path);
    return cJSON_GetArraySize(list) <= TOKENS_MAX ||
           gd_fail_param(err, GD_INVALID, path, "%s has more than %d tokens", path, TOKENS_MAX);
}

/* {"text", "text_pair"} */
static bool check_pair(const cJSON *input, const char *path, struct gd_error *err)
{
    static const char *const known[] = {"text", "text_pair", NULL};
    const char *text = NULL, *pair = NULL;
    return gd_json_only_known(input, path, known, err) && gd_json_get_string(input, path, "text", true, 1, SIZE_MAX, &text, err) &&
           gd_json_get_string(input, path, "text_pair", false, 0, SIZE_MAX, &pair, err);
}

static bool add_input(struct encode_call *call, int index, const cJSON *input, const char *path, struct gd_error *err)
{
    struct part *part = &call->parts[index / PART_INPUTS];
    bool text = cJSON_IsString(input), ids = cJSON_IsArray(input), pair = cJSON_IsObject(input) && !call->embeds;
    if (!text && !ids && !pair)
        return gd_fail_param(err, GD_INVALID, path, "%s must be a text%s a list of token ids", path,
                             call->embeds ? " or" : ", an object of text and text_pair, or");
    if ((text && input->valuestring[0] == '\0') || (ids && input->child == NULL))
        return gd_fail_param(err, GD_INVALID, path, "%s is empty", path);
    if ((ids && !check_ids(input, path, err)) || (pair && !check_pair(input, path, err)))
        return false;
    cJSON *item = text ? cJSON_CreateObject() : cJSON_Duplicate(input, true);
    if (text)
        cJSON_AddStringToObject(item, "text", input->valuestring);
    cJSON_AddItemToArray(part->inputs, item);
    return true;
}

static bool read_inputs(struct encode_call *call, const cJSON *body, struct gd_error *err)
{
    const cJSON *input = gd_json_find(body, "input"), *item;
    if (input == NULL || cJSON_IsNull(input))
        return gd_fail_param(err, GD_MISSING, "input", "input is missing: a text, a list of token ids, or a list of them");
    bool many = cJSON_IsArray(input) && !cJSON_IsNumber(input->child);
    int index = 0;
    call->count = many ? cJSON_GetArraySize(input) : 1;
    if (call->count == 0 || call->count > INPUTS_MAX)
        return gd_fail_param(err, GD_INVALID, "input", "input has %d items; a request may have 1 to %d", call->count, INPUTS_MAX);
    call->part_count = (call->count + PART_INPUTS - 1) / PART_INPUTS;
    call->parts = gd_alloc_array((size_t)call->part_count, sizeof *call->parts);
    for (int i = 0; i < call->part_count; i++)
        call->parts[i] = (struct part){.call = call, .inputs = cJSON_CreateArray()};
    if (!many)
        return add_input(call, 0, input, "input", err);
    cJSON_ArrayForEach(item, input) {
        char path[32];
        snprintf(path, sizeof path, "input[%d]", index);
        if (!add_input(call, index++, item, path, err))
            return false;
    }
    return true;
}

static bool read_format(struct encode_call *call, const cJSON *body, struct gd_error *err)
{
    const char *format = "float";
    if (!gd_json_get_string(body, "", "encoding_format", false, 1, 64, &format, err) ||
        !gd_json_get_int(body, "", "dimensions", false, 1, INT32_MAX, &call->dimensions, err))
        return false;
    call->base64 = strcmp(format, "base64") == 0;
    return call->base64 || strcmp(format, "float") == 0 ||
           gd_fail_param(err, GD_INVALID, "encoding_format", "encoding_format is '%s'; it must be 'float' or 'base64'", format);
}

static void handle(struct gd_app *app, struct gd_request *request, bool embeds)
{
    static const char *const of_embeddings[] = {"model", "input", "encoding_format", "dimensions", "user", NULL};
    static const char *const of_classes[] = {"model", "input", "user", NULL};
    struct encode_call *call = gd_alloc(sizeof *call);
    const cJSON *body = gd_request_json(request);
    const char *model = NULL, *user = NULL;
    struct gd_error err = {0};
    *call = (struct encode_call){.app = app, .request = request, .embeds = embeds};
    bool ok = !app->draining || gd_fail(&err, GD_UNAVAILABLE, "the server is shutting down: try again when it is back");
    ok = ok && (cJSON_IsObject(body) || gd_fail(&err, GD_INVALID, "the request body must be a JSON object")) &&
         gd_json_only_known(body, "", embeds ? of_embeddings : of_classes, &err) &&
         gd_json_get_string(body, "", "model", true, 1, 512, &model, &err) &&
         gd_json_get_string(body, "", "user", false, 0, 512, &user, &err) && (!embeds || read_format(call, body, &err)) &&
         read_inputs(call, body, &err);
    if (!ok) {
        fail(call, &err, NULL);
        return;
    }
    call->model = gd_strdup(model);
    gd_request_on_gone(request, on_gone, call);
    call->resolving = true;
    gd_models_resolve(app, gd_request_project(request), call->model, on_model, call);
}

void gd_handle_embeddings(struct gd_app *app, struct gd_request *request)
{
    handle(app, request, true);
}

void gd_handle_classifications(struct gd_app *app, struct gd_request *request)
{
    handle(app, request, false);
}
