/* Jobs through their whole life, on a worker that misbehaves in every way that the protocol allows. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "fake_worker.h"
#include "job_fixture.h"
#include "server/job.h"
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int setup(void **state)
{
    struct fixture *fixture = gd_alloc(sizeof *fixture);
    fixture_create(fixture);
    fixture_start(fixture);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    fixture_stop(fixture, true);
    fixture_remove(fixture);
    gd_free(fixture);
    return 0;
}

static void assert_has(const char *text, const char *part)
{
    if (strstr(text, part) == NULL)
        fail_msg("no '%s' in:\n%s", part, text);
}

static int count_of(const char *text, const char *part)
{
    int count = 0;
    for (const char *at = text; (at = strstr(at, part)) != NULL; at += strlen(part))
        count++;
    return count;
}

static void assert_messages(struct fixture *fixture, const char *job_id, const char *part, int count)
{
    char *messages = fixture_messages(fixture, job_id);
    if (count_of(messages, part) != count)
        fail_msg("'%s' is there %d times, not %d:\n%s", part, count_of(messages, part), count, messages);
    gd_free(messages);
}

/* ---- what is stored of a finished job ---- */

struct published {
    const char *job_id;
    struct gd_model_record *models;
    int model_count;
    struct gd_checkpoint_record *checkpoints;
    int checkpoint_count;
    struct gd_file_record file;
    struct gd_buf csv;
    cJSON *series;
};

static bool read_published(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct published *published = argument;
    struct gd_page page = {.limit = 100, .ascending = true};
    struct gd_metric_query query = {.buckets = 1000};
    bool more;
    int64_t rows;
    char *file = gd_job_results_file_id(published->job_id);
    bool ok = gd_db_model_list(db, "default", &published->models, &published->model_count, err) &&
              gd_db_checkpoint_list(db, published->job_id, &page, &published->checkpoints, &published->checkpoint_count, &more,
                                    err) &&
              gd_db_file_get(db, "default", file, &published->file, err) &&
              gd_db_metrics_csv(db, published->job_id, &published->csv, err) &&
              gd_db_metrics_reduce(db, published->job_id, &query, &published->series, &rows, err);
    gd_free(file);
    return ok;
}

static void release_published(struct published *published)
{
    for (int i = 0; i < published->model_count; i++)
        gd_model_record_release(&published->models[i]);
    for (int i = 0; i < published->checkpoint_count; i++)
        gd_checkpoint_record_release(&published->checkpoints[i]);
    gd_free(published->models);
    gd_free(published->checkpoints);
    gd_file_record_release(&published->file);
    gd_buf_release(&published->csv);
    cJSON_Delete(published->series);
}

static void assert_finished_once(struct fixture *fixture, const char *job_id, int steps)
{
    struct published published = {.job_id = job_id};
    struct gd_job_record record = fixture_job(fixture, job_id);
    assert_int_equal(record.status, GD_JOB_SUCCEEDED);
    assert_int_equal(record.step, steps);
    assert_int_equal(record.trained_tokens, steps * 10);
    assert_true(record.finished_at >= record.started_at && record.started_at > 0);
    fixture_store(fixture, read_published, &published);

    int tuned = 0;
    for (int i = 0; i < published.model_count; i++)
        if (!published.models[i].is_checkpoint && strcmp(published.models[i].job_id, job_id) == 0) {
            assert_string_equal(published.models[i].id, record.fine_tuned_model);
            char *folder = gd_format("jobs/%s/adapter", job_id);
            assert_string_equal(published.models[i].folder, folder);
            gd_free(folder);
            tuned++;
        }
    assert_int_equal(tuned, 1);
    assert_int_equal(published.checkpoint_count, steps / 5);

    char *path = gd_format("%s/files/%s", fixture->app.config.data_dir, published.file.id), *text = NULL;
    size_t length;
    struct gd_error err = {0};
    assert_true(gd_file_read(path, 1 << 20, &text, &length, &err));
    assert_int_equal(length, published.file.bytes);
    assert_string_equal(published.file.purpose, "fine-tune-results");
    assert_int_equal(count_of(text, "\n"), steps + 1);
    assert_has(text, "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,10,0.5,,\n2,5,0.5,,\n");
    char *last = gd_format("\n%d,", steps);
    assert_has(text, last);
    assert_has(text, ",0.25,\n");
    assert_has(record.result_files, published.file.id);
    gd_free(last);
    gd_free(text);
    gd_free(path);

    /* One point a step and series, however often steps were done again. */
    assert_int_equal(count_of(published.csv.data, ",train_loss,"), steps);
    gd_job_record_release(&record);
    release_published(&published);
}

/* ---- the tests ---- */

static void a_job_runs_and_is_published(void **state)
{
    struct fixture *fixture = *state;
    char *job = fixture_submit(fixture, "steps12", 0);
    fixture_until_status(fixture, job, GD_JOB_SUCCEEDED);
    assert_finished_once(fixture, job, 12);
    char *messages = fixture_messages(fixture, job);
    const char *const in_order[] = {"Created fine-tuning job: ftjob-", "Validating training file: file-1",
                                    "Files validated, moving job to queued state", "Fine-tuning job started",
                                    "Training 12 steps on 7 rows (700 tokens)", "Step 1/12: training loss=10.00",
                                    "Step 5/12: training loss=2.00", "Checkpoint created at step 5 with Snapshot ID: ft:base:test:steps12:",
                                    "Step 6/12", "Step 12/12: training loss=0.83, validation loss=0.25",
                                    "New fine-tuned model created: ft:base:test:steps12:", "The job has successfully completed"};
    const char *at = messages;
    for (size_t i = 0; i < GD_COUNT(in_order); i++) {
        const char *found = strstr(at, in_order[i]);
        if (found == NULL)
            fail_msg("no '%s' after the one before in:\n%s", in_order[i], messages);
        at = found + 1;
    }
    struct gd_job_record record = fixture_job(fixture, job);
    assert_has(record.hyperparameters, "\"learning_rate\":0.001");
    assert_has(record.memory, "weights_bytes");
    assert_int_equal(record.attempt, 1);
    gd_job_record_release(&record);
    gd_free(messages);
    gd_free(job);
}

static void values_that_are_not_finite_are_kept_as_such(void **state)
{
    struct fixture *fixture = *state;
    char *job = fixture_submit(fixture, "steps5", 0);
    fixture_until_status(fixture, job, GD_JOB_SUCCEEDED);
    struct published published = {.job_id = job};
    fixture_store(fixture, read_published, &published);
    char *series = gd_json_print(published.series);
    assert_has(series, "\"nonfinite\":[{\"x\":3,\"kind\":\"nan\"");
    gd_free(series);
    release_published(&published);
    gd_free(job);
}

static void a_worker_that_dies_gives_its_job_back(void **state)
{
    struct fixture *fixture = *state;
    char *job = fixture_submit(fixture, "steps20-once13", 0);
    fixture_until_status(fixture, job, GD_JOB_SUCCEEDED);
    assert_finished_once(fixture, job, 20);
    assert_messages(fixture, job, "The worker ended (exit code 5); the job goes back to the queue", 1);
    assert_messages(fixture, job, "Continuing from the checkpoint at step 10", 1);
    struct gd_job_record record = fixture_job(fixture, job);
    assert_int_equal(record.attempt, 2);
    gd_job_record_release(&record);
    gd_free(job);
}

static void a_job_that_kills_its_workers_fails(void **state)
{
    struct fixture *fixture = *state;
    char *poison = fixture_submit(fixture, "steps20-crash7", 0), *next = fixture_submit(fixture, "steps5", 0);
    fixture_until_status(fixture, poison, GD_JOB_FAILED);
    struct gd_job_record record = fixture_job(fixture, poison);
    assert_has(record.error, "\"code\":\"worker_crashed\"");
    assert_int_equal(record.attempt, 3); /* one end with progress, which counts as well, and two without */
    gd_job_record_release(&record);
    fixture_until_status(fixture, next, GD_JOB_SUCCEEDED);
    gd_free(poison);
    gd_free(next);
}

static void a_job_that_kills_its_worker_at_once_fails(void **state)
{
    struct fixture *fixture = *state;
    char *job = fixture_submit(fixture, "nostart", 0);
    fixture_until_status(fixture, job, GD_JOB_FAILED);
    assert_messages(fixture, job, "the worker ended again and again", 1);
    gd_free(job);
}

static void a_failed_job_says_why(void **state)
{
    struct fixture *fixture = *state;
    char *job = fixture_submit(fixture, "fail3", 0);
    fixture_until_status(fixture, job, GD_JOB_FAILED);
    struct gd_job_record record = fixture_job(fixture, job);
    assert_string_equal(record.error, "{\"code\":\"disk_full\",\"message\":\"no room for step 3\",\"param\":null}");
    assert_int_equal(record.step, 3);
    assert_null(record.fine_tuned_model);
    gd_job_record_release(&record);
    gd_free(job);
}

static void a_hung_worker_is_replaced(void **state)
{
    struct fixture *fixture = *state;
    gd_supervisor_set_patience(fixture->app.supervisor, 600, 100000);
    char *job = fixture_submit(fixture, "steps12-hang7", 0);
    fixture_until_status(fixture, job, GD_JOB_SUCCEEDED);
    assert_finished_once(fixture, job, 12);
    assert_messages(fixture, job, "The worker ended (signal", 1);
    gd_free(job);
}

static void jobs_wait_by_priority_then_age(void **state)
{
    struct fixture *fixture = *state;
    struct gd_scheduler *scheduler = fixture->app.scheduler;
    char *first = fixture_submit(fixture, "steps60-slow", 0);
    fixture_until_status(fixture, first, GD_JOB_RUNNING);
    char *second = fixture_submit(fixture, "steps2", 0), *third = fixture_submit(fixture, "steps2", 0);
    char *urgent = fixture_submit(fixture, "steps2", 5);
    assert_int_equal(gd_scheduler_queue_position(scheduler, first), 0);
    assert_int_equal(gd_scheduler_queue_position(scheduler, urgent), 1);
    assert_int_equal(gd_scheduler_queue_position(scheduler, second), 2);
    assert_int_equal(gd_scheduler_queue_position(scheduler, third), 3);
    cJSON *described = gd_scheduler_describe(scheduler);
    assert_int_equal(gd_json_find(gd_json_find(described, "counts"), "queued")->valueint, 3);
    assert_int_equal(gd_json_find(gd_json_find(described, "counts"), "running")->valueint, 1);
    cJSON_Delete(described);
    char *const jobs[] = {first, second, third, urgent};
    for (int i = 0; i < 4; i++)
        fixture_until_status(fixture, jobs[i], GD_JOB_SUCCEEDED);
    for (int i = 0; i < 4; i++)
        gd_free(jobs[i]);
}

static void a_job_is_cancelled_wherever_it_is(void **state)
{
    struct fixture *fixture = *state;
    char *running = fixture_submit(fixture, "steps1000-slow", 0);
    fixture_until_status(fixture, running, GD_JOB_RUNNING);
    char *queued = fixture_submit(fixture, "steps2", 0), *after = fixture_submit(fixture, "steps2", 0);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_cancel, "other", queued), GD_NOT_FOUND);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_cancel, "default", "ftjob-none"), GD_NOT_FOUND);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_cancel, "default", queued), GD_OK);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_cancel, "default", queued), GD_CONFLICT);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_cancel, "default", running), GD_OK);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_pause, "default", running), GD_CONFLICT);
    fixture_until_status(fixture, after, GD_JOB_SUCCEEDED); /* the worker is free again */
    struct gd_job_record record = fixture_job(fixture, running);
    assert_int_equal(record.status, GD_JOB_CANCELLED);
    assert_true(record.finished_at > 0);
    gd_job_record_release(&record);
    assert_messages(fixture, running, "The job has been cancelled", 1);
    gd_free(running);
    gd_free(queued);
    gd_free(after);
}

static void a_job_pauses_and_resumes(void **state)
{
    struct fixture *fixture = *state;
    char *job = fixture_submit(fixture, "steps40-slow", 0);
    fixture_until_status(fixture, job, GD_JOB_RUNNING);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_resume, "default", job), GD_CONFLICT);
    fixture_for(fixture, 200);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_pause, "default", job), GD_OK);
    fixture_until_status(fixture, job, GD_JOB_PAUSED);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_pause, "default", job), GD_CONFLICT);
    struct gd_job_record record = fixture_job(fixture, job);
    assert_true(record.step > 0 && record.step < 40);
    int64_t step = record.step;
    gd_job_record_release(&record);
    fixture_for(fixture, 100);
    record = fixture_job(fixture, job);
    assert_int_equal(record.step, step);
    gd_job_record_release(&record);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_resume, "default", job), GD_OK);
    fixture_until_status(fixture, job, GD_JOB_SUCCEEDED);
    char *continued = gd_format("Continuing from the checkpoint at step %d", (int)step);
    assert_messages(fixture, job, continued, 1);
    gd_free(continued);
    gd_free(job);
}

static void a_queued_job_pauses_at_once(void **state)
{
    struct fixture *fixture = *state;
    char *running = fixture_submit(fixture, "steps30-slow", 0), *job = fixture_submit(fixture, "steps2", 0);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_pause, "default", job), GD_OK);
    struct gd_job_record record = fixture_job(fixture, job);
    assert_int_equal(record.status, GD_JOB_PAUSED);
    gd_job_record_release(&record);
    fixture_until_status(fixture, running, GD_JOB_SUCCEEDED);
    record = fixture_job(fixture, job);
    assert_int_equal(record.status, GD_JOB_PAUSED);
    gd_job_record_release(&record);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_resume, "default", job), GD_OK);
    fixture_until_status(fixture, job, GD_JOB_SUCCEEDED);
    gd_free(running);
    gd_free(job);
}

static void a_stop_puts_the_job_back_with_its_checkpoint(void **state)
{
    struct fixture *fixture = *state;
    char *job = fixture_submit(fixture, "steps40-slow", 0);
    fixture_until_status(fixture, job, GD_JOB_RUNNING);
    fixture_for(fixture, 300);
    fixture_stop(fixture, true);
    fixture_start(fixture);
    struct gd_job_record record = fixture_job(fixture, job);
    int64_t step = record.step;
    assert_true(step > 0);
    gd_job_record_release(&record);
    fixture_until_status(fixture, job, GD_JOB_SUCCEEDED);
    assert_messages(fixture, job, "The server is stopping: the job goes back to the queue", 1);
    assert_messages(fixture, job, "The server was restarted", 0);
    char *continued = gd_format("Continuing from the checkpoint at step %d", (int)step);
    assert_messages(fixture, job, continued, 1);
    gd_free(continued);
    gd_free(job);
}

static void a_crash_of_the_server_loses_nothing_acknowledged(void **state)
{
    struct fixture *fixture = *state;
    char *running = fixture_submit(fixture, "steps60-slow", 0);
    fixture_until_status(fixture, running, GD_JOB_RUNNING);
    char *queued = fixture_submit(fixture, "steps3", 0), *paused = fixture_submit(fixture, "steps3", 0);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_pause, "default", paused), GD_OK);
    fixture_for(fixture, 200);
    for (int i = 0; i < 3; i++) {
        fixture_stop(fixture, false);
        fixture_start(fixture);
        fixture_for(fixture, 200);
    }
    struct gd_job_record record = fixture_job(fixture, paused);
    assert_int_equal(record.status, GD_JOB_PAUSED);
    gd_job_record_release(&record);
    fixture_until_status(fixture, running, GD_JOB_SUCCEEDED);
    fixture_until_status(fixture, queued, GD_JOB_SUCCEEDED);
    assert_messages(fixture, running, "The server was restarted: the job goes back to the queue", 3);
    gd_free(running);
    gd_free(queued);
    gd_free(paused);
}

static void a_crash_while_pausing_leaves_the_job_paused(void **state)
{
    struct fixture *fixture = *state;
    char *job = fixture_submit(fixture, "steps60-hang6", 0);
    fixture_until_status(fixture, job, GD_JOB_RUNNING);
    fixture_for(fixture, 100);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_pause, "default", job), GD_OK); /* the worker does not hear it */
    fixture_stop(fixture, false);
    fixture_start(fixture);
    struct gd_job_record record = fixture_job(fixture, job);
    assert_int_equal(record.status, GD_JOB_PAUSED);
    gd_job_record_release(&record);
    assert_messages(fixture, job, "restarted while the job was pausing", 1);
    gd_free(job);
}

static void models_of_lost_checkpoints_are_unpublished(void **state)
{
    struct fixture *fixture = *state;
    char *job = fixture_submit(fixture, "steps25", 0);
    fixture_until_status(fixture, job, GD_JOB_SUCCEEDED);
    struct published published = {.job_id = job};
    fixture_store(fixture, read_published, &published);
    assert_int_equal(published.checkpoint_count, 5);
    assert_int_equal(published.model_count, 3); /* the tuned model, and the two checkpoints that the worker keeps */
    release_published(&published);
    gd_free(job);
}

static void what_cannot_be_stored_is_tried_again(void **state)
{
    struct fixture *fixture = *state;
    struct gd_error err = {0};
    char *files = gd_format("%s/files", fixture->app.config.data_dir), *job = fixture_submit(fixture, "steps8-slow", 0);
    assert_true(gd_remove_tree(files, &err) && gd_file_write_durable(files, "", 0, &err)); /* in the way of the results file */
    fixture_for(fixture, 800);
    struct gd_job_record record = fixture_job(fixture, job);
    assert_int_equal(record.status, GD_JOB_RUNNING);
    gd_job_record_release(&record);
    assert_int_equal(fixture_ask(fixture, gd_scheduler_cancel, "default", job), GD_IO); /* answered, not kept waiting */
    assert_true(gd_remove_tree(files, &err));
    fixture_until_status(fixture, job, GD_JOB_SUCCEEDED);
    assert_finished_once(fixture, job, 8);
    gd_free(files);
    gd_free(job);
}

static void a_job_waits_for_a_model_that_left(void **state)
{
    struct fixture *fixture = *state;
    char *running = fixture_submit(fixture, "steps100-slow", 0), *job = fixture_submit(fixture, "steps2", 0);
    char *base = gd_format("%s/models/base", fixture->folder), *away = gd_format("%s/models/.away", fixture->folder);
    fixture_until_status(fixture, running, GD_JOB_RUNNING);
    assert_int_equal(rename(base, away), 0);
    fixture_for(fixture, 1200); /* the folder is looked at once a second */
    assert_int_equal(fixture_ask(fixture, gd_scheduler_cancel, "default", running), GD_OK);
    fixture_for(fixture, 500);
    assert_messages(fixture, job, "The model 'base' is not in the models folder; the job waits until it is there", 1);
    struct gd_job_record record = fixture_job(fixture, job);
    assert_int_equal(record.status, GD_JOB_QUEUED);
    gd_job_record_release(&record);
    assert_int_equal(rename(away, base), 0);
    fixture_until_status(fixture, job, GD_JOB_SUCCEEDED);
    gd_free(base);
    gd_free(away);
    gd_free(running);
    gd_free(job);
}

struct seen {
    int count;
    bool ended, gone;
};

static void on_seen(void *context, const struct gd_event_record *event, bool job_ended)
{
    struct seen *seen = context;
    assert_false(seen->ended);
    if (event == NULL) {
        seen->gone = true;
        return;
    }
    assert_true(event->sequence > 0);
    seen->count++;
    seen->ended = job_ended;
}

static void watchers_hear_each_event_and_the_end(void **state)
{
    struct fixture *fixture = *state;
    struct seen seen = {0};
    char *blocking = fixture_submit(fixture, "steps5-slow", 0), *job = fixture_submit(fixture, "steps5", 0);
    void *watch = gd_scheduler_watch(fixture->app.scheduler, job, on_seen, &seen);
    fixture_until_status(fixture, job, GD_JOB_SUCCEEDED);
    assert_true(seen.ended);
    char *messages = fixture_messages(fixture, job);
    assert_int_equal(seen.count, count_of(messages, "\n") - 3); /* the three of its creation came before the watch */
    gd_scheduler_unwatch(fixture->app.scheduler, watch);
    gd_free(messages);
    gd_free(blocking);
    gd_free(job);
}

static void the_event_log_is_thinned_by_its_rule(void **state)
{
    int reported = 0;
    for (int64_t step = 1; step <= 100000; step++)
        reported += gd_job_reports_step(step, 100001, false);
    assert_int_equal(reported, 100 + 90 + 90 + 90);
    assert_true(gd_job_reports_step(99999, 100001, true));
    assert_true(gd_job_reports_step(100001, 100001, false));
    assert_false(gd_job_reports_step(101, 1000, false));
    assert_true(gd_job_reports_step(110, 1000, false));
}

int main(int argc, char **argv)
{
    setenv("GRAFTD_LOG", "error", 0);
    gd_log_init(argc > 1 ? argv[1] : "test", GD_LOG_INFO);
    if (argc > 3 && strcmp(argv[1], "worker") == 0)
        return fake_worker_main(atoi(argv[3]));
#define JOB_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        JOB_TEST(a_job_runs_and_is_published),
        JOB_TEST(values_that_are_not_finite_are_kept_as_such),
        JOB_TEST(a_worker_that_dies_gives_its_job_back),
        JOB_TEST(a_job_that_kills_its_workers_fails),
        JOB_TEST(a_job_that_kills_its_worker_at_once_fails),
        JOB_TEST(a_failed_job_says_why),
        JOB_TEST(a_hung_worker_is_replaced),
        JOB_TEST(jobs_wait_by_priority_then_age),
        JOB_TEST(a_job_is_cancelled_wherever_it_is),
        JOB_TEST(a_job_pauses_and_resumes),
        JOB_TEST(a_queued_job_pauses_at_once),
        JOB_TEST(a_stop_puts_the_job_back_with_its_checkpoint),
        JOB_TEST(a_crash_of_the_server_loses_nothing_acknowledged),
        JOB_TEST(a_crash_while_pausing_leaves_the_job_paused),
        JOB_TEST(models_of_lost_checkpoints_are_unpublished),
        JOB_TEST(what_cannot_be_stored_is_tried_again),
        JOB_TEST(a_job_waits_for_a_model_that_left),
        JOB_TEST(watchers_hear_each_event_and_the_end),
        cmocka_unit_test(the_event_log_is_thinned_by_its_rule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
