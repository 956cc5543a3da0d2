/* task_filter.c - from what the model said to what is judged: filter_list. */
#include "engine/base/alloc.h"
#include "engine/eval/grader_type.h"
#include "engine/eval/literal.h"
#include "engine/eval/lower.h"
#include "engine/eval/space.h"
#include "engine/eval/task_parts.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static const char *const step_names[GD_STEP_COUNT] = {"lowercase", "map", "majority_vote", "regex", "remove_whitespace",
                                                      "take_first", "take_first_k", "uppercase"};

static const char *const fields_plain[] = {"function", NULL};
static const char *const fields_map[] = {"default_value", "function", "mapping_dict", NULL};
static const char *const fields_regex[] = {"fallback", "function", "group_select", "regex_pattern", NULL};
static const char *const fields_first_k[] = {"function", "k", NULL};

static bool parse_regex(struct gd_task_step *step, const cJSON *json, const char *path, struct gd_error *err)
{
    const char *source = "#### (\\-?[0-9\\.\\,]+)";
    int64_t select = 0;
    char *param = gd_format("%s.regex_pattern", path);
    step->fallback = "[invalid]";
    bool ok = gd_json_get_string(json, path, "regex_pattern", false, 1, 4096, &source, err) &&
              gd_json_get_string(json, path, "fallback", false, 0, 4096, &step->fallback, err) &&
              gd_json_get_int(json, path, "group_select", false, -1000000, 1000000, &select, err) &&
              (step->pattern = gd_pattern_compile(source, param, err)) != NULL;
    step->select = (int)select;
    gd_free(param);
    return ok;
}

static bool parse_step(struct gd_task_step *step, const cJSON *json, const char *path, struct gd_error *err)
{
    int kind = 0;
    int64_t k = 0;
    bool ok = cJSON_IsObject(json) ? gd_grader_choice(json, path, "function", step_names, GD_STEP_COUNT, &kind, err)
                                   : gd_fail_param(err, GD_INVALID, path, "%s must be a mapping with a function", path);
    step->kind = (enum gd_task_step_kind)kind;
    if (!ok)
        return false;
    switch (step->kind) {
    case GD_STEP_REGEX:
        return gd_json_only_known(json, path, fields_regex, err) && parse_regex(step, json, path, err);
    case GD_STEP_MAP:
        step->otherwise = gd_json_find(json, "default_value");
        return gd_json_only_known(json, path, fields_map, err) &&
               gd_json_get_object(json, path, "mapping_dict", true, &step->map, err);
    case GD_STEP_FIRST_K:
        ok = gd_json_only_known(json, path, fields_first_k, err) &&
             gd_json_get_int(json, path, "k", true, 1, GD_TASK_REPEATS_MAX, &k, err);
        step->select = (int)k;
        return ok;
    default:
        return gd_json_only_known(json, path, fields_plain, err);
    }
}

static bool parse_steps(struct gd_task *task, struct gd_task_filter *filter, const cJSON *list, const char *path,
                        struct gd_error *err)
{
    const cJSON *step;
    cJSON_ArrayForEach(step, list)
    {
        char *at = gd_format("%s.filter[%d]", path, filter->step_count);
        bool ok = filter->step_count < GD_TASK_STEPS_MAX ||
                  gd_fail_param(err, GD_INVALID, at, "%s: a filter has at most %d steps", at, GD_TASK_STEPS_MAX);
        ok = ok && parse_step(&filter->steps[filter->step_count], step, at, err);
        filter->step_count += filter->step_count < GD_TASK_STEPS_MAX;
        if (ok && filter->steps[filter->step_count - 1].kind == GD_STEP_FIRST_K &&
            filter->steps[filter->step_count - 1].select > task->repeats)
            ok = gd_fail_param(err, GD_INVALID, at, "%s.k: there are only %d answers (repeats)", at, (int)task->repeats);
        gd_free(at);
        if (!ok)
            return false;
    }
    const struct gd_task_step *last = filter->step_count > 0 ? &filter->steps[filter->step_count - 1] : NULL;
    return (last != NULL && last->kind == GD_STEP_FIRST) ||
           gd_fail_param(err, GD_INVALID, path, "%s.filter must end with take_first: metrics judge one answer", path);
}

static bool parse_filter(struct gd_task *task, const cJSON *json, const char *path, struct gd_error *err)
{
    static const char *const known[] = {"filter", "name", NULL};
    struct gd_task_filter *filter = &task->filters[task->filter_count];
    const cJSON *list = NULL;
    if (task->filter_count == GD_TASK_FILTERS_MAX)
        return gd_fail_param(err, GD_INVALID, path, "%s: a task has at most %d filters", path, GD_TASK_FILTERS_MAX);
    task->filter_count++;
    if (!gd_json_only_known(json, path, known, err) ||
        !gd_json_get_string(json, path, "name", true, 1, 256, &filter->name, err) ||
        !gd_json_get_array(json, path, "filter", true, &list, err))
        return false;
    for (int i = 0; i < task->filter_count - 1; i++)
        if (strcmp(task->filters[i].name, filter->name) == 0)
            return gd_fail_param(err, GD_INVALID, path, "%s: there are two filters named '%.64s'", path, filter->name);
    return parse_steps(task, filter, list, path, err);
}

bool gd_task_filters_parse(struct gd_task *task, const char *path, struct gd_error *err)
{
    const cJSON *list = NULL, *filter;
    if (!gd_json_get_array(task->config, path, "filter_list", false, &list, err))
        return false;
    if (list == NULL) {
        task->filters[0] = (struct gd_task_filter){.name = "none", .steps = {{.kind = GD_STEP_FIRST}}, .step_count = 1};
        task->filter_count = 1;
        return true;
    }
    if (task->output != GD_TASK_GENERATE)
        return gd_fail_param(err, GD_UNSUPPORTED, path, "%s.filter_list: only the answers of generate_until are texts to filter", path);
    int index = 0;
    bool ok = cJSON_GetArraySize(list) > 0 || gd_fail_param(err, GD_INVALID, path, "%s.filter_list is empty", path);
    cJSON_ArrayForEach(filter, list)
    {
        char *at = gd_format("%s.filter_list[%d]", path, index++);
        ok = ok && parse_filter(task, filter, at, err);
        gd_free(at);
    }
    return ok;
}

void gd_task_filters_release(struct gd_task *task)
{
    for (int i = 0; i < task->filter_count; i++)
        for (int s = 0; s < task->filters[i].step_count; s++)
            gd_pattern_destroy(task->filters[i].steps[s].pattern);
}

/* ---- running ---- */

/* As Python's str.upper by the simple mapping; the sharp s is two letters. */
static void upper(const char *text, struct gd_buf *out)
{
    utf8proc_int32_t code;
    utf8proc_uint8_t bytes[4];
    for (utf8proc_ssize_t left = (utf8proc_ssize_t)strlen(text), used; left > 0; text += used, left -= used) {
        used = utf8proc_iterate((const utf8proc_uint8_t *)text, left, &code);
        if (used < 1)
            used = 1;
        else if (code == 0xDF)
            gd_buf_append_text(out, "SS");
        else
            gd_buf_append(out, bytes, (size_t)utf8proc_encode_char(utf8proc_toupper(code), bytes));
    }
}

/* str.strip() */
static void strip(const char *text, struct gd_buf *out)
{
    size_t first = 0, end = 0, used;
    bool space, begun = false;
    for (size_t at = 0; text[at] != '\0'; at += used) {
        used = gd_space_skip(text + at, &space);
        if (space)
            continue;
        first = begun ? first : at;
        begun = true;
        end = at + used;
    }
    gd_buf_append(out, text + first, end - first);
}

static bool extract(const struct gd_task_step *step, const char *text, struct gd_buf *out, struct gd_error *err)
{
    struct gd_buf match;
    bool found = false;
    gd_buf_init(&match, 0);
    bool ok = gd_pattern_find(step->pattern, text, step->select, &match, &found, err);
    if (ok && found)
        strip(match.data != NULL ? match.data : "", out);
    else
        gd_buf_append_text(out, step->fallback);
    gd_buf_release(&match);
    return ok;
}

static void map(const struct gd_task_step *step, const char *text, struct gd_buf *out)
{
    const cJSON *value = gd_json_find(step->map, text);
    gd_literal_str(value != NULL ? value : step->otherwise, out);
}

/* One answer through a step that looks at each alone; *text becomes the new one. */
static bool apply(const struct gd_task_step *step, char **text, struct gd_error *err)
{
    struct gd_buf out;
    bool ok = true;
    gd_buf_init(&out, 0);
    switch (step->kind) {
    case GD_STEP_LOWER:
        gd_lower(*text, strlen(*text), &out);
        break;
    case GD_STEP_UPPER:
        upper(*text, &out);
        break;
    case GD_STEP_STRIP:
        strip(*text, &out);
        break;
    case GD_STEP_MAP:
        map(step, *text, &out);
        break;
    default:
        ok = extract(step, *text, &out, err);
    }
    gd_free(*text);
    *text = gd_buf_take(&out);
    return ok;
}

/* The most frequent, of several the one that came first. */
static int majority(char *const *answers, int count)
{
    int best = 0, most = 0;
    for (int i = 0; i < count; i++) {
        int equal = 0;
        for (int k = 0; k < count; k++)
            equal += strcmp(answers[i], answers[k]) == 0;
        if (equal > most) {
            most = equal;
            best = i;
        }
    }
    return best;
}

char *gd_task_filter_run(const struct gd_task_filter *filter, const char *const *answers, int count, struct gd_error *err)
{
    char *texts[GD_TASK_REPEATS_MAX];
    bool ok = true;
    int all = count;
    for (int i = 0; i < count; i++)
        texts[i] = gd_strdup(answers[i]);
    for (int s = 0; ok && s < filter->step_count; s++) {
        const struct gd_task_step *step = &filter->steps[s];
        int best;
        switch (step->kind) {
        case GD_STEP_MAJORITY:
            best = majority(texts, count);
            char *winner = texts[best];
            texts[best] = texts[0];
            texts[0] = winner;
            count = 1;
            break;
        case GD_STEP_FIRST:
            count = 1;
            break;
        case GD_STEP_FIRST_K:
            count = count < step->select ? count : step->select;
            break;
        default:
            for (int i = 0; ok && i < count; i++)
                ok = apply(step, &texts[i], err);
        }
    }
    for (int i = 1; i < all; i++)
        gd_free(texts[i]);
    if (ok)
        return texts[0];
    gd_free(texts[0]);
    return NULL;
}
