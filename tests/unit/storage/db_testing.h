/*
 * db_testing.h - a new database for each test, in a transaction that is never kept.
 *
 * Why      Tests of records begin alike.
 * Memory   close_db releases what open_db made.
 * Threads  One.
 * Errors   err is what the test's calls get; it is cleared before each test.
 * Limits   none
 * Life     open_db and close_db are a test's set-up and tear-down.
 */
#ifndef TESTS_STORAGE_DB_TESTING_H
#define TESTS_STORAGE_DB_TESTING_H

#include "storage/db_internal.h"
#include "tests/unit/base/scratch.h"

static char *folder;
static struct gd_db *db;
static struct gd_error err;

static inline int open_db(void **state)
{
    folder = scratch_new();
    gd_error_clear(&err);
    return gd_db_open(&db, folder, &err) && gd_db_begin(db, &err) ? 0 : -1;
}

static inline int close_db(void **state)
{
    gd_db_rollback(db);
    gd_db_close(db);
    scratch_remove(folder);
    return 0;
}

#endif
