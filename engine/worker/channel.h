/*
 * channel.h - a worker's end of the socket pair.
 *
 * Why      Frames go out from the engine thread and from the heartbeat thread, and are whole.
 * Memory   Owns the frame reader and the mutex; the descriptor is closed with it.
 * Threads  send: any. receive: engine thread.
 * Errors   A lost server ends the process (exit code 0): there is nobody to work for.
 * Limits   protocol.h
 * Life     init -> send / receive ... -> release.
 */
#ifndef GD_WORKER_CHANNEL_H
#define GD_WORKER_CHANNEL_H

#include "engine/worker/protocol.h"
#include <pthread.h>

struct gd_channel {
    int fd;
    pthread_mutex_t mutex;
    struct gd_frame_reader reader;
};

void gd_channel_init(struct gd_channel *channel, int fd);
void gd_channel_release(struct gd_channel *channel);
void gd_channel_send(struct gd_channel *channel, cJSON *message_taken);
/* The next message (yours) or NULL when none came within timeout_ms (0: do not wait, -1: for ever). */
cJSON *gd_channel_receive(struct gd_channel *channel, int timeout_ms);

#endif
