/*
 * fsio_internal.h - what the files of fsio share.
 *
 * Why      gd_dir_tx needs the same directory sync as single files.
 * Memory   none
 * Threads  Any
 * Errors   as fsio.h
 * Limits   none
 * Life     none
 */
#ifndef GD_BASE_FSIO_INTERNAL_H
#define GD_BASE_FSIO_INTERNAL_H

#include "engine/base/fsio.h"

/* fsyncs the folder that holds `path`: what was created or renamed there is durable afterwards. */
GD_MUST_CHECK bool gd_fsync_parent(const char *path, struct gd_error *err);

#endif
