/* text_similarity.c - how near input is to reference, by a metric of similarity.h. */
#include "engine/base/alloc.h"
#include "engine/eval/grader_text.h"
#include "engine/eval/similarity.h"

static const char *const fields[] = {"type", "name", "input", "reference", "evaluation_metric", "pass_threshold", NULL};

struct likeness {
    struct gd_grader_pair pair; /* first */
    int metric;
};

static bool parse(struct gd_grader *grader, const cJSON *json, const char *path, struct gd_error *err)
{
    struct likeness *likeness = grader->state = gd_alloc(sizeof *likeness);
    return gd_grader_pair_parse(&likeness->pair, json, path, err) &&
           gd_grader_choice(json, path, "evaluation_metric", gd_similarity_names, GD_SIMILARITY_COUNT,
                            &likeness->metric, err) &&
           gd_json_get_number(json, path, "pass_threshold", false, 0, 1, &grader->pass_threshold, err);
}

static bool compare(const void *state, const char *input, const char *reference, struct gd_grade *out)
{
    const struct likeness *likeness = state;
    struct gd_error err = {0};
    return gd_similarity((enum gd_similarity_metric)likeness->metric, input, reference, &out->reward, &err) ||
           gd_grade_fail(out, GD_GRADE_OTHER, "%s", err.message);
}

static bool grade(const struct gd_grader *grader, const struct gd_grade_input *from, struct gd_grade *out)
{
    return gd_grader_pair_grade(grader, from, compare, out);
}

const struct gd_grader_type gd_grader_type_text_similarity = {
    .name = "text_similarity", .fields = fields, .threshold_required = true, .parse = parse, .grade = grade, .release = gd_grader_pair_release,
    .references = gd_grader_pair_references};
