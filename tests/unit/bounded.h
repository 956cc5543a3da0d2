/*
 * bounded.h - a parser of hostile bytes in a process of its own: how it ends, in what time, with how much memory.
 *
 * Why      Who sends a broken file must get an error by name, within 2 seconds and with at most 64 MiB beside the file itself; a
 *          parser that hangs, dies or grows must fail its own case and not the whole program.
 * Memory   none kept
 * Threads  The calling one only: the child is a fork of it.
 * Errors   A broken bound is told in `broken`: the test decides.
 * Limits   processor time, so that a crowded machine fails nothing; a minute of the clock for what waits instead of working
 * Life     one call
 *
 * Memory is how far the child's resident set rises at its highest (VmHWM, reset through clear_refs), less what of the file it may
 * hold: its bytes once where it is mapped or read whole. Under AddressSanitizer every byte has its shadow and red zones and what is
 * freed is kept in quarantine, and code runs several times slower: there four times the memory and ten times the time are allowed.
 */
#ifndef TESTS_BOUNDED_H
#define TESTS_BOUNDED_H

#include <setjmp.h>
#include <stdarg.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "engine/base/error.h"

#if defined(__SANITIZE_ADDRESS__)
#define BOUNDED_SECONDS 20
#define BOUNDED_BYTES ((size_t)256 << 20)
#else
#define BOUNDED_SECONDS 2
#define BOUNDED_BYTES ((size_t)64 << 20)
#endif

struct bounded {
    bool accepted;
    struct gd_error err;
    size_t bytes;        /* how far the resident set rose */
    char broken[GD_ERROR_MESSAGE_BYTES + 80]; /* which bound; "": none */
};

static inline size_t bounded_status(const char *name)
{
    char line[256];
    size_t kib = 0;
    FILE *file = fopen("/proc/self/status", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, name, strlen(name)) == 0)
            kib = strtoul(line + strlen(name), NULL, 10);
    if (file != NULL)
        fclose(file);
    return kib << 10;
}

static inline void bounded_child(bool (*parse)(void *context, struct gd_error *err), void *context, int out)
{
    struct bounded result = {0};
    struct itimerval timer = {.it_value = {.tv_sec = BOUNDED_SECONDS}};
    FILE *reset = fopen("/proc/self/clear_refs", "we");
    bool able = reset != NULL && fputs("5", reset) >= 0 && fclose(reset) == 0;
    size_t before = bounded_status("VmRSS:");
    (void)setitimer(ITIMER_PROF, &timer, NULL);
    (void)alarm(60);
    result.accepted = parse(context, &result.err);
    size_t peak = bounded_status("VmHWM:");
    result.bytes = able && peak > before ? peak - before : 0;
    _exit(write(out, &result, sizeof result) == (ssize_t)sizeof result ? 0 : 1);
}

/* `file_bytes`: of the file that is parsed. */
static inline struct bounded bounded_run(size_t file_bytes, bool (*parse)(void *context, struct gd_error *err), void *context)
{
    struct bounded result = {0};
    int ends[2], status = 0;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        bounded_child(parse, context, ends[1]);
    close(ends[1]);
    ssize_t got = read(ends[0], &result, sizeof result);
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status) && (WTERMSIG(status) == SIGPROF || WTERMSIG(status) == SIGALRM))
        snprintf(result.broken, sizeof result.broken, "it takes more than %d seconds", WTERMSIG(status) == SIGPROF ? BOUNDED_SECONDS : 60);
    else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || got != (ssize_t)sizeof result)
        snprintf(result.broken, sizeof result.broken, "it ends with status 0x%x", (unsigned)status);
    else if (result.bytes > BOUNDED_BYTES + file_bytes)
        snprintf(result.broken, sizeof result.broken, "it takes %zu MiB for a file of %zu bytes (%s)", result.bytes >> 20, file_bytes,
                 result.accepted ? "accepted" : result.err.message);
    return result;
}

#endif
