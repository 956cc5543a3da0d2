#include "server/guard.h"
#include "server/router.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

struct pair {
    const char *name, *value;
};

static bool check(const char *method, const struct pair *pairs, struct gd_guard_facts *facts, struct gd_error *err)
{
    struct gd_header headers[16];
    size_t count = 0;
    for (; pairs[count].name != NULL; count++)
        headers[count] = (struct gd_header){pairs[count].name, pairs[count].value, strlen(pairs[count].name),
                                            strlen(pairs[count].value)};
    *err = (struct gd_error){0};
    return gd_guard_headers(headers, count, method, facts, err);
}
#define PAIRS(...) (const struct pair[]){__VA_ARGS__, {NULL, NULL}}
#define HOST {"Host", "localhost"}

static void headers_that_smuggle_are_refused(void **state)
{
    static const struct {
        const char *method;
        struct pair pairs[4];
    } cases[] = {
        {"POST", {HOST, {"Content-Length", "5"}, {"Transfer-Encoding", "chunked"}}},
        {"POST", {HOST, {"Content-Length", "5"}, {"content-length", "6"}}},
        {"POST", {HOST, {"Content-Length", "5"}, {"Content-Length", "5"}}},
        {"POST", {HOST, {"Transfer-Encoding", "xchunked"}}},
        {"POST", {HOST, {"Transfer-Encoding", "gzip, chunked"}}},
        {"POST", {HOST, {"Transfer-Encoding", "chunked, identity"}}},
        {"POST", {HOST, {"Transfer-Encoding", "chunked"}, {"Transfer-Encoding", "chunked"}}},
        {"POST", {HOST, {"Transfer-Encoding", ""}}},
        {"POST", {HOST, {"Content-Length ", "5"}}},
        {"POST", {HOST, {"Content-Length", "5, 6"}}},
        {"POST", {HOST, {"Content-Length", "+5"}}},
        {"POST", {HOST, {"Content-Length", "-5"}}},
        {"POST", {HOST, {"Content-Length", "0x5"}}},
        {"POST", {HOST, {"Content-Length", ""}}},
        {"POST", {HOST, {"Content-Length", "18446744073709551616"}}},
        {"POST", {{"Content-Length", "5"}}},
        {"GET", {HOST, {"Host", "localhost"}}},
        {"GET", {HOST, {"Content-Length", "5"}}},
        {"DELETE", {HOST, {"Transfer-Encoding", "chunked"}}},
        {"HEAD", {HOST, {"Content-Length", "1"}}},
        {"GET", {HOST, {"X\x01", "y"}}},
        {"GET", {HOST, {"", "y"}}},
        {"GET", {HOST, {"X y", "z"}}},
        {"GET", {HOST, {"X", "a\x01" "b"}}},
        {"GET", {HOST, {"X", "a\x7f"}}},
        {"GET", {HOST, {"Authorization", "Bearer a"}, {"Authorization", "Bearer b"}}},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_guard_facts facts;
        struct gd_error err;
        if (check(cases[i].method, cases[i].pairs, &facts, &err))
            fail_msg("case %zu was taken", i);
        assert_int_equal(err.code, GD_INVALID);
    }
}

static void ordinary_headers_pass(void **state)
{
    struct gd_guard_facts facts;
    struct gd_error err;
    assert_true(check("POST", PAIRS(HOST, {"Content-Length", "5"}, {"X-Stainless-Lang", "python"}), &facts, &err));
    assert_true(facts.has_body);
    assert_int_equal(facts.content_length, 5);
    assert_string_equal(facts.host, "localhost");
    assert_true(check("POST", PAIRS(HOST, {"Transfer-Encoding", "Chunked"}), &facts, &err));
    assert_true(facts.has_body && facts.chunked);
    assert_true(check("GET", PAIRS(HOST, {"Content-Length", "0"}), &facts, &err));
    assert_false(facts.has_body);
    assert_true(check("POST", PAIRS(HOST, {"X-Name", "caf\xc3\xa9\t!"}), &facts, &err));
}

static void hosts_are_listed_or_local_or_refused(void **state)
{
    static const struct {
        const char *host, *listen, *allowed;
        bool good;
    } cases[] = {
        {"localhost", "127.0.0.1", NULL, true},
        {"LOCALHOST:8900", "127.0.0.1", NULL, true},
        {"127.0.0.1:1", "127.0.0.1", NULL, true},
        {"[::1]:8900", "::1", NULL, true},
        {"evil.example", "127.0.0.1", NULL, false},
        {"evil.example:8900", "0.0.0.0", NULL, false},
        {"192.168.1.7:8900", "127.0.0.1", NULL, false},
        {"192.168.1.7:8900", "192.168.1.7", NULL, true},
        {"192.168.1.7:8900", "0.0.0.0", NULL, true},
        {"[fe80::1]:8900", "::", NULL, true},
        {"tune.example", "0.0.0.0", "a.example, tune.example", true},
        {"tune.example:99", "0.0.0.0", "tune.example", true},
        {"tune.example:99", "0.0.0.0", "tune.example:98", false},
        {"tune.example:98", "0.0.0.0", "tune.example:98", true},
        {"tune.example", "0.0.0.0", "tune.example:98", false},
        {"une.example", "0.0.0.0", "tune.example", false},
        {"", "127.0.0.1", NULL, false},
        {":8900", "127.0.0.1", NULL, false},
        {"localhost:80x", "127.0.0.1", NULL, false},
        {"localhost.evil.example", "127.0.0.1", NULL, false},
        {"[::1", "::1", NULL, false},
        {"[::1]x", "::1", NULL, false},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++)
        if (gd_guard_host_allowed(cases[i].host, cases[i].listen, cases[i].allowed) != cases[i].good)
            fail_msg("%s on %s: not %d", cases[i].host, cases[i].listen, cases[i].good);
}

static void origins_match_exactly(void **state)
{
    const char *origins = "https://a.example, http://b.example:8080";
    assert_true(gd_guard_origin_allowed("https://a.example", origins));
    assert_true(gd_guard_origin_allowed("http://b.example:8080", origins));
    assert_false(gd_guard_origin_allowed("http://b.example", origins));
    assert_false(gd_guard_origin_allowed("https://a.example.evil", origins));
    assert_false(gd_guard_origin_allowed("null", origins));
    assert_false(gd_guard_origin_allowed("", origins));
    assert_false(gd_guard_origin_allowed("https://a.example", NULL));
}

/* What each escape becomes: NULL is refused. */
static void paths_are_split_before_they_are_decoded_once(void **state)
{
    static const struct {
        const char *raw, *second; /* the segment behind /v1/ */
        int segments;
    } cases[] = {
        {"/v1/files", "files", 2},
        {"/v1/ft:a%2Fb", "ft:a/b", 2},
        {"/v1/ft%3Aa%2fb", "ft:a/b", 2},
        {"/v1/%66iles", "files", 2},
        {"/v1/%2573", "%73", 2},
        {"/v1/caf%C3%A9", "caf\xc3\xa9", 2},
        {"/v1/a+b", "a+b", 2},
        {"/v1/a%20b", "a b", 2},
        {"/v1/a\\b", "a\\b", 2},
        {"/v1/...", "...", 2},
        {"/v1/a?x=/../", "a", 2},
        {"/v1/%00", NULL, 0},
        {"/v1/files%00zzz", NULL, 0},
        {"/v1/%0a", NULL, 0},
        {"/v1/%7f", NULL, 0},
        {"/v1/%ff", NULL, 0},
        {"/v1/%c0%af", NULL, 0},
        {"/v1/%ed%a0%80", NULL, 0},
        {"/v1/%", NULL, 0},
        {"/v1/%2", NULL, 0},
        {"/v1/%zz", NULL, 0},
        {"/v1/..", NULL, 0},
        {"/v1/../files", NULL, 0},
        {"/v1/%2e%2e/files", NULL, 0},
        {"/v1/.%2E", NULL, 0},
        {"/v1/.", NULL, 0},
        {"/v1/a%2F..%2Fb", NULL, 0},
        {"/v1/..%2f..%2fetc%2fpasswd", NULL, 0},
        {"/v1//files", NULL, 0},
        {"/v1/files/", NULL, 0},
        {"//v1/files", NULL, 0},
        {"/v1/files#x", NULL, 0},
        {"http://host/v1/files", NULL, 0},
        {"*", NULL, 0},
        {"", NULL, 0},
        {"/v1/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17", NULL, 0},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_target target;
        struct gd_error err = {0};
        bool ok = gd_target_parse(&target, cases[i].raw, &err);
        if (ok != (cases[i].second != NULL))
            fail_msg("%s: %s", cases[i].raw, ok ? "was taken" : err.message);
        if (ok) {
            assert_int_equal(target.segment_count, cases[i].segments);
            assert_string_equal(target.segments[1], cases[i].second);
        }
        gd_target_release(&target);
    }
}

static void queries_are_decoded_once_with_plus_as_space(void **state)
{
    struct gd_target target;
    struct gd_error err = {0};
    assert_true(gd_target_parse(&target, "/x?a=1&b=%2526+c&metadata%5Bk%5D=v%3D&&flag&=e&a=2", &err));
    static const char *const expected[][2] = {{"a", "1"}, {"b", "%26 c"}, {"metadata[k]", "v="},
                                              {"flag", ""}, {"", "e"}, {"a", "2"}};
    assert_int_equal(target.pair_count, 6);
    for (int i = 0; i < 6; i++) {
        assert_string_equal(target.pairs[i].name, expected[i][0]);
        assert_string_equal(target.pairs[i].value, expected[i][1]);
    }
    gd_target_release(&target);
    static const char *const bad[] = {"/x?a=%00", "/x?%0d=1", "/x?a=%ff", "/x?a=%g1", "/x?a=%"};
    for (size_t i = 0; i < GD_COUNT(bad); i++) {
        assert_false(gd_target_parse(&target, bad[i], &err));
        assert_int_equal(err.code, GD_INVALID);
        gd_target_release(&target);
        gd_error_clear(&err);
    }
}

static void more_parameters_than_the_limit_are_refused(void **state)
{
    char raw[1024] = "/x?";
    for (int i = 0; i < GD_TARGET_PAIRS_MAX; i++)
        strcat(raw, "a=b&");
    struct gd_target target;
    struct gd_error err = {0};
    assert_true(gd_target_parse(&target, raw, &err));
    gd_target_release(&target);
    strcat(raw, "a=b");
    assert_false(gd_target_parse(&target, raw, &err));
    gd_target_release(&target);
}

static void the_router_knows_paths_methods_and_parameters(void **state)
{
    static const struct gd_route routes[] = {
        {.method = "GET", .path = "/v1/files"},
        {.method = "POST", .path = "/v1/files"},
        {.method = "GET", .path = "/v1/files/{id}/content"},
        {.method = "DELETE", .path = "/v1/files/{id}"},
    };
    static const struct {
        const char *method, *path;
        int route; /* -1: none */
        bool known;
        const char *allow, *param;
    } cases[] = {
        {"GET", "/v1/files", 0, true, "GET, HEAD, POST, OPTIONS", NULL},
        {"HEAD", "/v1/files", 0, true, "GET, HEAD, POST, OPTIONS", NULL},
        {"PUT", "/v1/files", -1, true, "GET, HEAD, POST, OPTIONS", NULL},
        {"HEAD", "/v1/files/x", -1, true, "DELETE, OPTIONS", NULL},
        {"DELETE", "/v1/files/content", 3, true, "DELETE, OPTIONS", "content"},
        {"GET", "/v1/files/a%2Fcontent", -1, true, "DELETE, OPTIONS", NULL},
        {"GET", "/v1/files/a%2Fb/content", 2, true, "GET, HEAD, OPTIONS", "a/b"},
        {"GET", "/v1/file", -1, false, "", NULL},
        {"GET", "/v1/filesx", -1, false, "", NULL},
        {"GET", "/v1", -1, false, "", NULL},
        {"GET", "/", -1, false, "", NULL},
        {"GET", "/v1/files/a/content/b", -1, false, "", NULL},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_target target;
        struct gd_error err = {0};
        struct gd_match match;
        assert_true(gd_target_parse(&target, cases[i].path, &err));
        gd_router_match(routes, GD_COUNT(routes), cases[i].method, &target, &match);
        if (match.route != (cases[i].route < 0 ? NULL : &routes[cases[i].route]) || match.path_known != cases[i].known)
            fail_msg("%s %s", cases[i].method, cases[i].path);
        assert_string_equal(match.allow, cases[i].allow);
        if (cases[i].param != NULL)
            assert_string_equal(match.params[0], cases[i].param);
        gd_target_release(&target);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_that_smuggle_are_refused),
        cmocka_unit_test(ordinary_headers_pass),
        cmocka_unit_test(hosts_are_listed_or_local_or_refused),
        cmocka_unit_test(origins_match_exactly),
        cmocka_unit_test(paths_are_split_before_they_are_decoded_once),
        cmocka_unit_test(queries_are_decoded_once_with_plus_as_space),
        cmocka_unit_test(more_parameters_than_the_limit_are_refused),
        cmocka_unit_test(the_router_knows_paths_methods_and_parameters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
