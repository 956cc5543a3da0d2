/* The list of active jobs, their turns, the queue, and who watches. What a turn does is in job_turns.c. */
#include "server/scheduler.h"

#include "engine/base/alloc.h"
#include "engine/base/log.h"
#include "engine/worker/protocol.h"
#include "server/counters.h"
#include "server/job.h"
#include "server/models.h"
#include "server/supervisor.h"
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define BUCKETS 4096
#define WORKERS_MAX 64
#define RETRY_FIRST_MS 1000u
#define RETRY_MAX_MS 30000u
#define MODEL_LOOK_MS 5000u   /* jobs whose model is missing are looked at again */

struct watch {
    char *job_id;
    gd_event_seen seen;
    void *context;
    bool dead;
    struct watch *next;
};

struct gd_scheduler {
    struct gd_app *app;
    struct gd_job *buckets[BUCKETS];
    struct gd_job *first, *last;             /* oldest first */
    struct company {                         /* jobs that a worker is being given or runs */
        struct gd_job *jobs[GD_WORKER_JOBS_MAX];
        int count;
    } on_worker[WORKERS_MAX];
    int64_t ended[GD_JOB_STATUS_COUNT];
    struct watch *watches;
    int telling;                             /* watches are being called: the dead stay in the list */
    uv_timer_t flush_timer, retry_timer;
    uint64_t retry_ms;
    int open_handles, turn_count;
    bool draining;
    void (*drained)(void *context);
    void *drained_context;
};

/* ---- the list ---- */

static struct gd_job **bucket_of(struct gd_scheduler *scheduler, const char *id)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (const char *c = id; *c != '\0'; c++)
        hash = (hash ^ (unsigned char)*c) * 16777619u;
    return &scheduler->buckets[hash % BUCKETS];
}

static struct gd_job *find_job(const struct gd_scheduler *scheduler, const char *id)
{
    struct gd_job *job = *bucket_of((struct gd_scheduler *)scheduler, id);
    while (job != NULL && strcmp(job->record.id, id) != 0)
        job = job->bucket_next;
    return job;
}

static struct gd_job *create_job(struct gd_scheduler *scheduler, struct gd_job_record *record_taken)
{
    struct gd_job *job = gd_alloc(sizeof *job);
    job->scheduler = scheduler;
    job->app = scheduler->app;
    job->record = *record_taken;
    *record_taken = (struct gd_job_record){0};
    job->worker = -1;
    job->unborn = true;
    struct gd_job **bucket = bucket_of(scheduler, job->record.id);
    job->bucket_next = *bucket;
    *bucket = job;
    job->previous = scheduler->last;
    *(scheduler->last != NULL ? &scheduler->last->next : &scheduler->first) = job;
    scheduler->last = job;
    return job;
}

static void free_turn(struct gd_turn *turn)
{
    gd_job_change_release(&turn->change);
    cJSON_Delete(turn->frame);
    gd_free(turn);
}

static void free_job(struct gd_job *job)
{
    struct gd_scheduler *scheduler = job->scheduler;
    struct gd_job **at = bucket_of(scheduler, job->record.id);
    while (*at != job)
        at = &(*at)->bucket_next;
    *at = job->bucket_next;
    *(job->previous != NULL ? &job->previous->next : &scheduler->first) = job->next;
    *(job->next != NULL ? &job->next->previous : &scheduler->last) = job->previous;
    gd_job_leave_worker(job);
    while (job->first != NULL) {
        struct gd_turn *turn = job->first;
        job->first = turn->next;
        free_turn(turn);
    }
    for (int i = 0; i < job->step_count; i++)
        gd_step_metrics_release(&job->steps[i]);
    gd_free(job->steps);
    gd_job_record_release(&job->record);
    gd_free(job->pass_key);
    gd_free(job);
}

void gd_job_leave_worker(struct gd_job *job)
{
    if (job->worker < 0)
        return;
    struct company *company = &job->scheduler->on_worker[job->worker];
    int kept = 0;
    for (int i = 0; i < company->count; i++)
        if (company->jobs[i] != job)
            company->jobs[kept++] = company->jobs[i];
    company->count = kept;
    job->worker = -1;
}

bool gd_job_may_start(const struct gd_job *job)
{
    const struct gd_supervisor *supervisor = job->app->supervisor;
    return job->worker >= 0 && (job->scheduler->on_worker[job->worker].count > 1
                                    ? gd_supervisor_worker_takes(supervisor, job->worker)
                                    : gd_supervisor_worker_free(supervisor, job->worker));
}

void gd_job_send(struct gd_job *job, cJSON *message_taken)
{
    gd_supervisor_send(job->app->supervisor, job->worker, message_taken);
}

bool gd_scheduler_draining(const struct gd_scheduler *scheduler)
{
    return scheduler->draining;
}

/* ---- the queue ---- */

static void schedule_retry(struct gd_scheduler *scheduler, uint64_t ms);
static void run_turns(struct gd_job *job);

/* A job whose model has left the models folder waits for it, and says so once. */
static bool model_is_there(struct gd_job *job)
{
    const char *missing = gd_job_kinds[job->record.kind]->missing_model(job);
    bool said = job->model_missing;
    job->model_missing = missing != NULL;
    if (missing == NULL)
        return true;
    schedule_retry(job->scheduler, MODEL_LOOK_MS);
    if (said)
        return false;
    cJSON *frame = cJSON_CreateObject();
    char *message = gd_format("The model '%s' is not in the models folder; the job waits until it is there", missing);
    cJSON_AddStringToObject(frame, "level", "warn");
    cJSON_AddStringToObject(frame, "message", message);
    gd_free(message);
    gd_job_push_turn(job, &gd_turn_message, frame);
    run_turns(job);
    return false;
}

static bool waits(const struct gd_job *job)
{
    return job->record.status == GD_JOB_QUEUED && job->worker < 0;
}

static struct gd_job *next_job(struct gd_scheduler *scheduler)
{
    struct gd_job *best = NULL, *next;
    for (struct gd_job *job = scheduler->first; job != NULL; job = next) {
        next = job->next;
        if (waits(job) && job->first == NULL && (best == NULL || job->record.priority > best->record.priority) &&
            model_is_there(job))
            best = job;
    }
    return best;
}

static const char *pass_key(struct gd_job *job)
{
    const struct gd_job_kind_facts *kind = gd_job_kinds[job->record.kind];
    if (!job->pass_key_known && kind->pass_key != NULL)
        job->pass_key = kind->pass_key(job);
    job->pass_key_known = true;
    return job->pass_key;
}

/* One that was with two workers that ended, without a step in between, goes alone: then it is known whose fault the next end is. */
static bool may_have_company(struct gd_job *job)
{
    return pass_key(job) != NULL && job->crash_points <= GD_CRASH_POINTS_SHARED && !job->alone;
}

/* Only the next one in the queue may join: nobody is passed by for ever by jobs that come later. */
static bool may_join(const struct gd_scheduler *scheduler, const struct company *company, struct gd_job *job)
{
    bool may = company->count < scheduler->app->config.jobs_per_pass && may_have_company(job);
    for (int i = 0; may && i < company->count; i++)
        may = may_have_company(company->jobs[i]) && strcmp(pass_key(company->jobs[i]), pass_key(job)) == 0;
    return may;
}

static void give(struct gd_scheduler *scheduler, struct gd_job *job, int worker)
{
    struct company *company = &scheduler->on_worker[worker];
    job->worker = worker;
    company->jobs[company->count++] = job;
    gd_job_push_turn(job, &gd_turn_start, NULL);
    run_turns(job);
}

static void dispatch(struct gd_scheduler *scheduler)
{
    const struct gd_supervisor *supervisor = scheduler->app->supervisor;
    if (scheduler->draining || supervisor == NULL)
        return;
    int count = gd_supervisor_worker_count(supervisor);
    for (int i = 0; i < count && i < WORKERS_MAX; i++) {
        struct company *company = &scheduler->on_worker[i];
        for (;;) {
            if (company->count == 0 ? !gd_supervisor_worker_free(supervisor, i) : !gd_supervisor_worker_takes(supervisor, i))
                break;
            struct gd_job *job = next_job(scheduler);
            if (job == NULL)
                return;
            if (company->count > 0 && !may_join(scheduler, company, job))
                break;
            give(scheduler, job, i);
        }
    }
}

int gd_scheduler_queue_position(const struct gd_scheduler *scheduler, const char *job_id)
{
    const struct gd_job *mine = find_job(scheduler, job_id);
    if (mine == NULL || !waits(mine))
        return 0;
    int position = 1;
    bool older = true;
    for (const struct gd_job *job = scheduler->first; job != NULL; job = job->next) {
        if (job == mine)
            older = false;
        else if (waits(job) && (job->record.priority > mine->record.priority ||
                                (older && job->record.priority == mine->record.priority)))
            position++;
    }
    return position;
}

/* ---- watches ---- */

static void sweep_watches(struct gd_scheduler *scheduler)
{
    struct watch **at = &scheduler->watches;
    while (*at != NULL) {
        struct watch *watch = *at;
        if (!watch->dead) {
            at = &watch->next;
            continue;
        }
        *at = watch->next;
        gd_free(watch->job_id);
        gd_free(watch);
    }
}

/* job_id NULL: all watches. */
static void tell_watches(struct gd_scheduler *scheduler, const char *job_id, const struct gd_event_record *event, bool ended)
{
    scheduler->telling++;
    for (struct watch *watch = scheduler->watches; watch != NULL; watch = watch->next)
        if (!watch->dead && (job_id == NULL || strcmp(watch->job_id, job_id) == 0))
            watch->seen(watch->context, event, ended);
    if (--scheduler->telling == 0)
        sweep_watches(scheduler);
}

void *gd_scheduler_watch(struct gd_scheduler *scheduler, const char *job_id, gd_event_seen seen, void *context)
{
    struct watch *watch = gd_alloc(sizeof *watch);
    watch->job_id = gd_strdup(job_id);
    watch->seen = seen;
    watch->context = context;
    watch->next = scheduler->watches;
    scheduler->watches = watch;
    return watch;
}

void gd_scheduler_unwatch(struct gd_scheduler *scheduler, void *handle)
{
    struct watch *watch = handle;
    watch->dead = true;
    if (scheduler->telling == 0)
        sweep_watches(scheduler);
}

/* ---- turns ---- */

static void tell_when_drained(struct gd_scheduler *scheduler)
{
    if (!scheduler->draining || scheduler->drained == NULL || scheduler->turn_count > 0)
        return;
    for (int i = 0; i < WORKERS_MAX; i++)
        if (scheduler->on_worker[i].count > 0)
            return;
    void (*drained)(void *context) = scheduler->drained;
    scheduler->drained = NULL;
    drained(scheduler->drained_context);
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
        tell_watches(scheduler, job->record.id, &turn->change.events[i], ended && i == turn->change.event_count - 1);
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
    free_turn(turn);
}

static void on_stored(void *argument, const struct gd_error *err)
{
    struct gd_turn *turn = argument;
    struct gd_job *job = turn->job;
    turn->error = *err;
    turn->state = err->code == GD_OK ? GD_TURN_STORED : GD_TURN_STUCK;
    run_turns(job);
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
        free_turn(turn);
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
        schedule_retry(job->scheduler, ms);
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
        job->scheduler->retry_ms = RETRY_FIRST_MS;
        turn->stored = true;
        announce(job, turn);
        finish_turn(job, NULL);
        return true;
    case GD_TURN_STUCK:
        return on_stuck(job);
    }
    return false;
}

static void run_turns(struct gd_job *job)
{
    struct gd_scheduler *scheduler = job->scheduler;
    if (job->in_turn)
        return;
    job->in_turn = true;
    while (job->first != NULL && step_turn(job))
        ;
    job->in_turn = false;
    if (job->first == NULL && (gd_job_status_terminal(job->record.status) || job->unborn))
        free_job(job);
    dispatch(scheduler);
    tell_when_drained(scheduler);
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

/* ---- from routes ---- */

/* A turn that is refused before it begins. */
static bool refused_now(struct gd_job *job, gd_job_done done, void *context)
{
    if (job->first == NULL || job->first->state != GD_TURN_RESTING)
        return false;
    done(context, NULL, &job->first->error);
    return true;
}

void gd_scheduler_submit(struct gd_scheduler *scheduler, struct gd_job_record *job_taken, gd_job_done done, void *context)
{
    if (scheduler->draining) {
        struct gd_error err = {0};
        gd_fail(&err, GD_UNAVAILABLE, "the server is shutting down: try again when it is back");
        gd_job_record_release(job_taken);
        done(context, NULL, &err);
        return;
    }
    struct gd_job *job = create_job(scheduler, job_taken);
    struct gd_turn *turn = gd_job_push_turn(job, &gd_turn_submit, NULL);
    turn->done = done;
    turn->context = context;
    run_turns(job);
}

/* A call for a job that is not active: over, of another project, or unknown. */
struct lookup {
    char *project, *eval_id, *job_id;    /* eval_id: of a run, else NULL */
    const char *verb;
    struct gd_job_record record;
    gd_job_done done;
    void *context;
};

static bool look_up(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct lookup *lookup = argument;
    return lookup->eval_id != NULL
               ? gd_db_run_get(db, lookup->project, lookup->eval_id, lookup->job_id, &lookup->record, err)
               : gd_db_job_get_kind(db, GD_JOB_KIND_FINE_TUNING, lookup->project, lookup->job_id, &lookup->record, err);
}

static void on_looked_up(void *argument, const struct gd_error *err)
{
    struct lookup *lookup = argument;
    struct gd_error conflict = {0};
    if (err->code == GD_OK)
        gd_fail(&conflict, GD_CONFLICT, "job %s is %s: it cannot be %s any more", lookup->job_id,
                gd_job_status_name(lookup->record.status), lookup->verb);
    lookup->done(lookup->context, NULL, err->code == GD_OK ? &conflict : err);
    gd_job_record_release(&lookup->record);
    gd_free(lookup->project);
    gd_free(lookup->eval_id);
    gd_free(lookup->job_id);
    gd_free(lookup);
}

static bool same_text(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

/* eval_id: of a run; NULL for a fine-tuning job. */
static void ask(struct gd_scheduler *scheduler, const struct gd_turn_kind *kind, const char *verb, const char *project,
                const char *eval_id, const char *job_id, gd_job_done done, void *context)
{
    struct gd_job *job = find_job(scheduler, job_id);
    if (job != NULL && strcmp(job->record.project, project) == 0 && same_text(job->record.eval_id, eval_id)) {
        if (refused_now(job, done, context))
            return;
        struct gd_turn *turn = gd_job_push_turn(job, kind, NULL);
        turn->done = done;
        turn->context = context;
        run_turns(job);
        return;
    }
    struct lookup *lookup = gd_alloc(sizeof *lookup);
    *lookup = (struct lookup){.project = gd_strdup(project), .eval_id = gd_strdup(eval_id), .job_id = gd_strdup(job_id),
                              .verb = verb, .done = done, .context = context};
    struct gd_error err = {0};
    if (!gd_store_submit(scheduler->app->store, false, look_up, on_looked_up, lookup, &err))
        on_looked_up(lookup, &err);
}

void gd_scheduler_cancel(struct gd_scheduler *scheduler, const char *project, const char *job_id, gd_job_done done,
                         void *context)
{
    ask(scheduler, &gd_turn_cancel, "cancelled", project, NULL, job_id, done, context);
}

void gd_scheduler_cancel_run(struct gd_scheduler *scheduler, const char *project, const char *eval_id, const char *run_id,
                             gd_job_done done, void *context)
{
    ask(scheduler, &gd_turn_cancel, "cancelled", project, eval_id, run_id, done, context);
}

void gd_scheduler_pause(struct gd_scheduler *scheduler, const char *project, const char *job_id, gd_job_done done,
                        void *context)
{
    ask(scheduler, &gd_turn_pause, "paused", project, NULL, job_id, done, context);
}

void gd_scheduler_resume(struct gd_scheduler *scheduler, const char *project, const char *job_id, gd_job_done done,
                         void *context)
{
    ask(scheduler, &gd_turn_resume, "resumed", project, NULL, job_id, done, context);
}

/* ---- from the supervisor ---- */

static void flush_company(const struct company *company)
{
    struct company now = *company; /* a turn may end a job */
    for (int i = 0; i < now.count; i++) {
        struct gd_job *job = now.jobs[i];
        if (!job->flush_waits || job->first != NULL)
            continue; /* with turns under way, the next one takes the steps along, or the next tick does */
        gd_job_push_turn(job, &gd_turn_flush, NULL);
        run_turns(job);
    }
}

static void on_flush_time(uv_timer_t *timer)
{
    struct gd_scheduler *scheduler = timer->data;
    for (int i = 0; i < WORKERS_MAX; i++)
        flush_company(&scheduler->on_worker[i]);
    for (int i = 0; i < WORKERS_MAX; i++)
        for (int k = 0; k < scheduler->on_worker[i].count; k++)
            if (scheduler->on_worker[i].jobs[k]->flush_waits) {
                uv_timer_start(timer, on_flush_time, GD_METRICS_FLUSH_MS, 0);
                return;
            }
}

static void take_step(struct gd_job *job, const cJSON *frame)
{
    gd_job_take_step(job, frame);
    job->flush_waits = true;
    if (!uv_is_active((uv_handle_t *)&job->scheduler->flush_timer))
        uv_timer_start(&job->scheduler->flush_timer, on_flush_time, GD_METRICS_FLUSH_MS, 0);
}

void gd_scheduler_worker_frame(struct gd_scheduler *scheduler, int worker, const cJSON *frame)
{
    const char *type = gd_json_find(frame, "type")->valuestring;
    struct gd_job *job = find_job(scheduler, gd_json_find(frame, "job_id")->valuestring);
    if (job == NULL || job->worker != worker) {
        dispatch(scheduler); /* what a cancelled job leaves behind: perhaps its worker is free now */
        return;
    }
    const struct gd_turn_kind *kind = gd_turn_of_frame(job, type);
    if (strcmp(type, "job_started") == 0)
        gd_job_take_started(job, frame);
    if (kind != NULL) {
        gd_job_push_turn(job, kind, cJSON_Duplicate(frame, true));
        run_turns(job);
    } else if (strcmp(type, "job_step") == 0) {
        take_step(job, frame);
    } else {
        gd_log_warn("job", "job_id=%s unknown frame type=%s", job->record.id, type);
    }
}

void gd_scheduler_worker_ready(struct gd_scheduler *scheduler, int worker)
{
    dispatch(scheduler);
}

void gd_scheduler_worker_lost(struct gd_scheduler *scheduler, int worker, const char *why)
{
    struct company lost = worker < WORKERS_MAX ? scheduler->on_worker[worker] : (struct company){.count = 0};
    bool shared = gd_supervisor_in_flight(scheduler->app->supervisor, worker) > 0 || lost.count > 1;
    for (int i = 0; i < lost.count; i++) {
        struct gd_turn *turn = gd_job_push_turn(lost.jobs[i], &gd_turn_lost, NULL);
        snprintf(turn->why, sizeof turn->why, "%s", why);
        turn->shared_blame = shared || lost.jobs[i]->record.status == GD_JOB_QUEUED; /* it had not been given the job yet */
    }
    for (int i = 0; i < lost.count; i++)
        run_turns(lost.jobs[i]);
}

/* ---- what is shown ---- */

cJSON *gd_scheduler_describe(const struct gd_scheduler *scheduler)
{
    int64_t counts[GD_JOB_STATUS_COUNT] = {0};
    cJSON *out = cJSON_CreateObject();
    cJSON *active = cJSON_AddObjectToObject(out, "counts");
    cJSON *ended = cJSON_AddObjectToObject(out, "ended");
    cJSON *running = cJSON_AddArrayToObject(out, "running");
    for (const struct gd_job *job = scheduler->first; job != NULL; job = job->next) {
        counts[job->record.status]++;
        if (job->record.status == GD_JOB_RUNNING || job->record.status == GD_JOB_PAUSING)
            cJSON_AddItemToArray(running, cJSON_CreateString(job->record.id));
    }
    for (int i = 0; i < GD_JOB_STATUS_COUNT; i++)
        if (gd_job_status_terminal(i))
            cJSON_AddNumberToObject(ended, gd_job_status_name(i), (double)scheduler->ended[i]);
        else
            cJSON_AddNumberToObject(active, gd_job_status_name(i), (double)counts[i]);
    return out;
}

static void add_known(cJSON *out, const char *name, bool known, double value)
{
    cJSON_AddItemToObject(out, name, known ? cJSON_CreateNumber(value) : cJSON_CreateNull());
}

static double epochs_of(const struct gd_job_record *record)
{
    struct gd_error err = {0};
    const char *text = record->hyperparameters != NULL ? record->hyperparameters : "{}";
    cJSON *hyperparameters = gd_json_parse(text, strlen(text), SIZE_MAX, &err);
    const cJSON *epochs = hyperparameters != NULL ? gd_json_find(hyperparameters, "n_epochs") : NULL;
    double value = cJSON_IsNumber(epochs) ? epochs->valuedouble : 0;
    cJSON_Delete(hyperparameters);
    return value;
}

cJSON *gd_scheduler_progress(const struct gd_scheduler *scheduler, const struct gd_job_record *record)
{
    const struct gd_job *job = find_job(scheduler, record->id);
    bool live = job != NULL && job->worker >= 0 && job->live_total_steps > 0 && job->rate_count > 0;
    int64_t step = live ? job->live_step : record->step, total = live ? job->live_total_steps : record->total_steps;
    int64_t trained = live ? job->live_trained_tokens : record->trained_tokens;
    double epochs = total > 0 ? epochs_of(record) : 0;
    cJSON *out = cJSON_CreateObject();
    cJSON_AddNumberToObject(out, "step", (double)step);
    add_known(out, "total_steps", total > 0, (double)total);
    add_known(out, "epoch", epochs > 0, total > 0 ? epochs * (double)step / (double)total : 0);
    cJSON_AddNumberToObject(out, "trained_tokens", (double)trained);
    double rate = live ? gd_job_tokens_per_second(job) : 0;
    add_known(out, "train_loss", live && isfinite(job->live_train_loss), live ? job->live_train_loss : 0);
    add_known(out, "valid_loss", live && isfinite(job->live_valid_loss), live ? job->live_valid_loss : 0);
    add_known(out, "tokens_per_second", rate > 0, rate);
    add_known(out, "seconds_remaining", live, live ? gd_job_seconds_remaining(job) : 0);
    return out;
}

/* ---- start and end ---- */

static void on_retry_time(uv_timer_t *timer)
{
    struct gd_scheduler *scheduler = timer->data;
    struct gd_job *next;
    for (struct gd_job *job = scheduler->first; job != NULL; job = next) {
        next = job->next;
        if (job->first == NULL || job->first->state != GD_TURN_RESTING)
            continue;
        job->first->state = GD_TURN_PREPARED;
        run_turns(job);
    }
    dispatch(scheduler);
}

static void schedule_retry(struct gd_scheduler *scheduler, uint64_t ms)
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
            create_job(scheduler, &recovery.records[i])->unborn = false;
        else
            gd_job_record_release(&recovery.records[i]);
    gd_free(recovery.records);
    return ok;
}

bool gd_scheduler_start(struct gd_scheduler **out, struct gd_app *app, struct gd_error *err)
{
    struct gd_scheduler *scheduler = gd_alloc(sizeof *scheduler);
    scheduler->app = app;
    scheduler->retry_ms = RETRY_FIRST_MS;
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
    tell_watches(scheduler, NULL, NULL, false);
    tell_when_drained(scheduler);
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
        free_job(scheduler->first);
    for (struct watch *watch = scheduler->watches; watch != NULL; watch = watch->next)
        watch->dead = true;
    sweep_watches(scheduler);
    uv_close((uv_handle_t *)&scheduler->flush_timer, on_handle_closed);
    uv_close((uv_handle_t *)&scheduler->retry_timer, on_handle_closed);
}
