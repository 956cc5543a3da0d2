/*
 * fsio.h - files: mapped for reading, written so that a crash leaves old or new, never half.
 *
 * Why      What was acknowledged must survive kill -9 and power loss: temporary name, write, fsync,
 *          rename, fsync of the directory. One place does it.
 * Memory   gd_map_release unmaps. Paths are the caller's.
 * Threads  Any; blocking calls, never on the event loop for more than a stat.
 * Errors   GD_IO, GD_DISK_FULL, GD_NOT_FOUND, GD_TOO_LARGE with the path.
 * Limits   GD_PATH_BYTES_MAX
 * Life     none
 */
#ifndef GD_BASE_FSIO_H
#define GD_BASE_FSIO_H

#include "engine/base/error.h"
#include <stddef.h>
#include <stdint.h>

#define GD_PATH_BYTES_MAX 4096

struct gd_map {
    const unsigned char *data;
    size_t size_bytes;
};

/* Maps a regular file read-only. An empty file gives size 0 and a non-NULL pointer. */
GD_MUST_CHECK bool gd_map_open(struct gd_map *map, const char *path, struct gd_error *err);
/* Tells the kernel that these pages are not needed any more (they can be read again). */
void gd_map_forget(const struct gd_map *map, size_t offset, size_t length);
void gd_map_release(struct gd_map *map);

/* Whole file into memory, NUL-terminated; gd_free it. */
GD_MUST_CHECK bool gd_file_read(const char *path, size_t size_max, char **data, size_t *length, struct gd_error *err);

/* Writes all bytes to an open descriptor (short writes and EINTR handled). */
GD_MUST_CHECK bool gd_write_all(int fd, const void *bytes, size_t length, const char *path, struct gd_error *err);

/* Writes path.tmp-XXXX, fsyncs it, renames over `path`, fsyncs the directory. */
GD_MUST_CHECK bool gd_file_write_durable(const char *path, const void *bytes, size_t length, struct gd_error *err);

bool gd_path_exists(const char *path);   /* and can be looked at */
bool gd_path_is_file(const char *path);  /* a regular one */

GD_MUST_CHECK bool gd_fsync_dir(const char *path, struct gd_error *err);
GD_MUST_CHECK bool gd_mkdirs(const char *path, struct gd_error *err);           /* mode 0700, parents too */
GD_MUST_CHECK bool gd_remove_tree(const char *path, struct gd_error *err);      /* absent is fine; follows no links */

/*
 * A folder that appears whole or not at all. Begin creates `final_path` + ".tmp-<random>"; the caller
 * writes files into gd_dir_tx_path(); commit fsyncs every file in it, writes manifest.json
 * ({"format":1,"files":{name:{"bytes":n,"xxh3":"hex"}}}) last, fsyncs the folder, renames it to
 * final_path (which must not exist), fsyncs the parent. Abort removes it.
 */
struct gd_dir_tx;
GD_MUST_CHECK bool gd_dir_tx_begin(struct gd_dir_tx **out, const char *final_path, struct gd_error *err);
const char *gd_dir_tx_path(const struct gd_dir_tx *tx);
/* Both end the transaction and free it, whatever they return. */
GD_MUST_CHECK bool gd_dir_tx_commit(struct gd_dir_tx *tx, struct gd_error *err);
void gd_dir_tx_abort(struct gd_dir_tx *tx);
/* Recomputes sizes and hashes; GD_IO naming the file that differs, is missing or is extra. */
GD_MUST_CHECK bool gd_dir_verify(const char *path, struct gd_error *err);
/* Removes what crashed transactions and durable writes left in `parent` (NAME.tmp-<random>); absent is fine.
 * Only when nobody writes there: at start. */
GD_MUST_CHECK bool gd_dir_sweep(const char *parent, struct gd_error *err);

/* Hex digests. xxh3-128 for integrity, SHA-256 for keys and content addresses. out: 33 / 65 bytes. */
void gd_hash_xxh3(const void *bytes, size_t length, char out[33]);
void gd_hash_sha256(const void *bytes, size_t length, char out[65]);
GD_MUST_CHECK bool gd_hash_file_xxh3(const char *path, char out[33], struct gd_error *err);

/* Lowercase letters and digits from the kernel's generator; `out` gets length + NUL. */
void gd_random_id(char *out, size_t length);
void gd_random_bytes(void *out, size_t length);

/* Unix seconds (wall) and monotonic seconds. */
int64_t gd_time_unix(void);
double gd_time_unix_fraction(void);
double gd_time_monotonic(void);

#endif
