/*
 * http_fixture.h - a daemon with routes of the tests' own, and what they counted.
 *
 * Why      What is taken, what is refused, and how long things take are tests of their own over the same routes.
 * Memory   The daemon is one, and static.
 * Threads  The test's; handlers run on the daemon's.
 * Errors   A failed check ends the test.
 * Limits   none
 * Life     start_... -> tests -> stop_daemon
 */
#ifndef TESTS_SERVER_HTTP_FIXTURE_H
#define TESTS_SERVER_HTTP_FIXTURE_H

#include "tests/unit/server/http_testing.h"

#include "engine/base/json.h"

#include <stdatomic.h>

#define KEY "key-0123456789abcdef"
#define H "Host: localhost\r\n"

extern struct daemon daemon_;
extern atomic_int gone_count, handled_count;

int start_daemon(void **state);    /* two seconds for a request, 8 MiB for an upload, one page that may ask */
int start_with_keys(void **state);
int start_small(void **state);     /* ten connections */
int stop_daemon(void **state);

void wait_for(atomic_int *counter, int value);
/* A temporary file goes when the write that was under way has ended. */
void assert_nothing_left(void);

#endif
