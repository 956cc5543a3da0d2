/* eval_job.c - a run of an eval inside the worker: finished items become frames; requests are served between turns. */
#include "engine/worker/evaluate.h"
#include "engine/worker/worker.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"

#include <string.h>

#define BATCH_ITEMS_MAX 64
#define BATCH_BYTES_MAX (4u << 20)
#define BATCH_SECONDS 0.2
#define UNSTORED_BATCHES_MAX 8   /* further items wait until the server has stored some of them */
#define IDLE_MS 50

struct eval_job {
    struct gd_worker_job *own;
    struct gd_eval_spec spec;
    struct gd_eval_source *source;
    struct gd_evaluate_model models[GD_EVAL_MODELS_MAX];
    int model_count;
    unsigned char *done;
    int64_t done_count;
    cJSON *batch;                /* finished and not sent, or NULL */
    size_t batch_bytes;
    double batch_since;
    int64_t sent;                /* batches */
};

/* ---- reading the order ---- */

static bool read_models(struct eval_job *job, const cJSON *message, struct gd_error *err)
{
    const cJSON *list = NULL;
    return gd_json_get_array(message, "", "models", true, &list, err) &&
           gd_evaluate_models(list, job->models, &job->model_count, err);
}

/* `done` is a list of [first, last]. */
static bool read_done(struct eval_job *job, const cJSON *message, struct gd_error *err)
{
    const cJSON *list = NULL, *range;
    int64_t count = job->source->count;
    if (!gd_json_get_array(message, "", "done", false, &list, err))
        return false;
    job->done = gd_alloc((size_t)count / 8 + 1);
    cJSON_ArrayForEach(range, list)
    {
        const cJSON *first = cJSON_GetArrayItem(range, 0), *last = cJSON_GetArrayItem(range, 1);
        if (!cJSON_IsNumber(first) || !cJSON_IsNumber(last) || first->valuedouble < 0 ||
            last->valuedouble >= (double)count || first->valuedouble > last->valuedouble)
            return gd_fail(err, GD_CONFLICT, "the items have changed since this run began: there are %lld now",
                           (long long)count);
        for (int64_t i = (int64_t)first->valuedouble; i <= (int64_t)last->valuedouble; i++, job->done_count++)
            job->done[i / 8] |= (unsigned char)(1u << (i % 8));
    }
    return true;
}

static bool read_order(struct eval_job *job, const cJSON *message, struct gd_error *err)
{
    const cJSON *config = NULL, *criteria = NULL, *source = NULL;
    const char *path = NULL, *second = NULL;
    if (!gd_json_get_object(message, "", "data_source_config", true, &config, err) ||
        !gd_json_get_array(message, "", "testing_criteria", true, &criteria, err) ||
        !gd_json_get_object(message, "", "data_source", true, &source, err) ||
        !gd_json_get_string(message, "", "file_path", false, 1, GD_PATH_BYTES_MAX, &path, err) ||
        !gd_json_get_string(message, "", "second_file_path", false, 1, GD_PATH_BYTES_MAX, &second, err) ||
        !gd_eval_spec_restore(&job->spec, config, criteria, err))
        return false;
    job->source = gd_eval_source_parse(&job->spec, source, err);
    if (job->source != NULL)
        job->source->second_path = second;
    return job->source != NULL && gd_eval_source_open(job->source, path, err) && read_models(job, message, err) &&
           read_done(job, message, err);
}

/* ---- reporting ---- */

static void send_started(const struct eval_job *job)
{
    cJSON *json = gd_worker_job_frame(job->own, "job_started");
    cJSON_AddNumberToObject(json, "total_steps", (double)job->source->count);
    cJSON_AddNumberToObject(json, "resumed_from", (double)job->done_count);
    gd_channel_send(&job->own->worker->channel, json);
}

static void flush(struct eval_job *job)
{
    if (job->batch == NULL)
        return;
    cJSON *json = gd_worker_job_frame(job->own, "job_items");
    cJSON_AddNumberToObject(json, "sequence", (double)++job->sent);
    cJSON_AddItemToObject(json, "items", job->batch);
    gd_channel_send(&job->own->worker->channel, json);
    job->batch = NULL;
    job->batch_bytes = 0;
}

/* What would not fit through the socket is an error of the item, with its results. */
static cJSON *bounded(cJSON *body_taken, size_t *bytes, const char **status)
{
    char *text = gd_json_print(body_taken);
    *bytes = strlen(text);
    gd_free(text);
    if (*bytes <= GD_EVAL_ITEM_BYTES_MAX)
        return body_taken;
    struct gd_eval_item item = {0};
    struct gd_error err = {0};
    gd_fail(&err, GD_TOO_LARGE, "the item and what came of it have %zu bytes, which is more than %u", *bytes,
            GD_EVAL_ITEM_BYTES_MAX);
    gd_eval_item_finish(&item, NULL, NULL, NULL, &err);
    cJSON_Delete(body_taken);
    *status = item.status;
    *bytes = 1024;
    return item.body;
}

static void on_item(void *context, const struct gd_evaluated *item)
{
    struct eval_job *job = context;
    const char *status = item->status;
    size_t bytes = 0;
    cJSON *body = bounded(item->body, &bytes, &status), *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "index", (double)item->index);
    cJSON_AddStringToObject(json, "status", status);
    cJSON_AddItemToObject(json, "body", body);
    cJSON_AddItemToObject(json, "usage", item->usage);
    if (job->batch != NULL && job->batch_bytes + bytes > BATCH_BYTES_MAX)
        flush(job);
    if (job->batch == NULL) {
        job->batch = cJSON_CreateArray();
        job->batch_since = gd_time_monotonic();
    }
    cJSON_AddItemToArray(job->batch, json);
    job->batch_bytes += bytes;
    if (cJSON_GetArraySize(job->batch) >= BATCH_ITEMS_MAX)
        flush(job);
}

static enum gd_evaluate_command poll(void *context, bool idle)
{
    struct eval_job *job = context;
    struct gd_worker *worker = job->own->worker;
    if (job->batch != NULL && gd_time_monotonic() - job->batch_since >= BATCH_SECONDS)
        flush(job);
    bool full = job->sent - (job->own->stored_step > 0 ? job->own->stored_step : 0) >= UNSTORED_BATCHES_MAX;
    int wait_ms = idle && full && !gd_residents_busy(&worker->residents) ? IDLE_MS : 0;
    gd_worker_answer(worker, wait_ms);
    gd_worker_publish_stats(worker);
    return job->own->stop != GD_STOP_NONE ? GD_EVALUATE_STOP : full ? GD_EVALUATE_WAIT : GD_EVALUATE_GO;
}

bool gd_worker_evaluate(struct gd_worker_job *own, const cJSON *message, struct gd_error *err)
{
    struct eval_job job = {.own = own};
    bool ok = read_order(&job, message, err);
    if (ok) {
        struct gd_evaluate_options options = {.residents = &own->worker->residents, .models = job.models,
                                              .model_count = job.model_count, .done = job.done};
        struct gd_evaluate_observer observer = {.context = &job, .poll = poll, .item = on_item};
        send_started(&job);
        ok = gd_evaluate(job.source, &options, &observer, err);
        flush(&job);
    }
    gd_eval_source_destroy(job.source);
    gd_eval_spec_release(&job.spec);
    gd_free(job.done);
    return ok;
}
