/*
 * routes_encode.c - POST /v1/embeddings and POST /v1/classifications: what encoders and classifiers say of texts.
 *
 * A request's texts go to the worker a few at a time, so that others' tokens come between; the answer waits for the last.
 */
#include "engine/base/alloc.h"
#include "server/gather.h"
#include "server/handlers.h"

#include <stdio.h>
#include <string.h>

#define INPUTS_MAX 2048
#define PART_INPUTS 32 /* texts in one message to the worker */

struct encode_call {
    bool embeds, base64;
    int64_t dimensions;              /* 0: the model's */
    char *model;
    cJSON **inputs, **answers;       /* [part_count]; those of parts that are not back: NULL */
    int part_count, count;           /* count: texts */
};

static void release(void *context)
{
    struct encode_call *call = context;
    for (int i = 0; i < call->part_count; i++) {
        cJSON_Delete(call->inputs[i]);
        cJSON_Delete(call->answers[i]);
    }
    gd_free(call->inputs);
    gd_free(call->answers);
    gd_free(call->model);
    gd_free(call);
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

static cJSON *ask(void *context, int part)
{
    struct encode_call *call = context;
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "kind", call->embeds ? "embed" : "classify");
    cJSON_AddItemToObject(message, "inputs", call->inputs[part]);
    cJSON_AddNumberToObject(message, "first", call->count == 1 ? -1 : part * PART_INPUTS);
    if (call->dimensions > 0)
        cJSON_AddNumberToObject(message, "dimensions", (double)call->dimensions);
    cJSON_AddBoolToObject(message, "base64", call->base64);
    call->inputs[part] = NULL;
    return message;
}

static bool take(void *context, int part, const cJSON *frame, struct gd_error *err)
{
    struct encode_call *call = context;
    call->answers[part] = cJSON_Duplicate(frame, true);
    return true;
}

static cJSON *reply(void *context, double *tokens)
{
    struct encode_call *call = context;
    const cJSON *count;
    cJSON *out = cJSON_CreateObject(), *data = cJSON_CreateArray();
    cJSON_AddStringToObject(out, "object", "list");
    cJSON_AddItemToObject(out, "data", data);
    cJSON_AddStringToObject(out, "model", call->model);
    for (int i = 0; i < call->part_count; i++) {
        if (call->embeds)
            add_embeddings(data, call->answers[i]);
        else
            add_classes(data, call->answers[i]);
        cJSON_ArrayForEach(count, gd_json_find(call->answers[i], "tokens"))
            *tokens += count->valuedouble;
    }
    cJSON *usage = cJSON_AddObjectToObject(out, "usage");
    cJSON_AddNumberToObject(usage, "prompt_tokens", *tokens);
    cJSON_AddNumberToObject(usage, "total_tokens", *tokens);
    return out;
}

static const struct gd_gather_kind kind = {"encode", "result", ask, NULL, take, NULL, reply, release};

/* ---- the request ---- */

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
    bool text = cJSON_IsString(input), ids = cJSON_IsArray(input), pair = cJSON_IsObject(input) && !call->embeds;
    if (!text && !ids && !pair)
        return gd_fail_param(err, GD_INVALID, path, "%s must be a text%s a list of token ids", path,
                             call->embeds ? " or" : ", an object of text and text_pair, or");
    if ((text && input->valuestring[0] == '\0') || (ids && input->child == NULL))
        return gd_fail_param(err, GD_INVALID, path, "%s is empty", path);
    if ((ids && !gd_gather_check_ids(input, path, err)) || (pair && !check_pair(input, path, err)))
        return false;
    cJSON *item = text ? cJSON_CreateObject() : cJSON_Duplicate(input, true);
    if (text)
        cJSON_AddStringToObject(item, "text", input->valuestring);
    cJSON_AddItemToArray(call->inputs[index / PART_INPUTS], item);
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
    call->inputs = gd_alloc_array((size_t)call->part_count, sizeof *call->inputs);
    call->answers = gd_alloc_array((size_t)call->part_count, sizeof *call->answers);
    for (int i = 0; i < call->part_count; i++)
        call->inputs[i] = cJSON_CreateArray();
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
    struct gd_gather *gather = gd_gather_create(app, request, &kind, call);
    const cJSON *body = gd_request_json(request);
    const char *model = NULL;
    struct gd_error err = {0};
    call->embeds = embeds;
    if (!gd_gather_read(app, request, embeds ? of_embeddings : of_classes, &model, &err) || (embeds && !read_format(call, body, &err)) ||
        !read_inputs(call, body, &err)) {
        gd_gather_refuse(gather, &err);
        return;
    }
    call->model = gd_strdup(model);
    gd_gather_start(gather, call->model, call->part_count);
}

void gd_handle_embeddings(struct gd_app *app, struct gd_request *request)
{
    handle(app, request, true);
}

void gd_handle_classifications(struct gd_app *app, struct gd_request *request)
{
    handle(app, request, false);
}
