/* Uploaded files: the records; their bytes are on the disk under their ids. */
#include "engine/base/alloc.h"
#include "storage/db_internal.h"

#define COLUMNS "id, project, filename, purpose, status, status_details, report, xxh3, bytes, created_at, expires_at"

void gd_file_record_release(struct gd_file_record *record)
{
    gd_free(record->id);
    gd_free(record->project);
    gd_free(record->filename);
    gd_free(record->purpose);
    gd_free(record->status);
    gd_free(record->status_details);
    gd_free(record->report);
    gd_free(record->xxh3);
    *record = (struct gd_file_record){0};
}

static void read_file(struct gd_query *query, void *out)
{
    struct gd_file_record *record = out;
    record->id = gd_take_text(query);
    record->project = gd_take_text(query);
    record->filename = gd_take_text(query);
    record->purpose = gd_take_text(query);
    record->status = gd_take_text(query);
    record->status_details = gd_take_text(query);
    record->report = gd_take_text(query);
    record->xxh3 = gd_take_text(query);
    record->bytes = gd_take_int(query);
    record->created_at = gd_take_int(query);
    record->expires_at = gd_take_int(query);
}

static void release_file(void *record)
{
    gd_file_record_release(record);
}

static const struct gd_record_kind file_kind = {sizeof(struct gd_file_record), read_file, release_file};

bool gd_db_file_insert(struct gd_db *db, const struct gd_file_record *record, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db, "INSERT INTO main.files (" COLUMNS ") VALUES (?,?,?,?,?,?,?,?,?,?,?)");
    gd_put_text(&query, record->id);
    gd_put_text(&query, record->project);
    gd_put_text(&query, record->filename);
    gd_put_text(&query, record->purpose);
    gd_put_text(&query, record->status);
    gd_put_text(&query, record->status_details);
    gd_put_text(&query, record->report);
    gd_put_text(&query, record->xxh3);
    gd_put_int(&query, record->bytes);
    gd_put_int(&query, record->created_at);
    gd_put_int(&query, record->expires_at);
    bool ok = gd_query_run(&query, NULL, err);
    if (!ok)
        gd_error_context(err, "file %s", record->id);
    return ok;
}

bool gd_db_file_get(struct gd_db *db, const char *project, const char *id, struct gd_file_record *out,
                    struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT " COLUMNS " FROM main.files WHERE id = ?1 AND (?2 IS NULL OR project = ?2)");
    gd_put_text(&query, id);
    gd_put_text(&query, project);
    bool found;
    return gd_read_record(&query, &file_kind, out, &found, err) &&
           (found || gd_fail_param(err, GD_NOT_FOUND, "file_id", "no file '%.100s'", id));
}

/* The first job that is not terminal and reads the file, or NULL. */
static bool job_using(struct gd_db *db, const char *id, char **job_id, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT id FROM main.jobs WHERE status NOT IN ('succeeded', 'failed', 'cancelled')"
        " AND (training_file = ?1 OR validation_file = ?1) ORDER BY seq LIMIT 1");
    gd_put_text(&query, id);
    *job_id = gd_query_next(&query) ? gd_take_text(&query) : NULL;
    return gd_query_end(&query, err);
}

bool gd_db_file_delete(struct gd_db *db, const char *project, const char *id, struct gd_error *err)
{
    char *job_id;
    if (!job_using(db, id, &job_id, err))
        return false;
    struct gd_file_record record;
    bool ok = gd_db_file_get(db, project, id, &record, err); /* first: a foreign file is not found, used or not */
    gd_file_record_release(&record);
    if (ok && job_id != NULL)
        ok = gd_fail_param(err, GD_CONFLICT, "file_id", "file '%.100s' is used by job '%.100s', which has not ended; "
                           "cancel the job or wait for its end", id, job_id);
    gd_free(job_id);
    if (!ok)
        return false;
    struct gd_query query = gd_query_start(db, "DELETE FROM main.files WHERE id = ?1");
    gd_put_text(&query, id);
    return gd_query_run(&query, NULL, err);
}

bool gd_db_file_list(struct gd_db *db, const char *project, const char *purpose, const struct gd_page *page,
                     struct gd_file_record **out, int *count, bool *has_more, struct gd_error *err)
{
    static const struct gd_page_sql sql = {
        "SELECT created_at, seq FROM main.files WHERE id = ?1 AND project = ?2",
        GD_PAGE_LISTS("SELECT " COLUMNS " FROM main.files WHERE project = ?1 AND (?3 IS NULL OR purpose = ?3)", "created_at")};
    const struct gd_page_keys keys = {.owner = project, .filter = purpose};
    return gd_read_page(db, &sql, &keys, page, &file_kind, (void **)out, count, has_more, err);
}

bool gd_db_file_expired(struct gd_db *db, int64_t now, struct gd_file_record **out, int *count, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT " COLUMNS " FROM main.files WHERE expires_at > 0 AND expires_at <= ?1"
        " ORDER BY expires_at, seq");
    gd_put_int(&query, now);
    return gd_read_records(&query, &file_kind, 0, (void **)out, count, NULL, err);
}
