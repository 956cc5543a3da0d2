/*
 * store.h - the one thread that touches the database: closures in, results back on the loop.
 *
 * Why      The event loop never waits for the disk; everything waiting shares one commit (one fdatasync).
 * Memory   `argument` is the caller's; it must live until `done` returns.
 * Threads  submit: loop thread. work: store thread. done: loop thread, after the commit that holds the work.
 * Errors   A closure that fails is undone alone (savepoint). A failed commit fails every closure in it; after a failed
 *          fsync nothing more is acknowledged: `broken` is called on the loop once, and the process must exit.
 * Limits   GD_STORE_QUEUE_MAX waiting closures (GD_BUSY).
 * Life     gd_store_open -> submit ... -> gd_store_close (drains: every `done` is called before it returns; its memory goes
 *          when the loop runs once more). An idle store does not keep the loop alive.
 */
#ifndef GD_STORAGE_STORE_H
#define GD_STORAGE_STORE_H

#include "storage/db.h"

#define GD_STORE_QUEUE_MAX 10000

struct gd_store;
struct uv_loop_s;

typedef bool (*gd_store_work)(struct gd_db *db, void *argument, struct gd_error *err);
typedef void (*gd_store_done)(void *argument, const struct gd_error *err); /* err->code GD_OK: committed */

GD_MUST_CHECK bool gd_store_open(struct gd_store **out, struct uv_loop_s *loop, const char *data_dir,
                                 void (*broken)(void *context, const struct gd_error *err), void *context,
                                 struct gd_error *err);
/* write: the closure changes the state database (it is grouped and committed before done). Reads run in the same order, so
 * a read after a write sees it. When submit returns false, done is never called; else exactly once. done may be NULL. */
GD_MUST_CHECK bool gd_store_submit(struct gd_store *store, bool write, gd_store_work work, gd_store_done done,
                                   void *argument, struct gd_error *err);
void gd_store_close(struct gd_store *store); /* loop thread; also from a `done` or `broken` */

#endif
