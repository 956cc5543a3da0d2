/* string_check.c - input against reference: eq, ne, like (contains), ilike (contains, whatever the case). */
#include "engine/base/alloc.h"
#include "engine/eval/grader_text.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum operation { EQ, ILIKE, LIKE, NE, OPERATION_COUNT };
static const char *const operations[OPERATION_COUNT] = {"eq", "ilike", "like", "ne"};
static const char *const fields[] = {"type", "name", "input", "reference", "operation", NULL};

struct check {
    struct gd_grader_pair pair; /* first */
    enum operation operation;
};

static bool parse(struct gd_grader *grader, const cJSON *json, const char *path, struct gd_error *err)
{
    struct check *check = grader->state = gd_alloc(sizeof *check);
    int operation = 0;
    if (!gd_grader_pair_parse(&check->pair, json, path, err) ||
        !gd_grader_choice(json, path, "operation", operations, OPERATION_COUNT, &operation, err))
        return false;
    check->operation = (enum operation)operation;
    return true;
}

/* Full case folding: "STRASSE" and "straße" are the same. NULL: not UTF-8. */
static char *folded(const char *text)
{
    utf8proc_uint8_t *out = NULL;
    return utf8proc_map((const utf8proc_uint8_t *)text, 0, &out, UTF8PROC_NULLTERM | UTF8PROC_CASEFOLD) < 0
               ? NULL
               : (char *)out;
}

static bool contains_folded(const char *input, const char *reference)
{
    char *a = folded(input), *b = folded(reference);
    bool found = a != NULL && b != NULL && strstr(a, b) != NULL;
    free(a);
    free(b);
    return found;
}

static bool holds(enum operation operation, const char *input, const char *reference)
{
    switch (operation) {
    case EQ:
        return strcmp(input, reference) == 0;
    case NE:
        return strcmp(input, reference) != 0;
    case LIKE:
        return strstr(input, reference) != NULL;
    default:
        return contains_folded(input, reference);
    }
}

static bool compare(const void *state, const char *input, const char *reference, struct gd_grade *out)
{
    const struct check *check = state;
    out->reward = holds(check->operation, input, reference);
    return true;
}

static bool grade(const struct gd_grader *grader, const struct gd_grade_input *from, struct gd_grade *out)
{
    return gd_grader_pair_grade(grader, from, compare, out);
}

const struct gd_grader_type gd_grader_type_string_check = {
    .name = "string_check", .fields = fields, .parse = parse, .grade = grade, .release = gd_grader_pair_release,
    .references = gd_grader_pair_references};
