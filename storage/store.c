#include "engine/base/alloc.h"
#include "engine/base/log.h"
#include "storage/ballast.h"
#include "storage/db_internal.h"
#include "storage/store.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <uv.h>

#define GROUP_COUNT_MAX 1000 /* closures that share one commit: bounds how long the first one waits */

struct request {
    struct request *next;
    gd_store_work work;
    gd_store_done done;
    void *argument;
    struct gd_error err;
    bool write;
};

struct list {
    struct request *first, *last;
    int count;
};

struct gd_store {
    struct gd_db *db;
    char *data_dir;
    uv_loop_t *loop;
    uv_async_t wake_loop;
    pthread_t thread;
    void (*broken)(void *context, const struct gd_error *err);
    void *context;
    int outstanding;            /* loop thread: submitted, done not yet called */
    bool closing;               /* loop thread */
    bool told_broken;           /* loop thread */
    struct list delivering;     /* loop thread: `done` comes next; kept here as a `done` may close the store */

    pthread_mutex_t mutex;      /* guards what follows */
    pthread_cond_t wake_thread;
    struct list waiting, finished;
    bool stop;
    struct gd_error broken_err; /* GD_OK while the database is sound */
};

static void push(struct list *list, struct request *request)
{
    request->next = NULL;
    if (list->last != NULL)
        list->last->next = request;
    else
        list->first = request;
    list->last = request;
    list->count++;
}

static struct request *pop(struct list *list)
{
    struct request *request = list->first;
    if (request == NULL)
        return NULL;
    list->first = request->next;
    if (list->first == NULL)
        list->last = NULL;
    list->count--;
    return request;
}

/* ---- the store thread ---- */

/* Hands requests back to the loop. */
static void finish(struct gd_store *store, struct list *group)
{
    if (group->first == NULL)
        return;
    bool full = false;
    (void)pthread_mutex_lock(&store->mutex);
    for (struct request *request = pop(group); request != NULL; request = pop(group)) {
        full = full || request->err.code == GD_DISK_FULL;
        push(&store->finished, request);
    }
    (void)pthread_mutex_unlock(&store->mutex);
    if (full) /* whoever tries again finds room to say so */
        (void)gd_ballast_drop(store->data_dir);
    (void)uv_async_send(&store->wake_loop);
}

/* Every closure of the group shares the fate of its transaction; one that failed by itself keeps its own error. */
static void fail_group(struct list *group, const struct gd_error *err)
{
    for (struct request *request = group->first; request != NULL; request = request->next)
        if (request->err.code == GD_OK)
            request->err = *err;
}

/* After a disk error nothing may be acknowledged: what SQLite believes to be on the disk may not be there. A full disk, a
 * lock held from outside or lack of memory are no such errors: nothing was promised yet, and they pass. */
static void note_broken(struct gd_store *store, const struct gd_error *err)
{
    if (err->code != GD_IO)
        return;
    (void)pthread_mutex_lock(&store->mutex);
    if (store->broken_err.code == GD_OK)
        store->broken_err = *err;
    (void)pthread_mutex_unlock(&store->mutex);
    (void)uv_async_send(&store->wake_loop);
}

static bool is_broken(struct gd_store *store, struct gd_error *err)
{
    (void)pthread_mutex_lock(&store->mutex);
    bool broken = store->broken_err.code != GD_OK;
    if (broken)
        *err = store->broken_err;
    (void)pthread_mutex_unlock(&store->mutex);
    return broken;
}

/* Commits what is open, or takes it back, and hands the group back. */
static void end_group(struct gd_store *store, struct list *group)
{
    struct gd_error err = {0};
    if (gd_db_in_transaction(store->db) && !gd_db_commit(store->db, &err)) {
        gd_db_rollback(store->db);
        gd_error_context(&err, "commit");
        fail_group(group, &err);
        note_broken(store, &err);
    }
    finish(store, group);
}

static bool run_work(struct gd_store *store, struct request *request)
{
    bool ok = request->work(store->db, request->argument, &request->err);
    assert(!ok || request->err.code == GD_OK);
    return ok || gd_fail(&request->err, GD_INTERNAL, "a database closure failed without saying why");
}

/* One closure inside the group's transaction, which the first write opens. */
static void run_write(struct gd_store *store, struct request *request, struct list *group)
{
    struct gd_db *db = store->db;
    if (!gd_db_in_transaction(db) && !gd_db_begin(db, &request->err)) {
        note_broken(store, &request->err);
        return;
    }
    if (!gd_db_savepoint(db, &request->err))
        return;
    bool ok = run_work(store, request);
    if (gd_db_in_transaction(db)) {
        gd_db_savepoint_end(db, ok);
        return;
    }
    /* SQLite took the whole transaction back (full disk, I/O error): those before it in the group are gone too. */
    struct gd_error lost = request->err;
    if (lost.code == GD_OK)
        gd_fail(&lost, GD_INTERNAL, "a closure ended the transaction of its group");
    gd_error_context(&lost, "a write in the same group failed and undid it");
    fail_group(group, &lost);
    if (request->err.code == GD_OK)
        request->err = lost;
    note_broken(store, &request->err);
}

static void run_request(struct gd_store *store, struct request *request, struct list *group)
{
    if (is_broken(store, &request->err))
        return;
    if (request->write)
        run_write(store, request, group);
    else
        (void)run_work(store, request);
}

/* Everything that waits, up to a bound, becomes one group. A read answers at once as long as no write is open; after a
 * write it waits for the commit, as it may have seen what is not durable yet. */
static void run_group(struct gd_store *store, struct list *taken)
{
    struct list group = {0};
    for (struct request *request = pop(taken); request != NULL; request = pop(taken)) {
        bool early = !request->write && group.first == NULL;
        run_request(store, request, &group);
        push(&group, request);
        if (early)
            finish(store, &group);
    }
    end_group(store, &group);
}

static void *thread_main(void *argument)
{
    struct gd_store *store = argument;
    for (;;) {
        struct list taken = {0};
        (void)pthread_mutex_lock(&store->mutex);
        while (store->waiting.first == NULL && !store->stop)
            (void)pthread_cond_wait(&store->wake_thread, &store->mutex);
        while (store->waiting.first != NULL && taken.count < GROUP_COUNT_MAX)
            push(&taken, pop(&store->waiting));
        (void)pthread_mutex_unlock(&store->mutex);
        if (taken.first == NULL)
            return NULL; /* stopped and drained */
        run_group(store, &taken);
    }
}

/* ---- the loop thread ---- */

static void deliver(struct gd_store *store)
{
    (void)pthread_mutex_lock(&store->mutex);
    for (struct request *request = pop(&store->finished); request != NULL; request = pop(&store->finished))
        push(&store->delivering, request);
    struct gd_error broken = store->broken_err;
    (void)pthread_mutex_unlock(&store->mutex);
    for (struct request *request = pop(&store->delivering); request != NULL; request = pop(&store->delivering)) {
        store->outstanding--;
        if (request->done != NULL)
            request->done(request->argument, &request->err);
        gd_free(request);
    }
    if (broken.code != GD_OK && !store->told_broken) {
        store->told_broken = true;
        gd_log_error("store", "error=%s state=broken", broken.message);
        if (store->broken != NULL)
            store->broken(store->context, &broken);
    }
    if (store->outstanding == 0 && !store->closing) /* an idle store does not keep the loop alive */
        uv_unref((uv_handle_t *)&store->wake_loop);
}

static void on_wake(uv_async_t *async)
{
    struct gd_store *store = async->data;
    if (!store->closing) /* close delivers by itself */
        deliver(store);
}

static bool start_thread(struct gd_store *store, struct gd_error *err)
{
    sigset_t all, old; /* signals belong to the loop's thread */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&store->thread, NULL, thread_main, store);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc == 0 || gd_fail_errno(err, rc, "start the store thread");
}

static void destroy(uv_handle_t *handle)
{
    struct gd_store *store = handle->data;
    (void)pthread_cond_destroy(&store->wake_thread);
    (void)pthread_mutex_destroy(&store->mutex);
    gd_free(store->data_dir);
    gd_free(store);
}

bool gd_store_open(struct gd_store **out, struct uv_loop_s *loop, const char *data_dir,
                   void (*broken)(void *context, const struct gd_error *err), void *context, struct gd_error *err)
{
    *out = NULL;
    struct gd_db *db;
    if (!gd_db_open(&db, data_dir, err))
        return false;
    struct gd_store *store = gd_alloc(sizeof(*store));
    gd_ballast_take(data_dir);
    store->db = db;
    store->data_dir = gd_strdup(data_dir);
    store->loop = loop;
    store->broken = broken;
    store->context = context;
    store->wake_loop.data = store;
    (void)pthread_mutex_init(&store->mutex, NULL);
    (void)pthread_cond_init(&store->wake_thread, NULL);
    int rc = uv_async_init(loop, &store->wake_loop, on_wake);
    if (rc != 0) {
        gd_fail(err, GD_IO, "watch the store thread: %s", uv_strerror(rc));
        gd_db_close(db);
        destroy((uv_handle_t *)&store->wake_loop);
        return false;
    }
    uv_unref((uv_handle_t *)&store->wake_loop);
    if (!start_thread(store, err)) {
        gd_db_close(db);
        uv_close((uv_handle_t *)&store->wake_loop, destroy);
        return false;
    }
    *out = store;
    return true;
}

bool gd_store_submit(struct gd_store *store, bool write, gd_store_work work, gd_store_done done, void *argument,
                     struct gd_error *err)
{
    if (store->closing)
        return gd_fail(err, GD_UNAVAILABLE, "the server is shutting down");
    struct request *request = gd_alloc(sizeof(*request));
    *request = (struct request){.work = work, .done = done, .argument = argument, .write = write};
    (void)pthread_mutex_lock(&store->mutex);
    bool ok = true;
    if (store->broken_err.code != GD_OK)
        ok = gd_fail(err, GD_UNAVAILABLE, "the database stopped after a disk error: %s", store->broken_err.message);
    else if (store->waiting.count >= GD_STORE_QUEUE_MAX)
        ok = gd_fail(err, GD_BUSY, "%d requests wait for the database already; try again", GD_STORE_QUEUE_MAX);
    if (ok) {
        push(&store->waiting, request);
        (void)pthread_cond_signal(&store->wake_thread);
    }
    (void)pthread_mutex_unlock(&store->mutex);
    if (!ok) {
        gd_free(request);
        return false;
    }
    if (store->outstanding++ == 0)
        uv_ref((uv_handle_t *)&store->wake_loop);
    return true;
}

void gd_store_close(struct gd_store *store)
{
    if (store == NULL)
        return;
    store->closing = true; /* no new requests, not even from a `done` below */
    (void)pthread_mutex_lock(&store->mutex);
    store->stop = true;
    (void)pthread_cond_signal(&store->wake_thread);
    (void)pthread_mutex_unlock(&store->mutex);
    (void)pthread_join(store->thread, NULL);
    deliver(store);
    assert(store->outstanding == 0);
    gd_db_close(store->db);
    uv_close((uv_handle_t *)&store->wake_loop, destroy);
}
