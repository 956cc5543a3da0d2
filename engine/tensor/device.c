#include "engine/tensor/device.h"
#include "cuda/open.h"
#include "engine/base/alloc.h"
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

/* `here`: by this processor, not by a device that multiplies both. */
static bool choose_compute(enum gd_dtype *compute, const char *isa, bool here, struct gd_error *err)
{
    const char *asked = getenv("GRAFTD_COMPUTE");
    if (asked == NULL || asked[0] == '\0')
        *compute = bf16_is_fast(isa) ? GD_BF16 : GD_F32;
    else if (strcmp(asked, "f32") == 0)
        *compute = GD_F32;
    else if (here && strcmp(asked, "bf16") == 0 && !gd_device_multiplies(GD_BF16))
        return gd_fail_param(err, GD_UNSUPPORTED, "GRAFTD_COMPUTE",
                             "GRAFTD_COMPUTE=bf16: this processor (%s) cannot multiply bf16; use f32", isa);
    else if (strcmp(asked, "bf16") == 0)
        *compute = GD_BF16;
    else
        return gd_fail_param(err, GD_INVALID, "GRAFTD_COMPUTE", "GRAFTD_COMPUTE=%s: it must be f32 or bf16", asked);
    return true;
}

static bool open_cuda(const char *device, struct gd_error *err)
{
    char *end = NULL;
    long index = device[5] >= '0' && device[5] <= '9' ? strtol(device + 5, &end, 10) : -1;
    if (index < 0 || index > 1023 || *end != '\0')
        return gd_fail_param(err, GD_INVALID, "device", "device '%s': write 'cuda:N' with the device's number, as in 'cuda:0'", device);
    if (gd_cuda_open == NULL)
        return gd_fail_param(err, GD_UNSUPPORTED, "device", "device '%s': this program was built without CUDA; use 'cpu' or 'auto'",
                             device);
    return gd_cuda_open((int)index, &backend, &info, err);
}

bool gd_device_init(const char *device, int threads, struct gd_error *err)
{
    bool cuda = strncmp(device, "cuda:", 5) == 0;
    if (!cuda && strcmp(device, "auto") != 0 && strcmp(device, "cpu") != 0)
        return gd_fail_param(err, GD_UNSUPPORTED, "device", "device '%s' is unknown; use 'auto', 'cpu' or 'cuda:N'", device);
    int cores = affinity_cores();
    if (threads < 0 || threads > GD_THREADS_MAX)
        return gd_fail_param(err, GD_INVALID, "threads", "%d threads: 0 (all %d cores) to %d are possible", threads, cores,
                             GD_THREADS_MAX);
    enum gd_dtype compute = GD_F32;
    const char *isa = gd_gemm_isa();
    if (!choose_compute(&compute, isa, !cuda, err))
        return false;
    backend = &gd_backend_cpu;
    info = (struct gd_device_info){.threads = threads > 0 ? threads : cores, .compute = compute};
    snprintf(info.name, sizeof(info.name), "%s", backend->name);
    snprintf(info.isa, sizeof(info.isa), "%s", isa);
    if (cuda && !open_cuda(device, err))
        return false;
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

const char *gd_device_lost(void)
{
    return backend != NULL && backend->lost != NULL ? backend->lost() : NULL;
}

/* ---- memory ---- */

bool gd_device_alloc(void **out, size_t size_bytes, const char *what, struct gd_error *err)
{
    return gd_backend()->alloc(out, size_bytes, what, err);
}

void gd_device_free(void *memory, size_t size_bytes)
{
    if (memory != NULL)
        gd_backend()->free(memory, size_bytes);
}

void gd_device_release(struct gd_device_block *block)
{
    gd_device_free(block->memory, block->size_bytes);
    *block = (struct gd_device_block){0};
}

bool gd_device_reserve(struct gd_device_block *block, size_t size_bytes, const char *what, struct gd_error *err)
{
    if (size_bytes <= block->size_bytes)
        return true;
    gd_device_release(block);
    void *memory = NULL;
    if (!gd_device_alloc(&memory, size_bytes, what, err))
        return false;
    *block = (struct gd_device_block){memory, size_bytes};
    return true;
}

bool gd_device_read(void *to, const void *device, size_t size_bytes, struct gd_error *err)
{
    return gd_backend()->copy(to, device, size_bytes, GD_COPY_FROM_DEVICE, err);
}

bool gd_device_write(void *device, const void *from, size_t size_bytes, struct gd_error *err)
{
    return gd_backend()->copy(device, from, size_bytes, GD_COPY_TO_DEVICE, err);
}

/* Few and long-lived: a list will do. */
struct twin {
    struct twin *next;
    char *host, *device;
    size_t size_bytes;
};

static struct twin *twins;

static const struct twin *twin_of(const void *memory)
{
    const struct twin *twin = twins;
    while (twin != NULL && ((const char *)memory < twin->host || (const char *)memory >= twin->host + twin->size_bytes))
        twin = twin->next;
    return twin;
}

bool gd_twin_alloc(void **out, size_t size_bytes, const char *what, struct gd_error *err)
{
    if (!gd_large_alloc(out, size_bytes, what, err))
        return false;
    if (!gd_backend()->own_memory)
        return true;
    struct twin *twin = gd_alloc(sizeof(*twin));
    void *device = NULL;
    if (!gd_backend()->alloc(&device, size_bytes, what, err) || !gd_backend()->fill_zero(device, size_bytes, err)) {
        gd_device_free(device, size_bytes);
        gd_free(twin);
        gd_large_free(*out, size_bytes);
        *out = NULL;
        return false;
    }
    *twin = (struct twin){.next = twins, .host = *out, .device = device, .size_bytes = size_bytes};
    twins = twin;
    return true;
}

void gd_twin_free(void *memory, size_t size_bytes)
{
    for (struct twin **at = &twins; memory != NULL && *at != NULL; at = &(*at)->next)
        if ((*at)->host == memory) {
            struct twin *twin = *at;
            *at = twin->next;
            gd_device_free(twin->device, twin->size_bytes);
            gd_free(twin);
            break;
        }
    gd_large_free(memory, size_bytes);
}

void *gd_device_address(const void *memory)
{
    if (!gd_backend()->own_memory)
        return (void *)(uintptr_t)memory;
    const struct twin *twin = twin_of(memory);
    if (twin != NULL)
        return twin->device + ((const char *)memory - twin->host);
    return gd_backend()->owns(memory) ? (void *)(uintptr_t)memory : NULL;
}

bool gd_twin_push(const void *host, size_t size_bytes, struct gd_error *err)
{
    return !gd_backend()->own_memory || gd_backend()->copy(gd_device_address(host), host, size_bytes, GD_COPY_TO_DEVICE, err);
}

bool gd_twin_pull(void *host, size_t size_bytes, struct gd_error *err)
{
    return !gd_backend()->own_memory || gd_backend()->copy(host, gd_device_address(host), size_bytes, GD_COPY_FROM_DEVICE, err);
}

bool gd_wear_adopt(const struct gd_wear_part *sites, const struct gd_wear_shape *shapes, int count, struct gd_error *err)
{
    return !gd_backend()->own_memory || gd_backend()->wear_adopt(sites, shapes, count, err);
}

void gd_wear_drop(const struct gd_wear_part *sites)
{
    if (sites != NULL && gd_backend()->own_memory)
        gd_backend()->wear_drop(sites);
}

bool gd_device_samples(void)
{
    return gd_backend()->own_memory && gd_backend()->sample != NULL;
}

bool gd_device_sample(const struct gd_sample_batch *batch, struct gd_sampled *out, struct gd_error *err)
{
    return gd_backend()->sample(batch, out, err);
}

/* ---- vectors ---- */

bool gd_vector_zero(float *x, int64_t count, struct gd_error *err)
{
    return gd_backend()->fill_zero(gd_device_address(x), (size_t)count * sizeof(float), err);
}

bool gd_vector_add(float *y, const float *x, int64_t count, struct gd_error *err)
{
    return gd_backend()->vector_add(gd_device_address(y), gd_device_address(x), count, err);
}

bool gd_vector_add_squares(float *y, const float *x, int64_t count, struct gd_error *err)
{
    return gd_backend()->vector_add_squares(gd_device_address(y), gd_device_address(x), count, err);
}

bool gd_vector_sum_squares(double *out, const float *x, int64_t count, struct gd_error *err)
{
    return gd_backend()->vector_sum_squares(out, gd_device_address(x), count, err);
}

bool gd_vector_all_finite(bool *out, const float *x, int64_t count, struct gd_error *err)
{
    return gd_backend()->vector_all_finite(out, gd_device_address(x), count, err);
}

bool gd_vector_adamw(float *param, float *m, float *v, const float *grad, int64_t count, const struct gd_adamw *adamw,
                     struct gd_error *err)
{
    return gd_backend()->vector_adamw(gd_device_address(param), gd_device_address(m), gd_device_address(v), gd_device_address(grad),
                                      count, adamw, err);
}
