#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "storage/db_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TEXT_BYTES_MAX (256 << 20)
#define WAL_PAGES_MAX 1000 /* then it is moved into the database: 4 MiB */

/* synchronous is per database: FULL keeps each commit through power loss, NORMAL may lose the last metrics. No mmap: it
 * would turn an I/O error into a signal. No automatic checkpoints: their errors would go unnoticed (see gd_db_begin). */
static const char *const settings[] = {
    "PRAGMA main.journal_mode = WAL",       "PRAGMA metrics.journal_mode = WAL", "PRAGMA main.synchronous = FULL",
    "PRAGMA metrics.synchronous = NORMAL",  "PRAGMA foreign_keys = ON",          "PRAGMA cell_size_check = ON",
    "PRAGMA trusted_schema = OFF",          "PRAGMA temp_store = MEMORY",        "PRAGMA mmap_size = 0",
    "PRAGMA main.journal_size_limit = 16777216", "PRAGMA metrics.journal_size_limit = 16777216",
};

static int wal_written(void *context, sqlite3 *sqlite, const char *database, int pages)
{
    struct gd_db *db = context;
    db->wal_grown = db->wal_grown || pages >= WAL_PAGES_MAX;
    return SQLITE_OK;
}

/* Creates the file for its owner only, before SQLite opens it: SQLite gives the same mode to -wal and -shm. A file that is
 * there is not opened, as closing it would drop SQLite's locks. */
static bool make_private_file(const char *path, struct gd_error *err)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno == EEXIST || gd_fail_errno(err, errno, "create %s", path);
    close(fd);
    return true;
}

static bool attach_metrics(struct gd_db *db, const char *path, struct gd_error *err)
{
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(db->sqlite, "ATTACH DATABASE ?1 AS metrics", -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_text(statement, 1, path, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(statement);
    bool ok = rc == SQLITE_DONE || gd_db_fail(db, rc, err);
    (void)sqlite3_finalize(statement);
    return ok;
}

/* Runs a statement that gives one text and compares it. *got: what it gave, cut. */
static bool gives(struct gd_db *db, const char *sql, const char *expected, char got[200], struct gd_error *err)
{
    sqlite3_stmt *statement = NULL;
    got[0] = '\0';
    int rc = sqlite3_prepare_v2(db->sqlite, sql, -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW && sqlite3_column_text(statement, 0) != NULL)
        (void)snprintf(got, 200, "%s", (const char *)sqlite3_column_text(statement, 0));
    bool ok = rc == SQLITE_ROW || rc == SQLITE_DONE || gd_db_fail(db, rc, err);
    (void)sqlite3_finalize(statement);
    return ok && strcmp(got, expected) == 0;
}

static bool configure(struct gd_db *db, struct gd_error *err)
{
    (void)sqlite3_extended_result_codes(db->sqlite, 1);
    (void)sqlite3_busy_timeout(db->sqlite, 5000); /* somebody may look with the sqlite3 shell */
    (void)sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    (void)sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_DQS_DML, 0, NULL);
    (void)sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_DQS_DDL, 0, NULL);
    (void)sqlite3_limit(db->sqlite, SQLITE_LIMIT_LENGTH, TEXT_BYTES_MAX);
    for (size_t i = 0; i < GD_COUNT(settings); i++)
        if (!gd_db_exec(db, settings[i], err))
            return false;
    char got[200];
    if (!gives(db, "PRAGMA main.journal_mode", "wal", got, err) ||
        !gives(db, "PRAGMA metrics.journal_mode", "wal", got, err))
        return gd_fail(err, GD_UNSUPPORTED, "the disk of the data folder does not support SQLite's WAL (journal mode "
                       "stays '%s'); choose a folder on a local disk", got);
    (void)sqlite3_wal_hook(db->sqlite, wal_written, db); /* replaces automatic checkpoints */
    return true;
}

static bool check(struct gd_db *db, const char *data_dir, struct gd_error *err)
{
    char got[200];
    if (!gives(db, "PRAGMA main.quick_check(1)", "ok", got, err))
        return gd_fail(err, GD_IO, "%s/state.db is damaged (%s); restore it from a backup", data_dir, got);
    if (!gives(db, "SELECT count(*) FROM pragma_foreign_key_check", "0", got, err))
        return gd_fail(err, GD_IO, "%s/state.db has %s records that refer to missing ones; restore it from a backup",
                       data_dir, got);
    return true;
}

static bool open_files(struct gd_db *db, const char *data_dir, struct gd_error *err)
{
    char *state = gd_format("%s/state.db", data_dir), *metrics = gd_format("%s/metrics.db", data_dir);
    bool ok = make_private_file(state, err) && make_private_file(metrics, err) && gd_fsync_dir(data_dir, err);
    if (ok) {
        int rc = sqlite3_open_v2(state, &db->sqlite, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
        if (rc != SQLITE_OK && db->sqlite == NULL)
            ok = gd_fail(err, GD_NO_MEMORY, "no memory to open %s", state);
        else if (rc != SQLITE_OK)
            ok = gd_db_fail(db, rc, err);
    }
    ok = ok && attach_metrics(db, metrics, err) && configure(db, err);
    gd_free(state);
    gd_free(metrics);
    return ok;
}

bool gd_db_open(struct gd_db **out, const char *data_dir, struct gd_error *err)
{
    *out = NULL;
    struct gd_db *db = gd_alloc(sizeof(*db));
    db->lock_fd = -1;
    bool ok = gd_data_dir_lock(data_dir, &db->lock_fd, err);
    if (ok) {
        ok = open_files(db, data_dir, err) && gd_db_migrate(db, err) && check(db, data_dir, err);
        if (!ok)
            gd_error_context(err, "open the databases in %s", data_dir);
    }
    if (!ok) {
        gd_db_close(db);
        return false;
    }
    *out = db;
    return true;
}

void gd_db_close(struct gd_db *db)
{
    if (db == NULL)
        return;
    for (int i = 0; i < db->statement_count; i++)
        (void)sqlite3_finalize(db->statements[i].statement);
    if (db->unsound && db->sqlite != NULL)
        (void)sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    (void)sqlite3_close_v2(db->sqlite); /* moves the WAL into the database */
    gd_data_dir_unlock(db->lock_fd);
    gd_free(db);
}

/* A failed fsync here may have lost pages that the WAL still holds: it must be heard, and nobody may reset the WAL after
 * it. That is why checkpoints are not left to SQLite, which ignores their errors. */
static bool checkpoint(struct gd_db *db, struct gd_error *err)
{
    static const char *const names[] = {"main", "metrics"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        int rc = sqlite3_wal_checkpoint_v2(db->sqlite, names[i], SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
        if (rc == SQLITE_OK || (rc & 0xFF) == SQLITE_BUSY || (rc & 0xFF) == SQLITE_FULL)
            continue; /* the next one will do it */
        gd_db_fail(db, rc, err);
        db->unsound = true;
        return false;
    }
    db->wal_grown = false;
    return true;
}

bool gd_db_begin(struct gd_db *db, struct gd_error *err)
{
    if (db->wal_grown && !checkpoint(db, err))
        return false;
    return gd_db_exec(db, "BEGIN IMMEDIATE", err);
}

bool gd_db_commit(struct gd_db *db, struct gd_error *err)
{
    if (gd_db_exec(db, "COMMIT", err))
        return true;
    db->unsound = db->unsound || err->code == GD_IO;
    return false;
}

void gd_db_rollback(struct gd_db *db)
{
    struct gd_error ignored = {0}; /* SQLite may have rolled back by itself */
    if (gd_db_in_transaction(db))
        (void)!gd_db_exec(db, "ROLLBACK", &ignored);
}

bool gd_db_savepoint(struct gd_db *db, struct gd_error *err)
{
    return gd_db_exec(db, "SAVEPOINT closure", err);
}

void gd_db_savepoint_end(struct gd_db *db, bool keep)
{
    struct gd_error ignored = {0}; /* only fails when the whole transaction is gone, which commit reports */
    if (gd_db_in_transaction(db))
        (void)!gd_db_exec(db, keep ? "RELEASE closure" : "ROLLBACK TO closure; RELEASE closure", &ignored);
}
