/* The part of JSON Schema that describes rows. */
#include "engine/eval/schema.h"
#include "tests/unit/eval/eval_testing.h"

static void what_is_no_schema_is_named(void **state)
{
    static const struct {
        const char *schema, *param, *part;
        enum gd_code code;
    } cases[] = {
        {"3", "s", "must be a JSON schema", GD_INVALID},
        {"{\"type\":\"strin\"}", "s.type", "did you mean 'string'", GD_INVALID},
        {"{\"type\":[]}", "s.type", "empty", GD_INVALID},
        {"{\"type\":[\"string\",3]}", "s.type", "one of", GD_INVALID},
        {"{\"pattern\":\"a\"}", "s.pattern", "'pattern' is not supported", GD_UNSUPPORTED},
        {"{\"$ref\":\"#\"}", "s.$ref", "not supported", GD_UNSUPPORTED},
        {"{\"propertes\":{}}", "s.propertes", "did you mean 'properties'", GD_UNSUPPORTED},
        {"{\"properties\":{\"a\":{\"items\":{\"type\":1}}}}", "s.properties.a.items.type", "one of", GD_INVALID},
        {"{\"properties\":[]}", "s.properties", "object", GD_INVALID},
        {"{\"required\":\"a\"}", "s.required", "list", GD_INVALID},
        {"{\"required\":[1]}", "s.required", "list", GD_INVALID},
        {"{\"enum\":[]}", "s.enum", "list", GD_INVALID},
        {"{\"anyOf\":[{},{\"type\":\"x\"}]}", "s.anyOf[1].type", "one of", GD_INVALID},
        {"{\"additionalProperties\":1}", "s.additionalProperties", "schema", GD_INVALID},
        {"{\"minimum\":\"1\"}", "s.minimum", "number", GD_INVALID},
        {"{\"maxLength\":-1}", "s.maxLength", "not negative", GD_INVALID},
        {"{\"minItems\":1.5}", "s.minItems", "whole", GD_INVALID},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_error err = {0};
        cJSON *schema = json_of(cases[i].schema);
        if (gd_schema_check(schema, "s", &err) || err.code != cases[i].code || strcmp(err.param, cases[i].param) != 0 ||
            strstr(err.message, cases[i].part) == NULL)
            fail_msg("%s: %s (%s)", cases[i].schema, err.message, err.param);
        cJSON_Delete(schema);
    }
}

static void values_fit_or_what_does_not_is_named(void **state)
{
    static const struct {
        const char *schema, *value, *param; /* param NULL: it fits */
    } cases[] = {
        {"{}", "[1,{\"a\":null}]", NULL},
        {"{\"title\":3,\"default\":9,\"$comment\":1,\"type\":\"integer\"}", "100", NULL},
        {"{\"type\":\"integer\"}", "1.5", "v"},
        {"{\"type\":\"number\"}", "1.5", NULL},
        {"{\"type\":[\"string\",\"null\"]}", "null", NULL},
        {"{\"type\":[\"string\",\"null\"]}", "true", "v"},
        {"{\"required\":[\"a\"]}", "{\"b\":1}", "v.a"},
        {"{\"required\":[\"a\"]}", "[]", NULL},
        {"{\"properties\":{\"a\":{\"type\":\"string\"}}}", "{\"a\":1}", "v.a"},
        {"{\"properties\":{\"a\":{}},\"additionalProperties\":false}", "{\"a\":1,\"b\":2}", "v.b"},
        {"{\"additionalProperties\":{\"type\":\"boolean\"}}", "{\"b\":2}", "v.b"},
        {"{\"items\":{\"type\":\"string\"}}", "[\"a\",2]", "v[1]"},
        {"{\"items\":{\"properties\":{\"x\":{\"minimum\":2}}}}", "[{\"x\":1}]", "v[0].x"},
        {"{\"enum\":[1,\"a\",{\"b\":[2]}]}", "{\"b\":[2]}", NULL},
        {"{\"enum\":[1,\"a\"]}", "\"b\"", "v"},
        {"{\"const\":5}", "5", NULL},
        {"{\"const\":5}", "6", "v"},
        {"{\"minimum\":1,\"maximum\":2}", "2", NULL},
        {"{\"minimum\":1,\"maximum\":2}", "2.1", "v"},
        {"{\"exclusiveMinimum\":1}", "1", "v"},
        {"{\"exclusiveMaximum\":1}", "1", "v"},
        {"{\"minLength\":2,\"maxLength\":2}", "\"\xc3\xa9\xc3\xa9\"", NULL},
        {"{\"maxLength\":1}", "\"ab\"", "v"},
        {"{\"minItems\":1,\"maxItems\":1}", "[]", "v"},
        {"{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]}", "null", NULL},
        {"{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]}", "1", "v"},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_error err = {0};
        cJSON *schema = json_of(cases[i].schema), *value = json_of(cases[i].value);
        if (!gd_schema_check(schema, "s", &err))
            fail_msg("%s: %s", cases[i].schema, err.message);
        bool fits = gd_schema_validate(schema, value, "v", &err);
        if (fits != (cases[i].param == NULL) || (!fits && strcmp(err.param, cases[i].param) != 0))
            fail_msg("%s of %s: %s (%s)", cases[i].value, cases[i].schema, err.message, err.param);
        cJSON_Delete(schema);
        cJSON_Delete(value);
    }
}

static void references_reach_what_the_schema_lists(void **state)
{
    static const char schema_text[] =
        "{\"type\":\"object\",\"properties\":{\"question\":{\"type\":\"string\"},\"list\":{\"items\":{\"type\":\"object\","
        "\"properties\":{\"x\":{}}}},\"open\":{\"type\":\"object\"},\"map\":{\"additionalProperties\":{\"type\":\"number\"}},"
        "\"either\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"object\",\"properties\":{\"y\":{}}}]}}}";
    static const struct {
        const char *steps[3];
        int count;
        const char *part; /* NULL: it reaches */
    } cases[] = {
        {{"question"}, 1, NULL},
        {{"questoin"}, 1, "did you mean 'question'"},
        {{"question", "x"}, 2, "not an object"},
        {{"question", NULL}, 2, "not an array"},
        {{"list", NULL, "x"}, 3, NULL},
        {{"list", NULL, "z"}, 3, "'z' is not in item_schema"},
        {{"open", "anything"}, 2, NULL},
        {{"map", "k"}, 2, NULL},
        {{"map", "k", "deeper"}, 3, "not an object"},
        {{"either", "y"}, 2, NULL},
        {{"either", "n"}, 2, "item_schema"},
    };
    cJSON *schema = json_of(schema_text);
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_error err = {0};
        bool reaches = gd_schema_reaches(schema, cases[i].steps, cases[i].count, "what", "p", &err);
        if (reaches != (cases[i].part == NULL) || (!reaches && strstr(err.message, cases[i].part) == NULL))
            fail_msg("case %zu: %s", i, err.message);
    }
    cJSON_Delete(schema);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_no_schema_is_named),
        cmocka_unit_test(values_fit_or_what_does_not_is_named),
        cmocka_unit_test(references_reach_what_the_schema_lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
