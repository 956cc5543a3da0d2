/*
 * sandbox.h - runs Python of strangers in a process that can do nothing but compute.
 *
 * Why      A python grader is code from a request. It gets a process of its own, one per call, behind four walls:
 *            system calls  an allow-list (seccomp): no sockets, no new processes or threads, nothing opened for writing, no
 *                          signals to others; before the grader's first line, starting programs is closed too
 *            files         a mount namespace that holds the interpreter and nothing else, read-only, and Landlock's rules for
 *                          the same paths; one of the two must work, or no code is run
 *            limits        memory, CPU seconds, descriptors, file size 0, no core; wall-clock time; bounded output
 *            secrets       an empty environment, no inherited descriptors, no network namespace but its own (where the kernel
 *                          grants namespaces), and nobody's user id where the daemon runs as root
 * Memory   The caller's buffers. The settings are copied.
 * Threads  gd_sandbox_run: any, several at once. gd_sandbox_configure: before there are others.
 * Errors   GD_UNSUPPORTED: turned off. GD_UNAVAILABLE: this system does not allow the walls, or the interpreter does not
 *          start. GD_INVALID: what the Python code did wrong, with its line.
 * Limits   GD_SANDBOX_INPUT_BYTES_MAX in, GD_SANDBOX_OUTPUT_BYTES_MAX out.
 * Life     configure (once) -> run ...; the program's main hands "sandbox" to gd_sandbox_main.
 */
#ifndef GD_EVAL_SANDBOX_H
#define GD_EVAL_SANDBOX_H

#include "engine/base/json.h"

#define GD_SANDBOX_INPUT_BYTES_MAX (16u << 20)
#define GD_SANDBOX_OUTPUT_BYTES_MAX (64u << 10)
#define GD_SANDBOX_INTERPRETER "/usr/bin/python3"
#define GD_SANDBOX_SECONDS 10
#define GD_SANDBOX_MEMORY_BYTES (UINT64_C(512) << 20)

struct gd_sandbox_settings {
    const char *interpreter; /* absolute path; NULL: off, as before gd_sandbox_configure */
    int seconds;             /* of the wall clock, for one call */
    uint64_t memory_bytes;   /* of address space */
};
void gd_sandbox_configure(const struct gd_sandbox_settings *settings);
/* What was configured. */
const struct gd_sandbox_settings *gd_sandbox_settings(void);
/* False with GD_UNSUPPORTED where the operator turned Python off. */
GD_MUST_CHECK bool gd_sandbox_is_on(const char *param, struct gd_error *err);

/* request: {mode: "check"|"grade", source, sample, item}, borrowed. "grade": *value is what grade(sample, item) returned.
 * "check": the source compiles and defines grade at its top level; nothing of it is run. */
GD_MUST_CHECK bool gd_sandbox_run(const cJSON *request, double *value, struct gd_error *err);

/* The process itself: "graftd sandbox INTERPRETER SECONDS MEMORY_BYTES". Builds the walls and becomes the interpreter. */
int gd_sandbox_main(int argc, char **argv);

#endif
