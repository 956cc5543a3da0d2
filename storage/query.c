/* Prepared statements, SQLite's result codes as errors, and rows as records. */
#include "engine/base/alloc.h"
#include "storage/db_internal.h"

#include <assert.h>
#include <string.h>

bool gd_db_fail(struct gd_db *db, int rc, struct gd_error *err)
{
    int extended = sqlite3_extended_errcode(db->sqlite);
    const char *message = (extended & 0xFF) == (rc & 0xFF) ? sqlite3_errmsg(db->sqlite) : sqlite3_errstr(rc);
    switch (rc & 0xFF) {
    case SQLITE_FULL:
        return gd_fail(err, GD_DISK_FULL, "database: %s; free space on the disk of the data folder", message);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return gd_fail(err, GD_BUSY, "database: %s; another program holds its lock", message);
    case SQLITE_ERROR:
    case SQLITE_MISUSE:
    case SQLITE_RANGE:
        return gd_fail(err, GD_INTERNAL, "database: %s", message);
    case SQLITE_NOMEM:
        return gd_fail(err, GD_NO_MEMORY, "database: %s", message);
    case SQLITE_TOOBIG:
        return gd_fail(err, GD_TOO_LARGE, "database: %s", message);
    case SQLITE_CONSTRAINT:
        if (rc == SQLITE_CONSTRAINT_FOREIGNKEY)
            return gd_fail(err, GD_NOT_FOUND, "database: what this record refers to is not there (%s)", message);
        return gd_fail(err, GD_CONFLICT, "database: %s", message);
    default:
        return gd_fail(err, GD_IO, "database: %s (SQLite code %d)", message, extended);
    }
}

bool gd_db_in_transaction(const struct gd_db *db)
{
    return sqlite3_get_autocommit(db->sqlite) == 0;
}

bool gd_db_exec(struct gd_db *db, const char *sql, struct gd_error *err)
{
    int rc = sqlite3_exec(db->sqlite, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK || gd_db_fail(db, rc, err);
}

struct gd_query gd_query_start(struct gd_db *db, const char *sql_literal)
{
    struct gd_query query = {.db = db, .rc = SQLITE_OK};
    for (int i = 0; i < db->statement_count; i++)
        if (db->statements[i].sql == sql_literal) {
            query.statement = db->statements[i].statement;
            assert(!sqlite3_stmt_busy(query.statement));
            return query;
        }
    assert(db->statement_count < GD_STATEMENT_COUNT_MAX);
    query.rc = sqlite3_prepare_v3(db->sqlite, sql_literal, -1, SQLITE_PREPARE_PERSISTENT, &query.statement, NULL);
    if (query.rc == SQLITE_OK) {
        db->statements[db->statement_count].sql = sql_literal;
        db->statements[db->statement_count++].statement = query.statement;
    }
    return query;
}

void gd_put_text(struct gd_query *query, const char *text)
{
    if (query->rc == SQLITE_OK && text == NULL)
        query->rc = sqlite3_bind_null(query->statement, ++query->at);
    else if (query->rc == SQLITE_OK)
        query->rc = sqlite3_bind_text64(query->statement, ++query->at, text, strlen(text), SQLITE_STATIC, SQLITE_UTF8);
}

void gd_put_int(struct gd_query *query, int64_t value)
{
    if (query->rc == SQLITE_OK)
        query->rc = sqlite3_bind_int64(query->statement, ++query->at, value);
}

void gd_put_real(struct gd_query *query, double value)
{
    if (query->rc == SQLITE_OK)
        query->rc = sqlite3_bind_double(query->statement, ++query->at, value);
}

void gd_put_null(struct gd_query *query)
{
    gd_put_text(query, NULL);
}

bool gd_query_next(struct gd_query *query)
{
    if (query->rc != SQLITE_OK && query->rc != SQLITE_ROW)
        return false;
    query->at = 0;
    query->rc = sqlite3_step(query->statement);
    return query->rc == SQLITE_ROW;
}

char *gd_take_text(struct gd_query *query)
{
    return gd_strdup((const char *)sqlite3_column_text(query->statement, query->at++));
}

int64_t gd_take_int(struct gd_query *query)
{
    return sqlite3_column_int64(query->statement, query->at++);
}

double gd_take_real(struct gd_query *query)
{
    return sqlite3_column_double(query->statement, query->at++);
}

bool gd_query_end(struct gd_query *query, struct gd_error *err)
{
    bool ok = query->rc == SQLITE_OK || query->rc == SQLITE_ROW || query->rc == SQLITE_DONE ||
              gd_db_fail(query->db, query->rc, err);
    if (query->statement != NULL) { /* what failed was reported by step; reset only repeats it */
        (void)sqlite3_reset(query->statement);
        (void)sqlite3_clear_bindings(query->statement);
    }
    return ok;
}

bool gd_query_run(struct gd_query *query, int *changed, struct gd_error *err)
{
    (void)gd_query_next(query);
    if (changed != NULL)
        *changed = query->rc == SQLITE_DONE ? sqlite3_changes(query->db->sqlite) : 0;
    return gd_query_end(query, err);
}

bool gd_read_records(struct gd_query *query, const struct gd_record_kind *kind, int limit, void **out, int *count,
                     bool *has_more, struct gd_error *err)
{
    char *records = NULL;
    int used = 0, capacity = 0;
    bool more = false;
    while (!more && gd_query_next(query)) {
        if (limit > 0 && used == limit) {
            more = true;
            break;
        }
        if (used == capacity) {
            capacity = capacity == 0 ? 16 : capacity * 2;
            records = gd_realloc_array(records, (size_t)capacity, kind->size_bytes);
        }
        void *record = records + (size_t)used++ * kind->size_bytes;
        memset(record, 0, kind->size_bytes);
        kind->read(query, record);
    }
    bool ok = gd_query_end(query, err);
    if (!ok) {
        for (int i = 0; i < used; i++)
            kind->release(records + (size_t)i * kind->size_bytes);
        gd_free(records);
        records = NULL;
        used = 0;
    }
    *out = records;
    *count = used;
    if (has_more != NULL)
        *has_more = ok && more;
    return ok;
}

bool gd_read_record(struct gd_query *query, const struct gd_record_kind *kind, void *out, bool *found,
                    struct gd_error *err)
{
    memset(out, 0, kind->size_bytes);
    *found = gd_query_next(query);
    if (*found)
        kind->read(query, out);
    return gd_query_end(query, err);
}

/* ---- pages ---- */

struct cursor {
    int64_t at, seq;
};

static bool find_cursor(struct gd_db *db, const struct gd_page_sql *sql, const struct gd_page_keys *keys, const struct gd_page *page,
                        struct cursor *out, struct gd_error *err)
{
    struct gd_query lookup = gd_query_start(db, sql->lookup);
    gd_put_text(&lookup, page->after);
    gd_put_text(&lookup, keys->owner);
    if (keys->second != NULL)
        gd_put_text(&lookup, keys->second);
    *out = page->ascending ? (struct cursor){INT64_MIN, INT64_MIN} : (struct cursor){INT64_MAX, INT64_MAX};
    bool found = page->after != NULL && gd_query_next(&lookup);
    if (found) {
        out->at = gd_take_int(&lookup);
        out->seq = gd_take_int(&lookup);
    }
    if (!gd_query_end(&lookup, err))
        return false;
    if (page->limit < 1)
        return gd_fail_param(err, GD_INVALID, "limit", "'limit' must be at least 1, got %d", page->limit);
    return page->after == NULL || found ||
           gd_fail_param(err, GD_INVALID, "after", "'after': nothing here has the id '%.100s'; "
                         "give the id of the last element of the page before", page->after);
}

bool gd_read_page(struct gd_db *db, const struct gd_page_sql *sql, const struct gd_page_keys *keys, const struct gd_page *page,
                  const struct gd_record_kind *kind, void **out, int *count, bool *has_more, struct gd_error *err)
{
    struct cursor cursor;
    if (!find_cursor(db, sql, keys, page, &cursor, err))
        return false;
    struct gd_query query = gd_query_start(db, sql->list[page->ascending]);
    gd_put_text(&query, keys->owner);
    gd_put_text(&query, keys->second);
    gd_put_text(&query, keys->filter);
    gd_put_int(&query, cursor.at);
    gd_put_int(&query, cursor.seq);
    return gd_read_records(&query, kind, page->limit, out, count, has_more, err);
}
