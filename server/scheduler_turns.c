/* The turns of a job, one after the other: prepare, store, announce, act. What a turn does is in job_turns.c. */
#include "server/scheduler_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/log.h"
#include "server/counters.h"
#include <inttypes.h>

#define RETRY_MAX_MS 30000u

void gd_turn_free(struct gd_turn *turn)
{
    gd_job_change_release(&turn->change);
    cJSON_Delete(turn->frame);
    gd_free(turn);
}

/* Takes over the record as it is stored now, then tells. */
static void announce(struct gd_job *job, struct gd_turn *turn)
{
    struct gd_scheduler *scheduler = job->scheduler;
    enum gd_job_status from = job->record.status, to = turn->change.record.status;
    struct gd_job_record old = job->record;
    job->record = turn->change.record;
    turn->change.record = old;
    job->unborn = false;
    bool inserted = turn->change.insert, ended = (inserted || from != to) && gd_job_status_terminal(to);
    if (inserted || from != to)
        gd_log_info("job", "job_id=%s from=%s to=%s turn=%s attempt=%d step=%" PRId64, job->record.id,
                    inserted ? "-" : gd_job_status_name(from), gd_job_status_name(to), turn->kind->name, job->record.attempt,
                    job->record.step);
    if (ended) {
        scheduler->ended[to]++;
        gd_counters_add(scheduler->app->counters, GD_COUNTER_JOBS_ENDED, 1, (const char *const[]){gd_job_status_name(to)});
    }
    for (int i = 0; i < turn->change.event_count; i++)
        gd_watches_tell(scheduler, job->record.id, &turn->change.events[i], ended && i == turn->change.event_count - 1);
}

/* Takes the turn out, acts, and answers whoever asked. */
static void finish_turn(struct gd_job *job, const struct gd_error *err)
{
    struct gd_turn *turn = job->first;
    job->first = turn->next;
    if (job->first == NULL)
        job->last = NULL;
    job->scheduler->turn_count--;
    if (turn->kind->after != NULL)
        turn->kind->after(job, turn);
    if (turn->done != NULL)
        turn->done(turn->context, err == NULL ? &job->record : NULL, err);
    gd_turn_free(turn);
}

static void on_stored(void *argument, const struct gd_error *err)
{
    struct gd_turn *turn = argument;
    struct gd_job *job = turn->job;
    turn->error = *err;
    turn->state = err->code == GD_OK ? GD_TURN_STORED : GD_TURN_STUCK;
    gd_turns_run(job);
}

/* Worth another try: the disk may have room again. Anything else would fail for ever. */
static bool may_pass(enum gd_code code)
{
    return code == GD_DISK_FULL || code == GD_IO || code == GD_BUSY || code == GD_NO_MEMORY || code == GD_UNAVAILABLE;
}

/* Those who ask get the error now; what has happened waits for the disk. */
static void refuse_asked(struct gd_job *job)
{
    struct gd_turn **at = &job->first->next;
    while (*at != NULL) {
        struct gd_turn *turn = *at;
        if (!turn->kind->asked) {
            at = &turn->next;
            continue;
        }
        *at = turn->next;
        job->scheduler->turn_count--;
        if (turn->done != NULL)
            turn->done(turn->context, NULL, &job->first->error);
        gd_turn_free(turn);
    }
    job->last = job->first;
    while (job->last->next != NULL)
        job->last = job->last->next;
}

/* False: it waits (for the store, or for the next try). */
static bool on_stuck(struct gd_job *job)
{
    struct gd_turn *turn = job->first;
    gd_log_error("job", "job_id=%s turn=%s not stored: %s", job->record.id, turn->kind->name, turn->error.message);
    if (turn->kind->asked) {
        struct gd_error err = turn->error;
        finish_turn(job, &err);
        return true;
    }
    if (may_pass(turn->error.code)) {
        turn->state = GD_TURN_RESTING;
        refuse_asked(job);
        uint64_t ms = job->scheduler->retry_ms;
        job->scheduler->retry_ms = ms * 2 < RETRY_MAX_MS ? ms * 2 : RETRY_MAX_MS;
        gd_scheduler_look_again(job->scheduler, ms);
        return false;
    }
    struct gd_error err = turn->error;
    if (turn->kind == &gd_turn_start) {
        job->unborn = true;
    } else if (gd_job_status_terminal(turn->change.record.status) && turn->kind != &gd_turn_failed) {
        cJSON *frame = cJSON_CreateObject();
        cJSON_AddItemToObject(frame, "error", gd_error_to_json(&err));
        gd_job_push_turn(job, &gd_turn_failed, frame);
    }
    finish_turn(job, &err);
    return true;
}

static bool apply_turn(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct gd_turn *turn = argument;
    return gd_job_change_apply(db, &turn->change, err);
}

static bool store_turn(struct gd_job *job)
{
    struct gd_turn *turn = job->first;
    struct gd_error err = {0};
    turn->state = GD_TURN_STORING;
    if (gd_store_submit(job->app->store, true, apply_turn, on_stored, turn, &err))
        return false;
    turn->error = err;
    turn->state = GD_TURN_STUCK;
    return on_stuck(job);
}

/* One move of the job's first turn. False: nothing can move now. */
static bool step_turn(struct gd_job *job)
{
    struct gd_turn *turn = job->first;
    struct gd_error err = {0};
    switch (turn->state) {
    case GD_TURN_NEW:
        gd_job_change_init(&turn->change, job->app->config.data_dir, &job->record);
        turn->state = GD_TURN_PREPARED;
        switch (turn->kind->prepare(job, turn, &err)) {
        case GD_TURN_STORE:
            return store_turn(job);
        case GD_TURN_NOTHING:
            finish_turn(job, NULL);
            return true;
        case GD_TURN_REFUSE:
            finish_turn(job, &err);
            return true;
        }
        return true;
    case GD_TURN_PREPARED:
        return store_turn(job);
    case GD_TURN_STORING:
    case GD_TURN_RESTING:
        return false;
    case GD_TURN_STORED:
        job->scheduler->retry_ms = GD_SCHEDULER_RETRY_MS;
        turn->stored = true;
        announce(job, turn);
        finish_turn(job, NULL);
        return true;
    case GD_TURN_STUCK:
        return on_stuck(job);
    }
    return false;
}

void gd_turns_run(struct gd_job *job)
{
    struct gd_scheduler *scheduler = job->scheduler;
    if (job->in_turn)
        return;
    job->in_turn = true;
    while (job->first != NULL && step_turn(job))
        ;
    job->in_turn = false;
    if (job->first == NULL && (gd_job_status_terminal(job->record.status) || job->unborn))
        gd_jobs_remove(job);
    gd_queue_dispatch(scheduler);
    gd_scheduler_tell_when_drained(scheduler);
}

struct gd_turn *gd_job_push_turn(struct gd_job *job, const struct gd_turn_kind *kind, cJSON *frame_taken)
{
    struct gd_turn *turn = gd_alloc(sizeof *turn);
    turn->kind = kind;
    turn->job = job;
    turn->frame = frame_taken;
    *(job->last != NULL ? &job->last->next : &job->first) = turn;
    job->last = turn;
    job->scheduler->turn_count++;
    return turn;
}

void gd_turns_retry(struct gd_scheduler *scheduler)
{
    struct gd_job *next;
    for (struct gd_job *job = scheduler->first; job != NULL; job = next) {
        next = job->next;
        if (job->first == NULL || job->first->state != GD_TURN_RESTING)
            continue;
        job->first->state = GD_TURN_PREPARED;
        gd_turns_run(job);
    }
}
