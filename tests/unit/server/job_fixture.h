/*
 * job_fixture.h - store, supervisor and scheduler on a loop of their own, with the fake worker, in a temporary folder.
 *
 * fixture_stop(.., false) is a crash: nothing is drained or told. The folder stays until fixture_remove.
 */
#ifndef GD_TESTS_JOB_FIXTURE_H
#define GD_TESTS_JOB_FIXTURE_H

#include "server/app.h"
#include "server/job_change.h"
#include "server/models.h"
#include "server/scheduler.h"
#include "server/supervisor.h"

struct fixture {
    struct gd_app app;
    uv_loop_t loop;
    char *folder;
    uv_timer_t alarm;
    bool late;
};

void fixture_create(struct fixture *fixture);      /* a new folder */
void fixture_start(struct fixture *fixture);
void fixture_stop(struct fixture *fixture, bool graceful);
void fixture_remove(struct fixture *fixture);

/* Runs the loop until done(context); fails the test after 20 s. */
void fixture_until(struct fixture *fixture, bool (*done)(void *context), void *context);
/* Runs it for so long. */
void fixture_for(struct fixture *fixture, uint64_t ms);

/* Submits a job whose suffix is its script; returns its id, yours to gd_free. */
char *fixture_submit(struct fixture *fixture, const char *script, int priority);
void fixture_until_status(struct fixture *fixture, const char *job_id, enum gd_job_status status);
struct gd_job_record fixture_job(struct fixture *fixture, const char *job_id); /* as stored */
/* Text of all stored messages, one a line. */
char *fixture_messages(struct fixture *fixture, const char *job_id);
/* Runs `work` on the store; its error must be none. */
void fixture_store(struct fixture *fixture, gd_store_work work, void *argument);
/* cancel, pause, resume: the code of the answer. */
typedef void (*fixture_call)(struct gd_scheduler *scheduler, const char *project, const char *job_id, gd_job_done done,
                             void *context);
enum gd_code fixture_ask(struct fixture *fixture, fixture_call call, const char *project, const char *job_id);

#endif
