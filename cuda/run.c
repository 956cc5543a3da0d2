/*
 * Runs of a plan: launched once as they come (products choose their algorithms), recorded the second time, then repeated. Launches
 * name what belongs to their lane (the library's workspace, tiles of weights), so that each lane records for itself: what was recorded
 * in one and repeated in the other would write where the run that it is nested in works.
 */
#include "cuda/internal.h"
#include "engine/base/alloc.h"
#include <time.h>

struct kept {
    struct kept *next;
    void *memory;
    size_t bytes;
};

struct gd_recording {
    bool launched;                   /* once, to the end */
    cudaGraphExec_t exec[GD_CUDA_LANES]; /* NULL: not recorded yet */
    struct kept *first, **at;        /* what the launches ask for, in order; at: the next request's */
};

static struct gd_recording *current; /* whose launches are under way */

bool gd_cuda_host_memory(void **out, size_t bytes, struct gd_error *err)
{
    struct kept **at = current->at, *kept = *at;
    if (kept != NULL && kept->bytes == bytes) {
        *out = kept->memory;
        current->at = &kept->next;
        return true;
    }
    if (kept != NULL || gd_cuda_capturing())
        return gd_fail(err, GD_INTERNAL, "a run asks for %zu bytes that it did not ask for the first time", bytes);
    void *memory = NULL;
    if (!gd_cuda_check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "cudaHostAlloc", "numbers on their way to the host", err))
        return false;
    kept = *at = gd_alloc(sizeof(*kept));
    *kept = (struct kept){.memory = memory, .bytes = bytes};
    current->at = &kept->next;
    *out = memory;
    return true;
}

static void release(struct gd_recording *recording)
{
    for (int lane = 0; lane < GD_CUDA_LANES; lane++)
        if (recording->exec[lane] != NULL)
            cudaGraphExecDestroy(recording->exec[lane]);
    for (struct kept *kept = recording->first, *next; kept != NULL; kept = next) {
        next = kept->next;
        cudaFreeHost(kept->memory);
        gd_free(kept);
    }
}

void gd_cuda_forget(struct gd_recording *recording)
{
    if (recording == NULL)
        return;
    release(recording);
    gd_free(recording);
}

static bool launch(const struct gd_backend_run *run, struct gd_recording *recording, struct gd_error *err)
{
    struct gd_recording *outer = current;
    current = recording;
    recording->at = &recording->first;
    bool ok = run->launch(run->context, err);
    current = outer;
    return ok;
}

/* The graph is made whole or not at all. */
static bool record(const struct gd_backend_run *run, struct gd_recording *recording, struct gd_error *err)
{
    cudaStream_t stream = gd_cuda_stream();
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    if (!gd_cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture", "a plan", err))
        return false;
    gd_cuda_set_capturing(true);
    bool ok = launch(run, recording, err);
    gd_cuda_set_capturing(false);
    cudaError_t status = cudaStreamEndCapture(stream, &graph);
    ok = ok && gd_cuda_check(status, "cudaStreamEndCapture", "a plan", err) &&
         gd_cuda_check(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate", "a plan", err);
    if (ok)
        recording->exec[gd_cuda_lane()] = exec;
    else
        cudaGetLastError();
    if (graph != NULL)
        cudaGraphDestroy(graph);
    return ok;
}

static void rest(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}

/* Until the stream has done all; what `between` runs meanwhile goes to the other lane. */
static bool wait(const struct gd_backend_run *run, struct gd_error *err)
{
    cudaStream_t stream = gd_cuda_stream();
    if (run->between == NULL)
        return gd_cuda_check(cudaStreamSynchronize(stream), "cudaStreamSynchronize", "a plan", err);
    cudaEvent_t event = gd_cuda_lane_event();
    enum gd_cuda_lane lane = gd_cuda_lane();
    bool cancelled = false;
    if (!gd_cuda_check(cudaEventRecord(event, stream), "cudaEventRecord", "a plan", err))
        return false;
    cudaError_t status;
    while ((status = cudaEventQuery(event)) == cudaErrorNotReady) {
        cudaGetLastError();
        gd_cuda_set_lane(GD_CUDA_LANE_NESTED);
        cancelled |= !cancelled && !run->between(run->between_context);
        gd_cuda_set_lane(lane);
        rest();
    }
    if (!gd_cuda_check(status, "cudaEventQuery", "a plan", err))
        return false;
    return !cancelled || gd_fail(err, GD_CANCELLED, "stopped while the device worked");
}

static bool launch_or_repeat(const struct gd_backend_run *run, struct gd_recording *passing, struct gd_error *err)
{
    if (run->recording == NULL || gd_cuda_one_by_one())
        return launch(run, passing, err);
    if (*run->recording == NULL)
        *run->recording = gd_alloc(sizeof(**run->recording));
    struct gd_recording *recording = *run->recording;
    if (!recording->launched)
        return recording->launched = launch(run, recording, err);
    cudaGraphExec_t *exec = &recording->exec[gd_cuda_lane()];
    if (*exec == NULL && !record(run, recording, err))
        return false;
    return gd_cuda_check(cudaGraphLaunch(*exec, gd_cuda_stream()), "cudaGraphLaunch", "a plan", err);
}

bool gd_cuda_run(const struct gd_backend_run *run, struct gd_error *err)
{
    struct gd_recording passing = {0};
    bool ok = run->staged_bytes == 0 ||
              gd_cuda_check(cudaMemcpyAsync(run->staged_device, run->staged_host, run->staged_bytes, cudaMemcpyHostToDevice, gd_cuda_stream()),
                            "cudaMemcpyAsync", "a plan's tables", err);
    ok = ok && launch_or_repeat(run, &passing, err);
    if (ok)
        ok = wait(run, err);
    else
        cudaStreamSynchronize(gd_cuda_stream()); /* what was launched still reads and writes */
    release(&passing);
    return ok;
}
