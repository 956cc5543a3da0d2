/* The stand-in runtime finds what a host does wrong. Each case is a sound piece of host code and the same with its bug. */
#include "child.h"
#include "tests/cuda/fake.h"
#include <cublasLt.h>

#define COUNT 64
#define SEEDS 24

static cudaStream_t compute, copying;
static cudaEvent_t event;
static float *device, *result_device;

static void prepare(int seed)
{
    char text[16];
    snprintf(text, sizeof(text), "%d", seed);
    setenv("EMU_SEED", text, 1);
    fake_runtime_reset();
    EXPECT(cudaStreamCreateWithPriority(&compute, cudaStreamNonBlocking, 0) == cudaSuccess);
    EXPECT(cudaStreamCreateWithPriority(&copying, cudaStreamNonBlocking, 0) == cudaSuccess);
    EXPECT(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
    EXPECT(cudaMalloc((void **)&device, COUNT * sizeof(float)) == cudaSuccess);
    EXPECT(cudaMalloc((void **)&result_device, COUNT * sizeof(float)) == cudaSuccess);
    EXPECT(cudaMemsetAsync(device, 0, COUNT * sizeof(float), compute) == cudaSuccess);
    EXPECT(cudaMemsetAsync(result_device, 0, COUNT * sizeof(float), compute) == cudaSuccess);
    EXPECT(cudaDeviceSynchronize() == cudaSuccess);
}

static void done(void)
{
    cudaDeviceSynchronize();
    fake_runtime_reset();
    EXPECT(cudaFree(device) == cudaSuccess && cudaFree(result_device) == cudaSuccess);
    EXPECT(cudaStreamDestroy(compute) == cudaSuccess && cudaStreamDestroy(copying) == cudaSuccess && cudaEventDestroy(event) == cudaSuccess);
}

/* Of the seeds, how many give something else than all `wanted`. */
static int wrong(bool (*run)(bool bug, float *out), bool bug, float wanted)
{
    int count = 0;
    for (int seed = 1; seed <= SEEDS; seed++) {
        float out[COUNT] = {0};
        prepare(seed);
        bool right = run(bug, out);
        for (int i = 0; right && i < COUNT; i++)
            right = out[i] == wanted;
        count += !right;
        done();
    }
    return count;
}

static void fill(float *out, float value)
{
    for (int i = 0; i < COUNT; i++)
        out[i] = value;
}

static bool upload_then_use(bool bug, float *out)
{
    static float from[COUNT];
    fill(from, 3.0f);
    cudaMemcpyAsync(device, from, sizeof(from), cudaMemcpyHostToDevice, copying);
    cudaEventRecord(event, copying);
    if (!bug)
        cudaStreamWaitEvent(compute, event, 0);
    cudaMemcpyAsync(result_device, device, sizeof(from), cudaMemcpyDeviceToDevice, compute);
    cudaMemcpyAsync(out, result_device, sizeof(from), cudaMemcpyDeviceToHost, compute);
    return cudaStreamSynchronize(compute) == cudaSuccess;
}

static bool download(bool bug, float *out)
{
    static float from[COUNT];
    fill(from, 4.0f);
    cudaMemcpyAsync(device, from, sizeof(from), cudaMemcpyHostToDevice, compute);
    cudaMemcpyAsync(out, device, sizeof(from), cudaMemcpyDeviceToHost, bug ? copying : compute);
    return cudaStreamSynchronize(bug ? copying : compute) == cudaSuccess;
}

static bool read_result(bool bug, float *out)
{
    static float from[COUNT], back[COUNT];
    fill(from, 5.0f);
    fill(back, 0.0f);
    cudaMemcpyAsync(device, from, sizeof(from), cudaMemcpyHostToDevice, compute);
    cudaMemcpyAsync(back, device, sizeof(from), cudaMemcpyDeviceToHost, compute);
    if (!bug)
        cudaStreamSynchronize(compute);
    memcpy(out, back, sizeof(back));
    return cudaStreamSynchronize(compute) == cudaSuccess;
}

static bool reuse_buffer(bool bug, float *out)
{
    static float from[COUNT];
    fill(from, 6.0f);
    cudaMemcpyAsync(device, from, sizeof(from), cudaMemcpyHostToDevice, copying);
    cudaEventRecord(event, copying);
    if (!bug)
        cudaEventSynchronize(event);
    fill(from, 7.0f);
    cudaStreamWaitEvent(compute, event, 0);
    cudaMemcpyAsync(out, device, sizeof(from), cudaMemcpyDeviceToHost, compute);
    return cudaStreamSynchronize(compute) == cudaSuccess;
}

static void timing_bugs(void)
{
    EXPECT(wrong(upload_then_use, false, 3.0f) == 0);
    EXPECT(wrong(upload_then_use, true, 3.0f) > 0);
    EXPECT(wrong(download, false, 4.0f) == 0);
    EXPECT(wrong(download, true, 4.0f) > 0);
    EXPECT(wrong(read_result, false, 5.0f) == 0);
    EXPECT(wrong(read_result, true, 5.0f) == SEEDS);
    EXPECT(wrong(reuse_buffer, false, 6.0f) == 0);
    EXPECT(wrong(reuse_buffer, true, 6.0f) > 0);
}

static void what_is_read_too_early_late_or_elsewhere_is_wrong(void **state)
{
    in_child(timing_bugs, NULL);
}

/* ---- graphs ---- */

/* Two streams that fork and join; the sum of what both copied. */
static cudaError_t capture(bool wait_inside, bool join, cudaGraph_t *graph, float *from)
{
    cudaEvent_t fork = NULL;
    cudaEventCreateWithFlags(&fork, cudaEventDisableTiming);
    EXPECT(cudaStreamBeginCapture(compute, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    cudaEventRecord(fork, compute);
    cudaStreamWaitEvent(copying, fork, 0);
    cudaMemcpyAsync(device, from, COUNT * sizeof(float), cudaMemcpyHostToDevice, copying);
    if (wait_inside)
        EXPECT(cudaStreamSynchronize(compute) == cudaErrorStreamCaptureUnsupported);
    cudaEventRecord(event, copying);
    if (join)
        cudaStreamWaitEvent(compute, event, 0);
    cudaMemcpyAsync(result_device, device, COUNT * sizeof(float), cudaMemcpyDeviceToDevice, compute);
    cudaError_t status = cudaStreamEndCapture(compute, graph);
    cudaEventDestroy(fork);
    return status;
}

static void graph_bugs(void)
{
    static float own[COUNT], out[COUNT];
    float *from = NULL;
    EXPECT(cudaHostAlloc((void **)&from, sizeof(own), cudaHostAllocDefault) == cudaSuccess);
    for (int seed = 1; seed <= SEEDS; seed++) {
        cudaGraph_t graph = NULL;
        cudaGraphExec_t exec = NULL;
        prepare(seed);
        EXPECT(capture(false, true, &graph, from) == cudaSuccess);
        EXPECT(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess && cudaGraphDestroy(graph) == cudaSuccess);
        for (int turn = 0; turn < 3; turn++) { /* repeated, it reads what is there then */
            fill(from, (float)turn);
            EXPECT(cudaGraphLaunch(exec, compute) == cudaSuccess);
            cudaMemcpyAsync(out, result_device, sizeof(out), cudaMemcpyDeviceToHost, compute);
            EXPECT(cudaStreamSynchronize(compute) == cudaSuccess);
            for (int i = 0; i < COUNT; i++)
                EXPECT(out[i] == (float)turn);
        }
        cudaGraphExecDestroy(exec);
        done();
    }
    cudaGraph_t graph = NULL;
    prepare(1);
    EXPECT(capture(true, true, &graph, from) == cudaErrorStreamCaptureInvalidated && graph == NULL);
    done();
    prepare(1);
    EXPECT(capture(false, false, &graph, from) == cudaErrorStreamCaptureUnjoined && graph == NULL);
    done();
    prepare(1);
    void *memory = NULL;
    EXPECT(cudaStreamBeginCapture(compute, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    EXPECT(cudaMalloc(&memory, 16) == cudaErrorStreamCaptureUnsupported);
    EXPECT(cudaStreamEndCapture(compute, &graph) == cudaErrorStreamCaptureInvalidated);
    done();
    prepare(1);
    EXPECT(capture(false, true, &graph, own) == cudaErrorStreamCaptureInvalidated && graph == NULL); /* who knows how long it is there */
    done();
    cudaFreeHost(from);
}

static void waiting_allocating_passing_memory_and_unjoined_streams_break_a_capture(void **state)
{
    in_child(graph_bugs, NULL);
}

/* ---- products ---- */

struct product {
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t layout;   /* 8 by 8, all three */
    cublasLtMatmulHeuristicResult_t found[8];
    int count;
};

static void product_make(struct product *p, uint32_t alignment)
{
    cublasLtMatmulPreference_t preference;
    size_t workspace = 1 << 20;
    EXPECT(cublasLtCreate(&p->lt) == CUBLAS_STATUS_SUCCESS);
    EXPECT(cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS);
    EXPECT(cublasLtMatrixLayoutCreate(&p->layout, CUDA_R_32F, 8, 8, 8) == CUBLAS_STATUS_SUCCESS);
    EXPECT(cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS);
    static const cublasLtMatmulPreferenceAttributes_t which[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (int i = 0; i < 4; i++)
        cublasLtMatmulPreferenceSetAttribute(preference, which[i], &alignment, sizeof(alignment));
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace));
    EXPECT(cublasLtMatmulAlgoGetHeuristic(p->lt, p->desc, p->layout, p->layout, p->layout, p->layout, preference, 8, p->found, &p->count) ==
               CUBLAS_STATUS_SUCCESS &&
           p->count == 3);
    cublasLtMatmulPreferenceDestroy(preference);
}

static cublasStatus_t product_run(const struct product *p, const float *a, const float *b, float *d, int algorithm, void *workspace,
                                  size_t workspace_bytes)
{
    float one = 1.0f, none = 0.0f;
    return cublasLtMatmul(p->lt, p->desc, &one, a, p->layout, b, p->layout, &none, d, p->layout, d, p->layout,
                          &p->found[algorithm].algo, workspace, workspace_bytes, compute);
}

static void product_bugs(void)
{
    struct product p = {0};
    float *memory = NULL;
    static float host[64], out[64];
    prepare(1);
    product_make(&p, 16);
    EXPECT(cudaMalloc((void **)&memory, (3 * 64 + 4) * sizeof(float)) == cudaSuccess);
    fill(host, 1.0f);
    cudaMemcpyAsync(memory, host, sizeof(host), cudaMemcpyHostToDevice, compute);
    cudaMemcpyAsync(memory + 64, host, sizeof(host), cudaMemcpyHostToDevice, compute);
    EXPECT(product_run(&p, memory, memory + 64, memory + 128, 1, NULL, 0) == CUBLAS_STATUS_SUCCESS);
    cudaMemcpyAsync(out, memory + 128, sizeof(out), cudaMemcpyDeviceToHost, compute);
    EXPECT(cudaStreamSynchronize(compute) == cudaSuccess && out[0] == 8.0f && out[63] == 8.0f);
    EXPECT(product_run(&p, memory, memory + 64, memory + 136, 1, NULL, 0) == CUBLAS_STATUS_INVALID_VALUE);  /* beyond its end */
    EXPECT(product_run(&p, memory + 1, memory + 64, memory + 128, 1, NULL, 0) == CUBLAS_STATUS_INVALID_VALUE); /* misaligned */
    EXPECT(product_run(&p, host, memory + 64, memory + 128, 1, NULL, 0) == CUBLAS_STATUS_INVALID_VALUE);    /* the host's */
    EXPECT(product_run(&p, memory, memory + 64, memory + 128, 2, memory, 64) == CUBLAS_STATUS_INVALID_VALUE); /* too little workspace */
    p.found[1].algo.data[1] ^= 1;
    EXPECT(product_run(&p, memory, memory + 64, memory + 128, 1, NULL, 0) == CUBLAS_STATUS_INVALID_VALUE); /* of another shape */
    cudaFree(memory);
    done();
}

static void products_refuse_operands_that_are_too_short_misaligned_or_the_hosts(void **state)
{
    in_child(product_bugs, NULL);
}

/* Two streams with one workspace, or each with its own. */
static int failed_together(bool bug)
{
    int count = 0;
    for (int seed = 1; seed <= SEEDS; seed++) {
        struct product p = {0};
        float *memory = NULL;
        char *workspace = NULL;
        prepare(seed);
        product_make(&p, 16);
        EXPECT(cudaMalloc((void **)&memory, 3 * 64 * sizeof(float)) == cudaSuccess && cudaMalloc((void **)&workspace, 8192) == cudaSuccess);
        cudaMemsetAsync(memory, 0, 2 * 64 * sizeof(float), compute);
        EXPECT(cudaDeviceSynchronize() == cudaSuccess);
        EXPECT(product_run(&p, memory, memory, memory + 64, 0, workspace, 4096) == CUBLAS_STATUS_SUCCESS);
        cudaStream_t first = compute;
        compute = copying;
        EXPECT(product_run(&p, memory, memory, memory + 128, 0, workspace + (bug ? 0 : 4096), 4096) == CUBLAS_STATUS_SUCCESS);
        compute = first;
        count += cudaDeviceSynchronize() != cudaSuccess;
        fake_runtime_reset();
        cudaFree(memory);
        cudaFree(workspace);
        done();
    }
    return count;
}

static void shared_workspace(void)
{
    EXPECT(failed_together(false) == 0);
    EXPECT(failed_together(true) > 0);
}

static void products_of_two_streams_need_workspaces_of_their_own(void **state)
{
    in_child(shared_workspace, NULL);
}

/* ---- faults on order ---- */

static void ordered(void)
{
    void *memory = NULL;
    int count = 0;
    EXPECT(cudaMalloc(&memory, 16) == cudaSuccess);
    EXPECT(cudaMalloc(&memory, 16) == cudaErrorMemoryAllocation);
    EXPECT(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess);
    EXPECT(cudaMalloc(&memory, 16) == cudaSuccess);
    EXPECT(cudaGetDeviceCount(&count) == cudaErrorECCUncorrectable);
    EXPECT(cudaMalloc(&memory, 16) == cudaErrorECCUncorrectable && cudaGetLastError() == cudaErrorECCUncorrectable &&
           cudaGetLastError() == cudaErrorECCUncorrectable);
}

static void meter(void)
{
    void *a = NULL, *b = NULL;
    size_t free_bytes = 0, total = 0;
    EXPECT(cudaMalloc(&a, 1000) == cudaSuccess && cudaMalloc(&b, 24) == cudaSuccess);
    EXPECT(cudaMemGetInfo(&free_bytes, &total) == cudaSuccess && total == 2048 && free_bytes == 1024);
    EXPECT(cudaFree(a) == cudaSuccess && cudaMalloc(&a, 2025) == cudaErrorMemoryAllocation && cudaMalloc(&a, 2024) == cudaSuccess);
    EXPECT(fake_runtime_meter().device_bytes == 2048 && fake_runtime_meter().device_peak == 2048);
    EXPECT(cudaFree((char *)a + 1) == cudaErrorInvalidValue);
}

static void faults_come_when_they_are_ordered_and_memory_is_metered(void **state)
{
    in_child(ordered, SETTINGS("EMU_FAULT=cudaMalloc:2:2,cudaGetDeviceCount:1:214"));
    in_child(meter, SETTINGS("EMU_MEMORY=2048"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_read_too_early_late_or_elsewhere_is_wrong),
        cmocka_unit_test(waiting_allocating_passing_memory_and_unjoined_streams_break_a_capture),
        cmocka_unit_test(products_refuse_operands_that_are_too_short_misaligned_or_the_hosts),
        cmocka_unit_test(products_of_two_streams_need_workspaces_of_their_own),
        cmocka_unit_test(faults_come_when_they_are_ordered_and_memory_is_metered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
