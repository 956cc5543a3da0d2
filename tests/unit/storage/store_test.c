#include "storage/db_internal.h"
#include "storage/store.h"
#include "tests/unit/base/scratch.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

static char *folder;
static uv_loop_t loop;
static struct gd_store *store;
static struct gd_error err;
static int broken_calls;
static atomic_int sync_errno, write_errno, write_budget; /* faults that SQLite meets; budget: good writes before them */

/* SQLite calls this one: the executable's symbol comes before the C library's. */
int fdatasync(int fd)
{
    if (sync_errno != 0) {
        errno = sync_errno;
        return -1;
    }
    return (int)syscall(SYS_fdatasync, fd);
}

static ssize_t faulty_pwrite(int fd, const void *bytes, size_t size, off_t offset)
{
    if (write_errno != 0 && atomic_fetch_sub(&write_budget, 1) <= 0) {
        errno = write_errno;
        return -1;
    }
    return pwrite(fd, bytes, size, offset);
}

static void on_broken(void *context, const struct gd_error *why)
{
    assert_ptr_equal(context, &broken_calls);
    assert_int_equal(why->code, GD_IO);
    broken_calls++;
}

static int open_store(void **state)
{
    folder = scratch_new();
    gd_error_clear(&err);
    broken_calls = 0;
    sync_errno = write_errno = write_budget = 0;
    uv_loop_init(&loop);
    return gd_store_open(&store, &loop, folder, on_broken, &broken_calls, &err) ? 0 : -1;
}

static int close_store(void **state)
{
    gd_store_close(store);
    uv_run(&loop, UV_RUN_DEFAULT);
    scratch_remove(folder);
    return uv_loop_close(&loop);
}

/* One submitted closure: inserts the file `id` and fails afterwards if asked to. */
struct job {
    char id[32];
    bool fails, finished;
    int order;
    enum gd_code code;
    char message[GD_ERROR_MESSAGE_BYTES];
    int64_t seen; /* by reads: the number of files */
};
static int finished_count;

static bool insert_file(struct gd_db *db, void *argument, struct gd_error *work_err)
{
    struct job *job = argument;
    struct gd_file_record record = {.id = job->id, .project = "p", .filename = "f", .purpose = "fine-tune",
                                    .status = "processed", .xxh3 = "00", .created_at = 1};
    if (!gd_db_file_insert(db, &record, work_err))
        return false;
    return !job->fails || gd_fail(work_err, GD_INVALID, "changed my mind");
}

static bool count_files(struct gd_db *db, void *argument, struct gd_error *work_err)
{
    struct job *job = argument;
    struct gd_query query = gd_query_start(db, "SELECT count(*) FROM main.files");
    if (gd_query_next(&query))
        job->seen = gd_take_int(&query);
    return gd_query_end(&query, work_err);
}

static void note_done(void *argument, const struct gd_error *why)
{
    struct job *job = argument;
    assert_false(job->finished);
    job->finished = true;
    job->order = finished_count++;
    job->code = why->code;
    snprintf(job->message, sizeof(job->message), "%s", why->message);
}

static void submit(bool write, gd_store_work work, struct job *job)
{
    assert_ok(gd_store_submit(store, write, work, note_done, job, &err), &err);
}

static int64_t files_now(void)
{
    struct job job = {.id = "count"};
    submit(false, count_files, &job);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(job.code, GD_OK);
    return job.seen;
}

/* Holds the store thread until the semaphore is posted, and counts the commits from then on. */
static sem_t gate, arrived;
static int commits;

static int count_commit(void *context)
{
    commits++;
    return 0;
}

static bool wait_at_gate(struct gd_db *db, void *argument, struct gd_error *work_err)
{
    commits = 0;
    sqlite3_commit_hook(db->sqlite, count_commit, NULL);
    sem_post(&arrived);
    sem_wait(&gate);
    return true;
}

/* Returns when the store thread stands at the gate: what is submitted now waits, until sem_post(&gate). */
static void close_gate(struct job *job)
{
    sem_init(&gate, 0, 0);
    sem_init(&arrived, 0, 0);
    submit(false, wait_at_gate, job);
    sem_wait(&arrived);
}

static void everything_that_waits_shares_one_commit(void **state)
{
    static struct job jobs[501];
    memset(jobs, 0, sizeof(jobs));
    close_gate(&jobs[500]);
    for (int i = 0; i < 500; i++) {
        snprintf(jobs[i].id, sizeof(jobs[i].id), "file-%d", i);
        submit(true, insert_file, &jobs[i]);
    }
    sem_post(&gate);
    uv_run(&loop, UV_RUN_DEFAULT); /* ends by itself: an idle store does not hold the loop */
    for (int i = 0; i < 500; i++) {
        assert_true(jobs[i].finished);
        assert_int_equal(jobs[i].code, GD_OK);
        assert_true(i == 0 || jobs[i].order > jobs[i - 1].order);
    }
    assert_int_equal(commits, 1);
    assert_int_equal(files_now(), 500);
}

static void a_failed_closure_is_undone_alone(void **state)
{
    static struct job jobs[10];
    memset(jobs, 0, sizeof(jobs));
    for (int i = 0; i < 10; i++) {
        snprintf(jobs[i].id, sizeof(jobs[i].id), "file-%d", i == 7 ? 6 : i); /* the eighth repeats an id */
        jobs[i].fails = i == 3;
        submit(true, insert_file, &jobs[i]);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    for (int i = 0; i < 10; i++)
        assert_int_equal(jobs[i].code, i == 3 ? GD_INVALID : i == 7 ? GD_CONFLICT : GD_OK);
    assert_string_equal(jobs[3].message, "changed my mind");
    assert_int_equal(files_now(), 8);
}

static void a_read_sees_the_writes_before_it(void **state)
{
    static struct job jobs[20];
    memset(jobs, 0, sizeof(jobs));
    for (int i = 0; i < 20; i++) {
        snprintf(jobs[i].id, sizeof(jobs[i].id), "file-%d", i);
        submit(i % 2 == 0, i % 2 == 0 ? insert_file : count_files, &jobs[i]);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    for (int i = 1; i < 20; i += 2) {
        assert_int_equal(jobs[i].seen, i / 2 + 1);
        assert_true(jobs[i].order > jobs[i - 1].order);
    }
}

static void a_full_queue_is_busy_and_recovers(void **state)
{
    static struct job gate_job, busy;
    gate_job = busy = (struct job){0};
    close_gate(&gate_job);
    for (int i = 0; i < GD_STORE_QUEUE_MAX; i++)
        assert_ok(gd_store_submit(store, false, count_files, NULL, &busy, &err), &err);
    assert_fails(gd_store_submit(store, false, count_files, note_done, &busy, &err), &err, GD_BUSY, "10000 requests wait");
    sem_post(&gate);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_false(busy.finished);
    assert_int_equal(files_now(), 0);
}

static void close_finishes_what_was_submitted(void **state)
{
    static struct job jobs[100];
    memset(jobs, 0, sizeof(jobs));
    for (int i = 0; i < 100; i++) {
        snprintf(jobs[i].id, sizeof(jobs[i].id), "file-%d", i);
        submit(true, insert_file, &jobs[i]);
    }
    gd_store_close(store); /* without a turn of the loop */
    for (int i = 0; i < 100; i++)
        assert_true(jobs[i].finished && jobs[i].code == GD_OK);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_ok(gd_store_open(&store, &loop, folder, on_broken, &broken_calls, &err), &err);
    assert_int_equal(files_now(), 100);
}

static void close_from_done(void *argument, const struct gd_error *why)
{
    note_done(argument, why);
    struct gd_error refused = {0};
    gd_store_close(store);
    assert_fails(gd_store_submit(store, true, insert_file, note_done, argument, &refused), &refused, GD_UNAVAILABLE,
                 "shutting down");
}

static void a_done_may_close_the_store(void **state)
{
    static struct job jobs[5];
    memset(jobs, 0, sizeof(jobs));
    for (int i = 0; i < 5; i++) {
        snprintf(jobs[i].id, sizeof(jobs[i].id), "file-%d", i);
        assert_ok(gd_store_submit(store, true, insert_file, i == 1 ? close_from_done : note_done, &jobs[i], &err), &err);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    for (int i = 0; i < 5; i++)
        assert_true(jobs[i].finished && jobs[i].code == GD_OK);
    assert_ok(gd_store_open(&store, &loop, folder, on_broken, &broken_calls, &err), &err);
}

static void after_a_failed_sync_nothing_is_acknowledged(void **state)
{
    static struct job jobs[6];
    memset(jobs, 0, sizeof(jobs));
    for (int i = 0; i < 6; i++)
        snprintf(jobs[i].id, sizeof(jobs[i].id), "file-%d", i);
    submit(true, insert_file, &jobs[0]);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(jobs[0].code, GD_OK);
    sync_errno = EIO;
    close_gate(&jobs[5]); /* all are submitted before the first one fails */
    submit(true, insert_file, &jobs[1]);
    submit(false, count_files, &jobs[2]);
    submit(true, insert_file, &jobs[3]);
    sem_post(&gate);
    uv_run(&loop, UV_RUN_DEFAULT);
    sync_errno = 0; /* the next one would falsely succeed */
    for (int i = 1; i < 4; i++)
        assert_true(jobs[i].finished && (jobs[i].code == GD_IO || (i == 2 && jobs[i].code == GD_OK)));
    assert_int_equal(broken_calls, 1);
    assert_fails(gd_store_submit(store, true, insert_file, note_done, &jobs[4], &err), &err, GD_UNAVAILABLE, "disk error");
    gd_store_close(store);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(broken_calls, 1);
    assert_ok(gd_store_open(&store, &loop, folder, on_broken, &broken_calls, &err), &err); /* recovery */
    assert_in_range(files_now(), 1, 3); /* acknowledged: there; the rest may be */
}

static void use_faulty_pwrite(bool on)
{
    sqlite3_vfs *vfs = sqlite3_vfs_find(NULL);
    assert_int_equal(vfs->xSetSystemCall(vfs, "pwrite", on ? (sqlite3_syscall_ptr)faulty_pwrite : NULL), SQLITE_OK);
    assert_int_equal(vfs->xSetSystemCall(vfs, "pwrite64", on ? (sqlite3_syscall_ptr)faulty_pwrite : NULL), SQLITE_OK);
}

static void a_full_disk_fails_writes_until_space_returns(void **state)
{
    use_faulty_pwrite(true);
    int64_t there = 0;
    for (int budget = 0; budget < 6; budget++) {
        struct job first = {0}, second = {0}, read = {0}, after = {0};
        snprintf(first.id, sizeof(first.id), "first-%d", budget);
        snprintf(second.id, sizeof(second.id), "second-%d", budget);
        snprintf(after.id, sizeof(after.id), "after-%d", budget);
        write_budget = budget;
        write_errno = ENOSPC;
        submit(true, insert_file, &first);
        submit(true, insert_file, &second);
        uv_run(&loop, UV_RUN_DEFAULT);
        submit(false, count_files, &read);
        uv_run(&loop, UV_RUN_DEFAULT);
        assert_int_equal(read.code, GD_OK); /* reads go on */
        assert_true(first.code == GD_OK || first.code == GD_DISK_FULL);
        assert_true(second.code == GD_OK || second.code == GD_DISK_FULL);
        there += (first.code == GD_OK) + (second.code == GD_OK);
        assert_int_equal(read.seen, there);
        write_errno = 0;
        submit(true, insert_file, &after);
        uv_run(&loop, UV_RUN_DEFAULT);
        assert_int_equal(after.code, GD_OK);
        there++;
    }
    assert_true(there < 18); /* the fault was met */
    assert_int_equal(broken_calls, 0);
    use_faulty_pwrite(false);
    assert_int_equal(files_now(), there);
}

/* The child: keeps many inserts in flight and writes the id of each acknowledged one to the pipe. */
static int ack_fd;
struct flight {
    struct job job;
    int lane, next;
};

static void ack_and_go_on(void *argument, const struct gd_error *why)
{
    struct flight *flight = argument;
    struct gd_error submit_err = {0};
    if (flight->next > 0) {
        int32_t acked[2] = {flight->lane, flight->next - 1};
        if (why->code != GD_OK || write(ack_fd, acked, sizeof(acked)) != sizeof(acked))
            _exit(1);
    }
    flight->job = (struct job){0};
    snprintf(flight->job.id, sizeof(flight->job.id), "file-%d-%d-%d", (int)getpid(), flight->lane, flight->next++);
    if (!gd_store_submit(store, true, insert_file, ack_and_go_on, flight, &submit_err))
        _exit(2);
}

static void run_until_killed(const char *data_dir)
{
    static struct flight flights[8];
    struct gd_error child_err = {0};
    uv_loop_t child_loop;
    uv_loop_init(&child_loop);
    if (!gd_store_open(&store, &child_loop, data_dir, NULL, NULL, &child_err))
        _exit(3);
    for (int i = 0; i < 8; i++) {
        flights[i].lane = i;
        ack_and_go_on(&flights[i], &child_err);
    }
    uv_run(&child_loop, UV_RUN_DEFAULT);
    _exit(4);
}

static void check_acks(struct gd_db *db, pid_t child, int fd, int *acked, int *newest)
{
    int32_t ack[2];
    while (read(fd, ack, sizeof(ack)) == sizeof(ack)) {
        char *id = gd_format("file-%d-%d-%d", (int)child, ack[0], ack[1]);
        struct gd_file_record record;
        assert_ok(gd_db_file_get(db, "p", id, &record, &err), &err);
        assert_string_equal(record.purpose, "fine-tune");
        gd_file_record_release(&record);
        gd_free(id);
        (*acked)++;
        newest[ack[0]] = ack[1];
    }
}

static void what_was_acknowledged_survives_kill_9(void **state)
{
    char *data_dir = scratch_new();
    uint32_t random = 99;
    int acked = 0;
    for (int round = 0; round < 12; round++) {
        int pipe_fds[2];
        assert_int_equal(pipe(pipe_fds), 0);
        pid_t child = fork();
        if (child == 0) {
            close(pipe_fds[0]);
            ack_fd = pipe_fds[1];
            run_until_killed(data_dir);
        }
        close(pipe_fds[1]);
        random = random * 1664525u + 1013904223u;
        usleep(20000 + (random >> 8) % 60000);
        kill(child, SIGKILL);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        struct gd_db *db;
        assert_ok(gd_db_open(&db, data_dir, &err), &err); /* with its quick_check */
        int newest[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
        check_acks(db, child, pipe_fds[0], &acked, newest);
        for (int lane = 0; lane < 8; lane++) { /* one more may be there, never a later one */
            char *id = gd_format("file-%d-%d-%d", (int)child, lane, newest[lane] + 2);
            struct gd_file_record record;
            assert_fails(gd_db_file_get(db, "p", id, &record, &err), &err, GD_NOT_FOUND, id);
            gd_free(id);
        }
        gd_db_close(db);
        close(pipe_fds[0]);
    }
    assert_true(acked > 0);
    scratch_remove(data_dir);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_store, close_store)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_acknowledged_survives_kill_9), /* first: it forks, and there is no thread yet */
        CASE(everything_that_waits_shares_one_commit),
        CASE(a_failed_closure_is_undone_alone),
        CASE(a_read_sees_the_writes_before_it),
        CASE(a_full_queue_is_busy_and_recovers),
        CASE(close_finishes_what_was_submitted),
        CASE(a_done_may_close_the_store),
        CASE(after_a_failed_sync_nothing_is_acknowledged),
        CASE(a_full_disk_fails_writes_until_space_returns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
