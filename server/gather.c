#include "server/gather.h"

#include "engine/base/alloc.h"
#include "engine/worker/protocol.h"
#include "server/counters.h"
#include "server/job_json.h"
#include "server/models.h"
#include "server/supervisor.h"

#include <math.h>
#include <string.h>

struct part {
    struct gd_gather *gather;
    uint64_t request;                /* of the supervisor */
    bool open;
};

struct gd_gather {
    struct gd_app *app;
    struct gd_request *request;      /* until a stream begins */
    struct gd_stream *stream;
    const struct gd_gather_kind *kind;
    void *context;
    struct part *parts;
    int count, open_count;
    bool resolving, over;
};

static void release(struct gd_gather *gather)
{
    gather->kind->release(gather->context);
    gd_free(gather->parts);
    gd_free(gather);
}

static void cancel_all(struct gd_gather *gather)
{
    for (int i = 0; i < gather->count; i++)
        if (gather->parts[i].open)
            gd_supervisor_cancel(gather->app->supervisor, gather->parts[i].request);
}

static void end_stream(struct gd_gather *gather)
{
    gd_stream_data(gather->stream, NULL, NULL, "[DONE]");
    gd_stream_end(gather->stream);
}

static void fail(struct gd_gather *gather, const struct gd_error *err)
{
    cancel_all(gather);
    if (gather->stream != NULL) {
        gd_gather_send(gather, gd_error_body(err, NULL));
        end_stream(gather);
    } else {
        gd_http_fail(gather->request, err);
    }
    release(gather);
}

/* The client left. What was asked for it ends within a step of the worker. */
static void on_gone(void *context)
{
    struct gd_gather *gather = context;
    if (gather->resolving) { /* the model's lookup comes back to us */
        gather->over = true;
        return;
    }
    cancel_all(gather);
    if (gather->stream != NULL) {
        gd_stream_end(gather->stream);
    } else {
        struct gd_error err = {0};
        gd_fail(&err, GD_CANCELLED, "the client left");
        gd_http_fail(gather->request, &err); /* dropped; it ends the request */
    }
    release(gather);
}

void gd_gather_stream(struct gd_gather *gather)
{
    if (gather->stream != NULL)
        return;
    struct gd_request *request = gather->request;
    gather->request = NULL;
    gather->stream = gd_http_stream(request, on_gone, gather);
}

void gd_gather_send(struct gd_gather *gather, cJSON *event_taken)
{
    char *text = gd_json_print(event_taken);
    gd_stream_data(gather->stream, NULL, NULL, text);
    gd_free(text);
    cJSON_Delete(event_taken);
}

static void reply(struct gd_gather *gather)
{
    double tokens = 0;
    cJSON *out = gather->kind->reply(gather->context, &tokens);
    gd_counters_add(gather->app->counters, GD_COUNTER_PROMPT_TOKENS, tokens, NULL);
    if (gather->stream != NULL)
        end_stream(gather);
    else
        gd_http_reply(gather->request, 200, out);
    release(gather);
}

static void on_frame(void *context, const cJSON *frame, bool last)
{
    struct part *part = context;
    struct gd_gather *gather = part->gather;
    int index = (int)(part - gather->parts);
    struct gd_error err = {0};
    if (!last) {
        if (gather->kind->hear != NULL)
            gather->kind->hear(gather->context, index, frame);
        return;
    }
    part->open = false;
    bool answered = strcmp(gd_json_find(frame, "type")->valuestring, gather->kind->answer) == 0;
    if (!answered)
        gd_error_from_json(gd_json_find(frame, "error"), &err);
    if (!answered || !gather->kind->take(gather->context, index, frame, &err)) {
        if (gather->kind->explain != NULL)
            gather->kind->explain(gather->context, index, &err);
        fail(gather, &err);
        return;
    }
    if (--gather->open_count == 0)
        reply(gather);
}

static bool ask_part(struct gd_gather *gather, int index, const struct gd_model_ref *model, struct gd_error *err)
{
    struct part *part = &gather->parts[index];
    cJSON *message = gather->kind->ask(gather->context, index);
    cJSON_AddStringToObject(message, "type", gather->kind->message);
    gd_model_ref_name(model, message);
    part->gather = gather;
    if (!gd_supervisor_request(gather->app->supervisor, message, on_frame, part, &part->request, err))
        return false;
    part->open = true;
    gather->open_count++;
    return true;
}

static void on_model(void *context, const struct gd_model_ref *model, const struct gd_error *err)
{
    struct gd_gather *gather = context;
    struct gd_error refused = {0};
    gather->resolving = false;
    if (gather->over) {
        on_gone(gather);
        return;
    }
    if (model == NULL) {
        gd_http_fail_model(gather->request, err);
        release(gather);
        return;
    }
    for (int i = 0; i < gather->count; i++)
        if (!ask_part(gather, i, model, &refused)) {
            fail(gather, &refused);
            return;
        }
}

bool gd_gather_read(struct gd_app *app, struct gd_request *request, const char *const *known, const char **model, struct gd_error *err)
{
    const cJSON *body = gd_request_json(request);
    const char *user = NULL;
    if (app->draining)
        return gd_fail_stopping(err);
    if (!cJSON_IsObject(body))
        return gd_fail(err, GD_INVALID, "the request body must be a JSON object");
    return gd_json_only_known(body, "", known, err) && gd_json_get_string(body, "", "model", true, 1, 512, model, err) &&
           gd_json_get_string(body, "", "user", false, 0, 512, &user, err);
}

struct gd_gather *gd_gather_create(struct gd_app *app, struct gd_request *request, const struct gd_gather_kind *kind, void *context_taken)
{
    struct gd_gather *gather = gd_alloc(sizeof *gather);
    *gather = (struct gd_gather){.app = app, .request = request, .kind = kind, .context = context_taken};
    return gather;
}

void gd_gather_refuse(struct gd_gather *gather, const struct gd_error *err)
{
    fail(gather, err);
}

void gd_gather_start(struct gd_gather *gather, const char *model, int parts)
{
    gather->parts = gd_alloc_array((size_t)parts, sizeof *gather->parts);
    gather->count = parts;
    gather->resolving = true;
    gd_request_on_gone(gather->request, on_gone, gather);
    gd_models_resolve(gather->app, gd_request_project(gather->request), model, on_model, gather);
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
