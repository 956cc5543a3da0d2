/*
 * stream.c - server-sent events: a queue between whoever has news and a client that reads at its own speed.
 *
 * The library asks for bytes; when there are none the connection is suspended until there are. A suspended connection
 * notices nothing, so the client's disconnect is watched on a duplicate of its socket, and a comment is sent now and then.
 */
#include "server/http_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"

#include <string.h>

#define BLOCK_BYTES 16384

struct gd_stream {
    struct gd_request *request;   /* NULL once completed */
    struct gd_buf queue;
    size_t sent;                  /* bytes of the queue that were taken */
    uint64_t bytes;
    double last_progress;         /* bytes were taken, or the queue was empty */
    double last_data;
    bool ended;                   /* by its owner */
    bool closing;                 /* end when the queue is empty */
    bool dead, stalled;
    void (*gone)(void *context);
    void *context;
};

static void settle(struct gd_stream *stream)
{
    if (stream->request != NULL || !stream->ended)
        return;
    gd_buf_release(&stream->queue);
    gd_free(stream);
}

static void tell_gone(struct gd_stream *stream)
{
    void (*gone)(void *context) = stream->gone;
    stream->gone = NULL;
    if (gone != NULL && !stream->ended)
        gone(stream->context);
}

static void wake(struct gd_stream *stream)
{
    if (stream->request != NULL && stream->request->suspended)
        gd_http_resume(stream->request);
}

static ssize_t on_read(void *context, uint64_t position, char *out, size_t length_max)
{
    struct gd_stream *stream = context;
    size_t waiting = stream->queue.length - stream->sent;
    if (stream->dead)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    if (waiting == 0) {
        if (stream->closing)
            return MHD_CONTENT_READER_END_OF_STREAM;
        gd_http_suspend(stream->request);
        return 0;
    }
    size_t length = waiting < length_max ? waiting : length_max;
    memcpy(out, stream->queue.data + stream->sent, length);
    stream->sent += length;
    stream->bytes += length;
    stream->last_progress = gd_time_monotonic();
    if (stream->sent == stream->queue.length) {
        gd_buf_clear(&stream->queue);
        stream->sent = 0;
    }
    return (ssize_t)length;
}

struct gd_stream *gd_http_stream(struct gd_request *request, void (*gone)(void *context), void *context)
{
    struct gd_stream *stream = gd_alloc(sizeof(*stream));
    gd_buf_init(&stream->queue, 2 * GD_STREAM_QUEUE_BYTES);
    stream->last_progress = stream->last_data = gd_time_monotonic();
    stream->gone = gone;
    stream->context = context;
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES, on_read, stream, NULL);
    if (request->mhd == NULL || request->answered) {
        stream->dead = true; /* everything is dropped; the owner ends it as usual */
        gd_http_answer(request, 200, response);
        return stream;
    }
    stream->request = request;
    request->stream = stream;
    request->http->stream_count++;
    request->close = true;
    gd_request_watch(request);
    MHD_set_connection_option(request->mhd, MHD_CONNECTION_OPTION_TIMEOUT, 0u);
    gd_http_header(request, "content-type", "text/event-stream");
    gd_http_header(request, "cache-control", "no-cache");
    gd_http_header(request, "x-accel-buffering", "no");
    gd_http_answer(request, 200, response);
    return stream;
}

/* What was taken moves out when it is the larger part, so that the limit is on what waits. */
static void compact(struct gd_stream *stream)
{
    if (stream->sent < stream->queue.length / 2 || stream->sent < 65536)
        return;
    memmove(stream->queue.data, stream->queue.data + stream->sent, stream->queue.length - stream->sent);
    stream->queue.length -= stream->sent;
    stream->sent = 0;
}

static bool accepts(struct gd_stream *stream)
{
    if (stream->dead || stream->stalled || stream->closing || stream->request == NULL)
        return false;
    compact(stream);
    if (stream->queue.length - stream->sent <= GD_STREAM_QUEUE_BYTES)
        return true;
    stream->stalled = true; /* its owner is told from the sweep, not from inside its own call */
    return false;
}

void gd_stream_data(struct gd_stream *stream, const char *event, const char *id, const char *data)
{
    if (!accepts(stream))
        return;
    double now = gd_time_monotonic();
    if (stream->queue.length == 0)
        stream->last_progress = now;
    stream->last_data = now;
    if (event != NULL)
        gd_buf_printf(&stream->queue, "event: %s\n", event);
    if (id != NULL)
        gd_buf_printf(&stream->queue, "id: %s\n", id);
    for (const char *line = data;;) {
        size_t length = strcspn(line, "\r\n");
        gd_buf_append_text(&stream->queue, "data: ");
        gd_buf_append(&stream->queue, line, length);
        gd_buf_append_char(&stream->queue, '\n');
        line += length;
        if (*line == 0)
            break;
        line += line[0] == '\r' && line[1] == '\n' ? 2 : 1;
    }
    gd_buf_append_char(&stream->queue, '\n');
    if (stream->queue.overflow) {
        stream->stalled = true;
        return;
    }
    wake(stream);
}

void gd_stream_end(struct gd_stream *stream)
{
    stream->ended = true;
    stream->closing = true;
    stream->gone = NULL;
    wake(stream);
    settle(stream);
}

void gd_stream_client_gone(struct gd_stream *stream)
{
    stream->dead = true;
    wake(stream);
    if (stream->request != NULL && !stream->request->suspended)
        gd_http_cut(stream->request->connection, "stream_gone");
    tell_gone(stream);
}

void gd_stream_finish(struct gd_stream *stream)
{
    stream->closing = true;
    wake(stream);
    tell_gone(stream);
}

void gd_stream_sweep(struct gd_stream *stream, double now)
{
    bool waiting = stream->queue.length > stream->sent;
    if (stream->stalled || (waiting && now - stream->last_progress > GD_STREAM_STALL_SECONDS)) {
        gd_http_cut(stream->request->connection, "stream_stalled");
        gd_stream_client_gone(stream);
    } else if (!waiting && !stream->closing && !stream->dead && now - stream->last_data > STREAM_COMMENT_SECONDS) {
        gd_buf_append_text(&stream->queue, ": still here\n\n");
        stream->last_data = stream->last_progress = now;
        wake(stream);
    }
}

void gd_stream_completed(struct gd_stream *stream)
{
    stream->request->http->stream_count--;
    stream->request = NULL;
    stream->dead = true;
    if (stream->ended)
        settle(stream);
    else
        tell_gone(stream); /* its owner may end it, and so free it, in this call */
}

uint64_t gd_stream_bytes(const struct gd_stream *stream)
{
    return stream->bytes;
}
