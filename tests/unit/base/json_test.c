#include "engine/base/json.h"
#include "tests/unit/base/scratch.h"

#include <math.h>

#define TEXT(literal) literal, sizeof(literal) - 1

static void texts_that_are_not_strict_json_are_refused_with_their_place(void **state)
{
    static const struct {
        const char *text;
        size_t length;
        const char *place, *says;
    } bad[] = {
        {TEXT(""), "byte 0 (line 1, column 1)", "no value"},
        {TEXT(" \n\t "), "byte 4 (line 2, column 3)", "no value"},
        {TEXT("\xEF\xBB\xBF{}"), "byte 0 ", "byte order mark"},
        {TEXT("{\0\"\0a\0\"\0"), "byte 1 ", "NUL byte"},                /* UTF-16 without mark */
        {TEXT("\xFF\xFE{\0}\0"), "byte 0 ", "expected a value"},        /* UTF-16 with mark */
        {TEXT("\x1F\x8B\x08\0\0\0\0\0"), "byte 0 ", "expected a value"}, /* gzip */
        {TEXT("{} x"), "byte 3 ", "follows the end"},
        {TEXT("{}{}"), "byte 2 ", "follows the end"},
        {TEXT("{}\0"), "byte 2 ", "NUL byte"},
        {TEXT("nul"), "byte 0 ", "expected a value"},
        {TEXT("True"), "byte 0 ", "expected a value"},
        {TEXT("NaN"), "byte 0 ", "expected a value"},
        {TEXT("-Infinity"), "byte 1 ", "digit"},
        {TEXT("'a'"), "byte 0 ", "expected a value"},
        {TEXT("0123"), "byte 0 ", "zeros"},
        {TEXT("-01"), "byte 0 ", "zeros"},
        {TEXT("0x10"), "byte 1 ", "follows the end"},
        {TEXT("+1"), "byte 0 ", "expected a value"},
        {TEXT(".5"), "byte 0 ", "expected a value"},
        {TEXT("1."), "byte 2 ", "ends too early"},
        {TEXT("[1.]"), "byte 3 ", "digit"},
        {TEXT("1e"), "byte 2 ", "ends too early"},
        {TEXT("[1e+]"), "byte 4 ", "digit"},
        {TEXT("-"), "byte 1 ", "ends too early"},
        {TEXT("1e999"), "byte 0 ", "too large"},
        {TEXT("[-1E+400]"), "byte 1 ", "too large"},
        {TEXT("1000000000000000000000000000000000000000000000000000000000000000"), "byte 0 ", "63 characters"},
        {TEXT("[1,]"), "byte 3 ", "expected a value"},
        {TEXT("[,1]"), "byte 1 ", "expected a value"},
        {TEXT("[1 2]"), "byte 3 ", "',' or ']'"},
        {TEXT("[1"), "byte 2 ", "ends too early"},
        {TEXT("[1}"), "byte 2 ", "',' or ']'"},
        {TEXT("]"), "byte 0 ", "expected a value"},
        {TEXT("{\"a\":1,}"), "byte 7 ", "double quotes"},
        {TEXT("{a:1}"), "byte 1 ", "double quotes"},
        {TEXT("{1:1}"), "byte 1 ", "double quotes"},
        {TEXT("{\"a\" 1}"), "byte 5 ", "':'"},
        {TEXT("{\"a\"}"), "byte 4 ", "':'"},
        {TEXT("{\"a\":1 \"b\":2}"), "byte 7 ", "',' or '}'"},
        {TEXT("{\"a\":}"), "byte 5 ", "expected a value"},
        {TEXT("{\"a\":1"), "byte 6 ", "ends too early"},
        {TEXT("[1] // comment"), "byte 4 ", "follows the end"},
        {TEXT("\"abc"), "byte 0 ", "no closing quote"},
        {TEXT("\"abc\\"), "byte 5 ", "ends too early"},
        {TEXT("\"a\tb\""), "byte 2 ", "control character"},
        {TEXT("\"a\nb\""), "byte 2 ", "control character"},
        {TEXT("\"a\0b\""), "byte 2 ", "NUL byte"},
        {TEXT("\"a\\u0000b\""), "byte 2 ", "NUL"},
        {TEXT("\"\\x41\""), "byte 2 ", "unknown escape"},
        {TEXT("\"\\u12g4\""), "byte 1 ", "four hexadecimal"},
        {TEXT("\"\\u12"), "byte 1 ", "four hexadecimal"},
        {TEXT("\"\\ud800\""), "byte 1 ", "high surrogate"},
        {TEXT("\"\\ud800\\ud800\""), "byte 1 ", "high surrogate"},
        {TEXT("\"\\ud800x\""), "byte 1 ", "high surrogate"},
        {TEXT("\"\\udc00\""), "byte 1 ", "low surrogate"},
        {TEXT("\"\x80\""), "byte 1 ", "UTF-8"},
        {TEXT("\"\xC0\xAF\""), "byte 1 ", "UTF-8"},         /* overlong */
        {TEXT("\"\xE0\x80\x80\""), "byte 1 ", "UTF-8"},     /* overlong */
        {TEXT("\"\xED\xA0\x80\""), "byte 1 ", "UTF-8"},     /* surrogate */
        {TEXT("\"\xF4\x90\x80\x80\""), "byte 1 ", "UTF-8"}, /* above U+10FFFF */
        {TEXT("\"\xF0\x9F\x98"), "byte 1 ", "UTF-8"},       /* cut */
        {TEXT("\"\xF0\x9F\x98\""), "byte 1 ", "UTF-8"},
        {TEXT("{\"a\":1,\"b\":2,\"a\":3}"), "byte 13 ", "\"a\" is there twice"},
        {TEXT("{\"a\":1,\"\\u0061\":3}"), "byte 7 ", "\"a\" is there twice"},
        {TEXT("[{\"x\":{\"k\":1,\"k\":1}}]"), "byte 13 ", "\"k\" is there twice"},
        {TEXT("{\"\":1,\"\":2}"), "byte 6 ", "twice"},
        {TEXT("{\n  \"\xC3\xA9\": [1,\n2 3]}"), "byte 16 (line 3, column 3)", "',' or ']'"},
        {TEXT("{\"\xC3\xA9\xE2\x82\xAC\": x}"), "byte 10 (line 1, column 8)", "expected a value"},
    };
    for (size_t i = 0; i < GD_COUNT(bad); i++) {
        struct gd_error err = {0};
        char *exact = gd_alloc(bad[i].length); /* no NUL behind it: sanitizers see a read past the end */
        memcpy(exact, bad[i].text, bad[i].length);
        cJSON *value = gd_json_parse(exact, bad[i].length, 1000, &err);
        gd_free(exact);
        if (value != NULL)
            fail_msg("case %zu was accepted: %s", i, bad[i].text);
        assert_int_equal(err.code, GD_INVALID);
        if (strstr(err.message, bad[i].place) == NULL || strstr(err.message, bad[i].says) == NULL)
            fail_msg("case %zu: '%s' does not say '%s' and '%s'", i, err.message, bad[i].place, bad[i].says);
    }
}

static void good_texts_are_read_and_printed_back(void **state)
{
    static const struct {
        const char *text, *printed;
    } good[] = {
        {"null", "null"},
        {" [ ] ", "[]"},
        {"{ }", "{}"},
        {"-0", "0"},
        {"[0,-1,9007199254740991,1e3,0.1,1.5e-7,1e400e]", NULL},
        {"[0,-1,9007199254740991,1e3,0.1,1.5e-7,1e300]", "[0,-1,9007199254740991,1000,0.1,1.5e-07,1e+300]"},
        {"1e-999", "0"},
        {"0.30000000000000004", "0.30000000000000004"},
        {"1e15", "1000000000000000"},
        {"{\"a\":{\"a\":1},\"A\":2}", "{\"a\":{\"a\":1},\"A\":2}"},
        {"\"\\u00e9\\ud83d\\ude00\\/\\b\\f\\n\\r\\t\\\"\\\\\"", "\"\xC3\xA9\xF0\x9F\x98\x80/\\b\\f\\n\\r\\t\\\"\\\\\""},
        {"\"\\u0001\x7f\"", "\"\\u0001\x7f\""},
        {"[true,false,null,\"\"]\r\n", "[true,false,null,\"\"]"},
        {"\"\xEF\xBB\xBF\"", "\"\xEF\xBB\xBF\""}, /* the mark is a character like others inside a string */
    };
    for (size_t i = 0; i < GD_COUNT(good); i++) {
        struct gd_error err = {0};
        cJSON *value = gd_json_parse(good[i].text, strlen(good[i].text), 1000, &err);
        assert_int_equal(value != NULL, good[i].printed != NULL);
        if (value == NULL)
            continue;
        char *printed = gd_json_print(value);
        assert_string_equal(printed, good[i].printed);
        gd_free(printed);
        cJSON_Delete(value);
    }
}

static void nesting_is_bounded(void **state)
{
    struct gd_error err = {0};
    size_t deep = 1000000;
    char *text = gd_alloc(deep);
    memset(text, '[', deep);
    assert_fails(gd_json_parse(text, deep, deep, &err) != NULL, &err, GD_INVALID, "byte 64 ");
    memset(text + 64, ']', 64);
    cJSON *value = gd_json_parse(text, 128, deep, &err);
    assert_non_null(value);
    cJSON_Delete(value);
    gd_free(text);
}

static void a_text_over_the_limit_is_refused(void **state)
{
    struct gd_error err = {0};
    assert_fails(gd_json_parse("[1,2]", 5, 4, &err) != NULL, &err, GD_TOO_LARGE, "5 bytes, the limit is 4");
}

static void duplicates_in_a_huge_object_are_found_in_time(void **state)
{
    struct gd_buf buf;
    gd_buf_init(&buf, 0);
    int count = 300000;
    gd_buf_append_char(&buf, '{');
    for (int i = 0; i < count; i++)
        gd_buf_printf(&buf, "\"key%d\":%d,", i, i);
    gd_buf_append_text(&buf, "\"last\":1}");
    struct gd_error err = {0};
    double start = gd_time_monotonic();
    cJSON *value = gd_json_parse(buf.data, buf.length, buf.length, &err);
    assert_non_null(value);
    cJSON_Delete(value);
    buf.length -= 1; /* the closing brace goes, a duplicate with an escape comes */
    gd_buf_append_text(&buf, ",\"key17777\\u0031\":1}");
    assert_fails(gd_json_parse(buf.data, buf.length, buf.length, &err) != NULL, &err, GD_INVALID, "\"key177771\" is there twice");
    assert_true(gd_time_monotonic() - start < 10.0); /* pairs would take minutes */
    gd_buf_release(&buf);
}

static cJSON *parse(const char *text)
{
    struct gd_error err = {0};
    cJSON *value = gd_json_parse(text, strlen(text), 100000, &err);
    if (value == NULL)
        fail_msg("%s", err.message);
    return value;
}

static void lookups_tell_case_apart(void **state)
{
    cJSON *object = parse("{\"Model\":1}"), *array = parse("[1]");
    assert_null(gd_json_find(object, "model"));
    assert_non_null(gd_json_find(object, "Model"));
    assert_null(gd_json_find(array, "model"));
    assert_null(gd_json_find(NULL, "model"));
    cJSON_Delete(object);
    cJSON_Delete(array);
}

static void integers_are_exact_and_in_range(void **state)
{
    struct gd_error err = {0};
    cJSON *object = parse("{\"n\":3,\"half\":1.5,\"big\":9007199254740993,\"exact\":-9007199254740991,\"s\":\"3\",\"z\":null}");
    int64_t n = -7;
    assert_ok(gd_json_get_int(object, "a.b", "absent", false, 0, 5, &n, &err), &err);
    assert_ok(gd_json_get_int(object, "a.b", "z", false, 0, 5, &n, &err), &err);
    assert_int_equal(n, -7);
    assert_ok(gd_json_get_int(object, "", "n", true, 0, 5, &n, &err), &err);
    assert_int_equal(n, 3);
    assert_ok(gd_json_get_int(object, "", "exact", true, INT64_MIN, INT64_MAX, &n, &err), &err);
    assert_int_equal(n, -9007199254740991);
    assert_false(gd_json_get_int(object, "a.b", "n", true, 4, 5, &n, &err));
    assert_string_equal(err.param, "a.b.n");
    assert_fails(false, &err, GD_INVALID, "'a.b.n' must be an integer from 4 to 5, got 3");
    assert_fails(gd_json_get_int(object, "", "half", true, 0, 5, &n, &err), &err, GD_INVALID, "got 1.5");
    assert_fails(gd_json_get_int(object, "", "big", true, INT64_MIN, INT64_MAX, &n, &err), &err, GD_INVALID, "integer");
    assert_fails(gd_json_get_int(object, "", "s", true, 0, 5, &n, &err), &err, GD_INVALID, "the string \"3\"");
    assert_fails(gd_json_get_int(object, "", "absent", true, 0, 5, &n, &err), &err, GD_MISSING, "'absent' is required");
    assert_fails(gd_json_get_int(object, "", "z", true, 0, 5, &n, &err), &err, GD_MISSING, "'z' is required");
    assert_fails(gd_json_get_int(gd_json_find(object, "n"), "n", "x", false, 0, 5, &n, &err), &err, GD_INVALID, "object");
    cJSON_Delete(object);
}

static void other_getters_check_type_and_range(void **state)
{
    struct gd_error err = {0};
    cJSON *object = parse("{\"f\":0.5,\"t\":true,\"s\":\"h\xC3\xA9\",\"o\":{},\"a\":[]}");
    double number = 0;
    bool flag = false;
    const char *text = NULL;
    const cJSON *value = NULL;
    assert_ok(gd_json_get_number(object, "", "f", true, 0, 1, &number, &err), &err);
    assert_true(number == 0.5);
    assert_fails(gd_json_get_number(object, "", "f", true, 1, 2, &number, &err), &err, GD_INVALID, "from 1 to 2, got 0.5");
    assert_fails(gd_json_get_number(object, "", "t", true, 0, 1, &number, &err), &err, GD_INVALID, "got true");
    assert_ok(gd_json_get_bool(object, "", "t", true, &flag, &err), &err);
    assert_true(flag);
    assert_fails(gd_json_get_bool(object, "", "o", true, &flag, &err), &err, GD_INVALID, "got an object");
    assert_ok(gd_json_get_string(object, "", "s", true, 1, 3, &text, &err), &err);
    assert_string_equal(text, "h\xC3\xA9");
    assert_fails(gd_json_get_string(object, "", "s", true, 1, 2, &text, &err), &err, GD_INVALID, "1 to 2 bytes, got 3");
    assert_fails(gd_json_get_string(object, "", "a", true, 1, 2, &text, &err), &err, GD_INVALID, "got an array");
    assert_ok(gd_json_get_object(object, "", "o", true, &value, &err), &err);
    assert_fails(gd_json_get_object(object, "", "a", true, &value, &err), &err, GD_INVALID, "an object");
    assert_ok(gd_json_get_array(object, "", "a", true, &value, &err), &err);
    assert_fails(gd_json_get_array(object, "", "o", true, &value, &err), &err, GD_INVALID, "an array");
    cJSON_Delete(object);
}

static void unknown_fields_are_named_with_the_nearest_known_one(void **state)
{
    static const char *const known[] = {"n_epochs", "batch_size", "learning_rate_multiplier", NULL};
    struct gd_error err = {0};
    cJSON *object = parse("{\"n_epoch\":3}"), *far = parse("{\"zzz\":3}"), *fine = parse("{\"n_epochs\":3}"), *array = parse("[]");
    assert_false(gd_json_only_known(object, "method", known, &err));
    assert_string_equal(err.param, "method.n_epoch");
    assert_fails(false, &err, GD_UNKNOWN_FIELD, "did you mean 'n_epochs'?");
    assert_fails(gd_json_only_known(far, "", known, &err), &err, GD_UNKNOWN_FIELD, "known here: n_epochs, batch_size");
    assert_ok(gd_json_only_known(fine, "", known, &err), &err);
    assert_ok(gd_json_only_known(NULL, "", known, &err), &err);
    assert_fails(gd_json_only_known(array, "", known, &err), &err, GD_INVALID, "must be an object, got an array");
    assert_null(gd_nearest_name("", known, 3));
    cJSON_Delete(object);
    cJSON_Delete(far);
    cJSON_Delete(fine);
    cJSON_Delete(array);
}

static void numbers_that_are_kept_are_printed_as_they_were(void **state)
{
    static const char text[] = "{\"a 1\": 30.0, \"\\\"2\\\\\": [1, -1e-05, true, {\"x\": 1E5, \"3\": \"4.0\"}, null], \"z\":9007199254740993}";
    struct gd_error err = {0};
    cJSON *value = gd_json_parse(text, strlen(text), 1024, &err);
    assert_non_null(value);
    gd_json_keep_numbers(value, text);
    char *printed = gd_json_print(value);
    assert_string_equal(printed, "{\"a 1\":30.0,\"\\\"2\\\\\":[1,-1e-05,true,{\"x\":1E5,\"3\":\"4.0\"},null],\"z\":9007199254740993}");
    gd_free(printed);
    cJSON_Delete(value);
    value = gd_json_parse("7.50", 4, 1024, &err);
    gd_json_keep_numbers(value, "7.50");
    printed = gd_json_print(value);
    assert_string_equal(printed, "7.50");
    gd_free(printed);
    cJSON_Delete(value);
}

static void printing_never_gives_invalid_json(void **state)
{
    cJSON *object = cJSON_CreateObject();
    cJSON_AddNumberToObject(object, "nan", NAN);
    cJSON_AddNumberToObject(object, "inf", -INFINITY);
    cJSON_AddStringToObject(object, "bad", "a\xFFz\xC3");
    cJSON_AddRawToObject(object, "raw", "[1,2]");
    char *printed = gd_json_print(object);
    assert_string_equal(printed, "{\"nan\":null,\"inf\":null,\"bad\":\"a\xEF\xBF\xBDz\xEF\xBF\xBD\",\"raw\":[1,2]}");
    gd_free(printed);
    cJSON_Delete(object);
    struct gd_buf buf = {0};
    gd_json_append_string(&buf, "a\0b", 3);
    assert_string_equal(buf.data, "\"a\\u0000b\"");
    gd_buf_release(&buf);
}

static void files_are_parsed_with_their_name_in_the_error(void **state)
{
    struct gd_error err = {0};
    char *folder = scratch_new(), *path = gd_format("%s/a.json", folder);
    assert_fails(gd_json_parse_file(path, 100, &err) != NULL, &err, GD_NOT_FOUND, path);
    assert_ok(gd_file_write_durable(path, "[1,\n2,]", 7, &err), &err);
    assert_fails(gd_json_parse_file(path, 100, &err) != NULL, &err, GD_INVALID, "a.json: bad JSON at byte 6 (line 2, column 3)");
    assert_fails(gd_json_parse_file(path, 6, &err) != NULL, &err, GD_TOO_LARGE, "limit is 6");
    gd_free(path);
    scratch_remove(folder);
}

/* Changes bytes of a good text at random: whatever is still accepted must print to a text that reads back the same. */
static void damaged_texts_are_refused_or_mean_what_they_print(void **state)
{
    static const char seed_text[] = "{\"a\":[1,-2.5e3,true,null,\"\\u00e9\\n\xE2\x82\xAC\"],\"b\":{\"c\":\"\\ud83d\\ude00\"},\"d\":[]}";
    static const char spice[] = "{}[]\",:\\u0e-+.1 \n\x80\xC3\xED";
    uint32_t random = 12345;
    int accepted = 0;
    for (int round = 0; round < 20000; round++) {
        char text[sizeof(seed_text)];
        memcpy(text, seed_text, sizeof(text));
        size_t length = sizeof(text) - 1;
        for (int change = 0; change < 1 + round % 3; change++) {
            random = random * 1664525u + 1013904223u;
            text[(random >> 8) % length] = spice[(random >> 24) % (sizeof(spice) - 1)];
        }
        struct gd_error err = {0};
        cJSON *value = gd_json_parse(text, length, 1000, &err);
        if (value == NULL) {
            assert_int_equal(err.code, GD_INVALID);
            continue;
        }
        accepted++;
        char *printed = gd_json_print(value);
        cJSON *again = gd_json_parse(printed, strlen(printed), 10000, &err);
        assert_non_null(again);
        assert_true(cJSON_Compare(value, again, 1));
        gd_free(printed);
        cJSON_Delete(again);
        cJSON_Delete(value);
    }
    assert_true(accepted > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_that_are_not_strict_json_are_refused_with_their_place),
        cmocka_unit_test(good_texts_are_read_and_printed_back),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(a_text_over_the_limit_is_refused),
        cmocka_unit_test(duplicates_in_a_huge_object_are_found_in_time),
        cmocka_unit_test(lookups_tell_case_apart),
        cmocka_unit_test(integers_are_exact_and_in_range),
        cmocka_unit_test(other_getters_check_type_and_range),
        cmocka_unit_test(unknown_fields_are_named_with_the_nearest_known_one),
        cmocka_unit_test(numbers_that_are_kept_are_printed_as_they_were),
        cmocka_unit_test(printing_never_gives_invalid_json),
        cmocka_unit_test(files_are_parsed_with_their_name_in_the_error),
        cmocka_unit_test(damaged_texts_are_refused_or_mean_what_they_print),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
