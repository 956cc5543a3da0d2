/* task.c - the configuration: what is known, what it means, what is refused. */
#include "engine/eval/task.h"

#include "engine/base/alloc.h"
#include "engine/eval/grader_type.h"
#include "engine/eval/task_parts.h"

#include <string.h>

#define TEXT_BYTES_MAX (256u << 10)
#define STOPS_MAX 16 /* GD_STOPS_MAX of the engine */

const char *const gd_task_outputs[GD_TASK_OUTPUT_COUNT] = {"generate_until", "loglikelihood", "loglikelihood_rolling",
                                                           "multiple_choice"};

static const char *const known[] = {
    "dataset_kwargs",  "dataset_name", "dataset_path",       "description",  "doc_to_choice",   "doc_to_target",
    "doc_to_text",     "fewshot_config", "fewshot_delimiter", "fewshot_split", "filter_list",     "gen_prefix",
    "generation_kwargs", "group",        "metadata",           "metric_list",  "num_fewshot",     "output_type",
    "repeats",         "should_decontaminate", "tag",          "target_delimiter", "task",        "task_alias",
    "test_split",      "training_split", "unsafe_code",        "validation_split", NULL};

/* What the harness knows and this does not run: said by name, not as a spelling mistake. */
static const struct {
    const char *key, *why;
} refused[] = {
    {"class", "it names Python code"},
    {"custom_dataset", "it names Python code"},
    {"doc_to_audio", "models here read text"},
    {"doc_to_decontamination_query", "there is no decontamination"},
    {"doc_to_image", "models here read text"},
    {"include", "a task is one file here: copy the included keys into it"},
    {"process_docs", "it names Python code: prepare the rows beforehand"},
    {"process_results", "it names Python code: use filter_list and metric_list"},
    {"use_prompt", "promptsource is not here: write doc_to_text"},
};

static bool check_keys(const cJSON *config, const char *path, struct gd_error *err)
{
    for (size_t i = 0; i < GD_COUNT(refused); i++) {
        const cJSON *value = gd_json_find(config, refused[i].key);
        if (value == NULL || cJSON_IsNull(value))
            continue;
        char *param = gd_format("%s.%s", path, refused[i].key);
        gd_fail_param(err, GD_UNSUPPORTED, param, "%s is not supported: %s", param, refused[i].why);
        gd_free(param);
        return false;
    }
    static const char *const off[] = {"should_decontaminate", "unsafe_code"};
    bool value = false;
    for (size_t i = 0; i < GD_COUNT(off); i++) {
        if (!gd_json_get_bool(config, path, off[i], false, &value, err))
            return false;
        if (value) {
            char *param = gd_format("%s.%s", path, off[i]);
            gd_fail_param(err, GD_UNSUPPORTED, param, "%s: true is not supported", param);
            gd_free(param);
            return false;
        }
    }
    return gd_json_only_known(config, path, known, err);
}

/* ---- data ---- */

static const char *file_of(const cJSON *files, const char *split)
{
    const cJSON *file = cJSON_IsString(files) ? (strcmp(split, "train") == 0 ? files : NULL) : gd_json_find(files, split);
    return cJSON_IsString(file) ? file->valuestring : NULL;
}

static bool find_split(const cJSON *config, const char *path, const char *key, const cJSON *files, const char **file,
                       struct gd_error *err)
{
    const char *split = NULL;
    if (!gd_json_get_string(config, path, key, false, 1, 256, &split, err))
        return false;
    if (split == NULL || (*file = file_of(files, split)) != NULL)
        return true;
    char *param = gd_format("%s.%s", path, key);
    gd_fail_param(err, GD_INVALID, param, "%s: dataset_kwargs.data_files has no file for '%.64s'", param, split);
    gd_free(param);
    return false;
}

static bool same_split(const cJSON *config, const char *a, const char *b)
{
    const cJSON *x = gd_json_find(config, a), *y = gd_json_find(config, b);
    if (!cJSON_IsString(x) || !cJSON_IsString(y))
        return !cJSON_IsString(x) && !cJSON_IsString(y);
    return strcmp(x->valuestring, y->valuestring) == 0;
}

static bool parse_files(struct gd_task *task, const char *path, const cJSON **files, struct gd_error *err)
{
    static const char *const known_kwargs[] = {"data_files", NULL};
    const cJSON *kwargs = NULL;
    const char *source = NULL;
    char *param = gd_format("%s.dataset_path", path), *at = gd_format("%s.dataset_kwargs", path);
    bool ok = gd_json_get_string(task->config, path, "dataset_path", true, 1, 1024, &source, err) &&
              (strcmp(source, "json") == 0 ||
               gd_fail_param(err, GD_UNSUPPORTED, param,
                             "%s: '%.200s': nothing is downloaded; use \"json\" with local rows in dataset_kwargs.data_files",
                             param, source)) &&
              gd_json_get_object(task->config, path, "dataset_kwargs", true, &kwargs, err) &&
              gd_json_only_known(kwargs, at, known_kwargs, err);
    if (ok) {
        *files = gd_json_find(kwargs, "data_files");
        if (!cJSON_IsString(*files) && !cJSON_IsObject(*files))
            ok = gd_fail_param(err, *files == NULL ? GD_MISSING : GD_INVALID, at,
                               "%s.data_files must be a file of rows, or a mapping from split to file", at);
    }
    gd_free(param);
    gd_free(at);
    return ok;
}

static bool parse_data(struct gd_task *task, const char *path, struct gd_error *err)
{
    const cJSON *config = task->config, *files = NULL;
    const char *test = NULL, *validation = NULL, *training = NULL, *shots = NULL;
    if (!parse_files(task, path, &files, err) || !find_split(config, path, "test_split", files, &test, err) ||
        !find_split(config, path, "validation_split", files, &validation, err) ||
        !find_split(config, path, "training_split", files, &training, err) ||
        !find_split(config, path, "fewshot_split", files, &shots, err))
        return false;
    task->rows_file = test != NULL ? test : validation;
    if (task->rows_file == NULL)
        return gd_fail_param(err, GD_MISSING, path, "%s: neither test_split nor validation_split says which rows are asked", path);
    if (shots == NULL)
        shots = training != NULL ? training : validation != NULL ? validation : test;
    task->shots_file = strcmp(shots, task->rows_file) != 0 ? shots : NULL;
    return true;
}

/* ---- prompts ---- */

static bool parse_delimiters(struct gd_task_turn *turn, const cJSON *config, const char *path, struct gd_error *err)
{
    return gd_json_get_string(config, path, "target_delimiter", false, 0, 1024, &turn->target_delimiter, err) &&
           gd_json_get_string(config, path, "fewshot_delimiter", false, 0, 1024, &turn->delimiter, err);
}

static bool parse_turn(struct gd_task_turn *turn, const cJSON *config, const char *path, struct gd_error *err)
{
    return parse_delimiters(turn, config, path, err) && gd_task_field_parse(&turn->text, config, path, "doc_to_text", err) &&
           gd_task_field_parse(&turn->target, config, path, "doc_to_target", err) &&
           gd_task_field_parse(&turn->choice, config, path, "doc_to_choice", err) &&
           gd_task_field_parse(&turn->prefix, config, path, "gen_prefix", err);
}

static void release_turn(struct gd_task_turn *turn)
{
    gd_task_field_release(&turn->text);
    gd_task_field_release(&turn->target);
    gd_task_field_release(&turn->choice);
    gd_task_field_release(&turn->prefix);
}

/* The examples' own settings over the task's. */
static bool parse_shot_turn(struct gd_task *task, const cJSON *own, const char *path, struct gd_error *err)
{
    static const char *const keys[] = {"doc_to_text", "doc_to_target", "doc_to_choice", "gen_prefix", "target_delimiter",
                                       "fewshot_delimiter"};
    cJSON *merged = cJSON_CreateObject();
    for (size_t i = 0; i < GD_COUNT(keys); i++) {
        cJSON *value = own != NULL ? gd_json_find(own, keys[i]) : NULL;
        if (value == NULL || cJSON_IsNull(value))
            value = gd_json_find(task->config, keys[i]);
        if (value != NULL)
            cJSON_AddItemToObject(merged, keys[i], cJSON_Duplicate(value, true));
    }
    bool ok = parse_turn(&task->shot, merged, path, err);
    /* What fields borrow must outlive this function: it goes where the configuration is. */
    cJSON_AddItemToObject(task->config, " shot", merged);
    return ok;
}

static bool parse_shots(struct gd_task *task, const char *path, struct gd_error *err)
{
    static const char *const known_shots[] = {"doc_to_choice", "doc_to_target", "doc_to_text", "fewshot_delimiter", "gen_prefix",
                                              "sampler", "samples", "split", "target_delimiter", NULL};
    static const char *const samplers[] = {"default", "first_n"};
    const cJSON *own = NULL;
    int sampler = 0;
    char *at = gd_format("%s.fewshot_config", path);
    bool ok = gd_json_get_object(task->config, path, "fewshot_config", false, &own, err) &&
              gd_json_get_int(task->config, path, "num_fewshot", false, 0, GD_TASK_SHOTS_MAX, &task->shots, err) &&
              (own == NULL || (gd_json_only_known(own, at, known_shots, err) &&
                               gd_json_get_array(own, at, "samples", false, &task->samples, err)));
    if (ok && own != NULL && gd_json_find(own, "sampler") != NULL)
        ok = gd_grader_choice(own, at, "sampler", samplers, (int)GD_COUNT(samplers), &sampler, err);
    const cJSON *split = ok && own != NULL ? gd_json_find(own, "split") : NULL;
    if (cJSON_IsString(split) && gd_json_find(task->config, "fewshot_split") == NULL)
        cJSON_AddItemToObject(task->config, "fewshot_split", cJSON_Duplicate(split, true));
    task->first_shots = sampler == 1;
    ok = ok && parse_shot_turn(task, own, at, err);
    gd_free(at);
    return ok;
}

/* ---- generation ---- */

static bool add_stop(struct gd_task *task, const cJSON *stop, const char *param, struct gd_error *err)
{
    if (!cJSON_IsString(stop) || stop->valuestring[0] == '\0' || cJSON_GetArraySize(task->stops) == STOPS_MAX)
        return gd_fail_param(err, GD_INVALID, param, "%s must be at most %d texts that are not empty", param, STOPS_MAX);
    cJSON_AddItemToArray(task->stops, cJSON_CreateString(stop->valuestring));
    return true;
}

static bool parse_stops(struct gd_task *task, const cJSON *kwargs, const char *path, struct gd_error *err)
{
    const cJSON *until = kwargs != NULL ? gd_json_find(kwargs, "until") : NULL, *stop;
    char *param = gd_format("%s.until", path);
    bool ok = true;
    task->stops = cJSON_CreateArray();
    if (until == NULL || cJSON_IsNull(until)) {
        if (task->turn.delimiter[0] != '\0')
            cJSON_AddItemToArray(task->stops, cJSON_CreateString(task->turn.delimiter));
    } else if (cJSON_IsArray(until)) {
        cJSON_ArrayForEach(stop, until)
            ok = ok && add_stop(task, stop, param, err);
    } else {
        ok = add_stop(task, until, param, err);
    }
    gd_free(param);
    return ok;
}

static bool parse_generation(struct gd_task *task, const char *path, struct gd_error *err)
{
    static const char *const known_kwargs[] = {"do_sample", "max_gen_toks", "max_new_tokens", "max_tokens", "temperature", "top_p",
                                               "until", NULL};
    static const char *const lengths[] = {"max_tokens", "max_new_tokens", "max_gen_toks"}; /* the last given counts */
    const cJSON *kwargs = NULL;
    bool sample = false;
    char *at = gd_format("%s.generation_kwargs", path);
    task->max_tokens = 256;
    task->top_p = 1;
    bool ok = gd_json_get_object(task->config, path, "generation_kwargs", false, &kwargs, err) &&
              (kwargs == NULL || task->output == GD_TASK_GENERATE ||
               gd_fail_param(err, GD_INVALID, at, "%s is for output_type generate_until only", at));
    if (ok && kwargs != NULL) {
        ok = gd_json_only_known(kwargs, at, known_kwargs, err) &&
             gd_json_get_number(kwargs, at, "temperature", false, 0, 2, &task->temperature, err) &&
             gd_json_get_number(kwargs, at, "top_p", false, 1e-6, 1, &task->top_p, err) &&
             gd_json_get_bool(kwargs, at, "do_sample", false, &sample, err);
        for (size_t i = 0; ok && i < GD_COUNT(lengths); i++)
            ok = gd_json_get_int(kwargs, at, lengths[i], false, 1, 1 << 20, &task->max_tokens, err);
        const cJSON *do_sample = gd_json_find(kwargs, "do_sample");
        if (ok && sample && task->temperature == 0)
            ok = gd_fail_param(err, GD_INVALID, at, "%s: do_sample is true and temperature 0 leaves nothing to sample", at);
        if (ok && cJSON_IsFalse(do_sample))
            task->temperature = 0;
    }
    ok = ok && parse_stops(task, kwargs, at, err);
    gd_free(at);
    return ok;
}

/* ---- the whole ---- */

static bool check_fields(const struct gd_task *task, const char *path, struct gd_error *err)
{
    const char *missing = !gd_task_field_given(&task->turn.target)                                          ? "doc_to_target"
                          : task->output != GD_TASK_ROLLING && !gd_task_field_given(&task->turn.text)       ? "doc_to_text"
                          : task->output == GD_TASK_CHOICE && !gd_task_field_given(&task->turn.choice)      ? "doc_to_choice"
                                                                                                            : NULL;
    if (missing != NULL) {
        char *param = gd_format("%s.%s", path, missing);
        gd_fail_param(err, GD_MISSING, param, "%s is missing", param);
        gd_free(param);
        return false;
    }
    if (task->repeats > 1 && task->temperature == 0)
        return gd_fail_param(err, GD_INVALID, path, "%s.repeats: %d equal answers say no more than one; set do_sample and temperature",
                             path, (int)task->repeats);
    return true;
}

static bool parse(struct gd_task *task, const char *path, struct gd_error *err)
{
    int output = GD_TASK_GENERATE;
    task->turn.target_delimiter = " ";
    task->turn.delimiter = "\n\n";
    task->shot.target_delimiter = " ";
    task->shot.delimiter = "\n\n";
    task->repeats = 1;
    if (!check_keys(task->config, path, err) || !gd_json_get_string(task->config, path, "task", true, 1, 256, &task->name, err))
        return false;
    if (gd_json_find(task->config, "output_type") != NULL &&
        !gd_grader_choice(task->config, path, "output_type", gd_task_outputs, GD_TASK_OUTPUT_COUNT, &output, err))
        return false;
    task->output = (enum gd_task_output)output;
    if (!parse_turn(&task->turn, task->config, path, err) ||
        !gd_task_field_parse(&task->description, task->config, path, "description", err) || !parse_shots(task, path, err) ||
        !parse_data(task, path, err) || !parse_generation(task, path, err) ||
        !gd_json_get_int(task->config, path, "repeats", false, 1, GD_TASK_REPEATS_MAX, &task->repeats, err) ||
        !gd_task_filters_parse(task, path, err) || !gd_task_metrics_parse(task, path, err))
        return false;
    task->never_itself = same_split(task->config, "fewshot_split", "test_split");
    return check_fields(task, path, err);
}

struct gd_task *gd_task_parse(const cJSON *config, const char *path, struct gd_error *err)
{
    if (!cJSON_IsObject(config)) {
        gd_fail_param(err, GD_INVALID, path, "%s must be a mapping: task, dataset_path, doc_to_text, ...", path);
        return NULL;
    }
    struct gd_task *task = gd_alloc(sizeof *task);
    task->config = cJSON_Duplicate(config, true);
    if (parse(task, path, err))
        return task;
    gd_task_destroy(task);
    return NULL;
}

void gd_task_destroy(struct gd_task *task)
{
    if (task == NULL)
        return;
    release_turn(&task->turn);
    release_turn(&task->shot);
    gd_task_field_release(&task->description);
    gd_task_filters_release(task);
    gd_task_metrics_release(task);
    cJSON_Delete(task->stops);
    cJSON_Delete(task->rows);
    cJSON_Delete(task->pool);
    cJSON_Delete(task->columns);
    cJSON_Delete(task->shot_columns);
    gd_free(task->row);
    gd_free(task->shot_row);
    gd_free(task->chosen);
    cJSON_Delete(task->config);
    gd_free(task);
}

const char *gd_task_name(const struct gd_task *task)
{
    return task->name;
}

const char *gd_task_rows_file(const struct gd_task *task)
{
    return task->rows_file;
}

bool gd_task_needs_shots(const struct gd_task *task, int64_t shots)
{
    return (shots >= 0 ? shots : task->shots) > 0 && task->samples == NULL && task->shots_file != NULL;
}

const char *gd_task_shots_file(const struct gd_task *task)
{
    return task->shots_file;
}

int64_t gd_task_count(const struct gd_task *task)
{
    return task->count;
}
