#include "engine/base/alloc.h"
#include "storage/db_internal.h"

#include <stdlib.h>
#include <string.h>

/*
 * The schema, step by step. A step is never changed once released: add the next one below. Each runs in one transaction
 * with its user_version, so a crash leaves the version before or after it.
 */
static const struct {
    const char *database; /* "main" (state.db) or "metrics" */
    int version;          /* from 1, without gaps */
    const char *sql;
} migrations[] = {
    {"main", 1,
     "CREATE TABLE main.files ("
     "  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, project TEXT NOT NULL, filename TEXT NOT NULL,"
     "  purpose TEXT NOT NULL, status TEXT NOT NULL, status_details TEXT, report TEXT, xxh3 TEXT,"
     "  bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL"
     ") STRICT;"
     "CREATE INDEX main.files_page ON files (project, created_at, seq);"
     "CREATE INDEX main.files_expiry ON files (expires_at) WHERE expires_at > 0;"

     "CREATE TABLE main.jobs ("
     "  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, project TEXT NOT NULL, model TEXT NOT NULL,"
     "  training_file TEXT NOT NULL, validation_file TEXT, suffix TEXT, body TEXT NOT NULL,"
     "  hyperparameters TEXT, metadata TEXT, integrations TEXT, error TEXT, fine_tuned_model TEXT, result_files TEXT,"
     "  idempotency_key TEXT, memory TEXT, status TEXT NOT NULL,"
     "  created_at INTEGER NOT NULL, started_at INTEGER NOT NULL, finished_at INTEGER NOT NULL,"
     "  estimated_finish INTEGER NOT NULL, seed INTEGER NOT NULL, trained_tokens INTEGER NOT NULL,"
     "  step INTEGER NOT NULL, total_steps INTEGER NOT NULL, attempt INTEGER NOT NULL, priority INTEGER NOT NULL,"
     "  UNIQUE (project, idempotency_key)"
     ") STRICT;"
     "CREATE INDEX main.jobs_page ON jobs (project, created_at, seq);"
     "CREATE INDEX main.jobs_status ON jobs (status);"

     "CREATE TABLE main.events ("
     "  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL REFERENCES jobs (id),"
     "  level TEXT NOT NULL, message TEXT NOT NULL, type TEXT NOT NULL, data TEXT, created_at INTEGER NOT NULL"
     ") STRICT;"
     "CREATE INDEX main.events_job ON events (job_id, seq);"
     "CREATE INDEX main.events_page ON events (job_id, created_at, seq);"

     "CREATE TABLE main.checkpoints ("
     "  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL REFERENCES jobs (id),"
     "  model TEXT NOT NULL, folder TEXT NOT NULL, metrics TEXT, step INTEGER NOT NULL, created_at INTEGER NOT NULL,"
     "  UNIQUE (job_id, step)"
     ") STRICT;"
     "CREATE INDEX main.checkpoints_page ON checkpoints (job_id, created_at, seq);"

     "CREATE TABLE main.models ("
     "  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, project TEXT NOT NULL,"
     "  job_id TEXT REFERENCES jobs (id), base_model TEXT NOT NULL, folder TEXT NOT NULL,"
     "  is_checkpoint INTEGER NOT NULL, created_at INTEGER NOT NULL"
     ") STRICT;"
     "CREATE INDEX main.models_page ON models (project, created_at, seq);"},

    {"main", 2,
     "CREATE TABLE main.evals ("
     "  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, project TEXT NOT NULL, name TEXT,"
     "  config TEXT NOT NULL, criteria TEXT NOT NULL, metadata TEXT, created_at INTEGER NOT NULL,"
     "  updated_at INTEGER NOT NULL"
     ") STRICT;"
     "CREATE INDEX main.evals_page ON evals (project, created_at, seq);"
     "CREATE INDEX main.evals_page_updated ON evals (project, updated_at, seq);"

     "ALTER TABLE main.jobs ADD COLUMN kind TEXT NOT NULL DEFAULT 'fine_tuning';"
     "ALTER TABLE main.jobs ADD COLUMN eval_id TEXT REFERENCES evals (id);"
     "ALTER TABLE main.jobs ADD COLUMN name TEXT;"
     "CREATE INDEX main.jobs_eval ON jobs (eval_id, created_at, seq) WHERE eval_id IS NOT NULL;"

     "CREATE TABLE main.eval_items ("
     "  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, run_id TEXT NOT NULL REFERENCES jobs (id),"
     "  item_index INTEGER NOT NULL, status TEXT NOT NULL, digest TEXT NOT NULL, body TEXT NOT NULL,"
     "  created_at INTEGER NOT NULL, UNIQUE (run_id, item_index)"
     ") STRICT;"
     "CREATE INDEX main.eval_items_page ON eval_items (run_id, created_at, seq);"
     "CREATE INDEX main.eval_items_status ON eval_items (run_id, status);"

     /* score NULL: it could not be had. aggregation NULL: scores have a mean; else numbers, a JSON list, adds up. */
     "CREATE TABLE main.eval_scores ("
     "  run_id TEXT NOT NULL REFERENCES jobs (id), name TEXT NOT NULL, item_index INTEGER NOT NULL, type TEXT NOT NULL,"
     "  score REAL, passed INTEGER NOT NULL, aggregation TEXT, numbers TEXT, PRIMARY KEY (run_id, name, item_index)"
     ") STRICT, WITHOUT ROWID;"

     "CREATE TABLE main.eval_usage ("
     "  run_id TEXT NOT NULL REFERENCES jobs (id), item_index INTEGER NOT NULL, model TEXT NOT NULL,"
     "  invocations INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,"
     "  cached_tokens INTEGER NOT NULL, PRIMARY KEY (run_id, item_index, model)"
     ") STRICT, WITHOUT ROWID;"},

    {"main", 3,
     "ALTER TABLE main.jobs ADD COLUMN start_folder TEXT;"
     "ALTER TABLE main.models ADD COLUMN parent TEXT;"},

    /* kind: 0 finite (in value), 1 NaN, 2 +infinity, 3 -infinity: SQLite would turn a NaN into NULL. */
    {"metrics", 1,
     "CREATE TABLE metrics.series ("
     "  id INTEGER PRIMARY KEY, job_id TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (job_id, name)"
     ") STRICT;"
     "CREATE TABLE metrics.points ("
     "  series_id INTEGER NOT NULL REFERENCES series (id), step INTEGER NOT NULL, kind INTEGER NOT NULL,"
     "  value REAL, wall REAL NOT NULL, PRIMARY KEY (series_id, step)"
     ") STRICT, WITHOUT ROWID;"},
};

static bool read_version(struct gd_db *db, const char *database, int *out, struct gd_error *err)
{
    char *sql = gd_format("PRAGMA %s.user_version", database);
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(db->sqlite, sql, -1, &statement, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW)
        *out = sqlite3_column_int(statement, 0);
    bool ok = rc == SQLITE_ROW || gd_db_fail(db, rc, err);
    (void)sqlite3_finalize(statement);
    gd_free(sql);
    return ok;
}

static bool apply(struct gd_db *db, const char *database, int version, const char *sql, struct gd_error *err)
{
    char *mark = gd_format("PRAGMA %s.user_version = %d", database, version);
    bool ok = gd_db_begin(db, err) && gd_db_exec(db, sql, err) && gd_db_exec(db, mark, err) && gd_db_commit(db, err);
    if (!ok) {
        gd_error_context(err, "bringing database '%s' to schema %d", database, version);
        gd_db_rollback(db);
    }
    gd_free(mark);
    return ok;
}

static bool migrate(struct gd_db *db, const char *database, const char *file, struct gd_error *err)
{
    int version = 0, newest = 0;
    if (!read_version(db, database, &version, err))
        return false;
    for (size_t i = 0; i < GD_COUNT(migrations); i++)
        if (strcmp(migrations[i].database, database) == 0 && migrations[i].version > newest)
            newest = migrations[i].version;
    if (version > newest)
        return gd_fail(err, GD_UNSUPPORTED, "%s has schema %d, this graftd " GD_VERSION " knows schemas up to %d: "
                       "start the newer graftd that wrote it, or restore a backup", file, version, newest);
    for (size_t i = 0; i < GD_COUNT(migrations); i++)
        if (strcmp(migrations[i].database, database) == 0 && migrations[i].version > version &&
            !apply(db, database, migrations[i].version, migrations[i].sql, err))
            return false;
    return true;
}

bool gd_db_migrate(struct gd_db *db, struct gd_error *err)
{
    return migrate(db, "main", "state.db", err) && migrate(db, "metrics", "metrics.db", err);
}
