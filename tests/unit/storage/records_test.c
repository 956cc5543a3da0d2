/* files, jobs, events, checkpoints, models: what goes in comes out, page by page */
#include "tests/unit/storage/db_testing.h"

static struct gd_file_record a_file(const char *id, const char *project, int64_t created_at)
{
    return (struct gd_file_record){.id = (char *)id, .project = (char *)project, .filename = "a \"b\".jsonl",
                                   .purpose = "fine-tune", .status = "processed", .xxh3 = "ab", .bytes = INT64_C(5) << 32,
                                   .created_at = created_at};
}

static struct gd_job_record a_job(const char *id, const char *project, int64_t created_at)
{
    return (struct gd_job_record){.id = (char *)id, .project = (char *)project, .model = "m", .training_file = "file-t",
                                  .body = "{\"model\":\"m\"}", .hyperparameters = "{}", .result_files = "[]",
                                  .status = GD_JOB_VALIDATING_FILES, .created_at = created_at, .seed = 42};
}

static void put_job(const char *id, enum gd_job_status status, int64_t created_at)
{
    struct gd_job_record job = a_job(id, "p", created_at);
    job.status = status;
    assert_ok(gd_db_job_insert(db, &job, &err), &err);
}

static void a_file_comes_back_as_it_went_in(void **state)
{
    struct gd_file_record in = a_file("file-1", "p", 7), out;
    in.status_details = "row 3: no messages";
    in.report = "{\"rows\":3}";
    in.expires_at = 99;
    assert_ok(gd_db_file_insert(db, &in, &err), &err);
    assert_fails(gd_db_file_insert(db, &in, &err), &err, GD_CONFLICT, "file file-1");
    assert_ok(gd_db_file_get(db, "p", "file-1", &out, &err), &err);
    assert_string_equal(out.filename, in.filename);
    assert_string_equal(out.status_details, in.status_details);
    assert_string_equal(out.report, in.report);
    assert_int_equal(out.bytes, in.bytes);
    assert_int_equal(out.created_at, 7);
    assert_int_equal(out.expires_at, 99);
    gd_file_record_release(&out);
    assert_fails(gd_db_file_get(db, "other", "file-1", &out, &err), &err, GD_NOT_FOUND, "file-1");
    assert_null(out.id);
    assert_fails(gd_db_file_get(db, "p", "file-2", &out, &err), &err, GD_NOT_FOUND, "file-2");
}

static void a_file_in_use_cannot_be_deleted(void **state)
{
    struct gd_file_record file = a_file("file-t", "p", 1);
    assert_ok(gd_db_file_insert(db, &file, &err), &err);
    put_job("ftjob-1", GD_JOB_QUEUED, 1);
    assert_fails(gd_db_file_delete(db, "other", "file-t", &err), &err, GD_NOT_FOUND, "file-t");
    assert_fails(gd_db_file_delete(db, "p", "file-t", &err), &err, GD_CONFLICT, "used by job 'ftjob-1'");
    struct gd_job_record job;
    assert_ok(gd_db_job_get(db, NULL, "ftjob-1", &job, &err), &err);
    job.status = GD_JOB_CANCELLED;
    assert_ok(gd_db_job_update(db, &job, &err), &err);
    gd_job_record_release(&job);
    assert_ok(gd_db_file_delete(db, "p", "file-t", &err), &err);
    assert_fails(gd_db_file_delete(db, "p", "file-t", &err), &err, GD_NOT_FOUND, "file-t");
}

static void expired_files_are_those_past_their_time(void **state)
{
    for (int i = 0; i < 6; i++) {
        char *id = gd_format("file-%d", i);
        struct gd_file_record file = a_file(id, i % 2 == 0 ? "p" : "q", 1);
        file.expires_at = i * 10; /* the first one never expires */
        assert_ok(gd_db_file_insert(db, &file, &err), &err);
        gd_free(id);
    }
    struct gd_file_record *files;
    int count;
    assert_ok(gd_db_file_expired(db, 30, &files, &count, &err), &err);
    assert_int_equal(count, 3);
    for (int i = 0; i < count; i++) {
        assert_int_equal(files[i].expires_at, (i + 1) * 10);
        gd_file_record_release(&files[i]);
    }
    gd_free(files);
}

/* Walks all pages of files and checks that each id comes once, in order. */
static void walk_files(bool ascending, int limit, const char *purpose, int expected)
{
    char after[32] = "";
    int seen = 0, last = ascending ? -1 : 1000;
    for (bool more = true; more;) {
        struct gd_page page = {.after = after[0] != '\0' ? after : NULL, .limit = limit, .ascending = ascending};
        struct gd_file_record *files;
        int count;
        assert_ok(gd_db_file_list(db, "p", purpose, &page, &files, &count, &more, &err), &err);
        assert_true(count <= limit);
        assert_true(count == limit || !more);
        for (int i = 0; i < count; i++) {
            int n = atoi(files[i].id + 5);
            assert_true(ascending ? n > last : n < last);
            last = n;
            snprintf(after, sizeof(after), "%s", files[i].id);
            gd_file_record_release(&files[i]);
        }
        seen += count;
        gd_free(files);
    }
    assert_int_equal(seen, expected);
}

static void pages_hold_every_file_once_even_in_the_same_second(void **state)
{
    for (int i = 0; i < 57; i++) {
        char *id = gd_format("file-%d", i);
        struct gd_file_record file = a_file(id, "p", 100 + i / 10); /* ten in a second */
        file.purpose = i % 3 == 0 ? "batch" : "fine-tune";
        assert_ok(gd_db_file_insert(db, &file, &err), &err);
        gd_free(id);
        id = gd_format("foreign-%d", i);
        file = a_file(id, "other", 100);
        assert_ok(gd_db_file_insert(db, &file, &err), &err);
        gd_free(id);
    }
    for (int limit = 1; limit < 60; limit += 7) {
        walk_files(false, limit, NULL, 57);
        walk_files(true, limit, NULL, 57);
        walk_files(false, limit, "batch", 19);
    }
    walk_files(true, 57, NULL, 57);
    struct gd_page page = {.after = "foreign-3", .limit = 5};
    struct gd_file_record *files;
    int count;
    bool more;
    assert_false(gd_db_file_list(db, "p", NULL, &page, &files, &count, &more, &err));
    assert_string_equal(err.param, "after");
    assert_fails(false, &err, GD_INVALID, "foreign-3");
    page = (struct gd_page){.limit = 0};
    assert_fails(gd_db_file_list(db, "p", NULL, &page, &files, &count, &more, &err), &err, GD_INVALID, "'limit'");
    page.limit = 5;
    assert_ok(gd_db_file_list(db, "empty", NULL, &page, &files, &count, &more, &err), &err);
    assert_int_equal(count, 0);
    assert_false(more);
    gd_free(files);
}

static void a_job_comes_back_as_it_went_in(void **state)
{
    struct gd_job_record in = a_job("ftjob-1", "p", 3), out;
    in.validation_file = "file-v";
    in.suffix = "s";
    in.metadata = "{\"a\":\"1\"}";
    in.integrations = "[]";
    in.idempotency_key = "key";
    in.priority = -2;
    assert_ok(gd_db_job_insert(db, &in, &err), &err);
    assert_ok(gd_db_job_get(db, "p", "ftjob-1", &out, &err), &err);
    assert_string_equal(out.validation_file, "file-v");
    assert_string_equal(out.metadata, in.metadata);
    assert_int_equal(out.status, GD_JOB_VALIDATING_FILES);
    assert_int_equal(out.seed, 42);
    assert_int_equal(out.priority, -2);
    assert_null(out.error);
    assert_null(out.fine_tuned_model);
    gd_job_record_release(&out);
    assert_fails(gd_db_job_get(db, "other", "ftjob-1", &out, &err), &err, GD_NOT_FOUND, "ftjob-1");
    bool found;
    assert_ok(gd_db_job_by_idempotency(db, "p", "key", &out, &found, &err), &err);
    assert_true(found);
    gd_job_record_release(&out);
    assert_ok(gd_db_job_by_idempotency(db, "other", "key", &out, &found, &err), &err);
    assert_false(found);
    in.id = "ftjob-2";
    assert_fails(gd_db_job_insert(db, &in, &err), &err, GD_CONFLICT, "idempotency_key");
    in.idempotency_key = NULL;
    assert_ok(gd_db_job_insert(db, &in, &err), &err);
    in.id = "ftjob-3"; /* no key is no conflict */
    assert_ok(gd_db_job_insert(db, &in, &err), &err);
}

static void an_update_writes_what_a_run_changes(void **state)
{
    put_job("ftjob-1", GD_JOB_RUNNING, 1);
    struct gd_job_record job;
    assert_ok(gd_db_job_get(db, NULL, "ftjob-1", &job, &err), &err);
    job.status = GD_JOB_SUCCEEDED;
    gd_free(job.fine_tuned_model);
    job.fine_tuned_model = gd_strdup("ft:m:org::abc");
    job.trained_tokens = INT64_C(1) << 40;
    job.step = 10;
    job.total_steps = 10;
    job.attempt = 3;
    job.finished_at = 77;
    assert_ok(gd_db_job_update(db, &job, &err), &err);
    gd_job_record_release(&job);
    assert_ok(gd_db_job_get(db, NULL, "ftjob-1", &job, &err), &err);
    assert_string_equal(job.fine_tuned_model, "ft:m:org::abc");
    assert_int_equal(job.trained_tokens, INT64_C(1) << 40);
    assert_int_equal(job.attempt, 3);
    assert_int_equal(job.finished_at, 77);
    job.status = GD_JOB_RUNNING;
    assert_fails(gd_db_job_update(db, &job, &err), &err, GD_CONFLICT, "is succeeded and cannot become running");
    gd_free(job.id);
    job.id = gd_strdup("ftjob-9");
    assert_fails(gd_db_job_update(db, &job, &err), &err, GD_NOT_FOUND, "ftjob-9");
    gd_job_record_release(&job);
}

static void only_the_transitions_of_the_table_are_written(void **state)
{
    static const char *const allowed[GD_JOB_STATUS_COUNT] = {
        "queued failed cancelled", "running paused failed cancelled", "pausing queued succeeded failed cancelled",
        "paused queued running succeeded failed cancelled", "queued cancelled", "", "", ""};
    int id = 0;
    for (int from = 0; from < GD_JOB_STATUS_COUNT; from++)
        for (int to = 0; to < GD_JOB_STATUS_COUNT; to++) {
            char *padded = gd_format(" %s ", allowed[from]), *word = gd_format(" %s ", gd_job_status_name((enum gd_job_status)to));
            bool may = strstr(padded, word) != NULL;
            assert_int_equal(gd_job_status_may((enum gd_job_status)from, (enum gd_job_status)to), may);
            char *name = gd_format("ftjob-%d", id++);
            put_job(name, (enum gd_job_status)from, 1);
            struct gd_job_record job = a_job(name, "p", 1);
            job.status = (enum gd_job_status)to;
            bool written = gd_db_job_update(db, &job, &err);
            assert_int_equal(written, may || from == to); /* the same status is no transition */
            assert_true(written || err.code == GD_CONFLICT);
            gd_error_clear(&err);
            gd_free(name);
            gd_free(padded);
            gd_free(word);
        }
    for (int status = 0; status < GD_JOB_STATUS_COUNT; status++)
        assert_int_equal(gd_job_status_terminal((enum gd_job_status)status), allowed[status][0] == '\0');
}

static void active_jobs_are_all_but_the_ended_oldest_first(void **state)
{
    for (int status = 0; status < GD_JOB_STATUS_COUNT; status++) {
        char *name = gd_format("ftjob-%d", status);
        put_job(name, (enum gd_job_status)status, 100 - status);
        gd_free(name);
    }
    struct gd_job_record *jobs;
    int count;
    assert_ok(gd_db_job_active(db, &jobs, &count, &err), &err);
    assert_int_equal(count, 5);
    for (int i = 0; i < count; i++) {
        assert_false(gd_job_status_terminal(jobs[i].status));
        assert_true(i == 0 || jobs[i].created_at > jobs[i - 1].created_at);
        gd_job_record_release(&jobs[i]);
    }
    gd_free(jobs);
}

static int count_jobs(const char *filter)
{
    cJSON *object = filter != NULL ? gd_json_parse(filter, strlen(filter), 1000, &err) : NULL;
    struct gd_page page = {.limit = 100};
    struct gd_job_record *jobs;
    int count;
    bool more;
    assert_ok(gd_db_job_list(db, "p", object, &page, &jobs, &count, &more, &err), &err);
    for (int i = 0; i < count; i++)
        gd_job_record_release(&jobs[i]);
    gd_free(jobs);
    cJSON_Delete(object);
    return count;
}

static void jobs_are_found_by_exact_metadata(void **state)
{
    static const char *const metadata[] = {NULL, "{}", "{\"team\":\"a\"}", "{\"team\":\"a\",\"x.y\\\"[0]\":\"1\"}", "{\"team\":\"A\"}"};
    for (size_t i = 0; i < GD_COUNT(metadata); i++) {
        char *id = gd_format("ftjob-%zu", i);
        struct gd_job_record job = a_job(id, "p", 1);
        job.metadata = (char *)metadata[i];
        assert_ok(gd_db_job_insert(db, &job, &err), &err);
        gd_free(id);
    }
    assert_int_equal(count_jobs(NULL), 5);
    assert_int_equal(count_jobs("{}"), 5);
    assert_int_equal(count_jobs("{\"team\":\"a\"}"), 2);
    assert_int_equal(count_jobs("{\"team\":\"a\",\"x.y\\\"[0]\":\"1\"}"), 1);
    assert_int_equal(count_jobs("{\"x.y\\\"[0]\":1}"), 0); /* a number is not its text */
    assert_int_equal(count_jobs("{\"team\":\"b' OR 1=1 --\"}"), 0);
}

static void events_are_numbered_and_replayed_from_any_number(void **state)
{
    put_job("ftjob-1", GD_JOB_RUNNING, 1);
    put_job("ftjob-2", GD_JOB_RUNNING, 1);
    int64_t numbers[30];
    for (int i = 0; i < 30; i++) {
        char *id = gd_format("ftevent-%d", i);
        struct gd_event_record event = {.id = id, .job_id = i % 3 == 2 ? "ftjob-2" : "ftjob-1", .level = "info",
                                        .message = "step", .type = "metrics", .data = "{\"step\":1}", .created_at = 5 + i / 7};
        assert_ok(gd_db_event_append(db, &event, &err), &err);
        numbers[i] = event.sequence;
        assert_true(i == 0 || numbers[i] > numbers[i - 1]);
        gd_free(id);
    }
    struct gd_event_record *events, lost = {.id = "x", .job_id = "no-job", .level = "info", .message = "", .type = "message"};
    int count;
    bool more;
    assert_ok(gd_db_event_since(db, "ftjob-1", numbers[9], 100, &events, &count, &err), &err);
    assert_int_equal(count, 13);
    for (int i = 0; i < count; i++) {
        assert_true(events[i].sequence > (i == 0 ? numbers[9] : events[i - 1].sequence));
        assert_string_equal(events[i].data, "{\"step\":1}");
    }
    for (int i = 0; i < count; i++)
        gd_event_record_release(&events[i]);
    gd_free(events);
    struct gd_page page = {.after = "ftevent-27", .limit = 10};
    assert_ok(gd_db_event_list(db, "ftjob-1", &page, &events, &count, &more, &err), &err);
    assert_int_equal(count, 10);
    assert_true(more);
    assert_string_equal(events[0].id, "ftevent-25"); /* newest first, 26 is the other job's */
    for (int i = 0; i < count; i++)
        gd_event_record_release(&events[i]);
    gd_free(events);
    page.after = "ftevent-26";
    assert_fails(gd_db_event_list(db, "ftjob-1", &page, &events, &count, &more, &err), &err, GD_INVALID, "ftevent-26");
    assert_fails(gd_db_event_append(db, &lost, &err), &err, GD_NOT_FOUND, "event of job no-job");
}

static void a_resumed_run_replaces_its_checkpoint(void **state)
{
    put_job("ftjob-1", GD_JOB_RUNNING, 1);
    struct gd_checkpoint_record checkpoint = {.job_id = "ftjob-1", .folder = "jobs/1/step-10", .metrics = "{}"};
    for (int i = 0; i < 4; i++) {
        char *id = gd_format("ftckpt-%d", i), *model = gd_format("ft:m:ckpt-step-%d", i < 3 ? i * 10 : 20);
        checkpoint.id = id;
        checkpoint.model = model;
        checkpoint.step = i < 3 ? i * 10 : 20; /* step 20 twice */
        checkpoint.created_at = 50 + i;
        assert_ok(gd_db_checkpoint_put(db, &checkpoint, &err), &err);
        gd_free(id);
        gd_free(model);
    }
    struct gd_page page = {.limit = 10};
    struct gd_checkpoint_record *list;
    int count;
    bool more;
    assert_ok(gd_db_checkpoint_list(db, "ftjob-1", &page, &list, &count, &more, &err), &err);
    assert_int_equal(count, 3);
    assert_string_equal(list[0].id, "ftckpt-3");
    assert_int_equal(list[0].step, 20);
    assert_string_equal(list[2].id, "ftckpt-0");
    for (int i = 0; i < count; i++)
        gd_checkpoint_record_release(&list[i]);
    gd_free(list);
    checkpoint.id = "ftckpt-0"; /* an id belongs to one step */
    checkpoint.model = "x";
    checkpoint.step = 99;
    assert_fails(gd_db_checkpoint_put(db, &checkpoint, &err), &err, GD_CONFLICT, "ftckpt-0");
}

static void a_model_is_published_once(void **state)
{
    put_job("ftjob-1", GD_JOB_RUNNING, 1);
    struct gd_model_record in = {.id = "ft:m:org::1", .project = "p", .job_id = "ftjob-1", .base_model = "m",
                                 .folder = "models/1", .is_checkpoint = true, .created_at = 9}, out;
    assert_ok(gd_db_model_publish(db, &in, &err), &err);
    assert_ok(gd_db_model_publish(db, &in, &err), &err);
    struct gd_model_record *list;
    int count;
    assert_ok(gd_db_model_list(db, "p", &list, &count, &err), &err);
    assert_int_equal(count, 1);
    assert_true(list[0].is_checkpoint);
    gd_model_record_release(&list[0]);
    gd_free(list);
    in.folder = "models/2";
    assert_fails(gd_db_model_publish(db, &in, &err), &err, GD_CONFLICT, "published already");
    assert_fails(gd_db_model_get(db, "other", in.id, &out, &err), &err, GD_NOT_FOUND, in.id);
    assert_fails(gd_db_model_delete(db, "other", in.id, &err), &err, GD_NOT_FOUND, in.id);
    assert_ok(gd_db_model_get(db, "p", in.id, &out, &err), &err);
    assert_string_equal(out.folder, "models/1");
    gd_model_record_release(&out);
    assert_ok(gd_db_model_delete(db, "p", in.id, &err), &err);
    assert_fails(gd_db_model_get(db, "p", in.id, &out, &err), &err, GD_NOT_FOUND, in.id);
}

static void a_savepoint_takes_back_one_closure_only(void **state)
{
    assert_ok(gd_db_savepoint(db, &err), &err);
    put_job("ftjob-1", GD_JOB_QUEUED, 1);
    gd_db_savepoint_end(db, true);
    assert_ok(gd_db_savepoint(db, &err), &err);
    put_job("ftjob-2", GD_JOB_QUEUED, 1);
    gd_db_savepoint_end(db, false);
    assert_ok(gd_db_commit(db, &err), &err);
    assert_int_equal(count_jobs(NULL), 1);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_db, close_db)
    const struct CMUnitTest tests[] = {
        CASE(a_file_comes_back_as_it_went_in),
        CASE(a_file_in_use_cannot_be_deleted),
        CASE(expired_files_are_those_past_their_time),
        CASE(pages_hold_every_file_once_even_in_the_same_second),
        CASE(a_job_comes_back_as_it_went_in),
        CASE(an_update_writes_what_a_run_changes),
        CASE(only_the_transitions_of_the_table_are_written),
        CASE(active_jobs_are_all_but_the_ended_oldest_first),
        CASE(jobs_are_found_by_exact_metadata),
        CASE(events_are_numbered_and_replayed_from_any_number),
        CASE(a_resumed_run_replaces_its_checkpoint),
        CASE(a_model_is_published_once),
        CASE(a_savepoint_takes_back_one_closure_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
