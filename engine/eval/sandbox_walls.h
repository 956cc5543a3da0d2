/*
 * sandbox_walls.h - the walls of sandbox.h, each raised by one call in a process that has one thread.
 *
 * Why      What the kernel grants differs from host to host: each wall says whether it stands.
 * Memory   none kept
 * Threads  a process of one thread
 * Errors   as sandbox.h
 * Limits   none
 * Life     files -> user -> limits -> calls -> memory, then execve.
 */
#ifndef GD_EVAL_SANDBOX_WALLS_H
#define GD_EVAL_SANDBOX_WALLS_H

#include "engine/base/error.h"
#include <stdint.h>

/* Leaves of the file system only what the interpreter needs to start: namespaces, Landlock, or both. */
GD_MUST_CHECK bool gd_walls_files(const char *interpreter, struct gd_error *err);
/* Gives up root, groups and capabilities. */
GD_MUST_CHECK bool gd_walls_user(struct gd_error *err);
GD_MUST_CHECK bool gd_walls_limits(int seconds, struct gd_error *err);
/* The filter of system calls. What it still allows, starting the interpreter, a second filter forbids: its program is left
 * to read from `seal_fd` for the runner to install first thing. */
GD_MUST_CHECK bool gd_walls_calls(int seal_fd, struct gd_error *err);
/* Last, just before execve: this process may need more than the interpreter is given. */
GD_MUST_CHECK bool gd_walls_memory(uint64_t memory_bytes, struct gd_error *err);

#endif
