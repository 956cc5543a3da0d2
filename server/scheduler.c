/* The life of the scheduler: recovery, timers, drain, end. */
#include "server/scheduler_internal.h"

#include "engine/base/alloc.h"

bool gd_scheduler_draining(const struct gd_scheduler *scheduler)
{
    return scheduler->draining;
}

void gd_scheduler_tell_when_drained(struct gd_scheduler *scheduler)
{
    if (!scheduler->draining || scheduler->drained == NULL || scheduler->turn_count > 0)
        return;
    for (int i = 0; i < GD_SCHEDULER_WORKERS_MAX; i++)
        if (scheduler->on_worker[i].count > 0)
            return;
    void (*drained)(void *context) = scheduler->drained;
    scheduler->drained = NULL;
    drained(scheduler->drained_context);
}

static void on_retry_time(uv_timer_t *timer)
{
    gd_turns_retry(timer->data);
    gd_queue_dispatch(timer->data);
}

void gd_scheduler_look_again(struct gd_scheduler *scheduler, uint64_t ms)
{
    if (!uv_is_active((uv_handle_t *)&scheduler->retry_timer) || uv_timer_get_due_in(&scheduler->retry_timer) > ms)
        uv_timer_start(&scheduler->retry_timer, on_retry_time, ms, 0);
}

struct recovery {
    const char *data_dir;
    struct gd_job_record *records;
    int count;
    bool over;
    struct gd_error err;
};

static bool recover_one(struct gd_db *db, const char *data_dir, struct gd_job_record *record, struct gd_error *err)
{
    struct gd_job_change change;
    gd_job_change_init(&change, data_dir, record);
    bool changed = gd_job_recover(&change), ok = !changed || gd_job_change_apply(db, &change, err);
    if (ok && changed) {
        struct gd_job_record old = *record;
        *record = change.record;
        change.record = old;
    }
    gd_job_change_release(&change);
    return ok;
}

static bool recover(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct recovery *recovery = argument;
    bool ok = gd_db_job_active(db, &recovery->records, &recovery->count, err);
    for (int i = 0; ok && i < recovery->count; i++)
        ok = recover_one(db, recovery->data_dir, &recovery->records[i], err);
    return ok;
}

static void on_recovered(void *argument, const struct gd_error *err)
{
    struct recovery *recovery = argument;
    recovery->err = *err;
    recovery->over = true;
}

static bool load_jobs(struct gd_scheduler *scheduler, struct gd_error *err)
{
    struct recovery recovery = {.data_dir = scheduler->app->config.data_dir};
    bool ok = gd_store_submit(scheduler->app->store, true, recover, on_recovered, &recovery, err);
    while (ok && !recovery.over)
        uv_run(scheduler->app->loop, UV_RUN_ONCE);
    if (ok && recovery.err.code != GD_OK) {
        *err = recovery.err;
        gd_error_context(err, "reading the jobs of the last run");
        ok = false;
    }
    for (int i = 0; i < recovery.count; i++)
        if (ok)
            gd_jobs_add(scheduler, &recovery.records[i])->unborn = false;
        else
            gd_job_record_release(&recovery.records[i]);
    gd_free(recovery.records);
    return ok;
}

bool gd_scheduler_start(struct gd_scheduler **out, struct gd_app *app, struct gd_error *err)
{
    struct gd_scheduler *scheduler = gd_alloc(sizeof *scheduler);
    scheduler->app = app;
    scheduler->retry_ms = GD_SCHEDULER_RETRY_MS;
    scheduler->open_handles = 2;
    uv_timer_init(app->loop, &scheduler->flush_timer);
    uv_timer_init(app->loop, &scheduler->retry_timer);
    scheduler->flush_timer.data = scheduler->retry_timer.data = scheduler;
    if (!load_jobs(scheduler, err)) {
        gd_scheduler_destroy(scheduler);
        return false;
    }
    *out = scheduler;
    return true;
}

void gd_scheduler_drain(struct gd_scheduler *scheduler, void (*drained)(void *context), void *context)
{
    scheduler->draining = true;
    scheduler->drained = drained;
    scheduler->drained_context = context;
    gd_watches_tell(scheduler, NULL, NULL, false);
    gd_scheduler_tell_when_drained(scheduler);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct gd_scheduler *scheduler = handle->data;
    if (--scheduler->open_handles == 0)
        gd_free(scheduler);
}

void gd_scheduler_destroy(struct gd_scheduler *scheduler)
{
    if (scheduler == NULL)
        return;
    while (scheduler->first != NULL)
        gd_jobs_remove(scheduler->first);
    gd_watches_close(scheduler);
    uv_close((uv_handle_t *)&scheduler->flush_timer, on_handle_closed);
    uv_close((uv_handle_t *)&scheduler->retry_timer, on_handle_closed);
}
