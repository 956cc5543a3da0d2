#include "server/models.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/base/log.h"
#include "server/app.h"
#include "server/guard.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define RESCAN_SECONDS 1.0

struct gd_models {
    char *folder;                /* absolute */
    struct gd_base_model *items; /* sorted by id */
    int count;
    double scanned;
};

static void drop(struct gd_base_model *items, int count)
{
    for (int i = 0; i < count; i++) {
        gd_free(items[i].id);
        gd_free(items[i].path);
    }
    gd_free(items);
}

static int by_id(const void *a, const void *b)
{
    return strcmp(((const struct gd_base_model *)a)->id, ((const struct gd_base_model *)b)->id);
}

/* Fills *model if `name` in the folder is a model. */
static bool look_at(const struct gd_models *models, const char *name, struct gd_base_model *model)
{
    size_t length = strlen(name);
    struct stat facts;
    if (name[0] == '.' || !gd_guard_plain(name, length) || strncmp(name, "ft:", 3) == 0)
        return false;
    char *path = gd_format("%s/%s", models->folder, name);
    bool is_file = length > 5 && strcmp(name + length - 5, ".gguf") == 0;
    char *probe = is_file ? gd_strdup(path) : gd_format("%s/config.json", path);
    bool good = stat(probe, &facts) == 0 && S_ISREG(facts.st_mode);
    gd_free(probe);
    if (!good) {
        gd_free(path);
        return false;
    }
    *model = (struct gd_base_model){gd_strndup(name, is_file ? length - 5 : length), path, facts.st_mtime};
    return true;
}

static bool scan(struct gd_models *models, struct gd_error *err)
{
    DIR *stream = opendir(models->folder);
    if (stream == NULL)
        return gd_fail_errno(err, errno, "models folder %s", models->folder);
    struct gd_base_model *items = gd_alloc_array(GD_MODELS_MAX, sizeof(*items));
    int count = 0;
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        struct gd_base_model model;
        if (!look_at(models, entry->d_name, &model))
            continue;
        if (count == GD_MODELS_MAX) {
            gd_log_warn("models", "more_than=%d ignored=%s", GD_MODELS_MAX, model.path);
            gd_free(model.id);
            gd_free(model.path);
            continue;
        }
        items[count++] = model;
    }
    closedir(stream);
    qsort(items, (size_t)count, sizeof(*items), by_id);
    bool first = models->items == NULL;
    for (int i = 1; first && i < count; i++)
        if (strcmp(items[i].id, items[i - 1].id) == 0)
            gd_log_warn("models", "id=%s is both %s and %s", items[i].id, items[i - 1].path, items[i].path);
    drop(models->items, models->count);
    models->items = items;
    models->count = count;
    models->scanned = gd_time_monotonic();
    return true;
}

static void refresh(struct gd_models *models)
{
    struct gd_error err = {0};
    if (gd_time_monotonic() - models->scanned < RESCAN_SECONDS)
        return;
    if (!scan(models, &err)) {
        gd_log_error("models", "%s", err.message);
        models->scanned = gd_time_monotonic();
    }
}

bool gd_models_open(struct gd_models **out, const char *folder, struct gd_error *err)
{
    char *absolute = realpath(folder, NULL);
    if (absolute == NULL) {
        gd_fail_errno(err, errno, "models folder %s", folder);
        return false;
    }
    struct gd_models *models = gd_alloc(sizeof(*models));
    models->folder = gd_strdup(absolute);
    free(absolute);
    if (!scan(models, err)) {
        gd_models_destroy(models);
        return false;
    }
    *out = models;
    return true;
}

void gd_models_destroy(struct gd_models *models)
{
    if (models == NULL)
        return;
    drop(models->items, models->count);
    gd_free(models->folder);
    gd_free(models);
}

const struct gd_base_model *gd_models_find(struct gd_models *models, const char *id)
{
    refresh(models);
    struct gd_base_model key = {.id = (char *)(uintptr_t)id};
    return bsearch(&key, models->items, (size_t)models->count, sizeof(key), by_id);
}

int gd_models_count(struct gd_models *models)
{
    refresh(models);
    return models->count;
}

const struct gd_base_model *gd_models_at(const struct gd_models *models, int index)
{
    return &models->items[index];
}

/* ---- tuned models ---- */

struct lookup {
    struct gd_app *app;
    char *project, *id;
    struct gd_model_record record;
    gd_model_found found;
    void *context;
};

static bool lookup_work(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct lookup *lookup = argument;
    return gd_db_model_get(db, lookup->project, lookup->id, &lookup->record, err);
}

static void lookup_free(struct lookup *lookup)
{
    gd_model_record_release(&lookup->record);
    gd_free(lookup->project);
    gd_free(lookup->id);
    gd_free(lookup);
}

static void lookup_done(void *argument, const struct gd_error *stored)
{
    struct lookup *lookup = argument;
    const struct gd_model_record *record = &lookup->record;
    struct gd_error err = *stored;
    const struct gd_base_model *base = NULL;
    if (err.code == GD_NOT_FOUND) {
        gd_error_clear(&err);
        gd_fail_param(&err, GD_NOT_FOUND, "model", "model \"%.100s\" is neither in the models folder nor a tuned model of "
                      "this project; GET /v1/models lists both", lookup->id);
    } else if (err.code == GD_OK) {
        base = gd_models_find(lookup->app->models, record->base_model);
        if (base == NULL)
            gd_fail_param(&err, GD_BAD_MODEL, "model", "model \"%.100s\" was tuned on \"%.100s\", which is not in the "
                          "models folder", record->id, record->base_model);
    }
    if (err.code == GD_OK) {
        char *base_path = gd_strdup(base->path);
        char *adapter_path = gd_format("%s/%s", lookup->app->config.data_dir, record->folder);
        struct gd_model_ref ref = {record->id, record->base_model, base_path,
                                   record->parent != NULL ? record->parent : record->base_model, adapter_path, record->job_id,
                                   record->created_at};
        lookup->found(lookup->context, &ref, &err);
        gd_free(adapter_path);
        gd_free(base_path);
    } else {
        lookup->found(lookup->context, NULL, &err);
    }
    lookup_free(lookup);
}

void gd_models_resolve(struct gd_app *app, const char *project, const char *id, gd_model_found found, void *context)
{
    struct gd_error err = {0};
    const struct gd_base_model *base = gd_models_find(app->models, id);
    if (base != NULL) {
        char *base_id = gd_strdup(base->id), *path = gd_strdup(base->path);
        struct gd_model_ref ref = {base_id, base_id, path, NULL, NULL, NULL, base->created};
        found(context, &ref, &err);
        gd_free(base_id);
        gd_free(path);
        return;
    }
    struct lookup *lookup = gd_alloc(sizeof(*lookup));
    *lookup = (struct lookup){.app = app, .project = gd_strdup(project), .id = gd_strdup(id), .found = found,
                              .context = context};
    if (!gd_store_submit(app->store, false, lookup_work, lookup_done, lookup, &err)) {
        found(context, NULL, &err);
        lookup_free(lookup);
    }
}

void gd_model_ref_name(const struct gd_model_ref *ref, cJSON *message)
{
    cJSON_AddStringToObject(message, "model_id", ref->base_model);
    cJSON_AddStringToObject(message, "model_path", ref->base_path);
    gd_json_add_text(message, "adapter_path", ref->adapter_path);
}

bool gd_models_place(const struct gd_app *app, cJSON *models, struct gd_error *err)
{
    cJSON *model;
    cJSON_ArrayForEach(model, models)
    {
        const cJSON *id = gd_json_find(model, "base_id"), *folder = gd_json_find(model, "folder");
        const char *base_id = cJSON_IsString(id) ? id->valuestring : "";
        const struct gd_base_model *base = gd_models_find(app->models, base_id);
        if (base == NULL)
            return gd_fail(err, GD_NOT_FOUND, "the model '%.100s' has just left the models folder", base_id);
        char *adapter = cJSON_IsString(folder) ? gd_format("%s/%s", app->config.data_dir, folder->valuestring) : NULL;
        cJSON_AddStringToObject(model, "base_path", base->path);
        gd_json_add_text(model, "adapter_path", adapter);
        gd_free(adapter);
    }
    return true;
}
