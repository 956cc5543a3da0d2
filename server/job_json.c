/* Jobs, events and checkpoints as JSON. Stored texts were written by us: one that does not parse shows as null. */
#include "server/job_json.h"

#include "engine/base/alloc.h"
#include "server/scheduler.h"
#include <string.h>
#include <sys/stat.h>

static void move_member(cJSON *out, cJSON *body, const char *name)
{
    cJSON *value = cJSON_IsObject(body) ? cJSON_DetachItemFromObjectCaseSensitive(body, name) : NULL;
    cJSON_AddItemToObject(out, name, value != NULL ? value : cJSON_CreateNull());
}

/* The method as asked, with the hyperparameters as resolved so far: what ran is what is shown. */
static cJSON *method_json(const char *body_text, const cJSON *hyperparameters)
{
    cJSON *body = gd_json_stored(body_text), *method = cJSON_DetachItemFromObjectCaseSensitive(body, "method");
    cJSON_Delete(body);
    const cJSON *type = gd_json_find(method, "type");
    cJSON *options = cJSON_IsString(type) ? gd_json_find(method, type->valuestring) : NULL;
    if (options == NULL) {
        cJSON_Delete(method);
        return cJSON_CreateNull();
    }
    cJSON_DeleteItemFromObjectCaseSensitive(options, "hyperparameters");
    cJSON_AddItemToObject(options, "hyperparameters", cJSON_Duplicate(hyperparameters, true));
    return method;
}

static void add_standard_fields(cJSON *out, const struct gd_app *app, const struct gd_job_record *record)
{
    bool over = gd_job_status_terminal(record->status);
    cJSON *hyperparameters = gd_json_stored(record->hyperparameters);
    if (!cJSON_IsObject(hyperparameters)) {
        cJSON_Delete(hyperparameters);
        hyperparameters = cJSON_CreateObject();
    }
    cJSON *result_files = gd_json_stored(record->result_files);
    if (!cJSON_IsArray(result_files)) {
        cJSON_Delete(result_files);
        result_files = cJSON_CreateArray();
    }
    gd_json_add_text(out, "id", record->id);
    gd_json_add_text(out, "object", "fine_tuning.job");
    cJSON_AddNumberToObject(out, "created_at", (double)record->created_at);
    gd_json_add_nonzero(out, "finished_at", record->finished_at);
    gd_json_add_nonzero(out, "estimated_finish", record->estimated_finish);
    cJSON *body = gd_json_stored(record->body);
    const cJSON *init_from = gd_json_find(body, "init_from");
    gd_json_add_text(out, "model", cJSON_IsString(init_from) ? init_from->valuestring : record->model);
    gd_json_add_text(out, "base_model", record->model);
    cJSON_Delete(body);
    gd_json_add_text(out, "fine_tuned_model", record->fine_tuned_model);
    gd_json_add_text(out, "organization_id", app->organization_id);
    gd_json_add_text(out, "status", gd_job_status_name(record->status));
    cJSON_AddItemToObject(out, "trained_tokens", over ? cJSON_CreateNumber((double)record->trained_tokens) : cJSON_CreateNull());
    gd_json_add_text(out, "training_file", record->training_file);
    gd_json_add_text(out, "validation_file", record->validation_file);
    cJSON_AddItemToObject(out, "result_files", result_files);
    cJSON_AddNumberToObject(out, "seed", (double)record->seed);
    cJSON_AddItemToObject(out, "method", method_json(record->body, hyperparameters));
    cJSON_AddItemToObject(out, "hyperparameters", hyperparameters);
    cJSON_AddItemToObject(out, "metadata", gd_json_stored(record->metadata));
    cJSON_AddItemToObject(out, "integrations", gd_json_stored(record->integrations));
    cJSON_AddItemToObject(out, "error", gd_json_stored(record->error));
    gd_json_add_text(out, "user_provided_suffix", record->suffix);
}

cJSON *gd_job_json(const struct gd_app *app, const struct gd_job_record *record)
{
    cJSON *out = cJSON_CreateObject();
    add_standard_fields(out, app, record);
    cJSON *body = gd_json_stored(record->body);
    move_member(out, body, "adapter");
    move_member(out, body, "data");
    move_member(out, body, "precision");
    move_member(out, body, "quantization");
    move_member(out, body, "evaluation");
    cJSON *eval;
    cJSON_ArrayForEach(eval, gd_json_find(gd_json_find(out, "evaluation"), "evals"))
        cJSON_DeleteItemFromObjectCaseSensitive(eval, "models"); /* where judges are is the server's own business */
    cJSON_Delete(body);
    const cJSON *resolved = gd_json_find(gd_json_find(out, "hyperparameters"), "precision");
    if (resolved != NULL)
        cJSON_ReplaceItemInObjectCaseSensitive(out, "precision", cJSON_Duplicate(resolved, true));
    gd_json_add_nonzero(out, "started_at", record->started_at);
    cJSON_AddNumberToObject(out, "attempt", record->attempt);
    int position = gd_scheduler_queue_position(app->scheduler, record->id);
    gd_json_add_nonzero(out, "queue_position", position);
    cJSON_AddItemToObject(out, "memory", gd_json_stored(record->memory));
    cJSON_AddItemToObject(out, "progress", gd_scheduler_progress(app->scheduler, record));
    return out;
}

cJSON *gd_event_json(const struct gd_event_record *record, bool of_run)
{
    cJSON *out = cJSON_CreateObject();
    gd_json_add_text(out, "object", of_run ? "eval.run.event" : "fine_tuning.job.event");
    gd_json_add_text(out, "id", record->id);
    cJSON_AddNumberToObject(out, "created_at", (double)record->created_at);
    gd_json_add_text(out, "level", record->level);
    gd_json_add_text(out, "message", record->message);
    cJSON_AddItemToObject(out, "data", gd_json_stored(record->data));
    gd_json_add_text(out, "type", record->type);
    cJSON_AddNumberToObject(out, "sequence", (double)record->sequence);
    return out;
}

cJSON *gd_checkpoint_json(const struct gd_app *app, const struct gd_checkpoint_record *record)
{
    cJSON *out = cJSON_CreateObject();
    cJSON *metrics = gd_json_stored(record->metrics);
    if (!cJSON_IsObject(metrics)) {
        cJSON_Delete(metrics);
        metrics = cJSON_CreateObject();
    }
    if (gd_json_find(metrics, "step") == NULL)
        cJSON_AddNumberToObject(metrics, "step", (double)record->step);
    char *path = gd_format("%s/%s", app->config.data_dir, record->folder);
    struct stat facts;
    bool available = stat(record->folder[0] == '/' ? record->folder : path, &facts) == 0;
    gd_free(path);
    gd_json_add_text(out, "object", "fine_tuning.job.checkpoint");
    gd_json_add_text(out, "id", record->id);
    cJSON_AddNumberToObject(out, "created_at", (double)record->created_at);
    gd_json_add_text(out, "fine_tuned_model_checkpoint", record->model);
    gd_json_add_text(out, "fine_tuning_job_id", record->job_id);
    cJSON_AddNumberToObject(out, "step_number", (double)record->step);
    cJSON_AddItemToObject(out, "metrics", metrics);
    cJSON_AddBoolToObject(out, "available", available); /* older ones give way: jobs.keep_checkpoints */
    return out;
}

static const struct {
    const char *name, *unit, *better, *definition;
} explained[] = {
    {"train_loss", "nat/token", "lower", "weighted mean over the trained tokens of the step; over preferences the mean over its pairs"},
    {"train_mean_token_accuracy", "share", "higher", "share of the step's trained tokens that were the likeliest"},
    {"valid_loss", "nat/token", "lower", "weighted mean over the trained tokens of the validation rows looked at, or over their pairs"},
    {"valid_mean_token_accuracy", "share", "higher", "share of their trained tokens that were the likeliest"},
    {"full_valid_loss", "nat/token", "lower", "the same over the whole validation file"},
    {"full_valid_mean_token_accuracy", "share", "higher", "the same over the whole validation file"},
    {"train_accuracy", "share", "higher", "of a classification job: share of the step's rows whose labels were all right"},
    {"valid_accuracy", "share", "higher", "the same over the validation file"},
    {"valid_macro_f1", "1", "higher", "mean over the labels of the F1 of the validation file's rows: 2 x right / (said + so)"},
    {"full_valid_accuracy", "share", "higher", "valid_accuracy after the last step"},
    {"full_valid_macro_f1", "1", "higher", "valid_macro_f1 after the last step"},
    {"rewards_chosen", "1", "higher",
     "mean over the step's pairs of the chosen answer's reward: beta times its log-probability over the reference's"},
    {"rewards_rejected", "1", "lower", "the same of the rejected answer"},
    {"reward_margin", "1", "higher", "mean of the chosen answer's reward minus the rejected one's"},
    {"reward_accuracy", "share", "higher", "share of pairs whose chosen answer has the higher reward; a tie counts as wrong"},
    {"logps_chosen", "nat", "higher", "mean log-probability of the chosen answer, summed over its tokens"},
    {"logps_rejected", "nat", "lower", "the same of the rejected answer"},
    {"kl", "nat", "lower",
     "mean log-probability of the answers over the reference's, on the file's answers; with kto that of mismatched ones, at least 0"},
    {"reward_shift", "1", NULL, "running mean of the rewards of all rows seen in training, by which bco shifts them"},
    {"rows_desirable", "row", NULL, "labelled rows of the step whose answer is desirable"},
    {"rows_undesirable", "row", NULL, "labelled rows of the step whose answer is not"},
    {"valid_kl", "nat", "lower", "kl over the validation file"},
    {"valid_reward_shift", "1", NULL, "reward_shift as it was used over the validation file"},
    {"valid_rows_desirable", "row", NULL, "rows_desirable of the validation file"},
    {"valid_rows_undesirable", "row", NULL, "rows_undesirable of the validation file"},
    {"valid_rewards_chosen", "1", "higher", "rewards_chosen over the validation file"},
    {"valid_rewards_rejected", "1", "lower", "rewards_rejected over the validation file"},
    {"valid_reward_margin", "1", "higher", "reward_margin over the validation file"},
    {"valid_reward_accuracy", "share", "higher", "reward_accuracy over the validation file"},
    {"valid_logps_chosen", "nat", "higher", "logps_chosen over the validation file"},
    {"valid_logps_rejected", "nat", "lower", "logps_rejected over the validation file"},
    {"learning_rate", "1", NULL, "of the optimiser in this step"},
    {"grad_norm", "1", NULL, "L2 norm of the gradient before clipping"},
    {"tokens_per_second", "token/s", "higher", "tokens of the step over its duration"},
    {"step_seconds", "s", "lower", "duration of the step"},
};

void gd_metrics_explain(cJSON *series)
{
    cJSON *one;
    cJSON_ArrayForEach(one, series) {
        const cJSON *name = gd_json_find(one, "name");
        for (size_t i = 0; i < GD_COUNT(explained); i++) {
            if (!cJSON_IsString(name) || strcmp(name->valuestring, explained[i].name) != 0)
                continue;
            gd_json_add_text(one, "unit", explained[i].unit);
            gd_json_add_text(one, "better", explained[i].better);
            gd_json_add_text(one, "definition", explained[i].definition);
        }
    }
}

void gd_http_fail_model(struct gd_request *request, const struct gd_error *err)
{
    if (err->code == GD_NOT_FOUND)
        gd_http_reply(request, gd_code_http(err->code), gd_error_body(err, "model_not_found"));
    else
        gd_http_fail(request, err); /* with its headers for retries */
}
