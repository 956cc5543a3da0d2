/*
 * spool.h - bytes of a request body on their way to a temporary file, written off the loop.
 *
 * Why      The loop never waits for the disk: bytes gather in memory, a pool thread writes and hashes them, and the
 *          connection is suspended meanwhile, so that a fast client cannot run ahead of the disk.
 * Memory   The spool owns its file until gd_spool_take; destroy removes the file. Destroy while a write is under way
 *          takes effect when it has ended.
 * Threads  Loop thread; work on libuv's pool.
 * Errors   GD_DISK_FULL, GD_IO: kept, given to the next `done`.
 * Limits   GD_SPOOL_BLOCK_BYTES gathered before a write.
 * Life     gd_spool_open -> append, flush ... -> finish -> take or destroy.
 */
#ifndef GD_SERVER_SPOOL_H
#define GD_SERVER_SPOOL_H

#include "engine/base/error.h"
#include <stddef.h>
#include <stdint.h>

#define GD_SPOOL_BLOCK_BYTES (256u << 10)

struct gd_spool;
struct uv_loop_s;
/* err->code GD_OK: all appended bytes are written (finish: and fsynced). */
typedef void (*gd_spool_done)(void *context, const struct gd_error *err);

/* Creates an empty file in `folder`. */
GD_MUST_CHECK bool gd_spool_open(struct gd_spool **out, struct uv_loop_s *loop, const char *folder, struct gd_error *err);
/* Copies; must not be called while a write is under way. */
void gd_spool_append(struct gd_spool *spool, const void *bytes, size_t length);
bool gd_spool_full(const struct gd_spool *spool);  /* a block has gathered: flush */
bool gd_spool_busy(const struct gd_spool *spool);  /* a write is under way */
void gd_spool_flush(struct gd_spool *spool, gd_spool_done done, void *context);
/* Writes the rest, fsyncs, closes. */
void gd_spool_finish(struct gd_spool *spool, gd_spool_done done, void *context);
uint64_t gd_spool_bytes(const struct gd_spool *spool);   /* appended so far */
const char *gd_spool_path(const struct gd_spool *spool);
const char *gd_spool_xxh3(const struct gd_spool *spool); /* after finish: 32 hex digits */
/* The file is no longer the spool's: destroy leaves it alone. */
void gd_spool_take(struct gd_spool *spool);
/* No `done` comes after this. NULL is fine. */
void gd_spool_destroy(struct gd_spool *spool);

#endif
