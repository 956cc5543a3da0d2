/* The list of active jobs: oldest first, and by id. */
#include "server/scheduler_internal.h"

#include "engine/base/alloc.h"
#include <string.h>

static struct gd_job **bucket_of(struct gd_scheduler *scheduler, const char *id)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (const char *c = id; *c != '\0'; c++)
        hash = (hash ^ (unsigned char)*c) * 16777619u;
    return &scheduler->buckets[hash % GD_SCHEDULER_BUCKETS];
}

struct gd_job *gd_jobs_find(const struct gd_scheduler *scheduler, const char *id)
{
    struct gd_job *job = *bucket_of((struct gd_scheduler *)scheduler, id);
    while (job != NULL && strcmp(job->record.id, id) != 0)
        job = job->bucket_next;
    return job;
}

struct gd_job *gd_jobs_add(struct gd_scheduler *scheduler, struct gd_job_record *record_taken)
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

void gd_jobs_remove(struct gd_job *job)
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
        gd_turn_free(turn);
    }
    for (int i = 0; i < job->step_count; i++)
        gd_step_metrics_release(&job->steps[i]);
    gd_free(job->steps);
    gd_job_record_release(&job->record);
    gd_free(job->pass_key);
    gd_free(job);
}
