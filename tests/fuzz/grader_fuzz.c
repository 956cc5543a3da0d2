/* Graders: what is accepted grades any sample within its bounds; all texts have similarities from 0 to 1. */
#include "engine/base/alloc.h"
#include "engine/eval/grader.h"
#include "engine/eval/similarity.h"
#include "tests/fuzz/fuzz.h"
#include <math.h>
#include <string.h>

static void check_grade(const struct gd_grade *grade)
{
    bool flagged = false;
    for (int flag = 0; flag < GD_GRADE_FLAG_COUNT; flag++)
        flagged |= grade->flags[flag];
    if (!isfinite(grade->reward) || flagged != (grade->error.code != GD_OK) ||
        (flagged && (grade->reward != 0 || grade->passed)))
        abort();
}

/* {"grader": ..., "item": ..., "model_sample": ...} */
static void grade(const cJSON *json)
{
    struct gd_error err = {0};
    struct gd_grader *grader = gd_grader_parse(gd_json_find(json, "grader"), "grader", &err);
    if (grader == NULL) {
        if (err.param[0] == '\0' || err.message[0] == '\0')
            abort();
        return;
    }
    const cJSON *text = gd_json_find(json, "model_sample");
    cJSON *sample = gd_grader_sample(cJSON_IsString(text) ? text->valuestring : "");
    struct gd_grade result;
    gd_grader_run(grader, gd_json_find(json, "item"), sample, &result);
    check_grade(&result);
    gd_grade_release(&result);
    cJSON_Delete(sample);
    gd_grader_destroy(grader);
}

/* Text that is not JSON: the halves are compared by every metric. */
static void compare(const char *text, size_t size)
{
    size_t middle = size / 2;
    while (middle > 0 && ((unsigned char)text[middle] & 0xC0u) == 0x80u)
        middle--;
    char *input = gd_strndup(text, middle), *reference = gd_strndup(text + middle, size - middle);
    for (int metric = 0; metric < GD_SIMILARITY_COUNT; metric++) {
        struct gd_error err = {0};
        double score;
        if (gd_similarity((enum gd_similarity_metric)metric, input, reference, &score, &err)
                ? !(score >= 0 && score <= 1)
                : err.message[0] == '\0')
            abort();
    }
    gd_free(input);
    gd_free(reference);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gd_error err = {0};
    if (size == 0)
        return 0;
    cJSON *json = gd_json_parse((const char *)data, size, size, &err);
    if (json != NULL)
        grade(json);
    else if (memchr(data, 0, size) == NULL && gd_utf8_valid((const char *)data, size))
        compare((const char *)data, size);
    cJSON_Delete(json);
    return 0;
}
