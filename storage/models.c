/* Tuned models: what was published, by which job, in which folder. */
#include "engine/base/alloc.h"
#include "storage/db_internal.h"

#include <string.h>

#define COLUMNS "id, project, job_id, base_model, folder, parent, is_checkpoint, created_at"

void gd_model_record_release(struct gd_model_record *record)
{
    gd_free(record->id);
    gd_free(record->project);
    gd_free(record->job_id);
    gd_free(record->base_model);
    gd_free(record->folder);
    gd_free(record->parent);
    *record = (struct gd_model_record){0};
}

static void read_model(struct gd_query *query, void *out)
{
    struct gd_model_record *record = out;
    record->id = gd_take_text(query);
    record->project = gd_take_text(query);
    record->job_id = gd_take_text(query);
    record->base_model = gd_take_text(query);
    record->folder = gd_take_text(query);
    record->parent = gd_take_text(query);
    record->is_checkpoint = gd_take_int(query) != 0;
    record->created_at = gd_take_int(query);
}

static void release_model(void *record)
{
    gd_model_record_release(record);
}

static const struct gd_record_kind model_kind = {sizeof(struct gd_model_record), read_model, release_model};

static bool find_model(struct gd_db *db, const char *project, const char *id, struct gd_model_record *out, bool *found,
                       struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT " COLUMNS " FROM main.models WHERE id = ?1 AND (?2 IS NULL OR project = ?2)");
    gd_put_text(&query, id);
    gd_put_text(&query, project);
    return gd_read_record(&query, &model_kind, out, found, err);
}

static bool same_text(const char *a, const char *b)
{
    return (a == NULL) == (b == NULL) && (a == NULL || strcmp(a, b) == 0);
}

bool gd_db_model_publish(struct gd_db *db, const struct gd_model_record *record, struct gd_error *err)
{
    struct gd_model_record old;
    bool found;
    if (!find_model(db, NULL, record->id, &old, &found, err))
        return false;
    bool same = found && same_text(old.project, record->project) && same_text(old.job_id, record->job_id) &&
                same_text(old.folder, record->folder);
    gd_model_record_release(&old);
    if (same)
        return true;
    if (found)
        return gd_fail(err, GD_CONFLICT, "model %s is published already with another job or folder", record->id);
    struct gd_query query = gd_query_start(db, "INSERT INTO main.models (" COLUMNS ") VALUES (?,?,?,?,?,?,?,?)");
    gd_put_text(&query, record->id);
    gd_put_text(&query, record->project);
    gd_put_text(&query, record->job_id);
    gd_put_text(&query, record->base_model);
    gd_put_text(&query, record->folder);
    gd_put_text(&query, record->parent);
    gd_put_int(&query, record->is_checkpoint);
    gd_put_int(&query, record->created_at);
    bool ok = gd_query_run(&query, NULL, err);
    if (!ok)
        gd_error_context(err, "model %s", record->id);
    return ok;
}

bool gd_db_model_get(struct gd_db *db, const char *project, const char *id, struct gd_model_record *out,
                     struct gd_error *err)
{
    bool found;
    return find_model(db, project, id, out, &found, err) &&
           (found || gd_fail_param(err, GD_NOT_FOUND, "model", "no model '%.100s'", id));
}

bool gd_db_model_list(struct gd_db *db, const char *project, struct gd_model_record **out, int *count,
                      struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT " COLUMNS " FROM main.models WHERE project = ?1 ORDER BY created_at DESC, seq DESC");
    gd_put_text(&query, project);
    return gd_read_records(&query, &model_kind, 0, (void **)out, count, NULL, err);
}

bool gd_db_model_delete(struct gd_db *db, const char *project, const char *id, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "DELETE FROM main.models WHERE id = ?1 AND (?2 IS NULL OR project = ?2)");
    gd_put_text(&query, id);
    gd_put_text(&query, project);
    int changed;
    return gd_query_run(&query, &changed, err) &&
           (changed > 0 || gd_fail_param(err, GD_NOT_FOUND, "model", "no model '%.100s'", id));
}
