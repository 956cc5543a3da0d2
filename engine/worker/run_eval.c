/* run_eval.c - `graftd run` of an eval or a task file: items in the foreground, kept as they finish, scores at the end. */
#include "engine/worker/run_eval.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/data/lines.h"
#include "engine/eval/scores.h"
#include "engine/eval/task.h"
#include "engine/eval/yaml_read.h"
#include "engine/tensor/device.h"
#include "engine/worker/evaluate.h"
#include "engine/worker/usage.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CACHE_BYTES ((size_t)1 << 30)

struct run {
    const struct gd_run_eval_options *options;
    struct gd_eval_spec spec;
    struct gd_eval_source *source;
    struct gd_evaluate_model models[GD_EVAL_MODELS_MAX];
    char *ids[GD_EVAL_MODELS_MAX], *paths[GD_EVAL_MODELS_MAX];
    int model_count;
    struct gd_scores *scores;
    unsigned char *done;
    int64_t finished, errored, before;
    FILE *items;
    bool failed;                 /* an item could not be written */
    bool terminal;
    double started, shown;
};

bool gd_run_is_task(const char *path)
{
    size_t length = strlen(path);
    return (length > 5 && strcmp(path + length - 5, ".yaml") == 0) || (length > 4 && strcmp(path + length - 4, ".yml") == 0);
}

/* ---- the request ---- */

static void add_file(cJSON *source, const char *key, const char *path)
{
    cJSON *json = cJSON_AddObjectToObject(source, key);
    cJSON_AddStringToObject(json, "type", "file_id");
    cJSON_AddStringToObject(json, "id", path);
}

/* A task file as the request that would run it, with the files that it names. */
static cJSON *request_of_task(const struct gd_run_eval_options *options, struct gd_error *err)
{
    char *text = NULL;
    size_t length = 0;
    if (options->model == NULL) {
        gd_fail_param(err, GD_MISSING, "--model", "a task names no model: give --model ID");
        return NULL;
    }
    if (!gd_file_read(options->job, GD_YAML_BYTES_MAX, &text, &length, err))
        return NULL;
    cJSON *yaml = gd_yaml_parse(text, length, err);
    struct gd_task *task = yaml != NULL ? gd_task_parse(yaml, "task", err) : NULL;
    cJSON *body = NULL;
    if (task != NULL) {
        body = cJSON_CreateObject();
        cJSON *config = cJSON_AddObjectToObject(body, "data_source_config"), *source = cJSON_AddObjectToObject(body, "data_source");
        cJSON_AddStringToObject(config, "type", "task");
        cJSON_AddStringToObject(config, "task", text);
        cJSON_AddStringToObject(source, "type", "task");
        cJSON_AddStringToObject(source, "model", options->model);
        add_file(source, "source", gd_task_rows_file(task));
        if (gd_task_needs_shots(task, options->shots))
            add_file(source, "examples", gd_task_shots_file(task));
    }
    gd_task_destroy(task);
    cJSON_Delete(yaml);
    gd_free(text);
    return body;
}

/* What the command line says over what the file says. */
static void override(cJSON *source, const struct gd_run_eval_options *options)
{
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"limit", options->limit}, {"num_fewshot", options->shots}, {"fewshot_seed", options->seed}};
    for (size_t i = 0; i < GD_COUNT(numbers); i++)
        if (numbers[i].value >= 0) {
            cJSON_DeleteItemFromObjectCaseSensitive(source, numbers[i].name);
            cJSON_AddNumberToObject(source, numbers[i].name, (double)numbers[i].value);
        }
    if (options->model != NULL) {
        cJSON_DeleteItemFromObjectCaseSensitive(source, "model");
        cJSON_AddStringToObject(source, "model", options->model);
    }
}

static bool read_request(struct run *run, struct gd_error *err)
{
    static const char *const known[] = {"data_source", "data_source_config", "metadata", "name", "testing_criteria", NULL};
    const struct gd_run_eval_options *options = run->options;
    cJSON *body = gd_run_is_task(options->job) ? request_of_task(options, err)
                                               : gd_json_parse_file(options->job, 64u << 20, err);
    cJSON *source = body != NULL ? gd_json_find(body, "data_source") : NULL;
    if (source != NULL)
        override(source, options);
    bool ok = body != NULL && gd_json_only_known(body, "", known, err) && gd_eval_spec_parse(&run->spec, body, err);
    run->source = ok ? gd_eval_source_parse(&run->spec, source, err) : NULL;
    for (int i = 0; run->source != NULL && ok && i < run->spec.grader_count; i++) {
        char *path = gd_format("testing_criteria[%d]", i);
        ok = gd_grader_check(run->spec.graders[i], path, err);
        gd_free(path);
    }
    cJSON_Delete(body);
    if (run->source == NULL || !ok)
        return false;
    run->source->second_path = run->source->second_file_id; /* files are named by their paths here */
    return gd_eval_source_open(run->source, run->source->file_id, err);
}

static bool find_models(struct run *run, struct gd_error *err)
{
    const char *ids[GD_EVAL_MODELS_MAX];
    int count = 0;
    bool ok = gd_eval_source_models(run->source, ids, &count, err);
    for (int i = 0; ok && i < count; i++) {
        ok = gd_usage_model(ids[i], run->options->models, &run->ids[i], &run->paths[i], err);
        bool own = run->source->model != NULL && strcmp(ids[i], run->source->model) == 0;
        run->models[run->model_count++] = (struct gd_evaluate_model){
            .id = ids[i], .base_id = run->ids[i], .base_path = run->paths[i], .adapter_path = own ? run->options->adapter : NULL};
    }
    return ok;
}

/* ---- items ---- */

static char *items_path(const struct run *run)
{
    return gd_format("%s/items.jsonl", run->options->out);
}

static void count_item(struct run *run, int64_t index, const char *status, const cJSON *results)
{
    run->done[index / 8] |= (unsigned char)(1u << (index % 8));
    run->finished++;
    run->errored += strcmp(status, "error") == 0;
    gd_scores_add(run->scores, index, results);
}

/* An item of the run that this one continues. The last line may be half of one: it is then asked again. */
static bool on_old_item(void *context, const char *text, size_t length, int64_t line, struct gd_error *err)
{
    struct run *run = context;
    struct gd_error ignored = {0};
    cJSON *json = text != NULL ? gd_json_parse(text, length, length, &ignored) : NULL;
    const cJSON *index = json != NULL ? gd_json_find(json, "index") : NULL, *status = json != NULL ? gd_json_find(json, "status") : NULL;
    bool valid = cJSON_IsNumber(index) && index->valuedouble >= 0 && cJSON_IsString(status);
    if (valid && index->valuedouble >= (double)run->source->count) {
        cJSON_Delete(json);
        return gd_fail(err, GD_CONFLICT, "line %lld: item %.0f: there are only %lld now", (long long)line, index->valuedouble,
                       (long long)run->source->count);
    }
    if (valid && (run->done[(int64_t)index->valuedouble / 8] & (1u << ((int64_t)index->valuedouble % 8))) == 0)
        count_item(run, (int64_t)index->valuedouble, status->valuestring, gd_json_find(json, "results"));
    cJSON_Delete(json);
    return true;
}

static bool open_items(struct run *run, struct gd_error *err)
{
    char *path = items_path(run);
    struct stat info;
    bool there = stat(path, &info) == 0 && info.st_size > 0, ok = true;
    if (there && !run->options->resume)
        ok = gd_fail_param(err, GD_CONFLICT, "--out", "%s holds a run already: continue it with --resume, or give another folder",
                           run->options->out);
    if (ok && there) {
        ok = gd_lines_each(path, on_old_item, run, err);
        if (!ok)
            gd_error_context(err, "%s", path);
    }
    run->before = run->finished;
    if (ok && (run->items = fopen(path, "a")) == NULL)
        ok = gd_fail_errno(err, errno, "open %s", path);
    if (ok && there)
        fputc('\n', run->items); /* after half a line */
    gd_free(path);
    return ok;
}

static void show_progress(struct run *run, bool last)
{
    double now = gd_time_monotonic(), seconds = now - run->started;
    if (!last && now - run->shown < (run->terminal ? 0.2 : 10))
        return;
    run->shown = now;
    printf("%s%lld of %lld items, %.1f a second%s", run->terminal ? "\r" : "", (long long)run->finished, (long long)run->source->count,
           seconds > 0 ? (double)(run->finished - run->before) / seconds : 0, run->terminal && !last ? "   " : "\n");
    fflush(stdout);
}

static void on_item(void *context, const struct gd_evaluated *item)
{
    struct run *run = context;
    cJSON *body = item->body;
    count_item(run, item->index, item->status, gd_json_find(body, "results"));
    cJSON_AddItemToObject(body, "index", cJSON_CreateNumber((double)item->index));
    cJSON_AddItemToObject(body, "status", cJSON_CreateString(item->status));
    cJSON_AddItemToObject(body, "usage", item->usage);
    char *line = gd_json_print(body);
    run->failed = run->failed || fprintf(run->items, "%s\n", line) < 0 || fflush(run->items) != 0;
    gd_free(line);
    cJSON_Delete(body);
    show_progress(run, false);
}

static enum gd_evaluate_command poll_signals(void *context, bool idle)
{
    const struct run *run = context;
    return *run->options->stop || run->failed ? GD_EVALUATE_STOP : GD_EVALUATE_GO;
}

static bool evaluate(struct run *run, struct gd_error *err)
{
    struct gd_residents residents;
    gd_residents_init(&residents, CACHE_BYTES);
    struct gd_evaluate_options options = {.residents = &residents, .models = run->models, .model_count = run->model_count,
                                          .done = run->done};
    struct gd_evaluate_observer observer = {.context = run, .poll = poll_signals, .item = on_item};
    run->started = run->shown = gd_time_monotonic();
    bool ok = gd_evaluate(run->source, &options, &observer, err);
    gd_residents_release(&residents);
    show_progress(run, true);
    if (!ok && err->code == GD_CANCELLED) {
        gd_error_clear(err);
        return run->failed ? gd_fail(err, GD_IO, "%s/items.jsonl cannot be written", run->options->out)
                           : gd_fail(err, GD_CANCELLED, "stopped after %lld of %lld items: continue with --resume",
                                     (long long)run->finished, (long long)run->source->count);
    }
    return ok;
}

/* ---- the end ---- */

static double number(const cJSON *json, const char *key)
{
    const cJSON *value = gd_json_find(json, key);
    return cJSON_IsNumber(value) ? value->valuedouble : NAN;
}

static void print_scores(const cJSON *scores)
{
    const cJSON *score;
    printf("%-28s %8s %8s %12s %12s   %s\n", "score", "n", "errored", "value", "stderr", "95 % interval");
    cJSON_ArrayForEach(score, scores)
    {
        const cJSON *interval = gd_json_find(score, "interval");
        printf("%-28s %8.0f %8.0f %12.6g %12.6g   %.6g to %.6g (%s)\n", gd_json_find(score, "name")->valuestring, number(score, "n"),
               number(score, "errored"), number(score, "score"), number(score, "standard_error"), number(interval, "low"),
               number(interval, "high"), gd_json_find(interval, "method")->valuestring);
    }
}

static bool finish(const struct run *run, struct gd_error *err)
{
    cJSON *json = cJSON_CreateObject();
    gd_json_add_text(json, "model", run->source->model);
    gd_json_add_text(json, "adapter", run->options->adapter);
    cJSON_AddNumberToObject(json, "items", (double)run->finished);
    cJSON_AddNumberToObject(json, "errored", (double)run->errored);
    cJSON_AddItemToObject(json, "scores", gd_scores_json(run->scores));
    print_scores(gd_json_find(json, "scores"));
    if (run->errored > 0)
        printf("%lld items have errors: see items.jsonl\n", (long long)run->errored);
    char *text = gd_json_print(json), *path = gd_format("%s/scores.json", run->options->out);
    bool ok = gd_file_write_durable(path, text, strlen(text), err);
    if (ok)
        printf("scores %s\n", path);
    gd_free(path);
    gd_free(text);
    cJSON_Delete(json);
    return ok;
}

bool gd_run_eval(const struct gd_run_eval_options *options, struct gd_error *err)
{
    struct run run = {.options = options, .scores = gd_scores_create(),
                      .terminal = isatty(STDOUT_FILENO) && getenv("NO_COLOR") == NULL};
    bool ok = read_request(&run, err) && gd_device_init(options->device, options->threads, err) && find_models(&run, err) &&
              gd_mkdirs(options->out, err);
    if (ok)
        run.done = gd_alloc((size_t)run.source->count / 8 + 1);
    ok = ok && open_items(&run, err) && evaluate(&run, err) && finish(&run, err);
    if (run.items != NULL)
        fclose(run.items);
    gd_eval_source_destroy(run.source);
    gd_eval_spec_release(&run.spec);
    gd_scores_destroy(run.scores);
    for (int i = 0; i < run.model_count; i++) {
        gd_free(run.ids[i]);
        gd_free(run.paths[i]);
    }
    gd_free(run.done);
    return ok;
}
