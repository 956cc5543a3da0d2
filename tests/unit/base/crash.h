/*
 * crash.h - kills a child before its n-th system call: every crash point of a piece of work, one after the other.
 *
 * Why      Random kills rarely hit the instant between two calls that matters.
 * Memory   none
 * Threads  The work must be single-threaded.
 * Errors   End the test.
 * Limits   none
 * Life     for (n = 1; crash_before_call(n, work, argument) == CRASH_KILLED; n++) check what is left.
 */
#ifndef GD_TESTS_UNIT_BASE_CRASH_H
#define GD_TESTS_UNIT_BASE_CRASH_H

#include "tests/unit/base/scratch.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

enum crash { CRASH_KILLED, CRASH_FINISHED, CRASH_UNTRACED /* this kernel or container allows no tracing */ };

static inline enum crash crash_before_call(int n, bool (*work)(void *argument), void *argument)
{
    pid_t child = fork();
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
            _exit(2);
        raise(SIGSTOP);
        _exit(work(argument) ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSTOPPED(status))
        return CRASH_UNTRACED;
    for (int stops = 0; WIFSTOPPED(status); stops++) {
        if (stops == 2 * n - 1) { /* a stop at the entry and one at the exit of each call */
            kill(child, SIGKILL);
            assert_int_equal(waitpid(child, &status, 0), child);
            return CRASH_KILLED;
        }
        assert_int_equal(ptrace(PTRACE_SYSCALL, child, NULL, NULL), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
    }
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    return CRASH_FINISHED;
}

#endif
