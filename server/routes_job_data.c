/* What a job leaves behind: events as a list and as a stream, checkpoints, metrics. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "server/handlers.h"
#include "server/http.h"
#include "server/job_json.h"
#include "server/scheduler.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EVENT_LIMIT 20
#define CHECKPOINT_LIMIT 10
#define LIMIT_MAX 1000
#define REPLAY_COUNT 256         /* events read at a time */
#define BUCKETS 200
#define BUCKETS_MAX 1000
#define SMOOTH_MAX 0.999
#define METRIC_NAMES_MAX 64
#define MARKS_MAX 1000

static bool accepts_stream(const struct gd_request *request, struct gd_error *err, bool *stream)
{
    const char *asked = gd_request_query(request, "stream"), *accept = gd_request_header(request, "Accept");
    *stream = asked == NULL && accept != NULL && strstr(accept, "text/event-stream") != NULL;
    if (asked == NULL || strcmp(asked, "false") == 0)
        return true;
    *stream = true;
    return strcmp(asked, "true") == 0 ||
           gd_fail_param(err, GD_INVALID, "stream", "stream is '%.40s'; it must be true or false", asked);
}

/* ---- pages of events and checkpoints ---- */

struct page_call {
    struct gd_app *app;
    struct gd_request *request;
    char *project, *eval_id, *job_id, *after; /* eval_id: of a run, else NULL */
    struct gd_page page;
    bool checkpoints;
    struct gd_event_record *events;
    struct gd_checkpoint_record *points;
    int count;
    bool has_more;
};

/* eval_id: of a run; NULL for a fine-tuning job. */
static bool read_status(struct gd_db *db, const char *project, const char *eval_id, const char *job_id,
                        enum gd_job_status *status, struct gd_error *err)
{
    struct gd_job_record record = {0};
    bool ok = eval_id != NULL ? gd_db_run_get(db, project, eval_id, job_id, &record, err)
                              : gd_db_job_get_kind(db, GD_JOB_KIND_FINE_TUNING, project, job_id, &record, err);
    if (ok)
        *status = record.status;
    gd_job_record_release(&record);
    return ok;
}

static bool read_page(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct page_call *call = argument;
    enum gd_job_status status;
    if (!read_status(db, call->project, call->eval_id, call->job_id, &status, err))
        return false;
    return call->checkpoints
               ? gd_db_checkpoint_list(db, call->job_id, &call->page, &call->points, &call->count, &call->has_more, err)
               : gd_db_event_list(db, call->job_id, &call->page, &call->events, &call->count, &call->has_more, err);
}

static cJSON *page_json(const struct page_call *call)
{
    cJSON *out = cJSON_CreateObject();
    cJSON_AddStringToObject(out, "object", "list");
    cJSON *data = cJSON_AddArrayToObject(out, "data");
    for (int i = 0; i < call->count; i++)
        cJSON_AddItemToArray(data, call->checkpoints ? gd_checkpoint_json(call->app, &call->points[i])
                                                     : gd_event_json(&call->events[i], call->eval_id != NULL));
    if (call->checkpoints) {
        bool any = call->count > 0;
        cJSON_AddItemToObject(out, "first_id", any ? cJSON_CreateString(call->points[0].id) : cJSON_CreateNull());
        cJSON_AddItemToObject(out, "last_id", any ? cJSON_CreateString(call->points[call->count - 1].id) : cJSON_CreateNull());
    }
    cJSON_AddBoolToObject(out, "has_more", call->has_more);
    return out;
}

static void on_page(void *argument, const struct gd_error *err)
{
    struct page_call *call = argument;
    if (err->code != GD_OK)
        gd_http_fail(call->request, err);
    else
        gd_http_reply(call->request, 200, page_json(call));
    for (int i = 0; i < call->count; i++)
        if (call->checkpoints)
            gd_checkpoint_record_release(&call->points[i]);
        else
            gd_event_record_release(&call->events[i]);
    gd_free(call->points);
    gd_free(call->events);
    gd_free(call->project);
    gd_free(call->eval_id);
    gd_free(call->job_id);
    gd_free(call->after);
    gd_free(call);
}

static void start_page(struct gd_app *app, struct gd_request *request, bool of_run, bool checkpoints, int64_t limit)
{
    struct gd_error err = {0};
    if (!gd_request_query_int(request, "limit", 1, LIMIT_MAX, &limit, &err)) {
        gd_http_fail(request, &err);
        return;
    }
    struct page_call *call = gd_alloc(sizeof *call);
    call->app = app;
    call->request = request;
    call->project = gd_strdup(gd_request_project(request));
    call->eval_id = of_run ? gd_strdup(gd_request_param(request, 0)) : NULL;
    call->job_id = gd_strdup(gd_request_param(request, of_run ? 1 : 0));
    call->after = gd_strdup(gd_request_query(request, "after"));
    call->page = (struct gd_page){.after = call->after, .limit = (int)limit};
    call->checkpoints = checkpoints;
    if (!gd_store_submit(app->store, false, read_page, on_page, call, &err))
        on_page(call, &err);
}

void gd_handle_job_checkpoints(struct gd_app *app, struct gd_request *request)
{
    start_page(app, request, false, true, CHECKPOINT_LIMIT);
}

/* ---- the event stream ---- */

/*
 * News only says that there is something to read: every event comes from the store, in order, after the last one sent. So
 * replay and live events cannot overlap or leave a gap.
 */
struct event_stream {
    struct gd_app *app;
    struct gd_request *request;      /* until the stream begins */
    struct gd_stream *stream;
    void *watch;
    char *project, *eval_id, *job_id;
    int64_t last_sequence;
    bool reading, news, gone;
    struct gd_event_record *events;  /* read by the closure */
    int count;
    bool job_over;
};

static void read_more(struct event_stream *stream);

static bool read_events(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct event_stream *stream = argument;
    enum gd_job_status status;
    if (!read_status(db, stream->project, stream->eval_id, stream->job_id, &status, err))
        return false;
    stream->job_over = gd_job_status_terminal(status);
    return gd_db_event_since(db, stream->job_id, stream->last_sequence, REPLAY_COUNT, &stream->events, &stream->count, err);
}

static void release_stream(struct event_stream *stream)
{
    if (stream->watch != NULL)
        gd_scheduler_unwatch(stream->app->scheduler, stream->watch);
    if (stream->stream != NULL)
        gd_stream_end(stream->stream);
    gd_free(stream->project);
    gd_free(stream->eval_id);
    gd_free(stream->job_id);
    gd_free(stream);
}

/* While the store reads, the closure owns the stream: it ends when that is back. */
static void end_stream(struct event_stream *stream)
{
    if (stream->gone)
        return;
    stream->gone = true;
    if (!stream->reading)
        release_stream(stream);
}

static void on_client_gone(void *context)
{
    end_stream(context);
}

static void send_events(struct event_stream *stream)
{
    for (int i = 0; i < stream->count; i++) {
        const struct gd_event_record *event = &stream->events[i];
        char id[24];
        snprintf(id, sizeof id, "%" PRId64, event->sequence);
        cJSON *json = gd_event_json(event, stream->eval_id != NULL);
        char *text = gd_json_print(json);
        if (stream->stream != NULL && !stream->gone)
            gd_stream_data(stream->stream, NULL, id, text);
        stream->last_sequence = event->sequence;
        gd_free(text);
        cJSON_Delete(json);
    }
    for (int i = 0; i < stream->count; i++)
        gd_event_record_release(&stream->events[i]);
    gd_free(stream->events);
    stream->events = NULL;
    stream->count = 0;
}

static void on_events(void *argument, const struct gd_error *err)
{
    struct event_stream *stream = argument;
    stream->reading = false;
    if (stream->request != NULL && err->code != GD_OK) {
        gd_http_fail(stream->request, err);
        release_stream(stream);
        return;
    }
    if (stream->request != NULL) {
        struct gd_request *request = stream->request;
        stream->request = NULL;
        stream->stream = gd_http_stream(request, on_client_gone, stream);
    }
    bool more = stream->count == REPLAY_COUNT;
    send_events(stream);
    if (stream->gone || err->code != GD_OK) {
        stream->gone = true;
        release_stream(stream);
    } else if (more || stream->news) {
        stream->news = false;
        read_more(stream);
    } else if (stream->job_over) {
        gd_stream_data(stream->stream, NULL, NULL, "[DONE]");
        stream->gone = true;
        release_stream(stream);
    }
}

static void read_more(struct event_stream *stream)
{
    struct gd_error err = {0};
    stream->reading = true;
    if (!gd_store_submit(stream->app->store, false, read_events, on_events, stream, &err))
        on_events(stream, &err);
}

/* event NULL: the server is going. The client comes back with Last-Event-ID. */
static void on_news(void *context, const struct gd_event_record *event, bool job_ended)
{
    struct event_stream *stream = context;
    if (event == NULL)
        end_stream(stream);
    else if (stream->reading)
        stream->news = true;
    else if (!stream->gone)
        read_more(stream);
}

static bool last_event_id(const struct gd_request *request, int64_t *out, struct gd_error *err)
{
    const char *text = gd_request_header(request, "Last-Event-ID");
    if (text == NULL)
        text = gd_request_query(request, "last_event_id");
    if (text == NULL || *text == '\0')
        return true;
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || *end != '\0' || text[0] < '0' || text[0] > '9')
        return gd_fail_param(err, GD_INVALID, "Last-Event-ID", "'%.40s' is not the id of an event: send back the last id: line",
                             text);
    *out = value;
    return true;
}

static void start_event_stream(struct gd_app *app, struct gd_request *request, bool of_run)
{
    struct gd_error err = {0};
    int64_t last_sequence = 0;
    if (!last_event_id(request, &last_sequence, &err)) {
        gd_http_fail(request, &err);
        return;
    }
    struct event_stream *stream = gd_alloc(sizeof *stream);
    stream->app = app;
    stream->request = request;
    stream->project = gd_strdup(gd_request_project(request));
    stream->eval_id = of_run ? gd_strdup(gd_request_param(request, 0)) : NULL;
    stream->job_id = gd_strdup(gd_request_param(request, of_run ? 1 : 0));
    stream->last_sequence = last_sequence;
    stream->watch = gd_scheduler_watch(app->scheduler, stream->job_id, on_news, stream);
    read_more(stream);
}

static void show_events(struct gd_app *app, struct gd_request *request, bool of_run)
{
    struct gd_error err = {0};
    bool stream = false;
    if (!accepts_stream(request, &err, &stream))
        gd_http_fail(request, &err);
    else if (stream)
        start_event_stream(app, request, of_run);
    else
        start_page(app, request, of_run, false, EVENT_LIMIT);
}

void gd_handle_job_events(struct gd_app *app, struct gd_request *request)
{
    show_events(app, request, false);
}

void gd_handle_eval_run_events(struct gd_app *app, struct gd_request *request)
{
    show_events(app, request, true);
}

/* ---- metrics ---- */

struct metrics_call {
    struct gd_app *app;
    struct gd_request *request;
    char *project, *job_id;
    char *name_text;                            /* cut at its commas */
    const char *names[METRIC_NAMES_MAX];
    struct gd_metric_query query;
    bool csv;
    struct gd_job_record record;
    cJSON *series;
    int64_t rows;
    struct gd_buf text;
    struct gd_checkpoint_record *checkpoints;
    int checkpoint_count;
};

static bool read_metrics(struct gd_db *db, void *argument, struct gd_error *err)
{
    struct metrics_call *call = argument;
    struct gd_page marks = {.limit = MARKS_MAX, .ascending = true};
    bool has_more;
    if (!gd_db_job_get_kind(db, GD_JOB_KIND_FINE_TUNING, call->project, call->job_id, &call->record, err))
        return false;
    if (call->csv)
        return gd_db_metrics_csv(db, call->job_id, &call->text, err);
    return gd_db_metrics_reduce(db, call->job_id, &call->query, &call->series, &call->rows, err) &&
           gd_db_checkpoint_list(db, call->job_id, &marks, &call->checkpoints, &call->checkpoint_count, &has_more, err);
}

static cJSON *metrics_json(struct metrics_call *call)
{
    cJSON *out = cJSON_CreateObject();
    cJSON_AddStringToObject(out, "object", "fine_tuning.job.metrics");
    cJSON_AddStringToObject(out, "job_id", call->record.id);
    cJSON_AddNumberToObject(out, "attempt", call->record.attempt);
    cJSON_AddNumberToObject(out, "rows", (double)call->rows);
    cJSON_AddStringToObject(out, "x", "step");
    cJSON *range = cJSON_AddArrayToObject(out, "range");
    cJSON_AddItemToArray(range, cJSON_CreateNumber((double)call->query.from));
    cJSON_AddItemToArray(range, cJSON_CreateNumber((double)(call->query.to > 0 ? call->query.to : call->record.step)));
    gd_metrics_explain(call->series);
    cJSON_AddItemToObject(out, "series", call->series);
    call->series = NULL;
    cJSON *marks = cJSON_AddArrayToObject(out, "marks");
    for (int i = 0; i < call->checkpoint_count; i++) {
        cJSON *mark = cJSON_CreateObject();
        cJSON_AddNumberToObject(mark, "x", (double)call->checkpoints[i].step);
        cJSON_AddStringToObject(mark, "kind", "checkpoint");
        cJSON_AddStringToObject(mark, "id", call->checkpoints[i].id);
        cJSON_AddItemToArray(marks, mark);
    }
    return out;
}

/* A job that is over has the same answer for ever: its hash is its tag. */
static void reply_metrics(struct metrics_call *call)
{
    if (!call->csv) {
        cJSON *json = metrics_json(call);
        char *text = gd_json_print(json);
        gd_buf_append_text(&call->text, text);
        gd_free(text);
        cJSON_Delete(json);
    }
    const char *content_type = call->csv ? "text/csv; charset=utf-8" : "application/json";
    const char *bytes = call->text.data != NULL ? call->text.data : "";
    int status = 200;
    if (gd_job_status_terminal(call->record.status)) {
        char digest[33], tag[36];
        gd_hash_xxh3(bytes, call->text.length, digest);
        snprintf(tag, sizeof tag, "\"%s\"", digest);
        const char *known = gd_request_header(call->request, "If-None-Match");
        gd_http_header(call->request, "etag", tag);
        if (known != NULL && strstr(known, tag) != NULL)
            status = 304;
    }
    gd_http_reply_bytes(call->request, status, content_type, bytes, status == 304 ? 0 : call->text.length);
}

static void on_metrics(void *argument, const struct gd_error *err)
{
    struct metrics_call *call = argument;
    if (err->code != GD_OK)
        gd_http_fail(call->request, err);
    else
        reply_metrics(call);
    for (int i = 0; i < call->checkpoint_count; i++)
        gd_checkpoint_record_release(&call->checkpoints[i]);
    gd_free(call->checkpoints);
    cJSON_Delete(call->series);
    gd_buf_release(&call->text);
    gd_job_record_release(&call->record);
    gd_free(call->name_text);
    gd_free(call->project);
    gd_free(call->job_id);
    gd_free(call);
}

static bool parse_choice(const struct gd_request *request, const char *name, const char *const *choices, int count,
                         int *out, struct gd_error *err)
{
    const char *text = gd_request_query(request, name);
    for (int i = 0; text != NULL && i < count; i++)
        if (strcmp(text, choices[i]) == 0) {
            *out = i;
            return true;
        }
    return text == NULL || gd_fail_param(err, GD_INVALID, name, "%s is '%.40s'; it must be %s%s%s", name, text, choices[0],
                                         count > 1 ? " or " : "", count > 1 ? choices[1] : "");
}

static bool parse_names(struct metrics_call *call, struct gd_error *err)
{
    call->name_text = gd_strdup(gd_request_query(call->request, "names"));
    if (call->name_text == NULL || call->name_text[0] == '\0')
        return true;
    char *rest = NULL;
    for (char *name = strtok_r(call->name_text, ",", &rest); name != NULL; name = strtok_r(NULL, ",", &rest)) {
        if (call->query.name_count == METRIC_NAMES_MAX)
            return gd_fail_param(err, GD_INVALID, "names", "more than %d names: ask for them in parts", METRIC_NAMES_MAX);
        call->names[call->query.name_count++] = name;
    }
    call->query.names = call->names;
    return true;
}

static bool parse_smooth(const struct gd_request *request, double *out, struct gd_error *err)
{
    const char *text = gd_request_query(request, "smooth");
    if (text == NULL)
        return true;
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value) || value < 0 || value > SMOOTH_MAX)
        return gd_fail_param(err, GD_INVALID, "smooth", "smooth is '%.40s'; it must be a number from 0 to %g", text, SMOOTH_MAX);
    *out = value;
    return true;
}

static bool parse_metrics(struct metrics_call *call, struct gd_error *err)
{
    static const char *const scales[] = {"linear", "log"}, *const formats[] = {"json", "csv"}, *const axes[] = {"step"};
    int scale = 0, format = 0, axis = 0;
    int64_t from = 0, to = 0, buckets = BUCKETS;
    bool ok = gd_request_query_int(call->request, "from", 0, INT64_C(1) << 53, &from, err) &&
              gd_request_query_int(call->request, "to", 0, INT64_C(1) << 53, &to, err) &&
              gd_request_query_int(call->request, "buckets", 1, BUCKETS_MAX, &buckets, err) &&
              parse_choice(call->request, "scale", scales, 2, &scale, err) &&
              parse_choice(call->request, "format", formats, 2, &format, err) &&
              parse_choice(call->request, "x", axes, 1, &axis, err) &&
              parse_smooth(call->request, &call->query.smooth, err) && parse_names(call, err);
    if (ok && to > 0 && from > to)
        ok = gd_fail_param(err, GD_INVALID, "from", "from is %" PRId64 " and to is %" PRId64 ": from must not be greater", from,
                           to);
    call->query.from = from;
    call->query.to = to;
    call->query.buckets = (int)buckets;
    call->query.log_scale = scale == 1;
    call->csv = format == 1;
    return ok;
}

void gd_handle_job_metrics(struct gd_app *app, struct gd_request *request)
{
    struct metrics_call *call = gd_alloc(sizeof *call);
    struct gd_error err = {0};
    call->app = app;
    call->request = request;
    call->project = gd_strdup(gd_request_project(request));
    call->job_id = gd_strdup(gd_request_param(request, 0));
    if (!parse_metrics(call, &err) || !gd_store_submit(app->store, false, read_metrics, on_metrics, call, &err))
        on_metrics(call, &err);
}
