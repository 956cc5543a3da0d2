#include "engine/worker/attached.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/worker/usage.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* One eval on its way. */
struct run {
    struct gd_attached *attached;
    struct gd_attached_eval eval;
    struct gd_evaluate_model models[GD_EVAL_MODELS_MAX];
    char *owned[2 * GD_EVAL_MODELS_MAX];   /* ids and paths that were looked up here */
    int model_count, owned_count;
    double score;                          /* sum over items of the mean of their results */
    int64_t scored, passed, errors;
};

static enum gd_evaluate_command poll(void *context, bool idle)
{
    const struct run *run = context;
    return run->attached->poll(run->attached->context, idle);
}

static void on_item(void *context, const struct gd_evaluated *item)
{
    struct run *run = context;
    const cJSON *result;
    double sum = 0;
    int count = 0;
    cJSON_ArrayForEach(result, gd_json_find(item->body, "results"))
    {
        const cJSON *score = gd_json_find(result, "score");
        if (cJSON_IsNumber(score)) {
            sum += score->valuedouble;
            count++;
        }
    }
    if (strcmp(item->status, "error") == 0 || count == 0) {
        run->errors++;
    } else {
        run->score += sum / count;
        run->passed += strcmp(item->status, "pass") == 0;
        run->scored++;
    }
    cJSON_Delete(item->body);
    cJSON_Delete(item->usage);
}

/* ---- models ---- */

/* Judges of a run in the foreground: bases in the models folder. */
static bool look_up(struct run *run, struct gd_error *err)
{
    const char *ids[GD_EVAL_MODELS_MAX];
    int count = 0;
    if (!gd_eval_source_models(run->eval.source, ids, &count, err))
        return false;
    for (int i = 0; i < count; i++) {
        char *id = NULL, *path = NULL;
        if (strcmp(ids[i], GD_ATTACHED_MODEL) == 0)
            continue;
        if (!gd_usage_model(ids[i], run->attached->models_dir, &id, &path, err))
            return false;
        run->owned[run->owned_count++] = id;
        run->owned[run->owned_count++] = path;
        run->models[run->model_count++] = (struct gd_evaluate_model){.id = ids[i], .base_id = id, .base_path = path};
    }
    return true;
}

static bool add_models(struct run *run, const cJSON *json, const char *folder, struct gd_error *err)
{
    const struct gd_model *base = run->attached->base;
    const cJSON *models = gd_json_find(json, "models");
    run->models[run->model_count++] = (struct gd_evaluate_model){.id = GD_ATTACHED_MODEL, .base_id = base->id, .base_path = base->path,
                                                                 .quantization = base->quantization, .adapter_path = folder};
    return models != NULL ? gd_evaluate_models(models, run->models, &run->model_count, err) : look_up(run, err);
}

/* ---- the run ---- */

static bool open_source(struct run *run, const cJSON *json, struct gd_error *err)
{
    struct gd_eval_source *source = run->eval.source;
    const char *path = source->file_id, *second = source->second_file_id;
    if (!gd_json_get_string(json, "", "file_path", false, 1, GD_PATH_BYTES_MAX, &path, err) ||
        !gd_json_get_string(json, "", "second_file_path", false, 1, GD_PATH_BYTES_MAX, &second, err))
        return false;
    source->second_path = second;
    if (!gd_eval_source_open(source, path, err))
        return false;
    if (source->count > run->eval.max_items)
        source->count = run->eval.max_items;
    return true;
}

static void add_metric(struct gd_attached *attached, int *used, const char *name, const char *what, double value,
                       struct gd_metric *metrics, int *count)
{
    char *text = attached->names[(*used)++];
    snprintf(text, GD_METRIC_NAME_BYTES, "eval/%.64s%s", name, what);
    metrics[(*count)++] = (struct gd_metric){text, value};
}

static bool run_one(struct run *run, const cJSON *json, const char *path, const char *folder, struct gd_error *err)
{
    struct gd_evaluate_observer observer = {.context = run, .poll = poll, .item = on_item};
    if (!gd_attached_eval_parse(&run->eval, json, path, err) || !open_source(run, json, err) || !add_models(run, json, folder, err))
        return false;
    struct gd_evaluate_options options = {.residents = run->attached->residents, .models = run->models, .model_count = run->model_count};
    return gd_evaluate(run->eval.source, &options, &observer, err);
}

bool gd_attached_run(struct gd_attached *attached, const char *adapter_folder, const cJSON *evals, struct gd_metric *metrics,
                     int metric_max, int *metric_count, struct gd_error *err)
{
    const cJSON *json;
    int index = 0, used = 0;
    cJSON_ArrayForEach(json, evals)
    {
        struct run run = {.attached = attached};
        char path[48];
        snprintf(path, sizeof(path), "evaluation.evals[%d]", index++);
        bool ok = index <= GD_ATTACHED_EVALS_MAX && *metric_count + 3 <= metric_max ? run_one(&run, json, path, adapter_folder, err)
                                                                                    : gd_fail(err, GD_INTERNAL, "too many evals");
        if (ok) {
            double n = (double)run.scored;
            add_metric(attached, &used, run.eval.name, "", n > 0 ? run.score / n : NAN, metrics, metric_count);
            add_metric(attached, &used, run.eval.name, "_passed", n > 0 ? (double)run.passed / n : NAN, metrics, metric_count);
            add_metric(attached, &used, run.eval.name, "_errors", (double)run.errors, metrics, metric_count);
        }
        for (int i = 0; i < run.owned_count; i++)
            gd_free(run.owned[i]);
        gd_attached_eval_release(&run.eval);
        if (!ok) {
            gd_error_context(err, "%s", path);
            return false;
        }
    }
    gd_residents_forget(attached->residents, adapter_folder);
    return true;
}
