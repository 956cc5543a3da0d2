/* opening, locking, migrating */
#include "storage/db_internal.h"
#include "tests/unit/base/crash.h"

#include <fcntl.h>
#include <sys/stat.h>

static char *folder;

static int make_folder(void **state)
{
    folder = scratch_new();
    return 0;
}

static int drop_folder(void **state)
{
    scratch_remove(folder);
    return 0;
}

static int64_t number(struct gd_db *db, const char *sql)
{
    sqlite3_stmt *statement;
    assert_int_equal(sqlite3_prepare_v2(db->sqlite, sql, -1, &statement, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    int64_t value = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    return value;
}

static void raw(const char *file, const char *sql)
{
    char *path = gd_format("%s/%s", folder, file);
    sqlite3 *sqlite;
    assert_int_equal(sqlite3_open(path, &sqlite), SQLITE_OK);
    assert_int_equal(sqlite3_exec(sqlite, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(sqlite);
    gd_free(path);
}

static bool insert_file(struct gd_db *db, const char *id, struct gd_error *err)
{
    struct gd_file_record record = {.id = (char *)id, .project = "p", .filename = "a.jsonl", .purpose = "fine-tune",
                                    .status = "processed", .xxh3 = "00", .bytes = 5, .created_at = 100};
    return gd_db_begin(db, err) && gd_db_file_insert(db, &record, err) && gd_db_commit(db, err);
}

static void an_empty_folder_gets_the_newest_schema_and_safe_settings(void **state)
{
    struct gd_error err = {0};
    struct gd_db *db;
    char *deep = gd_format("%s/new/data", folder);
    assert_ok(gd_db_open(&db, deep, &err), &err);
    assert_int_equal(number(db, "PRAGMA main.user_version"), 3);
    assert_int_equal(number(db, "PRAGMA metrics.user_version"), 1);
    assert_int_equal(number(db, "PRAGMA main.synchronous"), 2);
    assert_int_equal(number(db, "PRAGMA metrics.synchronous"), 1);
    assert_int_equal(number(db, "PRAGMA foreign_keys"), 1);
    assert_int_equal(number(db, "PRAGMA cell_size_check"), 1);
    assert_int_equal(number(db, "PRAGMA trusted_schema"), 0);
    assert_int_equal(number(db, "SELECT count(*) FROM main.sqlite_schema WHERE type = 'table' AND name IN "
                                "('files', 'jobs', 'events', 'checkpoints', 'models', 'evals', 'eval_items', 'eval_scores', 'eval_usage')"), 9);
    assert_ok(insert_file(db, "file-1", &err), &err);
    static const char *const names[] = {"lock", "state.db", "state.db-wal", "state.db-shm", "metrics.db"};
    for (size_t i = 0; i < GD_COUNT(names); i++) {
        struct stat facts;
        char *path = gd_format("%s/%s", deep, names[i]);
        assert_int_equal(stat(path, &facts), 0);
        assert_int_equal(facts.st_mode & 0777, 0600);
        gd_free(path);
    }
    gd_db_close(db);
    gd_free(deep);
}

static void rows_are_there_after_reopening(void **state)
{
    struct gd_error err = {0};
    struct gd_db *db;
    for (int round = 0; round < 3; round++) {
        assert_ok(gd_db_open(&db, folder, &err), &err);
        assert_int_equal(number(db, "SELECT count(*) FROM files"), round);
        char *id = gd_format("file-%d", round);
        assert_ok(insert_file(db, id, &err), &err);
        gd_free(id);
        gd_db_close(db);
    }
}

static bool open_fails(const char *part, enum gd_code code)
{
    struct gd_error err = {0};
    struct gd_db *db;
    assert_fails(gd_db_open(&db, folder, &err), &err, code, part);
    assert_null(db);
    return true;
}

static void a_folder_has_one_server_and_the_error_says_which(void **state)
{
    struct gd_error err = {0};
    struct gd_db *db;
    assert_ok(gd_db_open(&db, folder, &err), &err);
    char *who = gd_format("in use by another graftd (process %ld, started ", (long)getpid());
    open_fails(who, GD_CONFLICT);
    pid_t child = fork();
    if (child == 0) { /* another process, which must not touch the inherited connection */
        struct gd_error other = {0};
        struct gd_db *second;
        _exit(!gd_db_open(&second, folder, &other) && strstr(other.message, who) != NULL ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    gd_db_close(db);
    assert_ok(gd_db_open(&db, folder, &err), &err);
    gd_db_close(db);
    gd_free(who);
}

static void a_newer_schema_is_refused_and_left_alone(void **state)
{
    struct gd_error err = {0};
    struct gd_db *db;
    assert_ok(gd_db_open(&db, folder, &err), &err);
    gd_db_close(db);
    raw("metrics.db", "PRAGMA user_version = 7");
    open_fails("metrics.db has schema 7, this graftd " GD_VERSION " knows schemas up to 1", GD_UNSUPPORTED);
    raw("metrics.db", "PRAGMA user_version = 1");
    raw("state.db", "PRAGMA user_version = 9");
    open_fails("state.db has schema 9", GD_UNSUPPORTED);
    raw("state.db", "PRAGMA user_version = 3");
    assert_ok(gd_db_open(&db, folder, &err), &err);
    gd_db_close(db);
}

static void jobs_of_the_first_schema_are_fine_tuning_jobs(void **state)
{
    struct gd_error err = {0};
    struct gd_db *db;
    struct gd_job_record job;
    raw("state.db",
        "CREATE TABLE jobs ("
        "  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, project TEXT NOT NULL, model TEXT NOT NULL,"
        "  training_file TEXT NOT NULL, validation_file TEXT, suffix TEXT, body TEXT NOT NULL,"
        "  hyperparameters TEXT, metadata TEXT, integrations TEXT, error TEXT, fine_tuned_model TEXT, result_files TEXT,"
        "  idempotency_key TEXT, memory TEXT, status TEXT NOT NULL,"
        "  created_at INTEGER NOT NULL, started_at INTEGER NOT NULL, finished_at INTEGER NOT NULL,"
        "  estimated_finish INTEGER NOT NULL, seed INTEGER NOT NULL, trained_tokens INTEGER NOT NULL,"
        "  step INTEGER NOT NULL, total_steps INTEGER NOT NULL, attempt INTEGER NOT NULL, priority INTEGER NOT NULL,"
        "  UNIQUE (project, idempotency_key)"
        ") STRICT;"
        "CREATE TABLE models ("
        "  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, project TEXT NOT NULL,"
        "  job_id TEXT REFERENCES jobs (id), base_model TEXT NOT NULL, folder TEXT NOT NULL,"
        "  is_checkpoint INTEGER NOT NULL, created_at INTEGER NOT NULL"
        ") STRICT;"
        "INSERT INTO jobs VALUES (1, 'ftjob-1', 'p', 'm', 'file-1', NULL, NULL, '{}', '{}', NULL, NULL, NULL, NULL, '[]',"
        "  NULL, NULL, 'succeeded', 7, 8, 9, 0, 42, 5, 3, 3, 1, 0);"
        "PRAGMA user_version = 1;");
    assert_ok(gd_db_open(&db, folder, &err), &err);
    assert_ok(gd_db_job_get_kind(db, GD_JOB_KIND_FINE_TUNING, "p", "ftjob-1", &job, &err), &err);
    assert_int_equal(job.status, GD_JOB_SUCCEEDED);
    assert_int_equal(job.finished_at, 9);
    assert_null(job.eval_id);
    assert_null(job.start_folder);
    gd_job_record_release(&job);
    assert_fails(gd_db_job_get_kind(db, GD_JOB_KIND_EVAL, "p", "ftjob-1", &job, &err), &err, GD_NOT_FOUND, "ftjob-1");
    gd_db_close(db);
}

static void damage_is_found_at_start(void **state)
{
    struct gd_error err = {0};
    struct gd_db *db;
    assert_ok(gd_db_open(&db, folder, &err), &err);
    for (int i = 0; i < 200; i++) {
        char *id = gd_format("file-%d", i);
        assert_ok(insert_file(db, id, &err), &err);
        gd_free(id);
    }
    gd_db_close(db);
    char *path = gd_format("%s/state.db", folder);
    int fd = open(path, O_RDWR);
    struct stat facts;
    assert_int_equal(fstat(fd, &facts), 0);
    char page[4096];
    memset(page, 0x5A, sizeof(page));
    for (off_t at = 4096; at < facts.st_size; at += 4096) /* all but the first page, which holds the version */
        assert_int_equal(pwrite(fd, page, sizeof(page), at), sizeof(page));
    close(fd);
    open_fails("open the databases in", GD_IO);
    gd_free(path);
}

static void a_file_that_is_no_database_is_refused(void **state)
{
    struct gd_error err = {0};
    char *path = gd_format("%s/state.db", folder), text[5000];
    memset(text, 'x', sizeof(text));
    assert_ok(gd_file_write_durable(path, text, sizeof(text), &err), &err);
    open_fails("file is not a database", GD_IO);
    gd_free(path);
}

static void dangling_records_are_found_at_start(void **state)
{
    struct gd_error err = {0};
    struct gd_db *db;
    assert_ok(gd_db_open(&db, folder, &err), &err);
    gd_db_close(db);
    raw("state.db", "INSERT INTO events (id, job_id, level, message, type, created_at) VALUES ('e', 'no-job', 'info', '', "
                    "'message', 1)");
    open_fails("1 records that refer to missing ones", GD_IO);
}

static bool open_alone(void *data_dir)
{
    struct gd_error err = {0};
    struct gd_db *db;
    if (!gd_db_open(&db, data_dir, &err))
        return false;
    gd_db_close(db);
    return true;
}

static void a_crash_while_migrating_is_made_good_by_the_next_start(void **state)
{
    enum crash crash = CRASH_KILLED;
    int n = 1;
    for (; crash == CRASH_KILLED; n += 11) { /* some 700 calls: every eleventh keeps it short */
        char *data_dir = gd_format("%s/%d", folder, n);
        crash = crash_before_call(n, open_alone, data_dir);
        struct gd_error err = {0};
        struct gd_db *db;
        assert_ok(gd_db_open(&db, data_dir, &err), &err);
        assert_int_equal(number(db, "PRAGMA main.user_version"), 3);
        assert_ok(insert_file(db, "file-1", &err), &err);
        gd_db_close(db);
        assert_ok(gd_remove_tree(data_dir, &err), &err);
        gd_free(data_dir);
    }
    if (crash == CRASH_UNTRACED)
        skip();
    assert_true(n > 50);
}

static void a_grown_wal_is_moved_into_the_database(void **state)
{
    struct gd_error err = {0};
    struct gd_db *db;
    assert_ok(gd_db_open(&db, folder, &err), &err);
    char *report = gd_alloc(50001);
    memset(report, 'r', 50000);
    for (int i = 0; i < 200; i++) { /* 10 MB, the limit is 4 MiB */
        char *id = gd_format("file-%d", i);
        struct gd_file_record record = {.id = id, .project = "p", .filename = "a", .purpose = "fine-tune",
                                        .status = "processed", .xxh3 = "00", .report = report};
        assert_ok(gd_db_begin(db, &err) && gd_db_file_insert(db, &record, &err) && gd_db_commit(db, &err), &err);
        gd_free(id);
    }
    struct stat facts;
    char *path = gd_format("%s/state.db-wal", folder);
    assert_int_equal(stat(path, &facts), 0);
    assert_in_range(facts.st_size, 1, 6 << 20);
    gd_db_close(db);
    assert_int_equal(stat(path, &facts), -1); /* moved at the end */
    gd_free(path);
    gd_free(report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_empty_folder_gets_the_newest_schema_and_safe_settings, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(rows_are_there_after_reopening, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(a_folder_has_one_server_and_the_error_says_which, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(a_newer_schema_is_refused_and_left_alone, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(jobs_of_the_first_schema_are_fine_tuning_jobs, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(damage_is_found_at_start, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(a_file_that_is_no_database_is_refused, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(dangling_records_are_found_at_start, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(a_crash_while_migrating_is_made_good_by_the_next_start, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(a_grown_wal_is_moved_into_the_database, make_folder, drop_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
