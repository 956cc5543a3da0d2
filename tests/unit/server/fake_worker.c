#include "fake_worker.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/worker/protocol.h"
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define HEARTBEAT_SECONDS 0.1
#define CHECKPOINT_EVERY 5
#define GENERATIONS_MAX 512

static int server_fd;
static double watermark;

static void send_frame(cJSON *message_taken)
{
    struct gd_buf bytes = {0};
    struct gd_error err = {0};
    gd_frame_write(&bytes, message_taken);
    if (!gd_write_all(server_fd, bytes.data, bytes.length, "server", &err))
        _exit(0);
    gd_buf_release(&bytes);
    cJSON_Delete(message_taken);
}

static cJSON *frame(const char *type)
{
    cJSON *out = cJSON_CreateObject();
    cJSON_AddStringToObject(out, "type", type);
    return out;
}

/* ---- the job ---- */

static struct {
    char *id, *folder, script[80];
    int step, total;
    bool storing;            /* a checkpoint was reported and the server has not stored it yet: no step */
    double next_at;
} job;

static int number_after(const char *word, int otherwise)
{
    const char *at = strstr(job.script, word);
    return at != NULL ? atoi(at + strlen(word)) : otherwise;
}

static cJSON *job_frame(const char *type)
{
    cJSON *out = frame(type);
    cJSON_AddStringToObject(out, "job_id", job.id);
    return out;
}

static void end_job(cJSON *last_taken)
{
    send_frame(last_taken);
    gd_free(job.id);
    gd_free(job.folder);
    job.id = NULL;
}

static void write_text(const char *path, const char *text)
{
    struct gd_error err = {0};
    if (!gd_file_write_durable(path, text, strlen(text), &err))
        _exit(3);
}

static void checkpoint(void)
{
    struct gd_error err = {0};
    char *folder = gd_format("%s/checkpoints/step-%d", job.folder, job.step), *mark = gd_format("%s/last", job.folder);
    char text[16];
    if (!gd_mkdirs(folder, &err))
        _exit(3);
    snprintf(text, sizeof text, "%d", job.step);
    write_text(mark, text);
    if (job.step > 2 * CHECKPOINT_EVERY) { /* two are kept */
        char *old = gd_format("%s/checkpoints/step-%d", job.folder, job.step - 2 * CHECKPOINT_EVERY);
        if (!gd_remove_tree(old, &err))
            _exit(3);
        gd_free(old);
    }
    cJSON *out = job_frame("job_checkpoint");
    cJSON_AddNumberToObject(out, "step", job.step);
    cJSON_AddStringToObject(out, "folder", folder);
    cJSON_AddNumberToObject(cJSON_AddObjectToObject(out, "metrics"), "train_loss", 10.0 / job.step);
    send_frame(out);
    job.storing = true;
    gd_free(folder);
    gd_free(mark);
}

static bool happened_before(const char *what)
{
    char *path = gd_format("%s/%s", job.folder, what);
    bool there = access(path, F_OK) == 0;
    if (!there)
        write_text(path, "");
    gd_free(path);
    return there;
}

static void start_job(const cJSON *message)
{
    struct gd_error err = {0};
    const cJSON *suffix = gd_json_find(gd_json_find(message, "spec"), "suffix");
    job.id = gd_strdup(gd_json_find(message, "job_id")->valuestring);
    job.folder = gd_strdup(gd_json_find(message, "folder")->valuestring);
    snprintf(job.script, sizeof job.script, "%s", cJSON_IsString(suffix) ? suffix->valuestring : "");
    job.total = number_after("steps", 10);
    if (!gd_mkdirs(job.folder, &err))
        _exit(3);
    if (strstr(job.script, "nostart") != NULL)
        _exit(4);
    char *mark = gd_format("%s/last", job.folder), *text = NULL;
    size_t length;
    job.step = gd_file_read(mark, 64, &text, &length, &err) ? atoi(text) : 0;
    gd_free(text);
    gd_free(mark);
    cJSON *out = job_frame("job_started");
    cJSON_AddNumberToObject(out, "total_steps", job.total);
    cJSON_AddNumberToObject(out, "rows", 7);
    cJSON_AddNumberToObject(out, "tokens", 700);
    cJSON_AddItemToObject(out, "hyperparameters", cJSON_Parse("{\"n_epochs\":2,\"batch_size\":4,\"learning_rate\":0.001}"));
    cJSON_AddItemToObject(out, "memory", cJSON_Parse("{\"weights_bytes\":1000}"));
    cJSON_AddNumberToObject(out, "resumed_from", job.step);
    send_frame(out);
    job.next_at = 0;
    job.storing = false;
}

static void step_job(void)
{
    job.step++;
    watermark++;
    cJSON *out = job_frame("job_step");
    cJSON_AddNumberToObject(out, "step", job.step);
    cJSON_AddNumberToObject(out, "total_steps", job.total);
    cJSON_AddNumberToObject(out, "trained_tokens", job.step * 10);
    cJSON_AddNumberToObject(out, "tokens", job.step * 20);
    cJSON_AddNumberToObject(out, "seconds", 0.5);
    cJSON *metrics = cJSON_AddObjectToObject(out, "metrics");
    cJSON_AddNumberToObject(metrics, "train_loss", 10.0 / job.step);
    cJSON_AddNumberToObject(metrics, "train_mean_token_accuracy", 0.5);
    cJSON_AddItemToObject(metrics, "grad_norm", job.step == 3 ? cJSON_CreateNull() : cJSON_CreateNumber(1));
    if (job.step == job.total)
        cJSON_AddNumberToObject(metrics, "valid_loss", 0.25);
    send_frame(out);
    if (job.step % CHECKPOINT_EVERY == 0)
        checkpoint();
    if (job.step == number_after("crash", -1) || (job.step == number_after("once", -1) && !happened_before("crashed")))
        _exit(5);
    if (job.step == number_after("hang", -1) && !happened_before("hung"))
        raise(SIGSTOP);
    if (job.step == number_after("fail", -1)) {
        struct gd_error err = {0};
        gd_fail_param(&err, GD_DISK_FULL, "", "no room for step %d", job.step);
        cJSON *failed = job_frame("job_failed");
        cJSON_AddItemToObject(failed, "error", gd_error_to_json(&err));
        end_job(failed);
    } else if (job.step >= job.total) {
        struct gd_error err = {0};
        char *adapter = gd_format("%s/adapter", job.folder);
        if (!gd_mkdirs(adapter, &err))
            _exit(3);
        cJSON *done = job_frame("job_done");
        cJSON_AddStringToObject(done, "adapter_folder", adapter);
        cJSON_AddNumberToObject(done, "trained_tokens", job.step * 10);
        gd_free(adapter);
        end_job(done);
    }
}

static void stop_job(const char *how)
{
    if (strcmp(how, "cancel") != 0 && job.step > 0)
        checkpoint();
    cJSON *out = job_frame("job_stopped");
    cJSON_AddStringToObject(out, "how", how);
    end_job(out);
}

/* ---- generation ---- */

static struct generation {
    double id, next_at, delay;
    int made, max, choice, prompt_tokens;
    bool split, bytes, echo, logprobs;
} generations[GENERATIONS_MAX];
static int generation_count;

static void send_token(const struct generation *generation, const char *text, cJSON *piece_taken, bool of_prompt, bool first)
{
    double logprob = -0.125 * (generation->choice + 1);
    cJSON *out = frame("token");
    cJSON_AddNumberToObject(out, "id", generation->id);
    cJSON_AddNumberToObject(out, "token", 7);
    cJSON_AddStringToObject(out, "text", text);
    cJSON_AddItemToObject(out, "piece", cJSON_Duplicate(piece_taken, true));
    cJSON_AddItemToObject(out, "logprob", generation->logprobs && !first ? cJSON_CreateNumber(logprob) : cJSON_CreateNull());
    cJSON *top = cJSON_AddArrayToObject(out, "top");
    if (generation->logprobs && !first) {
        cJSON *own = cJSON_CreateArray(), *other = cJSON_CreateArray();
        cJSON_AddItemToArray(own, cJSON_CreateNumber(7));
        cJSON_AddItemToArray(own, cJSON_Duplicate(piece_taken, true));
        cJSON_AddItemToArray(own, cJSON_CreateNumber(logprob));
        cJSON_AddItemToArray(other, cJSON_CreateNumber(8));
        cJSON_AddItemToArray(other, cJSON_CreateString("other"));
        cJSON_AddItemToArray(other, cJSON_CreateNumber(-3.0));
        cJSON_AddItemToArray(top, own);
        cJSON_AddItemToArray(top, other);
    }
    cJSON_AddBoolToObject(out, "prompt", of_prompt);
    cJSON_Delete(piece_taken);
    send_frame(out);
}

static void send_failed(double id, enum gd_code code, const char *message)
{
    struct gd_error err = {0};
    gd_fail_param(&err, code, "messages", "%s", message);
    cJSON *out = frame("failed");
    cJSON_AddNumberToObject(out, "id", id);
    cJSON_AddItemToObject(out, "error", gd_error_to_json(&err));
    send_frame(out);
}

static void start_generation(const cJSON *message)
{
    const cJSON *sampling = gd_json_find(message, "sampling"), *max = gd_json_find(sampling, "max_tokens");
    const cJSON *prompt = gd_json_find(message, "prompt"), *messages = gd_json_find(message, "messages");
    char *text = gd_json_print(prompt != NULL ? prompt : messages);
    double id = gd_json_find(message, "id")->valuedouble;
    if (strstr(text, "die") != NULL)
        _exit(6);
    if (strstr(text, "hang") != NULL)
        raise(SIGSTOP);
    if (strstr(text, "bad") != NULL || generation_count == GENERATIONS_MAX) {
        send_failed(id, GD_CONTEXT, "9 tokens, limit 8");
        gd_free(text);
        return;
    }
    struct generation *generation = &generations[generation_count++];
    *generation = (struct generation){
        .id = id,
        .max = cJSON_IsNumber(max) ? max->valueint : 5,
        .delay = strstr(text, "slow") != NULL ? 0.02 : 0,
        .split = strstr(text, "split") != NULL,
        .bytes = strstr(text, "bytes") != NULL,
        .choice = gd_json_find(message, "choice")->valueint,
        .prompt_tokens = cJSON_IsArray(prompt) ? cJSON_GetArraySize(prompt) : 2,
        .logprobs = gd_json_find(sampling, "logprobs")->valueint >= 0,
    };
    if (cJSON_IsTrue(gd_json_find(sampling, "echo"))) {
        send_token(generation, "pro", cJSON_CreateString("pro"), true, true);
        send_token(generation, "mpt", cJSON_CreateString("mpt"), true, false);
    }
    gd_free(text);
}

static void finish_generation(int index, const char *finish)
{
    cJSON *out = frame("generated");
    cJSON_AddNumberToObject(out, "id", generations[index].id);
    cJSON_AddStringToObject(out, "finish", finish);
    cJSON_AddStringToObject(out, "tail", "");
    cJSON *usage = cJSON_AddObjectToObject(out, "usage");
    cJSON_AddNumberToObject(usage, "prompt_tokens", generations[index].prompt_tokens);
    cJSON_AddNumberToObject(usage, "cached_tokens", 1);
    cJSON_AddNumberToObject(usage, "completion_tokens", generations[index].made);
    send_frame(out);
    generations[index] = generations[--generation_count];
}

static void step_generation(int index, double now)
{
    struct generation *generation = &generations[index];
    char text[16];
    if (now < generation->next_at)
        return;
    if (generation->made >= generation->max) {
        finish_generation(index, "length");
        return;
    }
    watermark++;
    snprintf(text, sizeof text, "%sw%d", generation->made > 0 ? " " : "", generation->made);
    generation->made++;
    generation->next_at = now + generation->delay;
    if (generation->split && generation->made == 1) {
        send_token(generation, "", cJSON_Parse("[240,159]"), false, false);
        send_token(generation, "\xf0\x9f\x98\x80", cJSON_Parse("[152,128]"), false, false);
    } else if (generation->bytes && generation->made == 1) {
        send_token(generation, "\xef\xbf\xbd", cJSON_Parse("[255]"), false, false);
    } else {
        send_token(generation, text, cJSON_CreateString(text), false, false);
    }
}

/* ---- the loop ---- */

static void heartbeat(void)
{
    cJSON *out = frame("heartbeat");
    cJSON_AddStringToObject(out, "busy", job.id != NULL ? "train" : generation_count > 0 ? "generate" : "idle");
    cJSON_AddItemToObject(out, "job_id", job.id != NULL ? cJSON_CreateString(job.id) : cJSON_CreateNull());
    cJSON_AddNumberToObject(out, "rss_bytes", 1000);
    cJSON_AddNumberToObject(out, "step_watermark", watermark);
    cJSON_AddNumberToObject(cJSON_AddObjectToObject(out, "infer"), "running", generation_count);
    send_frame(out);
}

static void answer(const cJSON *message)
{
    const char *type = gd_json_find(message, "type")->valuestring;
    cJSON *out = frame("result");
    cJSON_AddItemToObject(out, "id", cJSON_Duplicate(gd_json_find(message, "id"), true));
    if (strcmp(type, "tokenize") == 0) {
        cJSON_AddItemToObject(out, "tokens", cJSON_Parse("[1,2,3]"));
        cJSON_AddNumberToObject(out, "context", 64);
        cJSON_AddStringToObject(out, "eos_token", "</s>");
        cJSON_AddNullToObject(out, "bos_token");
    } else {
        cJSON_AddStringToObject(out, "text", "abc");
    }
    send_frame(out);
}

static void take_message(const cJSON *message, bool *ending)
{
    const char *type = gd_json_find(message, "type")->valuestring;
    if (strcmp(type, "job_start") == 0) {
        start_job(message);
    } else if (strcmp(type, "job_checkpoint_stored") == 0) {
        job.storing = job.storing && gd_json_find(message, "step")->valueint != job.step;
    } else if (strcmp(type, "job_stop") == 0) {
        if (job.id != NULL && strcmp(job.id, gd_json_find(message, "job_id")->valuestring) == 0)
            stop_job(gd_json_find(message, "how")->valuestring);
    } else if (strcmp(type, "generate") == 0) {
        start_generation(message);
    } else if (strcmp(type, "generate_cancel") == 0) {
        for (int i = generation_count - 1; i >= 0; i--)
            if (generations[i].id == gd_json_find(message, "id")->valuedouble)
                finish_generation(i, "cancelled");
    } else if (strcmp(type, "shutdown") == 0) {
        *ending = true;
        if (job.id != NULL)
            stop_job("requeue");
    } else {
        answer(message);
    }
}

static void read_messages(struct gd_frame_reader *reader, bool *ending)
{
    char bytes[65536];
    ssize_t count = read(server_fd, bytes, sizeof bytes);
    if (count <= 0)
        _exit(0);
    gd_frame_reader_feed(reader, bytes, (size_t)count);
    struct gd_error err = {0};
    cJSON *message = NULL;
    while (gd_frame_next(reader, &message, &err) && message != NULL) {
        take_message(message, ending);
        cJSON_Delete(message);
    }
    if (err.code != GD_OK)
        _exit(7);
}

int fake_worker_main(int fd)
{
    struct gd_frame_reader reader;
    bool ending = false;
    double beat_at = 0;
    server_fd = fd;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    gd_frame_reader_init(&reader);
    cJSON *ready = frame("ready");
    cJSON_AddNumberToObject(ready, "version", GD_PROTOCOL_VERSION);
    cJSON_AddNumberToObject(ready, "pid", getpid());
    cJSON_AddStringToObject(ready, "device", "fake");
    send_frame(ready);
    while (!ending || generation_count > 0) {
        double now = gd_time_monotonic();
        struct pollfd waiting = {.fd = fd, .events = POLLIN};
        bool busy = generation_count > 0 || (job.id != NULL && !job.storing && now >= job.next_at);
        if (poll(&waiting, 1, busy ? 0 : 5) > 0)
            read_messages(&reader, &ending);
        if (now >= beat_at) {
            heartbeat();
            beat_at = now + HEARTBEAT_SECONDS;
        }
        for (int i = generation_count - 1; i >= 0; i--)
            step_generation(i, now);
        if (job.id != NULL && !job.storing && now >= job.next_at) {
            job.next_at = now + (strstr(job.script, "slow") != NULL ? 0.02 : 0);
            step_job();
        }
    }
    gd_frame_reader_release(&reader);
    return 0;
}
