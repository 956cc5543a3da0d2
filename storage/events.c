/* Events of jobs: append-only, numbered across all jobs so that a stream can go on after any of them. */
#include "engine/base/alloc.h"
#include "storage/db_internal.h"

#define COLUMNS "seq, id, job_id, level, message, type, data, created_at"

void gd_event_record_release(struct gd_event_record *record)
{
    gd_free(record->id);
    gd_free(record->job_id);
    gd_free(record->level);
    gd_free(record->message);
    gd_free(record->type);
    gd_free(record->data);
    *record = (struct gd_event_record){0};
}

static void read_event(struct gd_query *query, void *out)
{
    struct gd_event_record *record = out;
    record->sequence = gd_take_int(query);
    record->id = gd_take_text(query);
    record->job_id = gd_take_text(query);
    record->level = gd_take_text(query);
    record->message = gd_take_text(query);
    record->type = gd_take_text(query);
    record->data = gd_take_text(query);
    record->created_at = gd_take_int(query);
}

static void release_event(void *record)
{
    gd_event_record_release(record);
}

static const struct gd_record_kind event_kind = {sizeof(struct gd_event_record), read_event, release_event};

bool gd_db_event_append(struct gd_db *db, struct gd_event_record *record, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "INSERT INTO main.events (id, job_id, level, message, type, data, created_at)"
        " VALUES (?,?,?,?,?,?,?)");
    gd_put_text(&query, record->id);
    gd_put_text(&query, record->job_id);
    gd_put_text(&query, record->level);
    gd_put_text(&query, record->message);
    gd_put_text(&query, record->type);
    gd_put_text(&query, record->data);
    gd_put_int(&query, record->created_at);
    if (!gd_query_run(&query, NULL, err)) {
        gd_error_context(err, "event of job %s", record->job_id);
        return false;
    }
    record->sequence = sqlite3_last_insert_rowid(db->sqlite);
    return true;
}

bool gd_db_event_list(struct gd_db *db, const char *job_id, const struct gd_page *page, struct gd_event_record **out,
                      int *count, bool *has_more, struct gd_error *err)
{
    static const struct gd_page_sql sql = {
        "SELECT created_at, seq FROM main.events WHERE id = ?1 AND job_id = ?2",
        GD_PAGE_LISTS("SELECT " COLUMNS " FROM main.events WHERE job_id = ?1", "created_at")};
    const struct gd_page_keys keys = {.owner = job_id};
    return gd_read_page(db, &sql, &keys, page, &event_kind, (void **)out, count, has_more, err);
}

bool gd_db_event_since(struct gd_db *db, const char *job_id, int64_t after_sequence, int limit,
                       struct gd_event_record **out, int *count, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT " COLUMNS " FROM main.events WHERE job_id = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3");
    gd_put_text(&query, job_id);
    gd_put_int(&query, after_sequence);
    gd_put_int(&query, limit);
    return gd_read_records(&query, &event_kind, 0, (void **)out, count, NULL, err);
}
