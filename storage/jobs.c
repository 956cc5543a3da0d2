/* Jobs of all kinds and the table of their allowed transitions. */
#include "engine/base/alloc.h"
#include "storage/db_internal.h"

#include <assert.h>
#include <string.h>

#define COLUMNS                                                                                                           \
    "id, project, model, training_file, validation_file, suffix, body, hyperparameters, metadata, integrations, error, "  \
    "fine_tuned_model, result_files, idempotency_key, memory, start_folder, status, created_at, started_at, "             \
    "finished_at, estimated_finish, seed, trained_tokens, step, total_steps, attempt, priority, kind, eval_id, name"

#define TO(status) (1u << GD_JOB_##status)
static const uint8_t next_status[GD_JOB_STATUS_COUNT] = {
    [GD_JOB_VALIDATING_FILES] = TO(QUEUED) | TO(FAILED) | TO(CANCELLED),
    [GD_JOB_QUEUED] = TO(RUNNING) | TO(PAUSED) | TO(FAILED) | TO(CANCELLED),
    [GD_JOB_RUNNING] = TO(PAUSING) | TO(QUEUED) | TO(SUCCEEDED) | TO(FAILED) | TO(CANCELLED),
    [GD_JOB_PAUSING] = TO(PAUSED) | TO(QUEUED) | TO(RUNNING) | TO(SUCCEEDED) | TO(FAILED) | TO(CANCELLED),
    [GD_JOB_PAUSED] = TO(QUEUED) | TO(CANCELLED),
}; /* succeeded, failed and cancelled lead nowhere */
_Static_assert(GD_JOB_STATUS_COUNT <= 8, "a set of statuses must fit in uint8_t");

#define STATUS_FACTS(name, wire, terminal) {wire, terminal},
static const struct {
    const char *wire;
    bool terminal;
} statuses[GD_JOB_STATUS_COUNT] = {GD_JOB_STATUS_LIST(STATUS_FACTS)};

const char *gd_job_status_name(enum gd_job_status status)
{
    assert(status >= 0 && status < GD_JOB_STATUS_COUNT);
    return statuses[status].wire;
}

bool gd_job_status_terminal(enum gd_job_status status)
{
    assert(status >= 0 && status < GD_JOB_STATUS_COUNT);
    return statuses[status].terminal;
}

bool gd_job_status_may(enum gd_job_status from, enum gd_job_status to)
{
    assert(from >= 0 && from < GD_JOB_STATUS_COUNT);
    assert(to >= 0 && to < GD_JOB_STATUS_COUNT);
    return (next_status[from] >> to & 1u) != 0;
}

void gd_job_record_release(struct gd_job_record *record)
{
    gd_free(record->id);
    gd_free(record->project);
    gd_free(record->model);
    gd_free(record->training_file);
    gd_free(record->validation_file);
    gd_free(record->suffix);
    gd_free(record->body);
    gd_free(record->hyperparameters);
    gd_free(record->metadata);
    gd_free(record->integrations);
    gd_free(record->error);
    gd_free(record->fine_tuned_model);
    gd_free(record->result_files);
    gd_free(record->idempotency_key);
    gd_free(record->memory);
    gd_free(record->eval_id);
    gd_free(record->name);
    gd_free(record->start_folder);
    *record = (struct gd_job_record){0};
}

/* Only this file writes the column: a name that is not in the table means damage, and the job must not run again. */
static enum gd_job_status status_from_name(const char *name)
{
    for (int i = 0; i < GD_JOB_STATUS_COUNT; i++)
        if (name != NULL && strcmp(statuses[i].wire, name) == 0)
            return (enum gd_job_status)i;
    return GD_JOB_FAILED;
}

#define KIND_NAME(name, wire) wire,
static const char *const kinds[GD_JOB_KIND_COUNT] = {GD_JOB_KIND_LIST(KIND_NAME)};

const char *gd_job_kind_name(enum gd_job_kind kind)
{
    assert(kind >= 0 && kind < GD_JOB_KIND_COUNT);
    return kinds[kind];
}

static enum gd_job_kind kind_from_name(const char *name)
{
    int kind = 0;
    while (kind < GD_JOB_KIND_COUNT - 1 && strcmp(kinds[kind], name) != 0)
        kind++;
    return (enum gd_job_kind)kind;
}

static void read_job(struct gd_query *query, void *out)
{
    struct gd_job_record *record = out;
    char **const texts[] = {&record->id, &record->project, &record->model, &record->training_file,
                            &record->validation_file, &record->suffix, &record->body, &record->hyperparameters,
                            &record->metadata, &record->integrations, &record->error, &record->fine_tuned_model,
                            &record->result_files, &record->idempotency_key, &record->memory, &record->start_folder};
    for (size_t i = 0; i < GD_COUNT(texts); i++)
        *texts[i] = gd_take_text(query);
    char *status = gd_take_text(query);
    record->status = status_from_name(status);
    gd_free(status);
    int64_t *const numbers[] = {&record->created_at, &record->started_at, &record->finished_at,
                                &record->estimated_finish, &record->seed, &record->trained_tokens, &record->step,
                                &record->total_steps};
    for (size_t i = 0; i < GD_COUNT(numbers); i++)
        *numbers[i] = gd_take_int(query);
    record->attempt = (int)gd_take_int(query);
    record->priority = (int)gd_take_int(query);
    char *kind = gd_take_text(query);
    record->kind = kind_from_name(kind);
    gd_free(kind);
    record->eval_id = gd_take_text(query);
    record->name = gd_take_text(query);
}

static void release_job(void *record)
{
    gd_job_record_release(record);
}

static const struct gd_record_kind job_kind = {sizeof(struct gd_job_record), read_job, release_job};

bool gd_db_job_insert(struct gd_db *db, const struct gd_job_record *record, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db, "INSERT INTO main.jobs (" COLUMNS ") VALUES "
                                               "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)");
    const char *const texts[] = {record->id, record->project, record->model, record->training_file,
                                 record->validation_file, record->suffix, record->body, record->hyperparameters,
                                 record->metadata, record->integrations, record->error, record->fine_tuned_model,
                                 record->result_files, record->idempotency_key, record->memory, record->start_folder,
                                 gd_job_status_name(record->status)};
    for (size_t i = 0; i < GD_COUNT(texts); i++)
        gd_put_text(&query, texts[i]);
    const int64_t numbers[] = {record->created_at, record->started_at, record->finished_at, record->estimated_finish,
                               record->seed, record->trained_tokens, record->step, record->total_steps, record->attempt,
                               record->priority};
    for (size_t i = 0; i < GD_COUNT(numbers); i++)
        gd_put_int(&query, numbers[i]);
    gd_put_text(&query, gd_job_kind_name(record->kind));
    gd_put_text(&query, record->eval_id);
    gd_put_text(&query, record->name);
    bool ok = gd_query_run(&query, NULL, err);
    if (!ok)
        gd_error_context(err, "job %s", record->id);
    return ok;
}

bool gd_db_job_get(struct gd_db *db, const char *project, const char *id, struct gd_job_record *out, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT " COLUMNS " FROM main.jobs WHERE id = ?1 AND (?2 IS NULL OR project = ?2)");
    gd_put_text(&query, id);
    gd_put_text(&query, project);
    bool found;
    return gd_read_record(&query, &job_kind, out, &found, err) &&
           (found || gd_fail_param(err, GD_NOT_FOUND, "fine_tuning_job_id", "no fine-tuning job '%.100s'", id));
}

bool gd_db_job_get_kind(struct gd_db *db, enum gd_job_kind kind, const char *project, const char *id,
                        struct gd_job_record *out, struct gd_error *err)
{
    if (!gd_db_job_get(db, project, id, out, err))
        return false;
    if (out->kind == kind)
        return true;
    gd_job_record_release(out);
    return gd_fail_param(err, GD_NOT_FOUND, "fine_tuning_job_id", "no fine-tuning job '%.100s'", id);
}

bool gd_db_run_get(struct gd_db *db, const char *project, const char *eval_id, const char *id, struct gd_job_record *out,
                   struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT " COLUMNS " FROM main.jobs WHERE id = ?1 AND project = ?2 AND eval_id = ?3");
    gd_put_text(&query, id);
    gd_put_text(&query, project);
    gd_put_text(&query, eval_id);
    bool found;
    return gd_read_record(&query, &job_kind, out, &found, err) &&
           (found || gd_fail_param(err, GD_NOT_FOUND, "run_id", "eval '%.100s' has no run '%.100s'", eval_id, id));
}

bool gd_db_run_list(struct gd_db *db, const char *project, const char *eval_id, const enum gd_job_status *wanted,
                    int wanted_count, const struct gd_page *page, struct gd_job_record **out, int *count, bool *has_more,
                    struct gd_error *err)
{
    static const struct gd_page_sql sql = {
        "SELECT created_at, seq FROM main.jobs WHERE id = ?1 AND eval_id = ?2 AND project = ?3",
        GD_PAGE_LISTS("SELECT " COLUMNS " FROM main.jobs WHERE eval_id = ?1 AND project = ?2"
                      " AND (?3 IS NULL OR status IN (SELECT value FROM json_each(?3)))", "created_at")};
    cJSON *names = cJSON_CreateArray();
    for (int i = 0; i < wanted_count; i++)
        cJSON_AddItemToArray(names, cJSON_CreateString(gd_job_status_name(wanted[i])));
    char *filter = wanted_count > 0 ? gd_json_print(names) : NULL;
    const struct gd_page_keys keys = {.owner = eval_id, .second = project, .filter = filter};
    bool ok = gd_read_page(db, &sql, &keys, page, &job_kind, (void **)out, count, has_more, err);
    cJSON_Delete(names);
    gd_free(filter);
    return ok;
}

bool gd_db_job_by_idempotency(struct gd_db *db, const char *project, const char *key, struct gd_job_record *out,
                              bool *found, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT " COLUMNS " FROM main.jobs WHERE project = ?1 AND idempotency_key = ?2");
    gd_put_text(&query, project);
    gd_put_text(&query, key);
    return gd_read_record(&query, &job_kind, out, found, err);
}

static bool check_transition(struct gd_db *db, const struct gd_job_record *record, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db, "SELECT status FROM main.jobs WHERE id = ?1");
    gd_put_text(&query, record->id);
    bool found = gd_query_next(&query);
    char *name = found ? gd_take_text(&query) : NULL;
    bool ok = gd_query_end(&query, err);
    if (ok && !found)
        ok = gd_fail_param(err, GD_NOT_FOUND, "fine_tuning_job_id", "no fine-tuning job '%.100s'", record->id);
    if (ok) {
        enum gd_job_status from = status_from_name(name);
        if (from != record->status && !gd_job_status_may(from, record->status))
            ok = gd_fail(err, GD_CONFLICT, "job %s is %s and cannot become %s", record->id, gd_job_status_name(from),
                         gd_job_status_name(record->status));
    }
    gd_free(name);
    return ok;
}

bool gd_db_job_update(struct gd_db *db, const struct gd_job_record *record, struct gd_error *err)
{
    if (!check_transition(db, record, err))
        return false;
    struct gd_query query = gd_query_start(db,
        "UPDATE main.jobs SET hyperparameters = ?, error = ?, fine_tuned_model = ?, result_files = ?, memory = ?,"
        " status = ?, started_at = ?, finished_at = ?, estimated_finish = ?, seed = ?, trained_tokens = ?, step = ?, total_steps = ?,"
        " attempt = ?, priority = ? WHERE id = ?");
    gd_put_text(&query, record->hyperparameters);
    gd_put_text(&query, record->error);
    gd_put_text(&query, record->fine_tuned_model);
    gd_put_text(&query, record->result_files);
    gd_put_text(&query, record->memory);
    gd_put_text(&query, gd_job_status_name(record->status));
    const int64_t numbers[] = {record->started_at, record->finished_at, record->estimated_finish, record->seed,
                               record->trained_tokens, record->step, record->total_steps, record->attempt,
                               record->priority};
    for (size_t i = 0; i < GD_COUNT(numbers); i++)
        gd_put_int(&query, numbers[i]);
    gd_put_text(&query, record->id);
    return gd_query_run(&query, NULL, err);
}

bool gd_db_job_list(struct gd_db *db, const char *project, const cJSON *metadata_filter, const struct gd_page *page,
                    struct gd_job_record **out, int *count, bool *has_more, struct gd_error *err)
{
    /* Each member of the filter must be in the job's metadata with the same type and value. */
    static const struct gd_page_sql sql = {
        "SELECT created_at, seq FROM main.jobs WHERE id = ?1 AND project = ?2",
        GD_PAGE_LISTS("SELECT " COLUMNS " FROM main.jobs WHERE project = ?1 AND kind = 'fine_tuning'"
                      " AND (?3 IS NULL OR NOT EXISTS (SELECT 1 FROM json_each(?3) AS f WHERE NOT EXISTS (SELECT 1"
                      " FROM json_each(coalesce(jobs.metadata, '{}')) AS m"
                      " WHERE m.key = f.key AND m.type = f.type AND m.value IS f.value)))", "created_at")};
    char *filter = metadata_filter != NULL && metadata_filter->child != NULL ? gd_json_print(metadata_filter) : NULL;
    const struct gd_page_keys keys = {.owner = project, .filter = filter};
    bool ok = gd_read_page(db, &sql, &keys, page, &job_kind, (void **)out, count, has_more, err);
    gd_free(filter);
    return ok;
}

bool gd_db_job_active(struct gd_db *db, struct gd_job_record **out, int *count, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT " COLUMNS " FROM main.jobs WHERE status IN ('validating_files', 'queued', "
        "'running', 'pausing', 'paused') ORDER BY created_at, seq");
    return gd_read_records(&query, &job_kind, 0, (void **)out, count, NULL, err);
}
