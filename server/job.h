/*
 * job.h - an active job in memory, and the turns that its life consists of (the scheduler's files and job_turns.c only).
 *
 * Why      Whatever happens to a job (a call, a frame, a lost worker) is a turn. Turns of a job run one after the other:
 *          look at the state, store the change, then act on it and tell. So nothing is announced that is not stored, and
 *          no turn sees a state that is half changed.
 * Memory   A job owns its record, its turns and the steps that are not stored yet.
 * Threads  Loop thread.
 * Errors   A turn that somebody asked for is refused with an error; one that happened is tried again until it is stored.
 * Limits   GD_STEPS_WAITING_MAX steps wait for the store; further ones are counted and reported.
 * Life     created by recovery or submit; freed when terminal and without turns.
 */
#ifndef GD_SERVER_JOB_H
#define GD_SERVER_JOB_H

#include "engine/worker/protocol.h"
#include "server/job_change.h"
#include "server/scheduler.h"

#define GD_STEPS_WAITING_MAX 100000
#define GD_RATE_WINDOW 20            /* steps that the speed is taken over */
#define GD_CRASH_POINTS_ALONE 3      /* a worker's end with this job alone on it */
#define GD_CRASH_POINTS_SHARED 1     /* ... with requests in flight or other jobs, too */
#define GD_CRASH_POINTS_MAX 9

struct gd_job;
struct gd_turn;

enum gd_turn_result { GD_TURN_STORE, GD_TURN_NOTHING, GD_TURN_REFUSE };

struct gd_turn_kind {
    const char *name;
    bool asked;                      /* by a client: refused when it cannot be stored, instead of tried again */
    /* Fills turn->change (it starts as the job stands). REFUSE sets err. */
    enum gd_turn_result (*prepare)(struct gd_job *job, struct gd_turn *turn, struct gd_error *err);
    /* In any case, at the turn's end: the job's record is the changed one if turn->stored. May be NULL. */
    void (*after)(struct gd_job *job, struct gd_turn *turn);
};

enum gd_turn_state {
    GD_TURN_NEW,
    GD_TURN_PREPARED, /* its change is made: store it */
    GD_TURN_STORING,
    GD_TURN_STORED,
    GD_TURN_STUCK,    /* could not be stored */
    GD_TURN_RESTING,  /* until the next try */
};

struct gd_turn {
    const struct gd_turn_kind *kind;
    struct gd_job *job;
    struct gd_turn *next;
    enum gd_turn_state state;
    struct gd_job_change change;
    bool stored;
    struct gd_error error;           /* of the last try to store it */
    cJSON *frame;                    /* from a worker, or NULL */
    char why[160];                   /* LOST */
    bool shared_blame;               /* LOST: requests were in flight */
    bool blameless;                  /* LOST: the device failed */
    gd_job_done done;
    void *context;
};

struct gd_job {
    struct gd_scheduler *scheduler;
    struct gd_app *app;
    struct gd_job_record record;     /* as stored */
    int worker;                      /* that it is being given to or runs on, or -1 */
    struct gd_turn *first, *last;
    bool in_turn;                    /* its turns are being run further up the stack */
    bool unborn;                     /* not in the store, or not as it should be: forgotten when its turns are over */
    bool flush_waits, model_missing;
    char missing[256];               /* the model that is */
    int64_t step_high;               /* furthest step ever reported */
    int crash_points;
    char *pass_key;                  /* once known; NULL: it runs alone */
    bool pass_key_known;
    bool alone;                      /* it did not fit beside others: it starts on a worker of its own */
    struct gd_step_metrics *steps;   /* reported and not yet stored */
    int step_count, step_capacity;
    bool steps_held;                 /* job_started came and is not stored yet: its cut would take the new steps along */
    int64_t steps_dropped;
    int64_t live_step, live_total_steps, live_trained_tokens;
    double live_train_loss, live_valid_loss; /* newest; NAN: none yet */
    double live_tokens;              /* all tokens so far, as the frames count them; -1: not known yet */
    double rate_tokens[GD_RATE_WINDOW], rate_seconds[GD_RATE_WINDOW]; /* of a step; tokens -1: not known */
    int rate_count;
    struct gd_job *bucket_next, *previous, *next;
};

/* ---- kinds of jobs ---- */

/* What is different about one kind of job. All else is the same for all: queue, workers, turns, events, recovery. */
struct gd_job_kind_facts {
    const char *noun;                /* "Fine-tuning job" */
    const char *goes_on;             /* where it continues when it is given to a worker again: "from its last checkpoint" */
    const char *advice;              /* for a job that ended worker after worker; "" or ", and ..." */
    bool reads_done;                 /* the start's change reads which items are stored (job_change.h) */
    const struct gd_turn_kind *const *turns; /* of frames that only this kind sends; NULL-terminated */
    void (*submitted)(struct gd_job_change *change);     /* adds the messages of its first turn */
    const char *(*missing_model)(struct gd_job *job);    /* a base that it needs and that is not there now, or NULL */
    /* Jobs with the same key may run on a worker at the same time; NULL, as a hook or a result: alone. */
    char *(*pass_key)(const struct gd_job *job);
    /* The job_start frame, after the start is stored. NULL: not now, err says why. */
    cJSON *(*start_frame)(struct gd_job *job, const struct gd_job_change *stored, struct gd_error *err);
};
extern const struct gd_job_kind_facts gd_job_kind_tuning, gd_job_kind_eval; /* job_tuning.c, job_eval.c */
extern const struct gd_job_kind_facts *const gd_job_kinds[GD_JOB_KIND_COUNT];

/* ---- job_turns.c ---- */
extern const struct gd_turn_kind gd_turn_submit, gd_turn_start, gd_turn_cancel, gd_turn_pause, gd_turn_resume,
    gd_turn_flush, gd_turn_message, gd_turn_lost, gd_turn_failed, gd_turn_stopped;
/* NULL if no turn of this job is made of frames of this type. */
const struct gd_turn_kind *gd_turn_of_frame(const struct gd_job *job, const char *type);
/* The frame's member goes back to the worker, if there still is one: what it stands for is stored. */
void gd_job_tell_stored(struct gd_job *job, const char *type, const cJSON *frame, const char *member);
/* Moves the waiting steps into the change: every turn that stores something begins with this, so that metrics never come
 * after what followed them. */
void gd_job_take_steps(struct gd_job *job, struct gd_job_change *change);
void gd_job_move_to(struct gd_job_change *change, enum gd_job_status to);
bool gd_job_on_worker(const struct gd_job_record *record);
void gd_job_fail(struct gd_job_change *change, const char *code, const char *message, const char *param);
void gd_job_after_end(struct gd_job *job, struct gd_turn *turn); /* it has left its worker */
/* A job_started frame, when it comes: steps may follow before its turn is stored. */
void gd_job_take_started(struct gd_job *job, const cJSON *frame);
/* A job_step frame: kept until the next turn. */
void gd_job_take_step(struct gd_job *job, const cJSON *frame);
/* Seconds until the end at the current speed, or -1. */
double gd_job_seconds_remaining(const struct gd_job *job);
double gd_job_tokens_per_second(const struct gd_job *job);
/* Store thread: what a start of the server does to a job that was active when the last one ended. False: nothing. */
bool gd_job_recover(struct gd_job_change *change);
bool gd_job_reports_step(int64_t step, int64_t total_steps, bool validated);

/* ---- the scheduler ---- */
/* At the end of the job's turns; the caller fills it and sees to it that turns are run (inside a turn they are). */
struct gd_turn *gd_job_push_turn(struct gd_job *job, const struct gd_turn_kind *kind, cJSON *frame_taken);
void gd_job_leave_worker(struct gd_job *job);
bool gd_job_may_start(const struct gd_job *job); /* its worker is there and has room */
void gd_job_send(struct gd_job *job, cJSON *message_taken);
bool gd_scheduler_draining(const struct gd_scheduler *scheduler);

#endif
