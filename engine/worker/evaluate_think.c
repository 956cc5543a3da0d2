/* evaluate_think.c - the source of an eval on a thread of its own: items wait for it, and come back thought about. */
#include "engine/worker/evaluate_internal.h"

#include <errno.h>
#include <time.h>

#define IDLE_MS 20

static void push(struct gd_eval_queue *queue, struct gd_eval_running *running)
{
    running->next_thought = NULL;
    if (queue->first == NULL)
        queue->last = &queue->first;
    *queue->last = running;
    queue->last = &running->next_thought;
}

static struct gd_eval_running *pop(struct gd_eval_queue *queue)
{
    struct gd_eval_running *running = queue->first;
    if (running != NULL)
        queue->first = running->next_thought;
    return running;
}

static void *think(void *context)
{
    struct gd_eval_thinker *thinker = context;
    pthread_mutex_lock(&thinker->mutex);
    while (!thinker->ended) {
        struct gd_eval_running *running = pop(&thinker->waiting);
        if (running == NULL) {
            pthread_cond_wait(&thinker->come, &thinker->mutex);
            continue;
        }
        pthread_mutex_unlock(&thinker->mutex);
        (running->begun ? thinker->source->type->answered : thinker->source->type->begin)(thinker->source, &running->item);
        running->begun = true;
        pthread_mutex_lock(&thinker->mutex);
        push(&thinker->thought, running);
        pthread_cond_signal(&thinker->gone);
    }
    pthread_mutex_unlock(&thinker->mutex);
    return NULL;
}

bool gd_eval_thinker_start(struct gd_eval_thinker *thinker, struct gd_eval_source *source, struct gd_error *err)
{
    pthread_condattr_t clock;
    thinker->source = source;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&thinker->mutex, NULL);
    pthread_cond_init(&thinker->come, NULL);
    pthread_cond_init(&thinker->gone, &clock);
    pthread_condattr_destroy(&clock);
    int code = pthread_create(&thinker->thread, NULL, think, thinker);
    return code == 0 || gd_fail_errno(err, code, "start a thread");
}

void gd_eval_thinker_stop(struct gd_eval_thinker *thinker)
{
    pthread_mutex_lock(&thinker->mutex);
    thinker->ended = true;
    pthread_cond_signal(&thinker->come);
    pthread_mutex_unlock(&thinker->mutex);
    pthread_join(thinker->thread, NULL);
    pthread_cond_destroy(&thinker->come);
    pthread_cond_destroy(&thinker->gone);
    pthread_mutex_destroy(&thinker->mutex);
}

void gd_eval_give_to_source(struct gd_evaluation *evaluation, struct gd_eval_running *running)
{
    struct gd_eval_thinker *thinker = &evaluation->thinker;
    running->thinking = true;
    evaluation->thinking_count++;
    pthread_mutex_lock(&thinker->mutex);
    push(&thinker->waiting, running);
    pthread_cond_signal(&thinker->come);
    pthread_mutex_unlock(&thinker->mutex);
}

void gd_eval_take_thoughts(struct gd_evaluation *evaluation, bool idle)
{
    struct gd_eval_thinker *thinker = &evaluation->thinker;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += IDLE_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&thinker->mutex);
    while (idle && thinker->thought.first == NULL)
        if (pthread_cond_timedwait(&thinker->gone, &thinker->mutex, &until) == ETIMEDOUT)
            break;
    for (struct gd_eval_running *running; (running = pop(&thinker->thought)) != NULL; evaluation->thinking_count--)
        running->thinking = false;
    pthread_mutex_unlock(&thinker->mutex);
}
