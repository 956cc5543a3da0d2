#include "engine/train/job_group.h"

#include "engine/base/alloc.h"
#include "engine/base/log.h"
#include "engine/base/memory.h"
#include "engine/tensor/device.h"
#include "engine/train/trainer_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

void gd_job_group_init(struct gd_job_group *group, const struct gd_job_group_observer *observer)
{
    *group = (struct gd_job_group){.observer = *observer, .most_tokens = GD_GROUP_TOKENS};
    gd_group_passes_init(&group->passes);
}

void gd_job_group_release(struct gd_job_group *group)
{
    gd_group_passes_release(&group->passes);
    memset(group, 0, sizeof(*group));
}

bool gd_trainer_shares(const struct gd_trainer *trainer)
{
    return gd_passes_share(&trainer->passes);
}

/* What the jobs hold beside activations. */
static size_t held_bytes(const struct gd_job_group *group)
{
    size_t bytes = 0;
    for (int k = 0; k < group->count; k++)
        bytes += gd_trainer_held_bytes(group->trainer[k]);
    return bytes;
}

bool gd_job_group_takes(const struct gd_job_group *group, const struct gd_trainer *trainer)
{
    if (group->count == 0)
        return true;
    if (group->count == GD_SPLIT_MAX || !gd_trainer_shares(trainer))
        return false;
    size_t activations = trainer->activation_bytes;
    for (int k = 0; k < group->count; k++) {
        if (!gd_trainer_shares(group->trainer[k]) || !gd_passes_alike(&group->trainer[k]->passes, &trainer->passes))
            return false;
        if (group->trainer[k]->activation_bytes > activations)
            activations = group->trainer[k]->activation_bytes;
    }
    return held_bytes(group) + gd_trainer_held_bytes(trainer) + activations + gd_trainer_weight_bytes(trainer) <= gd_memory_bytes();
}

void gd_job_group_rest(struct gd_job_group *group)
{
    gd_group_passes_rest(&group->passes);
}

static void make_room(void *context)
{
    gd_job_group_rest(context);
}

void gd_job_group_add(struct gd_job_group *group, struct gd_trainer *trainer)
{
    assert(gd_job_group_takes(group, trainer));
    trainer->make_room = make_room;
    trainer->room_context = group;
    group->trainer[group->count++] = trainer;
    gd_trainer_begin(trainer);
}

static void leave(struct gd_job_group *group, int at, bool ok, const struct gd_error *err)
{
    struct gd_trainer *trainer = group->trainer[at];
    if (group->most_tokens > 0)
        group->most_tokens = GD_GROUP_TOKENS; /* there is more memory now */
    trainer->make_room = NULL;
    gd_group_passes_forget(&group->passes, &trainer->passes);
    memmove(group->trainer + at, group->trainer + at + 1, sizeof(group->trainer[0]) * (size_t)(--group->count - at));
    if (group->count < 2)
        gd_job_group_rest(group);
    group->observer.left(group->observer.context, trainer, ok, err);
}

/* Jobs that are over, stopped or broken leave; the others wait for a pass. */
static void advance_all(struct gd_job_group *group)
{
    for (int k = 0; k < group->count;) {
        struct gd_error err = {0};
        bool over = false, ok = gd_trainer_advance(group->trainer[k], &over, &err);
        if (group->count > 1)
            gd_passes_rest(&group->trainer[k]->passes); /* its own evaluation is over; common passes have their arena */
        if (ok && !over)
            k++;
        else
            leave(group, k, ok, &err);
    }
}

static void fail_part(struct gd_job_group *group, const struct gd_trainer *trainer, const struct gd_error *err)
{
    for (int k = 0; k < group->count; k++)
        if (group->trainer[k] == trainer) {
            leave(group, k, false, err);
            return;
        }
}

static void run_alone(struct gd_job_group *group, struct gd_trainer *trainer)
{
    struct gd_error err = {0};
    gd_job_group_rest(group);
    if (!gd_trainer_run_pass(trainer, &err))
        fail_part(group, trainer, &err);
    else if (group->count > 1)
        gd_passes_rest(&trainer->passes);
}

/* What is left for activations, beside the jobs and their base. */
static size_t arena_limit(const struct gd_job_group *group)
{
    size_t limit = gd_memory_bytes(), held = held_bytes(group) + gd_trainer_weight_bytes(group->trainer[0]);
    return limit > held ? limit - held : 0;
}

/* False: it could not be made together. */
static bool run_together(struct gd_job_group *group, struct gd_trainer *const *trainers, int count, int tokens)
{
    struct gd_group_part parts[GD_SPLIT_MAX];
    struct gd_run_options options = {.between = group->observer.between, .context = group->observer.context};
    struct gd_error err = {0};
    for (int k = 0; k < count; k++)
        parts[k] = (struct gd_group_part){.passes = &trainers[k]->passes, .batch = &trainers[k]->batch,
                                          .scale = 1.0 / trainers[k]->run.total_weight, .dropout_key = trainers[k]->run.key};
    if (!gd_group_passes_run(&group->passes, parts, count, arena_limit(group), &options, &err)) {
        if (err.code == GD_CANCELLED) /* everybody was stopped: they leave at the next turn */
            return true;
        gd_log_warn("job", "%d jobs cannot share a pass of %d tokens: %s", count, tokens, err.message);
        group->most_tokens = err.code == GD_NO_MEMORY || err.code == GD_NO_ROOM ? tokens - 1 : 0;
        return false;
    }
    group->passes_made++;
    group->jobs_passed += count;
    for (int k = 0; k < count; k++) {
        struct gd_error own = {0};
        if (!gd_trainer_take(trainers[k], &parts[k].result, &own))
            fail_part(group, trainers[k], &own);
    }
    return true;
}

void gd_job_group_turn(struct gd_job_group *group)
{
    struct gd_trainer *waiting[GD_SPLIT_MAX];
    advance_all(group);
    int count = group->count;
    memcpy(waiting, group->trainer, sizeof(waiting));
    for (int begin = 0, end; begin < count; begin = end) {
        int tokens = waiting[begin]->batch.capacity;
        for (end = begin + 1; end < count && tokens + waiting[end]->batch.capacity <= group->most_tokens; end++)
            tokens += waiting[end]->batch.capacity;
        if (end - begin > 1 && run_together(group, waiting + begin, end - begin, tokens))
            continue;
        for (int k = begin; k < end; k++)
            run_alone(group, waiting[k]);
    }
}
