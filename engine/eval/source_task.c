/* source_task.c - the rows of a task (task.h): the eval says how they are asked and judged, the run which rows and model. */
#include "engine/base/alloc.h"
#include "engine/eval/task.h"

#include <string.h>

struct rows {
    struct gd_task *task;
    struct gd_task_options options;
};

static bool parse_file(const cJSON *json, const char *path, const char *key, bool required, char **id, struct gd_error *err)
{
    static const char *const known[] = {"id", "type", NULL};
    const cJSON *from = NULL;
    const char *type = NULL, *value = NULL;
    char *at = gd_format("%s.%s", path, key), *at_type = gd_format("%s.%s.type", path, key);
    bool ok = gd_json_get_object(json, path, key, required, &from, err);
    if (ok && from != NULL) {
        ok = gd_json_get_string(from, at, "type", true, 1, 64, &type, err) &&
             (strcmp(type, "file_id") == 0 ||
              gd_fail_param(err, GD_UNSUPPORTED, at_type, "%s: '%s': the rows of a task come from a file (\"file_id\")", at_type, type)) &&
             gd_json_only_known(from, at, known, err) && gd_json_get_string(from, at, "id", true, 1, 4095, &value, err);
        *id = ok ? gd_strdup(value) : NULL;
    }
    gd_free(at);
    gd_free(at_type);
    return ok;
}

static bool check_examples(const struct gd_eval_source *source, const struct rows *rows, const char *path, struct gd_error *err)
{
    bool needed = gd_task_needs_shots(rows->task, rows->options.shots);
    if (needed == (source->second_file_id != NULL))
        return true;
    char *param = gd_format("%s.examples", path);
    if (needed)
        gd_fail_param(err, GD_MISSING, param, "%s is missing: the task's examples are rows of another file ('%.100s')", param,
                      gd_task_shots_file(rows->task));
    else
        gd_fail_param(err, GD_INVALID, param, "%s: the task takes no examples from another file", param);
    gd_free(param);
    return false;
}

static bool parse(struct gd_eval_source *source, const cJSON *json, const char *path, struct gd_error *err)
{
    static const char *const known[] = {"examples", "fewshot_seed", "limit", "model", "num_fewshot", "source", "task", "type", NULL};
    struct rows *rows = source->state = gd_alloc(sizeof *rows);
    const char *model = NULL, *task = NULL;
    int64_t seed = GD_TASK_SEED;
    rows->options = (struct gd_task_options){.limit = -1, .shots = -1};
    if (source->spec->task == NULL)
        return gd_fail_param(err, GD_INVALID, path, "%s: the eval is no task: its data_source_config.type is 'custom'", path);
    if (!gd_json_only_known(json, path, known, err) || !gd_json_get_string(json, path, "model", true, 1, 1023, &model, err) ||
        !gd_json_get_string(json, path, "task", false, 1, 63, &task, err) ||
        !parse_file(json, path, "source", true, &source->file_id, err) ||
        !parse_file(json, path, "examples", false, &source->second_file_id, err) ||
        !gd_json_get_int(json, path, "limit", false, 1, GD_EVAL_ITEMS_MAX, &rows->options.limit, err) ||
        !gd_json_get_int(json, path, "num_fewshot", false, 0, GD_TASK_SHOTS_MAX, &rows->options.shots, err) ||
        !gd_json_get_int(json, path, "fewshot_seed", false, 0, INT64_MAX >> 11, &seed, err))
        return false;
    rows->options.seed = (uint64_t)seed;
    source->model = gd_strdup(model);
    source->task = gd_strdup(task);
    rows->task = gd_task_parse(source->spec->task, "data_source_config.task", err);
    return rows->task != NULL && check_examples(source, rows, path, err);
}

static bool open_rows(struct gd_eval_source *source, const char *file_path, struct gd_error *err)
{
    struct rows *rows = source->state;
    bool ok = gd_task_open(rows->task, file_path, source->second_path, &rows->options, err);
    source->count = gd_task_count(rows->task);
    return ok;
}

static void begin(struct gd_eval_source *source, struct gd_eval_item *item)
{
    gd_task_begin(((struct rows *)source->state)->task, item);
}

static void answered(struct gd_eval_source *source, struct gd_eval_item *item)
{
    gd_task_answered(((struct rows *)source->state)->task, item, source->model);
}

static void release(struct gd_eval_source *source)
{
    struct rows *rows = source->state;
    gd_task_destroy(rows->task);
    gd_free(rows);
}

const struct gd_eval_source_type gd_eval_source_type_task = {
    .name = "task", .parse = parse, .open = open_rows, .begin = begin, .answered = answered, .release = release};
