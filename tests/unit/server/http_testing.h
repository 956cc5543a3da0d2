/*
 * http_testing.h - a real daemon in a thread of the test, and a client that speaks bytes.
 *
 * Why      What goes wrong in HTTP goes wrong on the wire: cases are sent as bytes and answers are read as bytes.
 * Memory   answer_release frees an answer.
 * Threads  The daemon's loop runs in its own thread; the test's thread only touches sockets while it runs.
 * Errors   End the test.
 * Limits   none
 * Life     daemon_start -> ask ... -> daemon_stop.
 */
#ifndef GD_TESTS_UNIT_SERVER_HTTP_TESTING_H
#define GD_TESTS_UNIT_SERVER_HTTP_TESTING_H

#include "engine/base/log.h"
#include "server/app.h"
#include "server/counters.h"
#include "server/keys.h"
#include "tests/unit/base/scratch.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct daemon {
    struct gd_app app;
    uv_loop_t loop;
    pthread_t thread;
    uv_async_t stop;
    char *folder;
    uint64_t grace_ms;
    void (*opened)(struct daemon *daemon);   /* on the test's thread, before the loop runs */
    void (*closing)(struct daemon *daemon);  /* on the loop's thread, when http has drained */
    int port;
    double drain_seconds;
};

static inline void daemon_drained(void *context)
{
    struct daemon *daemon = context;
    if (daemon->closing != NULL)
        daemon->closing(daemon);
    uv_stop(&daemon->loop);
}

static inline void daemon_on_stop(uv_async_t *async)
{
    struct daemon *daemon = async->data;
    daemon->app.draining = true;
    uv_close((uv_handle_t *)async, NULL);
    gd_http_drain(daemon->app.http, daemon->grace_ms, daemon_drained, daemon);
}

static inline void *daemon_run(void *context)
{
    struct daemon *daemon = context;
    uv_run(&daemon->loop, UV_RUN_DEFAULT);
    gd_http_stop(daemon->app.http);
    uv_run(&daemon->loop, UV_RUN_DEFAULT);
    return NULL;
}

/* daemon->app.config may have been changed after daemon_init. */
static inline void daemon_init(struct daemon *daemon)
{
    *daemon = (struct daemon){.grace_ms = 2000};
    setenv("GRAFTD_LOG", "warn", 0);
    gd_log_init("test", GD_LOG_INFO);
    daemon->folder = scratch_new();
    gd_config_init(&daemon->app.config);
    daemon->app.config.data_dir = gd_strdup(daemon->folder);
    daemon->app.config.models_dir = gd_strdup(daemon->folder);
    daemon->app.config.listen_port = 0;
    daemon->app.counters = gd_counters_create();
}

static inline void daemon_start(struct daemon *daemon)
{
    struct gd_error err = {0};
    assert_int_equal(uv_loop_init(&daemon->loop), 0);
    daemon->app.loop = &daemon->loop;
    if (daemon->opened != NULL)
        daemon->opened(daemon);
    assert_ok(gd_http_start(&daemon->app.http, &daemon->app, &err), &err);
    daemon->port = gd_http_port(daemon->app.http);
    uv_async_init(&daemon->loop, &daemon->stop, daemon_on_stop);
    daemon->stop.data = daemon;
    assert_int_equal(pthread_create(&daemon->thread, NULL, daemon_run, daemon), 0);
}

static inline void daemon_stop(struct daemon *daemon)
{
    double start = gd_time_monotonic();
    uv_async_send(&daemon->stop);
    pthread_join(daemon->thread, NULL);
    daemon->drain_seconds = gd_time_monotonic() - start;
    if (uv_loop_close(&daemon->loop) != 0)
        fail_msg("a handle was left open");
    gd_counters_destroy(daemon->app.counters);
    gd_keys_destroy(daemon->app.keys);
    gd_config_release(&daemon->app.config);
    scratch_remove(daemon->folder);
}

/* Files and folders directly in DATA_DIR/NAME. */
static inline int daemon_count_files(const struct daemon *daemon, const char *name)
{
    char *path = gd_format("%s/%s", daemon->folder, name);
    DIR *stream = opendir(path);
    int count = 0;
    for (struct dirent *entry; stream != NULL && (entry = readdir(stream)) != NULL;)
        count += entry->d_name[0] != '.';
    if (stream != NULL)
        closedir(stream);
    gd_free(path);
    return count;
}

/* ---- the client ---- */

struct answer {
    int status;      /* 0: the connection ended without one */
    char *text;      /* head and body as received */
    size_t length;
    char *body;      /* into text */
    size_t body_length;
    bool closed;     /* the connection ended */
};

static inline void pause_ms(int ms)
{
    nanosleep(&(struct timespec){ms / 1000, (ms % 1000) * 1000000L}, NULL);
}

static inline int dial(const struct daemon *daemon)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)daemon->port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

/* Stops silently when the peer does not take any more. */
static inline void say(int fd, const char *bytes, size_t length)
{
    for (size_t sent = 0; sent < length;) {
        ssize_t n = send(fd, bytes + sent, length - sent, MSG_NOSIGNAL);
        if (n <= 0)
            return;
        sent += (size_t)n;
    }
}

static inline void shout(int fd, const char *text)
{
    say(fd, text, strlen(text));
}

/* The value of a header, copied to `out`; "" when absent. */
static inline const char *header_of(const struct answer *answer, const char *name, char out[512])
{
    out[0] = 0;
    size_t length = strlen(name);
    const char *end = strstr(answer->text, "\r\n\r\n");
    for (const char *line = strstr(answer->text, "\r\n"); line != NULL && line < end; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, name, length) == 0 && line[2 + length] == ':') {
            const char *value = line + 3 + length;
            value += strspn(value, " ");
            snprintf(out, 512, "%.*s", (int)strcspn(value, "\r\n"), value);
        }
    }
    return out;
}

/* Reads one answer: until its length is there, or the connection ends, or `ms` have passed. no_body: it was for HEAD. */
static inline struct answer listen_for(int fd, int ms, bool no_body)
{
    struct answer answer = {.text = gd_alloc(1 << 16)};
    size_t capacity = 1 << 16;
    double until = gd_time_monotonic() + ms / 1000.0;
    for (;;) {
        char text[512];
        char *end = strstr(answer.text, "\r\n\r\n");
        if (end != NULL) {
            answer.body = end + 4;
            answer.body_length = answer.length - (size_t)(answer.body - answer.text);
            if (strncmp(answer.text, "HTTP/1.1 ", 9) == 0)
                answer.status = atoi(answer.text + 9);
            const char *length = header_of(&answer, "content-length", text);
            if (no_body || answer.status == 204 || (length[0] != 0 && answer.body_length >= strtoull(length, NULL, 10)))
                return answer;
            if (answer.body_length >= 5 && memcmp(answer.body + answer.body_length - 5, "0\r\n\r\n", 5) == 0 &&
                strstr(answer.text, "chunked") != NULL)
                return answer;
        }
        if (answer.length + 4096 > capacity) {
            capacity *= 2;
            answer.text = gd_realloc_array(answer.text, capacity, 1);
        }
        int left = (int)((until - gd_time_monotonic()) * 1000);
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (left <= 0 || poll(&ready, 1, left) <= 0)
            return answer;
        ssize_t n = recv(fd, answer.text + answer.length, capacity - answer.length - 1, 0);
        if (n <= 0) {
            answer.closed = true;
            return answer;
        }
        answer.length += (size_t)n;
        answer.text[answer.length] = 0;
    }
}

static inline void answer_release(struct answer *answer)
{
    gd_free(answer->text);
    *answer = (struct answer){0};
}

/* One request on a connection of its own. */
static inline struct answer ask_bytes(const struct daemon *daemon, const char *bytes, size_t length)
{
    int fd = dial(daemon);
    say(fd, bytes, length);
    struct answer answer = listen_for(fd, 10000, strncmp(bytes, "HEAD", 4) == 0);
    close(fd);
    return answer;
}

static inline struct answer ask(const struct daemon *daemon, const char *text)
{
    return ask_bytes(daemon, text, strlen(text));
}

/* "METHOD TARGET", extra header lines ("" or "A: b\r\n"), a JSON body or NULL. */
static inline struct answer ask_json(const struct daemon *daemon, const char *line, const char *headers, const char *body)
{
    char *text = body != NULL
        ? gd_format("%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%s\r\n%s",
                    line, strlen(body), headers, body)
        : gd_format("%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", line, headers);
    struct answer answer = ask(daemon, text);
    gd_free(text);
    return answer;
}

static inline int status_of(struct answer answer)
{
    int status = answer.status;
    answer_release(&answer);
    return status;
}

#endif
