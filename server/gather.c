#include "server/gather.h"

#include "engine/base/alloc.h"
#include "engine/worker/protocol.h"
#include "server/counters.h"
#include "server/job_json.h"
#include "server/models.h"
#include "server/supervisor.h"

#include <math.h>
#include <string.h>

struct gather;
struct part {
    struct gather *gather;
    uint64_t request;
    bool open;
};

struct gather {
    struct gd_app *app;
    struct gd_request *request;
    const struct gd_gather_kind *kind;
    void *context;
    cJSON *messages;
    struct part *parts;
    int count, open_count;
    bool resolving, over;
};

static void release(struct gather *gather)
{
    gather->kind->release(gather->context);
    cJSON_Delete(gather->messages);
    gd_free(gather->parts);
    gd_free(gather);
}

static void cancel_all(struct gather *gather)
{
    for (int i = 0; i < gather->count; i++)
        if (gather->parts[i].open)
            gd_supervisor_cancel(gather->app->supervisor, gather->parts[i].request);
}

static void fail(struct gather *gather, const struct gd_error *err, const char *code)
{
    cancel_all(gather);
    gd_http_fail_as(gather->request, err, code);
    release(gather);
}

static void on_gone(void *context)
{
    struct gather *gather = context;
    if (gather->resolving) { /* the model's lookup comes back to us */
        gather->over = true;
        return;
    }
    cancel_all(gather);
    struct gd_error err = {0};
    gd_fail(&err, GD_CANCELLED, "the client left");
    gd_http_fail(gather->request, &err); /* dropped; it ends the request */
    release(gather);
}

static void reply(struct gather *gather)
{
    double tokens = 0;
    cJSON *out = gather->kind->reply(gather->context, &tokens);
    gd_counters_add(gather->app->counters, GD_COUNTER_PROMPT_TOKENS, tokens, NULL);
    gd_http_reply(gather->request, 200, out);
    release(gather);
}

static void on_frame(void *context, const cJSON *frame, bool last)
{
    struct part *part = context;
    struct gather *gather = part->gather;
    int index = (int)(part - gather->parts);
    struct gd_error err = {0};
    if (last)
        part->open = false;
    bool answered = strcmp(gd_json_find(frame, "type")->valuestring, gather->kind->answer) == 0;
    if (!answered)
        gd_error_from_json(gd_json_find(frame, "error"), &err);
    if (!answered || !gather->kind->take(gather->context, index, frame, &err)) {
        if (gather->kind->explain != NULL)
            gather->kind->explain(gather->context, index, &err);
        fail(gather, &err, NULL);
        return;
    }
    if (--gather->open_count == 0)
        reply(gather);
}

static bool send_part(struct gather *gather, int index, const struct gd_model_ref *model, struct gd_error *err)
{
    struct part *part = &gather->parts[index];
    cJSON *message = cJSON_DetachItemFromArray(gather->messages, 0);
    cJSON_AddStringToObject(message, "type", gather->kind->message);
    cJSON_AddStringToObject(message, "model_id", model->base_model);
    cJSON_AddStringToObject(message, "model_path", model->base_path);
    cJSON_AddItemToObject(message, "adapter_path", model->adapter_path != NULL ? cJSON_CreateString(model->adapter_path) : cJSON_CreateNull());
    if (!gd_supervisor_request(gather->app->supervisor, message, on_frame, part, &part->request, err))
        return false;
    part->open = true;
    gather->open_count++;
    return true;
}

static void on_model(void *context, const struct gd_model_ref *model, const struct gd_error *err)
{
    struct gather *gather = context;
    struct gd_error refused = {0};
    gather->resolving = false;
    if (gather->over) {
        on_gone(gather);
        return;
    }
    if (model == NULL) {
        fail(gather, err, err->code == GD_NOT_FOUND ? "model_not_found" : NULL);
        return;
    }
    for (int i = 0; i < gather->count; i++)
        if (!send_part(gather, i, model, &refused)) {
            fail(gather, &refused, NULL);
            return;
        }
}

bool gd_gather_read(struct gd_app *app, struct gd_request *request, const char *const *known, const char **model, struct gd_error *err)
{
    const cJSON *body = gd_request_json(request);
    const char *user = NULL;
    if (app->draining)
        return gd_fail(err, GD_UNAVAILABLE, "the server is shutting down: try again when it is back");
    if (!cJSON_IsObject(body))
        return gd_fail(err, GD_INVALID, "the request body must be a JSON object");
    return gd_json_only_known(body, "", known, err) && gd_json_get_string(body, "", "model", true, 1, 512, model, err) &&
           gd_json_get_string(body, "", "user", false, 0, 512, &user, err);
}

void gd_gather_refuse(struct gd_request *request, const struct gd_gather_kind *kind, void *context_taken, const struct gd_error *err)
{
    gd_http_fail_as(request, err, NULL);
    kind->release(context_taken);
}

void gd_gather_start(struct gd_app *app, struct gd_request *request, const char *model, cJSON *messages_taken,
                     const struct gd_gather_kind *kind, void *context_taken)
{
    struct gather *gather = gd_alloc(sizeof *gather);
    *gather = (struct gather){.app = app, .request = request, .kind = kind, .context = context_taken, .messages = messages_taken,
                              .count = cJSON_GetArraySize(messages_taken), .resolving = true};
    gather->parts = gd_alloc_array((size_t)gather->count, sizeof *gather->parts);
    for (int i = 0; i < gather->count; i++)
        gather->parts[i].gather = gather;
    gd_request_on_gone(request, on_gone, gather);
    gd_models_resolve(app, gd_request_project(request), model, on_model, gather);
}

bool gd_gather_check_ids(const cJSON *list, const char *path, struct gd_error *err)
{
    const cJSON *id;
    cJSON_ArrayForEach(id, list)
        if (!cJSON_IsNumber(id) || id->valuedouble != floor(id->valuedouble) || id->valuedouble < 0 || id->valuedouble > INT32_MAX)
            return gd_fail_param(err, GD_INVALID, path, "%s must hold token ids: whole numbers from 0", path);
    return cJSON_GetArraySize(list) <= GD_GATHER_TOKENS_MAX ||
           gd_fail_param(err, GD_INVALID, path, "%s has more than %d tokens", path, GD_GATHER_TOKENS_MAX);
}
