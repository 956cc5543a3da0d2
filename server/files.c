#include "server/files.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define EXPIRY_PERIOD_MS 60000
#define EXPIRY_FIRST_MS 1000

struct gd_files {
    struct gd_app *app;
    uv_timer_t timer;
    bool expiring, closed;
};

char *gd_file_path(const struct gd_app *app, const char *file_id)
{
    return gd_format("%s/files/%s", app->config.data_dir, file_id);
}

/* ---- removing folders off the loop ---- */

struct removal {
    uv_work_t work;
    char *path;
};

static void removal_work(uv_work_t *work)
{
    struct removal *removal = work->data;
    struct gd_error err = {0};
    if (!gd_remove_tree(removal->path, &err))
        gd_log_warn("files", "remove=\"%s\"", err.message);
}

static void removal_after(uv_work_t *work, int status)
{
    struct removal *removal = work->data;
    gd_free(removal->path);
    gd_free(removal);
}

static void remove_later(struct gd_app *app, char *path_taken)
{
    struct removal *removal = gd_alloc(sizeof(*removal));
    removal->path = path_taken;
    removal->work.data = removal;
    uv_queue_work(app->loop, &removal->work, removal_work, removal_after);
}

void gd_trash(struct gd_app *app, const char *path)
{
    char id[17];
    gd_random_id(id, 16);
    char *trash = gd_format("%s/.trash/%s", app->config.data_dir, id);
    if (rename(path, trash) == 0) {
        remove_later(app, trash);
        return;
    }
    if (errno != ENOENT)
        gd_log_warn("files", "trash=failed path=%s error=\"%s\"", path, strerror(errno));
    gd_free(trash);
}

/* Removes the bytes of files that no row knows any more; why NULL: they stay. */
static void drop_files(struct gd_app *app, char **ids_taken, int count, const char *why)
{
    for (int i = 0; i < count; i++) {
        if (why != NULL) {
            gd_log_info("files", "file_id=%s removed=%s", ids_taken[i], why);
            remove_later(app, gd_file_path(app, ids_taken[i]));
        }
        gd_free(ids_taken[i]);
    }
    gd_free(ids_taken);
}

/* ---- expiry ---- */

struct expiry {
    struct gd_files *files;
    struct gd_app *app;
    char **ids; /* deleted rows */
    int count;
};

static bool expiry_work(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct expiry *expiry = argument;
    struct gd_file_record *records = NULL;
    int count = 0;
    if (!gd_db_file_expired(db, gd_time_unix(), &records, &count, err))
        return false;
    expiry->ids = gd_alloc_array((size_t)count + 1, sizeof(*expiry->ids));
    for (int i = 0; i < count; i++) {
        struct gd_error one = {0};
        if (gd_db_file_delete(db, records[i].project, records[i].id, &one)) /* in use by a job: next time */
            expiry->ids[expiry->count++] = gd_strdup(records[i].id);
        gd_file_record_release(&records[i]);
    }
    gd_free(records);
    return true;
}

static void expiry_done(void *argument, const struct gd_error *err)
{
    struct expiry *expiry = argument;
    struct gd_files *files = expiry->files;
    files->expiring = false;
    if (files->closed)
        gd_free(files);
    if (err->code != GD_OK)
        gd_log_warn("files", "expiry=\"%s\"", err->message);
    drop_files(expiry->app, expiry->ids, expiry->count, err->code == GD_OK ? "expired" : NULL);
    gd_free(expiry);
}

static void on_timer(uv_timer_t *timer)
{
    struct gd_files *files = timer->data;
    struct gd_error err = {0};
    if (files->expiring)
        return;
    struct expiry *expiry = gd_alloc(sizeof(*expiry));
    expiry->files = files;
    expiry->app = files->app;
    files->expiring = gd_store_submit(files->app->store, true, expiry_work, expiry_done, expiry, &err);
    if (!files->expiring)
        gd_free(expiry);
}

/* ---- what a crash left ---- */

struct orphans {
    struct gd_app *app;
    char **names;
    int count, capacity;
};

/* A crash between the rename of an upload and its row leaves a file that nobody was promised. */
static bool orphans_work(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct orphans *orphans = argument;
    int kept = 0;
    for (int i = 0; i < orphans->count; i++) {
        struct gd_error one = {0};
        struct gd_file_record record = {0};
        bool known = gd_db_file_get(db, NULL, orphans->names[i], &record, &one);
        gd_file_record_release(&record);
        if (known || one.code != GD_NOT_FOUND)
            gd_free(orphans->names[i]);
        else
            orphans->names[kept++] = orphans->names[i];
    }
    orphans->count = kept;
    return true;
}

static void orphans_done(void *argument, const struct gd_error *err)
{
    struct orphans *orphans = argument;
    drop_files(orphans->app, orphans->names, orphans->count, err->code == GD_OK ? "orphaned" : NULL);
    gd_free(orphans);
}

static bool find_orphans(struct gd_app *app, const char *folder, struct gd_error *err)
{
    DIR *stream = opendir(folder);
    if (stream == NULL)
        return gd_fail_errno(err, errno, "open %s", folder);
    struct orphans *orphans = gd_alloc(sizeof(*orphans));
    orphans->app = app;
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        if (orphans->count == orphans->capacity) {
            orphans->capacity = orphans->capacity == 0 ? 64 : orphans->capacity * 2;
            orphans->names = gd_realloc_array(orphans->names, (size_t)orphans->capacity, sizeof(*orphans->names));
        }
        orphans->names[orphans->count++] = gd_strdup(entry->d_name);
    }
    closedir(stream);
    if (gd_store_submit(app->store, false, orphans_work, orphans_done, orphans, err))
        return true;
    for (int i = 0; i < orphans->count; i++)
        gd_free(orphans->names[i]);
    gd_free(orphans->names);
    gd_free(orphans);
    return false;
}

static bool empty_trash(struct gd_app *app, const char *folder, struct gd_error *err)
{
    DIR *stream = opendir(folder);
    if (stream == NULL)
        return gd_fail_errno(err, errno, "open %s", folder);
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            remove_later(app, gd_format("%s/%s", folder, entry->d_name));
    closedir(stream);
    return true;
}

bool gd_files_start(struct gd_files **out, struct gd_app *app, struct gd_error *err)
{
    char *folder = gd_format("%s/files", app->config.data_dir);
    char *trash = gd_format("%s/.trash", app->config.data_dir);
    bool ok = gd_mkdirs(folder, err) && gd_mkdirs(trash, err) && empty_trash(app, trash, err) &&
              find_orphans(app, folder, err);
    gd_free(folder);
    gd_free(trash);
    if (!ok)
        return false;
    struct gd_files *files = gd_alloc(sizeof(*files));
    files->app = app;
    uv_timer_init(app->loop, &files->timer);
    files->timer.data = files;
    uv_timer_start(&files->timer, on_timer, EXPIRY_FIRST_MS, EXPIRY_PERIOD_MS);
    uv_unref((uv_handle_t *)&files->timer);
    *out = files;
    return true;
}

static void on_closed(uv_handle_t *handle)
{
    struct gd_files *files = handle->data;
    files->closed = true;
    if (!files->expiring)
        gd_free(files);
}

void gd_files_stop(struct gd_files *files)
{
    if (files != NULL)
        uv_close((uv_handle_t *)&files->timer, on_closed);
}

bool gd_file_find(struct gd_db *db, const char *project, const char *id, const char *purpose, const char *param,
                  struct gd_file_record *out, struct gd_error *err)
{
    struct gd_error lookup = {0};
    if (!gd_db_file_get(db, project, id, out, &lookup)) {
        if (lookup.code == GD_NOT_FOUND)
            return gd_fail_param(err, GD_INVALID, param, "file '%.200s' does not exist: upload it with POST /v1/files", id);
        *err = lookup;
        return false;
    }
    if (strcmp(out->purpose, purpose) == 0)
        return true;
    gd_fail_param(err, GD_INVALID, param, "file %s has the purpose '%s'; upload it with purpose '%s'", id, out->purpose, purpose);
    gd_file_record_release(out);
    return false;
}
