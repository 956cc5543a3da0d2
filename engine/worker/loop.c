/* loop.c - `graftd worker`: waits for messages, turns the engines, runs jobs, beats. */
#include "engine/worker/worker.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "engine/base/memory.h"
#include "engine/eval/sandbox.h"
#include "engine/tensor/device.h"
#include "engine/tensor/pack_cache.h"
#include "engine/worker/command.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define HEARTBEAT_MS 1000

static void *heartbeat(void *context)
{
    struct gd_worker *worker = context;
    while (!atomic_load(&worker->ended)) {
        pthread_mutex_lock(&worker->status_mutex);
        struct gd_infer_stats stats = worker->stats;
        char job[sizeof(worker->status_job)];
        strcpy(job, worker->status_job);
        const char *busy = job[0] ? worker->status_busy : stats.running + stats.waiting > 0 ? "generate" : "idle";
        pthread_mutex_unlock(&worker->status_mutex);
        cJSON *json = cJSON_CreateObject();
        cJSON_AddStringToObject(json, "type", "heartbeat");
        cJSON_AddStringToObject(json, "busy", busy);
        cJSON_AddItemToObject(json, "job_id", job[0] ? cJSON_CreateString(job) : cJSON_CreateNull());
        cJSON_AddNumberToObject(json, "rss_bytes", (double)gd_memory_resident());
        if (gd_memory_of_device()) {
            cJSON_AddNumberToObject(json, "device_bytes", (double)gd_memory_taken());
            cJSON_AddNumberToObject(json, "device_limit_bytes", (double)gd_memory_bytes());
        }
        cJSON_AddNumberToObject(json, "step_watermark", (double)atomic_load(&worker->watermark));
        cJSON *infer = cJSON_AddObjectToObject(json, "infer");
        cJSON_AddNumberToObject(infer, "running", stats.running);
        cJSON_AddNumberToObject(infer, "waiting", stats.waiting);
        cJSON_AddNumberToObject(infer, "prompt_tokens", (double)stats.prompt_tokens);
        cJSON_AddNumberToObject(infer, "completion_tokens", (double)stats.completion_tokens);
        cJSON_AddNumberToObject(infer, "cached_tokens", (double)stats.cached_tokens);
        cJSON_AddNumberToObject(infer, "pages_used", (double)stats.pages_used);
        cJSON_AddNumberToObject(infer, "pages_total", (double)stats.pages_total);
        cJSON_AddNumberToObject(infer, "adapter_bytes", (double)stats.adapter_bytes);
        gd_channel_send(&worker->channel, json);
        struct timespec pause = {.tv_sec = HEARTBEAT_MS / 1000, .tv_nsec = HEARTBEAT_MS % 1000 * 1000000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

void gd_worker_answer(struct gd_worker *worker, int wait_ms)
{
    cJSON *message;
    for (; (message = gd_channel_receive(&worker->channel, wait_ms)) != NULL; wait_ms = 0) {
        gd_worker_message(worker, message);
        cJSON_Delete(message);
    }
    atomic_fetch_add(&worker->watermark, 1);
}

void gd_worker_publish_stats(struct gd_worker *worker)
{
    struct gd_infer_stats stats;
    gd_residents_stats(&worker->residents, &stats);
    pthread_mutex_lock(&worker->status_mutex);
    worker->stats = stats;
    pthread_mutex_unlock(&worker->status_mutex);
}

static void job_stop(struct gd_worker *worker, const cJSON *message)
{
    const cJSON *job_id = gd_json_find(message, "job_id"), *how = gd_json_find(message, "how");
    if (!cJSON_IsString(job_id) || !cJSON_IsString(how))
        return;
    enum gd_stop stop = strcmp(how->valuestring, "cancel") == 0   ? GD_STOP_CANCEL
                        : strcmp(how->valuestring, "pause") == 0 ? GD_STOP_PAUSE
                                                                 : GD_STOP_REQUEUE;
    struct gd_worker_job *job = gd_worker_find_job(worker, job_id->valuestring);
    if (job != NULL) {
        if (stop > job->stop)
            job->stop = stop;
        return;
    }
    for (int i = 0; i < cJSON_GetArraySize(worker->pending_jobs); i++) {
        const cJSON *pending = gd_json_find(cJSON_GetArrayItem(worker->pending_jobs, i), "job_id");
        if (!cJSON_IsString(pending) || strcmp(pending->valuestring, job_id->valuestring) != 0)
            continue;
        cJSON *json = cJSON_CreateObject();
        cJSON_AddStringToObject(json, "type", "job_stopped");
        cJSON_AddStringToObject(json, "job_id", job_id->valuestring);
        cJSON_AddStringToObject(json, "how", how->valuestring);
        gd_channel_send(&worker->channel, json);
        cJSON_DeleteItemFromArray(worker->pending_jobs, i);
        return;
    }
}

void gd_worker_message(struct gd_worker *worker, const cJSON *message)
{
    const cJSON *type = gd_json_find(message, "type");
    if (!cJSON_IsString(type))
        return;
    if (strcmp(type->valuestring, "job_start") == 0) {
        cJSON_AddItemToArray(worker->pending_jobs, cJSON_Duplicate(message, true));
    } else if (strcmp(type->valuestring, "job_stop") == 0) {
        job_stop(worker, message);
    } else if (strcmp(type->valuestring, "job_checkpoint_stored") == 0 || strcmp(type->valuestring, "job_items_stored") == 0) {
        bool items = strcmp(type->valuestring, "job_items_stored") == 0;
        const cJSON *job_id = gd_json_find(message, "job_id"), *step = gd_json_find(message, items ? "sequence" : "step");
        struct gd_worker_job *job = cJSON_IsString(job_id) ? gd_worker_find_job(worker, job_id->valuestring) : NULL;
        if (job != NULL && cJSON_IsNumber(step))
            job->stored_step = (int64_t)step->valuedouble;
    } else if (strcmp(type->valuestring, "release_adapter") == 0) {
        const cJSON *path = gd_json_find(message, "adapter_path");
        if (cJSON_IsString(path))
            gd_residents_forget(&worker->residents, path->valuestring);
    } else if (strcmp(type->valuestring, "shutdown") == 0) {
        worker->shutting_down = true;
        for (int i = 0; i < worker->job_count; i++)
            if (worker->jobs[i]->stop < GD_STOP_REQUEUE)
                worker->jobs[i]->stop = GD_STOP_REQUEUE;
    } else {
        gd_worker_request(worker, type->valuestring, message);
    }
}

static void announce(struct gd_worker *worker)
{
    const struct gd_device_info *device = gd_device();
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "type", "ready");
    cJSON_AddNumberToObject(json, "version", GD_PROTOCOL_VERSION);
    cJSON_AddNumberToObject(json, "pid", (double)getpid());
    cJSON_AddStringToObject(json, "device", device->name);
    cJSON_AddStringToObject(json, "isa", device->isa);
    cJSON_AddStringToObject(json, "compute", gd_dtype_name(device->compute));
    cJSON_AddNumberToObject(json, "threads", device->threads);
    cJSON_AddStringToObject(json, "build", GD_VERSION);
    gd_channel_send(&worker->channel, json);
}

void gd_worker_give_up(struct gd_channel *channel, const char *why)
{
    cJSON *json = cJSON_CreateObject();
    gd_log_error("worker", "error=%s", why);
    cJSON_AddStringToObject(json, "type", "device_failed");
    cJSON_AddStringToObject(json, "message", why);
    gd_channel_send(channel, json);
    _exit(GD_WORKER_EXIT_DEVICE);
}

static void loop(struct gd_worker *worker)
{
    while (!worker->shutting_down || gd_residents_busy(&worker->residents)) {
        bool pending = cJSON_GetArraySize(worker->pending_jobs) > 0, busy = gd_residents_busy(&worker->residents) || pending;
        cJSON *message = gd_channel_receive(&worker->channel, busy ? 0 : -1);
        atomic_fetch_add(&worker->watermark, 1);
        if (message != NULL) {
            gd_worker_message(worker, message);
            cJSON_Delete(message);
            continue;
        }
        if (pending && !worker->shutting_down) {
            gd_worker_run_job(worker);
            continue;
        }
        gd_residents_turn(&worker->residents);
        if (gd_device_lost() != NULL)
            gd_worker_give_up(&worker->channel, gd_device_lost());
        gd_worker_publish_stats(worker);
    }
}

struct options {
    int fd, threads;
    const char *device;
    size_t cache_bytes, memory_limit;
    const char *packed_cache;
    uint64_t packed_cache_bytes;
    struct gd_sandbox_settings python;
};

static bool parse_options(int argc, char **argv, struct options *options)
{
    static const struct option known[] = {{"fd", required_argument, NULL, 'f'}, {"device", required_argument, NULL, 'd'},
                                          {"threads", required_argument, NULL, 't'},
                                          {"cache-bytes", required_argument, NULL, 'c'},
                                          {"memory-limit", required_argument, NULL, 'l'},
                                          {"packed-cache", required_argument, NULL, 'k'},
                                          {"packed-cache-bytes", required_argument, NULL, 'K'},
                                          {"python", required_argument, NULL, 'p'},
                                          {"python-seconds", required_argument, NULL, 's'},
                                          {"python-memory", required_argument, NULL, 'm'}, {NULL, 0, NULL, 0}};
    *options = (struct options){.fd = -1, .device = "auto",
                                 .python = {.seconds = GD_SANDBOX_SECONDS, .memory_bytes = GD_SANDBOX_MEMORY_BYTES}};
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'f':
            options->fd = atoi(optarg);
            break;
        case 'd':
            options->device = optarg;
            break;
        case 't':
            options->threads = atoi(optarg);
            break;
        case 'c':
            options->cache_bytes = strtoull(optarg, NULL, 10);
            break;
        case 'l':
            options->memory_limit = strtoull(optarg, NULL, 10);
            break;
        case 'k':
            options->packed_cache = optarg;
            break;
        case 'K':
            options->packed_cache_bytes = strtoull(optarg, NULL, 10);
            break;
        case 'p':
            options->python.interpreter = optarg;
            break;
        case 's':
            options->python.seconds = atoi(optarg);
            break;
        case 'm':
            options->python.memory_bytes = strtoull(optarg, NULL, 10);
            break;
        default:
            return false;
        }
    }
    return options->fd >= 0;
}

int gd_command_worker(int argc, char **argv)
{
    struct options options;
    struct gd_error err = {0};
    if (!parse_options(argc, argv, &options)) {
        fprintf(stderr, "graftd: 'worker' is started by 'graftd serve' and takes --fd N --device D --threads N --cache-bytes N\n");
        return 2;
    }
    /* The server's death ends this process: its jobs continue from their checkpoints under the next server. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_IGN); /* a terminal's ^C goes to the server, which sends `shutdown` */
    gd_log_init("worker", GD_LOG_INFO);
    gd_sandbox_configure(&options.python);
    static struct gd_worker worker;
    gd_channel_init(&worker.channel, options.fd);
    if (!gd_device_init(options.device, options.threads, &err))
        gd_worker_give_up(&worker.channel, err.message);
    gd_pack_cache_configure(options.packed_cache, options.packed_cache_bytes);
    gd_memory_set_limit(options.memory_limit > 0 ? options.memory_limit : gd_memory_bytes());
    gd_residents_init(&worker.residents, options.cache_bytes > 0 ? options.cache_bytes : gd_memory_cache_share(gd_memory_bytes()));
    pthread_mutex_init(&worker.status_mutex, NULL);
    worker.pending_jobs = cJSON_CreateArray();
    worker.status_busy = "idle";
    announce(&worker);
    if (pthread_create(&worker.heartbeat, NULL, heartbeat, &worker) != 0) {
        gd_log_error("worker", "error=cannot start the heartbeat thread");
        return 1;
    }
    loop(&worker);
    atomic_store(&worker.ended, true);
    pthread_join(worker.heartbeat, NULL);
    gd_residents_release(&worker.residents);
    cJSON_Delete(worker.pending_jobs);
    pthread_mutex_destroy(&worker.status_mutex);
    gd_channel_release(&worker.channel);
    return 0;
}
