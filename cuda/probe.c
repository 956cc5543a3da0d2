#include "cuda/probe.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>

void gd_cuda_describe(char *out, size_t size)
{
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0) {
        snprintf(out, size, "no device (%s)", status == cudaSuccess ? "none is visible" : cudaGetErrorString(status));
        return;
    }
    snprintf(out, size, "%d device%s:", count, count == 1 ? "" : "s");
    for (int i = 0; i < count; i++) {
        struct cudaDeviceProp properties;
        if (cudaGetDeviceProperties(&properties, i) != cudaSuccess)
            continue;
        size_t used = strlen(out);
        snprintf(out + used, size - used, "%s %s (sm_%d%d, %zu GiB)", i ? "," : "", properties.name, properties.major,
                 properties.minor, properties.totalGlobalMem >> 30);
    }
}
