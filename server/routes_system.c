/*
 * routes_system.c - /healthz, /metrics, /openapi.yaml.
 */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "server/counters.h"
#include "server/handlers.h"
#include "server/openapi.h"
#include "server/scheduler.h"
#include "server/supervisor.h"

#include <stdio.h>
#include <string.h>

#define METRICS_BYTES_MAX (16u << 20)

static cJSON *describe_workers(const struct gd_app *app)
{
    return app->supervisor != NULL ? gd_supervisor_describe(app->supervisor) : NULL;
}

/* {"worker state": n, ...} */
static cJSON *count_states(const cJSON *description)
{
    cJSON *counts = cJSON_CreateObject();
    const cJSON *worker;
    cJSON_ArrayForEach(worker, gd_json_find(description, "workers")) {
        const cJSON *state = gd_json_find(worker, "state");
        if (!cJSON_IsString(state))
            continue;
        cJSON *count = gd_json_find(counts, state->valuestring);
        if (count != NULL)
            cJSON_SetNumberValue(count, count->valuedouble + 1);
        else
            cJSON_AddNumberToObject(counts, state->valuestring, 1);
    }
    return counts;
}

/* Workers whose device cannot be used. */
static int count_failed(const cJSON *description)
{
    int count = 0;
    const cJSON *worker;
    cJSON_ArrayForEach(worker, gd_json_find(description, "workers"))
        count += gd_json_find(worker, "failure") != NULL;
    return count;
}

/* Such a program is for tests: nobody should take it for another. */
static bool is_emulated(const cJSON *description)
{
    const cJSON *worker;
    cJSON_ArrayForEach(worker, gd_json_find(description, "workers"))
    {
        const char *isa = cJSON_GetStringValue(gd_json_find(worker, "isa"));
        if (isa != NULL && strcmp(isa, "emulated") == 0)
            return true;
    }
    return false;
}

void gd_handle_health(struct gd_app *app, struct gd_request *request)
{
    cJSON *json = cJSON_CreateObject();
    cJSON *workers = describe_workers(app);
    cJSON *queue = app->scheduler != NULL ? gd_scheduler_describe(app->scheduler) : NULL;
    cJSON *counts = cJSON_DetachItemFromObjectCaseSensitive(queue, "counts");
    int all = cJSON_GetArraySize(gd_json_find(workers, "workers")), failed = count_failed(workers);
    bool able = !app->draining && (failed == 0 || failed < all);
    cJSON_AddStringToObject(json, "status", app->draining ? "draining" : failed == 0 ? "ok" : able ? "degraded" : "failed");
    cJSON_AddStringToObject(json, "version", GD_VERSION);
    cJSON_AddNumberToObject(json, "uptime_seconds", (double)(gd_time_unix() - app->started_at));
    cJSON_AddItemToObject(json, "workers", count_states(workers));
    cJSON_AddItemToObject(json, "jobs", counts != NULL ? counts : cJSON_CreateObject());
    if (is_emulated(workers))
        cJSON_AddStringToObject(json, "device", "emulated");
    cJSON_Delete(workers);
    cJSON_Delete(queue);
    gd_http_reply(request, able ? 200 : 503, json);
}

static void set_from(struct gd_counters *counters, enum gd_counter counter, const cJSON *object, const char *key,
                     const char *const *labels)
{
    const cJSON *item = gd_json_find(object, key);
    if (cJSON_IsNumber(item))
        gd_counters_set(counters, counter, item->valuedouble, labels);
}

static void export_workers(struct gd_app *app)
{
    struct gd_counters *counters = app->counters;
    static const enum gd_counter families[] = {GD_COUNTER_WORKERS, GD_COUNTER_WORKER_RESTARTS, GD_COUNTER_WORKER_RSS, GD_COUNTER_DEVICE_BYTES,
                                               GD_COUNTER_INFER_RUNNING, GD_COUNTER_INFER_WAITING,
                                               GD_COUNTER_CACHE_PAGES, GD_COUNTER_ADAPTER_BYTES};
    for (size_t i = 0; i < GD_COUNT(families); i++)
        gd_counters_clear(counters, families[i]);
    cJSON *description = describe_workers(app), *states = count_states(description);
    const cJSON *item;
    cJSON_ArrayForEach(item, states)
        gd_counters_set(counters, GD_COUNTER_WORKERS, item->valuedouble, (const char *[]){item->string});
    cJSON_ArrayForEach(item, gd_json_find(description, "workers")) {
        char index[16];
        const cJSON *number = gd_json_find(item, "index"), *infer = gd_json_find(item, "infer");
        snprintf(index, sizeof(index), "%d", cJSON_IsNumber(number) ? number->valueint : 0);
        const char *worker[] = {index};
        set_from(counters, GD_COUNTER_WORKER_RESTARTS, item, "restarts", worker);
        set_from(counters, GD_COUNTER_WORKER_RSS, item, "rss_bytes", worker);
        set_from(counters, GD_COUNTER_DEVICE_BYTES, item, "device_bytes", (const char *[]){index, "taken"});
        set_from(counters, GD_COUNTER_DEVICE_BYTES, item, "device_limit_bytes", (const char *[]){index, "limit"});
        set_from(counters, GD_COUNTER_INFER_RUNNING, infer, "running", worker);
        set_from(counters, GD_COUNTER_INFER_WAITING, infer, "waiting", worker);
        set_from(counters, GD_COUNTER_ADAPTER_BYTES, infer, "adapter_bytes", worker);
        set_from(counters, GD_COUNTER_CACHE_PAGES, infer, "pages_used", (const char *[]){index, "used"});
        set_from(counters, GD_COUNTER_CACHE_PAGES, infer, "pages_total", (const char *[]){index, "total"});
    }
    cJSON_Delete(states);
    cJSON_Delete(description);
}

static void export_jobs(struct gd_app *app)
{
    struct gd_counters *counters = app->counters;
    gd_counters_clear(counters, GD_COUNTER_JOBS);
    cJSON *queue = app->scheduler != NULL ? gd_scheduler_describe(app->scheduler) : NULL;
    const cJSON *item;
    cJSON_ArrayForEach(item, gd_json_find(queue, "counts"))
        gd_counters_set(counters, GD_COUNTER_JOBS, item->valuedouble, (const char *[]){item->string});
    cJSON_Delete(queue);
}

void gd_handle_metrics(struct gd_app *app, struct gd_request *request)
{
    struct gd_buf text;
    gd_buf_init(&text, METRICS_BYTES_MAX);
    export_workers(app);
    export_jobs(app);
    gd_counters_set(app->counters, GD_COUNTER_UPTIME, (double)(gd_time_unix() - app->started_at), NULL);
    gd_counters_set(app->counters, GD_COUNTER_BUILD, 1, (const char *[]){GD_VERSION});
    gd_counters_print(app->counters, &text);
    gd_http_reply_bytes(request, 200, "text/plain; version=0.0.4; charset=utf-8", text.data, text.length);
    gd_buf_release(&text);
}

void gd_handle_openapi(struct gd_app *app, struct gd_request *request)
{
    gd_http_reply_bytes(request, 200, "application/yaml", gd_openapi_yaml, gd_openapi_yaml_length);
}
