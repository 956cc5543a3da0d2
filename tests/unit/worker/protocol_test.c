/* Frames survive any cut of the byte stream, and nothing that is no frame gets through. */
#include "engine/base/alloc.h"
#include "engine/worker/protocol.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void append_prefix(struct gd_buf *buf, uint32_t length)
{
    unsigned char prefix[4] = {length & 0xff, length >> 8 & 0xff, length >> 16 & 0xff, length >> 24 & 0xff};
    gd_buf_append(buf, prefix, sizeof prefix);
}

static cJSON *message_of(const char *type, double number)
{
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "type", type);
    cJSON_AddNumberToObject(message, "number", number);
    return message;
}

static void frames_survive_every_cut_of_the_stream(void **state)
{
    struct gd_buf stream = {0};
    const char *types[] = {"ready", "token", "shutdown"};
    for (int i = 0; i < 3; i++) {
        cJSON *message = message_of(types[i], -1.2345678901234567 * i);
        gd_frame_write(&stream, message);
        cJSON_Delete(message);
    }
    for (size_t cut = 1; cut <= stream.length; cut++) {
        struct gd_frame_reader reader;
        gd_frame_reader_init(&reader);
        int seen = 0;
        for (size_t at = 0; at < stream.length; at += cut) {
            size_t length = stream.length - at < cut ? stream.length - at : cut;
            gd_frame_reader_feed(&reader, stream.data + at, length);
            struct gd_error err = {0};
            cJSON *message = NULL;
            while (gd_frame_next(&reader, &message, &err) && message != NULL) {
                assert_string_equal(gd_json_find(message, "type")->valuestring, types[seen]);
                assert_true(gd_json_find(message, "number")->valuedouble == -1.2345678901234567 * seen);
                seen++;
                cJSON_Delete(message);
            }
            assert_int_equal(err.code, GD_OK);
        }
        assert_int_equal(seen, 3);
        gd_frame_reader_release(&reader);
    }
    gd_buf_release(&stream);
}

static void assert_refused(const void *bytes, size_t length, const char *why)
{
    struct gd_frame_reader reader;
    gd_frame_reader_init(&reader);
    gd_frame_reader_feed(&reader, bytes, length);
    struct gd_error err = {0};
    cJSON *message = NULL;
    assert_false(gd_frame_next(&reader, &message, &err));
    assert_null(message);
    assert_int_equal(err.code, GD_INVALID);
    assert_non_null(strstr(err.message, why));
    gd_frame_reader_release(&reader);
}

static void assert_text_refused(const char *text, const char *why)
{
    struct gd_buf buf = {0};
    append_prefix(&buf, (uint32_t)strlen(text));
    gd_buf_append_text(&buf, text);
    assert_refused(buf.data, buf.length, why);
    gd_buf_release(&buf);
}

static void what_is_no_frame_is_refused(void **state)
{
    assert_refused("\0\0\0\0", 4, "0 bytes");
    assert_refused("\xff\xff\xff\xff", 4, "4294967295 bytes");
    assert_refused("\x01\0\0\x04", 4, "67108865 bytes");
    assert_text_refused("{\"type\":\"x\"} ]", "frame");
    assert_text_refused("{\"type\":\"x\",\"type\":\"y\"}", "frame");
    assert_text_refused("{\"type\":\"\xff\"}", "frame");
    assert_text_refused("[1]", "type");
    assert_text_refused("{\"type\":1}", "type");
    assert_text_refused("{\"Type\":\"x\"}", "type");
}

static void a_frame_that_would_be_too_long_is_not_written(void **state)
{
    size_t length = GD_FRAME_BYTES_MAX;
    char *text = gd_alloc(length + 1);
    memset(text, 'a', length);
    cJSON *message = cJSON_CreateObject();
    cJSON_AddItemToObject(message, "type", cJSON_CreateStringReference(text));
    struct gd_buf out = {0};
    gd_frame_write(&out, message);
    assert_true(out.overflow);
    assert_int_equal(out.length, 0);
    gd_buf_release(&out);
    cJSON_Delete(message);
    gd_free(text);
}

static void errors_travel_by_name(void **state)
{
    struct gd_error err = {0}, back = {0};
    gd_fail_param(&err, GD_CONTEXT, "messages", "9 tokens, limit 8");
    cJSON *json = gd_error_to_json(&err);
    assert_string_equal(gd_json_find(json, "code")->valuestring, "context_length_exceeded");
    gd_error_from_json(json, &back);
    assert_int_equal(back.code, GD_CONTEXT);
    assert_string_equal(back.param, "messages");
    assert_string_equal(back.message, "9 tokens, limit 8");
    cJSON_Delete(json);

    gd_error_from_json(NULL, &back);
    assert_int_equal(back.code, GD_INTERNAL);
    json = cJSON_Parse("{\"code\":\"ok\",\"message\":7}");
    gd_error_from_json(json, &back);
    assert_int_equal(back.code, GD_INTERNAL);
    cJSON_Delete(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_survive_every_cut_of_the_stream),
        cmocka_unit_test(what_is_no_frame_is_refused),
        cmocka_unit_test(a_frame_that_would_be_too_long_is_not_written),
        cmocka_unit_test(errors_travel_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
