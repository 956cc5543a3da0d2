/* http_fixture.c - a daemon with routes of the tests' own. */
#include "tests/unit/server/http_fixture.h"

struct daemon daemon_;
atomic_int gone_count, handled_count;

/* ---- handlers ---- */

static void reply_ok(struct gd_app *app, struct gd_request *request)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddBoolToObject(json, "ok", true);
    atomic_fetch_add(&handled_count, 1);
    gd_http_reply(request, 200, json);
}

static void reply_params(struct gd_app *app, struct gd_request *request)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "id", gd_request_param(request, 0));
    cJSON_AddStringToObject(json, "project", gd_request_project(request));
    const char *query = gd_request_query(request, "q");
    if (query != NULL)
        cJSON_AddStringToObject(json, "q", query);
    gd_http_reply(request, 200, json);
}

static void reply_size(struct gd_app *app, struct gd_request *request)
{
    cJSON *json = cJSON_CreateObject();
    const char *text = "";
    struct gd_error err = {0};
    if (!gd_json_get_string(gd_request_json(request), "", "text", true, 0, 1 << 28, &text, &err)) {
        cJSON_Delete(json);
        gd_http_fail(request, &err);
        return;
    }
    cJSON_AddNumberToObject(json, "length", (double)strlen(text));
    gd_http_reply(request, 200, json);
}

static void reply_upload(struct gd_app *app, struct gd_request *request)
{
    const struct gd_upload *upload = gd_request_upload(request);
    const char *purpose = gd_request_field(request, "purpose"), *anchor = gd_request_field(request, "expires_after[anchor]");
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "purpose", purpose != NULL ? purpose : "-");
    cJSON_AddStringToObject(json, "anchor", anchor != NULL ? anchor : "-");
    if (upload != NULL) {
        char digest[33];
        struct gd_error err = {0};
        cJSON_AddStringToObject(json, "filename", upload->filename);
        cJSON_AddNumberToObject(json, "bytes", (double)upload->bytes);
        bool same = gd_hash_file_xxh3(upload->temporary_path, digest, &err) && strcmp(digest, upload->xxh3) == 0;
        cJSON_AddBoolToObject(json, "hash_is_right", same);
    }
    gd_http_reply(request, 200, json);
}

static void later(uv_timer_t *timer)
{
    reply_ok(&daemon_.app, timer->data);
    uv_close((uv_handle_t *)timer, (uv_close_cb)(void (*)(void))gd_free);
}

static void reply_later(struct gd_app *app, struct gd_request *request)
{
    uv_timer_t *timer = gd_alloc(sizeof(*timer));
    uv_timer_init(app->loop, timer);
    timer->data = request;
    uv_timer_start(timer, later, 100, 0);
}

static void give_up(void *context)
{
    struct gd_error err = {0};
    atomic_fetch_add(&gone_count, 1);
    gd_fail(&err, GD_CANCELLED, "gone");
    gd_http_fail(context, &err);
}

static void reply_never(struct gd_app *app, struct gd_request *request)
{
    atomic_fetch_add(&handled_count, 1);
    gd_request_on_gone(request, give_up, request);
}

struct ticker {
    uv_timer_t timer;
    struct gd_stream *stream;
    int count, limit;
    size_t bytes;
};

static void ticker_free(uv_handle_t *handle)
{
    gd_free(handle->data);
}

static void ticker_end(struct ticker *ticker)
{
    gd_stream_end(ticker->stream);
    uv_close((uv_handle_t *)&ticker->timer, ticker_free);
}

static void ticker_gone(void *context)
{
    atomic_fetch_add(&gone_count, 1);
    ticker_end(context);
}

static void tick(uv_timer_t *timer)
{
    struct ticker *ticker = timer->data;
    char id[16];
    snprintf(id, sizeof(id), "%d", ++ticker->count);
    char *data = gd_alloc(ticker->bytes + 32);
    snprintf(data, 32, "tick\n%d", ticker->count);
    if (ticker->bytes > 0)
        memset(data, 'x', ticker->bytes);
    gd_stream_data(ticker->stream, "tick", id, data);
    gd_free(data);
    if (ticker->count == ticker->limit)
        ticker_end(ticker);
}

/* ?n=COUNT&bytes=SIZE&ms=PERIOD */
static void reply_stream(struct gd_app *app, struct gd_request *request)
{
    struct gd_error err = {0};
    int64_t count = 3, bytes = 0, ms = 10;
    if (!gd_request_query_int(request, "n", 0, 1 << 20, &count, &err) ||
        !gd_request_query_int(request, "bytes", 0, 1 << 20, &bytes, &err) ||
        !gd_request_query_int(request, "ms", 0, 1000, &ms, &err)) {
        gd_http_fail(request, &err);
        return;
    }
    struct ticker *ticker = gd_alloc(sizeof(*ticker));
    ticker->limit = (int)count;
    ticker->bytes = (size_t)bytes;
    ticker->stream = gd_http_stream(request, ticker_gone, ticker);
    uv_timer_init(app->loop, &ticker->timer);
    ticker->timer.data = ticker;
    uv_timer_start(&ticker->timer, tick, 0, (uint64_t)ms + (ms == 0));
}

const struct gd_route gd_routes[] = {
    {.method = "GET", .path = "/health", .open = true, .handler = reply_ok},
    {.method = "GET", .path = "/item/{id}", .handler = reply_params},
    {.method = "POST", .path = "/item/{id}/cancel", .handler = reply_params},
    {.method = "POST", .path = "/json", .body = GD_BODY_JSON, .body_max = 4 << 20, .handler = reply_size},
    {.method = "GET", .path = "/later", .handler = reply_later},
    {.method = "GET", .path = "/never", .handler = reply_never},
    {.method = "GET", .path = "/stream", .handler = reply_stream},
    {.method = "POST", .path = "/stream", .handler = reply_stream},
    {.method = "POST", .path = "/upload", .body = GD_BODY_MULTIPART, .handler = reply_upload},
};
const int gd_route_count = GD_COUNT(gd_routes);

int start_daemon(void **state)
{
    daemon_init(&daemon_);
    atomic_store(&gone_count, 0);
    atomic_store(&handled_count, 0);
    daemon_.app.config.request_timeout_seconds = 2;
    daemon_.app.config.upload_max_bytes = 8 << 20;
    daemon_.app.config.cors_origins = gd_strdup("https://page.example");
    daemon_start(&daemon_);
    return 0;
}

int start_with_keys(void **state)
{
    daemon_init(&daemon_);
    char *path = gd_format("%s/keys", daemon_.folder);
    FILE *file = fopen(path, "w");
    fputs(KEY " team\n", file);
    fclose(file);
    struct gd_error err = {0};
    assert_ok(gd_keys_load(&daemon_.app.keys, path, &err), &err);
    gd_free(path);
    daemon_start(&daemon_);
    return 0;
}

int start_small(void **state)
{
    daemon_init(&daemon_);
    daemon_.app.config.connection_limit = 10;
    daemon_start(&daemon_);
    return 0;
}

int stop_daemon(void **state)
{
    daemon_stop(&daemon_);
    return 0;
}

void wait_for(atomic_int *counter, int value)
{
    for (int i = 0; i < 500 && atomic_load(counter) < value; i++)
        pause_ms(10);
    assert_int_equal(atomic_load(counter), value);
}

/* A temporary file goes when the write that was under way has ended. */
void assert_nothing_left(void)
{
    for (int i = 0; i < 500 && daemon_count_files(&daemon_, "tmp") > 0; i++)
        pause_ms(10);
    assert_int_equal(daemon_count_files(&daemon_, "tmp"), 0);
}
