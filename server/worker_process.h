/*
 * worker_process.h - one worker process: spawn, frames both ways, end.
 *
 * Why      The supervisor thinks in workers and requests; pids, pipes and signals stay here.
 * Memory   The process frees itself after `gone` (or after abandon), when libuv has closed its handles.
 * Threads  Loop thread.
 * Errors   start: GD_UNAVAILABLE; write: GD_TOO_LARGE, GD_BUSY.
 * Limits   GD_WORKER_QUEUE_BYTES_MAX bytes waiting to be written.
 * Life     start -> write / end ... -> `gone` (once, after its last frame was delivered).
 */
#ifndef GD_SERVER_WORKER_PROCESS_H
#define GD_SERVER_WORKER_PROCESS_H

#include "engine/worker/protocol.h"
#include <uv.h>

#define GD_WORKER_QUEUE_BYTES_MAX (2u * GD_FRAME_BYTES_MAX)
#define GD_WORKER_KILL_MS 5000 /* from SIGTERM to SIGKILL */

struct gd_worker_process;

struct gd_worker_process_options {
    uv_loop_t *loop;
    const char *device;
    int threads;
    uint64_t cache_bytes, memory_bytes;
    const char *data_dir;
    uint64_t packed_cache_bytes;
    void *context;
    void (*frame)(void *context, const cJSON *frame); /* borrowed */
    void (*gone)(void *context, const char *why);     /* "signal 9 (Killed)", "exit code 0", ... */
};

/* Runs /proc/self/exe worker --fd 3 --device D --threads N --cache-bytes B, and what gd_sandbox_settings says, in a process group of its own, standard
 * output joined to standard error, OMP_WAIT_POLICY=passive unless the environment says otherwise. */
GD_MUST_CHECK bool gd_worker_process_start(struct gd_worker_process **out,
                                           const struct gd_worker_process_options *options, struct gd_error *err);
int gd_worker_process_pid(const struct gd_worker_process *process);
/* `bytes`: whole frames (gd_frame_write). Taken: the buffer is empty afterwards, also on failure. */
GD_MUST_CHECK bool gd_worker_process_write(struct gd_worker_process *process, struct gd_buf *bytes,
                                           struct gd_error *err);
/* SIGTERM to the whole group, GD_WORKER_KILL_MS later SIGKILL. `gone` follows. */
void gd_worker_process_end(struct gd_worker_process *process);
void gd_worker_process_kill(struct gd_worker_process *process);
/* SIGKILL, and no callback any more. */
void gd_worker_process_abandon(struct gd_worker_process *process);

#endif
