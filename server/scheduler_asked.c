/* What routes ask of jobs: submit, cancel, pause, resume. */
#include "server/scheduler_internal.h"

#include "engine/base/alloc.h"
#include <string.h>

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
        gd_fail_stopping(&err);
        gd_job_record_release(job_taken);
        done(context, NULL, &err);
        return;
    }
    struct gd_job *job = gd_jobs_add(scheduler, job_taken);
    struct gd_turn *turn = gd_job_push_turn(job, &gd_turn_submit, NULL);
    turn->done = done;
    turn->context = context;
    gd_turns_run(job);
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
    struct gd_job *job = gd_jobs_find(scheduler, job_id);
    if (job != NULL && strcmp(job->record.project, project) == 0 && same_text(job->record.eval_id, eval_id)) {
        if (refused_now(job, done, context))
            return;
        struct gd_turn *turn = gd_job_push_turn(job, kind, NULL);
        turn->done = done;
        turn->context = context;
        gd_turns_run(job);
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
