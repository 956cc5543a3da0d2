/*
 * http_linger.c - after an early answer the client may still be sending; closing then would reset the connection, and
 * the client would never see the answer. So what it sends is swallowed for a moment.
 */
#include "server/http_internal.h"

#include "engine/base/alloc.h"
#include "engine/base/fsio.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#define READS_PER_TURN 16

static void on_closed(uv_handle_t *handle)
{
    gd_free(handle->data);
}

static void finish(struct gd_linger *linger)
{
    struct gd_http *http = linger->http;
    if (linger->previous != NULL)
        linger->previous->next = linger->next;
    else
        http->lingers = linger->next;
    if (linger->next != NULL)
        linger->next->previous = linger->previous;
    http->linger_count--;
    uv_close((uv_handle_t *)&linger->poll, on_closed);
    close(linger->fd);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    static char sink[65536]; /* never read; the loop is one thread */
    struct gd_linger *linger = poll->data;
    for (int i = 0; status == 0 && i < READS_PER_TURN; i++) {
        ssize_t got = recv(linger->fd, sink, sizeof(sink), MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got <= 0)
            status = -1;
    }
    if (status != 0)
        finish(linger);
}

void gd_linger_start(struct gd_http *http, int fd)
{
    if (http->linger_count >= LINGER_MAX)
        return;
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0)
        return;
    struct gd_linger *linger = gd_alloc(sizeof(*linger));
    if (uv_poll_init(http->loop, &linger->poll, copy) != 0) {
        close(copy);
        gd_free(linger);
        return;
    }
    shutdown(copy, SHUT_WR);
    linger->http = http;
    linger->fd = copy;
    linger->poll.data = linger;
    linger->until = gd_time_monotonic() + LINGER_MS / 1000.0;
    linger->next = http->lingers;
    if (http->lingers != NULL)
        http->lingers->previous = linger;
    http->lingers = linger;
    http->linger_count++;
    uv_poll_start(&linger->poll, UV_READABLE, on_readable);
}

void gd_linger_sweep(struct gd_http *http, double now)
{
    for (struct gd_linger *linger = http->lingers, *next; linger != NULL; linger = next) {
        next = linger->next;
        if (now > linger->until)
            finish(linger);
    }
}

void gd_linger_stop(struct gd_http *http)
{
    while (http->lingers != NULL)
        finish(http->lingers);
}
