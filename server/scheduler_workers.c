/* A job's worker: leaving it, sending to it, and what the supervisor reports of it: frames, steps, its end. */
#include "server/scheduler_internal.h"

#include "engine/base/log.h"
#include "server/supervisor.h"
#include <stdio.h>
#include <string.h>

void gd_job_leave_worker(struct gd_job *job)
{
    if (job->worker < 0)
        return;
    struct gd_company *company = &job->scheduler->on_worker[job->worker];
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

static void flush_company(const struct gd_company *company)
{
    struct gd_company now = *company; /* a turn may end a job */
    for (int i = 0; i < now.count; i++) {
        struct gd_job *job = now.jobs[i];
        if (!job->flush_waits || job->first != NULL)
            continue; /* with turns under way, the next one takes the steps along, or the next tick does */
        gd_job_push_turn(job, &gd_turn_flush, NULL);
        gd_turns_run(job);
    }
}

static void on_flush_time(uv_timer_t *timer)
{
    struct gd_scheduler *scheduler = timer->data;
    for (int i = 0; i < GD_SCHEDULER_WORKERS_MAX; i++)
        flush_company(&scheduler->on_worker[i]);
    for (int i = 0; i < GD_SCHEDULER_WORKERS_MAX; i++)
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
    struct gd_job *job = gd_jobs_find(scheduler, gd_json_find(frame, "job_id")->valuestring);
    if (job == NULL || job->worker != worker) {
        gd_queue_dispatch(scheduler); /* what a cancelled job leaves behind: perhaps its worker is free now */
        return;
    }
    const struct gd_turn_kind *kind = gd_turn_of_frame(job, type);
    if (strcmp(type, "job_started") == 0)
        gd_job_take_started(job, frame);
    if (kind != NULL) {
        gd_job_push_turn(job, kind, cJSON_Duplicate(frame, true));
        gd_turns_run(job);
    } else if (strcmp(type, "job_step") == 0) {
        take_step(job, frame);
    } else {
        gd_log_warn("job", "job_id=%s unknown frame type=%s", job->record.id, type);
    }
}

void gd_scheduler_worker_ready(struct gd_scheduler *scheduler, int worker)
{
    gd_queue_dispatch(scheduler);
}

void gd_scheduler_worker_lost(struct gd_scheduler *scheduler, int worker, const char *why, bool blameless)
{
    struct gd_company lost = worker < GD_SCHEDULER_WORKERS_MAX ? scheduler->on_worker[worker] : (struct gd_company){.count = 0};
    bool shared = gd_supervisor_in_flight(scheduler->app->supervisor, worker) > 0 || lost.count > 1;
    for (int i = 0; i < lost.count; i++) {
        struct gd_turn *turn = gd_job_push_turn(lost.jobs[i], &gd_turn_lost, NULL);
        snprintf(turn->why, sizeof turn->why, "%s", why);
        turn->blameless = blameless;
        turn->shared_blame = shared || lost.jobs[i]->record.status == GD_JOB_QUEUED; /* it had not been given the job yet */
    }
    for (int i = 0; i < lost.count; i++)
        gd_turns_run(lost.jobs[i]);
}
