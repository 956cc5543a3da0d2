/*
 * Files and models over HTTP: the real routes and the real store, without workers.
 */
#include "engine/base/json.h"
#include "server/files.h"
#include "server/models.h"
#include "tests/unit/server/http_testing.h"

#include <sys/stat.h>

static struct daemon daemon_;

#define KEY_A "key-aaaaaaaaaaaaaaaaaaaa"
#define KEY_B "key-bbbbbbbbbbbbbbbbbbbb"
#define AS_A "Authorization: Bearer " KEY_A "\r\n"
#define AS_B "Authorization: Bearer " KEY_B "\r\n"

#define GOOD_ROW "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"yo\"}]}\n"

static void on_broken(void *context, const struct gd_error *err)
{
    fail_msg("the store is broken: %s", err->message);
}

static void put_file(const char *name, const char *text)
{
    char *path = gd_format("%s/%s", daemon_.folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    gd_free(path);
}

static void open_parts(struct daemon *daemon)
{
    struct gd_app *app = &daemon->app;
    struct gd_error err = {0};
    char *keys = gd_format("%s/keys", daemon->folder), *models = gd_format("%s/models", daemon->folder);
    assert_ok(gd_keys_load(&app->keys, keys, &err), &err);
    assert_ok(gd_models_open(&app->models, models, &err), &err);
    assert_ok(gd_store_open(&app->store, app->loop, daemon->folder, on_broken, NULL, &err), &err);
    assert_ok(gd_files_start(&app->files, app, &err), &err);
    gd_free(keys);
    gd_free(models);
}

static void close_parts(struct daemon *daemon)
{
    gd_files_stop(daemon->app.files);
    gd_store_close(daemon->app.store);
    gd_models_destroy(daemon->app.models);
}

static int start(void **state)
{
    daemon_init(&daemon_);
    daemon_.opened = open_parts;
    daemon_.closing = close_parts;
    put_file("keys", KEY_A " a\n" KEY_B " b\n");
    static const char *const folders[] = {"models", "models/base-1", "models/not-a-model", "files"};
    for (size_t i = 0; i < GD_COUNT(folders); i++) {
        char *path = gd_format("%s/%s", daemon_.folder, folders[i]);
        assert_int_equal(mkdir(path, 0700), 0);
        gd_free(path);
    }
    put_file("models/base-1/config.json", "{}");
    put_file("models/base-2.gguf", "GGUF");
    put_file("models/readme.txt", "");
    put_file("files/file-left-by-a-crash", "half");
    daemon_start(&daemon_);
    return 0;
}

static int stop(void **state)
{
    daemon_stop(&daemon_);
    return 0;
}

static struct answer upload(const char *key, const char *purpose, const char *filename, const char *data,
                            const char *more_parts)
{
    char *body = gd_format("--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"%s\"\r\n\r\n%s\r\n"
                           "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n%s\r\n%s--B--\r\n",
                           filename, data, purpose, more_parts);
    char *text = gd_format("POST /v1/files HTTP/1.1\r\nHost: localhost\r\n%sContent-Type: multipart/form-data; boundary=B\r\n"
                           "Content-Length: %zu\r\n\r\n%s", key, strlen(body), body);
    struct answer answer = ask(&daemon_, text);
    gd_free(text);
    gd_free(body);
    return answer;
}

/* A member of the answer's JSON as text; "" when absent. */
static const char *member(const struct answer *answer, const char *name, char out[512])
{
    struct gd_error err = {0};
    cJSON *json = gd_json_parse(answer->body, answer->body_length, 1 << 24, &err);
    const cJSON *item = gd_json_find(json, name);
    if (item == NULL)
        item = gd_json_find(gd_json_find(json, "error"), name);
    char *text = item == NULL ? gd_strdup("") : cJSON_IsString(item) ? gd_strdup(item->valuestring) : gd_json_print(item);
    snprintf(out, 512, "%s", text);
    gd_free(text);
    cJSON_Delete(json);
    return out;
}

static void upload_ok(const char *purpose, const char *data, char id[512])
{
    struct answer answer = upload(AS_A, purpose, "a.jsonl", data, "");
    if (answer.status != 200)
        fail_msg("%s", answer.text);
    member(&answer, "id", id);
    answer_release(&answer);
}

/* Files go a moment after the answer. */
static void assert_files(const char *folder, int count)
{
    for (int i = 0; i < 500 && daemon_count_files(&daemon_, folder) != count; i++)
        pause_ms(10);
    assert_int_equal(daemon_count_files(&daemon_, folder), count);
}

static int ask_as(const char *key, const char *method, const char *format, const char *id)
{
    char *path = gd_format(format, id), *line = gd_format("%s %s", method, path);
    int status = status_of(ask_json(&daemon_, line, key, NULL));
    gd_free(path);
    gd_free(line);
    return status;
}

static void a_file_comes_back_as_it_was_sent(void **state)
{
    char id[512], text[512];
    struct answer answer = upload(AS_A, "fine-tune", "na\xc3\xafve \\\" ../x.jsonl", GOOD_ROW GOOD_ROW,
                                  "--B\r\nContent-Disposition: form-data; name=\"expires_after[seconds]\"\r\n\r\n3600\r\n"
                                  "--B\r\nContent-Disposition: form-data; name=\"expires_after[anchor]\"\r\n\r\ncreated_at\r\n");
    if (answer.status != 200)
        fail_msg("%s", answer.text);
    member(&answer, "id", id);
    assert_string_equal(member(&answer, "object", text), "file");
    assert_string_equal(member(&answer, "status", text), "processed");
    assert_string_equal(member(&answer, "filename", text), "na\xc3\xafve \" ../x.jsonl");
    int64_t created = atoll(member(&answer, "created_at", text));
    assert_int_equal(atoll(member(&answer, "expires_at", text)), created + 3600);
    assert_non_null(strstr(member(&answer, "report", text), "\"rows\":2"));
    answer_release(&answer);

    char *line = gd_format("GET /v1/files/%s/content", id);
    answer = ask_json(&daemon_, line, AS_A, NULL);
    gd_free(line);
    assert_int_equal(answer.status, 200);
    assert_int_equal(answer.body_length, strlen(GOOD_ROW GOOD_ROW));
    assert_memory_equal(answer.body, GOOD_ROW GOOD_ROW, answer.body_length);
    assert_string_equal(header_of(&answer, "content-disposition", text),
                        "attachment; filename=\"na__ve _ ../x.jsonl\"; filename*=UTF-8''na%C3%AFve%20%22%20..%2Fx.jsonl");
    answer_release(&answer);
    assert_int_equal(ask_as(AS_A, "GET", "/v1/files/%s", id), 200);
    assert_files("tmp", 0);
}

static void other_projects_see_nothing(void **state)
{
    char id[512], text[512];
    upload_ok("batch", "x", id);
    assert_int_equal(ask_as(AS_B, "GET", "/v1/files/%s", id), 404);
    assert_int_equal(ask_as(AS_B, "GET", "/v1/files/%s/content", id), 404);
    assert_int_equal(ask_as(AS_B, "DELETE", "/v1/files/%s", id), 404);
    struct answer answer = ask_json(&daemon_, "GET /v1/files", AS_B, NULL);
    assert_string_equal(member(&answer, "data", text), "[]");
    assert_string_equal(member(&answer, "first_id", text), "null");
    answer_release(&answer);
    assert_int_equal(ask_as(AS_A, "GET", "/v1/files/%s", id), 200);
}

static void bad_rows_are_refused_with_their_lines(void **state)
{
    char text[512];
    struct answer answer = upload(AS_A, "fine-tune", "a.jsonl", GOOD_ROW "{\"messages\":[]}\n" GOOD_ROW "nonsense\n", "");
    assert_int_equal(answer.status, 400);
    assert_string_equal(member(&answer, "code", text), "invalid_file");
    const char *message = member(&answer, "message", text);
    assert_non_null(strstr(message, "line 2"));
    assert_non_null(strstr(message, "line 4"));
    answer_release(&answer);
    answer = ask_json(&daemon_, "GET /v1/files", AS_A, NULL);
    assert_string_equal(member(&answer, "data", text), "[]");
    answer_release(&answer);
    assert_files("files", 0);
    assert_files("tmp", 0);
}

static void wrong_fields_are_named(void **state)
{
#define FIELD(name, value) "--B\r\nContent-Disposition: form-data; name=\"" name "\"\r\n\r\n" value "\r\n"
    static const struct {
        const char *purpose, *more, *param;
    } cases[] = {
        {"tuning", "", "purpose"},
        {"fine-tune-results", "", "purpose"},
        {"batch", FIELD("expires_after[anchor]", "created_at"), "expires_after[seconds]"},
        {"batch", FIELD("expires_after[seconds]", "3600"), "expires_after[anchor]"},
        {"batch", FIELD("expires_after[seconds]", "3599") FIELD("expires_after[anchor]", "created_at"),
         "expires_after[seconds]"},
        {"batch", FIELD("expires_after[seconds]", "2592001") FIELD("expires_after[anchor]", "created_at"),
         "expires_after[seconds]"},
        {"batch", FIELD("expires_after[seconds]", "1e5") FIELD("expires_after[anchor]", "created_at"),
         "expires_after[seconds]"},
        {"batch", FIELD("expires_after[seconds]", "3600") FIELD("expires_after[anchor]", "now"), "expires_after[anchor]"},
        {"batch", FIELD("purpos", "x"), "purpos"},
    };
    char text[512];
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct answer answer = upload(AS_A, cases[i].purpose, "a", "x", cases[i].more);
        if (answer.status != 400)
            fail_msg("case %zu: %s", i, answer.text);
        assert_string_equal(member(&answer, "param", text), cases[i].param);
        answer_release(&answer);
    }
    struct answer answer = upload(AS_A, "batch", "a", "", "");
    assert_int_equal(answer.status, 400);
    answer_release(&answer);
    assert_files("tmp", 0);
}

static void lists_are_paged_in_both_orders(void **state)
{
    char ids[5][512], text[512], id[512];
    for (int i = 0; i < 5; i++)
        upload_ok(i == 2 ? "evals" : "batch", "x", ids[i]);
    struct answer answer = ask_json(&daemon_, "GET /v1/files?limit=2", AS_A, NULL);
    assert_string_equal(member(&answer, "first_id", text), ids[4]);
    assert_string_equal(member(&answer, "last_id", text), ids[3]);
    assert_string_equal(member(&answer, "has_more", text), "true");
    answer_release(&answer);
    char *line = gd_format("GET /v1/files?limit=2&order=asc&after=%s", ids[2]);
    answer = ask_json(&daemon_, line, AS_A, NULL);
    gd_free(line);
    assert_string_equal(member(&answer, "first_id", text), ids[3]);
    assert_string_equal(member(&answer, "last_id", text), ids[4]);
    assert_string_equal(member(&answer, "has_more", text), "false");
    answer_release(&answer);
    answer = ask_json(&daemon_, "GET /v1/files?purpose=evals", AS_A, NULL);
    assert_string_equal(member(&answer, "first_id", id), ids[2]);
    assert_string_equal(member(&answer, "last_id", text), ids[2]);
    answer_release(&answer);
    static const char *const bad[] = {"limit=0", "limit=10001", "limit=x", "order=up", "purpose=x", "after=nothing"};
    for (size_t i = 0; i < GD_COUNT(bad); i++)
        assert_int_equal(ask_as(AS_A, "GET", "/v1/files?%s", bad[i]), 400);
}

static void deleting_takes_row_and_bytes(void **state)
{
    char id[512], text[512];
    upload_ok("batch", "x", id);
    assert_files("files", 1);
    char *line = gd_format("DELETE /v1/files/%s", id);
    struct answer answer = ask_json(&daemon_, line, AS_A, NULL);
    gd_free(line);
    assert_int_equal(answer.status, 200);
    assert_string_equal(member(&answer, "deleted", text), "true");
    assert_string_equal(member(&answer, "object", text), "file");
    answer_release(&answer);
    assert_int_equal(ask_as(AS_A, "GET", "/v1/files/%s", id), 404);
    assert_int_equal(ask_as(AS_A, "DELETE", "/v1/files/%s", id), 404);
    assert_files("files", 0);
    assert_files(".trash", 0);
}

static void hostile_ids_reach_no_file(void **state)
{
    static const char *const ids[] = {"..%2F..%2Fkeys", "%2Fetc%2Fpasswd", "..%5C..%5Ckeys", "keys", "x%00y", "%2e%2e",
                                      "..%2fstate.db", "file-'%20OR%201=1--"};
    for (size_t i = 0; i < GD_COUNT(ids); i++) {
        int status = ask_as(AS_A, "GET", "/v1/files/%s/content", ids[i]);
        if (status != 404 && status != 400)
            fail_msg("%s: %d", ids[i], status);
        status = ask_as(AS_A, "DELETE", "/v1/files/%s", ids[i]);
        if (status != 404 && status != 400)
            fail_msg("DELETE %s: %d", ids[i], status);
    }
    char *keys = gd_format("%s/keys", daemon_.folder);
    assert_int_equal(access(keys, R_OK), 0);
    gd_free(keys);
}

static void what_a_crash_left_is_removed_at_the_start(void **state)
{
    assert_files("files", 0);
}

static void models_are_folders_and_gguf_files(void **state)
{
    char text[512];
    struct answer answer = ask_json(&daemon_, "GET /v1/models", AS_A, NULL);
    assert_int_equal(answer.status, 200);
    assert_non_null(strstr(answer.body, "\"id\":\"base-1\""));
    assert_non_null(strstr(answer.body, "\"id\":\"base-2\""));
    assert_null(strstr(answer.body, "not-a-model"));
    assert_null(strstr(answer.body, "readme"));
    answer_release(&answer);
    answer = ask_json(&daemon_, "GET /v1/models/base-2", AS_A, NULL);
    assert_string_equal(member(&answer, "root", text), "base-2");
    assert_string_equal(member(&answer, "parent", text), "null");
    answer_release(&answer);
    assert_int_equal(ask_as(AS_A, "GET", "/v1/models/%s", "ft:base-1:org:x:1"), 404);
    assert_int_equal(ask_as(AS_A, "DELETE", "/v1/models/%s", "base-1"), 403);
    assert_int_equal(ask_as(AS_A, "DELETE", "/v1/models/%s", "ft:base-1:org:x:1"), 404);
}

static void a_row_to_render_must_exist(void **state)
{
    static const struct {
        const char *body;
        int status;
    } cases[] = {
        {"{\"model\":\"base-1\",\"row\":3}", 400}, {"{\"model\":\"base-1\",\"row\":0}", 400},
        {"{\"model\":\"base-1\"}", 400},           {"{\"model\":\"nothing\",\"row\":1}", 404},
        {"{\"row\":1}", 400},                      {"{\"model\":\"base-1\",\"row\":1,\"x\":1}", 400},
        {"{\"model\":\"base-1\",\"row\":2}", 503}, /* there is no worker here */
    };
    char id[512];
    upload_ok("fine-tune", "\n" GOOD_ROW "  \n" GOOD_ROW, id);
    char *line = gd_format("POST /v1/files/%s/render", id);
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct answer answer = ask_json(&daemon_, line, AS_A, cases[i].body);
        if (answer.status != cases[i].status)
            fail_msg("%s: %s", cases[i].body, answer.text);
        answer_release(&answer);
    }
    gd_free(line);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, start, stop)
    const struct CMUnitTest tests[] = {
        CASE(a_file_comes_back_as_it_was_sent),
        CASE(other_projects_see_nothing),
        CASE(bad_rows_are_refused_with_their_lines),
        CASE(wrong_fields_are_named),
        CASE(lists_are_paged_in_both_orders),
        CASE(deleting_takes_row_and_bytes),
        CASE(hostile_ids_reach_no_file),
        CASE(what_a_crash_left_is_removed_at_the_start),
        CASE(models_are_folders_and_gguf_files),
        CASE(a_row_to_render_must_exist),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
