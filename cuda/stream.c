#include "cuda/internal.h"
#include <stdio.h>
#include <stdlib.h>

static struct {
    cudaStream_t streams[GD_CUDA_LANES], copy;
    cudaEvent_t events[GD_CUDA_LANES];
    enum gd_cuda_lane lane;
    bool capturing, one_by_one;
    struct gd_error lost;        /* the first error that no later call gets over */
} state;

bool gd_cuda_streams_open(struct gd_error *err)
{
    int least = 0, greatest = 0;
    const char *sync = getenv("GRAFTD_CUDA_SYNC");
    state.one_by_one = sync != NULL && sync[0] == '1';
    if (!gd_cuda_check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange", "the device", err))
        return false;
    for (int i = 0; i < GD_CUDA_LANES; i++) {
        int priority = i == GD_CUDA_LANE_NESTED ? greatest : least;
        if (!gd_cuda_check(cudaStreamCreateWithPriority(&state.streams[i], cudaStreamNonBlocking, priority),
                           "cudaStreamCreateWithPriority", "the device", err) ||
            !gd_cuda_check(cudaEventCreateWithFlags(&state.events[i], cudaEventDisableTiming), "cudaEventCreateWithFlags", "the device", err))
            return false;
    }
    return gd_cuda_check(cudaStreamCreateWithPriority(&state.copy, cudaStreamNonBlocking, least), "cudaStreamCreateWithPriority",
                         "copies", err);
}

cudaStream_t gd_cuda_stream(void)
{
    return state.streams[state.lane];
}

cudaStream_t gd_cuda_copy_stream(void)
{
    return state.copy;
}

cudaEvent_t gd_cuda_lane_event(void)
{
    return state.events[state.lane];
}

enum gd_cuda_lane gd_cuda_lane(void)
{
    return state.lane;
}

void gd_cuda_set_lane(enum gd_cuda_lane lane)
{
    state.lane = lane;
}

bool gd_cuda_capturing(void)
{
    return state.capturing;
}

void gd_cuda_set_capturing(bool on)
{
    state.capturing = on;
}

bool gd_cuda_one_by_one(void)
{
    return state.one_by_one;
}

/* After these the device gives nothing more to this process: its work goes to another one. */
static bool is_lost(cudaError_t status)
{
    switch (status) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert:
    case cudaErrorDevicesUnavailable:
    case cudaErrorDeviceUninitialized:
    case cudaErrorContextIsDestroyed:
    case cudaErrorMpsClientTerminated:
#if CUDART_VERSION >= 13000
    case cudaErrorContained:
#endif
    case cudaErrorSystemNotReady:
    case cudaErrorUnknown:
        return true;
    default:
        return false;
    }
}

bool gd_cuda_check(cudaError_t status, const char *call, const char *what, struct gd_error *err)
{
    if (state.lost.code != GD_OK)
        return gd_fail(err, GD_DEVICE_LOST, "%s", state.lost.message);
    if (status == cudaSuccess)
        return true;
    if (is_lost(status)) {
        gd_fail(&state.lost, GD_DEVICE_LOST, "%s for %s: the device is lost: %s (error %d)", call, what, cudaGetErrorString(status), (int)status);
        return gd_fail(err, GD_DEVICE_LOST, "%s", state.lost.message);
    }
    cudaGetLastError(); /* so that the next call does not meet it again */
    return gd_fail(err, status == cudaErrorMemoryAllocation ? GD_NO_MEMORY : GD_INTERNAL, "%s for %s: %s (error %d)", call, what,
                   cudaGetErrorString(status), (int)status);
}

bool gd_cuda_copy(void *to, const void *from, size_t bytes, const char *what, struct gd_error *err)
{
    return to == from || bytes == 0 ||
           gd_cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, gd_cuda_stream()), "cudaMemcpyAsync", what, err);
}

static void describe(const struct gd_kernel_args *args, const char *op, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "op '%s' on", op);
    for (int j = 0; j < GD_CALL_INPUTS_MAX; j++) {
        const struct gd_tensor *in = &args->in[j];
        for (int i = 0; i < in->rank && used < size; i++)
            used += (size_t)snprintf(out + used, size - used, "%s%lld%s", i == 0 ? " [" : ", ", (long long)in->shape[i],
                                     i + 1 == in->rank ? "]" : "");
    }
}

bool gd_cuda_launched(const struct gd_kernel_args *args, const char *op, struct gd_error *err)
{
    cudaError_t status = cudaGetLastError();
    if (status == cudaSuccess && state.one_by_one && !state.capturing)
        status = cudaStreamSynchronize(gd_cuda_stream());
    if (status == cudaSuccess && state.lost.code == GD_OK)
        return true;
    char what[256];
    describe(args, op, what, sizeof(what));
    return gd_cuda_check(status, "launch", what, err);
}

const char *gd_cuda_lost(void)
{
    return state.lost.code != GD_OK ? state.lost.message : NULL;
}
