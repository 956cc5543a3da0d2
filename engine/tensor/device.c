#include "engine/tensor/device.h"
#include "engine/base/memory.h"
#include "engine/tensor/backend.h"
#include "engine/tensor/gemm.h"
#include <assert.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

static struct gd_device_info info;
static const struct gd_backend *backend;

static int affinity_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    return omp_get_num_procs();
}

/* bf16 where it is at least as fast as f32 (device.h). */
static bool bf16_is_fast(const char *isa)
{
    if (strcmp(isa, "amx_bf16") == 0)
        return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    return strcmp(isa, "avx512_bf16") == 0 && __builtin_cpu_is("amd");
#else
    return false;
#endif
}

bool gd_device_multiplies(enum gd_dtype dtype)
{
    return gd_gemm_packed_bytes(64, 64, dtype) > 0;
}

static bool choose_compute(enum gd_dtype *compute, const char *isa, struct gd_error *err)
{
    const char *asked = getenv("GRAFTD_COMPUTE");
    if (asked == NULL || asked[0] == '\0')
        *compute = bf16_is_fast(isa) ? GD_BF16 : GD_F32;
    else if (strcmp(asked, "f32") == 0)
        *compute = GD_F32;
    else if (strcmp(asked, "bf16") == 0 && !gd_device_multiplies(GD_BF16))
        return gd_fail_param(err, GD_UNSUPPORTED, "GRAFTD_COMPUTE",
                             "GRAFTD_COMPUTE=bf16: this processor (%s) cannot multiply bf16; use f32", isa);
    else if (strcmp(asked, "bf16") == 0)
        *compute = GD_BF16;
    else
        return gd_fail_param(err, GD_INVALID, "GRAFTD_COMPUTE", "GRAFTD_COMPUTE=%s: it must be f32 or bf16", asked);
    return true;
}

bool gd_device_init(const char *device, int threads, struct gd_error *err)
{
    if (strncmp(device, "cuda", 4) == 0)
        return gd_fail_param(err, GD_UNSUPPORTED, "device",
                             "device '%s': this version computes on the CPU only; use 'cpu' or 'auto'", device);
    if (strcmp(device, "auto") != 0 && strcmp(device, "cpu") != 0)
        return gd_fail_param(err, GD_UNSUPPORTED, "device", "device '%s' is unknown; use 'auto', 'cpu' or 'cuda:N'", device);
    int cores = affinity_cores();
    if (threads < 0 || threads > GD_THREADS_MAX)
        return gd_fail_param(err, GD_INVALID, "threads", "%d threads: 0 (all %d cores) to %d are possible", threads, cores,
                             GD_THREADS_MAX);
    enum gd_dtype compute = GD_F32;
    const char *isa = gd_gemm_isa();
    if (!choose_compute(&compute, isa, err))
        return false;
    backend = &gd_backend_cpu;
    info = (struct gd_device_info){.threads = threads > 0 ? threads : cores, .compute = compute};
    snprintf(info.name, sizeof(info.name), "%s", backend->name);
    snprintf(info.isa, sizeof(info.isa), "%s", isa);
    omp_set_dynamic(0);
    omp_set_num_threads(info.threads);
    gd_memory_note_start();
    return true;
}

const struct gd_device_info *gd_device(void)
{
    assert(backend != NULL);
    return &info;
}

const struct gd_backend *gd_backend(void)
{
    assert(backend != NULL);
    return backend;
}

bool gd_device_quiet_environment(void)
{
    if (getenv("OMP_WAIT_POLICY") != NULL || getenv("GOMP_SPINCOUNT") != NULL)
        return false;
    return setenv("OMP_WAIT_POLICY", "passive", 0) == 0;
}
