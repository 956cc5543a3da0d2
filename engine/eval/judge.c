#include "engine/eval/judge.h"

#include "engine/base/alloc.h"

#include <string.h>

static const char *const outputs[] = {"constrained", "free"};

bool gd_judge_parse(struct gd_judge *judge, const cJSON *json, const char *path, struct gd_error *err)
{
    const char *model = NULL;
    const cJSON *sampling = NULL;
    int output = 0;
    judge->sampling = (struct gd_eval_sampling){.temperature = 0, .top_p = 1, .max_tokens = GD_JUDGE_TOKENS_MAX};
    if (!gd_json_get_string(json, path, "model", true, 1, 512, &model, err) ||
        (gd_json_find(json, "output") != NULL &&
         !gd_grader_choice(json, path, "output", outputs, (int)GD_COUNT(outputs), &output, err)) ||
        !gd_json_get_object(json, path, "sampling_params", false, &sampling, err))
        return false;
    judge->model = gd_strdup(model);
    judge->free_output = output == 1;
    char *at = gd_format("%s.input", path), *below = gd_format("%s.sampling_params", path);
    bool ok = gd_eval_messages_parse(&judge->input, gd_json_find(json, "input"), at, err) &&
              gd_eval_sampling_parse(&judge->sampling, sampling, below, false, err);
    gd_free(at);
    gd_free(below);
    return ok;
}

bool gd_judge_references(const struct gd_grader *grader, const char *path, gd_reference_seen seen, void *context,
                         struct gd_error *err)
{
    const struct gd_judge *judge = grader->state;
    char *at = gd_format("%s.input", path);
    bool ok = gd_eval_messages_references(&judge->input, at, seen, context, err);
    gd_free(at);
    return ok;
}

int gd_judge_ask_count(const struct gd_grader *grader)
{
    return 1;
}

const char *gd_judge_ask_model(const struct gd_grader *grader, int index)
{
    return ((const struct gd_judge *)grader->state)->model;
}

bool gd_judge_fill_ask(const struct gd_grader *grader, int index, const struct gd_grade_input *input, struct gd_ask *ask,
                       struct gd_grade *grade)
{
    const struct gd_judge *judge = grader->state;
    ask->messages = gd_eval_messages_render(&judge->input, input->item, input->sample, grade);
    if (ask->messages == NULL)
        return false;
    ask->model = gd_strdup(judge->model);
    gd_eval_sampling_apply(&judge->sampling, ask);
    if (!judge->free_output)
        ask->choices = cJSON_Duplicate(judge->choices, true);
    return true;
}

void gd_judge_release(struct gd_grader *grader)
{
    struct gd_judge *judge = grader->state;
    gd_free(judge->model);
    gd_eval_messages_release(&judge->input);
    gd_eval_sampling_release(&judge->sampling);
    cJSON_Delete(judge->choices);
    gd_free(judge);
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

char *gd_judge_text(const struct gd_grade_input *input, struct gd_grade *grade)
{
    const struct gd_ask *ask = input->asks;
    if (ask == NULL || !ask->answered) {
        gd_grade_fail(grade, GD_GRADE_MODEL_SERVER, "the judge was not asked");
        return NULL;
    }
    if (ask->error.code != GD_OK) { /* either its texts could not be filled in, or the model could not answer */
        gd_grade_fail(grade, ask->messages == NULL ? GD_GRADE_INVALID_VARIABLE : GD_GRADE_MODEL_SERVER, "%s",
                      ask->error.message);
        return NULL;
    }
    const char *text = ask->text != NULL ? ask->text : "";
    while (is_blank(*text))
        text++;
    size_t length = strlen(text);
    while (length > 0 && is_blank(text[length - 1]))
        length--;
    return gd_strndup(text, length);
}

cJSON *gd_judge_result(const char *text)
{
    struct gd_error not_json = {0};
    cJSON *json = *text == '{' ? gd_json_parse(text, strlen(text), GD_GRADER_RENDER_BYTES_MAX, &not_json) : NULL;
    cJSON *result = json != NULL ? cJSON_DetachItemFromObjectCaseSensitive(json, "result") : NULL;
    cJSON_Delete(json);
    return result;
}
