/*
 * child.h - a case in a process of its own, with an environment of its own.
 *
 * Why      A device is opened once in a process, and some errors last until it ends.
 * Memory   The child's.
 * Threads  The child has one.
 * Errors   A child that fails an assertion or dies fails the test.
 * Limits   none
 * Life     none
 */
#ifndef GD_TESTS_CUDA_CHILD_H
#define GD_TESTS_CUDA_CHILD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* In the child: true or the end of it. */
#define EXPECT(condition)                                                           \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            _exit(1);                                                               \
        }                                                                           \
    } while (0)

#define EXPECT_IN(text, part)                                                                         \
    do {                                                                                              \
        if (strstr((text), (part)) == NULL) {                                                         \
            fprintf(stderr, "%s:%d: \"%s\" is not in \"%s\"\n", __FILE__, __LINE__, (part), (text)); \
            _exit(1);                                                                                 \
        }                                                                                             \
    } while (0)

/* settings: "NAME=value" pairs, NULL at the end. */
static inline void in_child(void (*body)(void), const char *const *settings)
{
    fflush(stdout);
    fflush(stderr);
    pid_t child = fork();
    if (child == 0) {
        setenv("EMU_QUIET", "1", 0);
        for (; settings != NULL && *settings != NULL; settings++)
            putenv((char *)(uintptr_t)*settings);
        body();
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}
#define SETTINGS(...) ((const char *const[]){__VA_ARGS__, NULL})

#endif
