/*
 * files.h - uploaded files on disk, and their end.
 *
 * Why      A file is a row and bytes under its id; this is where the two are brought together and taken apart.
 * Memory   gd_files belongs to the app; paths are yours to free.
 * Threads  Loop thread; disk work runs on libuv's pool.
 * Errors   GD_IO, GD_DISK_FULL.
 * Limits   config upload_max_bytes a file
 * Life     gd_files_start (empties .trash, removes files without a row, starts the expiry timer) -> ... -> gd_files_stop.
 *          Start it when the store is open and before anything can add a file; stop it before the store is closed.
 *
 * DATA_DIR/tmp        uploads under way          DATA_DIR/files/ID   acknowledged files
 * DATA_DIR/.trash     folders being removed
 */
#ifndef GD_SERVER_FILES_H
#define GD_SERVER_FILES_H

#include "server/app.h"
#include "storage/db.h"

struct gd_files;

GD_MUST_CHECK bool gd_files_start(struct gd_files **out, struct gd_app *app, struct gd_error *err);
/* Closes its timer on the loop; the pointer is dead afterwards. */
void gd_files_stop(struct gd_files *files);

/* DATA_DIR/files/ID, yours to free. */
char *gd_file_path(const struct gd_app *app, const char *file_id);
/* The file, if it is there and has that purpose; else GD_INVALID about `param` (other errors are the store's). Store thread. */
GD_MUST_CHECK bool gd_file_find(struct gd_db *db, const char *project, const char *id, const char *purpose, const char *param,
                                struct gd_file_record *out, struct gd_error *err);
/* Moves a folder or file into .trash at once and removes it off the loop. */
void gd_trash(struct gd_app *app, const char *path);

#endif
