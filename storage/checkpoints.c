/* Checkpoints of jobs: one for each step that was saved. */
#include "engine/base/alloc.h"
#include "storage/db_internal.h"

#define COLUMNS "id, job_id, model, folder, metrics, step, created_at"

void gd_checkpoint_record_release(struct gd_checkpoint_record *record)
{
    gd_free(record->id);
    gd_free(record->job_id);
    gd_free(record->model);
    gd_free(record->folder);
    gd_free(record->metrics);
    *record = (struct gd_checkpoint_record){0};
}

static void read_checkpoint(struct gd_query *query, void *out)
{
    struct gd_checkpoint_record *record = out;
    record->id = gd_take_text(query);
    record->job_id = gd_take_text(query);
    record->model = gd_take_text(query);
    record->folder = gd_take_text(query);
    record->metrics = gd_take_text(query);
    record->step = gd_take_int(query);
    record->created_at = gd_take_int(query);
}

static void release_checkpoint(void *record)
{
    gd_checkpoint_record_release(record);
}

static const struct gd_record_kind checkpoint_kind = {sizeof(struct gd_checkpoint_record), read_checkpoint,
                                                      release_checkpoint};

bool gd_db_checkpoint_put(struct gd_db *db, const struct gd_checkpoint_record *record, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "INSERT INTO main.checkpoints (" COLUMNS ") VALUES (?,?,?,?,?,?,?) ON CONFLICT (job_id, step) DO UPDATE SET"
        " id = excluded.id, model = excluded.model, folder = excluded.folder, metrics = excluded.metrics,"
        " created_at = excluded.created_at");
    gd_put_text(&query, record->id);
    gd_put_text(&query, record->job_id);
    gd_put_text(&query, record->model);
    gd_put_text(&query, record->folder);
    gd_put_text(&query, record->metrics);
    gd_put_int(&query, record->step);
    gd_put_int(&query, record->created_at);
    bool ok = gd_query_run(&query, NULL, err);
    if (!ok)
        gd_error_context(err, "checkpoint %s of job %s", record->id, record->job_id);
    return ok;
}

bool gd_db_checkpoint_list(struct gd_db *db, const char *job_id, const struct gd_page *page,
                           struct gd_checkpoint_record **out, int *count, bool *has_more, struct gd_error *err)
{
    static const struct gd_page_sql sql = {
        "SELECT created_at, seq FROM main.checkpoints WHERE id = ?1 AND job_id = ?2",
        GD_PAGE_LISTS("SELECT " COLUMNS " FROM main.checkpoints WHERE job_id = ?1", "created_at")};
    const struct gd_page_keys keys = {.owner = job_id};
    return gd_read_page(db, &sql, &keys, page, &checkpoint_kind, (void **)out, count, has_more, err);
}
