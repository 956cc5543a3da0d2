/*
 * keys.h - bearer keys: who may ask, and for which project.
 *
 * Why      One key file; the keys themselves are forgotten once read (SHA-256 only), compared in constant time.
 * Memory   The set owns everything; project names live as long as the set.
 * Threads  Read-only after load.
 * Errors   GD_INVALID naming file and line, never the key.
 * Limits   keys of 16 to 256 visible characters; at most GD_KEYS_MAX of them.
 * Life     gd_keys_load -> gd_keys_project ... -> gd_keys_destroy.
 *
 * File: one key a line, "KEY [project]"; "#" starts a comment line. Without a project: "default".
 */
#ifndef GD_SERVER_KEYS_H
#define GD_SERVER_KEYS_H

#include "engine/base/error.h"
#include <stddef.h>

#define GD_KEYS_MAX 10000
#define GD_KEY_LENGTH_MIN 16
#define GD_KEY_LENGTH_MAX 256

struct gd_keys;

GD_MUST_CHECK bool gd_keys_load(struct gd_keys **out, const char *path, struct gd_error *err);
void gd_keys_destroy(struct gd_keys *keys);
/* The project of the key, or NULL if nobody has it. */
const char *gd_keys_project(const struct gd_keys *keys, const char *key, size_t length);

#endif
