#include "engine/worker/channel.h"

#include "engine/base/fsio.h"
#include "engine/base/log.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void gd_channel_init(struct gd_channel *channel, int fd)
{
    channel->fd = fd;
    pthread_mutex_init(&channel->mutex, NULL);
    gd_frame_reader_init(&channel->reader);
}

void gd_channel_release(struct gd_channel *channel)
{
    close(channel->fd);
    pthread_mutex_destroy(&channel->mutex);
    gd_frame_reader_release(&channel->reader);
}

static void server_lost(const char *why)
{
    gd_log_info("worker", "state=server_lost reason=%s", why);
    _exit(0);
}

void gd_channel_send(struct gd_channel *channel, cJSON *message_taken)
{
    struct gd_buf frame;
    struct gd_error err = {0};
    gd_buf_init(&frame, GD_FRAME_BYTES_MAX + 4u);
    gd_frame_write(&frame, message_taken);
    cJSON_Delete(message_taken);
    pthread_mutex_lock(&channel->mutex);
    bool ok = gd_write_all(channel->fd, frame.data, frame.length, "server", &err);
    pthread_mutex_unlock(&channel->mutex);
    gd_buf_release(&frame);
    if (!ok)
        server_lost(err.message);
}

cJSON *gd_channel_receive(struct gd_channel *channel, int timeout_ms)
{
    for (;;) {
        cJSON *message = NULL;
        struct gd_error err = {0};
        if (!gd_frame_next(&channel->reader, &message, &err))
            server_lost(err.message);
        if (message != NULL)
            return message;
        struct pollfd wait = {.fd = channel->fd, .events = POLLIN};
        int ready = poll(&wait, 1, timeout_ms);
        if (ready == 0)
            return NULL;
        if (ready < 0) {
            if (errno == EINTR)
                continue;
            server_lost(strerror(errno));
        }
        char bytes[65536];
        ssize_t length = read(channel->fd, bytes, sizeof(bytes));
        if (length == 0)
            server_lost("closed");
        if (length < 0 && errno != EINTR && errno != EAGAIN)
            server_lost(strerror(errno));
        if (length > 0)
            gd_frame_reader_feed(&channel->reader, bytes, (size_t)length);
    }
}
