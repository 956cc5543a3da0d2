/* Evals, and what their runs found: items with their scores. A run itself is a job (jobs.c). */
#include "engine/base/alloc.h"
#include "storage/db_internal.h"

#include <string.h>

#define COLUMNS "id, project, name, config, criteria, metadata, created_at, updated_at"

void gd_eval_record_release(struct gd_eval_record *record)
{
    gd_free(record->id);
    gd_free(record->project);
    gd_free(record->name);
    gd_free(record->config);
    gd_free(record->criteria);
    gd_free(record->metadata);
    *record = (struct gd_eval_record){0};
}

static void read_eval(struct gd_query *query, void *out)
{
    struct gd_eval_record *record = out;
    char **const texts[] = {&record->id, &record->project, &record->name, &record->config, &record->criteria,
                            &record->metadata};
    for (size_t i = 0; i < GD_COUNT(texts); i++)
        *texts[i] = gd_take_text(query);
    record->created_at = gd_take_int(query);
    record->updated_at = gd_take_int(query);
}

static void release_eval(void *record)
{
    gd_eval_record_release(record);
}

static const struct gd_record_kind eval_kind = {sizeof(struct gd_eval_record), read_eval, release_eval};

bool gd_db_eval_insert(struct gd_db *db, const struct gd_eval_record *record, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db, "INSERT INTO main.evals (" COLUMNS ") VALUES (?,?,?,?,?,?,?,?)");
    const char *const texts[] = {record->id, record->project, record->name, record->config, record->criteria,
                                 record->metadata};
    for (size_t i = 0; i < GD_COUNT(texts); i++)
        gd_put_text(&query, texts[i]);
    gd_put_int(&query, record->created_at);
    gd_put_int(&query, record->updated_at);
    return gd_query_run(&query, NULL, err);
}

static bool fail_unknown(const char *id, struct gd_error *err)
{
    return gd_fail_param(err, GD_NOT_FOUND, "eval_id", "no eval '%.100s'", id);
}

bool gd_db_eval_get(struct gd_db *db, const char *project, const char *id, struct gd_eval_record *out,
                    struct gd_error *err)
{
    struct gd_query query = gd_query_start(db, "SELECT " COLUMNS " FROM main.evals WHERE id = ?1 AND project = ?2");
    gd_put_text(&query, id);
    gd_put_text(&query, project);
    bool found;
    return gd_read_record(&query, &eval_kind, out, &found, err) && (found || fail_unknown(id, err));
}

bool gd_db_eval_update(struct gd_db *db, const struct gd_eval_record *record, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "UPDATE main.evals SET name = ?, metadata = ?, updated_at = ? WHERE id = ? AND project = ?");
    gd_put_text(&query, record->name);
    gd_put_text(&query, record->metadata);
    gd_put_int(&query, record->updated_at);
    gd_put_text(&query, record->id);
    gd_put_text(&query, record->project);
    int changed;
    return gd_query_run(&query, &changed, err) && (changed > 0 || fail_unknown(record->id, err));
}

bool gd_db_eval_list(struct gd_db *db, const char *project, bool by_update, const struct gd_page *page,
                     struct gd_eval_record **out, int *count, bool *has_more, struct gd_error *err)
{
#define LIST(column)                                                                      \
    {"SELECT " column ", seq FROM main.evals WHERE id = ?1 AND project = ?2",             \
     GD_PAGE_LISTS("SELECT " COLUMNS " FROM main.evals WHERE project = ?1", column)}
    static const struct gd_page_sql sql[] = {LIST("created_at"), LIST("updated_at")};
#undef LIST
    const struct gd_page_keys keys = {.owner = project};
    return gd_read_page(db, &sql[by_update], &keys, page, &eval_kind, (void **)out, count, has_more, err);
}

/* ---- deleting ---- */

static bool delete_of_run(struct gd_db *db, const char *sql_literal, const char *run_id, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db, sql_literal);
    gd_put_text(&query, run_id);
    return gd_query_run(&query, NULL, err);
}

static bool delete_run(struct gd_db *db, const char *run_id, struct gd_error *err)
{
    return delete_of_run(db, "DELETE FROM main.eval_usage WHERE run_id = ?1", run_id, err) &&
           delete_of_run(db, "DELETE FROM main.eval_scores WHERE run_id = ?1", run_id, err) &&
           delete_of_run(db, "DELETE FROM main.eval_items WHERE run_id = ?1", run_id, err) &&
           delete_of_run(db, "DELETE FROM main.events WHERE job_id = ?1", run_id, err) &&
           delete_of_run(db, "DELETE FROM main.jobs WHERE id = ?1", run_id, err);
}

static bool check_over(const struct gd_job_record *run, struct gd_error *err)
{
    return gd_job_status_terminal(run->status) ||
           gd_fail(err, GD_CONFLICT, "run %s is not over: cancel it first", run->id);
}

bool gd_db_run_delete(struct gd_db *db, const char *project, const char *eval_id, const char *id, struct gd_error *err)
{
    struct gd_job_record run;
    if (!gd_db_run_get(db, project, eval_id, id, &run, err))
        return false;
    bool ok = check_over(&run, err) && delete_run(db, id, err);
    gd_job_record_release(&run);
    return ok;
}

bool gd_db_eval_delete(struct gd_db *db, const char *project, const char *id, struct gd_error *err)
{
    struct gd_eval_record record;
    struct gd_job_record *runs = NULL;
    int count = 0;
    bool more = false;
    const struct gd_page all = {.limit = INT32_MAX};
    if (!gd_db_eval_get(db, project, id, &record, err))
        return false;
    gd_eval_record_release(&record);
    bool ok = gd_db_run_list(db, project, id, NULL, 0, &all, &runs, &count, &more, err);
    for (int i = 0; i < count; i++) {
        ok = ok && check_over(&runs[i], err) && delete_run(db, runs[i].id, err);
        gd_job_record_release(&runs[i]);
    }
    gd_free(runs);
    return ok && delete_of_run(db, "DELETE FROM main.evals WHERE id = ?1", id, err);
}

/* ---- items ---- */

#define ITEM_COLUMNS "id, run_id, item_index, status, digest, body, created_at"

void gd_eval_item_record_release(struct gd_eval_item_record *record)
{
    gd_free(record->id);
    gd_free(record->run_id);
    gd_free(record->status);
    gd_free(record->digest);
    gd_free(record->body);
    for (int i = 0; i < record->score_count; i++) {
        gd_free(record->scores[i].name);
        gd_free(record->scores[i].type);
        gd_free(record->scores[i].aggregation);
        gd_free(record->scores[i].numbers);
    }
    gd_free(record->scores);
    for (int i = 0; i < record->usage_count; i++)
        gd_free(record->usage[i].model);
    gd_free(record->usage);
    *record = (struct gd_eval_item_record){0};
}

static void read_item(struct gd_query *query, void *out)
{
    struct gd_eval_item_record *record = out;
    record->id = gd_take_text(query);
    record->run_id = gd_take_text(query);
    record->index = gd_take_int(query);
    record->status = gd_take_text(query);
    record->digest = gd_take_text(query);
    record->body = gd_take_text(query);
    record->created_at = gd_take_int(query);
}

static void release_item(void *record)
{
    gd_eval_item_record_release(record);
}

static const struct gd_record_kind item_kind = {sizeof(struct gd_eval_item_record), read_item, release_item};

static bool put_score(struct gd_db *db, const struct gd_eval_item_record *item, const struct gd_eval_score *score,
                      struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "INSERT OR IGNORE INTO main.eval_scores (run_id, item_index, name, type, score, passed, aggregation, numbers)"
        " VALUES (?,?,?,?,?,?,?,?)");
    gd_put_text(&query, item->run_id);
    gd_put_int(&query, item->index);
    gd_put_text(&query, score->name);
    gd_put_text(&query, score->type);
    if (score->failed)
        gd_put_null(&query);
    else
        gd_put_real(&query, score->score);
    gd_put_int(&query, score->passed);
    gd_put_text(&query, score->aggregation);
    gd_put_text(&query, score->numbers);
    return gd_query_run(&query, NULL, err);
}

static bool put_usage(struct gd_db *db, const struct gd_eval_item_record *item, const struct gd_eval_usage *usage,
                      struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "INSERT OR IGNORE INTO main.eval_usage (run_id, item_index, model, invocations, prompt_tokens, "
        "completion_tokens, cached_tokens) VALUES (?,?,?,?,?,?,?)");
    gd_put_text(&query, item->run_id);
    gd_put_int(&query, item->index);
    gd_put_text(&query, usage->model);
    const int64_t numbers[] = {usage->invocations, usage->prompt_tokens, usage->completion_tokens, usage->cached_tokens};
    for (size_t i = 0; i < GD_COUNT(numbers); i++)
        gd_put_int(&query, numbers[i]);
    return gd_query_run(&query, NULL, err);
}

bool gd_db_eval_item_put(struct gd_db *db, const struct gd_eval_item_record *record, bool *is_new, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db, "INSERT OR IGNORE INTO main.eval_items (" ITEM_COLUMNS ") VALUES "
                                               "(?,?,?,?,?,?,?)");
    gd_put_text(&query, record->id);
    gd_put_text(&query, record->run_id);
    gd_put_int(&query, record->index);
    gd_put_text(&query, record->status);
    gd_put_text(&query, record->digest);
    gd_put_text(&query, record->body);
    gd_put_int(&query, record->created_at);
    int changed;
    bool ok = gd_query_run(&query, &changed, err);
    *is_new = ok && changed > 0;
    for (int i = 0; ok && *is_new && i < record->score_count; i++)
        ok = put_score(db, record, &record->scores[i], err);
    for (int i = 0; ok && *is_new && i < record->usage_count; i++)
        ok = put_usage(db, record, &record->usage[i], err);
    return ok;
}

bool gd_db_eval_item_get(struct gd_db *db, const char *run_id, const char *id, struct gd_eval_item_record *out,
                         struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT " ITEM_COLUMNS " FROM main.eval_items WHERE id = ?1 AND run_id = ?2");
    gd_put_text(&query, id);
    gd_put_text(&query, run_id);
    bool found;
    return gd_read_record(&query, &item_kind, out, &found, err) &&
           (found || gd_fail_param(err, GD_NOT_FOUND, "output_item_id", "no output item '%.100s'", id));
}

bool gd_db_eval_item_list(struct gd_db *db, const char *run_id, const char *status, const struct gd_page *page,
                          struct gd_eval_item_record **out, int *count, bool *has_more, struct gd_error *err)
{
    static const struct gd_page_sql sql = {
        "SELECT created_at, seq FROM main.eval_items WHERE id = ?1 AND run_id = ?2",
        GD_PAGE_LISTS("SELECT " ITEM_COLUMNS " FROM main.eval_items WHERE run_id = ?1 AND (?3 IS NULL OR status = ?3)", "created_at")};
    const struct gd_page_keys keys = {.owner = run_id, .filter = status};
    return gd_read_page(db, &sql, &keys, page, &item_kind, (void **)out, count, has_more, err);
}

bool gd_db_eval_done(struct gd_db *db, const char *run_id, cJSON **ranges, int64_t *count, struct gd_error *err)
{
    struct gd_query query = gd_query_start(db,
        "SELECT item_index FROM main.eval_items WHERE run_id = ?1 ORDER BY item_index");
    gd_put_text(&query, run_id);
    cJSON *list = cJSON_CreateArray(), *last = NULL;
    int64_t previous = -2;
    *count = 0;
    for (; gd_query_next(&query); (*count)++) {
        int64_t index = gd_take_int(&query);
        if (index == previous + 1) {
            cJSON_SetNumberHelper(last, (double)index);
        } else {
            cJSON *range = cJSON_CreateArray();
            last = cJSON_CreateNumber((double)index);
            cJSON_AddItemToArray(range, cJSON_CreateNumber((double)index));
            cJSON_AddItemToArray(range, last);
            cJSON_AddItemToArray(list, range);
        }
        previous = index;
    }
    bool ok = gd_query_end(&query, err);
    if (!ok) {
        cJSON_Delete(list);
        list = NULL;
    }
    *ranges = list;
    return ok;
}
