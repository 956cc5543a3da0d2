/*
 * usage.h - command lines: numbers with ranges, a model by id or path, and one clear line for wrong usage.
 *
 * Why      Scripts rely on exit code 2 and on one line that says what to do.
 * Memory   gd_usage_model's path is the caller's.
 * Threads  main thread
 * Errors   usage errors print "graftd COMMAND: ..." to standard error and return 2 (or false)
 * Limits   none
 * Life     none
 */
#ifndef GD_WORKER_USAGE_H
#define GD_WORKER_USAGE_H

#include "engine/base/error.h"
#include <stdint.h>

int gd_usage_error(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3))); /* returns 2 */
/* What getopt_long rejected (returned '?' or ':'), as a usage error. */
int gd_usage_bad_option(const char *command, int argc, char **argv);
bool gd_usage_int(const char *command, const char *flag, const char *text, int64_t min, int64_t max, int64_t *out);
bool gd_usage_number(const char *command, const char *flag, const char *text, double min, double max, double *out);
/* "error: message" for a failure that is not wrong usage; returns 1. */
int gd_command_failed(const char *command, const struct gd_error *err);

/* MODEL is a path (folder or .gguf), or the id of a model in models_dir (NULL: paths only). */
GD_MUST_CHECK bool gd_usage_model(const char *model, const char *models_dir, char **id, char **path, struct gd_error *err);

#endif
