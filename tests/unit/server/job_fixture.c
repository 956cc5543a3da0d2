#include "job_fixture.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PATIENCE_MS 20000

static void assert_ok(bool ok, const struct gd_error *err)
{
    if (!ok)
        fail_msg("%s", err->message);
}

void fixture_create(struct fixture *fixture)
{
    *fixture = (struct fixture){0};
    char template[] = "/tmp/graftd-test-XXXXXX";
    assert_non_null(mkdtemp(template));
    fixture->folder = gd_strdup(template);
    char *base = gd_format("%s/models/base", template), *config = gd_format("%s/config.json", base);
    struct gd_error err = {0};
    assert_ok(gd_mkdirs(base, &err) && gd_file_write_durable(config, "{}", 2, &err), &err);
    gd_free(base);
    gd_free(config);
}

void fixture_remove(struct fixture *fixture)
{
    struct gd_error err = {0};
    assert_ok(gd_remove_tree(fixture->folder, &err), &err);
    gd_free(fixture->folder);
}

static void on_broken(void *context, const struct gd_error *err)
{
    fail_msg("store broken: %s", err->message);
}

void fixture_start(struct fixture *fixture)
{
    struct gd_app *app = &fixture->app;
    struct gd_error err = {0};
    *app = (struct gd_app){.loop = &fixture->loop, .organization_id = "org-test"};
    signal(SIGPIPE, SIG_IGN);
    gd_config_init(&app->config);
    app->config.jobs_per_pass = 1; /* the fake worker has one job */
    gd_free(app->config.data_dir);
    gd_free(app->config.models_dir);
    app->config.data_dir = gd_format("%s/data", fixture->folder);
    app->config.models_dir = gd_format("%s/models", fixture->folder);
    assert_int_equal(uv_loop_init(&fixture->loop), 0);
    uv_timer_init(&fixture->loop, &fixture->alarm);
    fixture->alarm.data = fixture;
    assert_ok(gd_store_open(&app->store, app->loop, app->config.data_dir, on_broken, NULL, &err), &err);
    assert_ok(gd_models_open(&app->models, app->config.models_dir, &err), &err);
    assert_ok(gd_scheduler_start(&app->scheduler, app, &err), &err);
    assert_ok(gd_supervisor_start(&app->supervisor, app, &err), &err);
}

static void set_true(void *context)
{
    *(bool *)context = true;
}

static bool is_true(void *context)
{
    return *(bool *)context;
}

void fixture_stop(struct fixture *fixture, bool graceful)
{
    struct gd_app *app = &fixture->app;
    bool drained = false, stopped = false;
    if (graceful) {
        gd_scheduler_drain(app->scheduler, set_true, &drained);
        gd_supervisor_stop(app->supervisor, set_true, &stopped);
        fixture_until(fixture, is_true, &stopped);
        fixture_until(fixture, is_true, &drained);
    }
    gd_supervisor_destroy(app->supervisor);
    gd_store_close(app->store);
    gd_scheduler_destroy(app->scheduler);
    uv_close((uv_handle_t *)&fixture->alarm, NULL);
    uv_run(&fixture->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&fixture->loop), 0);
    gd_models_destroy(app->models);
    gd_config_release(&app->config);
}

static void on_alarm(uv_timer_t *timer)
{
    ((struct fixture *)timer->data)->late = true;
}

void fixture_until(struct fixture *fixture, bool (*done)(void *context), void *context)
{
    fixture->late = false;
    uv_update_time(&fixture->loop);
    uv_timer_start(&fixture->alarm, on_alarm, PATIENCE_MS, 0);
    while (!done(context)) {
        if (fixture->late)
            fail_msg("waited %d ms in vain", PATIENCE_MS);
        uv_run(&fixture->loop, UV_RUN_ONCE);
    }
    uv_timer_stop(&fixture->alarm);
}

void fixture_for(struct fixture *fixture, uint64_t ms)
{
    fixture->late = false;
    uv_update_time(&fixture->loop);
    uv_timer_start(&fixture->alarm, on_alarm, ms, 0);
    while (!fixture->late)
        uv_run(&fixture->loop, UV_RUN_ONCE);
}

/* ---- the store ---- */

struct stored {
    bool over;
    struct gd_error err;
    gd_store_work work;
    void *argument;
};

static bool run_work(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct stored *stored = argument;
    return stored->work(db, stored->argument, err);
}

static void on_stored(void *argument, const struct gd_error *err)
{
    struct stored *stored = argument;
    stored->err = *err;
    stored->over = true;
}

void fixture_store(struct fixture *fixture, gd_store_work work, void *argument)
{
    struct stored stored = {.work = work, .argument = argument};
    struct gd_error err = {0};
    assert_ok(gd_store_submit(fixture->app.store, true, run_work, on_stored, &stored, &err), &err);
    fixture_until(fixture, is_true, &stored.over);
    assert_ok(stored.err.code == GD_OK, &stored.err);
}

struct job_query {
    const char *job_id;
    struct gd_job_record record;
    struct gd_event_record *events;
    int count;
};

static bool read_job(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct job_query *query = argument;
    return gd_db_job_get(db, NULL, query->job_id, &query->record, err);
}

struct gd_job_record fixture_job(struct fixture *fixture, const char *job_id)
{
    struct job_query query = {.job_id = job_id};
    fixture_store(fixture, read_job, &query);
    return query.record;
}

static bool read_events(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct job_query *query = argument;
    return gd_db_event_since(db, query->job_id, 0, 100000, &query->events, &query->count, err);
}

char *fixture_messages(struct fixture *fixture, const char *job_id)
{
    struct job_query query = {.job_id = job_id};
    struct gd_buf text = {0};
    fixture_store(fixture, read_events, &query);
    for (int i = 0; i < query.count; i++) {
        gd_buf_append_text(&text, query.events[i].message);
        gd_buf_append_char(&text, '\n');
        gd_event_record_release(&query.events[i]);
    }
    gd_free(query.events);
    return gd_buf_take(&text);
}

/* ---- jobs ---- */

struct asked {
    bool over;
    enum gd_code code;
};

static void on_asked(void *context, const struct gd_job_record *job, const struct gd_error *err)
{
    struct asked *asked = context;
    assert_true((job != NULL) == (err == NULL));
    asked->over = true;
    asked->code = err != NULL ? err->code : GD_OK;
}

char *fixture_submit(struct fixture *fixture, const char *script, int priority)
{
    char unique[25];
    gd_random_id(unique, 24);
    char *id = gd_format("ftjob-%s", unique);
    struct gd_job_record record = {
        .id = gd_strdup(id),
        .project = gd_strdup("default"),
        .model = gd_strdup("base"),
        .training_file = gd_strdup("file-1"),
        .suffix = gd_strdup(script),
        .body = gd_format("{\"model\":\"base\",\"training_file\":\"file-1\",\"suffix\":\"%s\"}", script),
        .hyperparameters = gd_strdup("{\"n_epochs\":\"auto\"}"),
        .result_files = gd_strdup("[]"),
        .status = GD_JOB_QUEUED,
        .created_at = gd_time_unix(),
        .seed = 1,
        .priority = priority,
    };
    struct asked asked = {0};
    gd_scheduler_submit(fixture->app.scheduler, &record, on_asked, &asked);
    fixture_until(fixture, is_true, &asked.over);
    assert_int_equal(asked.code, GD_OK);
    return id;
}

enum gd_code fixture_ask(struct fixture *fixture, fixture_call call, const char *project, const char *job_id)
{
    struct asked asked = {0};
    call(fixture->app.scheduler, project, job_id, on_asked, &asked);
    fixture_until(fixture, is_true, &asked.over);
    return asked.code;
}

void fixture_until_status(struct fixture *fixture, const char *job_id, enum gd_job_status status)
{
    for (uint64_t waited = 0; waited < PATIENCE_MS; waited += 10) {
        struct gd_job_record record = fixture_job(fixture, job_id);
        enum gd_job_status now = record.status;
        gd_job_record_release(&record);
        if (now == status)
            return;
        fixture_for(fixture, 10);
    }
    struct gd_job_record record = fixture_job(fixture, job_id);
    char *messages = fixture_messages(fixture, job_id);
    fail_msg("job is %s, not %s:\n%s", gd_job_status_name(record.status), gd_job_status_name(status), messages);
}
