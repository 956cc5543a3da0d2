/*
 * python.c - grade(sample, item) in Python, in a sandboxed process of its own for each sample.
 *
 * image_tag names one of OpenAI's images; here the interpreter is the operator's, so it is kept in the grader and chooses
 * nothing.
 */
#include "engine/base/alloc.h"
#include "engine/eval/grader_type.h"
#include "engine/eval/sandbox.h"

#include <float.h>

#define SOURCE_BYTES_MAX (256u << 10)
#define TAG_BYTES_MAX 256

static const char *const fields[] = {"type", "name", "source", "image_tag", "pass_threshold", NULL};

static bool parse(struct gd_grader *grader, const cJSON *json, const char *path, struct gd_error *err)
{
    const char *source = NULL, *tag = NULL;
    char *param = gd_format("%s.type", path);
    bool ok = gd_sandbox_is_on(param, err) &&
              gd_json_get_string(json, path, "source", true, 1, SOURCE_BYTES_MAX, &source, err) &&
              gd_json_get_string(json, path, "image_tag", false, 1, TAG_BYTES_MAX, &tag, err) &&
              gd_json_get_number(json, path, "pass_threshold", false, -DBL_MAX, DBL_MAX, &grader->pass_threshold, err);
    gd_free(param);
    grader->state = ok ? gd_strdup(source) : NULL;
    return ok;
}

static bool run(const struct gd_grader *grader, const char *mode, const cJSON *item, const cJSON *sample, double *value,
                struct gd_error *err)
{
    cJSON *request = cJSON_CreateObject();
    cJSON_AddStringToObject(request, "mode", mode);
    cJSON_AddItemToObject(request, "source", cJSON_CreateStringReference(grader->state));
    if (sample != NULL)
        cJSON_AddItemReferenceToObject(request, "sample", (cJSON *)sample);
    if (item != NULL)
        cJSON_AddItemReferenceToObject(request, "item", (cJSON *)item);
    else
        cJSON_AddItemToObject(request, "item", cJSON_CreateObject());
    bool ok = gd_sandbox_run(request, value, err);
    cJSON_Delete(request);
    return ok;
}

static bool grade(const struct gd_grader *grader, const struct gd_grade_input *input, struct gd_grade *out)
{
    struct gd_error err = {0};
    return run(grader, "grade", input->item, input->sample, &out->reward, &err) ||
           gd_grade_fail(out, err.code == GD_INVALID ? GD_GRADE_PYTHON_RUNTIME : GD_GRADE_PYTHON_SERVER, "%s", err.message);
}

static bool check(const struct gd_grader *grader, const char *path, struct gd_error *err)
{
    double ignored;
    struct gd_error said = {0};
    if (run(grader, "check", NULL, NULL, &ignored, &said))
        return true;
    char *param = gd_format("%s.source", path);
    gd_fail_param(err, said.code, param, "%s: %s", param, said.message);
    gd_free(param);
    return false;
}

static void release(struct gd_grader *grader)
{
    gd_free(grader->state);
}

const struct gd_grader_type gd_grader_type_python = {
    .name = "python", .fields = fields, .parse = parse, .check = check, .grade = grade, .release = release};
