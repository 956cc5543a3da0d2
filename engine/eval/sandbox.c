#include "engine/eval/sandbox.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/eval/sandbox_walls.h"
#include "sandbox_runner.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define RESULT_FD 3
#define SEAL_FD 4

extern char **environ;

static struct gd_sandbox_settings settings;

void gd_sandbox_configure(const struct gd_sandbox_settings *wanted)
{
    static char interpreter[PATH_MAX];
    settings = *wanted;
    if (wanted->interpreter != NULL) {
        snprintf(interpreter, sizeof interpreter, "%s", wanted->interpreter);
        settings.interpreter = interpreter;
    }
}

const struct gd_sandbox_settings *gd_sandbox_settings(void)
{
    return &settings;
}

bool gd_sandbox_is_on(const char *param, struct gd_error *err)
{
    return settings.interpreter != NULL ||
           gd_fail_param(err, GD_UNSUPPORTED, param,
                         "%s: python graders are turned off here (graders.python = off in the settings)", param);
}

/* ---- the process inside ---- */

static int refuse(const struct gd_error *err)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "setup", err->message);
    char *text = gd_json_print(json);
    struct gd_error ignored = {0};
    bool told = gd_write_all(RESULT_FD, text, strlen(text), "result", &ignored);
    gd_free(text);
    cJSON_Delete(json);
    return told ? 1 : 2;
}

int gd_sandbox_main(int argc, char **argv)
{
    struct gd_error err = {0};
    char interpreter[PATH_MAX];
    if (argc != 5 || fcntl(RESULT_FD, F_GETFD) < 0) {
        fprintf(stderr, "graftd: 'sandbox' is started by graftd itself\n");
        return 2;
    }
    (void)close_range(SEAL_FD, UINT_MAX, 0);
    if (realpath(argv[2], interpreter) == NULL) {
        gd_fail_errno(&err, errno, "the interpreter %s (graders.python)", argv[2]);
        return refuse(&err);
    }
    char *const args[] = {"python3", "-I", "-B", "-X", "utf8", "-c", (char *)gd_sandbox_runner, NULL};
    char *const environment[] = {"LANG=C.UTF-8", "OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", NULL};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        gd_fail(&err, GD_UNAVAILABLE, "no_new_privs cannot be set");
    if (err.code == GD_OK && gd_walls_files(interpreter, &err) && gd_walls_user(&err) &&
        gd_walls_limits(atoi(argv[3]), &err) && gd_walls_calls(SEAL_FD, &err) && gd_walls_memory(strtoull(argv[4], NULL, 10), &err)) {
        execve(interpreter, args, environment);
        gd_fail_errno(&err, errno, "starting %s (graders.python) inside the sandbox", interpreter);
    }
    return refuse(&err);
}

/* ---- the caller's side ---- */

struct child {
    pid_t pid;
    int in, out; /* our ends */
};

static bool start(struct child *child, struct gd_error *err)
{
    char seconds[16], memory[24];
    snprintf(seconds, sizeof seconds, "%d", settings.seconds);
    snprintf(memory, sizeof memory, "%llu", (unsigned long long)settings.memory_bytes);
    char *const args[] = {"graftd", "sandbox", (char *)settings.interpreter, seconds, memory, NULL};
    int in[2], out[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in) != 0) /* a pipe's writer could be killed by SIGPIPE */
        return gd_fail(err, GD_UNAVAILABLE, "starting Python: %s", strerror(errno));
    if (pipe2(out, O_CLOEXEC) != 0) {
        close(in[0]);
        close(in[1]);
        return gd_fail(err, GD_UNAVAILABLE, "starting Python: %s", strerror(errno));
    }
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    int ends[2] = {fcntl(in[0], F_DUPFD_CLOEXEC, 10), fcntl(out[1], F_DUPFD_CLOEXEC, 10)}; /* clear of 0 to 3 */
    posix_spawn_file_actions_adddup2(&actions, ends[0], STDIN_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], RESULT_FD);
    int status = ends[0] < 0 || ends[1] < 0
                     ? EMFILE
                     : posix_spawn(&child->pid, "/proc/self/exe", &actions, &attributes, args, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    int ours[] = {in[0], out[1], ends[0], ends[1]};
    for (size_t i = 0; i < GD_COUNT(ours); i++)
        if (ours[i] >= 0)
            close(ours[i]);
    child->in = in[1];
    child->out = out[0];
    if (status == 0)
        return true;
    close(child->in);
    close(child->out);
    return gd_fail(err, GD_UNAVAILABLE, "starting Python: %s", strerror(status));
}

/* Sends what the socket takes; closes it at the end, or when nobody reads any more. */
static void feed(struct child *child, const char *text, size_t length, size_t *sent)
{
    ssize_t wrote = send(child->in, text + *sent, length - *sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (wrote > 0)
        *sent += (size_t)wrote;
    if (*sent == length || (wrote < 0 && errno != EAGAIN && errno != EINTR)) {
        close(child->in);
        child->in = -1;
    }
}

/* Until the result is whole, too long or too late. */
static bool talk(struct child *child, const char *text, size_t length, struct gd_buf *result, struct gd_error *err)
{
    double deadline = gd_time_monotonic() + settings.seconds;
    size_t sent = 0;
    for (;;) {
        struct pollfd fds[2] = {{.fd = child->out, .events = POLLIN}, {.fd = child->in, .events = POLLOUT}};
        double left = deadline - gd_time_monotonic();
        if (left <= 0)
            return gd_fail(err, GD_INVALID, "the grader ran longer than %d seconds (graders.python_seconds)", settings.seconds);
        if (poll(fds, child->in >= 0 ? 2 : 1, (int)(left * 1000) + 1) < 0 && errno != EINTR)
            return gd_fail(err, GD_UNAVAILABLE, "waiting for Python: %s", strerror(errno));
        if (child->in >= 0 && fds[1].revents != 0)
            feed(child, text, length, &sent);
        if (fds[0].revents == 0)
            continue;
        char bytes[4096];
        ssize_t got = read(child->out, bytes, sizeof bytes);
        if (got == 0)
            return true;
        if (got > 0)
            gd_buf_append(result, bytes, (size_t)got);
        if (result->overflow)
            return gd_fail(err, GD_INVALID, "the grader answered with more than %u bytes", GD_SANDBOX_OUTPUT_BYTES_MAX);
    }
}

static int end(struct child *child, bool at_once)
{
    int status = 0;
    for (int waited = 0; !at_once && waited < 500; waited++) { /* it has closed its result: it is about to end */
        if (waitpid(child->pid, &status, WNOHANG) == child->pid)
            goto ended;
        usleep(1000);
    }
    (void)kill(child->pid, SIGKILL);
    while (waitpid(child->pid, &status, 0) < 0 && errno == EINTR)
        ;
ended:
    if (child->in >= 0)
        close(child->in);
    close(child->out);
    return status;
}

static bool explain(int status, struct gd_error *err)
{
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGXCPU)
        return gd_fail(err, GD_INVALID, "the grader used more than %d seconds of CPU (graders.python_seconds)",
                       settings.seconds + 1);
    if (WIFSIGNALED(status))
        return gd_fail(err, GD_INVALID, "the grader was ended by signal %d (%s); it may use %llu MiB (graders.python_memory_bytes)",
                       WTERMSIG(status), strsignal(WTERMSIG(status)), (unsigned long long)(settings.memory_bytes >> 20));
    return gd_fail(err, GD_INVALID, "the grader ended without a result (exit code %d)", WEXITSTATUS(status));
}

static bool read_result(const struct gd_buf *result, int status, double *value, struct gd_error *err)
{
    struct gd_error ignored = {0};
    if (result->length == 0)
        return explain(status, err);
    cJSON *json = gd_json_parse(result->data, result->length, GD_SANDBOX_OUTPUT_BYTES_MAX, &ignored);
    const cJSON *number = gd_json_find(json, "value"), *error = gd_json_find(json, "error"),
                *setup = gd_json_find(json, "setup");
    bool ok = cJSON_IsNumber(number);
    if (ok)
        *value = number->valuedouble;
    else if (cJSON_IsString(setup))
        gd_fail(err, GD_UNAVAILABLE, "%s", setup->valuestring);
    else
        gd_fail(err, GD_INVALID, "%s", cJSON_IsString(error) ? error->valuestring : "the grader spoiled its own result");
    cJSON_Delete(json);
    return ok;
}

bool gd_sandbox_run(const cJSON *request, double *value, struct gd_error *err)
{
    struct child child = {.in = -1, .out = -1};
    struct gd_buf result;
    if (!gd_sandbox_is_on("python", err))
        return false;
    char *text = gd_json_print(request);
    size_t length = strlen(text);
    bool ok = length <= GD_SANDBOX_INPUT_BYTES_MAX ||
              gd_fail(err, GD_INVALID, "source, sample and item have %zu bytes together; a python grader takes at most %u", length,
                      GD_SANDBOX_INPUT_BYTES_MAX);
    ok = ok && start(&child, err);
    if (ok) {
        gd_buf_init(&result, GD_SANDBOX_OUTPUT_BYTES_MAX);
        ok = talk(&child, text, length, &result, err);
        int status = end(&child, !ok || result.length > 0);
        ok = ok && read_result(&result, status, value, err);
        gd_buf_release(&result);
    }
    gd_free(text);
    return ok;
}
