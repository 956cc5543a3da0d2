/* text_similarity.c - how near input is to reference, by a metric of similarity.h. */
#include "engine/base/alloc.h"
#include "engine/eval/grader_text.h"
#include "engine/eval/similarity.h"

static const char *const fields[] = {"type", "name", "input", "reference", "evaluation_metric", "pass_threshold", NULL};

struct likeness {
    struct gd_grader_text input, reference;
    int metric;
};

static bool parse(struct gd_grader *grader, const cJSON *json, const char *path, struct gd_error *err)
{
    struct likeness *likeness = grader->state = gd_alloc(sizeof *likeness);
    return gd_grader_text_parse(&likeness->input, json, path, "input", err) &&
           gd_grader_text_parse(&likeness->reference, json, path, "reference", err) &&
           gd_grader_choice(json, path, "evaluation_metric", gd_similarity_names, GD_SIMILARITY_COUNT,
                            &likeness->metric, err) &&
           gd_json_get_number(json, path, "pass_threshold", false, 0, 1, &grader->pass_threshold, err);
}

static bool grade(const struct gd_grader *grader, const struct gd_grade_input *from, struct gd_grade *out)
{
    const struct likeness *likeness = grader->state;
    struct gd_error err = {0};
    struct gd_buf input, reference;
    gd_buf_init(&input, GD_GRADER_RENDER_BYTES_MAX);
    gd_buf_init(&reference, GD_GRADER_RENDER_BYTES_MAX);
    bool ok = gd_grader_text_render(&likeness->input, from->item, from->sample, &input, out) &&
              gd_grader_text_render(&likeness->reference, from->item, from->sample, &reference, out);
    if (ok && !gd_similarity((enum gd_similarity_metric)likeness->metric, input.data != NULL ? input.data : "",
                             reference.data != NULL ? reference.data : "", &out->reward, &err))
        ok = gd_grade_fail(out, GD_GRADE_OTHER, "%s", err.message);
    gd_buf_release(&input);
    gd_buf_release(&reference);
    return ok;
}

static bool references(const struct gd_grader *grader, const char *path, gd_reference_seen seen, void *context,
                       struct gd_error *err)
{
    const struct likeness *likeness = grader->state;
    return gd_grader_text_references(&likeness->input, path, "input", seen, context, err) &&
           gd_grader_text_references(&likeness->reference, path, "reference", seen, context, err);
}

static void release(struct gd_grader *grader)
{
    struct likeness *likeness = grader->state;
    gd_grader_text_release(&likeness->input);
    gd_grader_text_release(&likeness->reference);
    gd_free(likeness);
}

const struct gd_grader_type gd_grader_type_text_similarity = {
    .name = "text_similarity", .fields = fields, .threshold_required = true, .parse = parse, .grade = grade, .release = release,
    .references = references};
