/* Templates and snippets against what jinja2 made of them (tests/fixtures/make_template.py), byte for byte. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/text/template.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define FIXTURE_BYTES_MAX (4u << 20)

static const char *fixture(char path[512], const char *name)
{
    const char *folder = getenv("GD_FIXTURES");
    assert_non_null(folder);
    snprintf(path, 512, "%s/template/%s", folder, name);
    return path;
}

static cJSON *read_json(const char *name)
{
    char path[512];
    struct gd_error err = {0};
    cJSON *json = gd_json_parse_file(fixture(path, name), FIXTURE_BYTES_MAX, &err);
    if (json == NULL)
        fail_msg("%s", err.message);
    return json;
}

static const char *string_of(const cJSON *object, const char *key)
{
    const cJSON *value = gd_json_find(object, key);
    return cJSON_IsString(value) ? value->valuestring : NULL;
}

static bool same_generation(const cJSON *expected, const struct gd_render_spans *spans)
{
    if (expected == NULL)
        return spans->generation_span_count == 0;
    if (cJSON_GetArraySize(expected) != spans->generation_span_count)
        return false;
    for (int i = 0; i < spans->generation_span_count; i++) {
        const cJSON *pair = cJSON_GetArrayItem(expected, i);
        if (cJSON_GetArrayItem(pair, 0)->valueint != spans->generation_spans[2 * i] ||
            cJSON_GetArrayItem(pair, 1)->valueint != spans->generation_spans[2 * i + 1])
            return false;
    }
    return true;
}

/* Renders and compares; prints what differs. Returns 1 for a difference. */
static int differs(const char *what, const char *source, const cJSON *variables, const cJSON *expected)
{
    const char *output = string_of(expected, "output"), *refusal = string_of(expected, "error");
    const char *kind = string_of(expected, "kind");
    struct gd_error err = {0};
    struct gd_template *tmpl = NULL;
    struct gd_render_spans spans = {0};
    struct gd_buf text;
    gd_buf_init(&text, 0);
    bool ok = gd_template_compile(&tmpl, source, strlen(source), &err) &&
              gd_template_render(tmpl, variables, &text, &spans, &err);
    const char *got = ok ? text.data : err.message;
    bool same = ok == (output != NULL);
    if (same && ok)
        same = strcmp(output, text.data) == 0 && same_generation(gd_json_find(expected, "generation"), &spans);
    if (same && !ok && strcmp(kind, "TemplateError") == 0)
        same = strstr(err.message, refusal) != NULL;
    if (same && !ok)
        same = strstr(err.message, "line ") != NULL;
    if (!same)
        print_message("%s\n  wanted %s: %s\n  got    %s: %s\n", what, output != NULL ? "text" : "error",
                      output != NULL ? output : refusal, ok ? "text" : "error", got);
    gd_render_spans_release(&spans);
    gd_template_destroy(tmpl);
    gd_buf_release(&text);
    return !same;
}

static void real_templates_render_as_jinja2_renders_them(void **state)
{
    cJSON *fixtures = read_json("cases.json"), *conversations = gd_json_find(fixtures, "conversations");
    const cJSON *expected;
    char path[512], what[256], *source = NULL, loaded[128] = "";
    int bad = 0, count = 0;
    cJSON_ArrayForEach(expected, gd_json_find(fixtures, "cases"))
    {
        const char *name = string_of(expected, "template"), *conversation = string_of(expected, "conversation");
        struct gd_error err = {0};
        size_t length;
        if (strcmp(loaded, name) != 0) {
            gd_free(source);
            source = NULL;
            if (!gd_file_read(fixture(path, name), FIXTURE_BYTES_MAX, &source, &length, &err))
                fail_msg("%s", err.message);
            snprintf(loaded, sizeof loaded, "%s", name);
        }
        snprintf(what, sizeof what, "%s, %s", name, conversation);
        bad += differs(what, source, gd_json_find(conversations, conversation), expected);
        count++;
    }
    gd_free(source);
    cJSON_Delete(fixtures);
    assert_true(count >= 500);
    assert_int_equal(bad, 0);
}

static void snippets_give_what_python_gives(void **state)
{
    cJSON *fixtures = read_json("snippets.json"), *variables = gd_json_find(fixtures, "variables");
    const cJSON *expected;
    int bad = 0, count = 0;
    cJSON_ArrayForEach(expected, gd_json_find(fixtures, "snippets"))
    {
        const char *source = string_of(expected, "source");
        bad += differs(source, source, variables, expected);
        count++;
    }
    cJSON_Delete(fixtures);
    assert_true(count >= 800);
    assert_int_equal(bad, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_templates_render_as_jinja2_renders_them),
        cmocka_unit_test(snippets_give_what_python_gives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
