#include "engine/eval/grader.h"

#include "engine/base/alloc.h"
#include "engine/eval/grader_type.h"
#include "grader_list.h"

#include <stdio.h>
#include <string.h>

#define NAME_BYTES_MAX 256

#define GD_GRADER(name) extern const struct gd_grader_type gd_grader_type_##name;
GD_GRADER_LIST
#undef GD_GRADER
#define GD_GRADER(name) &gd_grader_type_##name,
const struct gd_grader_type *const gd_grader_types[] = {GD_GRADER_LIST};
#undef GD_GRADER
const int gd_grader_type_count = (int)GD_COUNT(gd_grader_types);

#define FLAG_WIRE(name, wire) wire,
static const char *const flag_wires[GD_GRADE_FLAG_COUNT] = {GD_GRADE_FLAG_LIST(FLAG_WIRE)};

const char *gd_grade_flag_wire(enum gd_grade_flag flag)
{
    return flag_wires[flag];
}

static const char *list_names(struct gd_buf *buf, const char *const *names, int count)
{
    for (int i = 0; i < count; i++)
        gd_buf_printf(buf, "%s%s", i > 0 ? ", " : "", names[i]);
    return buf->data != NULL ? buf->data : "";
}

bool gd_grader_choice(const cJSON *json, const char *path, const char *key, const char *const *names, int count,
                      int *out, struct gd_error *err)
{
    const char *value = NULL;
    if (!gd_json_get_string(json, path, key, true, 0, NAME_BYTES_MAX, &value, err))
        return false;
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], value) == 0) {
            *out = i;
            return true;
        }
    const char *near = gd_nearest_name(value, names, (size_t)count);
    struct gd_buf list;
    gd_buf_init(&list, 1024);
    char *param = gd_format("%s.%s", path, key);
    gd_fail_param(err, GD_INVALID, param, "%s: \"%.64s\" is none of %s%s%s%s", param, value,
                  list_names(&list, names, count), near != NULL ? "; did you mean '" : "", near != NULL ? near : "",
                  near != NULL ? "'?" : "");
    gd_free(param);
    gd_buf_release(&list);
    return false;
}

static const struct gd_grader_type *find_type(const cJSON *json, const char *path, struct gd_error *err)
{
    const char *names[GD_COUNT(gd_grader_types)], *type = NULL;
    for (int i = 0; i < gd_grader_type_count; i++)
        names[i] = gd_grader_types[i]->name;
    if (!gd_json_get_string(json, path, "type", true, 0, NAME_BYTES_MAX, &type, err))
        return NULL;
    int index = 0;
    return gd_grader_choice(json, path, "type", names, gd_grader_type_count, &index, err) ? gd_grader_types[index]
                                                                                          : NULL;
}

struct gd_grader *gd_grader_parse_named(const cJSON *json, const char *path, const char *name, struct gd_error *err)
{
    if (!cJSON_IsObject(json)) {
        gd_fail_param(err, json == NULL || cJSON_IsNull(json) ? GD_MISSING : GD_INVALID, path,
                      "%s must be a grader object", path);
        return NULL;
    }
    const struct gd_grader_type *type = find_type(json, path, err);
    if (type == NULL || !gd_json_only_known(json, path, type->fields, err) ||
        !gd_json_get_string(json, path, "name", name == NULL, 1, NAME_BYTES_MAX, &name, err))
        return NULL;
    struct gd_grader *grader = gd_alloc(sizeof *grader);
    grader->type = type;
    grader->name = gd_strdup(name);
    grader->pass_threshold = 1;
    if (!type->parse(grader, json, path, err)) {
        gd_grader_destroy(grader);
        return NULL;
    }
    return grader;
}

struct gd_grader *gd_grader_parse(const cJSON *json, const char *path, struct gd_error *err)
{
    return gd_grader_parse_named(json, path, NULL, err);
}

void gd_grader_destroy(struct gd_grader *grader)
{
    if (grader == NULL)
        return;
    grader->type->release(grader);
    gd_free(grader->name);
    gd_free(grader);
}

const char *gd_grader_name(const struct gd_grader *grader)
{
    return grader->name;
}

const char *gd_grader_type_name(const struct gd_grader *grader)
{
    return grader->type->name;
}

cJSON *gd_grader_sample(const char *text)
{
    struct gd_error not_json = {0};
    cJSON *sample = cJSON_CreateObject(), *json = gd_json_parse(text, strlen(text), SIZE_MAX, &not_json);
    cJSON_AddStringToObject(sample, "output_text", text);
    if (json != NULL)
        cJSON_AddItemToObject(sample, "output_json", json);
    return sample;
}

bool gd_grade_fail(struct gd_grade *grade, enum gd_grade_flag flag, const char *format, ...)
{
    char message[GD_ERROR_MESSAGE_BYTES];
    va_list list;
    va_start(list, format);
    (void)vsnprintf(message, sizeof message, format, list);
    va_end(list);
    grade->flags[flag] = true;
    return gd_fail(&grade->error, GD_INVALID, "%s", message);
}

int gd_grader_ask_count(const struct gd_grader *grader)
{
    return grader->type->ask_count != NULL ? grader->type->ask_count(grader) : 0;
}

const char *gd_grader_ask_model(const struct gd_grader *grader, int index)
{
    return grader->type->ask_model(grader, index);
}

void gd_grader_fill_asks(const struct gd_grader *grader, const cJSON *item, const cJSON *sample, struct gd_ask *asks)
{
    struct gd_grade_input input = {.item = item, .sample = sample};
    for (int i = 0; i < gd_grader_ask_count(grader); i++) {
        struct gd_grade grade = {.reward = 0};
        gd_ask_init(&asks[i], GD_ASK_CHAT);
        if (!grader->type->fill_ask(grader, i, &input, &asks[i], &grade)) {
            asks[i].answered = true;
            asks[i].error = grade.error;
        }
        gd_grade_release(&grade);
    }
}

void gd_grader_run_asked(const struct gd_grader *grader, const cJSON *item, const cJSON *sample,
                         const struct gd_ask *asks, struct gd_grade *grade)
{
    struct gd_grade_input input = {.item = item, .sample = sample, .asks = asks};
    *grade = (struct gd_grade){.reward = 0};
    if (grader->type->grade(grader, &input, grade))
        grade->passed = grade->reward >= grader->pass_threshold;
    else
        grade->reward = 0;
}

void gd_grader_run(const struct gd_grader *grader, const cJSON *item, const cJSON *sample, struct gd_grade *grade)
{
    gd_grader_run_asked(grader, item, sample, NULL, grade);
}

bool gd_grader_check(const struct gd_grader *grader, const char *path, struct gd_error *err)
{
    return grader->type->check == NULL || grader->type->check(grader, path, err);
}

bool gd_grader_references(const struct gd_grader *grader, const char *path, gd_reference_seen seen, void *context,
                          struct gd_error *err)
{
    return grader->type->references == NULL || grader->type->references(grader, path, seen, context, err);
}

void gd_grade_release(struct gd_grade *grade)
{
    for (int i = 0; i < grade->part_count; i++)
        gd_free(grade->parts[i].name);
    gd_free(grade->parts);
    *grade = (struct gd_grade){.reward = 0};
}
