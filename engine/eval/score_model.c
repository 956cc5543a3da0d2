/*
 * score_model.c - a model says how good the answer is, as a number in a range.
 *
 * Constrained, the judge says one of the whole numbers of the range where it has 3 to 101 of them between whole ends, else
 * one of eleven even steps from end to end: 0, 0.1 ... 1 of [0, 1]. Free, its answer must be a number and nothing else, or
 * a JSON object with the number as "result".
 */
#include "engine/base/alloc.h"
#include "engine/eval/judge.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANGE_MAX 1e9
#define STEPS 10
#define WHOLE_MAX 100

static const char *const fields[] = {"type",  "name",           "model",  "input", "sampling_params",
                                     "range", "pass_threshold", "output", NULL};

struct score {
    struct gd_judge judge; /* first */
    double low, high;
};

static bool parse_range(struct score *score, const cJSON *json, const char *path, struct gd_error *err)
{
    const cJSON *range = NULL;
    score->high = 1;
    if (!gd_json_get_array(json, path, "range", false, &range, err))
        return false;
    if (range == NULL)
        return true;
    const cJSON *low = cJSON_GetArrayItem(range, 0), *high = cJSON_GetArrayItem(range, 1);
    char *param = gd_format("%s.range", path);
    bool ok = cJSON_GetArraySize(range) == 2 && cJSON_IsNumber(low) && cJSON_IsNumber(high) &&
              low->valuedouble < high->valuedouble && fabs(low->valuedouble) <= RANGE_MAX &&
              fabs(high->valuedouble) <= RANGE_MAX;
    if (ok) {
        score->low = low->valuedouble;
        score->high = high->valuedouble;
    } else {
        gd_fail_param(err, GD_INVALID, param, "%s must be [low, high], two numbers of at most %g with low < high", param,
                      RANGE_MAX);
    }
    gd_free(param);
    return ok;
}

static void add_choices(struct score *score)
{
    double width = score->high - score->low;
    bool whole = score->low == floor(score->low) && score->high == floor(score->high) && width >= 2 && width <= WHOLE_MAX;
    int steps = whole ? (int)width : STEPS;
    score->judge.choices = cJSON_CreateArray();
    for (int i = 0; i <= steps; i++) {
        char text[32];
        double value = i == steps ? score->high : score->low + width * i / steps;
        snprintf(text, sizeof text, "%.6g", fabs(value) < width * 1e-9 ? 0.0 : value);
        cJSON_AddItemToArray(score->judge.choices, cJSON_CreateString(text));
    }
}

static bool parse(struct gd_grader *grader, const cJSON *json, const char *path, struct gd_error *err)
{
    struct score *score = grader->state = gd_alloc(sizeof *score);
    if (!gd_judge_parse(&score->judge, json, path, err) || !parse_range(score, json, path, err))
        return false;
    grader->pass_threshold = score->high;
    add_choices(score);
    return gd_json_get_number(json, path, "pass_threshold", false, score->low, score->high, &grader->pass_threshold, err);
}

/* A JSON number and nothing else. */
static bool read_number(const char *text, double *out)
{
    struct gd_error not_json = {0};
    cJSON *json = gd_judge_result(text);
    if (json == NULL)
        json = gd_json_parse(text, strlen(text), 64, &not_json);
    bool ok = cJSON_IsNumber(json);
    if (ok)
        *out = json->valuedouble;
    cJSON_Delete(json);
    return ok;
}

static bool grade(const struct gd_grader *grader, const struct gd_grade_input *input, struct gd_grade *out)
{
    const struct score *score = grader->state;
    char *text = gd_judge_text(input, out);
    if (text == NULL)
        return false;
    bool ok = read_number(text, &out->reward);
    if (!ok)
        gd_grade_fail(out, GD_GRADE_MODEL_PARSE,
                      "the judge %s said \"%.300s\", which is neither a number nor {\"result\": number}%s",
                      score->judge.model, text, input->asks->truncated ? " (it was cut off)" : "");
    else if (out->reward < score->low || out->reward > score->high)
        ok = gd_grade_fail(out, GD_GRADE_MODEL_PARSE, "the judge %s said %g, which is outside the range %g to %g",
                           score->judge.model, out->reward, score->low, score->high);
    gd_free(text);
    return ok;
}

const struct gd_grader_type gd_grader_type_score_model = {
    .name = "score_model", .fields = fields, .parse = parse, .grade = grade, .release = gd_judge_release,
    .references = gd_judge_references, .ask_count = gd_judge_ask_count, .ask_model = gd_judge_ask_model, .fill_ask = gd_judge_fill_ask};
