/* The queue: which job a worker is given next, and which may run side by side. */
#include "server/scheduler_internal.h"

#include "engine/base/alloc.h"
#include "server/supervisor.h"
#include <string.h>

#define MODEL_LOOK_MS 5000u   /* jobs whose model is missing are looked at again */

/* A job whose model has left the models folder waits for it, and says so once. */
static bool model_is_there(struct gd_job *job)
{
    const char *missing = gd_job_kinds[job->record.kind]->missing_model(job);
    bool said = job->model_missing;
    job->model_missing = missing != NULL;
    if (missing == NULL)
        return true;
    gd_scheduler_look_again(job->scheduler, MODEL_LOOK_MS);
    if (said)
        return false;
    cJSON *frame = cJSON_CreateObject();
    char *message = gd_format("The model '%s' is not in the models folder; the job waits until it is there", missing);
    cJSON_AddStringToObject(frame, "level", "warn");
    cJSON_AddStringToObject(frame, "message", message);
    gd_free(message);
    gd_job_push_turn(job, &gd_turn_message, frame);
    gd_turns_run(job);
    return false;
}

bool gd_queue_holds(const struct gd_job *job)
{
    return job->record.status == GD_JOB_QUEUED && job->worker < 0;
}

static struct gd_job *next_job(struct gd_scheduler *scheduler)
{
    struct gd_job *best = NULL, *next;
    for (struct gd_job *job = scheduler->first; job != NULL; job = next) {
        next = job->next;
        if (gd_queue_holds(job) && job->first == NULL && (best == NULL || job->record.priority > best->record.priority) &&
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
static bool may_join(const struct gd_scheduler *scheduler, const struct gd_company *company, struct gd_job *job)
{
    bool may = company->count < scheduler->app->config.jobs_per_pass && may_have_company(job);
    for (int i = 0; may && i < company->count; i++)
        may = may_have_company(company->jobs[i]) && strcmp(pass_key(company->jobs[i]), pass_key(job)) == 0;
    return may;
}

static void give(struct gd_scheduler *scheduler, struct gd_job *job, int worker)
{
    struct gd_company *company = &scheduler->on_worker[worker];
    job->worker = worker;
    company->jobs[company->count++] = job;
    gd_job_push_turn(job, &gd_turn_start, NULL);
    gd_turns_run(job);
}

/* One that has nothing to do before one that would share its passes; -1: none takes it. */
static int worker_for(const struct gd_scheduler *scheduler, struct gd_job *job)
{
    const struct gd_supervisor *supervisor = scheduler->app->supervisor;
    int count = gd_supervisor_worker_count(supervisor);
    count = count < GD_SCHEDULER_WORKERS_MAX ? count : GD_SCHEDULER_WORKERS_MAX;
    for (int i = 0; i < count; i++)
        if (scheduler->on_worker[i].count == 0 && gd_supervisor_worker_free(supervisor, i))
            return i;
    for (int i = 0; i < count; i++)
        if (scheduler->on_worker[i].count > 0 && gd_supervisor_worker_takes(supervisor, i) &&
            may_join(scheduler, &scheduler->on_worker[i], job))
            return i;
    return -1;
}

void gd_queue_dispatch(struct gd_scheduler *scheduler)
{
    struct gd_job *job;
    int worker;
    if (scheduler->draining || scheduler->app->supervisor == NULL)
        return;
    while ((job = next_job(scheduler)) != NULL && (worker = worker_for(scheduler, job)) >= 0)
        give(scheduler, job, worker);
}

int gd_scheduler_queue_position(const struct gd_scheduler *scheduler, const char *job_id)
{
    const struct gd_job *mine = gd_jobs_find(scheduler, job_id);
    if (mine == NULL || !gd_queue_holds(mine))
        return 0;
    int position = 1;
    bool older = true;
    for (const struct gd_job *job = scheduler->first; job != NULL; job = job->next) {
        if (job == mine)
            older = false;
        else if (gd_queue_holds(job) && (job->record.priority > mine->record.priority ||
                                (older && job->record.priority == mine->record.priority)))
            position++;
    }
    return position;
}
