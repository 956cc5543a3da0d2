/* Which workers hang: those that fall silent, and busy ones whose step_watermark stands still. */
#include "server/supervisor_internal.h"

#include "engine/base/log.h"
#include <stdlib.h>
#include <string.h>

#define TICK_MS_MAX 1000u
#define REQUESTS_END_MS 10000 /* of a stop, for completions under way to end by themselves */

void gd_pulse_take(struct gd_supervised *worker, const cJSON *frame)
{
    cJSON_Delete(worker->heartbeat);
    worker->heartbeat = cJSON_Duplicate(frame, true);
    const cJSON *busy = gd_json_find(frame, "busy"), *mark = gd_json_find(frame, "step_watermark");
    double watermark = cJSON_IsNumber(mark) ? mark->valuedouble : 0;
    uint64_t now = gd_supervisor_now(worker->supervisor);
    bool idle = !cJSON_IsString(busy) || strcmp(busy->valuestring, "idle") == 0;
    bool train = cJSON_IsString(busy) && strcmp(busy->valuestring, "train") == 0;
    if (train && !worker->trains)
        worker->interval_count = 0; /* reading a data set has another pace than the job before */
    worker->trains = train;
    if (watermark != worker->watermark && !idle && worker->watermark_ms != 0)
        worker->intervals[worker->interval_count++ % GD_PACE_COUNT] = now - worker->watermark_ms;
    if (watermark != worker->watermark || idle || worker->watermark_ms == 0)
        worker->watermark_ms = now;
    worker->watermark = watermark;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static uint64_t watermark_patience(const struct gd_supervised *worker)
{
    if (worker->interval_count < 3)
        return worker->supervisor->watermark_first_ms;
    uint64_t sorted[GD_PACE_COUNT];
    int count = worker->interval_count < GD_PACE_COUNT ? worker->interval_count : GD_PACE_COUNT;
    memcpy(sorted, worker->intervals, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, compare_u64);
    uint64_t patience = 10 * sorted[count / 2];
    return patience > worker->supervisor->watermark_ms ? patience : worker->supervisor->watermark_ms;
}

static void end_if_hung(struct gd_supervised *worker, uint64_t now)
{
    const struct gd_supervisor *supervisor = worker->supervisor;
    if (worker->process == NULL || worker->ending)
        return;
    uint64_t silence = worker->state == GD_SUPERVISED_READY ? supervisor->heartbeat_ms : 6 * supervisor->heartbeat_ms;
    bool silent = now - worker->heard_ms > silence;
    bool stuck = worker->watermark_ms != 0 && now - worker->watermark_ms > watermark_patience(worker);
    if (!silent && !stuck)
        return;
    gd_log_error("worker", "worker=%d pid=%d hung: %s", worker->index, gd_worker_process_pid(worker->process),
                 silent ? "no heartbeat" : "no progress");
    worker->ending = true;
    gd_worker_process_end(worker->process);
}

/* What came in while this process slept has not been read yet. */
static void forgive(struct gd_supervised *worker, uint64_t now)
{
    worker->heard_ms = now;
    if (worker->watermark_ms != 0)
        worker->watermark_ms = now;
}

static void on_tick(uv_timer_t *timer)
{
    struct gd_supervisor *supervisor = timer->data;
    uint64_t now = gd_supervisor_now(supervisor);
    bool slept = now - supervisor->tick_ms > supervisor->heartbeat_ms / 2; /* this process, not the worker */
    supervisor->tick_ms = now;
    for (int i = 0; i < supervisor->worker_count; i++) {
        if (slept)
            forgive(&supervisor->workers[i], now);
        end_if_hung(&supervisor->workers[i], now);
        if (supervisor->stopping && now - supervisor->stopping_ms > REQUESTS_END_MS)
            gd_pending_give_up(&supervisor->workers[i]);
    }
}

void gd_pulse_start(struct gd_supervisor *supervisor)
{
    uint64_t period = supervisor->heartbeat_ms / 4 < TICK_MS_MAX ? supervisor->heartbeat_ms / 4 + 1 : TICK_MS_MAX;
    supervisor->tick_ms = gd_supervisor_now(supervisor);
    uv_timer_start(&supervisor->tick, on_tick, period, period);
}

void gd_supervisor_set_patience(struct gd_supervisor *supervisor, uint64_t heartbeat_ms, uint64_t watermark_ms)
{
    supervisor->heartbeat_ms = heartbeat_ms;
    supervisor->watermark_ms = supervisor->watermark_first_ms = watermark_ms;
    gd_pulse_start(supervisor);
}
