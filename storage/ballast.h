/*
 * ballast.h - disk space kept back, so that a full disk can still be recorded.
 *
 * Why      A job that fails because the disk is full must be stored as failed; SQLite needs a few pages for that.
 * Memory   none
 * Threads  store thread
 * Errors   none: a ballast that cannot be made is logged and done without.
 * Limits   a 64th of the free space, from 256 KiB to 64 MiB
 * Life     taken when the database opens, dropped at the first write that finds the disk full, back at the next start
 */
#ifndef GD_STORAGE_BALLAST_H
#define GD_STORAGE_BALLAST_H

#include <stdbool.h>

void gd_ballast_take(const char *data_dir);
bool gd_ballast_drop(const char *data_dir); /* true if there was one */

#endif
