/*
 * What the card gives as found: matrix products in bf16 and copies.
 *     ceilings DEVICE SIZE MIB
 * Products of SIZE x SIZE x SIZE and of the shapes of an 8B model's layer on 4096 rows (SIZE / 2 where that is less); copies of MIB
 * mebibytes. Medians of single launches between events, after three to warm up. Prints one JSON object.
 */
#include "cuda/gemm.h"
#include "cuda/internal.h"
#include "engine/base/alloc.h"
#include "engine/base/philox.h"
#include "engine/tensor/device.h"
#include <stdio.h>
#include <stdlib.h>

#define TURNS 15

static void must(bool ok, const struct gd_error *err)
{
    if (ok)
        return;
    fprintf(stderr, "%s\n", err->message);
    exit(1);
}

static void must_cuda(cudaError_t status, const char *call)
{
    struct gd_error err = {0};
    must(gd_cuda_check(status, call, "a measurement", &err), &err);
}

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

struct task {
    bool (*launch)(struct task *task, struct gd_error *err);
    struct gd_cuda_gemm gemm;
    void *a, *b, *c;
    size_t bytes;
    enum cudaMemcpyKind kind;
};

static double median_seconds(struct task *task)
{
    struct gd_error err = {0};
    cudaEvent_t begin, end;
    float ms[TURNS];
    must_cuda(cudaEventCreate(&begin), "cudaEventCreate");
    must_cuda(cudaEventCreate(&end), "cudaEventCreate");
    for (int i = -3; i < TURNS; i++) {
        float took = 0.0f;
        must_cuda(cudaEventRecord(begin, gd_cuda_stream()), "cudaEventRecord");
        must(task->launch(task, &err), &err);
        must_cuda(cudaEventRecord(end, gd_cuda_stream()), "cudaEventRecord");
        must_cuda(cudaEventSynchronize(end), "cudaEventSynchronize");
        must_cuda(cudaEventElapsedTime(&took, begin, end), "cudaEventElapsedTime");
        if (i >= 0)
            ms[i] = took;
    }
    qsort(ms, TURNS, sizeof(ms[0]), compare);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return (double)ms[TURNS / 2] * 1e-3;
}

static bool launch_gemm(struct task *task, struct gd_error *err)
{
    return gd_cuda_gemm(&task->gemm, task->a, task->b, task->c, err);
}

static bool launch_copy(struct task *task, struct gd_error *err)
{
    return gd_cuda_check(cudaMemcpyAsync(task->a, task->b, task->bytes, task->kind, gd_cuda_stream()), "cudaMemcpyAsync", "a measurement", err);
}

/* Random data: zeros would run faster than anything does. */
static void *random_matrix(int64_t count, uint64_t key)
{
    struct gd_error err = {0};
    void *device = NULL;
    uint16_t *host = gd_alloc_array((size_t)count, sizeof(uint16_t));
    for (int64_t i = 0; i < count; i++) /* a long pattern is as good */
        host[i] = i < 65536 ? gd_f32_to_bf16(gd_normal_from_bits(gd_philox4(key, 0, (uint64_t)i).v[0], gd_philox4(key, 1, (uint64_t)i).v[0]))
                            : host[i - 65521];
    must(gd_backend()->alloc(&device, (size_t)count * 2, "a matrix", &err), &err);
    must(gd_backend()->copy(device, host, (size_t)count * 2, GD_COPY_TO_DEVICE, &err), &err);
    gd_free(host);
    return device;
}

static double measure_product(int64_t m, int64_t n, int64_t k)
{
    struct task task = {.launch = launch_gemm, .a = random_matrix(m * k, 1), .b = random_matrix(n * k, 2), .c = random_matrix(m * n, 3),
                        .gemm = {.m = m, .n = n, .k = k, .transpose_b = true, .in = GD_BF16, .out = GD_BF16, .alpha = 1.0f}};
    double seconds = median_seconds(&task);
    gd_cuda_free(task.a);
    gd_cuda_free(task.b);
    gd_cuda_free(task.c);
    return 2.0 * (double)m * (double)n * (double)k / seconds;
}

static double measure_copy(size_t bytes, enum cudaMemcpyKind kind)
{
    struct gd_error err = {0};
    struct task task = {.launch = launch_copy, .bytes = bytes, .kind = kind};
    must(gd_backend()->alloc(&task.a, bytes, "a copy", &err), &err);
    if (kind == cudaMemcpyDeviceToDevice) {
        must(gd_backend()->alloc(&task.b, bytes, "a copy", &err), &err);
        must(gd_backend()->fill_zero(task.b, bytes, &err), &err);
    } else {
        must(gd_backend()->alloc_staging(&task.b, bytes, &err), &err);
        memset(task.b, 1, bytes);
    }
    double seconds = median_seconds(&task);
    gd_cuda_free(task.a);
    if (kind == cudaMemcpyDeviceToDevice)
        gd_cuda_free(task.b);
    else
        gd_backend()->free_staging(task.b, bytes);
    return (double)bytes / seconds;
}

int main(int argc, char **argv)
{
    struct gd_error err = {0};
    int64_t size = argc > 2 ? atoll(argv[2]) : 0, mib = argc > 3 ? atoll(argv[3]) : 0;
    if (argc != 4 || size < 16 || size > 32768 || mib < 1 || mib > 16384) {
        fprintf(stderr, "usage: ceilings DEVICE SIZE MIB\n");
        return 2;
    }
    must(gd_device_init(argv[1], 0, &err), &err);
    int64_t rows = size / 2 < 4096 ? size / 2 : 4096, hidden = size / 2 < 4096 ? size / 2 : 4096;
    struct gd_cuda_figures memory;
    double best = measure_product(size, size, size);
    printf("{\"card\": \"%s\", \"bf16_tflops\": %.2f, \"layer_bf16_tflops\": %.2f, \"low_rank_tflops\": %.3f, ", gd_device()->isa, best * 1e-12,
           measure_product(rows, hidden, hidden) * 1e-12, measure_product(rows, 16, hidden) * 1e-12);
    printf("\"copy_gb_s\": %.2f, ", 2e-9 * measure_copy((size_t)mib << 20, cudaMemcpyDeviceToDevice));
    printf("\"upload_gb_s\": %.2f, ", 1e-9 * measure_copy((size_t)mib << 20, cudaMemcpyHostToDevice));
    must(gd_cuda_figures(&memory, &err), &err);
    printf("\"memory_bytes\": %zu, \"beside_pool_bytes\": %zu}\n", memory.total, memory.total - memory.free - memory.taken);
    return 0;
}
