/* task_field.c - doc_to_text, doc_to_target, doc_to_choice: a column's name, a template, or a value as it stands. */
#include "engine/base/alloc.h"
#include "engine/eval/literal.h"
#include "engine/eval/task_parts.h"

#include <string.h>

static bool compile(struct gd_task_field *field, const char *source, const char *param, struct gd_error *err)
{
    struct gd_error said = {0};
    if (gd_template_compile_plain(&field->tmpl, source, strlen(source), &said))
        return true;
    return gd_fail_param(err, GD_INVALID, param, "%s: %s", param, said.message);
}

/* A mapping's values, in its order. */
static cJSON *values_of(const cJSON *mapping)
{
    cJSON *list = cJSON_CreateArray();
    const cJSON *value;
    cJSON_ArrayForEach(value, mapping)
        cJSON_AddItemToArray(list, cJSON_Duplicate(value, true));
    return list;
}

bool gd_task_field_parse(struct gd_task_field *field, const cJSON *config, const char *path, const char *key,
                         struct gd_error *err)
{
    const cJSON *given = gd_json_find(config, key);
    *field = (struct gd_task_field){0};
    if (given == NULL || cJSON_IsNull(given))
        return true;
    char *param = gd_format("%s.%s", path, key);
    bool ok = true;
    if (cJSON_IsString(given)) {
        field->name = given->valuestring;
        ok = compile(field, given->valuestring, param, err);
    } else if (cJSON_IsObject(given)) {
        field->value = field->owned = values_of(given);
    } else if (cJSON_IsNumber(given) || cJSON_IsArray(given)) {
        field->value = given;
    } else {
        ok = gd_fail_param(err, GD_INVALID, param, "%s must be a column's name, a template, a number or a list", param);
    }
    gd_free(param);
    return ok;
}

void gd_task_field_release(struct gd_task_field *field)
{
    gd_template_destroy(field->tmpl);
    cJSON_Delete(field->owned);
    *field = (struct gd_task_field){0};
}

bool gd_task_field_given(const struct gd_task_field *field)
{
    return field->name != NULL || field->value != NULL;
}

/* The text of the template. */
static char *render(const struct gd_task_field *field, const cJSON *row, struct gd_error *err)
{
    struct gd_buf out;
    gd_buf_init(&out, GD_GRADER_RENDER_BYTES_MAX);
    bool ok = gd_template_render(field->tmpl, row, &out, NULL, err);
    if (ok && out.overflow)
        ok = gd_fail(err, GD_TOO_LARGE, "a template makes more than %u bytes", GD_GRADER_RENDER_BYTES_MAX);
    char *text = ok ? gd_buf_take(&out) : NULL;
    gd_buf_release(&out);
    if (!ok)
        gd_error_context(err, "%.100s", field->name);
    return text;
}

static bool is_column(const struct gd_task_field *field, const cJSON *columns)
{
    return field->name != NULL && gd_json_find(columns, field->name) != NULL;
}

/* A column's value: null where the row lacks it. */
static cJSON *column(const struct gd_task_field *field, const cJSON *row)
{
    const cJSON *value = gd_json_find(row, field->name);
    return value != NULL ? cJSON_Duplicate(value, true) : cJSON_CreateNull();
}

/* A rendered text; all digits mean the number of a choice where there are choices. */
static cJSON *text_or_number(char *text_taken, bool has_choices)
{
    if (text_taken == NULL)
        return NULL;
    cJSON *value = has_choices && gd_literal_is_digits(text_taken) ? gd_literal_read(text_taken) : NULL;
    if (value == NULL)
        value = cJSON_CreateString(text_taken);
    gd_free(text_taken);
    return value;
}

cJSON *gd_task_text(const struct gd_task *task, const struct gd_task_turn *turn, const cJSON *row, const cJSON *columns,
                    struct gd_error *err)
{
    const struct gd_task_field *field = &turn->text;
    cJSON *value = field->value != NULL         ? cJSON_Duplicate(field->value, true)
                   : is_column(field, columns) ? column(field, row)
                                                : text_or_number(render(field, row, err), gd_task_field_given(&task->turn.choice));
    if (value == NULL || cJSON_IsString(value) || (cJSON_IsNumber(value) && gd_task_field_given(&task->turn.choice)))
        return value;
    gd_fail(err, GD_INVALID, "doc_to_text gives no text for this row");
    cJSON_Delete(value);
    return NULL;
}

cJSON *gd_task_target(const struct gd_task *task, const struct gd_task_turn *turn, const cJSON *row, const cJSON *columns,
                      struct gd_error *err)
{
    const struct gd_task_field *field = &turn->target;
    if (field->value != NULL)
        return cJSON_Duplicate(field->value, true);
    if (is_column(field, columns))
        return column(field, row);
    char *text = render(field, row, err);
    if (text == NULL)
        return NULL;
    size_t length = strlen(text);
    cJSON *list = length >= 2 && text[0] == '[' && text[length - 1] == ']' ? gd_literal_read(text) : NULL;
    if (list == NULL)
        return text_or_number(text, gd_task_field_given(&task->turn.choice));
    gd_free(text);
    return list;
}

cJSON *gd_task_choices(const struct gd_task_turn *turn, const cJSON *row, const cJSON *columns, struct gd_error *err)
{
    const struct gd_task_field *field = &turn->choice;
    char *text = NULL;
    cJSON *list = field->value != NULL         ? cJSON_Duplicate(field->value, true)
                  : is_column(field, columns) ? column(field, row)
                                               : NULL;
    if (list == NULL && (text = render(field, row, err)) == NULL)
        return NULL;
    if (text != NULL)
        list = gd_literal_read(text);
    bool ok = cJSON_IsArray(list) && cJSON_GetArraySize(list) > 0;
    const cJSON *choice;
    if (ok)
        cJSON_ArrayForEach(choice, list)
            ok = ok && cJSON_IsString(choice);
    if (!ok) {
        gd_fail(err, GD_INVALID, "doc_to_choice gives no list of texts for this row%s%.200s", text != NULL ? ": " : "",
                text != NULL ? text : "");
        cJSON_Delete(list);
        list = NULL;
    }
    gd_free(text);
    return list;
}

bool gd_task_plain(const struct gd_task_field *field, const cJSON *row, const cJSON *columns, struct gd_buf *out,
                   struct gd_error *err)
{
    if (!gd_task_field_given(field) || (field->name != NULL && field->name[0] == '\0'))
        return true;
    if (is_column(field, columns)) {
        const cJSON *value = gd_json_find(row, field->name);
        if (cJSON_IsString(value))
            gd_buf_append_text(out, value->valuestring);
        return cJSON_IsString(value) || value == NULL || cJSON_IsNull(value) ||
               gd_fail(err, GD_INVALID, "'%.64s' is no text in this row", field->name);
    }
    char *text = field->tmpl != NULL ? render(field, row, err) : NULL;
    if (text == NULL)
        return gd_fail(err, GD_INVALID, "a text is expected here");
    gd_buf_append_text(out, text);
    gd_free(text);
    return true;
}
