/* What is shown of the jobs: counts, progress. */
#include "server/scheduler_internal.h"

#include <math.h>
#include <string.h>

cJSON *gd_scheduler_describe(const struct gd_scheduler *scheduler)
{
    int64_t counts[GD_JOB_STATUS_COUNT] = {0};
    cJSON *out = cJSON_CreateObject();
    cJSON *active = cJSON_AddObjectToObject(out, "counts");
    cJSON *ended = cJSON_AddObjectToObject(out, "ended");
    cJSON *running = cJSON_AddArrayToObject(out, "running");
    for (const struct gd_job *job = scheduler->first; job != NULL; job = job->next) {
        counts[job->record.status]++;
        if (job->record.status == GD_JOB_RUNNING || job->record.status == GD_JOB_PAUSING)
            cJSON_AddItemToArray(running, cJSON_CreateString(job->record.id));
    }
    for (int i = 0; i < GD_JOB_STATUS_COUNT; i++)
        if (gd_job_status_terminal(i))
            cJSON_AddNumberToObject(ended, gd_job_status_name(i), (double)scheduler->ended[i]);
        else
            cJSON_AddNumberToObject(active, gd_job_status_name(i), (double)counts[i]);
    return out;
}

static void add_known(cJSON *out, const char *name, bool known, double value)
{
    cJSON_AddItemToObject(out, name, known ? cJSON_CreateNumber(value) : cJSON_CreateNull());
}

static double epochs_of(const struct gd_job_record *record)
{
    struct gd_error err = {0};
    const char *text = record->hyperparameters != NULL ? record->hyperparameters : "{}";
    cJSON *hyperparameters = gd_json_parse(text, strlen(text), SIZE_MAX, &err);
    const cJSON *epochs = hyperparameters != NULL ? gd_json_find(hyperparameters, "n_epochs") : NULL;
    double value = cJSON_IsNumber(epochs) ? epochs->valuedouble : 0;
    cJSON_Delete(hyperparameters);
    return value;
}

cJSON *gd_scheduler_progress(const struct gd_scheduler *scheduler, const struct gd_job_record *record)
{
    const struct gd_job *job = gd_jobs_find(scheduler, record->id);
    bool live = job != NULL && job->worker >= 0 && job->live_total_steps > 0 && job->rate_count > 0;
    int64_t step = live ? job->live_step : record->step, total = live ? job->live_total_steps : record->total_steps;
    int64_t trained = live ? job->live_trained_tokens : record->trained_tokens;
    double epochs = total > 0 ? epochs_of(record) : 0;
    cJSON *out = cJSON_CreateObject();
    cJSON_AddNumberToObject(out, "step", (double)step);
    add_known(out, "total_steps", total > 0, (double)total);
    add_known(out, "epoch", epochs > 0, total > 0 ? epochs * (double)step / (double)total : 0);
    cJSON_AddNumberToObject(out, "trained_tokens", (double)trained);
    double rate = live ? gd_job_tokens_per_second(job) : 0;
    add_known(out, "train_loss", live && isfinite(job->live_train_loss), live ? job->live_train_loss : 0);
    add_known(out, "valid_loss", live && isfinite(job->live_valid_loss), live ? job->live_valid_loss : 0);
    add_known(out, "tokens_per_second", rate > 0, rate);
    add_known(out, "seconds_remaining", live, live ? gd_job_seconds_remaining(job) : 0);
    return out;
}
