/* What a job's turn writes. One closure, one savepoint: see job_change.h. */
#include "server/job_change.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

void gd_job_record_copy(struct gd_job_record *out, const struct gd_job_record *record)
{
    *out = *record;
    char **texts[] = {&out->id, &out->project, &out->model, &out->training_file, &out->validation_file, &out->suffix,
                      &out->body, &out->hyperparameters, &out->metadata, &out->integrations, &out->error,
                      &out->fine_tuned_model, &out->result_files, &out->idempotency_key, &out->memory, &out->start_folder,
                      &out->eval_id, &out->name};
    for (size_t i = 0; i < GD_COUNT(texts); i++)
        *texts[i] = gd_strdup(*texts[i]);
}

/* ---- names ---- */

/* The first `count` hex digits of SHA-256(what:job_id:step). */
static void derive(char *out, size_t count, const char *what, const char *job_id, int64_t step)
{
    char *text = gd_format("%s:%s:%" PRId64, what, job_id, step);
    char digest[65];
    gd_hash_sha256(text, strlen(text), digest);
    memcpy(out, digest, count);
    out[count] = '\0';
    gd_free(text);
}

char *gd_job_model_name(const struct gd_job_record *record, const char *organization_id)
{
    char unique[9];
    derive(unique, 8, "model", record->id, 0);
    const char *organization = strncmp(organization_id, "org-", 4) == 0 ? organization_id + 4 : organization_id;
    return gd_format("ft:%s:%s:%s:%s", record->model, organization, record->suffix != NULL ? record->suffix : "", unique);
}

char *gd_job_checkpoint_name(const struct gd_job_record *record, const char *organization_id, int64_t step)
{
    char *model = gd_job_model_name(record, organization_id);
    char *name = gd_format("%s:ckpt-step-%" PRId64, model, step);
    gd_free(model);
    return name;
}

char *gd_job_checkpoint_id(const char *job_id, int64_t step)
{
    char unique[25];
    derive(unique, 24, "checkpoint", job_id, step);
    return gd_format("ftckpt_%s", unique);
}

char *gd_job_results_file_id(const char *job_id)
{
    char unique[25];
    derive(unique, 24, "results", job_id, 0);
    return gd_format("file-%s", unique);
}

/* ---- filling ---- */

void gd_job_change_init(struct gd_job_change *change, const char *data_dir, const struct gd_job_record *record)
{
    *change = (struct gd_job_change){.data_dir = gd_strdup(data_dir)};
    gd_job_record_copy(&change->record, record);
}

void gd_step_metrics_release(struct gd_step_metrics *step)
{
    for (int i = 0; i < step->point_count; i++)
        gd_free((char *)step->points[i].name);
    gd_free(step->points);
}

void gd_job_change_release(struct gd_job_change *change)
{
    gd_free(change->data_dir);
    gd_job_record_release(&change->record);
    for (int i = 0; i < change->step_count; i++)
        gd_step_metrics_release(&change->steps[i]);
    gd_free(change->steps);
    for (int i = 0; i < change->event_count; i++)
        gd_event_record_release(&change->events[i]);
    gd_free(change->events);
    if (change->has_checkpoint)
        gd_checkpoint_record_release(&change->checkpoint);
    for (int i = 0; i < change->item_count; i++)
        gd_eval_item_record_release(&change->items[i]);
    gd_free(change->items);
    cJSON_Delete(change->done);
    gd_free(change->adapter_folder);
    *change = (struct gd_job_change){0};
}

/* Room for one more; amortised doubling. */
static void *grow(void *items, int count, int *capacity, size_t item_bytes)
{
    if (count < *capacity)
        return items;
    *capacity = *capacity > 0 ? *capacity * 2 : 4;
    return gd_realloc_array(items, (size_t)*capacity, item_bytes);
}

static void add_event(struct gd_job_change *change, const char *level, char *message_taken, const char *type, char *data_taken)
{
    char unique[25];
    gd_random_id(unique, 24);
    change->events = grow(change->events, change->event_count, &change->event_capacity, sizeof *change->events);
    change->events[change->event_count++] = (struct gd_event_record){
        .id = gd_format("ftevent-%s", unique),
        .job_id = gd_strdup(change->record.id),
        .level = gd_strdup(level),
        .message = message_taken,
        .type = gd_strdup(type),
        .data = data_taken,
        .created_at = gd_time_unix(),
    };
}

void gd_job_change_message(struct gd_job_change *change, const char *level, const char *format, ...)
{
    char *message = NULL;
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(&message, format, arguments);
    va_end(arguments);
    add_event(change, level, gd_strdup(length >= 0 ? message : format), "message", NULL);
    if (length >= 0)
        free(message);
}

void gd_job_change_metrics_event(struct gd_job_change *change, const char *message, cJSON *data_taken)
{
    add_event(change, "info", gd_strdup(message), "metrics", gd_json_print(data_taken));
    cJSON_Delete(data_taken);
}

void gd_job_change_add_step(struct gd_job_change *change, const struct gd_step_metrics *step_taken)
{
    change->steps = grow(change->steps, change->step_count, &change->step_capacity, sizeof *change->steps);
    change->steps[change->step_count++] = *step_taken;
}

/* ---- the results file ---- */

/* The columns of OpenAI's results file, and the series that fill them. The others stand where their series exists. */
static const struct {
    const char *column, *series;
    bool always;
} result_columns[] = {
    {"train_loss", "train_loss", true},
    {"train_accuracy", "train_mean_token_accuracy", true},
    {"valid_loss", "valid_loss", true},
    {"valid_mean_token_accuracy", "valid_mean_token_accuracy", true},
    {"rewards_chosen", "rewards_chosen", false},
    {"rewards_rejected", "rewards_rejected", false},
    {"reward_margin", "reward_margin", false},
    {"reward_accuracy", "reward_accuracy", false},
    {"kl", "kl", false},
    {"valid_reward_margin", "valid_reward_margin", false},
    {"valid_reward_accuracy", "valid_reward_accuracy", false},
    {"valid_accuracy", "valid_accuracy", false},
    {"valid_macro_f1", "valid_macro_f1", false},
};
#define COLUMN_COUNT GD_COUNT(result_columns)

struct result_row {
    int64_t step;
    char cells[COLUMN_COUNT][32];
};

static int compare_rows(const void *a, const void *b)
{
    const struct result_row *left = a, *right = b;
    return (left->step > right->step) - (left->step < right->step);
}

struct result_table {
    struct result_row *rows;
    int count, capacity;
    bool used[COLUMN_COUNT];
};

/* Rows are in series order: the step wanted is the next one, or found by bisection once the first series is in. */
static struct result_row *row_of(struct result_table *table, int64_t step, int *hint)
{
    for (; *hint < table->count && table->rows[*hint].step < step; (*hint)++)
        ;
    if (*hint < table->count && table->rows[*hint].step == step)
        return &table->rows[*hint];
    table->rows = grow(table->rows, table->count, &table->capacity, sizeof *table->rows);
    struct result_row *row = &table->rows[table->count++];
    *row = (struct result_row){.step = step};
    return row;
}

/* One line "step,name,value,wall" of the stored points into its cell. */
static void take_line(struct result_table *table, const char *line, size_t column, int *hint)
{
    const char *name = strchr(line, ',');
    const char *value = name != NULL ? strchr(name + 1, ',') : NULL;
    const char *end = value != NULL ? strchr(value + 1, ',') : NULL;
    if (end == NULL || (size_t)(value - name - 1) != strlen(result_columns[column].series) ||
        strncmp(name + 1, result_columns[column].series, (size_t)(value - name - 1)) != 0)
        return;
    struct result_row *row = row_of(table, strtoll(line, NULL, 10), hint);
    table->used[column] = true;
    snprintf(row->cells[column], sizeof row->cells[column], "%.*s", (int)(end - value - 1), value + 1);
}

static void take_column(struct result_table *table, const char *csv, size_t column)
{
    int hint = 0;
    for (const char *line = csv; line != NULL && *line != '\0';) {
        take_line(table, line, column, &hint);
        const char *next = strchr(line, '\n');
        line = next != NULL ? next + 1 : NULL;
    }
    qsort(table->rows, (size_t)table->count, sizeof *table->rows, compare_rows);
}

static void print_results(struct gd_buf *out, const char *csv)
{
    struct result_table table = {0};
    gd_buf_append_text(out, "step");
    for (size_t i = 0; i < COLUMN_COUNT; i++) {
        take_column(&table, csv, i);
        if (result_columns[i].always || table.used[i])
            gd_buf_printf(out, ",%s", result_columns[i].column);
    }
    gd_buf_append_char(out, '\n');
    for (int i = 0; i < table.count; i++) {
        gd_buf_printf(out, "%" PRId64, table.rows[i].step);
        for (size_t c = 0; c < COLUMN_COUNT; c++)
            if (result_columns[c].always || table.used[c])
                gd_buf_printf(out, ",%s", table.rows[i].cells[c]);
        gd_buf_append_char(out, '\n');
    }
    gd_free(table.rows);
}

static bool insert_results_row(struct gd_db *db, const struct gd_job_record *record, const char *id,
                               const struct gd_buf *csv, struct gd_error *err)
{
    char digest[33];
    gd_hash_xxh3(csv->data, csv->length, digest);
    struct gd_file_record file = {
        .id = (char *)id,
        .project = record->project,
        .filename = "step_metrics.csv",
        .purpose = "fine-tune-results",
        .status = "processed",
        .xxh3 = digest,
        .bytes = (int64_t)csv->length,
        .created_at = gd_time_unix(),
    };
    return gd_db_file_insert(db, &file, err);
}

/* Bytes first, row after. A crash in between leaves bytes that the next try overwrites. */
static bool write_results(struct gd_db *db, const struct gd_job_change *change, struct gd_error *err)
{
    struct gd_buf points = {0}, csv = {0};
    char *id = gd_job_results_file_id(change->record.id);
    char *folder = gd_format("%s/files", change->data_dir);
    char *path = gd_format("%s/%s", folder, id);
    bool ok = gd_db_metrics_csv(db, change->record.id, &points, err);
    if (ok) {
        print_results(&csv, points.data != NULL ? points.data : "");
        ok = gd_mkdirs(folder, err) && gd_file_write_durable(path, csv.data, csv.length, err) &&
             insert_results_row(db, &change->record, id, &csv, err);
    }
    gd_buf_release(&points);
    gd_buf_release(&csv);
    gd_free(path);
    gd_free(folder);
    gd_free(id);
    return ok;
}

/* ---- applying ---- */

static bool publish(struct gd_db *db, const struct gd_job_record *record, const char *name, const char *folder,
                    bool is_checkpoint, struct gd_error *err)
{
    struct gd_error ignored = {0};
    cJSON *body = gd_json_parse(record->body, strlen(record->body), SIZE_MAX, &ignored);
    const cJSON *init_from = gd_json_find(body, "init_from");
    struct gd_model_record model = {
        .id = (char *)name,
        .project = record->project,
        .job_id = record->id,
        .base_model = record->model,
        .folder = (char *)folder,
        .parent = cJSON_IsString(init_from) ? init_from->valuestring : NULL,
        .is_checkpoint = is_checkpoint,
        .created_at = gd_time_unix(),
    };
    bool ok = gd_db_model_publish(db, &model, err);
    cJSON_Delete(body);
    return ok;
}

static bool folder_is_there(const char *data_dir, const char *folder)
{
    char *path = gd_format("%s/%s", data_dir, folder);
    struct stat facts;
    bool there = stat(path, &facts) == 0 && S_ISDIR(facts.st_mode);
    gd_free(path);
    return there;
}

/* The trainer keeps the newest few checkpoints: a model whose folder went is no model any more. */
static bool unpublish_lost_checkpoints(struct gd_db *db, const struct gd_job_change *change, struct gd_error *err)
{
    struct gd_model_record *models = NULL;
    int count = 0;
    const struct gd_job_record *record = &change->record;
    bool ok = gd_db_model_list(db, record->project, &models, &count, err);
    for (int i = 0; ok && i < count; i++)
        if (models[i].is_checkpoint && models[i].job_id != NULL && strcmp(models[i].job_id, record->id) == 0 &&
            !folder_is_there(change->data_dir, models[i].folder))
            ok = gd_db_model_delete(db, record->project, models[i].id, err);
    for (int i = 0; i < count; i++)
        gd_model_record_release(&models[i]);
    gd_free(models);
    return ok;
}

/* A change may be applied again: what was read then does not count any more. */
static bool read_done(struct gd_db *db, struct gd_job_change *change, struct gd_error *err)
{
    cJSON_Delete(change->done);
    change->done = NULL;
    return gd_db_eval_done(db, change->record.id, &change->done, &change->done_count, err);
}

bool gd_job_change_apply(struct gd_db *db, struct gd_job_change *change, struct gd_error *err)
{
    const struct gd_job_record *record = &change->record;
    bool ok = true;
    if (change->insert)
        ok = gd_db_job_insert(db, record, err);
    else if (change->update)
        ok = gd_db_job_update(db, record, err);
    if (ok && change->cut_metrics)
        ok = gd_db_metrics_cut(db, record->id, change->cut_step, err);
    for (int i = 0; ok && i < change->step_count; i++)
        ok = gd_db_metrics_put(db, record->id, change->steps[i].wall, change->steps[i].points,
                               change->steps[i].point_count, err);
    for (int i = 0; ok && i < change->event_count; i++)
        ok = gd_db_event_append(db, &change->events[i], err);
    for (int i = 0; ok && i < change->item_count; i++) {
        bool is_new;
        ok = gd_db_eval_item_put(db, &change->items[i], &is_new, err);
    }
    if (ok && change->read_done)
        ok = read_done(db, change, err);
    if (ok && change->has_checkpoint)
        ok = gd_db_checkpoint_put(db, &change->checkpoint, err) &&
             publish(db, record, change->checkpoint.model, change->checkpoint.folder, true, err) &&
             unpublish_lost_checkpoints(db, change, err);
    if (ok && change->adapter_folder != NULL)
        ok = write_results(db, change, err) &&
             publish(db, record, record->fine_tuned_model, change->adapter_folder, false, err);
    return ok;
}
