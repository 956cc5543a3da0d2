#include "engine/train/best.h"

#include "engine/base/alloc.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

static const cJSON *find_eval(const cJSON *evals, const char *name)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, evals)
    {
        const cJSON *own = gd_json_find(item, "name");
        if (cJSON_IsString(own) && strcmp(own->valuestring, name) == 0)
            return item;
    }
    return NULL;
}

/* Names are there and differ; what an eval holds is its reader's to check. */
static bool check_evals(const cJSON *evals, struct gd_error *err)
{
    int index = 0;
    const cJSON *item;
    if (!cJSON_IsArray(evals) || cJSON_GetArraySize(evals) > GD_ATTACHED_EVALS_MAX)
        return gd_fail_param(err, GD_INVALID, "evaluation.evals", "evaluation.evals must be a list of at most %d evals",
                             GD_ATTACHED_EVALS_MAX);
    cJSON_ArrayForEach(item, evals)
    {
        char path[64];
        const char *name = NULL;
        snprintf(path, sizeof(path), "evaluation.evals[%d]", index++);
        if (!cJSON_IsObject(item))
            return gd_fail_param(err, GD_INVALID, path, "%s must be an object", path);
        if (!gd_json_get_string(item, path, "name", true, 1, 64, &name, err))
            return false;
        if (strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != strlen(name))
            return gd_fail_param(err, GD_INVALID, path, "%s.name '%s' may hold letters, digits, '_', '.' and '-' only", path, name);
        if (find_eval(evals, name) != item)
            return gd_fail_param(err, GD_INVALID, path, "%s.name '%s' is there twice", path, name);
    }
    return true;
}

static bool check_metric(const struct gd_evaluation *evaluation, bool has_validation, struct gd_error *err)
{
    const char *metric = evaluation->metric_for_best_model;
    bool wanted = evaluation->load_best_model_at_end || evaluation->early_stopping_patience > 0;
    if (strncmp(metric, "eval/", 5) == 0) {
        if (find_eval(evaluation->evals, metric + 5) != NULL)
            return true;
        return gd_fail_param(err, GD_INVALID, "evaluation.metric_for_best_model", "metric_for_best_model is '%s', but no eval of "
                             "evaluation.evals is named '%s'", metric, metric + 5);
    }
    if (strncmp(metric, "valid_", 6) != 0)
        return gd_fail_param(err, GD_INVALID, "evaluation.metric_for_best_model", "metric_for_best_model is '%s'; it must be a metric "
                             "of the validation file (valid_loss, valid_mean_token_accuracy, valid_reward_accuracy, ...) or eval/NAME of "
                             "an attached eval", metric);
    if (wanted && !has_validation)
        return gd_fail_param(err, GD_MISSING, "validation_file", "'%s' can be followed only with a validation_file", metric);
    return true;
}

bool gd_evaluation_parse(struct gd_evaluation *evaluation, const cJSON *body, bool has_validation, struct gd_error *err)
{
    static const char *const known[] = {"metric_for_best_model", "greater_is_better", "load_best_model_at_end",
                                        "early_stopping_patience", "early_stopping_threshold", "evals", NULL};
    const cJSON *json = NULL;
    const char *metric = "valid_loss";
    int64_t patience = 0;
    *evaluation = (struct gd_evaluation){0};
    strcpy(evaluation->metric_for_best_model, metric);
    if (!gd_json_get_object(body, "", "evaluation", false, &json, err) || json == NULL)
        return err->code == GD_OK;
    if (!gd_json_only_known(json, "evaluation", known, err) ||
        !gd_json_get_string(json, "evaluation", "metric_for_best_model", false, 1, GD_METRIC_NAME_BYTES - 1, &metric, err))
        return false;
    evaluation->greater_is_better = !ends_with(metric, "loss");
    strcpy(evaluation->metric_for_best_model, metric);
    if (!gd_json_get_bool(json, "evaluation", "greater_is_better", false, &evaluation->greater_is_better, err) ||
        !gd_json_get_bool(json, "evaluation", "load_best_model_at_end", false, &evaluation->load_best_model_at_end, err) ||
        !gd_json_get_int(json, "evaluation", "early_stopping_patience", false, 0, 1000000, &patience, err) ||
        !gd_json_get_number(json, "evaluation", "early_stopping_threshold", false, 0, 1e9, &evaluation->early_stopping_threshold, err))
        return false;
    evaluation->early_stopping_patience = (int)patience;
    const cJSON *evals = gd_json_find(json, "evals");
    if (evals != NULL && !cJSON_IsNull(evals)) {
        if (!check_evals(evals, err))
            return false;
        evaluation->evals = cJSON_Duplicate(evals, true);
    }
    return check_metric(evaluation, has_validation, err);
}

void gd_evaluation_release(struct gd_evaluation *evaluation)
{
    cJSON_Delete(evaluation->evals);
    evaluation->evals = NULL;
}

cJSON *gd_evaluation_json(const struct gd_evaluation *evaluation)
{
    if (!evaluation->load_best_model_at_end && evaluation->early_stopping_patience == 0 && evaluation->evals == NULL)
        return NULL;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "metric_for_best_model", evaluation->metric_for_best_model);
    cJSON_AddBoolToObject(json, "greater_is_better", evaluation->greater_is_better);
    cJSON_AddBoolToObject(json, "load_best_model_at_end", evaluation->load_best_model_at_end);
    cJSON_AddNumberToObject(json, "early_stopping_patience", evaluation->early_stopping_patience);
    cJSON_AddNumberToObject(json, "early_stopping_threshold", evaluation->early_stopping_threshold);
    if (evaluation->evals != NULL)
        cJSON_AddItemToObject(json, "evals", cJSON_Duplicate(evaluation->evals, true));
    return json;
}

bool gd_best_consider(struct gd_best *best, const struct gd_evaluation *evaluation, int64_t step, const struct gd_metric *metrics,
                      int metric_count)
{
    for (int i = 0; i < metric_count; i++) {
        if (strcmp(metrics[i].name, evaluation->metric_for_best_model) != 0)
            continue;
        double value = metrics[i].value, gain = evaluation->greater_is_better ? value - best->value : best->value - value;
        if (isfinite(value) && (best->step == 0 || gain > evaluation->early_stopping_threshold)) {
            *best = (struct gd_best){.step = step, .value = value};
            return true;
        }
        best->since++;
    }
    return false;
}

bool gd_best_stops(const struct gd_best *best, const struct gd_evaluation *evaluation)
{
    return evaluation->early_stopping_patience > 0 && best->since >= evaluation->early_stopping_patience;
}
