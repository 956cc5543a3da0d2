/* One worker process. It is gone when it has exited and its socket is drained: the last frames of a dying worker count. */
#include "server/worker_process.h"

#include "engine/base/alloc.h"
#include "engine/base/log.h"
#include "engine/eval/sandbox.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_BYTES (64u << 10)
#define DRAIN_MS 2000 /* exited, but something still holds the socket */

extern char **environ;

struct gd_worker_process {
    struct gd_worker_process_options options;
    uv_process_t process;
    uv_pipe_t pipe;
    uv_timer_t timer;   /* SIGTERM to SIGKILL; then exit to end of file */
    int open_handles;
    int pid;
    bool exited, drained, announced, abandoned;
    char why[96];
    struct gd_frame_reader reader;
    char read_buffer[READ_BYTES];
};

static void on_handle_closed(uv_handle_t *handle)
{
    struct gd_worker_process *process = handle->data;
    if (--process->open_handles > 0)
        return;
    gd_frame_reader_release(&process->reader);
    gd_free(process);
}

static void close_handles(struct gd_worker_process *process)
{
    uv_handle_t *handles[] = {(uv_handle_t *)&process->process, (uv_handle_t *)&process->pipe,
                              (uv_handle_t *)&process->timer};
    for (size_t i = 0; i < GD_COUNT(handles); i++)
        if (!uv_is_closing(handles[i]))
            uv_close(handles[i], on_handle_closed);
}

/* The worker leads its group: children that it may have started go with it. */
static void signal_group(const struct gd_worker_process *process, int signal_number)
{
    if (!process->exited && process->pid > 0)
        (void)kill(-process->pid, signal_number);
}

static void announce_when_gone(struct gd_worker_process *process)
{
    if (!process->exited || !process->drained || process->announced)
        return;
    process->announced = true;
    close_handles(process);
    if (!process->abandoned)
        process->options.gone(process->options.context, process->why);
}

static void on_drain_timeout(uv_timer_t *timer)
{
    struct gd_worker_process *process = timer->data;
    process->drained = true;
    announce_when_gone(process);
}

static void on_process_exit(uv_process_t *handle, int64_t exit_status, int term_signal)
{
    struct gd_worker_process *process = handle->data;
    process->exited = true;
    if (term_signal != 0)
        snprintf(process->why, sizeof process->why, "signal %d (%s)", term_signal, strsignal(term_signal));
    else
        snprintf(process->why, sizeof process->why, "exit code %d", (int)exit_status);
    uv_timer_start(&process->timer, on_drain_timeout, DRAIN_MS, 0);
    announce_when_gone(process);
}

static void on_kill_time(uv_timer_t *timer)
{
    gd_worker_process_kill(timer->data);
}

void gd_worker_process_kill(struct gd_worker_process *process)
{
    signal_group(process, SIGKILL);
}

void gd_worker_process_end(struct gd_worker_process *process)
{
    if (process->exited)
        return;
    signal_group(process, SIGTERM);
    if (!uv_is_active((uv_handle_t *)&process->timer))
        uv_timer_start(&process->timer, on_kill_time, GD_WORKER_KILL_MS, 0);
}

void gd_worker_process_abandon(struct gd_worker_process *process)
{
    process->abandoned = true;
    signal_group(process, SIGKILL);
    process->announced = true;
    close_handles(process);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct gd_worker_process *process = handle->data;
    *buf = uv_buf_init(process->read_buffer, READ_BYTES);
}

static void stop_reading(struct gd_worker_process *process)
{
    uv_read_stop((uv_stream_t *)&process->pipe);
    process->drained = true;
    if (!process->exited && !uv_is_active((uv_handle_t *)&process->timer))
        uv_timer_start(&process->timer, on_kill_time, GD_WORKER_KILL_MS, 0); /* a worker without its socket is useless */
    announce_when_gone(process);
}

static void on_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *buf)
{
    struct gd_worker_process *process = stream->data;
    if (count < 0) {
        stop_reading(process);
        return;
    }
    gd_frame_reader_feed(&process->reader, buf->base, (size_t)count);
    while (!process->abandoned) {
        struct gd_error err = {0};
        cJSON *frame = NULL;
        if (!gd_frame_next(&process->reader, &frame, &err)) {
            gd_log_error("worker", "pid=%d bad_frame=%s", process->pid, err.message);
            signal_group(process, SIGKILL);
            stop_reading(process);
            return;
        }
        if (frame == NULL)
            return;
        process->options.frame(process->options.context, frame);
        cJSON_Delete(frame);
    }
}

struct pending_write {
    uv_write_t request;
    char *bytes;
};

static void on_written(uv_write_t *request, int status)
{
    struct pending_write *write = (struct pending_write *)request;
    gd_free(write->bytes);
    gd_free(write);
}

bool gd_worker_process_write(struct gd_worker_process *process, struct gd_buf *bytes, struct gd_error *err)
{
    size_t length = bytes->length;
    if (bytes->overflow) {
        gd_buf_release(bytes);
        return gd_fail(err, GD_TOO_LARGE, "the request is longer than the %u bytes that a worker takes at once",
                       GD_FRAME_BYTES_MAX);
    }
    if (uv_stream_get_write_queue_size((uv_stream_t *)&process->pipe) + length > GD_WORKER_QUEUE_BYTES_MAX) {
        gd_buf_release(bytes);
        return gd_fail(err, GD_BUSY, "%u bytes wait for the worker already: try again later", GD_WORKER_QUEUE_BYTES_MAX);
    }
    struct pending_write *write = gd_alloc(sizeof *write);
    write->bytes = gd_buf_take(bytes);
    uv_buf_t buf = uv_buf_init(write->bytes, (unsigned)length);
    if (uv_write(&write->request, (uv_stream_t *)&process->pipe, &buf, 1, on_written) != 0)
        on_written(&write->request, 0); /* the pipe is broken: `gone` is on its way and answers for the frame */
    return true;
}

/* The parent's environment, with one variable more unless it is set. */
static char **worker_environment(void)
{
    size_t count = 0;
    while (environ[count] != NULL)
        count++;
    char **copy = gd_alloc_array(count + 2, sizeof *copy);
    memcpy(copy, environ, count * sizeof *copy);
    if (getenv("OMP_WAIT_POLICY") == NULL)
        copy[count] = "OMP_WAIT_POLICY=passive";
    return copy;
}

static int spawn(struct gd_worker_process *process, int worker_fd)
{
    const struct gd_worker_process_options *options = &process->options;
    const struct gd_sandbox_settings *python = gd_sandbox_settings();
    char threads[16], cache_bytes[24], memory_bytes[24], packed_bytes[24], seconds[16], memory[24];
    snprintf(threads, sizeof threads, "%d", options->threads);
    snprintf(cache_bytes, sizeof cache_bytes, "%llu", (unsigned long long)options->cache_bytes);
    snprintf(memory_bytes, sizeof memory_bytes, "%llu", (unsigned long long)options->memory_bytes);
    snprintf(packed_bytes, sizeof packed_bytes, "%llu", (unsigned long long)options->packed_cache_bytes);
    char *packed = gd_format("%s/cache/packed", options->data_dir != NULL ? options->data_dir : ".");
    snprintf(seconds, sizeof seconds, "%d", python->seconds);
    snprintf(memory, sizeof memory, "%llu", (unsigned long long)python->memory_bytes);
    char *args[] = {"graftd", "worker", "--fd", "3", "--device", (char *)options->device, "--threads", threads,
                    "--cache-bytes", cache_bytes, "--memory-limit", memory_bytes, "--packed-cache", packed,
                    "--packed-cache-bytes", options->data_dir != NULL ? packed_bytes : "0", "--python-seconds", seconds, "--python-memory", memory,
                    python->interpreter != NULL ? "--python" : NULL, (char *)python->interpreter, NULL};
    uv_stdio_container_t stdio[4] = {
        {.flags = UV_IGNORE},
        {.flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO},
        {.flags = UV_INHERIT_FD, .data.fd = STDERR_FILENO},
        {.flags = UV_INHERIT_FD, .data.fd = worker_fd},
    };
    char **environment = worker_environment();
    uv_process_options_t spawn_options = {
        .file = "/proc/self/exe",
        .args = args,
        .env = environment,
        .exit_cb = on_process_exit,
        .flags = UV_PROCESS_DETACHED, /* setsid: a terminal's ^C reaches the server alone, which then ends the worker */
        .stdio = stdio,
        .stdio_count = 4,
    };
    int status = uv_spawn(options->loop, &process->process, &spawn_options);
    gd_free(environment);
    gd_free(packed);
    return status;
}

bool gd_worker_process_start(struct gd_worker_process **out, const struct gd_worker_process_options *options,
                             struct gd_error *err)
{
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        return gd_fail(err, GD_UNAVAILABLE, "socketpair: %s", strerror(errno));
    struct gd_worker_process *process = gd_alloc(sizeof *process);
    process->options = *options;
    gd_frame_reader_init(&process->reader);
    process->open_handles = 3;
    process->process.data = process->pipe.data = process->timer.data = process;
    uv_timer_init(options->loop, &process->timer);
    uv_pipe_init(options->loop, &process->pipe, 0);
    int status = spawn(process, fds[1]);
    close(fds[1]);
    process->pid = status == 0 ? process->process.pid : 0;
    process->exited = status != 0;
    int piped = uv_pipe_open(&process->pipe, fds[0]);
    if (piped != 0)
        close(fds[0]);
    if (status == 0 && piped == 0)
        status = uv_read_start((uv_stream_t *)&process->pipe, on_alloc, on_read);
    if (status != 0 || piped != 0) {
        gd_fail(err, GD_UNAVAILABLE, "starting the worker process: %s", uv_strerror(status != 0 ? status : piped));
        gd_worker_process_abandon(process);
        return false;
    }
    *out = process;
    return true;
}

int gd_worker_process_pid(const struct gd_worker_process *process)
{
    return process->pid;
}
