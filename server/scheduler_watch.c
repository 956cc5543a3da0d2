/* Live subscribers of the events of jobs. */
#include "server/scheduler_internal.h"

#include "engine/base/alloc.h"
#include <string.h>

struct gd_watch {
    char *job_id;
    gd_event_seen seen;
    void *context;
    bool dead;
    struct gd_watch *next;
};

static void sweep_watches(struct gd_scheduler *scheduler)
{
    struct gd_watch **at = &scheduler->watches;
    while (*at != NULL) {
        struct gd_watch *watch = *at;
        if (!watch->dead) {
            at = &watch->next;
            continue;
        }
        *at = watch->next;
        gd_free(watch->job_id);
        gd_free(watch);
    }
}

void gd_watches_tell(struct gd_scheduler *scheduler, const char *job_id, const struct gd_event_record *event, bool ended)
{
    scheduler->telling++;
    for (struct gd_watch *watch = scheduler->watches; watch != NULL; watch = watch->next)
        if (!watch->dead && (job_id == NULL || strcmp(watch->job_id, job_id) == 0))
            watch->seen(watch->context, event, ended);
    if (--scheduler->telling == 0)
        sweep_watches(scheduler);
}

void *gd_scheduler_watch(struct gd_scheduler *scheduler, const char *job_id, gd_event_seen seen, void *context)
{
    struct gd_watch *watch = gd_alloc(sizeof *watch);
    watch->job_id = gd_strdup(job_id);
    watch->seen = seen;
    watch->context = context;
    watch->next = scheduler->watches;
    scheduler->watches = watch;
    return watch;
}

void gd_scheduler_unwatch(struct gd_scheduler *scheduler, void *handle)
{
    struct gd_watch *watch = handle;
    watch->dead = true;
    if (scheduler->telling == 0)
        sweep_watches(scheduler);
}

void gd_watches_close(struct gd_scheduler *scheduler)
{
    for (struct gd_watch *watch = scheduler->watches; watch != NULL; watch = watch->next)
        watch->dead = true;
    sweep_watches(scheduler);
}
