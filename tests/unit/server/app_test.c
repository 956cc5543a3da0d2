/* The whole server as a process, over HTTP, with the fake worker: answers, streams, crashes, stops. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/json.h"
#include "engine/base/log.h"
#include "fake_worker.h"
#include "server/app.h"
#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define PATIENCE_SECONDS 20

struct server {
    char *folder;
    pid_t pid;
    int port;
    char *file_id;
};

/* ---- the process ---- */

static int serve_main(const char *folder)
{
    struct gd_config config;
    gd_config_init(&config);
    gd_free(config.data_dir);
    gd_free(config.models_dir);
    config.data_dir = gd_format("%s/data", folder);
    config.models_dir = gd_format("%s/models", folder);
    config.listen_port = 0;
    config.jobs_per_pass = 1; /* the fake worker has one job */
    int code = gd_app_run(&config);
    gd_config_release(&config);
    return code;
}

static void start(struct server *server)
{
    int out[2];
    assert_int_equal(pipe(out), 0);
    server->pid = fork();
    if (server->pid == 0) {
        dup2(out[1], STDOUT_FILENO);
        close(out[0]);
        close(out[1]);
        execl("/proc/self/exe", "app_test", "serve", server->folder, (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    FILE *lines = fdopen(out[0], "r");
    char host[64];
    server->port = 0;
    if (fscanf(lines, "listening on http://%63[0-9.]:%d", host, &server->port) != 2)
        fail_msg("the server does not listen");
    fclose(lines);
}

static int stop(struct server *server, int signal_number)
{
    int status = 0;
    kill(server->pid, signal_number);
    assert_int_equal(waitpid(server->pid, &status, 0), server->pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* ---- requests ---- */

struct reply {
    int status;
    struct gd_buf raw;
    const char *headers, *body;
    cJSON *json;
};

static int open_request(const struct server *server, const char *method, const char *path, const char *headers,
                        const char *body, size_t length)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)server->port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    struct gd_buf request = {0};
    gd_buf_printf(&request, "%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n%s", method, path, headers);
    if (strcmp(method, "POST") == 0)
        gd_buf_printf(&request, "Content-Length: %zu\r\n", length);
    gd_buf_append_text(&request, "\r\n");
    gd_buf_append(&request, body, length);
    struct gd_error err = {0};
    assert_true(gd_write_all(fd, request.data, request.length, "socket", &err));
    gd_buf_release(&request);
    return fd;
}

/* Reads until `mark` is there, or the end. */
static void read_until(int fd, struct gd_buf *raw, const char *mark)
{
    char bytes[4096];
    while (mark == NULL || raw->data == NULL || strstr(raw->data, mark) == NULL) {
        ssize_t count = read(fd, bytes, sizeof bytes);
        if (count < 0)
            fail_msg("no answer: %s\n%s", strerror(errno), raw->data != NULL ? raw->data : "");
        if (count == 0)
            return;
        gd_buf_append(raw, bytes, (size_t)count);
    }
}

/* Takes the chunks of a chunked body apart, in place. */
static void unchunk(char *body)
{
    char *out = body, *in = body;
    for (;;) {
        char *end;
        size_t length = strtoul(in, &end, 16);
        if (end == in || length == 0 || strlen(end) < length + 2)
            break;
        memmove(out, end + 2, length);
        out += length;
        in = end + 2 + length + 2;
    }
    *out = '\0';
}

static struct reply finish_request(int fd)
{
    struct reply reply = {0};
    struct gd_error err = {0};
    read_until(fd, &reply.raw, NULL);
    close(fd);
    char *body = reply.raw.data != NULL ? strstr(reply.raw.data, "\r\n\r\n") : NULL;
    if (body == NULL)
        fail_msg("no answer");
    *body = '\0';
    reply.headers = reply.raw.data;
    reply.body = body + 4;
    reply.status = atoi(reply.raw.data + strlen("HTTP/1.1 "));
    if (strcasestr(reply.headers, "transfer-encoding: chunked") != NULL)
        unchunk(body + 4);
    if (reply.body[0] == '{')
        reply.json = gd_json_parse(reply.body, strlen(reply.body), 1 << 26, &err);
    return reply;
}

static int open_json(const struct server *server, const char *path, const char *json)
{
    return open_request(server, "POST", path, "Content-Type: application/json\r\n", json, strlen(json));
}

static struct reply ask(const struct server *server, const char *method, const char *path, const char *json)
{
    return finish_request(json != NULL ? open_json(server, path, json) : open_request(server, method, path, "", "", 0));
}

static void release(struct reply *reply)
{
    gd_buf_release(&reply->raw);
    cJSON_Delete(reply->json);
}

static const char *text_at(const struct reply *reply, const char *path)
{
    const cJSON *at = reply->json;
    char *copy = gd_strdup(path), *rest = NULL;
    for (char *name = strtok_r(copy, ".", &rest); name != NULL && at != NULL; name = strtok_r(NULL, ".", &rest))
        at = cJSON_IsArray(at) ? cJSON_GetArrayItem(at, atoi(name)) : gd_json_find(at, name);
    gd_free(copy);
    if (!cJSON_IsString(at))
        fail_msg("no text at %s in %s", path, reply->body);
    return at->valuestring;
}

static void assert_has(const char *text, const char *part)
{
    if (strcasestr(text, part) == NULL)
        fail_msg("no '%s' in:\n%s", part, text);
}

static void assert_status(const struct reply *reply, int status)
{
    if (reply->status != status)
        fail_msg("status %d, not %d: %s", reply->status, status, reply->body);
}

static void assert_error(const struct server *server, const char *path, const char *json, int status, const char *code,
                         const char *param)
{
    struct reply reply = ask(server, "POST", path, json);
    assert_status(&reply, status);
    assert_string_equal(text_at(&reply, "error.code"), code);
    if (param != NULL)
        assert_string_equal(text_at(&reply, "error.param"), param);
    release(&reply);
}

static void upload(struct server *server)
{
    static const char body[] = "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n"
                               "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n"
                               "\r\n--X\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--X--\r\n";
    struct reply reply = finish_request(open_request(server, "POST", "/v1/files",
                                                     "Content-Type: multipart/form-data; boundary=X\r\n", body, strlen(body)));
    assert_status(&reply, 200);
    server->file_id = gd_strdup(text_at(&reply, "id"));
    release(&reply);
}

static int setup(void **state)
{
    struct server *server = gd_alloc(sizeof *server);
    char template[] = "/tmp/graftd-test-XXXXXX";
    assert_non_null(mkdtemp(template));
    server->folder = gd_strdup(template);
    char *base = gd_format("%s/models/base", template), *config = gd_format("%s/config.json", base);
    struct gd_error err = {0};
    assert_true(gd_mkdirs(base, &err) && gd_file_write_durable(config, "{}", 2, &err));
    gd_free(base);
    gd_free(config);
    start(server);
    upload(server);
    *state = server;
    return 0;
}

static int teardown(void **state)
{
    struct server *server = *state;
    struct gd_error err = {0};
    int code = stop(server, SIGTERM);
    if (code != 0)
        fail_msg("the server ended with %d", code);
    assert_true(gd_remove_tree(server->folder, &err));
    gd_free(server->folder);
    gd_free(server->file_id);
    gd_free(server);
    return 0;
}

/* ---- completions ---- */

#define MESSAGES(text) "\"messages\":[{\"role\":\"user\",\"content\":\"" text "\"}]"

static void chat_answers_with_all_that_was_asked(void **state)
{
    struct server *server = *state;
    struct reply reply = ask(server, "POST", "/v1/chat/completions",
                             "{\"model\":\"base\"," MESSAGES("hi") ",\"n\":2,\"max_tokens\":3,\"logprobs\":true,\"top_logprobs\":1,"
                             "\"user\":\"me\"}");
    assert_status(&reply, 200);
    assert_string_equal(text_at(&reply, "object"), "chat.completion");
    assert_string_equal(text_at(&reply, "choices.0.message.content"), "w0 w1 w2");
    assert_string_equal(text_at(&reply, "choices.1.message.content"), "w0 w1 w2");
    assert_string_equal(text_at(&reply, "choices.1.finish_reason"), "length");
    assert_string_equal(text_at(&reply, "choices.1.logprobs.content.2.token"), " w2");
    assert_has(reply.body, "\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":6,\"total_tokens\":8,");
    assert_has(reply.headers, "x-graftd-ignored-fields: user");
    assert_has(reply.headers, "x-request-id: req_");
    release(&reply);
}

static void completions_keep_the_order_of_prompts(void **state)
{
    struct server *server = *state;
    struct reply reply = ask(server, "POST", "/v1/completions",
                             "{\"model\":\"base\",\"prompt\":[[1,2,3],[4]],\"n\":2,\"max_tokens\":1,\"echo\":true,\"logprobs\":1}");
    assert_status(&reply, 200);
    const cJSON *choices = gd_json_find(reply.json, "choices");
    assert_int_equal(cJSON_GetArraySize(choices), 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(gd_json_find(cJSON_GetArrayItem(choices, i), "index")->valueint, i);
    assert_string_equal(text_at(&reply, "choices.2.text"), "promptw0");
    assert_has(reply.body, "\"tokens\":[\"pro\",\"mpt\",\"w0\"],\"token_logprobs\":[null,-0.125,-0.125],\"top_logprobs\":"
                           "[null,{\"mpt\":-0.125},{\"w0\":-0.125}],\"text_offset\":[0,3,6]");
    assert_has(reply.body, "\"prompt_tokens\":4");
    release(&reply);
}

static void best_of_gives_the_likeliest(void **state)
{
    struct server *server = *state; /* the fake's log-probabilities fall with the sequence's number */
    struct reply reply = ask(server, "POST", "/v1/completions",
                             "{\"model\":\"base\",\"prompt\":\"a\",\"best_of\":3,\"n\":2,\"max_tokens\":1,\"logprobs\":0}");
    assert_status(&reply, 200);
    const cJSON *choices = gd_json_find(reply.json, "choices");
    assert_int_equal(cJSON_GetArraySize(choices), 2);
    assert_has(reply.body, "\"token_logprobs\":[-0.125]");
    assert_has(reply.body, "\"token_logprobs\":[-0.25]");
    assert_has(reply.body, "\"completion_tokens\":3");
    release(&reply);
}

static void a_stream_has_role_text_end_and_usage(void **state)
{
    struct server *server = *state;
    struct reply reply = ask(server, "POST", "/v1/chat/completions",
                             "{\"model\":\"base\"," MESSAGES("hi") ",\"max_tokens\":2,\"stream\":true,"
                             "\"stream_options\":{\"include_usage\":true}}");
    assert_status(&reply, 200);
    assert_has(reply.headers, "content-type: text/event-stream");
    const char *const in_order[] = {"data: {\"id\":\"chatcmpl-", "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}",
                                    "\"usage\":null", "\"delta\":{\"content\":\"w0\"}", "\"delta\":{\"content\":\" w1\"}",
                                    "\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"", "\"choices\":[],\"usage\":{\"prompt_tokens\":2",
                                    "data: [DONE]\n\n"};
    const char *at = reply.body;
    for (size_t i = 0; i < GD_COUNT(in_order); i++) {
        at = strstr(at, in_order[i]);
        if (at == NULL)
            fail_msg("no '%s' in order in:\n%s", in_order[i], reply.body);
    }
    release(&reply);

    reply = ask(server, "POST", "/v1/completions", "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":1,\"stream\":true}");
    assert_has(reply.body, "\"object\":\"text_completion\"");
    assert_has(reply.body, "\"text\":\"w0\",\"logprobs\":null,\"finish_reason\":null");
    assert_has(reply.body, "\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"length\"");
    release(&reply);
}

static void a_stream_never_cuts_a_character(void **state)
{
    struct server *server = *state;
    struct reply reply = ask(server, "POST", "/v1/chat/completions",
                             "{\"model\":\"base\"," MESSAGES("split") ",\"max_tokens\":1,\"stream\":true,\"logprobs\":true}");
    assert_has(reply.body, "\"delta\":{\"content\":\"\xf0\x9f\x98\x80\"},\"logprobs\":{\"content\":[{\"token\":\"\\\\xf0\\\\x9f\"");
    assert_has(reply.body, "\"bytes\":[152,128]");
    release(&reply);
}

static void errors_keep_their_shape(void **state)
{
    struct server *server = *state;
    assert_error(server, "/v1/chat/completions", "{\"model\":\"nobody\"," MESSAGES("hi") "}", 404, "model_not_found", "model");
    assert_error(server, "/v1/chat/completions", "{\"model\":\"base\"}", 400, "missing_required_parameter", "messages");
    assert_error(server, "/v1/chat/completions", "{\"model\":\"base\"," MESSAGES("bad") "}", 400, "context_length_exceeded",
                 "messages");
    assert_error(server, "/v1/chat/completions", "{\"model\":\"base\"," MESSAGES("bad") ",\"stream\":true}", 400,
                 "context_length_exceeded", "messages");
    assert_error(server, "/v1/completions", "{\"model\":\"base\",\"prompt\":\"a\",\"temperature\":3}", 400, "invalid_value",
                 "temperature");
}

static void a_worker_that_dies_takes_only_its_requests(void **state)
{
    struct server *server = *state;
    struct gd_buf streamed = {0};
    int fd = open_json(server, "/v1/completions", "{\"model\":\"base\",\"prompt\":\"slow\",\"max_tokens\":10000,\"stream\":true}");
    read_until(fd, &streamed, "w1");
    assert_error(server, "/v1/completions", "{\"model\":\"base\",\"prompt\":\"die\"}", 503, "service_unavailable", NULL);
    read_until(fd, &streamed, "[DONE]");
    assert_has(streamed.data, "data: {\"error\":{\"message\":\"the worker that served this request ended (exit code 6)");
    close(fd);
    gd_buf_release(&streamed);
    struct reply reply = ask(server, "POST", "/v1/completions", "{\"model\":\"base\",\"prompt\":\"a\",\"max_tokens\":1}");
    assert_status(&reply, 200); /* waited for the next worker */
    release(&reply);
}

static void until_running(const struct server *server, int count)
{
    char *line = gd_format("graftd_infer_running{worker=\"0\"} %d\n", count);
    bool there = false;
    for (int i = 0; !there && i < PATIENCE_SECONDS * 50; i++) {
        struct reply reply = ask(server, "GET", "/metrics", NULL);
        there = strstr(reply.body, line) != NULL;
        if (!there && i == PATIENCE_SECONDS * 50 - 1)
            fail_msg("no %s in:\n%s", line, reply.body);
        release(&reply);
        usleep(20000);
    }
    gd_free(line);
}

static void a_client_that_leaves_frees_the_worker(void **state)
{
    struct server *server = *state;
    int fds[3];
    for (int i = 0; i < 3; i++)
        fds[i] = open_json(server, "/v1/completions",
                           i < 2 ? "{\"model\":\"base\",\"prompt\":\"slow\",\"max_tokens\":10000,\"stream\":true}"
                                 : "{\"model\":\"base\",\"prompt\":\"slow\",\"max_tokens\":10000,\"n\":2}");
    until_running(server, 4);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    until_running(server, 0);
}

static void tokens_are_served_at_the_root(void **state)
{
    struct server *server = *state;
    struct reply reply = ask(server, "POST", "/tokenize", "{\"prompt\":\"abc\",\"add_special_tokens\":false}");
    assert_status(&reply, 200);
    assert_string_equal(reply.body, "{\"count\":3,\"max_model_len\":64,\"tokens\":[1,2,3]}");
    release(&reply);
    reply = ask(server, "POST", "/detokenize", "{\"tokens\":[1,2,3],\"model\":\"base\"}");
    assert_string_equal(reply.body, "{\"prompt\":\"abc\"}");
    release(&reply);
    reply = ask(server, "GET", "/tokenizer_info", NULL);
    assert_has(reply.body, "\"eos_token\":\"</s>\"");
    release(&reply);
    assert_error(server, "/tokenize", "{}", 400, "missing_required_parameter", "prompt");
    assert_error(server, "/detokenize", "{\"tokens\":[-1]}", 400, "invalid_value", "tokens");
}

/* ---- jobs ---- */

static char *create_job(const struct server *server, const char *script)
{
    char *body = gd_format("{\"model\":\"base\",\"training_file\":\"%s\",\"suffix\":\"%s\",\"metadata\":{\"team\":\"%s\"}}",
                           server->file_id, script, script);
    struct reply reply = ask(server, "POST", "/v1/fine_tuning/jobs", body);
    assert_status(&reply, 200);
    char *id = gd_strdup(text_at(&reply, "id"));
    release(&reply);
    gd_free(body);
    return id;
}

static struct reply get_job(const struct server *server, const char *id, const char *rest)
{
    char *path = gd_format("/v1/fine_tuning/jobs/%s%s", id, rest);
    struct reply reply = ask(server, "GET", path, NULL);
    gd_free(path);
    return reply;
}

static void until_status(const struct server *server, const char *id, const char *status)
{
    for (int i = 0; i < PATIENCE_SECONDS * 50; i++) {
        struct reply reply = get_job(server, id, "");
        bool there = strcmp(text_at(&reply, "status"), status) == 0;
        release(&reply);
        if (there)
            return;
        usleep(20000);
    }
    fail_msg("job %s is never %s", id, status);
}

static struct reply act(const struct server *server, const char *id, const char *action)
{
    char *path = gd_format("/v1/fine_tuning/jobs/%s/%s", id, action);
    struct reply reply = ask(server, "POST", path, NULL);
    gd_free(path);
    return reply;
}

static void a_job_goes_from_upload_to_model(void **state)
{
    struct server *server = *state;
    char *id = create_job(server, "steps12");
    until_status(server, id, "succeeded");
    struct reply reply = get_job(server, id, "");
    const char *const required[] = {"id", "object", "created_at", "finished_at", "model", "fine_tuned_model", "organization_id",
                                    "status", "trained_tokens", "training_file", "validation_file", "result_files", "seed",
                                    "hyperparameters", "method", "metadata", "error", "progress", "adapter", "memory", "attempt",
                                    "queue_position", "started_at", "estimated_finish", "integrations", "user_provided_suffix"};
    for (size_t i = 0; i < GD_COUNT(required); i++)
        if (gd_json_find(reply.json, required[i]) == NULL)
            fail_msg("no %s in %s", required[i], reply.body);
    char *model = gd_strdup(text_at(&reply, "fine_tuned_model")), *results = gd_strdup(text_at(&reply, "result_files.0"));
    assert_has(reply.body, "\"trained_tokens\":120");
    release(&reply);

    char *path = gd_format("/v1/files/%s/content", results);
    reply = ask(server, "GET", path, NULL);
    assert_status(&reply, 200);
    assert_has(reply.body, "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,10,0.5,,\n");
    release(&reply);
    gd_free(path);

    char *body = gd_format("{\"model\":\"%s\",\"prompt\":\"a\",\"max_tokens\":1}", model);
    reply = ask(server, "POST", "/v1/completions", body);
    assert_status(&reply, 200);
    assert_string_equal(text_at(&reply, "model"), model);
    release(&reply);
    gd_free(body);

    reply = get_job(server, id, "/checkpoints");
    assert_has(reply.body, "\"step_number\":10");
    assert_has(reply.body, "\"has_more\":false");
    assert_string_equal(text_at(&reply, "first_id"), text_at(&reply, "data.0.id"));
    release(&reply);

    reply = get_job(server, id, "/metrics?names=train_loss&buckets=4&smooth=0.5");
    assert_status(&reply, 200);
    assert_string_equal(text_at(&reply, "object"), "fine_tuning.job.metrics");
    assert_string_equal(text_at(&reply, "series.0.unit"), "nat/token");
    assert_int_equal(cJSON_GetArraySize(gd_json_find(cJSON_GetArrayItem(gd_json_find(reply.json, "series"), 0), "x")), 4);
    assert_has(reply.headers, "etag: \"");
    release(&reply);
    reply = get_job(server, id, "/metrics?format=csv");
    assert_has(reply.body, "step,name,value,wall\n");
    release(&reply);
    const char *const bad[] = {"buckets=0", "smooth=2", "scale=cube", "from=9&to=3", "x=wall", "format=xml"};
    for (size_t i = 0; i < GD_COUNT(bad); i++) {
        char *query = gd_format("/metrics?%s", bad[i]);
        reply = get_job(server, id, query);
        assert_status(&reply, 400);
        release(&reply);
        gd_free(query);
    }
    gd_free(model);
    gd_free(results);
    gd_free(id);
}

static void events_page_and_replay(void **state)
{
    struct server *server = *state;
    char *id = create_job(server, "steps30-slow");
    char *path = gd_format("/v1/fine_tuning/jobs/%s/events?stream=true", id);
    struct reply all = ask(server, "GET", path, NULL); /* until the job ends */
    assert_has(all.body, "Created fine-tuning job: ftjob-");
    assert_has(all.body, "Step 30/30");
    assert_has(all.body, "The job has successfully completed");
    assert_has(all.body, "data: [DONE]\n\n");
    const char *middle = strstr(all.body, "Step 15/30");
    assert_non_null(middle);
    while (strncmp(middle, "\nid: ", 5) != 0)
        middle--;
    long long sequence = atoll(middle + 5);
    char *header = gd_format("Last-Event-ID: %lld\r\nAccept: text/event-stream\r\n", sequence);
    char *plain = gd_format("/v1/fine_tuning/jobs/%s/events", id);
    struct reply rest = finish_request(open_request(server, "GET", plain, header, "", 0));
    assert_null(strstr(rest.body, "Step 15/30"));
    assert_has(rest.body, "Step 16/30");
    assert_has(strstr(all.body, "Step 16/30"), strstr(rest.body, "Step 16/30")); /* the same to the last byte */
    release(&all);
    release(&rest);

    struct reply page = get_job(server, id, "/events?limit=2");
    assert_string_equal(text_at(&page, "data.0.message"), "The job has successfully completed");
    assert_has(page.body, "\"has_more\":true");
    char *next = gd_format("/events?limit=2&after=%s", text_at(&page, "data.1.id"));
    struct reply second = get_job(server, id, next);
    assert_status(&second, 200);
    assert_int_equal(cJSON_GetArraySize(gd_json_find(second.json, "data")), 2);
    release(&page);
    release(&second);
    page = get_job(server, "ftjob-none", "/events?stream=true");
    assert_status(&page, 404);
    release(&page);
    page = get_job(server, id, "/events?stream=maybe");
    assert_status(&page, 400);
    release(&page);
    gd_free(next);
    gd_free(plain);
    gd_free(header);
    gd_free(path);
    gd_free(id);
}

static void jobs_pause_resume_and_cancel(void **state)
{
    struct server *server = *state;
    char *id = create_job(server, "steps500-slow");
    until_status(server, id, "running");
    struct reply reply = act(server, id, "resume");
    assert_status(&reply, 409);
    assert_has(reply.headers, "x-should-retry: false");
    assert_has(reply.body, "is running");
    release(&reply);
    reply = act(server, id, "pause");
    assert_status(&reply, 200);
    assert_has(reply.body, "paus");
    release(&reply);
    until_status(server, id, "paused");
    reply = act(server, id, "resume");
    assert_string_equal(text_at(&reply, "status"), "queued");
    release(&reply);
    until_status(server, id, "running");
    reply = act(server, id, "cancel");
    assert_string_equal(text_at(&reply, "status"), "cancelled");
    release(&reply);
    reply = act(server, id, "cancel");
    assert_status(&reply, 409);
    release(&reply);
    reply = act(server, "ftjob-none", "cancel");
    assert_status(&reply, 404);
    release(&reply);
    gd_free(id);
}

static void bad_jobs_are_refused_by_name(void **state)
{
    struct server *server = *state;
    static const struct {
        const char *members, *code, *param;
        int status;
    } cases[] = {
        {"\"metadata\":{\"a\":1}", "invalid_value", "metadata.a", 400},
        {"\"metadata\":[]", "invalid_value", "metadata", 400},
        {"\"integrations\":[{\"type\":\"wandb\"}]", "unsupported_value", "integrations", 400},
        {"\"method\":{\"type\":\"reinforcement\"}", "unsupported_value", "method.type", 400},
        {"\"validation_file\":\"file-none\"", "invalid_value", "validation_file", 400},
        {"\"bogus\":1", "unknown_parameter", "bogus", 400},
        {"\"seed\":-1", "invalid_value", "seed", 400},
        {"\"suffix\":\"\"", "invalid_value", "suffix", 400},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        char *body = gd_format("{\"model\":\"base\",\"training_file\":\"%s\",%s}", server->file_id, cases[i].members);
        assert_error(server, "/v1/fine_tuning/jobs", body, cases[i].status, cases[i].code, cases[i].param);
        gd_free(body);
    }
    char *body = gd_format("{\"model\":\"none\",\"training_file\":\"%s\"}", server->file_id);
    assert_error(server, "/v1/fine_tuning/jobs", body, 404, "model_not_found", "model");
    gd_free(body);
    assert_error(server, "/v1/fine_tuning/jobs", "{\"model\":\"base\",\"training_file\":\"file-none\"}", 400, "invalid_value",
                 "training_file");
    assert_error(server, "/v1/fine_tuning/jobs", "{\"model\":\"base\"}", 400, "missing_required_parameter", "training_file");
}

static struct reply create_with_key(const struct server *server, const char *key, const char *script)
{
    char *headers = gd_format("Content-Type: application/json\r\nIdempotency-Key: %s\r\n", key);
    char *body = gd_format("{\"model\":\"base\",\"training_file\":\"%s\",\"suffix\":\"%s\"}", server->file_id, script);
    struct reply reply = finish_request(open_request(server, "POST", "/v1/fine_tuning/jobs", headers, body, strlen(body)));
    gd_free(headers);
    gd_free(body);
    return reply;
}

static void a_repeated_create_makes_one_job(void **state)
{
    struct server *server = *state;
    struct reply first = create_with_key(server, "k-1", "steps2"), again = create_with_key(server, "k-1", "steps2");
    struct reply other = create_with_key(server, "k-1", "steps3"), new = create_with_key(server, "k-2", "steps2");
    assert_string_equal(text_at(&first, "id"), text_at(&again, "id"));
    assert_status(&other, 409);
    assert_string_not_equal(text_at(&first, "id"), text_at(&new, "id"));
    release(&first);
    release(&again);
    release(&other);
    release(&new);
}

static void jobs_are_listed_by_page_and_metadata(void **state)
{
    struct server *server = *state;
    char *a = create_job(server, "steps1"), *b = create_job(server, "steps2"), *c = create_job(server, "steps3");
    struct reply reply = ask(server, "GET", "/v1/fine_tuning/jobs?limit=2", NULL);
    assert_string_equal(text_at(&reply, "data.0.id"), c);
    assert_string_equal(text_at(&reply, "data.1.id"), b);
    assert_has(reply.body, "\"has_more\":true");
    release(&reply);
    char *path = gd_format("/v1/fine_tuning/jobs?after=%s", b);
    reply = ask(server, "GET", path, NULL);
    assert_string_equal(text_at(&reply, "data.0.id"), a);
    assert_has(reply.body, "\"has_more\":false");
    release(&reply);
    gd_free(path);
    reply = ask(server, "GET", "/v1/fine_tuning/jobs?metadata%5Bteam%5D=steps2", NULL);
    assert_int_equal(cJSON_GetArraySize(gd_json_find(reply.json, "data")), 1);
    assert_string_equal(text_at(&reply, "data.0.id"), b);
    release(&reply);
    const char *const bad[] = {"limit=0", "limit=x", "after=ftjob-none", "metadata=null"};
    for (size_t i = 0; i < GD_COUNT(bad); i++) {
        path = gd_format("/v1/fine_tuning/jobs?%s", bad[i]);
        reply = ask(server, "GET", path, NULL);
        assert_status(&reply, 400);
        release(&reply);
        gd_free(path);
    }
    gd_free(a);
    gd_free(b);
    gd_free(c);
}

/* ---- crashes and stops ---- */

static void kill_at_any_time_loses_nothing_acknowledged(void **state)
{
    struct server *server = *state;
    char *jobs[6];
    jobs[0] = create_job(server, "steps60-slow");
    for (int i = 1; i < 6; i++) {
        usleep(60000);
        jobs[i] = create_job(server, "steps7");
        assert_int_equal(stop(server, SIGKILL), -SIGKILL);
        start(server);
    }
    for (int i = 0; i < 6; i++) {
        until_status(server, jobs[i], "succeeded");
        struct reply reply = get_job(server, jobs[i], "");
        assert_int_equal(cJSON_GetArraySize(gd_json_find(reply.json, "result_files")), 1);
        release(&reply);
        gd_free(jobs[i]);
    }
}

static void sigterm_ends_streams_and_puts_the_job_back(void **state)
{
    struct server *server = *state;
    struct gd_buf completion = {0}, events = {0};
    char *id = create_job(server, "steps200-slow");
    until_status(server, id, "running");
    int fd = open_json(server, "/v1/completions", "{\"model\":\"base\",\"prompt\":\"slow\",\"max_tokens\":60,\"stream\":true}");
    read_until(fd, &completion, "w1");
    char *path = gd_format("/v1/fine_tuning/jobs/%s/events?stream=true", id);
    int events_fd = open_request(server, "GET", path, "", "", 0);
    read_until(events_fd, &events, "Step 1/200");
    assert_int_equal(stop(server, SIGTERM), 0);
    read_until(fd, &completion, NULL);
    read_until(events_fd, &events, NULL);
    assert_has(completion.data, "w59");
    assert_has(completion.data, "data: [DONE]");
    assert_null(strstr(events.data, "[DONE]"));
    close(fd);
    close(events_fd);
    start(server);
    struct reply reply = get_job(server, id, "/events?limit=1000");
    assert_has(reply.body, "The server is stopping: the job goes back to the queue at step");
    release(&reply);
    until_status(server, id, "running");
    reply = act(server, id, "cancel");
    assert_status(&reply, 200);
    release(&reply);
    gd_buf_release(&completion);
    gd_buf_release(&events);
    gd_free(path);
    gd_free(id);
}

static void a_second_signal_ends_at_once(void **state)
{
    struct server *server = *state;
    struct reply reply;
    int fd = open_json(server, "/v1/completions", "{\"model\":\"base\",\"prompt\":\"hang\"}"); /* the worker cannot stop */
    usleep(300000);
    kill(server->pid, SIGTERM);
    usleep(300000);
    assert_int_equal(stop(server, SIGTERM), 128 + SIGTERM);
    close(fd);
    start(server);
    reply = ask(server, "GET", "/healthz", NULL);
    assert_status(&reply, 200);
    release(&reply);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    setenv("GRAFTD_LOG", "error", 0);
    gd_log_init(argc > 1 ? argv[1] : "test", GD_LOG_INFO);
    if (argc > 3 && strcmp(argv[1], "worker") == 0)
        return fake_worker_main(atoi(argv[3]));
    if (argc > 2 && strcmp(argv[1], "serve") == 0)
        return serve_main(argv[2]);
#define APP_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        APP_TEST(chat_answers_with_all_that_was_asked),
        APP_TEST(completions_keep_the_order_of_prompts),
        APP_TEST(best_of_gives_the_likeliest),
        APP_TEST(a_stream_has_role_text_end_and_usage),
        APP_TEST(a_stream_never_cuts_a_character),
        APP_TEST(errors_keep_their_shape),
        APP_TEST(a_worker_that_dies_takes_only_its_requests),
        APP_TEST(a_client_that_leaves_frees_the_worker),
        APP_TEST(tokens_are_served_at_the_root),
        APP_TEST(a_job_goes_from_upload_to_model),
        APP_TEST(events_page_and_replay),
        APP_TEST(jobs_pause_resume_and_cancel),
        APP_TEST(bad_jobs_are_refused_by_name),
        APP_TEST(a_repeated_create_makes_one_job),
        APP_TEST(jobs_are_listed_by_page_and_metadata),
        APP_TEST(kill_at_any_time_loses_nothing_acknowledged),
        APP_TEST(sigterm_ends_streams_and_puts_the_job_back),
        APP_TEST(a_second_signal_ends_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
