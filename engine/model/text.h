/*
 * text.h - names from hostile files, made fit for a message.
 *
 * Why      A tensor may be called "\n\x1b[2J": errors and logs show what it is called without obeying it.
 * Memory   The caller's gd_shown.
 * Threads  Any; pure functions.
 * Errors   gd_bad_model_code: the readers' GD_INVALID and GD_MISSING become GD_BAD_MODEL.
 * Limits   GD_SHOWN_BYTES; what is longer ends in "...".
 * Life     none
 */
#ifndef GD_MODEL_TEXT_H
#define GD_MODEL_TEXT_H

#include "engine/base/error.h"
#include "engine/tensor/tensor.h"
#include <stddef.h>

#define GD_SHOWN_BYTES 160

struct gd_shown {
    char text[GD_SHOWN_BYTES];
};

/* Printable ASCII as it is, every other byte as \xNN. */
struct gd_shown gd_show(const char *name, size_t length);
struct gd_shown gd_show_text(const char *name);
/* "[49152, 576]" */
struct gd_shown gd_show_shape(const struct gd_tensor *tensor);

/* The last part of a path. */
const char *gd_path_name(const char *path);

/* A file of a model that is not what it should be: always returns false. */
bool gd_bad_model(struct gd_error *err);

#endif
