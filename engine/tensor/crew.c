#include "engine/tensor/crew.h"
#include "engine/base/fsio.h"
#include <assert.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>

#define TAKEN UINT32_MAX /* no part of the job is left, and its members may change */
#define LOOKS 64         /* between two looks at the clock */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int members;                     /* threads beside the caller */
    _Atomic uint64_t ticket;         /* number of the job << 32 | its next part */
    _Atomic(gd_crew_fn) run;
    _Atomic(void *) context;
    atomic_int threads;              /* that may take part */
    _Atomic uint32_t parts, done;
    atomic_int asleep;
    double alone_until;
} crew = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .ticket = TAKEN};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* A part is ours once the ticket moves on from what it was when the job's members were read: they do not change before all parts are
 * done. How many were ours. */
static int take_parts(uint32_t number, int thread)
{
    for (int taken = 0;;) {
        uint64_t ticket = atomic_load(&crew.ticket);
        uint32_t part = (uint32_t)ticket;
        gd_crew_fn run = atomic_load(&crew.run);
        void *context = atomic_load(&crew.context);
        if (ticket >> 32 != number || part >= atomic_load(&crew.parts) || thread >= atomic_load(&crew.threads))
            return taken;
        if (!atomic_compare_exchange_weak(&crew.ticket, &ticket, ticket + 1))
            continue;
        run(context, part, thread);
        atomic_fetch_add(&crew.done, 1);
        taken++;
    }
}

static bool is_new(uint32_t seen)
{
    uint64_t ticket = atomic_load(&crew.ticket);
    return ticket >> 32 != seen && (uint32_t)ticket != TAKEN;
}

static void wait_for_job(uint32_t seen)
{
    double end = gd_time_monotonic() + GD_CREW_SPIN_US * 1e-6;
    for (int look = 1; look % LOOKS != 0 || gd_time_monotonic() < end; look++) {
        if (is_new(seen))
            return;
        relax();
    }
    pthread_mutex_lock(&crew.lock);
    atomic_fetch_add(&crew.asleep, 1);
    while (!is_new(seen))
        pthread_cond_wait(&crew.wake, &crew.lock);
    atomic_fetch_sub(&crew.asleep, 1);
    pthread_mutex_unlock(&crew.lock);
}

static void *member(void *index)
{
    for (uint32_t seen = 0;;) {
        wait_for_job(seen);
        seen = (uint32_t)(atomic_load(&crew.ticket) >> 32);
        take_parts(seen, (int)(intptr_t)index);
    }
    return NULL;
}

/* Members for `threads` threads in all; signals are for others. */
static void start(int threads)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (pthread_t thread; crew.members < threads - 1; crew.members++)
        if (pthread_create(&thread, &attributes, member, (void *)(intptr_t)(crew.members + 1)) != 0)
            break;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

static uint32_t publish(uint32_t parts, gd_crew_fn run, void *context, int threads)
{
    uint32_t number = (uint32_t)(atomic_load(&crew.ticket) >> 32) + 1;
    atomic_store(&crew.ticket, (uint64_t)number << 32 | TAKEN);
    atomic_store(&crew.done, 0);
    atomic_store(&crew.run, run);
    atomic_store(&crew.context, context);
    atomic_store(&crew.threads, threads);
    atomic_store(&crew.parts, parts);
    atomic_store(&crew.ticket, (uint64_t)number << 32);
    if (atomic_load(&crew.asleep) > 0) {
        pthread_mutex_lock(&crew.lock);
        pthread_cond_broadcast(&crew.wake);
        pthread_mutex_unlock(&crew.lock);
    }
    return number;
}

static void wait_for_others(uint32_t parts)
{
    for (int look = 1; atomic_load(&crew.done) < parts; look++)
        if (look < LOOKS * LOOKS)
            relax();
        else
            sched_yield();
}

void gd_crew_run(int64_t parts, gd_crew_fn run, void *context)
{
    int threads = omp_get_max_threads();
    double begin = threads > 1 ? gd_time_monotonic() : 0.0;
    assert(parts >= 0 && parts <= GD_CREW_PARTS_MAX);
    if (threads == 1 || parts < 2 || begin < crew.alone_until) {
        for (int64_t part = 0; part < parts; part++)
            run(context, part, 0);
        return;
    }
    if (crew.members < threads - 1)
        start(threads);
    int taken = take_parts(publish((uint32_t)parts, run, context, threads), 0);
    if (taken == parts)
        return;
    double mine = gd_time_monotonic();
    wait_for_others((uint32_t)parts);
    double end = gd_time_monotonic(), usual = taken > 0 ? 2 * (mine - begin) / taken : 0.0;
    if (end - mine > GD_CREW_LATE_US * 1e-6 + usual)
        crew.alone_until = end + GD_CREW_ALONE * (end - mine);
}
