#include "cuda/open.h"
#include "engine/base/memory.h"
#include "cuda/internal.h"
#include <stdio.h>
#include <stdlib.h>

extern const struct gd_backend gd_backend_cuda;

#define CAPABILITY_MIN 80

static bool fail_device(struct gd_error *err, int index, const char *why)
{
    return gd_fail_param(err, GD_UNSUPPORTED, "device", "device 'cuda:%d': %s; use 'cpu', or see what 'graftd version' lists", index, why);
}

static bool find_device(int index, struct cudaDeviceProp *properties, struct gd_error *err)
{
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    char why[256];
    if (status == cudaErrorInsufficientDriver)
        return fail_device(err, index, "there is no NVIDIA driver, or one too old for this build");
    if (status != cudaSuccess && status != cudaErrorNoDevice) {
        snprintf(why, sizeof(why), "cudaGetDeviceCount: %s", cudaGetErrorString(status));
        return fail_device(err, index, why);
    }
    if (index < 0 || index >= count) {
        snprintf(why, sizeof(why), "%d device%s here%s", count, count == 1 ? " is" : "s are", count > 0 ? ", counted from 0" : "");
        return fail_device(err, index, why);
    }
    if (!gd_cuda_check(cudaGetDeviceProperties(properties, index), "cudaGetDeviceProperties", "the device", err))
        return false;
    if (properties->major * 10 + properties->minor < CAPABILITY_MIN) {
        snprintf(why, sizeof(why), "%.100s has compute capability %d.%d; %d.%d or later is needed", properties->name, properties->major,
                 properties->minor, CAPABILITY_MIN / 10, CAPABILITY_MIN % 10);
        return fail_device(err, index, why);
    }
    return true;
}

/* What is free now is what this process may have; the rest is others', and of the driver's own for graphs and large stacks. */
static bool count_memory(struct gd_error *err)
{
    size_t free = 0, total = 0;
    if (!gd_cuda_check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo", "the device", err))
        return false;
    gd_memory_count_device(free - free / 50);
    return true;
}

bool gd_cuda_open(int index, const struct gd_backend **backend, struct gd_device_info *info, struct gd_error *err)
{
    struct cudaDeviceProp properties;
    if (!find_device(index, &properties, err) || !gd_cuda_check(cudaSetDevice(index), "cudaSetDevice", "the device", err) ||
        !gd_cuda_streams_open(err) || !gd_cuda_gemm_open(properties.name, err) || !count_memory(err))
        return false;
    *backend = &gd_backend_cuda;
    snprintf(info->name, sizeof(info->name), "cuda:%d", index);
#ifdef GD_CUDA_EMULATED
    snprintf(info->isa, sizeof(info->isa), "emulated");
#else
    snprintf(info->isa, sizeof(info->isa), "sm_%d%d, %.50s", properties.major, properties.minor, properties.name);
#endif
    const char *asked = getenv("GRAFTD_COMPUTE");
    if (asked == NULL || asked[0] == '\0')
        info->compute = GD_BF16;
    return true;
}

bool gd_cuda_figures(struct gd_cuda_figures *out, struct gd_error *err)
{
    struct gd_cuda_memory memory = gd_cuda_memory();
    *out = (struct gd_cuda_figures){.taken = memory.taken, .used = memory.used, .used_peak = memory.used_peak};
    return gd_cuda_check(cudaMemGetInfo(&out->free, &out->total), "cudaMemGetInfo", "the device", err);
}
