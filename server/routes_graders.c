/*
 * routes_graders.c - /v1/fine_tuning/alpha/graders: is a grader well formed, and what does a sample earn by it?
 *
 * Comparing long texts takes up to a second, and Python as long as the operator allows, so both are work for a thread of
 * libuv's pool; GRADINGS_MAX of them, because files wait for the same threads. The grader and the
 * request's JSON are only read there.
 *
 * Graders that have a model judge ask it first, through the workers; that takes no thread.
 */
#include "engine/base/alloc.h"
#include "engine/eval/grader.h"
#include "server/app.h"
#include "server/ask_model.h"
#include "server/handlers.h"
#include "server/job_json.h"
#include "server/models.h"
#include <string.h>

#define SAMPLE_BYTES_MAX GD_BODY_MEMORY_BYTES
#define GRADINGS_MAX 8

static int gradings; /* loop thread only */

struct grading {
    struct gd_app *app;
    struct gd_request *request;
    struct gd_grader *grader;
    const char *model_sample;
    const cJSON *item; /* or NULL */
    cJSON *sample;
    struct gd_ask *asks; /* of the judges */
    int ask_count, answered;
    struct gd_grade grade;
    uint64_t started;
    double seconds;
    struct gd_error err; /* of a check */
    uv_work_t work;
};

static bool may_start(struct gd_error *err)
{
    return gradings < GRADINGS_MAX || gd_fail(err, GD_BUSY, "%d graders run at the moment: try again", gradings);
}

static void start_work(struct gd_app *app, struct grading *grading, uv_work_cb run, uv_after_work_cb after)
{
    gradings++;
    grading->work.data = grading;
    uv_queue_work(app->loop, &grading->work, run, after);
}

static void check_work(uv_work_t *work)
{
    struct grading *grading = work->data;
    (void)!gd_grader_check(grading->grader, "grader", &grading->err); /* what it says is in err */
}

static void release_grading(struct grading *grading)
{
    for (int i = 0; i < grading->ask_count; i++)
        gd_ask_release(&grading->asks[i]);
    gd_free(grading->asks);
    cJSON_Delete(grading->sample);
    gd_grader_destroy(grading->grader);
    gd_free(grading);
}

static void look_up_judge(struct grading *grading);

static void on_judge(void *context, const struct gd_model_ref *model, const struct gd_error *err)
{
    struct grading *grading = context;
    if (model == NULL) {
        gd_http_fail_model(grading->request, err);
        release_grading(grading);
        return;
    }
    grading->answered++;
    look_up_judge(grading);
}

/* The models that would judge are there; then it is well formed. */
static void look_up_judge(struct grading *grading)
{
    if (grading->answered < gd_grader_ask_count(grading->grader)) {
        gd_models_resolve(grading->app, gd_request_project(grading->request),
                          gd_grader_ask_model(grading->grader, grading->answered), on_judge, grading);
        return;
    }
    cJSON *answer = cJSON_CreateObject();
    cJSON_AddItemToObject(answer, "grader",
                          cJSON_Duplicate(gd_json_find(gd_request_json(grading->request), "grader"), true));
    gd_http_reply(grading->request, 200, answer);
    release_grading(grading);
}

static void check_after(uv_work_t *work, int status)
{
    struct grading *grading = work->data;
    gradings--;
    if (grading->err.code == GD_OK) {
        look_up_judge(grading);
        return;
    }
    gd_http_fail(grading->request, &grading->err);
    release_grading(grading);
}

void gd_handle_grader_validate(struct gd_app *app, struct gd_request *request)
{
    static const char *const known[] = {"grader", NULL};
    const cJSON *body = gd_request_json(request), *json = gd_json_find(body, "grader");
    struct gd_error err = {0};
    struct gd_grader *grader = gd_json_only_known(body, "", known, &err) ? gd_grader_parse(json, "grader", &err) : NULL;
    if (grader == NULL || !may_start(&err)) {
        gd_grader_destroy(grader);
        gd_http_fail(request, &err);
        return;
    }
    struct grading *grading = gd_alloc(sizeof *grading);
    grading->app = app;
    grading->request = request;
    grading->grader = grader;
    start_work(app, grading, check_work, check_after);
}

/* ---- run ---- */

/* All of OpenAI's flags; `message` is ours. */
static cJSON *errors_json(const struct gd_grade *grade)
{
    static const struct {
        const char *name;
        enum gd_grade_flag of;
    } details[] = {{"python_grader_server_error_type", GD_GRADE_PYTHON_SERVER},
                   {"python_grader_runtime_error_details", GD_GRADE_PYTHON_RUNTIME},
                   {"model_grader_server_error_details", GD_GRADE_MODEL_SERVER}};
    cJSON *json = cJSON_CreateObject();
    for (int flag = 0; flag < GD_GRADE_FLAG_COUNT; flag++)
        cJSON_AddBoolToObject(json, gd_grade_flag_wire((enum gd_grade_flag)flag), grade->flags[flag]);
    for (size_t i = 0; i < GD_COUNT(details); i++)
        cJSON_AddItemToObject(json, details[i].name, grade->flags[details[i].of] ? cJSON_CreateString(grade->error.message)
                                                                                  : cJSON_CreateNull());
    if (grade->error.code != GD_OK)
        cJSON_AddStringToObject(json, "message", grade->error.message);
    else
        cJSON_AddNullToObject(json, "message");
    return json;
}

/* The rewards of a multi's graders by name; null for one that failed. */
static cJSON *parts_json(const struct gd_grade *grade)
{
    cJSON *json = cJSON_CreateObject();
    for (int i = 0; i < grade->part_count; i++)
        cJSON_AddItemToObject(json, grade->parts[i].name,
                              grade->parts[i].failed ? cJSON_CreateNull() : cJSON_CreateNumber(grade->parts[i].reward));
    return json;
}

static void add_to(cJSON *json, const char *name, int64_t value)
{
    cJSON *number = gd_json_find(json, name);
    cJSON_SetNumberHelper(number, number->valuedouble + (double)value);
}

/* {model: {invocations, prompt_tokens, completion_tokens, total_tokens, cached_tokens}} of those that answered. */
static cJSON *usage_json(const struct grading *grading)
{
    static const char *const names[] = {"invocations", "prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens"};
    cJSON *json = cJSON_CreateObject();
    for (int i = 0; i < grading->ask_count; i++) {
        const struct gd_ask *ask = &grading->asks[i];
        if (ask->error.code != GD_OK)
            continue;
        cJSON *usage = gd_json_find(json, ask->model);
        if (usage == NULL) {
            usage = cJSON_AddObjectToObject(json, ask->model);
            for (size_t n = 0; n < GD_COUNT(names); n++)
                cJSON_AddNumberToObject(usage, names[n], 0);
        }
        const int64_t counts[] = {1, ask->prompt_tokens, ask->completion_tokens, ask->prompt_tokens + ask->completion_tokens,
                                  ask->cached_tokens};
        for (size_t n = 0; n < GD_COUNT(names); n++)
            add_to(usage, names[n], counts[n]);
    }
    return json;
}

/* token_usage: of all judges; sampled_model_name: of the only one. */
static void add_judges(cJSON *metadata, const struct grading *grading)
{
    int64_t tokens = 0;
    for (int i = 0; i < grading->ask_count; i++)
        tokens += grading->asks[i].prompt_tokens + grading->asks[i].completion_tokens;
    cJSON_AddItemToObject(metadata, "token_usage",
                          grading->ask_count > 0 ? cJSON_CreateNumber((double)tokens) : cJSON_CreateNull());
    cJSON_AddItemToObject(metadata, "sampled_model_name", grading->ask_count == 1 && grading->asks[0].model != NULL
                                                              ? cJSON_CreateString(grading->asks[0].model)
                                                              : cJSON_CreateNull());
}

static cJSON *answer_json(const struct grading *grading)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "reward", grading->grade.reward);
    cJSON *metadata = cJSON_AddObjectToObject(json, "metadata");
    cJSON_AddStringToObject(metadata, "name", gd_grader_name(grading->grader));
    cJSON_AddStringToObject(metadata, "type", gd_grader_type_name(grading->grader));
    cJSON_AddItemToObject(metadata, "errors", errors_json(&grading->grade));
    cJSON_AddNumberToObject(metadata, "execution_time", grading->seconds);
    cJSON_AddItemToObject(metadata, "scores", parts_json(&grading->grade));
    add_judges(metadata, grading);
    cJSON_AddItemToObject(json, "sub_rewards", parts_json(&grading->grade));
    cJSON_AddItemToObject(json, "model_grader_token_usage_per_model", usage_json(grading));
    return json;
}

static void run_work(uv_work_t *work)
{
    struct grading *grading = work->data;
    if (grading->sample == NULL)
        grading->sample = gd_grader_sample(grading->model_sample);
    gd_grader_run_asked(grading->grader, grading->item, grading->sample, grading->asks, &grading->grade);
    grading->seconds = (double)(uv_hrtime() - grading->started) / 1e9;
}

static void run_after(uv_work_t *work, int status)
{
    struct grading *grading = work->data;
    gradings--;
    gd_http_reply(grading->request, 200, answer_json(grading));
    gd_grade_release(&grading->grade);
    release_grading(grading);
}

static void on_answer(void *context)
{
    struct grading *grading = context;
    if (++grading->answered == grading->ask_count)
        start_work(grading->app, grading, run_work, run_after);
}

/* What could not even be asked counts as answered. */
static void ask_judges(struct grading *grading)
{
    grading->ask_count = gd_grader_ask_count(grading->grader);
    grading->asks = gd_alloc_array((size_t)grading->ask_count, sizeof *grading->asks);
    grading->sample = gd_grader_sample(grading->model_sample);
    gd_grader_fill_asks(grading->grader, grading->item, grading->sample, grading->asks);
    for (int i = 0, count = grading->ask_count; i < count; i++)
        if (grading->asks[i].answered)
            on_answer(grading);
        else
            gd_ask_model(grading->app, gd_request_project(grading->request), &grading->asks[i], on_answer, grading);
}

void gd_handle_grader_run(struct gd_app *app, struct gd_request *request)
{
    static const char *const known[] = {"grader", "item", "model_sample", NULL};
    const cJSON *body = gd_request_json(request), *item = NULL;
    const char *model_sample = NULL;
    struct gd_error err = {0};
    struct gd_grader *grader = gd_json_only_known(body, "", known, &err)
                                   ? gd_grader_parse(gd_json_find(body, "grader"), "grader", &err)
                                   : NULL;
    if (grader == NULL || !may_start(&err) ||
        !gd_json_get_string(body, "", "model_sample", true, 0, SAMPLE_BYTES_MAX, &model_sample, &err) ||
        !gd_json_get_object(body, "", "item", false, &item, &err)) {
        gd_grader_destroy(grader);
        gd_http_fail(request, &err);
        return;
    }
    struct grading *grading = gd_alloc(sizeof *grading);
    grading->request = request;
    grading->grader = grader;
    grading->model_sample = model_sample;
    grading->item = item;
    grading->app = app;
    grading->started = uv_hrtime();
    if (gd_grader_ask_count(grader) > 0)
        ask_judges(grading);
    else
        start_work(app, grading, run_work, run_after);
}
