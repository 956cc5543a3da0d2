/*
 * multi.c - several graders, one formula over their rewards.
 *
 * `graders` is one grader, a list, or an object from name to grader. The formula calls a grader by its key in the
 * object, else by its `name`.
 */
#include "engine/base/alloc.h"
#include "engine/eval/formula.h"
#include "engine/eval/grader_type.h"

#include <string.h>

static const char *const fields[] = {"type", "name", "graders", "calculate_output", "pass_threshold", NULL};

struct member {
    char *name, *path; /* path: where it stands, below the multi's own */
    struct gd_grader *grader;
};

struct multi {
    struct gd_formula *formula;
    struct member members[GD_GRADER_PARTS_MAX];
    int member_count;
};

/* `key`: of the object form, or NULL. `above`: length of the multi's own path. */
static bool add_member(struct multi *multi, const cJSON *json, const char *path, size_t above, const char *key,
                       struct gd_error *err)
{
    if (multi->member_count == GD_GRADER_PARTS_MAX)
        return gd_fail_param(err, GD_INVALID, path, "%s: a multi grader has at most %d graders", path,
                             GD_GRADER_PARTS_MAX);
    struct gd_grader *grader = gd_grader_parse_named(json, path, key, err);
    if (grader == NULL)
        return false;
    struct member *member = &multi->members[multi->member_count++];
    member->grader = grader;
    member->name = gd_strdup(key != NULL ? key : grader->name);
    member->path = gd_strdup(path + above);
    if (strcmp(grader->type->name, "multi") == 0)
        return gd_fail_param(err, GD_UNSUPPORTED, path, "%s: a multi grader cannot hold another", path);
    if (!gd_formula_is_name(member->name))
        return gd_fail_param(err, GD_INVALID, path,
                             "%s: calculate_output cannot call a grader '%.64s': use letters, digits and _", path,
                             member->name);
    for (int i = 0; i < multi->member_count - 1; i++)
        if (strcmp(multi->members[i].name, member->name) == 0)
            return gd_fail_param(err, GD_INVALID, path, "%s: there are two graders named '%.64s'", path, member->name);
    return true;
}

static bool add_members(struct multi *multi, const cJSON *graders, const char *path, struct gd_error *err)
{
    char *at = gd_format("%s.graders", path);
    const cJSON *member;
    bool ok = true;
    int index = 0;
    if (graders == NULL || cJSON_IsNull(graders))
        ok = gd_fail_param(err, GD_MISSING, at, "%s is missing: one grader, a list, or an object from name to grader",
                           at);
    else if (!cJSON_IsArray(graders) && !cJSON_IsObject(graders))
        ok = gd_fail_param(err, GD_INVALID, at, "%s must be one grader, a list, or an object from name to grader", at);
    else if (cJSON_IsObject(graders) && cJSON_IsString(gd_json_find(graders, "type")))
        ok = add_member(multi, graders, at, strlen(path), NULL, err);
    else
        cJSON_ArrayForEach(member, graders)
        {
            char *name =
                member->string != NULL ? gd_format("%s.%.64s", at, member->string) : gd_format("%s[%d]", at, index);
            ok = ok && add_member(multi, member, name, strlen(path), member->string, err);
            gd_free(name);
            index++;
        }
    if (ok && multi->member_count == 0)
        ok = gd_fail_param(err, GD_INVALID, at, "%s is empty", at);
    gd_free(at);
    return ok;
}

static bool parse(struct gd_grader *grader, const cJSON *json, const char *path, struct gd_error *err)
{
    struct multi *multi = grader->state = gd_alloc(sizeof *multi);
    const char *text = NULL, *names[GD_GRADER_PARTS_MAX];
    if (!add_members(multi, gd_json_find(json, "graders"), path, err) ||
        !gd_json_get_string(json, path, "calculate_output", true, 1, GD_FORMULA_BYTES_MAX, &text, err))
        return false;
    for (int i = 0; i < multi->member_count; i++)
        names[i] = multi->members[i].name;
    char *param = gd_format("%s.calculate_output", path);
    multi->formula = gd_formula_parse(text, names, multi->member_count, param, err);
    gd_free(param);
    return multi->formula != NULL &&
           gd_json_get_number(json, path, "pass_threshold", false, -1e15, 1e15, &grader->pass_threshold, err);
}

/* A member that fails fails the whole; the others are still graded and shown. */
static void add_part(struct gd_grade *out, const struct member *member, const struct gd_grade *grade)
{
    out->parts[out->part_count++] = (struct gd_grade_part){
        .name = gd_strdup(member->name), .reward = grade->reward, .failed = grade->error.code != GD_OK};
    for (int flag = 0; flag < GD_GRADE_FLAG_COUNT; flag++)
        if (grade->flags[flag])
            gd_grade_fail(out, (enum gd_grade_flag)flag, "%s: %s", member->name, grade->error.message);
}

static bool grade(const struct gd_grader *grader, const struct gd_grade_input *input, struct gd_grade *out)
{
    const struct multi *multi = grader->state;
    const struct gd_ask *asks = input->asks;
    double rewards[GD_GRADER_PARTS_MAX] = {0};
    struct gd_error err = {0};
    out->parts = gd_alloc_array((size_t)multi->member_count, sizeof *out->parts);
    for (int i = 0; i < multi->member_count; i++) {
        struct gd_grade part;
        gd_grader_run_asked(multi->members[i].grader, input->item, input->sample, asks, &part);
        if (asks != NULL)
            asks += gd_grader_ask_count(multi->members[i].grader);
        rewards[i] = part.reward;
        add_part(out, &multi->members[i], &part);
        gd_grade_release(&part);
    }
    if (out->error.code != GD_OK)
        return false;
    return gd_formula_evaluate(multi->formula, rewards, &out->reward, &err) ||
           gd_grade_fail(out, GD_GRADE_FORMULA, "%s", err.message);
}

static bool references(const struct gd_grader *grader, const char *path, gd_reference_seen seen, void *context,
                       struct gd_error *err)
{
    const struct multi *multi = grader->state;
    for (int i = 0; i < multi->member_count; i++) {
        char *at = gd_format("%s%s", path, multi->members[i].path);
        bool ok = gd_grader_references(multi->members[i].grader, at, seen, context, err);
        gd_free(at);
        if (!ok)
            return false;
    }
    return true;
}

static bool check(const struct gd_grader *grader, const char *path, struct gd_error *err)
{
    const struct multi *multi = grader->state;
    for (int i = 0; i < multi->member_count; i++) {
        char *at = gd_format("%s%s", path, multi->members[i].path);
        bool ok = gd_grader_check(multi->members[i].grader, at, err);
        gd_free(at);
        if (!ok)
            return false;
    }
    return true;
}

/* Its members' asks, one member after the other. */
static int ask_count(const struct gd_grader *grader)
{
    const struct multi *multi = grader->state;
    int count = 0;
    for (int i = 0; i < multi->member_count; i++)
        count += gd_grader_ask_count(multi->members[i].grader);
    return count;
}

/* The member that ask *index belongs to; *index becomes its own. */
static const struct gd_grader *member_of_ask(const struct gd_grader *grader, int *index)
{
    const struct multi *multi = grader->state;
    int i = 0;
    for (int count; *index >= (count = gd_grader_ask_count(multi->members[i].grader)); i++)
        *index -= count;
    return multi->members[i].grader;
}

static const char *ask_model(const struct gd_grader *grader, int index)
{
    const struct gd_grader *member = member_of_ask(grader, &index);
    return gd_grader_ask_model(member, index);
}

static bool fill_ask(const struct gd_grader *grader, int index, const struct gd_grade_input *input, struct gd_ask *ask,
                     struct gd_grade *out)
{
    const struct gd_grader *member = member_of_ask(grader, &index);
    return member->type->fill_ask(member, index, input, ask, out);
}

static void release(struct gd_grader *grader)
{
    struct multi *multi = grader->state;
    for (int i = 0; i < multi->member_count; i++) {
        gd_grader_destroy(multi->members[i].grader);
        gd_free(multi->members[i].name);
        gd_free(multi->members[i].path);
    }
    gd_formula_destroy(multi->formula);
    gd_free(multi);
}

const struct gd_grader_type gd_grader_type_multi = {
    .name = "multi", .fields = fields, .parse = parse, .grade = grade, .release = release, .check = check,
    .references = references,
    .ask_count = ask_count, .ask_model = ask_model, .fill_ask = fill_ask};
