/*
 * fake_worker.h - a worker without an engine: speaks the protocol, does what it is told, misbehaves on request.
 *
 * A job's suffix is its script, words joined by '-': stepsN (default 10), slow (20 ms a step), crashN (dies after step N,
 * every time), onceN (dies after step N, the first time), nostart (dies before job_started), failN (job_failed after N),
 * hangN (stops itself after N). A checkpoint is written every 5 steps. A prompt's words: slow (20 ms a token), die, hang, bad
 * (failed), split (a character in two tokens), bytes (a token that is no character). A completion is "w0 w1 w2 ...".
 */
#ifndef GD_TESTS_FAKE_WORKER_H
#define GD_TESTS_FAKE_WORKER_H

int fake_worker_main(int fd);

#endif
