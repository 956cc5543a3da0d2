/* The smallest runtime: every launch runs at once. For the emulator's own tests. */
#include "tests/cuda/sync_runtime.h"

static cudaError_t status;

void emu_enqueue(cudaStream_t stream, const emu_kernel &kernel)
{
    if (status == cudaSuccess && !emu_run(kernel))
        status = cudaErrorLaunchFailure;
}

void emu_refuse(cudaStream_t stream, cudaError_t refused)
{
    if (status == cudaSuccess)
        status = refused;
}

cudaError_t sync_status(void)
{
    cudaError_t now = status;
    status = cudaSuccess;
    return now;
}
