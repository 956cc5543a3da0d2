/* http_test.c - what the daemon takes and what it refuses: requests, keys, origins, bodies, uploads. */
#include "tests/unit/server/http_fixture.h"

/* ---- what is refused before a handler ---- */


static void hostile_requests_get_an_answer_and_the_end(void **state)
{
    static const struct {
        const char *bytes;
        int status;
    } cases[] = {
        {"POST /json HTTP/1.1\r\n" H "Content-Type: application/json\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n"
         "\r\n0\r\n\r\nGET /health HTTP/1.1\r\n" H "\r\n", 400},
        {"POST /json HTTP/1.1\r\n" H "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", 400},
        {"POST /json HTTP/1.1\r\n" H "Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400},
        {"POST /json HTTP/1.1\r\n" H "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400},
        {"POST /json HTTP/1.1\r\n" H "Content-Length : 2\r\n\r\n{}GET /health HTTP/1.1\r\n" H "\r\n", 400},
        {"GET /health HTTP/1.1\r\n\r\n", 400},
        {"GET /health HTTP/1.1\r\n" H H "\r\n", 400},
        {"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403},
        {"GET /health HTTP/1.1\r\n" H "Content-Length: 2\r\n\r\n{}", 400},
        {"GET http://localhost/health HTTP/1.1\r\n" H "\r\n", 400},
        {"OPTIONS * HTTP/1.1\r\n" H "\r\n", 400},
        {"GET /health%00zzz HTTP/1.1\r\n" H "\r\n", 400},
        {"GET /item/%2e%2e HTTP/1.1\r\n" H "\r\n", 400},
        {"GET /item/%ff HTTP/1.1\r\n" H "\r\n", 400},
        {"GET /item/x?q=%00 HTTP/1.1\r\n" H "\r\n", 400},
        {"POST /json HTTP/1.1\r\n" H "Content-Length: 99999999999999999999\r\n\r\n", 413},
        {"POST /json HTTP/1.1\r\n" H "Content-Length: -1\r\n\r\n", 400},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        int fd = dial(&daemon_);
        say(fd, cases[i].bytes, strlen(cases[i].bytes));
        struct answer answer = listen_for(fd, 5000, false);
        if (answer.status != cases[i].status)
            fail_msg("case %zu: %d instead of %d\n%s", i, answer.status, cases[i].status, answer.text);
        assert_null(strstr(answer.body, "HTTP/1.1 200")); /* no second, smuggled answer */
        answer_release(&answer);
        answer = listen_for(fd, 3000, false);
        if (!answer.closed || answer.status != 0)
            fail_msg("case %zu: the connection goes on: %s", i, answer.text);
        answer_release(&answer);
        close(fd);
    }
    assert_int_equal(atomic_load(&handled_count), 0);
}

static void errors_have_the_shape_that_sdks_read(void **state)
{
    struct answer answer = ask(&daemon_, "POST /json HTTP/1.1\r\n" H "Content-Type: application/json\r\n"
                                         "Content-Length: 12\r\n\r\n{\"text\": 12}");
    char text[512];
    assert_int_equal(answer.status, 400);
    assert_string_equal(header_of(&answer, "content-type", text), "application/json");
    assert_int_equal(strncmp(header_of(&answer, "x-request-id", text), "req_", 4), 0);
    struct gd_error err = {0};
    cJSON *json = gd_json_parse(answer.body, answer.body_length, 1 << 20, &err);
    const cJSON *error = gd_json_find(json, "error");
    assert_string_equal(gd_json_find(error, "type")->valuestring, "invalid_request_error");
    assert_string_equal(gd_json_find(error, "param")->valuestring, "text");
    assert_string_equal(gd_json_find(error, "code")->valuestring, "invalid_value");
    assert_true(cJSON_IsString(gd_json_find(error, "message")));
    cJSON_Delete(json);
    answer_release(&answer);
}

static void unknown_paths_and_methods_are_told_apart(void **state)
{
    char text[512];
    assert_int_equal(status_of(ask_json(&daemon_, "GET /nothing", "", NULL)), 404);
    assert_int_equal(status_of(ask_json(&daemon_, "GET /", "", NULL)), 404);
    struct answer answer = ask_json(&daemon_, "DELETE /stream", "", NULL);
    assert_int_equal(answer.status, 405);
    assert_string_equal(header_of(&answer, "allow", text), "GET, HEAD, POST, OPTIONS");
    answer_release(&answer);
    assert_int_equal(status_of(ask_json(&daemon_, "BREW /health", "", NULL)), 405);
    assert_int_equal(status_of(ask_json(&daemon_, "TRACE /health", "", NULL)), 405);
}

static void a_refusal_without_a_body_keeps_the_connection(void **state)
{
    int fd = dial(&daemon_);
    for (int i = 0; i < 3; i++) {
        shout(fd, "GET /nothing HTTP/1.1\r\n" H "\r\n");
        struct answer answer = listen_for(fd, 2000, false);
        assert_int_equal(answer.status, 404);
        answer_release(&answer);
    }
    close(fd);
}

static void percent_encoding_is_undone_once_after_routing(void **state)
{
    static const struct {
        const char *line, *id;
    } cases[] = {
        {"GET /item/ft:base%2Fmodel:org:x:1", "ft:base/model:org:x:1"},
        {"GET /item/a%252Fb", "a%2Fb"},
        {"GET /%69tem/a%20b", "a b"},
        {"GET /item/caf%C3%A9", "caf\xc3\xa9"},
        {"GET /item/a%22%5Cb", "a\"\\b"},
        {"POST /item/a%2Fcancel/cancel", "a/cancel"},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct answer answer = ask_json(&daemon_, cases[i].line, "", NULL);
        if (answer.status != 200)
            fail_msg("%s: %s", cases[i].line, answer.text);
        struct gd_error err = {0};
        cJSON *json = gd_json_parse(answer.body, answer.body_length, 1 << 20, &err);
        assert_string_equal(gd_json_find(json, "id")->valuestring, cases[i].id);
        cJSON_Delete(json);
        answer_release(&answer);
    }
}

/* ---- HEAD, OPTIONS, origins ---- */

static void head_answers_like_get_without_the_body(void **state)
{
    char text[512];
    struct answer answer = ask(&daemon_, "HEAD /health HTTP/1.1\r\n" H "\r\n");
    assert_int_equal(answer.status, 200);
    assert_string_equal(header_of(&answer, "content-length", text), "11");
    assert_int_equal(answer.body_length, 0);
    answer_release(&answer);
    answer = ask(&daemon_, "HEAD /stream?n=1 HTTP/1.1\r\n" H "\r\n");
    assert_int_equal(answer.status, 200);
    assert_string_equal(header_of(&answer, "content-type", text), "text/event-stream");
    answer_release(&answer);
}

static void only_configured_origins_are_answered_to(void **state)
{
    char text[512];
    struct answer answer = ask_json(&daemon_, "OPTIONS /json", "Origin: https://page.example\r\n"
                                    "Access-Control-Request-Method: POST\r\n"
                                    "Access-Control-Request-Headers: authorization,content-type\r\n", NULL);
    assert_int_equal(answer.status, 204);
    assert_string_equal(header_of(&answer, "access-control-allow-origin", text), "https://page.example");
    assert_string_equal(header_of(&answer, "access-control-allow-methods", text), "POST, OPTIONS");
    assert_string_equal(header_of(&answer, "access-control-allow-headers", text), "authorization,content-type");
    answer_release(&answer);
    answer = ask_json(&daemon_, "OPTIONS /json", "Origin: https://evil.example\r\n"
                      "Access-Control-Request-Method: POST\r\n", NULL);
    assert_string_equal(header_of(&answer, "access-control-allow-origin", text), "");
    assert_string_equal(header_of(&answer, "access-control-allow-methods", text), "");
    assert_string_equal(header_of(&answer, "allow", text), "POST, OPTIONS");
    answer_release(&answer);
    answer = ask_json(&daemon_, "GET /health", "Origin: https://page.example\r\n", NULL);
    assert_string_equal(header_of(&answer, "access-control-allow-origin", text), "https://page.example");
    assert_string_equal(header_of(&answer, "vary", text), "origin");
    answer_release(&answer);
    answer = ask_json(&daemon_, "GET /health", "Origin: https://evil.example\r\n", NULL);
    assert_int_equal(answer.status, 200);
    assert_string_equal(header_of(&answer, "access-control-allow-origin", text), "");
    answer_release(&answer);
    /* A form on a foreign page needs no preflight: what changes something is refused. */
    assert_int_equal(status_of(ask_json(&daemon_, "POST /item/1/cancel", "Origin: https://evil.example\r\n", NULL)), 403);
    assert_int_equal(status_of(ask_json(&daemon_, "POST /item/1/cancel", "Origin: null\r\n", NULL)), 403);
    assert_int_equal(status_of(ask_json(&daemon_, "POST /item/1/cancel", "Origin: http://localhost\r\n", NULL)), 200);
}

/* ---- keys ---- */

static void every_route_but_health_asks_for_a_key(void **state)
{
    char text[512];
    for (int i = 0; i < gd_route_count; i++) {
        char *line = gd_format("%s %s", gd_routes[i].method, gd_routes[i].path);
        int status = status_of(ask_json(&daemon_, line, "", NULL));
        if (status != (gd_routes[i].open ? 200 : 401))
            fail_msg("%s: %d", line, status);
        gd_free(line);
    }
    struct answer answer = ask_json(&daemon_, "GET /nothing", "", NULL);
    assert_int_equal(answer.status, 401);
    assert_string_equal(header_of(&answer, "www-authenticate", text), "Bearer realm=\"graftd\"");
    answer_release(&answer);
    static const char *const bad[] = {"Authorization: Bearer key-0123456789abcdeX\r\n", "Authorization: Basic " KEY "\r\n",
                                      "Authorization: " KEY "\r\n", "Authorization: Bearer\r\n",
                                      "Authorization: Bearer " KEY "x\r\n", "Authorization: Bearer key\r\n"};
    for (size_t i = 0; i < GD_COUNT(bad); i++)
        assert_int_equal(status_of(ask_json(&daemon_, "GET /item/1", bad[i], NULL)), 401);
    assert_int_equal(status_of(ask_json(&daemon_, "GET /item/1?api_key=" KEY, "", NULL)), 401);
    assert_int_equal(status_of(ask_json(&daemon_, "OPTIONS /item/1", "", NULL)), 204);
    answer = ask_json(&daemon_, "GET /item/1", "Authorization: bearer " KEY "\r\n", NULL);
    assert_int_equal(answer.status, 200);
    assert_non_null(strstr(answer.body, "\"project\":\"team\""));
    answer_release(&answer);
    assert_int_equal(status_of(ask_json(&daemon_, "GET /nothing", "Authorization: Bearer " KEY "\r\n", NULL)), 404);
}

/* ---- bodies ---- */

static void json_bodies_must_be_objects_of_their_type(void **state)
{
    assert_int_equal(status_of(ask_json(&daemon_, "POST /json", "", "{\"text\":\"abc\"}")), 200);
    assert_int_equal(status_of(ask_json(&daemon_, "POST /json", "", "[1]")), 400);
    assert_int_equal(status_of(ask_json(&daemon_, "POST /json", "", "{\"text\":\"abc\"")), 400);
    assert_int_equal(status_of(ask_json(&daemon_, "POST /json", "", "{\"text\":\"\xff\"}")), 400);
    assert_int_equal(status_of(ask_json(&daemon_, "POST /json", "", "{\"text\":\"a\\u0000\"}")), 400);
    assert_int_equal(status_of(ask_json(&daemon_, "POST /json", "", NULL)), 400);
    assert_int_equal(status_of(ask(&daemon_, "POST /json HTTP/1.1\r\n" H "Content-Type: text/plain\r\n"
                                             "Content-Length: 2\r\n\r\n{}")), 415);
    assert_int_equal(status_of(ask(&daemon_, "POST /json HTTP/1.1\r\n" H "Content-Length: 2\r\n\r\n{}")), 415);
    assert_int_equal(status_of(ask(&daemon_, "POST /json HTTP/1.1\r\n" H "Content-Type: application/json; charset=utf-8\r\n"
                                             "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"tex\r\n8\r\nt\":\"ab\"}\r\n0\r\n\r\n")), 200);
}

static void calls_without_a_body_need_no_type_and_take_none(void **state)
{
    assert_int_equal(status_of(ask_json(&daemon_, "POST /item/1/cancel", "", NULL)), 200);
    assert_int_equal(status_of(ask_json(&daemon_, "POST /item/1/cancel", "Content-Length: 0\r\n", NULL)), 200);
    assert_int_equal(status_of(ask_json(&daemon_, "POST /item/1/cancel",
                                        "Content-Type: application/json\r\nContent-Length: 0\r\n", NULL)), 200);
    assert_int_equal(status_of(ask_json(&daemon_, "POST /item/1/cancel", "", "{}")), 400);
    assert_int_equal(status_of(ask(&daemon_, "POST /item/1/cancel HTTP/1.1\r\n" H
                                             "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")), 400);
    assert_int_equal(status_of(ask(&daemon_, "POST /item/1/cancel HTTP/1.1\r\n" H
                                             "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")), 200);
}

static void large_json_goes_over_the_disk_and_leaves_nothing(void **state)
{
    size_t length = 3 << 20;
    char *body = gd_alloc(length + 64);
    memcpy(body, "{\"text\":\"", 9);
    memset(body + 9, 'y', length);
    memcpy(body + 9 + length, "\"}", 3);
    struct answer answer = ask_json(&daemon_, "POST /json", "", body);
    assert_int_equal(answer.status, 200);
    assert_non_null(strstr(answer.body, "3145728"));
    answer_release(&answer);
    body[9 + length + 1] = ']';
    assert_int_equal(status_of(ask_json(&daemon_, "POST /json", "", body)), 400);
    gd_free(body);
    assert_nothing_left();
}

/* The client is still sending when the answer is given; it must get to read it. */
static void bodies_over_the_limit_are_answered_and_swallowed(void **state)
{
    size_t length = 6 << 20;
    char *body = gd_alloc(length + 256);
    int head = sprintf(body, "POST /json HTTP/1.1\r\n" H "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n", length);
    memset(body + head, ' ', length);
    struct answer answer = ask_bytes(&daemon_, body, (size_t)head + length);
    assert_int_equal(answer.status, 413);
    answer_release(&answer);
    head = sprintf(body, "POST /json HTTP/1.1\r\n" H "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                         "%zx\r\n", length);
    memset(body + head, ' ', length);
    answer = ask_bytes(&daemon_, body, (size_t)head + length);
    assert_int_equal(answer.status, 413);
    assert_non_null(strstr(answer.body, "request_too_large"));
    answer_release(&answer);
    gd_free(body);
    assert_nothing_left();
}

static void a_client_that_asks_first_never_sends_a_refused_body(void **state)
{
    struct answer answer = ask(&daemon_, "POST /json HTTP/1.1\r\n" H "Content-Type: application/json\r\n"
                                         "Content-Length: 999999999\r\nExpect: 100-continue\r\n\r\n");
    assert_int_equal(answer.status, 413);
    answer_release(&answer);
    int fd = dial(&daemon_);
    static const char head[] = "POST /json HTTP/1.1\r\n" H "Content-Type: application/json\r\n"
                               "Content-Length: 12\r\nExpect: 100-continue\r\n\r\n";
    shout(fd, head);
    char text[64] = "";
    assert_true(recv(fd, text, sizeof(text) - 1, 0) > 0);
    assert_int_equal(strncmp(text, "HTTP/1.1 100", 12), 0);
    shout(fd, "{\"text\":\"a\"}");
    assert_int_equal(status_of(listen_for(fd, 3000, false)), 200);
    close(fd);
}

/* Sends `data` as chunks of odd sizes, slowly enough to arrive in pieces. */
static struct answer upload_chunked(const char *data, size_t length, const char *extra_part)
{
    int fd = dial(&daemon_);
    struct gd_buf body;
    gd_buf_init(&body, 0);
    gd_buf_append_text(&body, "--XyZ\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n"
                              "Content-Type: application/octet-stream\r\n\r\n");
    gd_buf_append(&body, data, length);
    gd_buf_append_text(&body, "\r\n--XyZ\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune");
    gd_buf_append_text(&body, extra_part);
    gd_buf_append_text(&body, "\r\n--XyZ--\r\n");
    static const char head[] = "POST /upload HTTP/1.1\r\n" H "Content-Type: multipart/form-data; boundary=XyZ\r\n"
                               "Transfer-Encoding: chunked\r\n\r\n";
    shout(fd, head);
    size_t sizes[] = {1, 2, 3, 77, 1000, 65536, 300001};
    for (size_t at = 0, i = 0; at < body.length; i++) {
        size_t size = sizes[i % GD_COUNT(sizes)];
        if (size > body.length - at)
            size = body.length - at;
        char line[32];
        int n = sprintf(line, "%zx\r\n", size);
        say(fd, line, (size_t)n);
        say(fd, body.data + at, size);
        say(fd, "\r\n", 2);
        at += size;
    }
    say(fd, "0\r\n\r\n", 5);
    gd_buf_release(&body);
    struct answer answer = listen_for(fd, 10000, false);
    close(fd);
    return answer;
}

static void chunked_uploads_arrive_whole_with_their_hash(void **state)
{
    size_t length = 5 << 20;
    char *data = gd_alloc(length);
    for (size_t i = 0; i < length; i++)
        data[i] = (char)(i * 2654435761u >> 13);
    struct answer answer =
        upload_chunked(data, length, "\r\n--XyZ\r\nContent-Disposition: form-data; name=\"expires_after[anchor]\"\r\n\r\ncreated_at");
    if (answer.status != 200)
        fail_msg("%d %s", answer.status, answer.text);
    assert_non_null(strstr(answer.body, "\"purpose\":\"fine-tune\""));
    assert_non_null(strstr(answer.body, "\"anchor\":\"created_at\""));
    assert_non_null(strstr(answer.body, "\"filename\":\"a.jsonl\""));
    assert_non_null(strstr(answer.body, "\"bytes\":5242880"));
    assert_non_null(strstr(answer.body, "\"hash_is_right\":true"));
    answer_release(&answer);
    gd_free(data);
    assert_nothing_left(); /* nobody took it */
}

static void uploads_that_are_too_large_or_malformed_leave_nothing(void **state)
{
    size_t length = 9 << 20;
    char *data = gd_alloc(length);
    memset(data, 'z', length);
    assert_int_equal(status_of(upload_chunked(data, length, "")), 413);
    gd_free(data);
    assert_int_equal(status_of(upload_chunked("x", 1, "\r\n--XyZ\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nb")), 400);
    assert_int_equal(status_of(upload_chunked("x", 1, "\r\n--XyZ\r\nContent-Disposition: form-data; name=\"file\"; "
                                                      "filename=\"b\"\r\n\r\nb")), 400);
    assert_int_equal(status_of(upload_chunked("x", 1, "\r\n--XyZ\r\nContent-Disposition: form-data; name=\"other\"; "
                                                      "filename=\"b\"\r\n\r\nb")), 400);
    assert_int_equal(status_of(ask(&daemon_, "POST /upload HTTP/1.1\r\n" H "Content-Type: multipart/form-data; boundary=B\r\n"
                                             "Content-Length: 5\r\n\r\n--B--")), 200);
    assert_int_equal(status_of(ask(&daemon_, "POST /upload HTTP/1.1\r\n" H "Content-Type: multipart/form-data; boundary=B\r\n"
                                             "Content-Length: 3\r\n\r\n--B")), 400);
    assert_int_equal(status_of(ask(&daemon_, "POST /upload HTTP/1.1\r\n" H "Content-Type: application/json\r\n"
                                             "Content-Length: 2\r\n\r\n{}")), 415);
    assert_nothing_left();
}

static void an_upload_whose_client_leaves_is_removed(void **state)
{
    int fd = dial(&daemon_);
    static const char head[] = "POST /upload HTTP/1.1\r\n" H "Content-Type: multipart/form-data; boundary=B\r\n"
                               "Content-Length: 4000000\r\n\r\n"
                               "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
    char *data = gd_alloc(1 << 20);
    shout(fd, head);
    say(fd, data, 1 << 20);
    gd_free(data);
    for (int i = 0; i < 200 && daemon_count_files(&daemon_, "tmp") == 0; i++)
        pause_ms(10);
    assert_int_equal(daemon_count_files(&daemon_, "tmp"), 1);
    close(fd);
    assert_nothing_left();
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, start_daemon, stop_daemon)
    const struct CMUnitTest tests[] = {
        CASE(hostile_requests_get_an_answer_and_the_end),
        CASE(errors_have_the_shape_that_sdks_read),
        CASE(unknown_paths_and_methods_are_told_apart),
        CASE(a_refusal_without_a_body_keeps_the_connection),
        CASE(percent_encoding_is_undone_once_after_routing),
        CASE(head_answers_like_get_without_the_body),
        CASE(only_configured_origins_are_answered_to),
        cmocka_unit_test_setup_teardown(every_route_but_health_asks_for_a_key, start_with_keys, stop_daemon),
        CASE(json_bodies_must_be_objects_of_their_type),
        CASE(calls_without_a_body_need_no_type_and_take_none),
        CASE(large_json_goes_over_the_disk_and_leaves_nothing),
        CASE(bodies_over_the_limit_are_answered_and_swallowed),
        CASE(a_client_that_asks_first_never_sends_a_refused_body),
        CASE(chunked_uploads_arrive_whole_with_their_hash),
        CASE(uploads_that_are_too_large_or_malformed_leave_nothing),
        CASE(an_upload_whose_client_leaves_is_removed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
