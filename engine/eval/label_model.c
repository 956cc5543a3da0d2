/*
 * label_model.c - a model puts the answer into one of several classes; some of them pass.
 *
 * Constrained, the judge says one of the labels. Free, its answer must be a label and nothing else, or a JSON object with
 * the label as "result".
 */
#include "engine/base/alloc.h"
#include "engine/eval/judge.h"

#include <string.h>

#define LABELS_MAX 100
#define LABEL_BYTES_MAX 256

static const char *const fields[] = {"type",  "name",   "model",          "input", "sampling_params",
                                     "labels", "output", "passing_labels", NULL};

struct labelling {
    struct gd_judge judge; /* first; choices: the labels */
    bool passes[LABELS_MAX];
};

static int find_label(const cJSON *labels, const char *text)
{
    int index = 0;
    const cJSON *label;
    cJSON_ArrayForEach(label, labels)
    {
        if (strcmp(label->valuestring, text) == 0)
            return index;
        index++;
    }
    return -1;
}

static bool parse_labels(struct labelling *labelling, const cJSON *json, const char *path, struct gd_error *err)
{
    const cJSON *list = NULL, *label;
    labelling->judge.choices = cJSON_CreateArray();
    if (!gd_json_get_array(json, path, "labels", true, &list, err))
        return false;
    char *param = gd_format("%s.labels", path);
    int count = cJSON_GetArraySize(list);
    bool ok = count >= 1 && count <= LABELS_MAX;
    if (!ok)
        gd_fail_param(err, GD_INVALID, param, "%s has %d labels; it must have 1 to %d", param, count, LABELS_MAX);
    cJSON_ArrayForEach(label, list)
    {
        size_t length = cJSON_IsString(label) ? strlen(label->valuestring) : 0;
        if (ok && (length < 1 || length > LABEL_BYTES_MAX))
            ok = gd_fail_param(err, GD_INVALID, param, "%s must hold strings of 1 to %d bytes", param, LABEL_BYTES_MAX);
        if (ok && find_label(labelling->judge.choices, label->valuestring) >= 0)
            ok = gd_fail_param(err, GD_INVALID, param, "%s: '%.64s' is there twice", param, label->valuestring);
        if (ok)
            cJSON_AddItemToArray(labelling->judge.choices, cJSON_CreateString(label->valuestring));
    }
    gd_free(param);
    return ok;
}

static bool parse_passing(struct labelling *labelling, const cJSON *json, const char *path, struct gd_error *err)
{
    const cJSON *list = NULL, *label, *choices = labelling->judge.choices;
    if (!gd_json_get_array(json, path, "passing_labels", true, &list, err))
        return false;
    char *param = gd_format("%s.passing_labels", path);
    bool ok = cJSON_GetArraySize(list) > 0 || gd_fail_param(err, GD_INVALID, param, "%s is empty: no answer could pass", param);
    cJSON_ArrayForEach(label, list)
    {
        int index = cJSON_IsString(label) ? find_label(choices, label->valuestring) : -1;
        if (index >= 0) {
            labelling->passes[index] = true;
        } else if (ok) {
            const char *names[LABELS_MAX], *given = cJSON_IsString(label) ? label->valuestring : "?";
            int count = 0;
            const cJSON *choice;
            cJSON_ArrayForEach(choice, choices) names[count++] = choice->valuestring;
            const char *near = gd_nearest_name(given, names, (size_t)count);
            ok = gd_fail_param(err, GD_INVALID, param, "%s: '%.64s' is none of the labels%s%s%s", param, given,
                               near != NULL ? "; did you mean '" : "", near != NULL ? near : "", near != NULL ? "'?" : "");
        }
    }
    gd_free(param);
    return ok;
}

static bool parse(struct gd_grader *grader, const cJSON *json, const char *path, struct gd_error *err)
{
    struct labelling *labelling = grader->state = gd_alloc(sizeof *labelling);
    return gd_judge_parse(&labelling->judge, json, path, err) && parse_labels(labelling, json, path, err) &&
           parse_passing(labelling, json, path, err);
}

static bool grade(const struct gd_grader *grader, const struct gd_grade_input *input, struct gd_grade *out)
{
    const struct labelling *labelling = grader->state;
    char *text = gd_judge_text(input, out);
    if (text == NULL)
        return false;
    cJSON *result = gd_judge_result(text);
    int index = find_label(labelling->judge.choices, cJSON_IsString(result) ? result->valuestring : text);
    if (index >= 0)
        out->reward = labelling->passes[index];
    else
        gd_grade_fail(out, GD_GRADE_MODEL_PARSE, "the judge %s said \"%.300s\", which is none of the labels%s",
                      labelling->judge.model, text, input->asks->truncated ? " (it was cut off)" : "");
    cJSON_Delete(result);
    gd_free(text);
    return index >= 0;
}

const struct gd_grader_type gd_grader_type_label_model = {
    .name = "label_model", .fields = fields, .parse = parse, .grade = grade, .release = gd_judge_release,
    .references = gd_judge_references, .ask_count = gd_judge_ask_count, .ask_model = gd_judge_ask_model, .fill_ask = gd_judge_fill_ask};
