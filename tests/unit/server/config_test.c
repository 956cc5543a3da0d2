#include "server/config.h"
#include "server/counters.h"
#include "server/keys.h"

#include "tests/unit/base/scratch.h"

#include <stdlib.h>
#include <string.h>

static char *folder;

static int make_folder(void **state)
{
    folder = scratch_new();
    return 0;
}

static int drop_folder(void **state)
{
    scratch_remove(folder);
    return 0;
}

static char *file_with(const char *text)
{
    char *path = gd_format("%s/file", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    return path;
}

static bool load(struct gd_config *config, const char *text, struct gd_error *err)
{
    char *path = file_with(text);
    gd_config_init(config);
    *err = (struct gd_error){0};
    bool ok = gd_config_load_file(config, path, err);
    gd_free(path);
    return ok;
}

static void a_file_sets_what_it_names(void **state)
{
    struct gd_config config;
    struct gd_error err;
    assert_true(load(&config, "; comment\n[server]\ndata_dir = /d\nmodels=/m\nlisten = [::1]:0\ninsecure_http = yes\n"
                     "upload_max_bytes = 2MiB\ncors_origins = https://a.example, http://b.example:81\n"
                     "[engine]\nthreads = 2\n[jobs]\nkeep_checkpoints = 7\n", &err));
    assert_string_equal(config.data_dir, "/d");
    assert_string_equal(config.listen_host, "::1");
    assert_int_equal(config.listen_port, 0);
    assert_true(config.insecure_http);
    assert_int_equal(config.upload_max_bytes, 2 << 20);
    assert_int_equal(config.threads, 2);
    assert_int_equal(config.keep_checkpoints, 7);
    assert_int_equal(config.connection_limit, 1024);
    assert_true(gd_config_check(&config, &err));
    gd_config_release(&config);
}

static void errors_name_file_line_and_way_out(void **state)
{
    static const struct {
        const char *text, *part;
        enum gd_code code;
    } cases[] = {
        {"[server]\ndata_dirs = /d\n", "file:2: server.data_dirs: there is no setting \"server.data_dirs\"; did you mean "
                                       "\"server.data_dir\"?", GD_UNKNOWN_FIELD},
        {"[server]\n\nlisten = 8900\n", "file:3: ", GD_INVALID},
        {"[server]\nlisten = ::1:8900\n", "HOST:PORT", GD_INVALID},
        {"[server]\nlisten = a:65536\n", "HOST:PORT", GD_INVALID},
        {"[engine]\nthreads = two\n", "whole number from 0 to 4096", GD_INVALID},
        {"[engine]\nthreads = 99999\n", "whole number", GD_INVALID},
        {"[server]\nupload_max_bytes = 5 parsecs\n", "bytes; k, M, G", GD_INVALID},
        {"[server]\nupload_max_bytes = 999999999999999t\n", "bytes; k, M, G", GD_INVALID},
        {"[server]\ninsecure_http = maybe\n", "neither true nor false", GD_INVALID},
        {"[server]\ndata_dir = /d\ndata_dir = /e\n", "given twice", GD_INVALID},
        {"[server]\ndata_dir = /d\n  /e\n", "given twice", GD_INVALID},
        {"[server]\nnonsense\n", "file:2: not", GD_INVALID},
        {"[server\n", "file:1", GD_INVALID},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_config config;
        struct gd_error err;
        assert_false(load(&config, cases[i].text, &err));
        if (strstr(err.message, cases[i].part) == NULL)
            fail_msg("%s: %s", cases[i].text, err.message);
        assert_int_equal(err.code, cases[i].code);
        gd_config_release(&config);
    }
}

static void a_line_longer_than_the_reader_takes_is_an_error(void **state)
{
    char text[512] = "[server]\ndata_dir = /";
    memset(text + strlen(text), 'x', 200);
    struct gd_config config;
    struct gd_error err;
    assert_false(load(&config, text, &err));
    assert_non_null(strstr(err.message, "file:2: a line has at most"));
    gd_config_release(&config);
}

static void the_environment_is_read_by_name(void **state)
{
    struct gd_config config;
    struct gd_error err = {0};
    gd_config_init(&config);
    setenv("GRAFTD_SERVER_DATA_DIR", "/env", 1);
    setenv("GRAFTD_ENGINE_DEVICE", "cpu", 1);
    assert_true(gd_config_load_environment(&config, &err));
    assert_string_equal(config.data_dir, "/env");
    assert_string_equal(config.device, "cpu");
    setenv("GRAFTD_SERVER_LISTEN", "nowhere", 1);
    assert_false(gd_config_load_environment(&config, &err));
    assert_non_null(strstr(err.message, "GRAFTD_SERVER_LISTEN: "));
    assert_string_equal(err.param, "server.listen");
    unsetenv("GRAFTD_SERVER_LISTEN");
    unsetenv("GRAFTD_SERVER_DATA_DIR");
    unsetenv("GRAFTD_ENGINE_DEVICE");
    gd_config_release(&config);
}

/* What may listen where: { listen, keys, insecure } -> good */
static void addresses_outside_need_keys_and_consent(void **state)
{
    static const struct {
        const char *listen;
        bool keys, insecure, good;
    } cases[] = {
        {"127.0.0.1:1", false, false, true}, {"127.8.8.8:1", false, false, true}, {"localhost:1", false, false, true},
        {"[::1]:1", false, false, true},     {"0.0.0.0:1", false, false, false},  {"0.0.0.0:1", true, false, false},
        {"0.0.0.0:1", false, true, false},   {"0.0.0.0:1", true, true, true},     {"[::]:1", true, false, false},
        {"example.com:1", false, false, false},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_config config;
        struct gd_error err = {0};
        gd_config_init(&config);
        assert_true(gd_config_set(&config, "server.data_dir", "/d", "--data-dir", &err));
        assert_true(gd_config_set(&config, "server.models", "/m", "--models", &err));
        assert_true(gd_config_set(&config, "server.listen", cases[i].listen, "--listen", &err));
        if (cases[i].keys)
            assert_true(gd_config_set(&config, "server.api_key_file", "/k", "--api-key-file", &err));
        config.insecure_http = cases[i].insecure;
        if (gd_config_check(&config, &err) != cases[i].good)
            fail_msg("case %zu: %s", i, err.message);
        gd_config_release(&config);
    }
}

static void wildcard_and_broken_origins_are_refused(void **state)
{
    static const char *const bad[] = {"*", "https://*.example", "https://a.example/", "a.example", "null",
                                      "https://a.example https"};
    for (size_t i = 0; i < GD_COUNT(bad); i++) {
        struct gd_config config;
        struct gd_error err = {0};
        gd_config_init(&config);
        assert_true(gd_config_set(&config, "server.data_dir", "/d", "--data-dir", &err));
        assert_true(gd_config_set(&config, "server.models", "/m", "--models", &err));
        assert_true(gd_config_set(&config, "server.cors_origins", bad[i], "file", &err));
        if (gd_config_check(&config, &err))
            fail_msg("%s was taken", bad[i]);
        gd_config_release(&config);
    }
}

#define KEY_A "key-aaaaaaaaaaaaaaaaaaaa"
#define KEY_B "key-bbbbbbbbbbbbbbbbbbbb"

static void keys_belong_to_projects(void **state)
{
    char *path = file_with("# the team\n" KEY_A "\r\n\n  " KEY_B "\tteam-2  \n");
    struct gd_keys *keys = NULL;
    struct gd_error err = {0};
    assert_true(gd_keys_load(&keys, path, &err));
    assert_string_equal(gd_keys_project(keys, KEY_A, strlen(KEY_A)), "default");
    assert_string_equal(gd_keys_project(keys, KEY_B, strlen(KEY_B)), "team-2");
    assert_null(gd_keys_project(keys, KEY_A, strlen(KEY_A) - 1));
    assert_null(gd_keys_project(keys, "key-cccccccccccccccccccc", 24));
    assert_null(gd_keys_project(keys, "", 0));
    gd_keys_destroy(keys);
    gd_free(path);
}

static void bad_key_files_are_refused_without_showing_keys(void **state)
{
    static const char *const bad[] = {"", "# nothing\n", "short\n", KEY_A "\n" KEY_A "\n", KEY_A " bad/project\n",
                                      "key-with-\x01-control-character\n", KEY_A " a b\n"};
    for (size_t i = 0; i < GD_COUNT(bad); i++) {
        char *path = file_with(bad[i]);
        struct gd_keys *keys = NULL;
        struct gd_error err = {0};
        if (gd_keys_load(&keys, path, &err))
            fail_msg("case %zu was taken", i);
        assert_null(strstr(err.message, "aaaa"));
        gd_free(path);
    }
}

static void counters_print_as_prometheus_reads_them(void **state)
{
    struct gd_counters *counters = gd_counters_create();
    struct gd_buf text;
    gd_counters_add(counters, GD_COUNTER_HTTP_REQUESTS, 2, (const char *[]){"/a\"\\\n", "GET", "200"});
    gd_counters_observe(counters, GD_COUNTER_FIRST_TOKEN, 0.003, NULL);
    gd_counters_observe(counters, GD_COUNTER_FIRST_TOKEN, 1000, NULL);
    gd_buf_init(&text, 0);
    gd_counters_print(counters, &text);
    assert_non_null(strstr(text.data, "# TYPE graftd_http_requests_total counter\n"
                                      "graftd_http_requests_total{route=\"/a\\\"\\\\\\n\",method=\"GET\",status=\"200\"} 2\n"));
    assert_non_null(strstr(text.data, "graftd_time_to_first_token_seconds_bucket{le=\"0.0025\"} 0\n"
                                      "graftd_time_to_first_token_seconds_bucket{le=\"0.005\"} 1\n"));
    assert_non_null(strstr(text.data, "graftd_time_to_first_token_seconds_bucket{le=\"+Inf\"} 2\n"
                                      "graftd_time_to_first_token_seconds_sum 1000.00"));
    assert_non_null(strstr(text.data, "graftd_time_to_first_token_seconds_count 2\n"));
    gd_buf_release(&text);
    gd_counters_destroy(counters);
}

static void series_beyond_the_limit_are_counted_together(void **state)
{
    struct gd_counters *counters = gd_counters_create();
    struct gd_buf text;
    for (int i = 0; i < GD_COUNTER_SERIES_MAX + 50; i++) {
        char name[32];
        snprintf(name, sizeof(name), "reason-%d", i);
        gd_counters_add(counters, GD_COUNTER_HTTP_REFUSED, 1, (const char *[]){name});
    }
    gd_buf_init(&text, 0);
    gd_counters_print(counters, &text);
    assert_non_null(strstr(text.data, "{reason=\"reason-510\"} 1\n"));
    assert_non_null(strstr(text.data, "{reason=\"other\"} 51\n"));
    assert_null(strstr(text.data, "reason-511"));
    gd_buf_release(&text);
    gd_counters_destroy(counters);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_file_sets_what_it_names, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(errors_name_file_line_and_way_out, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(a_line_longer_than_the_reader_takes_is_an_error, make_folder, drop_folder),
        cmocka_unit_test(the_environment_is_read_by_name),
        cmocka_unit_test(addresses_outside_need_keys_and_consent),
        cmocka_unit_test(wildcard_and_broken_origins_are_refused),
        cmocka_unit_test_setup_teardown(keys_belong_to_projects, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(bad_key_files_are_refused_without_showing_keys, make_folder, drop_folder),
        cmocka_unit_test(counters_print_as_prometheus_reads_them),
        cmocka_unit_test(series_beyond_the_limit_are_counted_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
