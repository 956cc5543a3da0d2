#include "server/ask_model.h"

#include "engine/base/alloc.h"
#include "engine/worker/protocol.h"
#include "server/models.h"
#include "server/supervisor.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct asking {
    struct gd_app *app;
    struct gd_ask *ask;
    struct gd_buf text;
    uint64_t request;
    void (*done)(void *context);
    void *context;
};

static void end(struct asking *asking, const struct gd_error *err)
{
    void (*done)(void *context) = asking->done;
    void *context = asking->context;
    if (err != NULL)
        asking->ask->error = *err;
    asking->ask->text = gd_buf_take(&asking->text);
    asking->ask->answered = true;
    gd_free(asking);
    done(context);
}

static void add_text(struct asking *asking, const cJSON *frame, const char *name)
{
    const cJSON *text = gd_json_find(frame, name);
    if (cJSON_IsString(text))
        gd_buf_append_text(&asking->text, text->valuestring);
}

static void on_frame(void *context, const cJSON *frame, bool last)
{
    struct asking *asking = context;
    struct gd_ask *ask = asking->ask;
    struct gd_error err = {0};
    if (!last) {
        add_text(asking, frame, "text");
        return;
    }
    if (strcmp(gd_json_find(frame, "type")->valuestring, "failed") == 0) {
        gd_error_from_json(gd_json_find(frame, "error"), &err);
        end(asking, &err);
        return;
    }
    const cJSON *usage = gd_json_find(frame, "usage"), *finish = gd_json_find(frame, "finish");
    add_text(asking, frame, "tail");
    ask->truncated = cJSON_IsString(finish) && strcmp(finish->valuestring, "length") == 0;
    ask->prompt_tokens = gd_frame_int(usage, "prompt_tokens", 0);
    ask->cached_tokens = gd_frame_int(usage, "cached_tokens", 0);
    ask->completion_tokens = gd_frame_int(usage, "completion_tokens", 0);
    if (asking->text.overflow)
        gd_fail(&err, GD_TOO_LARGE, "the answer has more than %u bytes", GD_ASK_ANSWER_BYTES_MAX);
    end(asking, asking->text.overflow ? &err : NULL);
}

static cJSON *sampling_of(const struct gd_ask *ask)
{
    char seed[24];
    snprintf(seed, sizeof seed, "%" PRId64, ask->seed);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "temperature", ask->temperature);
    cJSON_AddNumberToObject(json, "top_p", ask->top_p);
    cJSON_AddStringToObject(json, "seed", seed);
    cJSON_AddItemToObject(json, "max_tokens",
                          ask->max_tokens >= 0 ? cJSON_CreateNumber((double)ask->max_tokens) : cJSON_CreateNull());
    if (ask->stops != NULL)
        cJSON_AddItemToObject(json, "stop", cJSON_Duplicate(ask->stops, true));
    if (ask->choices != NULL)
        cJSON_AddItemToObject(json, "choices", cJSON_Duplicate(ask->choices, true));
    return json;
}

static void on_model(void *context, const struct gd_model_ref *model, const struct gd_error *err)
{
    struct asking *asking = context;
    const struct gd_ask *ask = asking->ask;
    if (model == NULL) {
        end(asking, err);
        return;
    }
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "type", "generate");
    gd_model_ref_name(model, message);
    cJSON_AddStringToObject(message, "kind", "chat");
    cJSON_AddItemToObject(message, "messages", cJSON_Duplicate(ask->messages, true));
    cJSON_AddItemToObject(message, "tools", ask->tools != NULL ? cJSON_Duplicate(ask->tools, true) : cJSON_CreateNull());
    cJSON_AddItemToObject(message, "sampling", sampling_of(ask));
    struct gd_error refused = {0};
    if (!gd_supervisor_request(asking->app->supervisor, message, on_frame, asking, &asking->request, &refused))
        end(asking, &refused);
}

void gd_ask_model(struct gd_app *app, const char *project, struct gd_ask *ask, void (*done)(void *context), void *context)
{
    struct asking *asking = gd_alloc(sizeof *asking);
    *asking = (struct asking){.app = app, .ask = ask, .done = done, .context = context};
    gd_buf_init(&asking->text, GD_ASK_ANSWER_BYTES_MAX);
    gd_models_resolve(app, project, ask->model, on_model, asking);
}
