/*
 * db_internal.h - one connection, its prepared statements, and how the files of this room use them.
 *
 * Why      Values are bound in order and errors stick to the query, so a statement reads as one block.
 * Memory   Statements are cached for the life of the connection by the address of their text: pass literals only.
 * Threads  The store thread only.
 * Errors   SQLite's result codes become GD_DISK_FULL, GD_CONFLICT, GD_NOT_FOUND, GD_TOO_LARGE, GD_NO_MEMORY,
 *          GD_BUSY, GD_INTERNAL or GD_IO.
 * Limits   GD_STATEMENT_COUNT_MAX texts
 * Life     gd_query_start -> gd_put_* -> gd_query_next / gd_take_* ... -> gd_query_end; one query per text at a time.
 */
#ifndef GD_STORAGE_DB_INTERNAL_H
#define GD_STORAGE_DB_INTERNAL_H

#include "storage/db.h"
#include <sqlite3.h>

#define GD_STATEMENT_COUNT_MAX 128

struct gd_db {
    sqlite3 *sqlite;     /* state.db as "main", metrics.db as "metrics" */
    int lock_fd;
    bool wal_grown;      /* a checkpoint is due */
    bool unsound;        /* a disk error was seen: the WAL stays as it is for the recovery of the next start */
    int statement_count;
    struct {
        const char *sql;
        sqlite3_stmt *statement;
    } statements[GD_STATEMENT_COUNT_MAX];
};

/* ---- the data folder ---- */
/* Creates the folder, refuses network filesystems, takes the lock: GD_CONFLICT says who holds it. */
GD_MUST_CHECK bool gd_data_dir_lock(const char *data_dir, int *lock_fd, struct gd_error *err);
void gd_data_dir_unlock(int lock_fd);

/* ---- schema ---- */
/* Brings both databases to the newest schema; refuses those that are newer. */
GD_MUST_CHECK bool gd_db_migrate(struct gd_db *db, struct gd_error *err);

/* ---- statements ---- */
struct gd_query {
    struct gd_db *db;
    sqlite3_stmt *statement;
    int at;              /* the next parameter, or the next column */
    int rc;              /* the first result that was an error, else the last */
};
struct gd_query gd_query_start(struct gd_db *db, const char *sql_literal);
void gd_put_text(struct gd_query *query, const char *text); /* NULL: null. Must live until gd_query_end. */
void gd_put_int(struct gd_query *query, int64_t value);
void gd_put_real(struct gd_query *query, double value);
void gd_put_null(struct gd_query *query);
bool gd_query_next(struct gd_query *query);                 /* false: no more rows, or an error that end reports */
char *gd_take_text(struct gd_query *query);                 /* yours to gd_free; NULL for null */
int64_t gd_take_int(struct gd_query *query);
double gd_take_real(struct gd_query *query);
GD_MUST_CHECK bool gd_query_end(struct gd_query *query, struct gd_error *err);
/* For statements without rows. *changed (may be NULL): the number of rows it wrote. */
GD_MUST_CHECK bool gd_query_run(struct gd_query *query, int *changed, struct gd_error *err);
/* Statements without values: PRAGMA, BEGIN. */
GD_MUST_CHECK bool gd_db_exec(struct gd_db *db, const char *sql, struct gd_error *err);
bool gd_db_fail(struct gd_db *db, int rc, struct gd_error *err);
bool gd_db_in_transaction(const struct gd_db *db);

/* ---- reading records ---- */
struct gd_record_kind {
    size_t size_bytes;
    void (*read)(struct gd_query *query, void *record);
    void (*release)(void *record);
};
/* All rows of `query` (ended here) as an array; at most `limit` (0: all), *has_more (may be NULL) says if there are more. */
GD_MUST_CHECK bool gd_read_records(struct gd_query *query, const struct gd_record_kind *kind, int limit, void **out,
                                   int *count, bool *has_more, struct gd_error *err);
/* The only row of `query`, or `found` false. */
GD_MUST_CHECK bool gd_read_record(struct gd_query *query, const struct gd_record_kind *kind, void *out, bool *found,
                                  struct gd_error *err);

/* A list that is read page by page, in the order of a column and seq. */
struct gd_page_sql {
    const char *lookup;  /* of what a page comes after: (column, seq) where id = ?1, of owner ?2 (and ?3) */
    const char *list[2]; /* of owner ?1 (and ?2), filtered by ?3, what follows (?4, ?5): falling and rising */
};
/* The two lists of a SELECT that ends in its conditions. */
#define GD_PAGE_LISTS(select, column)                                                                 \
    {select " AND (" column ", seq) < (?4, ?5) ORDER BY " column " DESC, seq DESC",                   \
     select " AND (" column ", seq) > (?4, ?5) ORDER BY " column ", seq"}
struct gd_page_keys {
    const char *owner, *second; /* second NULL: the lookup has no ?3 */
    const char *filter;         /* NULL: null */
};
/* As gd_read_records; GD_INVALID where page->after is nothing of these. */
GD_MUST_CHECK bool gd_read_page(struct gd_db *db, const struct gd_page_sql *sql, const struct gd_page_keys *keys, const struct gd_page *page,
                                const struct gd_record_kind *kind, void **out, int *count, bool *has_more, struct gd_error *err);

#endif
